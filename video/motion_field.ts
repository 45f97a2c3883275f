/**
 * Motion in the latent codes (Text2Video-Zero, arXiv:2303.13439, §3.2): the first frame's latents
 * as another camera would see them.
 *
 * The reference builds a flow on a 512×512 grid, resizes it to the latents' size and samples with
 * nearest neighbours and mirrored borders. For a translation that is a shift by whole cells, in
 * closed form below; it changes no value, so the latents keep their noise statistics, but the
 * picture moves in steps of a cell (8 pixels).
 *
 * Between cells, interpolating would average the noise: its variance falls, to a quarter in the
 * worst place, and neighbours become alike. So noise is taken for the sum of finer white noise over
 * the area of a cell (∫-noise, arXiv:2504.03072). Of a cell with value X a part f holds the noise
 * `f·X + √(f(1−f))·z`, with z ~ N(0, 1) of that cell's own: a Brownian bridge (arXiv:2411.01212).
 * A cell that lies over the end of one and the beginning of the next thus is
 *
 * `(1−f)·X₀ + f·X₁ + √(f(1−f))·(z₁ − z₀)`,
 *
 * the bilinear interpolation plus a difference of new noise: of variance 1 for every f, and
 * uncorrelated with its neighbours in a translation. Two axes are two such steps. The z belong to
 * the first frame's cells, so all frames look at one and the same finer noise. What the latents
 * hold besides noise is only interpolated, since the z are scaled by the noise level.
 *
 * @module
 */

import { generatorForFrame } from "../core/random.ts";
import { roundToEven } from "../core/rounding.ts";
import type { Tensor } from "../core/tensor.ts";
import { gridSample, indexSelect, linearCombination } from "../kernels/mod.ts";

/** Extent of the grid on which motion is measured, whatever the size of the pictures. */
const GRID = 512;

/**
 * Cells by which an axis of `cells` latent cells is shifted for a motion of `delta` grid pixels:
 * `round((δ − ½)·cells/512)`, ties to even.
 */
export function shiftInCells(delta: number, cells: number): number {
  return roundToEven((delta - 0.5) * cells / GRID);
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
  return shifted(latents, motion.x * frameId, motion.y * frameId);
}

function shifted(latents: Tensor, deltaX: number, deltaY: number): Tensor {
  const [, , h, w] = latents.shape;
  const rows = mirroredIndexes(h, shiftInCells(deltaY, h));
  const columns = mirroredIndexes(w, shiftInCells(deltaX, w));
  return latents.device.scope(() => indexSelect(indexSelect(latents, 2, rows), 3, columns));
}

/**
 * An affine map from places in a frame to places in the first one, both in parts of the picture
 * from its upper left corner: `(u, v) ↦ (a·u + b·v + c, d·u + e·v + f)`.
 */
export type Affine = readonly [a: number, b: number, c: number, d: number, e: number, f: number];

/**
 * The latents under any affine map, every cell a copy of the nearest one: for translations the same
 * as {@link warpLatents}. Where the map turns or scales, lines of cells tear.
 *
 * @param latents `[1, C, h, w]`.
 * @returns The same shape.
 */
export function warpByCells(latents: Tensor, affine: Affine): Tensor {
  const [a, b, c, d, e, f] = affine;
  if (a === 1 && b === 0 && d === 0 && e === 1) return shifted(latents, GRID * c, GRID * f);
  // The reference's grid lies half a pixel of 512 before the centres of its pixels.
  const half = 0.5 / GRID;
  return sampled(latents, [a, b, c - half, d, e, f - half], "nearest");
}

/** Fresh numbers of the cells of the first frame, `[C, h, w]` each: the z of both axes. */
export interface SubCellNoise {
  readonly across: Float32Array;
  readonly down: Float32Array;
}

/** Stands for no frame's number, so that no frame draws the same. */
const SUB_CELL_STREAM = Number.MAX_SAFE_INTEGER;

/** Draws the noise between the cells of latents `[1, C, h, w]`, for all frames of a clip. */
export function drawSubCellNoise(seed: number, shape: readonly number[]): SubCellNoise {
  const generator = generatorForFrame(seed, SUB_CELL_STREAM);
  return { across: generator.randn(shape), down: generator.randn(shape) };
}

/**
 * The latents under any affine map, between the cells where it says so: what they show is
 * interpolated, their noise keeps its variance.
 *
 * @param latents `[1, C, h, w]`.
 * @param level Standard deviation of the noise in the latents.
 * @returns The same shape.
 */
export function warpBetweenCells(
  latents: Tensor,
  affine: Affine,
  noise: SubCellNoise,
  level: number,
): Tensor {
  return latents.device.scope(() => {
    const smooth = sampled(latents, affine, "bilinear");
    const fresh = latents.device.tensor(bridges(latents.shape, affine, noise), latents.shape);
    return linearCombination([1, level], [smooth, fresh]);
  });
}

function sampled(latents: Tensor, affine: Affine, mode: "nearest" | "bilinear"): Tensor {
  const [, , h, w] = latents.shape;
  const places = Float32Array.from(
    placesOf(affine, [h, w]).flatMap(([u, v]) => [2 * u - 1, 2 * v - 1]),
  );
  const { device } = latents;
  return device.scope(() =>
    gridSample(latents, device.tensor(places, [1, h, w, 2]), { mode, paddingMode: "reflection" })
  );
}

/** Where each cell's centre falls, row by row, in parts of the picture. */
function placesOf(
  [a, b, c, d, e, f]: Affine,
  [h, w]: readonly [number, number],
): (readonly [number, number])[] {
  return Array.from({ length: h * w }, (_, i) => {
    const u = (i % w + 0.5) / w;
    const v = (Math.floor(i / w) + 0.5) / h;
    return [a * u + b * v + c, d * u + e * v + f];
  });
}

/** What bridges add to the interpolation, for noise of level 1. */
function bridges(
  [, channels, h, w]: readonly number[],
  affine: Affine,
  { across, down }: SubCellNoise,
): Float32Array<ArrayBuffer> {
  const out = new Float32Array(channels * h * w);
  placesOf(affine, [h, w]).forEach(([u, v], i) => {
    const [x0, x1, p] = between(u, w);
    const [y0, y1, q] = between(v, h);
    const [spreadX, spreadY] = [Math.sqrt(p * (1 - p)), Math.sqrt(q * (1 - q))];
    for (let plane = 0; plane < channels * h * w; plane += h * w) {
      const [top, bottom] = [plane + y0 * w, plane + y1 * w];
      const z = (row: number) => across[row + x1] - across[row + x0];
      out[plane + i] = spreadX * ((1 - q) * z(top) + q * z(bottom)) +
        spreadY * (down[bottom + x0] - down[top + x0]);
    }
  });
  return out;
}

/** The cells on both sides of a place on an axis mirrored at its ends, and the second's part. */
function between(place: number, cells: number): readonly [number, number, number] {
  const distance = Math.abs(place) % 2;
  const within = Math.min(distance, 2 - distance) * cells - 0.5;
  const at = Math.min(Math.max(within, 0), cells - 1);
  const first = Math.floor(at);
  return [first, Math.min(first + 1, cells - 1), at - first];
}
