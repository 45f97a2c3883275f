/**
 * Running sums and products along an axis: `out[i] = x[0] ∘ x[1] ∘ … ∘ x[i]`.
 *
 * A long row along memory is scanned by a workgroup, 64 elements at a time (Hillis & Steele 1986);
 * otherwise a lane walks down a row.
 *
 * Source: `torch.cumsum`, `torch.cumprod`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { normalizeAxis, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid, floatType, foldGroups } from "./wgsl.ts";

interface Attributes {
  readonly axis: number;
}

type CumulativeName = "cumsum" | "cumprod";

const TABLE = {
  cumsum: { init: 0, combine: "a + b", reference: (a: number, b: number) => a + b },
  cumprod: { init: 1, combine: "a * b", reference: (a: number, b: number) => a * b },
};

const LANES = `
  let first = i / p.inner * p.inner * p.length + i % p.inner;
  var a = p.init;
  for (var r = 0u; r < p.length; r++) {
    let at = first + r * p.inner;
    a = combine(a, f32(x[at]));
    out[at] = out_t(a);
  }`;

const SCAN = `
  var carry = p.init;
  for (var first = 0u; first < p.length; first += 64u) {
    let r = first + lane;
    var a = p.init;
    if (r < p.length) { a = f32(x[i * p.length + r]); }
    partial[lane] = a;
    workgroupBarrier();
    for (var apart = 1u; apart < 64u; apart *= 2u) {
      if (lane >= apart) { a = combine(partial[lane - apart], a); }
      workgroupBarrier();
      partial[lane] = a;
      workgroupBarrier();
    }
    if (r < p.length) { out[i * p.length + r] = out_t(combine(carry, a)); }
    carry = combine(carry, partial[63]);
    workgroupBarrier();
  }`;

function cumulativeKernel(name: CumulativeName): Kernel<Attributes> {
  const { init, combine, reference } = TABLE[name];
  return defineKernel<Attributes>({
    name,
    inputs: ["x"],
    output([x], { axis }) {
      if (!x) throw new ShapeError(`${name}: needs a tensor`);
      normalizeAxis(name, axis, x.shape.length);
      return { shape: x.shape, dtype: floatType(x) };
    },
    launch({ inputs, output, attributes, dispatch }) {
      const x = inputs[0] as Tensor;
      const axis = normalizeAxis(name, attributes.axis, x.shape.length);
      const length = x.shape[axis];
      const inner = sizeOf(x.shape.slice(axis + 1));
      const count = x.size / length;
      const shared = inner === 1 && length >= 64;
      const grid = shared
        ? { workgroup: [64, 1, 1] as const, workgroups: foldGroups(count) }
        : flatGrid(count);
      dispatch({
        variant: `${shared}`,
        read: { x: scalars(x) },
        write: { out: scalars(output) },
        params: { count: u32(count), length: u32(length), inner: u32(inner), init: f32(init) },
        ...grid,
        declarations: () => `
          var<workgroup> partial: array<f32, 64>;
          fn combine(a: f32, b: f32) -> f32 { return ${combine}; }`,
        main: () => `
          ${shared ? "let i = wg.y * grid.x + wg.x;" : FLAT_INDEX}
          if (i >= p.count) { return; }
          ${shared ? SCAN : LANES}`,
      });
    },
    flops: (_inputs, output) => sizeOf(output.shape),
    reference([x], [shape], { axis }) {
      const at = normalizeAxis(name, axis, shape!.length);
      const inner = sizeOf(shape!.slice(at + 1));
      const out = x!.slice();
      for (let i = 0; i < out.length; i++) {
        if (Math.floor(i / inner) % shape![at]) out[i] = reference(out[i - inner], out[i]);
      }
      return out;
    },
    cases: [
      { shapes: [[1]], attributes: { axis: 0 } },
      { shapes: [[3, 5, 7, 4]], attributes: { axis: -1 } },
      { shapes: [[3, 5, 7, 4]], attributes: { axis: 0 } },
      { shapes: [[3, 5, 7, 4]], attributes: { axis: 2 } },
      { shapes: [[2, 64]], attributes: { axis: 1 } },
      { shapes: [[2, 200]], attributes: { axis: 1 } },
    ],
  });
}

/** The kernel behind {@link cumsum}. */
export const cumsumKernel: Kernel<Attributes> = cumulativeKernel("cumsum");

/** The kernel behind {@link cumprod}. */
export const cumprodKernel: Kernel<Attributes> = cumulativeKernel("cumprod");

/**
 * The running sum along `axis`.
 *
 * @throws {ShapeError} if the axis does not exist.
 */
export function cumsum(x: Tensor, axis: number): Tensor {
  return run(cumsumKernel, [x], { axis });
}

/**
 * The running product along `axis`.
 *
 * @throws {ShapeError} if the axis does not exist.
 */
export function cumprod(x: Tensor, axis: number): Tensor {
  return run(cumprodKernel, [x], { axis });
}
