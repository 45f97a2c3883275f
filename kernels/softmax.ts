/**
 * Softmax along an axis, `e^(xᵢ − m) / Σⱼ e^(xⱼ − m)` with the largest element m, and its logarithm
 * `xᵢ − m − log Σⱼ e^(xⱼ − m)`.
 *
 * Three passes: maximum, sum, result. A row along memory is shared by a workgroup; rows across
 * memory go to a lane each, so that neighbouring lanes read neighbouring elements.
 *
 * Source: `torch.softmax`, `torch.log_softmax`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { normalizeAxis, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid, floatType, foldGroups, treeFold } from "./wgsl.ts";

interface Attributes {
  readonly axis: number;
}

type SoftmaxName = "softmax" | "log_softmax";

const RESULT: Readonly<Record<SoftmaxName, string>> = {
  softmax: "exp(v - most) / sum",
  log_softmax: "v - most - log(sum)",
};

/** Close to the lowest number of f32, which has no literal that every compiler takes. */
const LOWEST = "-3.4028234e38";

function laneBody(result: string): string {
  return `
    let first = i / p.inner * p.inner * p.length + i % p.inner;
    let end = first + p.length * p.inner;
    var most = ${LOWEST};
    for (var at = first; at < end; at += p.inner) { most = max(most, f32(x[at])); }
    var sum = 0.0;
    for (var at = first; at < end; at += p.inner) { sum += exp(f32(x[at]) - most); }
    for (var at = first; at < end; at += p.inner) {
      let v = f32(x[at]);
      out[at] = out_t(${result});
    }`;
}

function workgroupBody(result: string): string {
  return `
    let first = i * p.length + lane;
    let end = (i + 1u) * p.length;
    var most = ${LOWEST};
    for (var at = first; at < end; at += 64u) { most = max(most, f32(x[at])); }
    partial[lane] = most;
    ${treeFold("partial", (a, b) => `max(${a}, ${b})`)}
    most = partial[0];
    workgroupBarrier();
    var sum = 0.0;
    for (var at = first; at < end; at += 64u) { sum += exp(f32(x[at]) - most); }
    partial[lane] = sum;
    ${treeFold("partial", (a, b) => `${a} + ${b}`)}
    sum = partial[0];
    for (var at = first; at < end; at += 64u) {
      let v = f32(x[at]);
      out[at] = out_t(${result});
    }`;
}

function softmaxKernel(name: SoftmaxName): Kernel<Attributes> {
  const result = RESULT[name];
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
      const shared = inner === 1 && length >= 32;
      const grid = shared
        ? { workgroup: [64, 1, 1] as const, workgroups: foldGroups(count) }
        : flatGrid(count);
      dispatch({
        variant: `${shared}`,
        read: { x: scalars(x) },
        write: { out: scalars(output) },
        params: { count: u32(count), length: u32(length), inner: u32(inner) },
        ...grid,
        declarations: () => "var<workgroup> partial: array<f32, 64>;",
        main: () => `
          ${shared ? "let i = wg.y * grid.x + wg.x;" : FLAT_INDEX}
          if (i >= p.count) { return; }
          ${shared ? workgroupBody(result) : laneBody(result)}`,
      });
    },
    flops: (_inputs, output) => 7 * sizeOf(output.shape),
    reference([x], [shape], { axis }) {
      const at = normalizeAxis(name, axis, shape!.length);
      const length = shape![at];
      const inner = sizeOf(shape!.slice(at + 1));
      return x!.map((v, i) => {
        const first = i - Math.floor(i / inner) % length * inner;
        const row = Array.from({ length }, (_, r) => x![first + r * inner]);
        const most = row.reduce((a, b) => Math.max(a, b));
        const sum = row.reduce((all, value) => all + Math.exp(value - most), 0);
        return name === "softmax" ? Math.exp(v - most) / sum : v - most - Math.log(sum);
      });
    },
    cases: [
      { shapes: [[1]], attributes: { axis: 0 } },
      { shapes: [[2, 3, 77]], attributes: { axis: -1 } },
      { shapes: [[4, 5]], attributes: { axis: -1 } },
      { shapes: [[3, 17, 5]], attributes: { axis: 1 } },
      { shapes: [[70, 3]], attributes: { axis: 0 } },
      { shapes: [[2, 300]], attributes: { axis: 1 } },
      {
        shapes: [[2, 40]],
        attributes: { axis: 1 },
        values: [
          Array.from({ length: 80 }, (_, i) => 50 * Math.sin(i) + 1000 * Math.floor(i / 40)),
        ],
      },
    ],
    tolerance: { atol: 2e-6, rtol: 1e-5 },
  });
}

/** The kernels behind {@link softmax} and {@link logSoftmax}. */
export const softmaxKernels: Readonly<Record<SoftmaxName, Kernel<Attributes>>> = {
  softmax: softmaxKernel("softmax"),
  log_softmax: softmaxKernel("log_softmax"),
};

/**
 * The softmax along `axis`.
 *
 * @throws {ShapeError} if the axis does not exist.
 */
export function softmax(x: Tensor, axis: number): Tensor {
  return run(softmaxKernels.softmax, [x], { axis });
}

/**
 * The logarithm of the softmax along `axis`.
 *
 * @throws {ShapeError} if the axis does not exist.
 */
export function logSoftmax(x: Tensor, axis: number): Tensor {
  return run(softmaxKernels.log_softmax, [x], { axis });
}
