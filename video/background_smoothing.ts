/**
 * Background smoothing (Text2Video-Zero, arXiv:2303.13439, §3.4): behind the foreground, the
 * latents of every frame at T1 are drawn towards those of the first frame, moved along with the
 * camera. The frames are then denoised from there.
 *
 * The paper, with the foreground mask M of frame k and the first frame's latents x̂, warped:
 *
 *     x̄ = M ⊙ x + (1 − M) ⊙ (α·x̂ + (1 − α)·x),  α = 0.6
 *
 * The authors' code has `a = 1 − α`, and keeps away from what the first frame's foreground covered:
 *
 *     b = x¹ ⊙ (1 − M¹),  B = (1 − M) ⊙ (1 − warp(M¹))
 *     x̄ = (1 − B) ⊙ x + B ⊙ (a·x + (1 − a)·warp(b))
 *
 * Both say `x̄ = x + (1 − a)·(background ⊙ (moved − x))`, which is how it is computed: the first
 * frame, whose move is none, comes out bit by bit as it was where masks are 0 or 1. Both are
 * applied once, at T1: the paper's formula is written for any t, and sampling goes on from its
 * result.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, assign, maxPool2d, mul, narrow, neg, sub } from "../kernels/mod.ts";
import type { Camera } from "./camera.ts";

/** Whose formula: the authors' code, which tests compare with, or the paper. */
export type SmoothingBlend = "code" | "paper";

/** The foreground of a picture. */
export interface Mask {
  /** Values in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** `width · height` values from 0, background, to 1, foreground; row by row from the top. */
  readonly values: Float32Array;
}

/** Cells around a mask that count as foreground too: dilation by 5×5. */
const REACH = 2;

/** A mask on the latents: the value at the first pixel of each of `h · w` cells. */
export function maskOfCells(
  { width, height, values }: Mask,
  [h, w]: readonly [number, number],
): Float32Array<ArrayBuffer> {
  const cells = new Float32Array(h * w);
  for (let i = 0; i < cells.length; i++) {
    const row = Math.floor(Math.floor(i / w) * height / h);
    cells[i] = values[row * width + Math.floor(i % w * width / w)];
  }
  return cells;
}

/**
 * M: masks of cells, dilated by 5×5.
 *
 * @param cells Of each frame, as {@link maskOfCells} makes them.
 * @returns `[frames, 1, h, w]` in f32.
 */
export function foregroundOf(
  device: Device,
  cells: readonly Float32Array[],
  [h, w]: readonly [number, number],
): Tensor {
  return device.scope(() => {
    const all = new Float32Array(cells.length * h * w);
    cells.forEach((mask, k) => all.set(mask, k * h * w));
    return maxPool2d(device.tensor(all, [cells.length, 1, h, w]), 2 * REACH + 1, 1, REACH);
  });
}

/** How backgrounds are smoothed. */
export interface SmoothingSettings {
  /** a: how much of its own background a frame keeps, 0 … 1. */
  readonly strength: number;
  /** Whose formula. */
  readonly blend: SmoothingBlend;
  /** Moves the first frame's latents, and its mask, to where they are in the others. */
  readonly camera: Pick<Camera, "move" | "moveMask">;
  /** Standard deviation of the noise in the latents. */
  readonly level: number;
  /** Frame numbers. */
  readonly frameIds: readonly number[];
}

/**
 * The latents of all frames, their backgrounds drawn towards the first frame's.
 *
 * @param x Latents at T1, `[frames, C, h, w]`.
 * @param foreground M, `[frames, 1, h, w]`.
 * @returns Of the shape of `x`.
 */
export function smoothBackground(
  x: Tensor,
  foreground: Tensor,
  { strength: a, blend, camera, level, frameIds }: SmoothingSettings,
): Tensor {
  const { device } = x;
  return device.scope(() => {
    const out = device.empty(x.shape);
    const [x1, M1] = [narrow(x, 0, 0, 1), narrow(foreground, 0, 0, 1)];
    frameIds.forEach((id, k) =>
      device.scope(() => {
        const moved = (latents: Tensor) => k ? camera.move(latents, id, level) : latents;
        const covered = k ? camera.moveMask(M1, id) : M1;
        const [xk, Mk] = [narrow(x, 0, k, 1), narrow(foreground, 0, k, 1)];
        const { background, behind } = blend === "code"
          ? { background: mul(not(Mk), not(covered)), behind: moved(mul(x1, not(M1))) }
          : { background: not(Mk), behind: moved(x1) };
        const step = mul(mul(sub(behind, xk), background), 1 - a);
        assign(out, add(xk, step), k * xk.size);
      })
    );
    return out;
  });
}

/** `1 − mask`. */
const not = (mask: Tensor): Tensor => add(neg(mask), 1);
