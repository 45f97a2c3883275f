/**
 * Brightness: the luma of ITU-R BT.601.
 *
 * @module
 */

import type { Frame } from "../frame.ts";

/** Weights of R, G and B. */
export const LUMA: readonly number[] = [0.299, 0.587, 0.114];

/** Luma of every pixel, 0 … 255, not rounded. */
export function lumaOf({ width, height, data }: Frame): Float64Array {
  const [red, green, blue] = LUMA;
  const luma = new Float64Array(width * height);
  for (let i = 0, at = 0; i < luma.length; i++, at += 3) {
    luma[i] = red * data[at] + green * data[at + 1] + blue * data[at + 2];
  }
  return luma;
}
