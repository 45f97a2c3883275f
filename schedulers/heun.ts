/**
 * Heun's method over noise levels (arXiv:2206.00364, algorithm 1 without churn).
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import type { SchedulerConfig } from "./config.ts";
import { apply, clips, clipX0, predictX0FromSigma, sum } from "./prediction.ts";
import { copyOf, matchBatch } from "./run_state.ts";
import type { StepOutput } from "./schedule.ts";
import { derivative, SigmaScheduler } from "./sigmas.ts";

/**
 * An Euler step, then the same step again with the mean of the slopes at both ends. Every timestep
 * but the first therefore occurs twice; the last step is Euler's alone.
 */
export class HeunDiscreteScheduler extends SigmaScheduler {
  /** Model calls of one step. */
  override readonly order = 2;
  /** Every other place: that of the Euler halves. */
  stepStarts: readonly number[] = [];

  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    super("HeunDiscreteScheduler", config, {
      beta_start: 0.00085,
      beta_end: 0.012,
      timestep_spacing: "linspace",
      use_karras_sigmas: false,
      use_exponential_sigmas: false,
      use_beta_sigmas: false,
      clip_sample: false,
      clip_sample_range: 1,
    });
  }

  /** Chooses timesteps: 2·steps − 1. */
  override setTimesteps(numInferenceSteps: number): void {
    super.setTimesteps(numInferenceSteps);
    const twice = (values: readonly number[]) => values.flatMap((value) => [value, value]);
    this.timesteps = twice(this.timesteps).slice(1);
    this.stepStarts = Array.from({ length: numInferenceSteps }, (_, step) => 2 * step);
    this.sigmas = [...twice(this.sigmas.slice(0, -1)).slice(1), ...this.sigmas.slice(-1)];
  }

  /** The Euler half or the correcting half of a step. */
  override step(modelOutput: Tensor, timestep: number, sample: Tensor): StepOutput {
    const { run, config } = this;
    const index = run.seek(this.name, this.timesteps, timestep);
    const sigma = this.sigmas[index];
    const output = sample.device.scope((): StepOutput => {
      const x0 = predictX0FromSigma(config.prediction_type, sigma);
      const predOriginalSample = clipX0(config, apply(x0, sample, modelOutput));
      const slope = clips(config)
        ? sum([1 / sigma, sample], [-1 / sigma, predOriginalSample])
        : apply(derivative(config, sigma), sample, modelOutput);
      if (index % 2 && run.sample) {
        const half = (sigma - this.sigmas[index - 1]) / 2;
        const from = matchBatch(run.sample, sample);
        const prevSample = sum([1, from], [half, run.output(1, sample)], [half, slope]);
        run.forget();
        return { prevSample, predOriginalSample };
      }
      run.push(slope, 1);
      run.setSample(copyOf(sample));
      const prevSample = sum([1, sample], [this.sigmas[index + 1] - sigma, slope]);
      return { prevSample, predOriginalSample };
    });
    run.position = index + 1;
    return output;
  }
}
