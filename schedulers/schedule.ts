/**
 * What all schedulers share: the interface, the noise levels ᾱₜ, and the choice of timesteps.
 *
 * Tables follow the reference implementation's single precision where it shows (β and ᾱ);
 * everything else is double precision on the host, and reaches the device as coefficients.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Generator } from "../core/random.ts";
import { roundToEven } from "../core/rounding.ts";
import type { Tensor } from "../core/tensor.ts";
import { betaConfig, refusal, type SchedulerConfig } from "./config.ts";
import type { SchedulerState } from "./run_state.ts";

/** Settings of one step. */
export interface StepOptions {
  /** DDIM: share of fresh noise, 0 (none, the default) … 1 (as DDPM). */
  readonly eta?: number;
  /** The random draw of a stochastic step; same shape as the sample. */
  readonly noise?: Tensor;
  /** Draws the noise if `noise` is absent. */
  readonly generator?: Pick<Generator, "randn">;
  /** DDIM: derive ε again from the clamped x₀. */
  readonly useClippedModelOutput?: boolean;
}

/** Result of one step. The tensors belong to the surrounding scope, and may be the same one. */
export interface StepOutput {
  /** The sample at the next lower noise level. */
  readonly prevSample: Tensor;
  /** The clean sample that the model output implies, where the method computes it. */
  readonly predOriginalSample?: Tensor;
}

/** One way to walk from noise to a sample. All tensors of a run have the same shape. */
export interface Scheduler {
  /** All settings, completed with defaults. */
  readonly config: SchedulerConfig;
  /** Timesteps to tell the model, in the order of the calls; set by {@link setTimesteps}. */
  readonly timesteps: readonly number[];
  /** Factor on standard normal noise to get the first sample. */
  readonly initNoiseSigma: number;
  /** Model calls that one step of the method takes. */
  readonly order: number;
  /** `"vp"`: samples are √ᾱ·x₀ + √(1−ᾱ)·ε. `"sigma"`: samples are x₀ + σ·ε. */
  readonly space: "vp" | "sigma";
  /**
   * Noise levels σ = √((1−ᾱ)/ᾱ) of the timesteps, and the one after the last step; absent where the
   * levels are ᾱ at the timesteps.
   */
  readonly sigmas?: readonly number[];
  /**
   * Places in `timesteps` where a step begins, for methods that call the model several times in a
   * step; absent where every place is one.
   */
  readonly stepStarts?: readonly number[];
  /**
   * Chooses timesteps and forgets the history.
   *
   * @throws {InputError} if the number cannot be used.
   */
  setTimesteps(numInferenceSteps: number): void;
  /** What the model shall see for `sample`; may be `sample` itself. */
  scaleModelInput(sample: Tensor, timestep: number): Tensor;
  /**
   * One step. A timestep out of turn begins a new run there.
   *
   * @throws {InputError} if the timestep is not of the schedule, or noise is needed and absent.
   */
  step(
    modelOutput: Tensor,
    timestep: number,
    sample: Tensor,
    options?: StepOptions,
  ): StepOutput;
  /** `original` with `noise` at the level of `timestep`. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor;
  /** Forgets the history, before a run over the same timesteps. */
  reset(): void;
  /** A copy of the history. It can be restored many times; dispose of it in the end. */
  snapshot(): SchedulerState;
  /** Continues from a history; one with batch 1 serves any batch. */
  restore(state: SchedulerState): void;
}

/**
 * βₜ of all training timesteps, rounded to single precision as the reference tables are.
 *
 * @throws {InputError} if a key has a value that cannot be used.
 */
export function betas(config: Partial<SchedulerConfig>): Float64Array {
  const settings = betaConfig(config);
  const table = plainBetas(settings);
  return settings.rescale_betas_zero_snr ? rescaleToZeroSnr(table) : table;
}

function plainBetas(config: SchedulerConfig): Float64Array {
  const { beta_start, beta_end, num_train_timesteps: count } = config;
  if (config.trained_betas) return Float64Array.from(config.trained_betas, Math.fround);
  switch (config.beta_schedule) {
    case "linear":
      return linspaceF32(beta_start, beta_end, count);
    case "scaled_linear":
      return linspaceF32(Math.sqrt(beta_start), Math.sqrt(beta_end), count)
        .map((root) => Math.fround(root * root));
    case "squaredcos_cap_v2":
      return Float64Array.from(
        { length: count },
        (_, i) => Math.fround(Math.min(1 - cosine((i + 1) / count) / cosine(i / count), 0.999)),
      );
  }
}

/** ᾱ of the cosine schedule at `time` in 0 … 1 (arXiv:2102.09672, equation 17). */
function cosine(time: number): number {
  return Math.cos((time + 0.008) / 1.008 * Math.PI / 2) ** 2;
}

/** Evenly spaced single-precision values, counted from both ends towards the middle. */
function linspaceF32(start: number, end: number, count: number): Float64Array {
  const [first, last] = [Math.fround(start), Math.fround(end)];
  const step = count > 1 ? Math.fround(Math.fround(last - first) / (count - 1)) : 0;
  return Float64Array.from(
    { length: count },
    (_, i) => Math.fround(i < count / 2 ? first + step * i : last - step * (count - 1 - i)),
  );
}

/** Shifts and scales √ᾱ so that it ends at 0 and begins where it did. */
function rescaleToZeroSnr(table: Float64Array): Float64Array {
  const roots = cumulativeProducts(table).map((value) => Math.fround(Math.sqrt(value)));
  const [first, last] = [roots[0], roots[roots.length - 1]];
  const scale = Math.fround(first / Math.fround(first - last));
  const products = roots.map((root) => Math.fround(Math.fround(root - last) * scale))
    .map((root) => Math.fround(root * root));
  return products.map((value, t) =>
    Math.fround(1 - (t ? Math.fround(value / products[t - 1]) : value))
  );
}

function cumulativeProducts(table: Float64Array): Float64Array {
  let product = 1;
  return table.map((beta) => Math.fround(product *= Math.fround(1 - beta)));
}

/**
 * ᾱₜ = Π (1 − βᵢ), i ≤ t, for all training timesteps (arXiv:2006.11239, equation 4).
 *
 * @throws {InputError} if a key has a value that cannot be used.
 */
export function alphasCumprod(config: Partial<SchedulerConfig>): Float64Array {
  return cumulativeProducts(betas(config));
}

/**
 * Π (1 − βᵢ) for t0 ≤ i < t1: the factor of Text2Video-Zero's forward jump (arXiv:2303.13439),
 * x_t1 = √a·x_t0 + √(1−a)·ε.
 *
 * @throws {InputError} unless 0 ≤ t0 ≤ t1 ≤ number of training timesteps.
 */
export function forwardAlphaProduct(
  config: Partial<SchedulerConfig>,
  t0: number,
  t1: number,
): number {
  const table = betas(config);
  const fits = Number.isInteger(t0) && Number.isInteger(t1) && 0 <= t0 && t0 <= t1;
  if (!fits || t1 > table.length) {
    throw new InputError(
      `forwardAlphaProduct: t0 and t1 must be whole numbers with 0 ≤ t0 ≤ t1 ≤ ${table.length}, ` +
        `got ${t0} and ${t1}`,
    );
  }
  return table.subarray(t0, t1).reduce((product, beta) => product * (1 - beta), 1);
}

/**
 * Checks the number of steps of a run.
 *
 * @throws {InputError} unless it is whole and `least` … `most`.
 */
export function checkSteps(name: string, steps: number, most: number, least = 1): void {
  if (Number.isInteger(steps) && steps >= least && steps <= most) return;
  throw new InputError(
    `${name}: the number of inference steps must be a whole number from ${least} to ${most}, ` +
      `got ${steps}`,
  );
}

/** `count` evenly spaced values from `start` to `end`, both included. */
export function linspace(start: number, end: number, count: number): number[] {
  const step = count > 1 ? (end - start) / (count - 1) : 0;
  const values = Array.from({ length: count }, (_, i) => start + i * step);
  if (count > 1) values[count - 1] = end;
  return values;
}

/** `steps` values that fall from `last` by `stride`, rounded, less one. */
function trailing(last: number, stride: number, steps: number): number[] {
  // The stride that floating-point subtraction really makes decides how ties are rounded.
  const delta = (last - stride) - last;
  return Array.from({ length: steps }, (_, i) => roundToEven(last + i * delta) - 1);
}

/**
 * `steps` descending timesteps by the spacing in `config`. Those of `linspace` are not rounded.
 *
 * leading: i·⌊N/n⌋ + offset; trailing: N − i·N/n, rounded, − 1; linspace: 0 … N − 1.
 */
export function spacedTimesteps(config: SchedulerConfig, steps: number): number[] {
  const train = config.num_train_timesteps;
  switch (config.timestep_spacing) {
    case "leading": {
      const stride = Math.floor(train / steps);
      const values = Array.from({ length: steps }, (_, i) => i * stride + config.steps_offset);
      return values.reverse();
    }
    case "trailing":
      return trailing(train, train / steps, steps);
    case "linspace":
      return linspace(0, train - 1, steps).reverse();
  }
}

/**
 * `steps` descending timesteps of DPM-Solver and UniPC, which divide the timesteps below `last`
 * into one interval more and leave out the end.
 */
export function solverTimesteps(
  config: SchedulerConfig,
  steps: number,
  last: number = config.num_train_timesteps,
): number[] {
  switch (config.timestep_spacing) {
    case "leading": {
      const stride = Math.floor(last / (steps + 1));
      const values = Array.from({ length: steps }, (_, i) => (i + 1) * stride);
      return values.map((t) => t + config.steps_offset).reverse();
    }
    case "trailing":
      return trailing(last, config.num_train_timesteps / steps, steps).filter((t) => t >= 0);
    case "linspace":
      return linspace(0, last - 1, steps + 1).map(roundToEven).reverse().slice(0, -1);
  }
}

/**
 * ᾱ at a training timestep.
 *
 * @throws {InputError} if there is no such timestep.
 */
export function alphaAt(table: Float64Array, timestep: number, scheduler: string): number {
  const value = table[timestep];
  if (value !== undefined) return value;
  throw new InputError(
    `${scheduler}: timestep must be a whole number from 0 to ${table.length - 1}, got ${timestep}`,
  );
}

/**
 * Refuses ε-prediction from pure noise, where x₀ cannot be computed.
 *
 * @throws {InputError} for zero terminal signal with `prediction_type` `"epsilon"`.
 */
export function checkZeroSnr(scheduler: string, config: SchedulerConfig): void {
  if (!config.rescale_betas_zero_snr || config.prediction_type !== "epsilon") return;
  throw refusal(
    scheduler,
    "prediction_type",
    config.prediction_type,
    '"v_prediction" or "sample" where rescale_betas_zero_snr is true',
  );
}
