/**
 * How calm the background of a clip is, and what smoothing does to the rest.
 *
 * @module
 */

import type { Frame } from "../video/frame.ts";
import { type Motion, shiftInCells } from "../video/motion_field.ts";

/** The foreground of a clip, in cells. */
export interface CellMasks {
  /** `frames · h · w` values, above 0 where there is foreground. */
  readonly values: Float32Array;
  /** Height and width in cells. */
  readonly cells: readonly [number, number];
  /** Pixels of a cell along each side. */
  readonly factor: number;
}

/** Whether a pixel of frame `k` is foreground. */
function isForeground(
  { values, cells: [h, w], factor }: CellMasks,
  k: number,
  x: number,
  y: number,
): boolean {
  return values[(k * h + Math.floor(y / factor)) * w + Math.floor(x / factor)] > 0;
}

/**
 * How far the background of frames 1, 2, … is from that of frame 0 as the camera moves it: the mean
 * difference of colours, of 255. Counted where both are background, and inside the picture.
 */
export function backgroundError(
  frames: readonly Frame[],
  masks: CellMasks,
  motion: Motion,
): number {
  const { cells: [h, w], factor } = masks;
  const [first] = frames;
  let [sum, count] = [0, 0];
  frames.forEach(({ width, height, data }, k) => {
    if (k === 0) return;
    const right = factor * shiftInCells(motion.x * k, w);
    const down = factor * shiftInCells(motion.y * k, h);
    for (let i = 0; i < width * height; i++) {
      const [x, y] = [i % width, Math.floor(i / width)];
      const [fromX, fromY] = [x + right, y + down];
      if (fromX < 0 || fromX >= width || fromY < 0 || fromY >= height) continue;
      if (isForeground(masks, k, x, y) || isForeground(masks, 0, fromX, fromY)) continue;
      const from = 3 * (fromY * width + fromX);
      for (let c = 0; c < 3; c++) sum += Math.abs(data[3 * i + c] - first.data[from + c]);
      count += 3;
    }
  });
  return sum / count;
}

/** How far two clips are apart in the foreground: the mean difference of colours, of 255. */
export function foregroundDifference(
  got: readonly Frame[],
  want: readonly Frame[],
  masks: CellMasks,
): number {
  let [sum, count] = [0, 0];
  got.forEach(({ width, data }, k) =>
    data.forEach((value, i) => {
      const pixel = Math.floor(i / 3);
      if (!isForeground(masks, k, pixel % width, Math.floor(pixel / width))) return;
      sum += Math.abs(value - want[k].data[i]);
      count++;
    })
  );
  return sum / count;
}
