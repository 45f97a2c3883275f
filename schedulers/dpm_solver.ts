/**
 * DPM-Solver and DPM-Solver++, multistep, of order 1 to 3 (arXiv:2206.00927, arXiv:2211.01095).
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import { refusal, resolveConfig, type SchedulerConfig } from "./config.ts";
import { drawNoise, sum, type Term } from "./prediction.ts";
import { RunState, type SchedulerState } from "./run_state.ts";
import { checkSteps, type Scheduler, type StepOptions, type StepOutput } from "./schedule.ts";
import { sigmaTable, solverSchedule } from "./sigmas.ts";
import { convertOutput, type Level, levelOf, solverNoise } from "./solver.ts";

const NAME = "DPMSolverMultistepScheduler";

/** DPM-Solver, multistep. `sde-` algorithms need noise in every step. */
export class DPMSolverMultistepScheduler implements Scheduler {
  readonly config: SchedulerConfig;
  readonly initNoiseSigma = 1;
  readonly order = 1;
  readonly space = "vp";
  timesteps: readonly number[] = [];
  /** Noise levels σ = √((1−ᾱ)/ᾱ) of the timesteps, and the one after the last step. */
  sigmas: readonly number[] = [];
  readonly #table: readonly number[];
  readonly #run = new RunState();

  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    this.config = resolveConfig(NAME, config, {
      timestep_spacing: "linspace",
      solver_order: 2,
      algorithm_type: "dpmsolver++",
      solver_type: "midpoint",
      lower_order_final: true,
      euler_at_final: false,
      use_karras_sigmas: false,
      use_exponential_sigmas: false,
      use_beta_sigmas: false,
      use_lu_lambdas: false,
      use_flow_sigmas: false,
      final_sigmas_type: "zero",
      lambda_min_clipped: null,
      thresholding: false,
      sample_max_value: 1,
      rescale_betas_zero_snr: false,
    });
    const { algorithm_type, final_sigmas_type, solver_order } = this.config;
    const most = algorithm_type.startsWith("sde-") ? 2 : 3;
    if (solver_order > most) {
      const allowed = `at most ${most} for algorithm_type ${JSON.stringify(algorithm_type)}`;
      throw refusal(NAME, "solver_order", solver_order, allowed);
    }
    if (!algorithm_type.endsWith("++") && final_sigmas_type === "zero") {
      const allowed = `"sigma_min" for algorithm_type ${JSON.stringify(algorithm_type)}`;
      throw refusal(NAME, "final_sigmas_type", final_sigmas_type, allowed);
    }
    this.#table = sigmaTable(this.config);
  }

  /** Chooses timesteps and noise levels, and forgets the history. */
  setTimesteps(numInferenceSteps: number): void {
    const least = this.config.lambda_min_clipped ?? -Infinity;
    const clipped = this.#table.filter((sigma) => -Math.log(sigma) < least).length;
    const last = this.#table.length - clipped;
    checkSteps(NAME, numInferenceSteps, last - 1);
    const schedule = solverSchedule(this.config, this.#table, numInferenceSteps, last);
    this.timesteps = schedule.timesteps;
    this.sigmas = schedule.sigmas;
    this.reset();
  }

  /** The sample itself. */
  scaleModelInput(sample: Tensor): Tensor {
    return sample;
  }

  /** One multistep update, of lower order at the beginning and, as set, at the end. */
  step(
    modelOutput: Tensor,
    timestep: number,
    sample: Tensor,
    options: StepOptions = {},
  ): StepOutput {
    const { config } = this;
    const run = this.#run;
    const index = run.seek(NAME, this.timesteps, timestep);
    const prevSample = sample.device.scope(() => {
      const inX0 = config.algorithm_type.endsWith("++");
      const level = levelOf(this.sigmas[index]);
      run.push(convertOutput(config, inX0, level, sample, modelOutput), config.solver_order);
      const weights = this.#weights(index, this.#orderAt(index));
      const terms = weights.outputs.map((weight, i): Term => [weight, run.output(i + 1, sample)]);
      if (config.algorithm_type.startsWith("sde-")) {
        terms.push([weights.noise, drawNoise(NAME, sample, options)]);
      }
      return sum([weights.sample, sample], ...terms);
    });
    run.position = index + 1;
    return { prevSample };
  }

  #orderAt(index: number): number {
    const { config, timesteps } = this;
    const short = config.lower_order_final && timesteps.length < 15;
    const left = timesteps.length - index;
    const firstAtEnd = config.euler_at_final || short || config.final_sigmas_type === "zero";
    if (left === 1 && firstAtEnd) return 1;
    return Math.min(this.#run.count, left === 2 && short ? 2 : 3);
  }

  /**
   * Coefficients of one update, in the notation of arXiv:2211.01095, section 4: h = λ_t − λ_s, and
   * D₀, D₁, D₂ are differences of the outputs m, which here are resolved into weights of the m.
   */
  #weights(index: number, order: number): Weights {
    const levels = this.sigmas.slice(index + 1 - order, index + 2).map(levelOf).reverse();
    const [to, from] = levels;
    const h = to.lambda - from.lambda;
    const { sample, d0, d1, d2, noise } = updateFactors(this.config, order, from, to);
    if (order === 1) return { sample, noise, outputs: [d0] };
    const r0 = (from.lambda - levels[2].lambda) / h;
    if (order === 2) return { sample, noise, outputs: [d0 + d1 / r0, -d1 / r0] };
    const r1 = (levels[2].lambda - levels[3].lambda) / h;
    // D₁ = a + r0/(r0+r1)·(a − b) and D₂ = (a − b)/(r0+r1), a = (m₀−m₁)/r0, b = (m₁−m₂)/r1.
    const ofA = d1 * (1 + r0 / (r0 + r1)) + d2 / (r0 + r1);
    const ofB = -(d1 * r0 + d2) / (r0 + r1);
    return { sample, noise, outputs: [d0 + ofA / r0, ofB / r1 - ofA / r0, -ofB / r1] };
  }

  /** √ᾱ·x₀ + √(1−ᾱ)·ε at the timestep's noise level. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return solverNoise(this, this.#table, original, noise, timestep);
  }

  /** Forgets the earlier model outputs. */
  reset(): void {
    this.#run.dispose();
  }

  /** Copies the earlier model outputs. */
  snapshot(): SchedulerState {
    return this.#run.copy();
  }

  /** Continues from a snapshot. */
  restore(state: SchedulerState): void {
    this.#run.restore(state);
  }
}

interface Weights {
  readonly sample: number;
  /** Of the model outputs, newest first. */
  readonly outputs: readonly number[];
  readonly noise: number;
}

interface Factors {
  readonly sample: number;
  readonly d0: number;
  readonly d1: number;
  readonly d2: number;
  readonly noise: number;
}

/**
 * Factors of x, D₀, D₁, D₂ and the noise. The weight of D₂ is half of what a Taylor series gives;
 * the authors' code has it so, and pictures must agree with it.
 */
function updateFactors(config: SchedulerConfig, order: number, from: Level, to: Level): Factors {
  const h = to.lambda - from.lambda;
  const heun = config.solver_type === "heun" || order === 3;
  const { alpha, sigma } = to;
  switch (config.algorithm_type) {
    case "dpmsolver++": {
      const phi = -Math.expm1(-h);
      const d1 = heun ? alpha * (1 - phi / h) : alpha * phi / 2;
      const d2 = -alpha * ((h - phi) / (h * h) - 0.5);
      return { sample: sigma / from.sigma, d0: alpha * phi, d1, d2, noise: 0 };
    }
    case "dpmsolver": {
      const phi = Math.expm1(h);
      const d1 = heun ? -sigma * (phi / h - 1) : -sigma * phi / 2;
      const d2 = -sigma * ((phi - h) / (h * h) - 0.5);
      return { sample: alpha / from.alpha, d0: -sigma * phi, d1, d2, noise: 0 };
    }
    case "sde-dpmsolver++": {
      const phi = -Math.expm1(-2 * h);
      const d1 = heun ? alpha * (1 - phi / (2 * h)) : alpha * phi / 2;
      const noise = sigma * Math.sqrt(phi);
      return { sample: sigma / from.sigma * Math.exp(-h), d0: alpha * phi, d1, d2: 0, noise };
    }
    case "sde-dpmsolver": {
      const phi = Math.expm1(h);
      const d1 = heun ? -2 * sigma * (phi / h - 1) : -sigma * phi;
      const noise = sigma * Math.sqrt(Math.expm1(2 * h));
      return { sample: alpha / from.alpha, d0: -2 * sigma * phi, d1, d2: 0, noise };
    }
  }
}
