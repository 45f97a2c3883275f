/**
 * What is right, in float64, and how far a result is from it.
 *
 * @module
 */

import { attentionKernel } from "../../kernels/attention.ts";
import { groupNormKernel } from "../../kernels/group_norm.ts";
import { matmulKernel } from "../../kernels/matmul.ts";
import { convolution } from "../shapes.ts";
import { callOf, costOf, type Workload } from "../workload.ts";
import { EPS, type Problem, valuesOf } from "./problems.ts";

/** Greatest error accepted, as a share of the greatest value. */
export const TOLERANCE = 1e-4;

/** The problem as a call of a kernel: what it costs, and what is right. */
function workloadOf(problem: Problem): Workload {
  switch (problem.op) {
    case "matmul": {
      const { tokens, inputs, outputs } = problem;
      return callOf(matmulKernel, [[inputs, outputs], [inputs, tokens], null, null], {
        transposeA: true,
        transposeB: false,
        biasAxis: "row",
        activation: "none",
      });
    }
    case "conv2d": {
      const { channels: C, side } = problem;
      const { kernel, input: { shapes: [x], attributes } } = convolution([1, C, side, side], C, 3);
      return callOf(kernel, [x, [C, C, 3, 3], null, null, null], attributes);
    }
    case "attention": {
      const { heads, width, tokens } = problem;
      const shape = [1, heads * width, tokens];
      return callOf(attentionKernel, [shape, shape, shape, null], { heads });
    }
    case "group_norm": {
      const { groups, channels, side } = problem;
      const shapes = [[1, channels, side, side], [channels], [channels]];
      return callOf(groupNormKernel, shapes, { groups, eps: EPS, activation: "none" });
    }
  }
}

/** Floating-point operations of a direct computation. */
export function flopsOf(problem: Problem): number {
  return costOf(workloadOf(problem), "f32").flops;
}

/** The result, in float64. */
export function referenceOf(problem: Problem): Float64Array {
  const { kernel, input: { shapes, attributes } } = workloadOf(problem);
  const values = valuesOf(problem).map((data) => Float64Array.from(data));
  // The product takes its weights first.
  if (problem.op === "matmul") values.reverse();
  const specs = shapes.map((shape) => shape && { shape, dtype: "f32" as const });
  const output = kernel.output(specs, attributes);
  const inputs = shapes.map((_, i) => values[i] ?? null);
  return kernel.reference(inputs, shapes, attributes, output.shape);
}

/** The greatest error, as a share of the greatest value; infinite if a value is no number. */
export function errorOf(got: Float32Array, want: Float64Array): number {
  if (got.length !== want.length) return Infinity;
  let error = 0;
  let greatest = 0;
  for (let i = 0; i < want.length; i++) {
    if (!Number.isFinite(got[i])) return Infinity;
    error = Math.max(error, Math.abs(got[i] - want[i]));
    greatest = Math.max(greatest, Math.abs(want[i]));
  }
  return error / greatest;
}
