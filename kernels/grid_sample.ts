/**
 * Sampling a picture at given places, as `torch.nn.functional.grid_sample` does (the sampler of
 * Spatial Transformer Networks, Jaderberg et al. 2015).
 *
 * A place (−1, −1) is the upper left corner. With `alignCorners` the corners are the centres of
 * the corner pixels, `(g + 1) / 2 · (W − 1)`; without, the picture's outer edges,
 * `((g + 1) · W − 1) / 2`. `nearest` rounds halves to the even pixel; `bicubic` is the cubic
 * convolution of Keys (1981) with a = −0.75. Beyond the picture stand zeros, the edge pixels, or the
 * mirror image about the corners.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { roundToEven } from "../core/rounding.ts";
import { formatShape, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { cubic, cubicWgsl, FLAT_INDEX, flatGrid } from "./wgsl.ts";

/** How to sample. */
export interface GridSampleOptions {
  /** Between pixels. Default `"bilinear"`. */
  readonly mode?: "bilinear" | "nearest" | "bicubic";
  /** Beyond the picture. Default `"zeros"`. */
  readonly paddingMode?: "zeros" | "border" | "reflection";
  /** Whether ±1 are the centres of the corner pixels. Default false. */
  readonly alignCorners?: boolean;
}

const KEYS = -0.75;

/** WGSL: `place`, a coordinate brought inside a picture of `n` pixels where the mode does that. */
function placeWgsl({ paddingMode, alignCorners }: Required<GridSampleOptions>): string {
  if (paddingMode === "zeros") return "fn place(x: f32, n: f32) -> f32 { return x; }";
  const mirrored = alignCorners
    ? `if (n > 1.0) { y = mirror(x, 0.0, 2.0 * (n - 1.0)); } else { y = 0.0; }`
    : `y = mirror(x, -0.5, 2.0 * n);`;
  return `
    fn mirror(x: f32, low: f32, period: f32) -> f32 {
      let distance = abs(x - low);
      let within = distance - floor(distance / period) * period;
      return min(within, period - within) + low;
    }
    fn place(x: f32, n: f32) -> f32 {
      var y = x;
      ${paddingMode === "reflection" ? mirrored : ""}
      return clamp(y, 0.0, n - 1.0);
    }`;
}

/** WGSL: the sum of the picture's values around `(x, y)`, for each mode. */
const SAMPLE = {
  nearest: `return pixel(plane, round(place(x, width)), round(place(y, height)));`,
  bilinear: `
    let px = place(x, width);
    let py = place(y, height);
    let x0 = floor(px);
    let y0 = floor(py);
    let u = px - x0;
    let v = py - y0;
    return (1.0 - v) * ((1.0 - u) * pixel(plane, x0, y0) + u * pixel(plane, x0 + 1.0, y0))
      + v * ((1.0 - u) * pixel(plane, x0, y0 + 1.0) + u * pixel(plane, x0 + 1.0, y0 + 1.0));`,
  bicubic: `
    let x0 = floor(x);
    let y0 = floor(y);
    var sum = 0.0;
    for (var j = -1; j <= 2; j++) {
      let row = place(y0 + f32(j), height);
      var line = 0.0;
      for (var k = -1; k <= 2; k++) {
        line += cubic(x - x0 - f32(k)) * pixel(plane, place(x0 + f32(k), width), row);
      }
      sum += cubic(y - y0 - f32(j)) * line;
    }
    return sum;`,
};

/** The kernel behind {@link gridSample}. */
export const gridSampleKernel: Kernel<Required<GridSampleOptions>> = defineKernel({
  name: "grid_sample",
  inputs: ["x", "grid"],
  output([x, grid]) {
    const [batch, channels] = x!.shape;
    const [rows, height, width, two] = grid!.shape;
    if (x!.shape.length !== 4 || grid!.shape.length !== 4 || rows !== batch || two !== 2) {
      throw new ShapeError(
        `grid_sample: takes x [N, C, H, W] and a grid [N, Ho, Wo, 2] of the same N, ` +
          `got ${formatShape(x!.shape)} and ${formatShape(grid!.shape)}`,
      );
    }
    return { shape: [batch, channels, height, width], dtype: x!.dtype };
  },
  launch({ inputs, output, attributes, dispatch }) {
    const [x, grid] = inputs as readonly Tensor[];
    const [, channels, height, width] = x.shape;
    const { mode, paddingMode, alignCorners } = attributes;
    const count = output.size;
    dispatch({
      variant: `${mode},${paddingMode},${alignCorners}`,
      read: { x: scalars(x), points: scalars(grid) },
      write: { out: scalars(output) },
      params: {
        count: u32(count),
        channels: u32(channels),
        height: u32(height),
        width: u32(width),
        places: u32(output.shape[2] * output.shape[3]),
      },
      ...flatGrid(count),
      declarations: () => `
        ${placeWgsl(attributes)}
        ${mode === "bicubic" ? cubicWgsl(KEYS) : ""}
        fn pixel(plane: u32, u: f32, v: f32) -> f32 {
          if (u < 0.0 || v < 0.0 || u >= f32(p.width) || v >= f32(p.height)) { return 0.0; }
          return f32(x[(plane * p.height + u32(v)) * p.width + u32(u)]);
        }
        fn sample(plane: u32, x: f32, y: f32) -> f32 {
          let width = f32(p.width);
          let height = f32(p.height);
          ${SAMPLE[mode]}
        }
        fn pixels(g: f32, n: f32) -> f32 {
          return ${alignCorners ? "(g + 1.0) / 2.0 * (n - 1.0)" : "((g + 1.0) * n - 1.0) / 2.0"};
        }`,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let plane = i / p.places;
        let at = 2u * (plane / p.channels * p.places + i % p.places);
        let u = pixels(f32(points[at]), f32(p.width));
        let v = pixels(f32(points[at + 1u]), f32(p.height));
        out[i] = out_t(sample(plane, u, v));`,
    });
  },
  flops: (_inputs, { shape }, { mode }) =>
    sizeOf(shape) * { nearest: 8, bilinear: 20, bicubic: 120 }[mode],
  reference([x, grid], [shape], attributes, output) {
    const [batch, channels, height, width] = shape!;
    const places = output[2] * output[3];
    const out = new Float64Array(sizeOf(output));
    for (let plane = 0; plane < batch * channels; plane++) {
      const picture = x!.subarray(plane * height * width, (plane + 1) * height * width);
      for (let i = 0; i < places; i++) {
        const at = 2 * (Math.floor(plane / channels) * places + i);
        out[plane * places + i] = sampleAt(picture, shape!, grid![at], grid![at + 1], attributes);
      }
    }
    return out;
  },
  tolerance: { atol: 5e-5, rtol: 2e-4 },
  cases: [
    {
      shapes: [[1, 1, 1, 1], [1, 1, 2, 2]],
      attributes: { mode: "bilinear", paddingMode: "reflection", alignCorners: true },
    },
    ...(["bilinear", "nearest", "bicubic"] as const).flatMap((mode) =>
      (["zeros", "border", "reflection"] as const).flatMap((paddingMode) =>
        [true, false].map((alignCorners) => ({
          shapes: [[2, 3, 5, 7], [2, 9, 8, 2]],
          attributes: { mode, paddingMode, alignCorners },
        }))
      )
    ),
    { // pixels 0.5, 1.5, 2.5, … of 8: halves go to the even ones
      shapes: [[1, 1, 1, 8], [1, 1, 7, 2]],
      values: [null, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5].flatMap((x) => [(2 * x + 1) / 8 - 1, 0])],
      attributes: { mode: "nearest", paddingMode: "zeros", alignCorners: false },
    },
    {
      shapes: [[2, 4, 16, 16], [2, 16, 16, 2]],
      attributes: { mode: "nearest", paddingMode: "reflection", alignCorners: false },
    },
  ],
});

function sampleAt(
  picture: Float64Array,
  [, , height, width]: Shape,
  gx: number,
  gy: number,
  { mode, paddingMode, alignCorners }: Required<GridSampleOptions>,
): number {
  const pixels = (g: number, n: number) =>
    alignCorners ? (g + 1) / 2 * (n - 1) : ((g + 1) * n - 1) / 2;
  const place = (x: number, n: number) => {
    if (paddingMode === "zeros") return x;
    if (paddingMode === "reflection") {
      const [low, high] = alignCorners ? [0, n - 1] : [-0.5, n - 0.5];
      if (low === high) return 0;
      while (x < low || x > high) x = x < low ? 2 * low - x : 2 * high - x;
    }
    return Math.min(Math.max(x, 0), n - 1);
  };
  const pixel = (x: number, y: number) =>
    x >= 0 && y >= 0 && x < width && y < height ? picture[y * width + x] : 0;
  const x = pixels(gx, width);
  const y = pixels(gy, height);
  if (mode === "nearest") return pixel(roundToEven(place(x, width)), roundToEven(place(y, height)));
  let sum = 0;
  if (mode === "bilinear") {
    const [u, v] = [place(x, width), place(y, height)];
    for (const j of [Math.floor(v), Math.floor(v) + 1]) {
      for (const k of [Math.floor(u), Math.floor(u) + 1]) {
        sum += (1 - Math.abs(v - j)) * (1 - Math.abs(u - k)) * pixel(k, j);
      }
    }
    return sum;
  }
  for (let j = Math.floor(y) - 1; j <= Math.floor(y) + 2; j++) {
    for (let k = Math.floor(x) - 1; k <= Math.floor(x) + 2; k++) {
      const weight = cubic(y - j, KEYS) * cubic(x - k, KEYS);
      sum += weight * pixel(place(k, width), place(j, height));
    }
  }
  return sum;
}

/**
 * Samples `x` `[N, C, H, W]` at the places of `grid` `[N, Ho, Wo, 2]` (horizontal first, −1 … 1
 * over the picture); gives `[N, C, Ho, Wo]`.
 *
 * @throws {ShapeError} if the shapes are not these.
 */
export function gridSample(x: Tensor, grid: Tensor, options: GridSampleOptions = {}): Tensor {
  const { mode = "bilinear", paddingMode = "zeros", alignCorners = false } = options;
  return run(gridSampleKernel, [x, grid], { mode, paddingMode, alignCorners });
}
