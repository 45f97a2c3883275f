/**
 * Concatenation and stacking: each input is copied into its own region of the output.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run } from "../core/kernel.ts";
import { formatShape, normalizeAxis, sameShape, type Shape, stridesOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { copyRegion } from "./copy.ts";

/** Settings of a concatenation. */
export interface Concat {
  /** Axis of the output along which the inputs follow each other. */
  readonly axis: number;
  /** Whether that axis is a new one, on which every input has extent 1. */
  readonly stack: boolean;
}

/** Shape of an input once it has the axis of concatenation. */
function withAxis(shape: Shape, { axis, stack }: Concat): Shape {
  return stack ? shape.toSpliced(axis, 0, 1) : shape;
}

/** The kernel behind {@link concat} and {@link stack}. `axis` is counted from the front. */
export const concatKernel: Kernel<Concat> = defineKernel({
  name: "concat",
  inputs: ["x"],
  output(inputs, attributes) {
    const { axis } = attributes;
    const shapes = inputs.map((input) => withAxis(input!.shape, attributes));
    const [first] = shapes;
    for (const shape of shapes) {
      const fits = shape.length > axis && sameShape(shape.with(axis, first[axis]), first);
      if (!fits || (attributes.stack && !sameShape(shape, first))) {
        throw new ShapeError(
          attributes.stack
            ? `stack: all tensors must have the same shape, got ` +
              inputs.map((input) => formatShape(input!.shape)).join(" and ")
            : `concat: shapes must be equal except on axis ${axis}, got ` +
              shapes.map(formatShape).join(" and "),
        );
      }
    }
    const floating = inputs.find((input) => input?.dtype === "f32" || input?.dtype === "f16");
    const extent = shapes.reduce((sum, shape) => sum + shape[axis], 0);
    return { shape: first.with(axis, extent), dtype: (floating ?? inputs[0]!).dtype };
  },
  launch({ inputs, output, attributes, dispatch }) {
    const to = stridesOf(output.shape);
    let start = 0;
    for (const x of inputs as readonly Tensor[]) {
      const extents = withAxis(x.shape, attributes);
      copyRegion(dispatch, x, output, {
        extents,
        from: { offset: 0, strides: stridesOf(extents) },
        to: { offset: start * to[attributes.axis], strides: to },
      });
      start += extents[attributes.axis];
    }
  },
  flops: () => 0,
  reference(inputs, shapes, attributes, output) {
    const { axis } = attributes;
    const out: number[] = [];
    const outer = output.slice(0, axis).reduce((a, b) => a * b, 1);
    for (let i = 0; i < outer; i++) {
      shapes.forEach((_, k) => {
        const rows = inputs[k]!.length / outer;
        out.push(...inputs[k]!.subarray(i * rows, (i + 1) * rows));
      });
    }
    return Float64Array.from(out);
  },
  cases: [
    { shapes: [[1]], attributes: { axis: 0, stack: false } },
    { shapes: [[2, 3, 4], [1, 3, 4]], attributes: { axis: 0, stack: false } },
    { shapes: [[2, 8, 6, 4], [2, 5, 6, 4], [2, 3, 6, 4]], attributes: { axis: 1, stack: false } },
    { shapes: [[3, 7], [3, 2], [3, 1]], attributes: { axis: 1, stack: false } },
    { shapes: [[2, 320, 4, 4], [2, 640, 4, 4]], attributes: { axis: 1, stack: false } },
    { shapes: [[], []], attributes: { axis: 0, stack: true } },
    { shapes: [[3, 4], [3, 4]], attributes: { axis: 1, stack: true } },
    { shapes: [[5, 3], [5, 3], [5, 3]], attributes: { axis: 2, stack: true } },
  ],
});

/**
 * Tensors one after the other along an existing axis. Element types are converted to the first
 * floating one.
 *
 * @throws {ShapeError} if shapes differ on another axis, or there is no tensor.
 */
export function concat(tensors: readonly Tensor[], axis: number): Tensor {
  const rank = tensors[0]?.shape.length ?? 1;
  return run(concatKernel, tensors, { axis: normalizeAxis("concat", axis, rank), stack: false });
}

/**
 * Tensors of one shape side by side along a new axis, which is number `axis` of the result.
 *
 * @throws {ShapeError} if shapes differ, or there is no tensor.
 */
export function stack(tensors: readonly Tensor[], axis: number): Tensor {
  const rank = (tensors[0]?.shape.length ?? 0) + 1;
  return run(concatKernel, tensors, { axis: normalizeAxis("stack", axis, rank), stack: true });
}
