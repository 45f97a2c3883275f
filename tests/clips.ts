/**
 * Clips in tests.
 *
 * @module
 */

import assert from "node:assert/strict";
import type { Tensor } from "../core/tensor.ts";
import type { Clip } from "../video/clip.ts";

/** Makes a clip, frees it, and returns its latents. */
export async function latentsOf(clip: Clip): Promise<Float32Array> {
  try {
    return await (await clip.latents()).data();
  } finally {
    clip.dispose();
  }
}

/** Reads a tensor and frees it. */
export async function taken(tensor: Tensor): Promise<Float32Array> {
  try {
    return await tensor.data();
  } finally {
    tensor.dispose();
  }
}

/** How far `a` is from `b`, relative to `b`: ‖a − b‖ / ‖b‖. */
export function distance(a: Float32Array, b: Float32Array): number {
  assert.equal(a.length, b.length);
  let [error, size] = [0, 0];
  a.forEach((value, i) => {
    error += (value - b[i]) ** 2;
    size += b[i] ** 2;
  });
  return Math.sqrt(error / size);
}
