/**
 * Choice, `out = condition ≠ 0 ? a : b`, element by element with NumPy's broadcasting.
 *
 * Source: `torch.where`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run } from "../core/kernel.ts";
import { broadcastShapes } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { broadcastDispatches, broadcastReference } from "./broadcast.ts";
import { floatType } from "./wgsl.ts";

type NoAttributes = Readonly<Record<string, never>>;

/** The kernel behind {@link where}. */
export const whereKernel: Kernel<NoAttributes> = defineKernel<NoAttributes>({
  name: "where",
  inputs: ["condition", "a", "b"],
  output([condition, a, b]) {
    if (!condition || !a || !b) throw new ShapeError("where: needs a condition and two tensors");
    return {
      shape: broadcastShapes("where", condition.shape, a.shape, b.shape),
      dtype: floatType(a, b),
    };
  },
  launch({ inputs, output, dispatch }) {
    const [condition, a, b] = inputs as [Tensor, Tensor, Tensor];
    const choice = { expression: "select(b, a, condition != F(0.0))" };
    for (const item of broadcastDispatches({ condition, a, b }, output, choice)) dispatch(item);
  },
  flops: () => 0,
  reference: (inputs, shapes, _attributes, output) =>
    broadcastReference(inputs, shapes, output, (condition, a, b) => condition ? a : b),
  cases: [
    { shapes: [[1], [1], [1]], attributes: {}, values: [[0], null, null] },
    { shapes: [[4, 1], [4, 5], [4, 5]], attributes: {}, values: [[0, 1, 0, -2], null, null] },
    { shapes: [[3, 1], [3, 8], [8]], attributes: {}, values: [[0, 1, 0.5], null, null] },
    {
      shapes: [[5], [5], []],
      attributes: {},
      dtypes: ["i32", null, null],
      values: [[0, 1, 0, 7, -1], null, null],
    },
  ],
  tolerance: { atol: 0, rtol: 0 },
});

/**
 * `a` where `condition` is not 0, else `b`.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function where(condition: Tensor, a: Tensor, b: Tensor): Tensor {
  return run(whereKernel, [condition, a, b], {});
}
