/**
 * Resizing pictures, as `torch.nn.functional.interpolate` does. Pixel `o` of the output looks at
 * place `s` of the input, where `ratio` is input pixels per output pixel:
 *
 * - `nearest`: pixel `⌊o · ratio⌋`;
 * - `bilinear`, `bicubic`: a filter of 2 or 4 pixels (triangle; cubic convolution with a = −0.75)
 *   around `s = (o + ½) · ratio − ½`, or `o · ratio` with aligned corners;
 * - `area`: the mean of the pixels `⌊o · H / Ho⌋ … ⌈(o + 1) · H / Ho⌉ − 1`;
 * - antialiased `bilinear`, `bicubic`: the filter (a = −½) stretched by `ratio` where that shrinks,
 *   around `s = (o + ½) · ratio`, its weights scaled to a sum of 1.
 *
 * @module
 */

import { InputError, ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, type Launch, run, scalars, u32 } from "../core/kernel.ts";
import { formatShape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { cubic, cubicWgsl, FLAT_INDEX, flatGrid } from "./wgsl.ts";

/** How to resize. Exactly one of `size` and `scaleFactor` is given. */
export interface InterpolateOptions {
  /** Height and width of the result. */
  readonly size?: readonly [number, number];
  /** Result pixels per input pixel, for both axes or each; the size is rounded down. */
  readonly scaleFactor?: number | readonly [number, number];
  /** Default `"nearest"`. */
  readonly mode?: "nearest" | "bilinear" | "bicubic" | "area";
  /** Whether the centres of the corner pixels stay in place; for the two filters. Default false. */
  readonly alignCorners?: boolean;
  /** Whether a filter grows where it shrinks the picture. Default false. */
  readonly antialias?: boolean;
}

/** Settings of the resizing kernel. */
export interface Resize {
  /** Filter. */
  readonly mode: "nearest" | "bilinear" | "bicubic" | "area";
  /** Height and width of the output. */
  readonly size: readonly [number, number];
  /** Input pixels per output pixel, as rounded to f32. */
  readonly ratio: readonly [number, number];
  /** Whether corner pixels stay in place. */
  readonly alignCorners: boolean;
  /** Whether the filter grows where it shrinks. */
  readonly antialias: boolean;
}

/** Half the width of a filter, in input pixels where nothing shrinks. */
const RADIUS = { bilinear: 1, bicubic: 2 };

const slope = (antialias: boolean) => antialias ? -0.5 : -0.75;

/** The input pixels that one output pixel sees along an axis, and the weight of each. */
function taps(
  o: number,
  extent: number,
  size: number,
  ratio: number,
  { mode, alignCorners, antialias }: Resize,
): [pixel: number, weight: number][] {
  if (mode === "nearest") {
    return [[Math.min(Math.floor(Math.fround(o * ratio)), extent - 1), 1]];
  }
  const out: [number, number][] = [];
  if (mode === "area") {
    const first = Math.floor(o * extent / size);
    const end = Math.ceil((o + 1) * extent / size);
    for (let k = first; k < end; k++) out.push([k, 1 / (end - first)]);
    return out;
  }
  const filter = (d: number) =>
    mode === "bilinear" ? Math.max(0, 1 - Math.abs(d)) : cubic(d, slope(antialias));
  if (antialias) {
    const stretch = Math.max(ratio, 1);
    const center = (o + 0.5) * ratio;
    const reach = RADIUS[mode] * stretch;
    const end = Math.min(Math.floor(center + reach + 0.5), extent);
    for (let k = Math.max(Math.floor(center - reach + 0.5), 0); k < end; k++) {
      out.push([k, filter((k + 0.5 - center) / stretch)]);
    }
    const sum = out.reduce((sum, [, weight]) => sum + weight, 0);
    return out.map(([k, weight]) => [k, weight / sum]);
  }
  let place = alignCorners ? o * ratio : (o + 0.5) * ratio - 0.5;
  if (mode === "bilinear") place = Math.max(place, 0);
  const radius = RADIUS[mode];
  for (let k = Math.floor(place) + 1 - radius; k <= Math.floor(place) + radius; k++) {
    out.push([Math.min(Math.max(k, 0), extent - 1), filter(place - k)]);
  }
  return out;
}

/** WGSL: the same along one axis, as a first pixel, a count, and a weight by distance. */
function tapsWgsl({ mode, alignCorners, antialias }: Resize): string {
  const struct = "struct Taps { first: i32, count: i32, center: f32, shrink: f32 }";
  const head = "fn taps(o: u32, extent: u32, size: u32, ratio: f32) -> Taps";
  if (mode === "nearest") {
    return `${struct}
      ${head} { return Taps(min(i32(floor(f32(o) * ratio)), i32(extent) - 1), 1, 0.0, 1.0); }`;
  }
  if (mode === "area") {
    return `${struct}
      ${head} {
        let first = o * extent / size;
        let end = ((o + 1u) * extent + size - 1u) / size;
        return Taps(i32(first), i32(end - first), 0.0, 1.0 / f32(end - first));
      }
      fn weight(t: Taps, k: i32) -> f32 { return t.shrink; }`;
  }
  const radius = RADIUS[mode];
  const filter = mode === "bilinear"
    ? "fn filtered(d: f32) -> f32 { return max(0.0, 1.0 - abs(d)); }"
    : `${cubicWgsl(slope(antialias))} fn filtered(d: f32) -> f32 { return cubic(d); }`;
  if (antialias) {
    return `${struct} ${filter}
      ${head} {
        let stretch = max(ratio, 1.0);
        let center = (f32(o) + 0.5) * ratio;
        let reach = ${radius}.0 * stretch;
        let first = max(i32(floor(center - reach + 0.5)), 0);
        let end = min(i32(floor(center + reach + 0.5)), i32(extent));
        return Taps(first, end - first, center - 0.5, 1.0 / stretch);
      }
      fn weight(t: Taps, k: i32) -> f32 { return filtered((f32(k) - t.center) * t.shrink); }`;
  }
  const place = alignCorners ? "f32(o) * ratio" : "(f32(o) + 0.5) * ratio - 0.5";
  return `${struct} ${filter}
    ${head} {
      let place = ${mode === "bilinear" ? `max(${place}, 0.0)` : place};
      return Taps(i32(floor(place)) + 1 - ${radius}, ${2 * radius}, place, 1.0);
    }
    fn weight(t: Taps, k: i32) -> f32 { return filtered(f32(k) - t.center); }`;
}

/** Nearest, twice the size: each invocation reads two pixels and writes four, twice. */
function launchDouble({ inputs: [x], output, dispatch }: Launch<Resize>): void {
  const pairs = x!.shape[3] / 2;
  const count = x!.size / 2;
  dispatch({
    variant: "double",
    read: { x: { tensor: x!, type: `vec2<${x!.dtype}>` } },
    write: { out: { tensor: output, type: `vec4<${output.dtype}>` } },
    params: { count: u32(count), pairs: u32(pairs) },
    ...flatGrid(count),
    main: () => `
      ${FLAT_INDEX}
      if (i >= p.count) { return; }
      let two = x[i];
      let four = out_t(two.x, two.x, two.y, two.y);
      let at = 2u * (i / p.pairs) * p.pairs + i % p.pairs;
      out[at] = four;
      out[at + p.pairs] = four;`,
  });
}

/** WGSL: the one pixel that the nearest mode takes. */
const PICK = "out[i] = x[(plane + u32(down.first)) * p.width + u32(across.first)];";

/** WGSL: the weighted sum of the pixels that a filter sees; antialiased weights do not add to 1. */
const sumWgsl = (antialias: boolean) => `
        var sum = 0.0;
        var total = 0.0;
        for (var j = down.first; j < down.first + down.count; j++) {
          let row = (plane + u32(clamp(j, 0, i32(p.height) - 1))) * p.width;
          let outer = weight(down, j);
          for (var k = across.first; k < across.first + across.count; k++) {
            let w = outer * weight(across, k);
            sum += w * f32(x[row + u32(clamp(k, 0, i32(p.width) - 1))]);
            total += w;
          }
        }
        out[i] = out_t(${antialias ? "sum / total" : "sum"});`;

/** The kernel behind {@link interpolate}. */
export const interpolateKernel: Kernel<Resize> = defineKernel({
  name: "interpolate",
  inputs: ["x"],
  output([x], { size }) {
    const { shape, dtype } = x!;
    const fits = shape.length === 4 && size.every((n) => Number.isInteger(n) && n >= 1);
    if (!fits) {
      throw new ShapeError(
        `interpolate: takes [N, C, H, W] and a size of at least 1×1, ` +
          `got ${formatShape(shape)} and ${size.join("×")}`,
      );
    }
    return { shape: [shape[0], shape[1], ...size], dtype };
  },
  launch(launch) {
    const { inputs: [x], output, attributes, dispatch } = launch;
    const [, , height, width] = x!.shape;
    const { mode, size, ratio, alignCorners, antialias } = attributes;
    const double = size[0] === 2 * height && size[1] === 2 * width &&
      ratio.every((r) => r === 0.5);
    if (mode === "nearest" && double && width % 2 === 0) return launchDouble(launch);
    const count = output.size;
    dispatch({
      variant: `${mode},${alignCorners},${antialias}`,
      read: { x: scalars(x!) },
      write: { out: scalars(output) },
      params: {
        count: u32(count),
        height: u32(height),
        width: u32(width),
        outHeight: u32(size[0]),
        outWidth: u32(size[1]),
        ratioY: f32(ratio[0]),
        ratioX: f32(ratio[1]),
      },
      ...flatGrid(count),
      declarations: () => tapsWgsl(attributes),
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let line = i / p.outWidth;
        let across = taps(i % p.outWidth, p.width, p.outWidth, p.ratioX);
        let down = taps(line % p.outHeight, p.height, p.outHeight, p.ratioY);
        let plane = line / p.outHeight * p.height;
        ${mode === "nearest" ? PICK : sumWgsl(antialias)}`,
    });
  },
  flops(_inputs, { shape }, { mode, ratio, antialias }) {
    if (mode === "nearest") return 0;
    const seen = (r: number) =>
      mode === "area" ? Math.max(r, 1) : 2 * RADIUS[mode] * (antialias ? Math.max(r, 1) : 1);
    return 2 * sizeOf(shape) * seen(ratio[0]) * seen(ratio[1]);
  },
  reference([x], [shape], attributes, output) {
    const [, , height, width] = shape!;
    const [, , rows, columns] = output;
    const { ratio } = attributes;
    return Float64Array.from({ length: sizeOf(output) }, (_, i) => {
      const line = Math.floor(i / columns);
      const plane = Math.floor(line / rows) * height;
      let sum = 0;
      for (const [j, outer] of taps(line % rows, height, rows, ratio[0], attributes)) {
        for (const [k, inner] of taps(i % columns, width, columns, ratio[1], attributes)) {
          sum += outer * inner * x![(plane + j) * width + k];
        }
      }
      return sum;
    });
  },
  tolerance: { atol: 5e-5, rtol: 2e-4 },
  cases: [
    resized([1, 1, 1, 1], [1, 1], { mode: "bilinear" }),
    resized([2, 3, 5, 6], [10, 12], { mode: "nearest" }),
    resized([2, 8, 16, 16], [32, 32], { mode: "nearest" }),
    resized([2, 3, 5, 7], [10, 14], { mode: "nearest" }),
    resized([1, 2, 3, 4], [7, 9], { mode: "nearest" }),
    resized([1, 2, 5, 7], [15, 49], { mode: "nearest" }), // places that round onto pixels
    resized([1, 2, 16, 13], [5, 4], { mode: "nearest" }),
    ...(["bilinear", "bicubic"] as const).flatMap((mode) => [
      resized([1, 2, 3, 4], [7, 9], { mode }),
      resized([1, 2, 3, 4], [7, 9], { mode, alignCorners: true }),
      resized([2, 1, 16, 13], [5, 1], { mode }),
      resized([2, 1, 16, 13], [5, 1], { mode, alignCorners: true }),
      resized([1, 2, 16, 13], [5, 4], { mode, antialias: true }),
      resized([1, 2, 5, 4], [16, 3], { mode, antialias: true }),
    ]),
    resized([1, 2, 32, 32], [8, 8], { mode: "bilinear" }),
    resized([1, 2, 8, 9], [3, 5], { mode: "area" }),
    resized([1, 2, 8, 9], [4, 11], { mode: "area" }),
  ],
});

function resized(
  shape: readonly [number, number, number, number],
  size: readonly [number, number],
  options: InterpolateOptions,
): { shapes: [readonly number[]]; attributes: Resize } {
  return { shapes: [shape], attributes: settings(shape.slice(2), { ...options, size }) };
}

function settings(extents: readonly number[], options: InterpolateOptions): Resize {
  const { size, scaleFactor, mode = "nearest" } = options;
  const { alignCorners = false, antialias = false } = options;
  if ((size === undefined) === (scaleFactor === undefined)) {
    throw new InputError("interpolate: give either size or scaleFactor");
  }
  const filtered = mode === "bilinear" || mode === "bicubic";
  if ((alignCorners || antialias) && !filtered) {
    throw new InputError(
      `interpolate: alignCorners and antialias are for bilinear and bicubic, the mode is ${mode}`,
    );
  }
  const factors = typeof scaleFactor === "number" ? [scaleFactor, scaleFactor] : scaleFactor;
  const along = (axis: number): { out: number; ratio: number } => {
    const extent = extents[axis];
    const factor = factors?.[axis];
    const out = size?.[axis] ?? Math.floor(extent * factor!);
    const ratio = alignCorners
      ? out > 1 ? (extent - 1) / (out - 1) : 0
      : factor === undefined
      ? extent / out
      : 1 / factor;
    return { out, ratio: Math.fround(ratio) };
  };
  const [y, x] = [along(0), along(1)];
  return { mode, size: [y.out, x.out], ratio: [y.ratio, x.ratio], alignCorners, antialias };
}

/**
 * Resizes pictures `[N, C, H, W]`.
 *
 * @throws {ShapeError} if `x` does not have four axes, or the result would be empty.
 * @throws {InputError} if options contradict each other.
 */
export function interpolate(x: Tensor, options: InterpolateOptions): Tensor {
  return run(interpolateKernel, [x], settings(x.shape.slice(2), options));
}
