/**
 * Where a picture attends to a word: the maps of the UNet's own cross-attention (Hertz et al. 2022,
 * "Prompt-to-Prompt Image Editing with Cross Attention Control", §3).
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import {
  assign,
  attention,
  broadcastTo,
  cast,
  interpolate,
  linearCombination,
  mean,
  narrow,
} from "../kernels/mod.ts";
import type { CrossAttentionObserver } from "./attention.ts";

/** Tokens of a text, and how much every place of a picture attends to them. */
export interface TokenMap {
  /** 1 at the tokens, else 0: `[1, 1, tokens]`, in the type of the model. */
  readonly chosen: Tensor;
  /**
   * `[frames, 1, h, w]` in f32 with the size of the latents; filled by the last rows of the batch,
   * which are those of the last row of the text.
   */
  readonly map: Tensor;
}

/**
 * Strides of the layers whose maps count: where pictures of the trained size have 16 to 32 places a
 * side (32² and 16² for Stable Diffusion). Finer ones show textures, coarser ones hardly a place.
 *
 * @param sampleSize Side of the latents that the model was trained with.
 */
export function mapStrides(sampleSize: number): number[] {
  const sides = Array.from({ length: 1 + Math.floor(Math.log2(sampleSize)) }, (_, level) => {
    return { stride: 2 ** level, side: sampleSize / 2 ** level };
  });
  return sides.filter(({ side, stride }) => side <= 32 && (side >= 16 || stride === 1))
    .map(({ stride }) => stride);
}

/**
 * Fills a map with `Σₜ softmax(q kᵀ/√d)ₜ` over the chosen tokens t: the mean over heads, then over
 * layers of some strides.
 *
 * With values that are 1 at the chosen tokens and 0 elsewhere, attention itself is that sum, in
 * every channel: no scores are stored here either, and the mean over channels is that over heads.
 */
export function fillTokenMap(
  { chosen, map }: TokenMap,
  strides: readonly number[],
): CrossAttentionObserver {
  const [frames, , h, w] = map.shape;
  const sizes = strides.map((stride) => [Math.ceil(h / stride), Math.ceil(w / stride)] as const);
  let layers = 0;
  return (queries, keys, heads) => {
    const [rows, C, N] = queries.shape;
    const size = sizes.find(([height, width]) => height * width === N);
    if (!size) return;
    queries.device.scope(() => {
      const q = narrow(queries, 0, rows - frames, frames);
      const k = narrow(keys, 0, keys.shape[0] - 1, 1);
      const values = broadcastTo(chosen, [1, C, keys.shape[2]]);
      const shares = attention(q, k, values, { heads, frames, kvFrames: 1 });
      const layer = cast(mean(shares, [1]).reshape([frames, 1, ...size]), "f32");
      const whole = interpolate(layer, { size: [h, w], mode: "bilinear" });
      // A running mean, since how many layers there are is known behind the last one only.
      const before = layers++;
      const weights = [before / layers, 1 / layers];
      assign(map, before ? linearCombination(weights, [map, whole]) : whole);
    });
  };
}
