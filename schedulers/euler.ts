/**
 * Euler steps over noise levels, deterministic (arXiv:2206.00364, algorithm 1 without churn) and
 * ancestral (k-diffusion: as much fresh noise as DDPM adds).
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import type { SchedulerConfig } from "./config.ts";
import { apply, drawNoise, predictX0FromSigma, sum } from "./prediction.ts";
import type { StepOptions, StepOutput } from "./schedule.ts";
import { derivative, SigmaScheduler } from "./sigmas.ts";

/** Euler: x ← x + (σ_{i+1} − σ_i)·dx/dσ. */
export class EulerDiscreteScheduler extends SigmaScheduler {
  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    super("EulerDiscreteScheduler", config, {
      timestep_spacing: "linspace",
      use_karras_sigmas: false,
      use_exponential_sigmas: false,
      use_beta_sigmas: false,
      final_sigmas_type: "zero",
      interpolation_type: "linear",
      timestep_type: "discrete",
      rescale_betas_zero_snr: false,
    });
  }

  /** One Euler step. */
  override step(modelOutput: Tensor, timestep: number, sample: Tensor): StepOutput {
    const index = this.run.seek(this.name, this.timesteps, timestep);
    const sigma = this.sigmas[index];
    const slope = derivative(this.config, sigma);
    const dt = this.sigmas[index + 1] - sigma;
    const x0 = predictX0FromSigma(this.config.prediction_type, sigma);
    this.run.position = index + 1;
    return {
      prevSample: sum([1 + dt * slope.sample, sample], [dt * slope.output, modelOutput]),
      predOriginalSample: apply(x0, sample, modelOutput),
    };
  }
}

/** Euler to a lower level than the next one, and back up to it with fresh noise. */
export class EulerAncestralDiscreteScheduler extends SigmaScheduler {
  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    super("EulerAncestralDiscreteScheduler", config, {
      timestep_spacing: "linspace",
      rescale_betas_zero_snr: false,
    });
  }

  /** One ancestral step; it needs noise. */
  override step(
    modelOutput: Tensor,
    timestep: number,
    sample: Tensor,
    options: StepOptions = {},
  ): StepOutput {
    const index = this.run.seek(this.name, this.timesteps, timestep);
    const [from, to] = [this.sigmas[index], this.sigmas[index + 1]];
    const up = Math.sqrt(to * to * (from * from - to * to) / (from * from));
    const down = Math.sqrt(to * to - up * up);
    const slope = derivative(this.config, from);
    const dt = down - from;
    const x0 = predictX0FromSigma(this.config.prediction_type, from);
    const output = sample.device.scope((): StepOutput => ({
      prevSample: sum(
        [1 + dt * slope.sample, sample],
        [dt * slope.output, modelOutput],
        [up, drawNoise(this.name, sample, options)],
      ),
      predOriginalSample: apply(x0, sample, modelOutput),
    }));
    this.run.position = index + 1;
    return output;
  }
}
