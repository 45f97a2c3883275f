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
 * the first frame's cells, or to those of the canvas around it (`canvas.ts`), so all frames look at
 * one and the same finer noise. What the latents hold besides noise is only interpolated, since the
 * z are scaled by the noise level.
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

/**
 * Where each cell of a shifted axis reads: the border is mirrored, its edge repeated.
 *
 * @param length How many cells there are to read.
 */
export function mirroredIndexes(
  cells: number,
  shift: number,
  length: number = cells,
): Int32Array<ArrayBuffer> {
  return Int32Array.from({ length }, (_, i) => {
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
  return shifted(latents, motion.x * frameId, motion.y * frameId, allOf(latents));
}

/** The first frame on a canvas of latent cells. */
export interface FramePlace {
  /** Its height and width. */
  readonly frame: readonly [h: number, w: number];
  /** The canvas' cell in its upper left corner. */
  readonly middle: readonly [top: number, left: number];
}

/** Latents that are the first frame, with nothing around. */
const allOf = ({ shape: [, , h, w] }: Tensor): FramePlace => ({ frame: [h, w], middle: [0, 0] });

function shifted(
  latents: Tensor,
  deltaX: number,
  deltaY: number,
  { frame: [h, w], middle: [top, left] }: FramePlace,
): Tensor {
  const [, , H, W] = latents.shape;
  const rows = mirroredIndexes(H, top + shiftInCells(deltaY, h), h);
  const columns = mirroredIndexes(W, left + shiftInCells(deltaX, w), w);
  return latents.device.scope(() => indexSelect(indexSelect(latents, 2, rows), 3, columns));
}

/**
 * An affine map from places in a frame to places in the first one, both in parts of the picture
 * from its upper left corner: `(u, v) ↦ (a·u + b·v + c, d·u + e·v + f)`.
 */
export type Affine = readonly [a: number, b: number, c: number, d: number, e: number, f: number];

/** The same map to places in parts of the canvas, `[1, C, H, W]`. */
function toCanvas(
  [a, b, c, d, e, f]: Affine,
  [, , H, W]: readonly number[],
  { frame: [h, w], middle: [top, left] }: FramePlace,
): Affine {
  const [across, down] = [w / W, h / H];
  return [
    ...[a * across, b * across, c * across + left / W] as const,
    ...[d * down, e * down, f * down + top / H] as const,
  ];
}

/**
 * The latents under any affine map, every cell a copy of the nearest one: for translations the same
 * as {@link warpLatents}. Where the map turns or scales, lines of cells tear.
 *
 * @param latents `[1, C, H, W]`, the first frame or a canvas around it.
 * @param place Where the first frame is. Default: all of the latents.
 * @returns `[1, C, h, w]`.
 */
export function warpByCells(
  latents: Tensor,
  affine: Affine,
  place: FramePlace = allOf(latents),
): Tensor {
  const [a, b, c, d, e, f] = affine;
  if (a === 1 && b === 0 && d === 0 && e === 1) return shifted(latents, GRID * c, GRID * f, place);
  // The reference's grid lies half a pixel of 512 before the centres of its pixels.
  const half = 0.5 / GRID;
  const map = toCanvas([a, b, c - half, d, e, f - half], latents.shape, place);
  return sampled(latents, map, place.frame, "nearest");
}

/** Fresh numbers of the latents' cells, `[C, H, W]` each: the z of both axes. */
export interface SubCellNoise {
  readonly across: Float32Array;
  readonly down: Float32Array;
}

/** Stands for no frame's number, so that no frame draws the same. */
const SUB_CELL_STREAM = Number.MAX_SAFE_INTEGER;

/** Draws the noise between the cells of latents `[1, C, H, W]`, for all frames of a clip. */
export function drawSubCellNoise(seed: number, shape: readonly number[]): SubCellNoise {
  const generator = generatorForFrame(seed, SUB_CELL_STREAM);
  return { across: generator.randn(shape), down: generator.randn(shape) };
}

/**
 * The latents under any affine map, between the cells where it says so: what they show is
 * interpolated, their noise keeps its variance.
 *
 * @param latents `[1, C, H, W]`, the first frame or a canvas around it.
 * @param level Standard deviation of the noise in the latents.
 * @param place Where the first frame is. Default: all of the latents.
 * @returns `[1, C, h, w]`.
 */
export function warpBetweenCells(
  latents: Tensor,
  affine: Affine,
  noise: SubCellNoise,
  level: number,
  place: FramePlace = allOf(latents),
): Tensor {
  const { device, shape } = latents;
  const { frame } = place;
  const map = toCanvas(affine, shape, place);
  return device.scope(() => {
    const smooth = sampled(latents, map, frame, "bilinear");
    const fresh = device.tensor(bridges(shape, map, frame, noise), smooth.shape);
    return linearCombination([1, level], [smooth, fresh]);
  });
}

function sampled(
  latents: Tensor,
  affine: Affine,
  [h, w]: FramePlace["frame"],
  mode: "nearest" | "bilinear",
): Tensor {
  const places = Float32Array.from(
    placesOf(affine, [h, w]).flatMap(([u, v]) => [2 * u - 1, 2 * v - 1]),
  );
  const { device } = latents;
  return device.scope(() =>
    gridSample(latents, device.tensor(places, [1, h, w, 2]), { mode, paddingMode: "reflection" })
  );
}

/** Where the centre of each of a frame's cells falls, row by row. */
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
  [, channels, H, W]: readonly number[],
  affine: Affine,
  [h, w]: FramePlace["frame"],
  { across, down }: SubCellNoise,
): Float32Array<ArrayBuffer> {
  const out = new Float32Array(channels * h * w);
  placesOf(affine, [h, w]).forEach(([u, v], i) => {
    const [x0, x1, p] = between(u, W);
    const [y0, y1, q] = between(v, H);
    const [spreadX, spreadY] = [Math.sqrt(p * (1 - p)), Math.sqrt(q * (1 - q))];
    for (let channel = 0; channel < channels; channel++) {
      const [top, bottom] = [(channel * H + y0) * W, (channel * H + y1) * W];
      const z = (row: number) => across[row + x1] - across[row + x0];
      out[channel * h * w + i] = spreadX * ((1 - q) * z(top) + q * z(bottom)) +
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
