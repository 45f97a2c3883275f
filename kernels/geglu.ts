/**
 * GEGLU without its linear layer: `out = value · gelu(gate)`, where `value` is the first half of an
 * axis and `gate` the second.
 *
 * Source: Shazeer 2020, GLU Variants Improve Transformer; the exact GELU, as diffusers has it.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, scalars, u32, vectors } from "../core/kernel.ts";
import { formatShape, normalizeAxis, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { geluReference } from "./unary.ts";
import { ERF, FLAT_INDEX, flatGrid, floatType, laneTypes } from "./wgsl.ts";

interface Attributes {
  readonly axis: number;
}

/** Elements of one half: the halves are whole stretches, `outer` times value then gate. */
function halfOf(shape: Shape, axis: number): number {
  return sizeOf(shape.slice(normalizeAxis("geglu", axis, shape.length))) / 2;
}

/** The kernel behind {@link geglu}. */
export const gegluKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "geglu",
  inputs: ["x"],
  output([x], { axis }) {
    if (!x) throw new ShapeError("geglu: needs a tensor");
    const at = normalizeAxis("geglu", axis, x.shape.length);
    if (x.shape[at] % 2) {
      throw new ShapeError(
        `geglu: the axis that is halved must be even, got axis ${axis} of ${formatShape(x.shape)}`,
      );
    }
    return { shape: x.shape.with(at, x.shape[at] / 2), dtype: floatType(x) };
  },
  launch({ inputs, output, attributes: { axis }, dispatch }) {
    const x = inputs[0] as Tensor;
    const half = halfOf(x.shape, axis);
    const width = half % 4 ? 1 : 4;
    const bind = width === 4 ? vectors : scalars;
    const count = output.size / width;
    dispatch({
      variant: "",
      read: { x: bind(x) },
      write: { out: bind(output) },
      params: { count: u32(count), half: u32(half / width) },
      ...flatGrid(count),
      declarations: () => laneTypes(width) + ERF,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let at = i + i / p.half * p.half;
        let gate = F(x[at + p.half]);
        out[i] = out_t(F(x[at]) * 0.5 * gate * (1.0 + erf(gate * 0.70710678)));`,
    });
  },
  flops: (_inputs, output) => 27 * sizeOf(output.shape),
  reference([x], [shape], { axis }, output) {
    const half = halfOf(shape!, axis);
    return Float64Array.from({ length: sizeOf(output) }, (_, i) => {
      const at = i + Math.floor(i / half) * half;
      return x![at] * geluReference(x![at + half]);
    });
  },
  cases: [
    { shapes: [[2]], attributes: { axis: 0 } },
    { shapes: [[2, 10, 16]], attributes: { axis: -1 } },
    { shapes: [[3, 5, 6]], attributes: { axis: -1 } },
    { shapes: [[2, 64, 49]], attributes: { axis: 1 } },
    { shapes: [[2, 6, 7]], attributes: { axis: 1 } },
  ],
  tolerance: { atol: 4e-6, rtol: 1e-5 },
});

/**
 * `value · gelu(gate)` of the two halves of `x` along `axis`: −1 for `[B, N, 2C]`, 1 for
 * channel-major tokens `[B, 2C, N]`.
 *
 * @throws {ShapeError} if the axis does not exist or is odd.
 */
export function geglu(x: Tensor, axis = -1): Tensor {
  return run(gegluKernel, [x], { axis });
}
