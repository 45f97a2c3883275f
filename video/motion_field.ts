/**
 * Motion in the latent codes (Text2Video-Zero, arXiv:2303.13439, §3.2): a global translation of the
 * first frame's latents, growing with the frame's number.
 *
 * The reference builds a flow on a 512×512 grid, resizes it to the latents' size and samples with
 * nearest neighbours and mirrored borders. For a translation that is a shift by whole cells, in
 * closed form below; it changes no value, so the latents keep their noise statistics.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import { indexSelect } from "../kernels/mod.ts";
import { roundHalfEven } from "../schedulers/schedule.ts";

/** Extent of the grid on which motion is measured, whatever the size of the pictures. */
const GRID = 512;

/**
 * Cells by which an axis of `cells` latent cells is shifted for a motion of `delta` grid pixels:
 * `round((δ − ½)·cells/512)`, ties to even.
 */
export function shiftInCells(delta: number, cells: number): number {
  return roundHalfEven((delta - 0.5) * cells / GRID);
}

/** Where each cell of a shifted axis reads: the border is mirrored, its edge repeated. */
export function mirroredIndexes(cells: number, shift: number): Int32Array<ArrayBuffer> {
  return Int32Array.from({ length: cells }, (_, i) => {
    const period = 2 * cells;
    const at = (((i + shift) % period) + period) % period;
    return at < cells ? at : period - 1 - at;
  });
}

/** Strength of the motion of a clip, in 512ths of the picture's width and height a frame. */
export interface Motion {
  readonly x: number;
  readonly y: number;
}

/**
 * The latents of frame `frameId` before new noise: those of the first frame, moved by
 * `δ = strength · frameId`. A positive strength moves the camera right and down.
 *
 * @param latents `[1, C, h, w]`.
 * @returns The same shape.
 */
export function warpLatents(latents: Tensor, frameId: number, motion: Motion): Tensor {
  const [, , h, w] = latents.shape;
  const rows = mirroredIndexes(h, shiftInCells(motion.y * frameId, h));
  const columns = mirroredIndexes(w, shiftInCells(motion.x * frameId, w));
  return latents.device.scope(() => indexSelect(indexSelect(latents, 2, rows), 3, columns));
}
