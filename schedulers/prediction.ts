/**
 * From model output to x₀ and ε, as coefficients: every prediction is linear in sample and output.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { clamp, linearCombination } from "../kernels/mod.ts";
import type { PredictionType, SchedulerConfig } from "./config.ts";
import type { StepOptions } from "./schedule.ts";

/** A prediction `sample·x + output·m` of the sample x and the model output m. */
export interface Prediction {
  /** Coefficient of the sample. */
  readonly sample: number;
  /** Coefficient of the model output. */
  readonly output: number;
}

/** x₀ where x = α·x₀ + σ·ε (arXiv:2202.00512, appendix D, for v). */
export function predictX0(type: PredictionType, alpha: number, sigma: number): Prediction {
  switch (type) {
    case "epsilon":
      return { sample: 1 / alpha, output: -sigma / alpha };
    case "sample":
      return { sample: 0, output: 1 };
    case "v_prediction":
      return { sample: alpha, output: -sigma };
  }
}

/** ε where x = α·x₀ + σ·ε. */
export function predictEpsilon(type: PredictionType, alpha: number, sigma: number): Prediction {
  switch (type) {
    case "epsilon":
      return { sample: 0, output: 1 };
    case "sample":
      return { sample: 1 / sigma, output: -alpha / sigma };
    case "v_prediction":
      return { sample: sigma, output: alpha };
  }
}

/** x₀ where x = x₀ + σ·ε; the model has seen x/√(σ²+1). */
export function predictX0FromSigma(type: PredictionType, sigma: number): Prediction {
  const alpha = 1 / Math.sqrt(sigma * sigma + 1);
  const { sample, output } = predictX0(type, alpha, sigma * alpha);
  return { sample: sample * alpha, output };
}

/** A term of a sum: coefficient and tensor. */
export type Term = readonly [coefficient: number, tensor: Tensor];

/** Sum of terms in one kernel. Terms with coefficient 0 are left out. */
export function sum(...terms: readonly Term[]): Tensor {
  const used = terms.filter(([coefficient]) => coefficient !== 0);
  const [first] = terms;
  const kept = used.length ? used : [first];
  return linearCombination(kept.map(([c]) => c), kept.map(([, tensor]) => tensor));
}

/** Applies a prediction. */
export function apply(prediction: Prediction, sample: Tensor, output: Tensor): Tensor {
  return sum([prediction.sample, sample], [prediction.output, output]);
}

/** Whether x₀ is clamped, which makes the step more than a sum. */
export function clips(config: SchedulerConfig): boolean {
  return config.clip_sample || config.thresholding;
}

/**
 * Clamps x₀ as the settings say.
 *
 * Thresholding divides by a quantile of |x₀| that is first clamped to 1 … `sample_max_value`; with
 * the limit at or below 1 that is the limit itself, whatever the sample.
 */
export function clipX0(config: SchedulerConfig, x0: Tensor): Tensor {
  if (config.thresholding) {
    const limit = config.sample_max_value;
    const clamped = clamp(x0, -limit, limit);
    return limit === 1 ? clamped : sum([1 / limit, clamped]);
  }
  const { clip_sample, clip_sample_range: range } = config;
  return clip_sample ? clamp(x0, -range, range) : x0;
}

/**
 * The random draw of a step.
 *
 * @throws {InputError} if the options hold neither noise nor a generator.
 */
export function drawNoise(scheduler: string, sample: Tensor, options: StepOptions): Tensor {
  if (options.noise) return options.noise;
  if (options.generator) {
    return sample.device.tensor(options.generator.randn(sample.shape), sample.shape);
  }
  throw new InputError(
    `${scheduler}: this step draws noise; pass step options { noise } or { generator }`,
  );
}
