/**
 * Linear multistep method over noise levels (k-diffusion): the last four slopes, extrapolated by
 * their Lagrange polynomial.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import type { SchedulerConfig } from "./config.ts";
import { apply, predictX0FromSigma, sum, type Term } from "./prediction.ts";
import type { StepOutput } from "./schedule.ts";
import { derivative, SigmaScheduler } from "./sigmas.ts";

const ORDER = 4;

/** Linear multistep of order 4; lower in the first steps. */
export class LMSDiscreteScheduler extends SigmaScheduler {
  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    super("LMSDiscreteScheduler", config, {
      timestep_spacing: "linspace",
      use_karras_sigmas: false,
      use_exponential_sigmas: false,
      use_beta_sigmas: false,
    });
  }

  /** One multistep update. */
  override step(modelOutput: Tensor, timestep: number, sample: Tensor): StepOutput {
    const index = this.run.seek(this.name, this.timesteps, timestep);
    const sigma = this.sigmas[index];
    const x0 = predictX0FromSigma(this.config.prediction_type, sigma);
    const output = sample.device.scope((): StepOutput => {
      this.run.push(apply(derivative(this.config, sigma), sample, modelOutput), ORDER);
      const used = this.sigmas.slice(index + 1 - this.run.count, index + 1).reverse();
      const weights = lagrangeIntegrals(used, sigma, this.sigmas[index + 1]);
      const terms = weights.map((weight, i): Term => [weight, this.run.output(i + 1, sample)]);
      return {
        prevSample: sum([1, sample], ...terms),
        predOriginalSample: apply(x0, sample, modelOutput),
      };
    });
    this.run.position = index + 1;
    return output;
  }
}

/**
 * ∫ Π_{k≠j} (τ − nodes_k)/(nodes_j − nodes_k) dτ from `start` to `end`, for every j.
 *
 * Two Gauss points are exact up to degree 3, which is all that four nodes need.
 */
function lagrangeIntegrals(nodes: readonly number[], start: number, end: number): number[] {
  const [middle, half] = [(start + end) / 2, (end - start) / 2];
  const points = [middle - half / Math.sqrt(3), middle + half / Math.sqrt(3)];
  const basis = (tau: number, j: number) =>
    nodes.reduce(
      (product, node, k) => k === j ? product : product * (tau - node) / (nodes[j] - node),
      1,
    );
  return nodes.map((_, j) => half * points.reduce((total, tau) => total + basis(tau, j), 0));
}
