/**
 * Pooling: the mean or the largest element of each window of a picture. Windows begin at
 * `o · stride − padding`; beyond the picture stand zeros for the mean (which counts them, as does
 * PyTorch by default), and nothing for the maximum.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { formatShape, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

/** One number for both axes, or height and width. */
export type Pair = number | readonly [number, number];

/** Settings of a pooling kernel, as height and width. */
export interface Pool {
  /** Extents of a window. */
  readonly kernel: readonly [number, number];
  /** Distance of neighbouring windows. */
  readonly stride: readonly [number, number];
  /** Border on each side. */
  readonly padding: readonly [number, number];
}

/** How each kind folds a window's elements, in WGSL and here. `area` counts the border in. */
const FOLDS = {
  avg: {
    wgsl: { fold: "folded + value", done: "folded / p.area" },
    fold: (values: readonly number[], area: number) => values.reduce((a, b) => a + b, 0) / area,
  },
  max: {
    wgsl: { fold: "max(folded, value)", done: "folded" },
    fold: (values: readonly number[]) => Math.max(...values),
  },
};

function poolKernel(name: string, kind: keyof typeof FOLDS): Kernel<Pool> {
  const { wgsl, fold } = FOLDS[kind];
  return defineKernel({
    name,
    inputs: ["x"],
    output([x], { kernel, stride, padding }) {
      const { shape, dtype } = x!;
      const out = [0, 1].map((k) =>
        Math.floor((shape[k + 2] + 2 * padding[k] - kernel[k]) / stride[k]) + 1
      );
      const whole = [...kernel, ...stride, ...padding].every(Number.isInteger);
      const fits = [0, 1].every((k) =>
        kernel[k] >= 1 && stride[k] >= 1 && padding[k] >= 0 && 2 * padding[k] <= kernel[k]
      );
      if (shape.length !== 4 || !whole || !fits || out.some((extent) => extent < 1)) {
        throw new ShapeError(
          `${name}: takes [N, C, H, W], a window no larger than the padded picture, and padding ` +
            `of at most half a window; got ${formatShape(shape)}, window ${kernel.join("×")}, ` +
            `stride ${stride.join("×")}, padding ${padding.join("×")}`,
        );
      }
      return { shape: [shape[0], shape[1], ...out], dtype };
    },
    launch({ inputs: [x], output, attributes: { kernel, stride, padding }, dispatch }) {
      const count = output.size;
      dispatch({
        variant: "",
        read: { x: scalars(x!) },
        write: { out: scalars(output) },
        params: {
          count: u32(count),
          height: u32(x!.shape[2]),
          width: u32(x!.shape[3]),
          outHeight: u32(output.shape[2]),
          outWidth: u32(output.shape[3]),
          kernelY: u32(kernel[0]),
          kernelX: u32(kernel[1]),
          strideY: u32(stride[0]),
          strideX: u32(stride[1]),
          paddingY: u32(padding[0]),
          paddingX: u32(padding[1]),
          area: { type: "f32", value: kernel[0] * kernel[1] },
        },
        ...flatGrid(count),
        declarations: () => `
          // The part of a window inside the picture: first index, and one past the last.
          fn window(o: u32, extent: u32, size: u32, stride: u32, padding: u32) -> vec2u {
            let start = o * stride;
            return vec2u(max(start, padding) - padding, min(start + size - padding, extent));
          }`,
        main: () => `
          ${FLAT_INDEX}
          if (i >= p.count) { return; }
          let line = i / p.outWidth;
          let columns = window(i % p.outWidth, p.width, p.kernelX, p.strideX, p.paddingX);
          let rows = window(line % p.outHeight, p.height, p.kernelY, p.strideY, p.paddingY);
          let plane = line / p.outHeight * p.height;
          var folded = ${kind === "avg" ? "0.0" : "f32(x[(plane + rows.x) * p.width + columns.x])"};
          for (var row = rows.x; row < rows.y; row++) {
            for (var column = columns.x; column < columns.y; column++) {
              let value = f32(x[(plane + row) * p.width + column]);
              folded = ${wgsl.fold};
            }
          }
          out[i] = out_t(${wgsl.done});`,
      });
    },
    flops: (_inputs, { shape }, { kernel }) => sizeOf(shape) * kernel[0] * kernel[1],
    reference([x], [shape], { kernel, stride, padding }, output) {
      const [, , height, width] = shape!;
      const [, , rows, columns] = output;
      return Float64Array.from({ length: sizeOf(output) }, (_, i) => {
        const line = Math.floor(i / columns);
        const top = line % rows * stride[0] - padding[0];
        const left = i % columns * stride[1] - padding[1];
        const values: number[] = [];
        for (let y = Math.max(top, 0); y < Math.min(top + kernel[0], height); y++) {
          for (let k = Math.max(left, 0); k < Math.min(left + kernel[1], width); k++) {
            values.push(x![(Math.floor(line / rows) * height + y) * width + k]);
          }
        }
        return fold(values, kernel[0] * kernel[1]);
      });
    },
    cases: [
      pooled([1, 1, 1, 1], 1, 1, 0),
      pooled([1, 3, 8, 10], 2, 2, 0),
      pooled([1, 1, 12, 12], 5, 1, 2),
      pooled([2, 3, 9, 7], [3, 2], [2, 3], [1, 0]),
      pooled([2, 4, 16, 16], 3, 2, 1),
    ],
  });
}

function pooled(
  shape: Shape,
  kernel: Pair,
  stride: Pair,
  padding: Pair,
): { shapes: Shape[]; attributes: Pool } {
  return { shapes: [shape], attributes: settings(kernel, stride, padding) };
}

function settings(kernel: Pair, stride: Pair, padding: Pair): Pool {
  const both = (value: Pair): readonly [number, number] =>
    typeof value === "number" ? [value, value] : value;
  return { kernel: both(kernel), stride: both(stride), padding: both(padding) };
}

/** The kernel behind {@link avgPool2d}. */
export const avgPool2dKernel: Kernel<Pool> = poolKernel("avg_pool2d", "avg");

/** The kernel behind {@link maxPool2d}. */
export const maxPool2dKernel: Kernel<Pool> = poolKernel("max_pool2d", "max");

/**
 * The mean of each window of `x` `[N, C, H, W]`; borders count as zeros.
 *
 * @throws {ShapeError} if no window fits, or the padding exceeds half a window.
 */
export function avgPool2d(
  x: Tensor,
  kernel: Pair,
  stride: Pair = kernel,
  padding: Pair = 0,
): Tensor {
  return run(avgPool2dKernel, [x], settings(kernel, stride, padding));
}

/**
 * The largest element of each window of `x` `[N, C, H, W]`. With an odd `kernel`, stride 1 and
 * padding `(kernel − 1) / 2` it is the morphological dilation by a square.
 *
 * @throws {ShapeError} if no window fits, or the padding exceeds half a window.
 */
export function maxPool2d(
  x: Tensor,
  kernel: Pair,
  stride: Pair = kernel,
  padding: Pair = 0,
): Tensor {
  return run(maxPool2dKernel, [x], settings(kernel, stride, padding));
}
