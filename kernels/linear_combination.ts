/**
 * Linear combination of tensors, `out = Σᵢ cᵢ · xᵢ`, in f32: the arithmetic of guidance and of every
 * scheduler step.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, run, u32, vectors } from "../core/kernel.ts";
import { formatShape, sameShape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

const MOST = 8;

/** The kernel behind {@link linearCombination}. */
export const linearCombinationKernel: Kernel<{ coefficients: readonly number[] }> = defineKernel({
  name: "linear_combination",
  inputs: ["x"],
  output(inputs, { coefficients }) {
    const [first] = inputs;
    if (coefficients.length !== inputs.length || !first || inputs.length > MOST) {
      throw new ShapeError(
        `linear_combination: takes 1 to ${MOST} tensors and as many coefficients, ` +
          `got ${inputs.length} and ${coefficients.length}`,
      );
    }
    for (const input of inputs) {
      if (input && !sameShape(input.shape, first.shape)) {
        throw new ShapeError(
          `linear_combination: all tensors must have the same shape, got ` +
            `${formatShape(first.shape)} and ${formatShape(input.shape)}`,
        );
      }
    }
    return { shape: first.shape, dtype: "f32" };
  },
  launch({ inputs, output, attributes: { coefficients }, dispatch }) {
    const tensors = inputs as readonly Tensor[];
    const names = tensors.map((_, i) => `x${i}`);
    const count = Math.ceil(output.size / 4);
    const terms = tensors.map((_, i) => [`c${i}`, f32(coefficients[i])] as const);
    dispatch({
      variant: `${tensors.length}`,
      read: Object.fromEntries(tensors.map((x, i) => [names[i], vectors(x)])),
      write: { out: vectors(output) },
      params: { count: u32(count), ...Object.fromEntries(terms) },
      ...flatGrid(count),
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        out[i] = ${names.map((x, k) => `p.c${k} * vec4f(${x}[i])`).join(" + ")};`,
    });
  },
  flops: (inputs, output) => (2 * inputs.length - 1) * sizeOf(output.shape),
  reference: (inputs, _shapes, { coefficients }, output) =>
    Float64Array.from(
      { length: sizeOf(output) },
      (_, i) => coefficients.reduce((sum, c, k) => sum + c * (inputs[k]?.[i] ?? 0), 0),
    ),
  cases: [
    { shapes: [[1]], attributes: { coefficients: [2] } },
    { shapes: [[3, 5], [3, 5]], attributes: { coefficients: [0.5, -3] } },
    { shapes: [[2, 4, 8, 8], [2, 4, 8, 8], [2, 4, 8, 8]], attributes: { coefficients: [1, 2, 3] } },
  ],
});

/**
 * `Σᵢ coefficients[i] · tensors[i]`, in f32 whatever the inputs' type.
 *
 * @throws {ShapeError} if shapes differ, or counts do.
 */
export function linearCombination(
  coefficients: readonly number[],
  tensors: readonly Tensor[],
): Tensor {
  return run(linearCombinationKernel, tensors, { coefficients });
}
