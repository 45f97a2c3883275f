/**
 * Clamping, `out = min(max(x, low), high)`.
 *
 * Source: `torch.clamp`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, run, u32, vectors } from "../core/kernel.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid, flatPieces, floatType } from "./wgsl.ts";

interface Attributes {
  readonly min: number;
  readonly max: number;
}

/** The kernel behind {@link clamp}. */
export const clampKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "clamp",
  inputs: ["x"],
  output([x]) {
    if (!x) throw new ShapeError("clamp: needs a tensor");
    return { shape: x.shape, dtype: floatType(x) };
  },
  launch({ inputs, output, attributes: { min, max }, dispatch }) {
    const x = inputs[0] as Tensor;
    for (const { count, range } of flatPieces([x, output])) {
      const groups = Math.ceil(count / 4);
      dispatch({
        variant: "",
        read: { x: { ...vectors(x), range: range(x) } },
        write: { out: { ...vectors(output), range: range(output) } },
        params: { groups: u32(groups), low: f32(min), high: f32(max) },
        ...flatGrid(groups),
        // Comparisons, because the built-in clamp may turn NaN into a bound.
        main: () => `
          ${FLAT_INDEX}
          if (i >= p.groups) { return; }
          let v = vec4f(x[i]);
          let raised = select(v, vec4f(p.low), v < vec4f(p.low));
          out[i] = out_t(select(raised, vec4f(p.high), raised > vec4f(p.high)));`,
      });
    }
  },
  flops: (_inputs, output) => 2 * sizeOf(output.shape),
  reference: ([x], _shapes, { min, max }) => x!.map((v) => Math.min(Math.max(v, min), max)),
  cases: [
    { shapes: [[1]], attributes: { min: 0, max: 0.25 } },
    { shapes: [[3, 5]], attributes: { min: -1, max: 1 } },
    { shapes: [[2, 3, 8, 8]], attributes: { min: -Infinity, max: 0.5 } },
    { shapes: [[2, 3, 8, 8]], attributes: { min: 1, max: -1 } },
  ],
  tolerance: { atol: 0, rtol: 0 },
});

/**
 * Every element moved into `[min, max]`; NaN stays NaN. An infinite bound leaves that side open; as
 * in PyTorch, `max` wins where `min` is larger.
 */
export function clamp(x: Tensor, min: number, max: number): Tensor {
  return run(clampKernel, [x], { min, max });
}
