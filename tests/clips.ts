/**
 * Clips in tests.
 *
 * @module
 */

import type { Clip } from "../video/clip.ts";

/** Makes a clip, frees it, and returns its latents. */
export async function latentsOf(clip: Clip): Promise<Float32Array> {
  try {
    return await (await clip.latents()).data();
  } finally {
    clip.dispose();
  }
}
