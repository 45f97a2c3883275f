/**
 * Denoising diffusion implicit models (arXiv:2010.02502), forwards and backwards.
 *
 * @module
 */

import { roundToEven } from "../core/rounding.ts";
import type { Tensor } from "../core/tensor.ts";
import { resolveConfig, type SchedulerConfig } from "./config.ts";
import {
  apply,
  clips,
  clipX0,
  drawNoise,
  predictEpsilon,
  type Prediction,
  predictX0,
  sum,
  type Term,
} from "./prediction.ts";
import { RunState, type SchedulerState } from "./run_state.ts";
import {
  alphaAt,
  alphasCumprod,
  checkSteps,
  checkZeroSnr,
  type Scheduler,
  spacedTimesteps,
  type StepOptions,
  type StepOutput,
} from "./schedule.ts";

const OWN: Partial<SchedulerConfig> = {
  clip_sample: true,
  clip_sample_range: 1,
  set_alpha_to_one: true,
  thresholding: false,
  sample_max_value: 1,
  rescale_betas_zero_snr: false,
};

/**
 * One transition between noise levels ᾱ_t → ᾱ_s along x₀ and ε, with a share of fresh noise:
 * x_s = √ᾱ_s·x₀ + √(1−ᾱ_s−σ²)·ε + σ·z. Without clamping it is one sum.
 */
function transition(
  config: SchedulerConfig,
  from: number,
  to: number,
  deviation: number,
  sample: Tensor,
  output: Tensor,
  noise: readonly Term[],
  fromClipped: boolean,
): StepOutput {
  const [alpha, sigma] = [Math.sqrt(from), Math.sqrt(1 - from)];
  const x0 = predictX0(config.prediction_type, alpha, sigma);
  const epsilon = predictEpsilon(config.prediction_type, alpha, sigma);
  const signal = Math.sqrt(to);
  // Rounding may leave a tiny negative number where η = 1.
  const direction = Math.sqrt(Math.max(0, 1 - to - deviation * deviation));
  const predOriginalSample = clipX0(config, apply(x0, sample, output));
  if (!clips(config)) {
    const mix = (key: keyof Prediction) => signal * x0[key] + direction * epsilon[key];
    const prevSample = sum([mix("sample"), sample], [mix("output"), output], ...noise);
    return { prevSample, predOriginalSample };
  }
  const terms: Term[] = fromClipped
    ? [[signal - direction * alpha / sigma, predOriginalSample], [direction / sigma, sample]]
    : [
      [signal, predOriginalSample],
      [direction * epsilon.sample, sample],
      [direction * epsilon.output, output],
    ];
  return { prevSample: sum(...terms, ...noise), predOriginalSample };
}

/** DDIM: deterministic for η = 0, DDPM-like for η = 1. */
export class DDIMScheduler implements Scheduler {
  readonly config: SchedulerConfig;
  readonly initNoiseSigma = 1;
  readonly order = 1;
  readonly space = "vp";
  timesteps: readonly number[];
  readonly #alphas: Float64Array;
  #stride = 1;

  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    this.config = resolveConfig("DDIMScheduler", config, OWN);
    checkZeroSnr("DDIMScheduler", this.config);
    this.#alphas = alphasCumprod(this.config);
    this.timesteps = Array.from(this.#alphas.keys()).reverse();
  }

  /** Chooses timesteps; the stride between noise levels is ⌊training timesteps / steps⌋. */
  setTimesteps(numInferenceSteps: number): void {
    checkSteps("DDIMScheduler", numInferenceSteps, this.#alphas.length);
    this.timesteps = spacedTimesteps(this.config, numInferenceSteps).map(roundToEven);
    this.#stride = Math.floor(this.#alphas.length / numInferenceSteps);
  }

  /** The sample itself. */
  scaleModelInput(sample: Tensor): Tensor {
    return sample;
  }

  /** From ᾱ_t to ᾱ_{t−stride}. With `eta` above 0 it needs noise. */
  step(
    modelOutput: Tensor,
    timestep: number,
    sample: Tensor,
    options: StepOptions = {},
  ): StepOutput {
    const { eta = 0, useClippedModelOutput = false } = options;
    const from = alphaAt(this.#alphas, timestep, "DDIMScheduler");
    const to = this.#alphaOrFinal(timestep - this.#stride);
    const deviation = eta * Math.sqrt(Math.max(0, (1 - to) / (1 - from) * (1 - from / to)));
    return sample.device.scope(() => {
      const noise: Term[] = eta > 0
        ? [[deviation, drawNoise("DDIMScheduler", sample, options)]]
        : [];
      const args = [from, to, deviation, sample, modelOutput, noise] as const;
      return transition(this.config, ...args, useClippedModelOutput);
    });
  }

  /**
   * The step in the other direction, from the level below `timestep` up to it, with the model
   * evaluated at `timestep` on the sample below: DDIM inversion (arXiv:2105.05233, appendix F, as
   * Tune-A-Video applies it). x₀ is not clamped.
   */
  invertStep(modelOutput: Tensor, timestep: number, sample: Tensor): StepOutput {
    const below = Math.min(timestep - this.#stride, this.#alphas.length - 1);
    const to = alphaAt(this.#alphas, timestep, "DDIMScheduler");
    const config = { ...this.config, clip_sample: false, thresholding: false };
    const from = this.#alphaOrFinal(below);
    return sample.device.scope(() =>
      transition(config, from, to, 0, sample, modelOutput, [], false)
    );
  }

  #alphaOrFinal(timestep: number): number {
    if (timestep >= 0) return this.#alphas[timestep];
    return this.config.set_alpha_to_one ? 1 : this.#alphas[0];
  }

  /** √ᾱ·x₀ + √(1−ᾱ)·ε. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return noised(alphaAt(this.#alphas, timestep, "DDIMScheduler"), original, noise);
  }

  /** What a `v_prediction` model shall predict: √ᾱ·ε − √(1−ᾱ)·x₀ (arXiv:2202.00512). */
  getVelocity(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return velocity(alphaAt(this.#alphas, timestep, "DDIMScheduler"), original, noise);
  }

  /** Nothing to forget: steps do not depend on earlier ones. */
  reset(): void {}

  /** An empty history. */
  snapshot(): SchedulerState {
    return new RunState();
  }

  /** Nothing to restore. */
  restore(_state: SchedulerState): void {}
}

/** √ᾱ·x₀ + √(1−ᾱ)·ε (arXiv:2006.11239, equation 4). */
export function noised(alphaCumprod: number, original: Tensor, noise: Tensor): Tensor {
  return sum([Math.sqrt(alphaCumprod), original], [Math.sqrt(1 - alphaCumprod), noise]);
}

/** √ᾱ·ε − √(1−ᾱ)·x₀ (arXiv:2202.00512, section 4). */
export function velocity(alphaCumprod: number, original: Tensor, noise: Tensor): Tensor {
  return sum([Math.sqrt(alphaCumprod), noise], [-Math.sqrt(1 - alphaCumprod), original]);
}

/**
 * DDIM from a sample to the noise that leads to it: timesteps ascend, and each step goes from the
 * level below its timestep up to it.
 */
export class DDIMInverseScheduler implements Scheduler {
  readonly config: SchedulerConfig;
  readonly initNoiseSigma = 1;
  readonly order = 1;
  readonly space = "vp";
  timesteps: readonly number[];
  readonly #alphas: Float64Array;
  #stride = 1;

  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    this.config = resolveConfig("DDIMInverseScheduler", config, {
      clip_sample: true,
      clip_sample_range: 1,
      set_alpha_to_one: true,
      rescale_betas_zero_snr: false,
    });
    checkZeroSnr("DDIMInverseScheduler", this.config);
    this.#alphas = alphasCumprod(this.config);
    this.timesteps = Array.from(this.#alphas.keys());
  }

  /** Chooses the timesteps of DDIM, ascending. */
  setTimesteps(numInferenceSteps: number): void {
    checkSteps("DDIMInverseScheduler", numInferenceSteps, this.#alphas.length);
    const descending = spacedTimesteps(this.config, numInferenceSteps).map(roundToEven);
    this.timesteps = descending.reverse();
    this.#stride = Math.floor(this.#alphas.length / numInferenceSteps);
  }

  /** The sample itself. */
  scaleModelInput(sample: Tensor): Tensor {
    return sample;
  }

  /** From ᾱ_{t−stride} up to ᾱ_t. `prevSample` is the noisier sample. */
  step(modelOutput: Tensor, timestep: number, sample: Tensor): StepOutput {
    const to = alphaAt(this.#alphas, timestep, "DDIMInverseScheduler");
    const below = Math.min(timestep - this.#stride, this.#alphas.length - 1);
    const initial = this.config.set_alpha_to_one ? 1 : this.#alphas[0];
    const from = below >= 0 ? this.#alphas[below] : initial;
    return sample.device.scope(() =>
      transition(this.config, from, to, 0, sample, modelOutput, [], false)
    );
  }

  /** √ᾱ·x₀ + √(1−ᾱ)·ε. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return noised(alphaAt(this.#alphas, timestep, "DDIMInverseScheduler"), original, noise);
  }

  /** Nothing to forget: steps do not depend on earlier ones. */
  reset(): void {}

  /** An empty history. */
  snapshot(): SchedulerState {
    return new RunState();
  }

  /** Nothing to restore. */
  restore(_state: SchedulerState): void {}
}
