/**
 * Schedulers over noise levels σ, where a sample is x₀ + σ·ε (arXiv:2206.00364): what they share.
 *
 * @module
 */

import { roundToEven } from "../core/rounding.ts";
import type { Tensor } from "../core/tensor.ts";
import { resolveConfig, type SchedulerConfig } from "./config.ts";
import { type Prediction, predictX0FromSigma, sum } from "./prediction.ts";
import { RunState, type SchedulerState } from "./run_state.ts";
import {
  alphasCumprod,
  checkSteps,
  linspace,
  type Scheduler,
  solverTimesteps,
  spacedTimesteps,
  type StepOptions,
  type StepOutput,
} from "./schedule.ts";

/** Timesteps of a run and their noise levels; the level after the last step comes last. */
export interface SigmaSchedule {
  /** What the model is told; may be fractional. */
  readonly timesteps: number[];
  /** One more than timesteps. */
  readonly sigmas: number[];
}

/** σ = √((1−ᾱ)/ᾱ) of all training timesteps. */
export function sigmaTable(config: SchedulerConfig): number[] {
  const alphas = alphasCumprod(config);
  // Pure noise has infinite σ; the reference puts a level just short of it there.
  if (config.rescale_betas_zero_snr) alphas[alphas.length - 1] = 2 ** -24;
  return Array.from(alphas, (alpha) => Math.fround(Math.sqrt((1 - alpha) / alpha)));
}

/** σ at a timestep, linear between whole ones. */
export function sigmaAt(table: readonly number[], timestep: number): number {
  const last = table.length - 1;
  const at = Math.min(Math.max(timestep, 0), last);
  const low = Math.min(Math.floor(at), Math.max(last - 1, 0));
  return table[low] + (at - low) * ((table[low + 1] ?? table[low]) - table[low]);
}

/** The fractional timestep of a σ: linear in ln σ. `table` ascends. */
function timestepAt(table: readonly number[], sigma: number): number {
  const above = table.findIndex((value) => value > sigma);
  const low = Math.max(0, Math.min(above < 0 ? Infinity : above - 1, table.length - 2));
  const [a, b] = [Math.log(table[low]), Math.log(table[low + 1] ?? table[low])];
  const share = a === b ? 0 : (Math.log(Math.max(sigma, 1e-10)) - a) / (b - a);
  return low + Math.min(Math.max(share, 0), 1);
}

/**
 * Levels from `max` down to `min` that do not follow timesteps; `null` if the settings want none.
 *
 * Karras: 7th roots evenly spaced (arXiv:2206.00364, equation 5); exponential: logarithms evenly
 * spaced; beta: quantiles of Beta(0.6, 0.6) (arXiv:2407.12173).
 */
function freeLevels(
  config: SchedulerConfig,
  max: number,
  min: number,
  steps: number,
): number[] | null {
  const ramp = linspace(0, 1, steps);
  if (config.use_karras_sigmas) {
    const rho = 7;
    const [top, bottom] = [max ** (1 / rho), min ** (1 / rho)];
    return ramp.map((share) => (top + share * (bottom - top)) ** rho);
  }
  if (config.use_exponential_sigmas) return ramp.map((share) => max * (min / max) ** share);
  if (config.use_beta_sigmas) return ramp.map((share) => min + (max - min) * quantile(1 - share));
  return null;
}

const BETA = 0.6;

/** ∫₀ˣ (u(1−u))^(BETA−1) du for x ≤ ½, by the binomial series of (1−u)^(BETA−1). */
function betaIntegral(x: number): number {
  let [term, total] = [1, 0];
  for (let n = 0; n < 60; n++) {
    total += term / (BETA + n);
    term *= x * (n + 1 - BETA) / (n + 1);
  }
  return total * x ** BETA;
}

/** Where the distribution function of Beta(0.6, 0.6) has the value `share`, 0 … 1. */
function quantile(share: number): number {
  if (share > 0.5) return 1 - quantile(1 - share);
  const target = share * 2 * betaIntegral(0.5);
  let [low, high] = [0, 0.5];
  for (let i = 0; i < 52; i++) {
    const middle = (low + high) / 2;
    if (betaIntegral(middle) < target) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

function withFinal(config: SchedulerConfig, sigmas: number[], table: readonly number[]): number[] {
  const last = config.final_sigmas_type === "zero" ? 0 : table[0];
  return [...sigmas, last].map(Math.fround);
}

/** Schedule of the Euler family: timesteps are fractional. */
function eulerSchedule(
  config: SchedulerConfig,
  table: readonly number[],
  steps: number,
): SigmaSchedule {
  const timesteps = spacedTimesteps(config, steps).map(Math.fround);
  const sigmas = timesteps.map((t) => sigmaAt(table, t));
  const free = freeLevels(config, sigmas[0], sigmas[steps - 1], steps);
  if (!free) return { timesteps, sigmas: withFinal(config, sigmas, table) };
  return {
    timesteps: free.map((sigma) => Math.fround(timestepAt(table, sigma))),
    sigmas: withFinal(config, free, table),
  };
}

/** Schedule of the DPM-Solver family: timesteps are whole. `last` as in {@link solverTimesteps}. */
export function solverSchedule(
  config: SchedulerConfig,
  table: readonly number[],
  steps: number,
  last: number = table.length,
): SigmaSchedule {
  const free = freeLevels(config, table[table.length - 1], table[0], steps);
  if (!free) {
    const timesteps = solverTimesteps(config, steps, last);
    const sigmas = timesteps.map((t) => sigmaAt(table, t));
    return { timesteps, sigmas: withFinal(config, sigmas, table) };
  }
  // The reference truncates instead of rounding for the cosine schedule.
  const whole = config.beta_schedule === "squaredcos_cap_v2" ? Math.floor : roundToEven;
  return {
    timesteps: free.map((sigma) => whole(timestepAt(table, sigma))),
    sigmas: withFinal(config, free, table),
  };
}

/** dx/dσ = (x − x₀)/σ, as coefficients of sample and model output. */
export function derivative(config: SchedulerConfig, sigma: number): Prediction {
  const x0 = predictX0FromSigma(config.prediction_type, sigma);
  return { sample: (1 - x0.sample) / sigma, output: -x0.output / sigma };
}

/** What the σ-schedulers have in common; each adds its `step`. */
export abstract class SigmaScheduler implements Scheduler {
  /** All settings, completed with defaults. */
  readonly config: SchedulerConfig;
  /** Samples are x₀ + σ·ε. */
  readonly space = "sigma";
  /** Model calls of one step. */
  readonly order: number = 1;
  /** Timesteps, in the order of the calls; may be fractional. */
  timesteps: readonly number[] = [];
  /** Noise levels of the timesteps, and the one after the last step. */
  sigmas: readonly number[] = [];
  /** Factor on standard normal noise to get the first sample. */
  initNoiseSigma: number;
  /** Class name, for messages. */
  protected readonly name: string;
  /**
   * History of the run.
   *
   * @internal
   */
  protected readonly run: RunState = new RunState();
  readonly #table: readonly number[];

  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(name: string, given: Partial<SchedulerConfig>, own: Partial<SchedulerConfig>) {
    this.name = name;
    this.config = resolveConfig(name, given, own);
    this.#table = sigmaTable(this.config);
    this.initNoiseSigma = this.#initNoise(Math.max(...this.#table));
  }

  #initNoise(sigma: number): number {
    return this.config.timestep_spacing === "leading" ? Math.sqrt(sigma * sigma + 1) : sigma;
  }

  /** Chooses timesteps and noise levels, and forgets the history. */
  setTimesteps(numInferenceSteps: number): void {
    checkSteps(this.name, numInferenceSteps, this.#table.length);
    const { timesteps, sigmas } = eulerSchedule(this.config, this.#table, numInferenceSteps);
    this.timesteps = timesteps;
    this.sigmas = sigmas;
    this.initNoiseSigma = this.#initNoise(Math.max(...sigmas));
    this.reset();
  }

  /** x/√(σ²+1): back to unit variance. */
  scaleModelInput(sample: Tensor, timestep: number): Tensor {
    const sigma = this.sigmas[this.run.find(this.name, this.timesteps, timestep)];
    return sum([1 / Math.sqrt(sigma * sigma + 1), sample]);
  }

  /** One step; see {@link Scheduler.step}. */
  abstract step(
    modelOutput: Tensor,
    timestep: number,
    sample: Tensor,
    options?: StepOptions,
  ): StepOutput;

  /** x₀ + σ·ε. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor {
    const index = this.timesteps.indexOf(timestep);
    const sigma = index < 0 ? sigmaAt(this.#table, timestep) : this.sigmas[index];
    return sum([1, original], [sigma, noise]);
  }

  /** Forgets the history. */
  reset(): void {
    this.run.dispose();
  }

  /** Copies the history. */
  snapshot(): SchedulerState {
    return this.run.copy();
  }

  /** Continues from a snapshot. */
  restore(state: SchedulerState): void {
    this.run.restore(state);
  }
}
