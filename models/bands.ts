/**
 * Pictures in horizontal bands: how the autoencoder works on pictures whose activations are larger
 * than a binding, or than the memory that there is.
 *
 * Layers take and give bands. A convolution reads a row more on either side from the bands next to
 * it; group norm takes its statistics from all bands before it normalises any. So the result is
 * that of the whole picture, and at most two activations are held whole at a time: bands are freed
 * as soon as no row of the next layer needs them.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import {
  concat,
  type Conv2dOptions,
  groupMoments,
  groupNorm,
  interpolate,
  narrow,
} from "../kernels/mod.ts";
import { type Layer, partConv } from "./layers.ts";
import type { Weights } from "./weights.ts";

/** Bands of a picture from top to bottom, `[B, C, hᵢ, W]` each; a layer frees those it takes. */
export type Bands = readonly Tensor[];

/** Rows of a picture, from the first to before the last. */
type Rows = readonly [from: number, to: number];

/** The number of rows of a picture. */
function heightOf(bands: Bands): number {
  return bands.reduce((sum, band) => sum + band.shape[2], 0);
}

/**
 * Even heights of bands of a picture `[B, C, H, W]`, multiples of 8 where there are several, so that
 * no band takes more than `most` bytes.
 */
function heightsFor(rows: number, bytesPerRow: number, most: number): number[] {
  const count = Math.ceil(rows * bytesPerRow / most);
  const height = Math.max(8, Math.floor(Math.ceil(rows / count) / 8) * 8);
  if (count <= 1 || height >= rows) return [rows];
  const heights = Array<number>(Math.floor(rows / height)).fill(height);
  return rows % height ? [...heights, rows % height] : heights;
}

/** Some rows as one tensor: a band itself, or a copy. */
function rowsOf(bands: Bands, [from, to]: Rows): Tensor {
  const parts: Tensor[] = [];
  let top = 0;
  for (const band of bands) {
    const height = band.shape[2];
    const first = Math.max(from, top);
    const end = Math.min(to, top + height);
    if (end - first === height) parts.push(band);
    else if (first < end) parts.push(narrow(band, 2, first - top, end - first));
    top += height;
  }
  return parts.length === 1 ? parts[0] : concat(parts, 2);
}

/** How a layer goes over the rows of a picture. */
interface RowMap {
  /** Heights of the bands that it makes. */
  readonly heights: readonly number[];
  /** The rows that it reads for rows of its output. */
  readonly needed: (rows: Rows) => Rows;
  /** Makes a band of the output. */
  readonly make: (part: Tensor, rows: Rows, index: number) => Tensor;
  /** Whether the bands that it reads stay. */
  readonly keep?: boolean;
}

/** Makes bands, each from the rows of `x` that it needs; frees those that no other needs. */
function mapRows(x: Bands, { heights, needed, make, keep = false }: RowMap): Bands {
  const { device } = x[0];
  const left = [...x];
  let gone = 0;
  let from = 0;
  return heights.map((height, i) => {
    const rows: Rows = [from, from + height];
    from += height;
    const [first, end] = needed(rows);
    const out = device.scope(() => make(rowsOf(left, [first - gone, end - gone]), rows, i));
    const next = i + 1 < heights.length ? needed([from, from + heights[i + 1]])[0] : Infinity;
    while (!keep && left.length && gone + left[0].shape[2] <= next) {
      const used = left.shift() as Tensor;
      gone += used.shape[2];
      used.dispose();
    }
    return out;
  });
}

/** The whole picture as one tensor; frees the bands. */
export function joined(bands: Bands): Tensor {
  if (bands.length === 1) return bands[0];
  const whole = concat(bands, 2);
  for (const band of bands) band.dispose();
  return whole;
}

/** Makes a module of a function on bands, as `Weights.module` does of one on tensors. */
export function bandModule<Arguments extends readonly unknown[]>(
  w: Weights,
  forward: (...args: Arguments) => Bands,
): (...args: Arguments) => Bands {
  return (...args) => {
    const out = w.device.scope(() => forward(...args));
    w.observe(() => rowsOf(out, [0, heightOf(out)]));
    return out;
  };
}

/** Group norm and SiLU of all bands together, as a function of rows. */
export function bandNorm(
  w: Weights,
  channels: number,
  { groups, eps }: { groups: number; eps: number },
): (x: Bands) => Layer {
  const weight = w.tensor("weight", [channels]);
  const bias = w.tensor("bias", [channels]);
  return (x) => {
    w.observe(() => groupNorm(rowsOf(x, [0, heightOf(x)]), groups, weight, bias, { eps }));
    const options = { eps, activation: "silu" } as const;
    if (x.length === 1) return (rows) => groupNorm(rows, groups, weight, bias, options);
    let moments: Tensor | null = null;
    let seen = 0;
    for (const band of x) {
      moments = groupMoments(band, groups, moments && { moments, seen });
      seen += band.size / (band.shape[0] * groups);
    }
    return (rows) => groupNorm(rows, groups, weight, bias, { ...options, moments });
  };
}

/** What a {@link BandConv} does besides convolving. */
export interface BandConvOptions {
  /** Applied to the rows that are read. */
  readonly before?: Layer;
  /** Bands that are added to the output's, band by band, and freed. */
  readonly residual?: Bands;
  /** Applied to the residual. */
  readonly shortcut?: Layer | null;
  /** Bytes of a band of the output at most; default: bands stay as they are. */
  readonly most?: number;
  /** Whether the bands that it takes stay. Default false. */
  readonly keep?: boolean;
}

/** A 3×3 convolution of bands. */
export type BandConv = (x: Bands, options?: BandConvOptions) => Bands;

/** A 3×3 convolution that keeps the size. */
export function bandConv(w: Weights, channels: number, outputs: number): BandConv {
  const convolve = partConv(w, channels, outputs, 3);
  return bandModule(w, (x: Bands, options: BandConvOptions = {}) => {
    const { before, residual, shortcut, most = Infinity, keep } = options;
    const height = heightOf(x);
    return mapRows(x, {
      heights: most === Infinity
        ? x.map((band) => band.shape[2])
        : heightsFor(height, bytesPerRow(x[0], outputs), most),
      needed: ([from, to]) => [Math.max(0, from - 1), Math.min(height, to + 1)],
      make(part, rows, i) {
        const added = residual && shortcut ? shortcut(residual[i]) : residual?.[i];
        const rowsIn = before ? before(part) : part;
        const band = convolve(rowsIn, { padding: edges(rows, height), residual: added });
        residual?.[i].dispose();
        return band;
      },
      keep,
    });
  });
}

/** Padding of rows that have a neighbour on each side where the picture goes on. */
function edges([from, to]: Rows, height: number): Conv2dOptions["padding"] {
  return { top: from === 0 ? 1 : 0, bottom: to === height ? 1 : 0, left: 1, right: 1 };
}

function bytesPerRow({ shape: [B, , , W], bytes, size }: Tensor, channels: number): number {
  return B * channels * W * bytes / size;
}

/** Doubles the size by nearest neighbours, then convolves (`Upsample2D` of diffusers). */
export function bandUpsample(w: Weights, channels: number): (x: Bands, most: number) => Bands {
  const convolve = partConv(w.at("conv"), channels, channels, 3);
  return bandModule(w, (x: Bands, most: number) => {
    const height = 2 * heightOf(x);
    return mapRows(x, {
      heights: heightsFor(height, 2 * bytesPerRow(x[0], channels), most),
      needed: ([from, to]) => [
        Math.max(0, Math.floor((from - 1) / 2)),
        Math.min(height / 2, Math.floor(to / 2) + 1),
      ],
      make(part, rows) {
        const [, , h, W] = part.shape;
        const large = interpolate(part, { size: [2 * h, 2 * W], mode: "nearest" });
        const padding = edges(rows, height);
        if (rows[0] === 0 && rows[1] === height) return convolve(large, { padding });
        // Of the first and the last source row, only the inner copy borders on the band.
        const first = rows[0] === 0 ? 0 : 1;
        const last = 2 * h - (rows[1] === height ? 0 : 1);
        const bordered = narrow(large, 2, first, last - first);
        large.dispose();
        return convolve(bordered, { padding });
      },
    });
  });
}

/** Halves the size by a convolution whose picture grows by a row and a column at the far edges. */
export function bandDownsample(w: Weights, channels: number): (x: Bands, most: number) => Bands {
  const convolve = partConv(w.at("conv"), channels, channels, 3, { stride: 2 });
  return bandModule(w, (x: Bands, most: number) => {
    const height = heightOf(x);
    return mapRows(x, {
      heights: heightsFor(height / 2, bytesPerRow(x[0], channels) / 2, most),
      needed: ([from, to]) => [2 * from, Math.min(height, 2 * to + 1)],
      make(part, [, to]) {
        const bottom = 2 * to === height ? 1 : 0;
        return convolve(part, { padding: { top: 0, left: 0, bottom, right: 1 } });
      },
    });
  });
}
