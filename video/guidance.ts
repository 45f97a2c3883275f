/**
 * Guidance as a sum over rows: every frame is evaluated under several conditions, and the noise
 * that is believed is a linear combination of what the model predicts under each.
 *
 * - Classifier-free guidance (arXiv:2207.12598): `ε = ε_∅ + s (ε_T − ε_∅)`, so the weights 1 − s
 *   and s.
 * - InstructPix2Pix (arXiv:2211.09800, equation 3), where the model is shown an image besides the
 *   text: `ε = ε_∅∅ + s_I (ε_∅I − ε_∅∅) + s_T (ε_TI − ε_∅I)`, so 1 − s_I, s_I − s_T and s_T.
 *
 * In both ∅ is the negative prompt, in place of no text; no image is zeros.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import { add, concat, div, linearCombination, mul, narrow, std } from "../kernels/mod.ts";

/** How strongly the conditions are followed. */
export interface GuidanceScales {
  /** s or s_T: weight of the prompt against the negative prompt. */
  readonly guidanceScale: number;
  /** s_I: weight of the image that the model is shown; absent without one. */
  readonly imageGuidanceScale?: number;
}

/** One condition under which the noise is predicted. */
export interface GuidanceRow {
  /** The text that it is given. */
  readonly text: "prompt" | "negative";
  /** Whether it is shown the channels behind those of the latents, or zeros. */
  readonly image: boolean;
  /** Weight of its prediction; those of all rows sum up to 1. */
  readonly weight: number;
}

/**
 * The rows that guidance needs, that of the prompt last. Without an image a scale of 1 and below
 * leaves the prompt alone; with one any scale is taken as it is, and rows of weight 0 are left out:
 * s_I = 1 needs two, s_T = s_I = 1 only that of the prompt.
 */
export function guidanceRows(
  { guidanceScale: s, imageGuidanceScale: sI }: GuidanceScales,
): readonly GuidanceRow[] {
  const row = (text: GuidanceRow["text"], image: boolean, weight: number) => (
    { text, image, weight }
  );
  if (sI === undefined) {
    if (s <= 1) return [row("prompt", true, 1)];
    return [row("negative", true, 1 - s), row("prompt", true, s)];
  }
  const all = [row("negative", false, 1 - sI), row("negative", true, sI - s)];
  return [...all.filter(({ weight }) => weight !== 0), row("prompt", true, s)];
}

/** A sample whose channels behind those of the latents are zero. */
export function withoutImage(sample: Tensor, channels: number): Tensor {
  const image = narrow(sample, 1, channels, sample.shape[1] - channels);
  return concat([narrow(sample, 1, 0, channels), linearCombination([0], [image])], 1);
}

/**
 * Brings the standard deviation of every frame's guided noise towards that of the prompt alone:
 * `ε·(φ·std(ε_pos)/std(ε) + 1 − φ)` (arXiv:2305.08891, equations 15 and 16).
 *
 * @param guided `[frames, C, h, w]`.
 * @param positive Of the same shape.
 * @param share φ.
 */
export function rescaleGuidance(guided: Tensor, positive: Tensor, share: number): Tensor {
  const spread = (x: Tensor) => std(x, [1, 2, 3], { keepdim: true });
  const ratio = div(spread(positive), spread(guided));
  return mul(guided, add(mul(ratio, share), 1 - share));
}
