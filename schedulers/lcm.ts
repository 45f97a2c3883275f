/**
 * Sampling from latent consistency models (arXiv:2310.04378): each step jumps to x₀, and noise
 * takes it back to the next level.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import { resolveConfig, type SchedulerConfig } from "./config.ts";
import { noised } from "./ddim.ts";
import { apply, clipX0, drawNoise, predictX0, sum } from "./prediction.ts";
import { RunState, type SchedulerState } from "./run_state.ts";
import {
  alphaAt,
  alphasCumprod,
  checkSteps,
  checkZeroSnr,
  type Scheduler,
  type StepOptions,
  type StepOutput,
} from "./schedule.ts";

const NAME = "LCMScheduler";
const SIGMA_DATA = 0.5;

/** LCM. Every step but the last needs noise. */
export class LCMScheduler implements Scheduler {
  readonly config: SchedulerConfig;
  readonly initNoiseSigma = 1;
  readonly order = 1;
  readonly space = "vp";
  timesteps: readonly number[] = [];
  readonly #alphas: Float64Array;
  readonly #run = new RunState();

  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    this.config = resolveConfig(NAME, config, {
      beta_start: 0.00085,
      beta_end: 0.012,
      beta_schedule: "scaled_linear",
      original_inference_steps: 50,
      timestep_scaling: 10,
      clip_sample: false,
      clip_sample_range: 1,
      set_alpha_to_one: true,
      thresholding: false,
      sample_max_value: 1,
      rescale_betas_zero_snr: false,
    });
    checkZeroSnr(NAME, this.config);
    this.#alphas = alphasCumprod(this.config);
  }

  /** Chooses among the teacher's timesteps k·i − 1, k = ⌊training timesteps / teacher's steps⌋. */
  setTimesteps(numInferenceSteps: number): void {
    const train = this.#alphas.length;
    const teacher = Math.min(this.config.original_inference_steps, train);
    checkSteps(NAME, numInferenceSteps, teacher);
    const stride = Math.floor(train / teacher);
    const share = teacher / numInferenceSteps;
    this.timesteps = Array.from(
      { length: numInferenceSteps },
      (_, i) => (teacher - Math.floor(i * share)) * stride - 1,
    );
    this.reset();
  }

  /** The sample itself. */
  scaleModelInput(sample: Tensor): Tensor {
    return sample;
  }

  /** Jumps to x₀ and back to the next level. `predOriginalSample` keeps the boundary condition. */
  step(
    modelOutput: Tensor,
    timestep: number,
    sample: Tensor,
    options: StepOptions = {},
  ): StepOutput {
    const index = this.#run.seek(NAME, this.timesteps, timestep);
    const from = alphaAt(this.#alphas, timestep, NAME);
    const scaled = timestep * this.config.timestep_scaling;
    const skip = SIGMA_DATA ** 2 / (scaled ** 2 + SIGMA_DATA ** 2);
    const jump = scaled / Math.sqrt(scaled ** 2 + SIGMA_DATA ** 2);
    const x0 = predictX0(this.config.prediction_type, Math.sqrt(from), Math.sqrt(1 - from));
    const next = this.timesteps[index + 1];
    const output = sample.device.scope((): StepOutput => {
      const clean = clipX0(this.config, apply(x0, sample, modelOutput));
      const denoised = sum([jump, clean], [skip, sample]);
      const prevSample = next === undefined
        ? denoised
        : noised(this.#alphas[next], denoised, drawNoise(NAME, sample, options));
      return { prevSample, predOriginalSample: denoised };
    });
    this.#run.position = index + 1;
    return output;
  }

  /** √ᾱ·x₀ + √(1−ᾱ)·ε. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return noised(alphaAt(this.#alphas, timestep, NAME), original, noise);
  }

  /** Back to the first step. */
  reset(): void {
    this.#run.dispose();
  }

  /** Copies the place in the schedule. */
  snapshot(): SchedulerState {
    return this.#run.copy();
  }

  /** Continues from a snapshot. */
  restore(state: SchedulerState): void {
    this.#run.restore(state);
  }
}
