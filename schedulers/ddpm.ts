/**
 * Denoising diffusion probabilistic models: ancestral sampling (arXiv:2006.11239, algorithm 2).
 *
 * @module
 */

import { roundToEven } from "../core/rounding.ts";
import type { Tensor } from "../core/tensor.ts";
import { resolveConfig, type SchedulerConfig } from "./config.ts";
import { noised, velocity } from "./ddim.ts";
import { apply, clips, clipX0, drawNoise, predictX0, sum, type Term } from "./prediction.ts";
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

const NAME = "DDPMScheduler";

/** DDPM with fixed variance. Every step except that of timestep 0 needs noise. */
export class DDPMScheduler implements Scheduler {
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
    this.config = resolveConfig(NAME, config, {
      variance_type: "fixed_small",
      clip_sample: true,
      clip_sample_range: 1,
      thresholding: false,
      sample_max_value: 1,
      rescale_betas_zero_snr: false,
    });
    checkZeroSnr(NAME, this.config);
    this.#alphas = alphasCumprod(this.config);
    this.timesteps = Array.from(this.#alphas.keys()).reverse();
  }

  /** Chooses timesteps. */
  setTimesteps(numInferenceSteps: number): void {
    checkSteps(NAME, numInferenceSteps, this.#alphas.length);
    this.timesteps = spacedTimesteps(this.config, numInferenceSteps).map(roundToEven);
    this.#stride = Math.floor(this.#alphas.length / numInferenceSteps);
  }

  /** The sample itself. */
  scaleModelInput(sample: Tensor): Tensor {
    return sample;
  }

  /** One draw from the posterior q(x_s | x_t, x₀) (equations 6 and 7). */
  step(
    modelOutput: Tensor,
    timestep: number,
    sample: Tensor,
    options: StepOptions = {},
  ): StepOutput {
    const { from, to, alpha } = this.#levels(timestep);
    const x0 = predictX0(this.config.prediction_type, Math.sqrt(from), Math.sqrt(1 - from));
    const ofX0 = Math.sqrt(to) * (1 - alpha) / (1 - from);
    const ofSample = Math.sqrt(alpha) * (1 - to) / (1 - from);
    return sample.device.scope(() => {
      const predOriginalSample = clipX0(this.config, apply(x0, sample, modelOutput));
      const noise: Term[] = timestep > 0
        ? [[Math.sqrt(this.variance(timestep)), drawNoise(NAME, sample, options)]]
        : [];
      const prevSample = clips(this.config)
        ? sum([ofX0, predOriginalSample], [ofSample, sample], ...noise)
        : sum([ofX0 * x0.sample + ofSample, sample], [ofX0 * x0.output, modelOutput], ...noise);
      return { prevSample, predOriginalSample };
    });
  }

  /** Variance of the noise of a step: that of the posterior, or β if `variance_type` is large. */
  variance(timestep: number): number {
    const { from, to, alpha } = this.#levels(timestep);
    const beta = 1 - alpha;
    const large = this.config.variance_type.startsWith("fixed_large");
    return large ? beta : Math.max((1 - to) / (1 - from) * beta, 1e-20);
  }

  #levels(timestep: number): { from: number; to: number; alpha: number } {
    const from = alphaAt(this.#alphas, timestep, NAME);
    const index = this.timesteps.indexOf(timestep);
    const next = index < 0 ? timestep - this.#stride : this.timesteps[index + 1] ?? -1;
    const to = this.#alphas[next] ?? 1;
    // Where this is nearly 1, its rounding to single precision is seen in 1 − α, as in PyTorch.
    return { from, to, alpha: Math.fround(from / to) };
  }

  /** √ᾱ·x₀ + √(1−ᾱ)·ε. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return noised(alphaAt(this.#alphas, timestep, NAME), original, noise);
  }

  /** What a `v_prediction` model shall predict: √ᾱ·ε − √(1−ᾱ)·x₀. */
  getVelocity(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return velocity(alphaAt(this.#alphas, timestep, NAME), original, noise);
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
