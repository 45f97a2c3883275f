/**
 * What the DPM-Solver family (DPM-Solver, UniPC) shares: levels, and outputs as x₀ or ε.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import type { SchedulerConfig } from "./config.ts";
import { apply, clipX0, predictEpsilon, predictX0, sum } from "./prediction.ts";
import { sigmaAt } from "./sigmas.ts";

/** A noise level of x = α·x₀ + σ·ε with α² + σ² = 1. */
export interface Level {
  /** Share of the sample. */
  readonly alpha: number;
  /** Share of the noise. */
  readonly sigma: number;
  /** Half the logarithm of the signal-to-noise ratio, ln(α/σ); infinite without noise. */
  readonly lambda: number;
}

/** The level where the ratio of noise to sample is `ratio`. */
export function levelOf(ratio: number): Level {
  const alpha = 1 / Math.sqrt(ratio * ratio + 1);
  return { alpha, sigma: ratio * alpha, lambda: -Math.log(ratio) };
}

/** The model output as the solver wants it: x₀ (clamped as set) or ε. */
export function convertOutput(
  config: SchedulerConfig,
  toX0: boolean,
  level: Level,
  sample: Tensor,
  output: Tensor,
): Tensor {
  const { alpha, sigma } = level;
  const type = config.prediction_type;
  if (!toX0 && !config.thresholding) {
    return apply(predictEpsilon(type, alpha, sigma), sample, output);
  }
  const x0 = clipX0(config, apply(predictX0(type, alpha, sigma), sample, output));
  return toX0 ? x0 : sum([1 / sigma, sample], [-alpha / sigma, x0]);
}

/** `original` with `noise` at the level of a timestep of the schedule, or of any other. */
export function solverNoise(
  schedule: Readonly<{ timesteps: readonly number[]; sigmas: readonly number[] }>,
  table: readonly number[],
  original: Tensor,
  noise: Tensor,
  timestep: number,
): Tensor {
  const index = schedule.timesteps.indexOf(timestep);
  const { alpha, sigma } = levelOf(
    index < 0 ? sigmaAt(table, timestep) : schedule.sigmas[index],
  );
  return sum([alpha, original], [sigma, noise]);
}
