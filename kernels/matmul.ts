/**
 * Matrix products, `y[…, m, n] = Σₖ a[…, m, k] · b[…, k, n]`, with NumPy broadcasting of the leading
 * axes; and PyTorch's linear layer, which is a matrix product with a bias.
 *
 * Source: `torch.matmul`, `torch.nn.functional.linear`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, type TensorSpec } from "../core/kernel.ts";
import {
  broadcastShapes,
  broadcastStrides,
  formatShape,
  sameShape,
  type Shape,
  sizeOf,
} from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { type Activation, gemm, type GemmForm } from "./gemm.ts";

interface Attributes {
  /** `a` is stored `[…, K, M]`. */
  readonly transposeA: boolean;
  /** `b` is stored `[…, N, K]`. */
  readonly transposeB: boolean;
  /** What `bias` runs along: `"row"` has M elements, `"column"` N. */
  readonly biasAxis: "row" | "column";
  readonly activation: Activation;
  /** Forces a form, for tests. */
  readonly form?: GemmForm;
}

const PLAIN: Attributes = {
  transposeA: false,
  transposeB: false,
  biasAxis: "row",
  activation: "none",
};

interface Geometry {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly batch: Shape;
  readonly batchA: Shape;
  readonly batchB: Shape;
}

function geometry(a: Shape, b: Shape, { transposeA, transposeB }: Attributes): Geometry {
  if (a.length < 2 || b.length < 2) {
    throw new ShapeError(
      `matmul: both tensors need at least 2 axes, got ${formatShape(a)} and ${formatShape(b)}`,
    );
  }
  const [rowsA, columnsA] = a.slice(-2);
  const [rowsB, columnsB] = b.slice(-2);
  const [M, K] = transposeA ? [columnsA, rowsA] : [rowsA, columnsA];
  const [N, KB] = transposeB ? [rowsB, columnsB] : [columnsB, rowsB];
  if (K !== KB) {
    throw new ShapeError(
      `matmul: the summed axes must agree, got ${K} in ${formatShape(a)}` +
        `${transposeA ? " (transposed)" : ""} and ${KB} in ${formatShape(b)}` +
        `${transposeB ? " (transposed)" : ""}`,
    );
  }
  const batchA = a.slice(0, -2);
  const batchB = b.slice(0, -2);
  return { M, N, K, batch: broadcastShapes("matmul", batchA, batchB), batchA, batchB };
}

/** Merges neighbouring batch axes whose strides continue each other in both operands. */
function mergeBatch(batch: Shape, a: readonly number[], b: readonly number[]) {
  const extents: number[] = [];
  const strides: [number, number][] = [];
  batch.forEach((extent, i) => {
    if (extent === 1) return;
    const last = extents.length - 1;
    const continues = last >= 0 && strides[last][0] === a[i] * extent &&
      strides[last][1] === b[i] * extent;
    if (continues) {
      extents[last] *= extent;
      strides[last] = [a[i], b[i]];
    } else {
      extents.push(extent);
      strides.push([a[i], b[i]]);
    }
  });
  return { extents, a: strides.map(([s]) => s), b: strides.map(([, s]) => s) };
}

/** The kernel behind {@link matmul} and {@link linear}. */
export const matmulKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "matmul",
  inputs: ["a", "b", "bias", "residual"],
  output([a, b, bias, residual], attributes) {
    if (!a || !b) throw new ShapeError("matmul: needs two tensors");
    const { M, N, batch } = geometry(a.shape, b.shape, attributes);
    const shape = [...batch, M, N];
    const length = attributes.biasAxis === "row" ? M : N;
    if (bias && !sameShape(bias.shape, [length])) {
      throw new ShapeError(
        `matmul: the bias must have shape [${length}], got [${bias.shape}]`,
      );
    }
    if (residual && !sameShape(residual.shape, shape)) {
      throw new ShapeError(
        `matmul: the residual must have the output's shape [${shape}], got [${residual.shape}]`,
      );
    }
    return { shape, dtype: activationType(a, b, attributes) };
  },
  launch(launch) {
    const { inputs, output, attributes } = launch;
    const [a, b, bias, residual] = inputs as [Tensor, Tensor, Tensor | null, Tensor | null];
    const { M, N, K, batch, batchA, batchB } = geometry(a.shape, b.shape, attributes);
    const merged = mergeBatch(
      batch,
      broadcastStrides(batchA, batch).map((stride) => stride * M * K),
      broadcastStrides(batchB, batch).map((stride) => stride * K * N),
    );
    if (merged.extents.length > 4) {
      throw new ShapeError(
        `matmul: batches of ${formatShape(batchA)} and ${formatShape(batchB)} interleave in more ` +
          `than four ways; broadcast one of them first`,
      );
    }
    const { transposeA, transposeB, biasAxis, activation, form } = attributes;
    gemm(launch, {
      a: {
        tensor: a,
        offset: 0,
        major: transposeA ? 1 : K,
        step: transposeA ? M : 1,
        batch: merged.a,
      },
      b: {
        tensor: b,
        offset: 0,
        major: transposeB ? K : 1,
        step: transposeB ? 1 : N,
        batch: merged.b,
      },
      out: { tensor: output, offset: 0, major: N, batch: M * N },
      M,
      N,
      K,
      batch: merged.extents,
      bias,
      biasAxis,
      embedding: null,
      firstMatrix: 0,
      residual,
      activation,
      form,
    });
  },
  flops([a], { shape }, { transposeA }) {
    return 2 * sizeOf(shape) * (a?.shape.at(transposeA ? -2 : -1) ?? 0);
  },
  reference([a, b, bias, residual], [shapeA, shapeB], attributes, output) {
    const { M, N, K, batch, batchA, batchB } = geometry(shapeA!, shapeB!, attributes);
    const { transposeA, transposeB, biasAxis, activation } = attributes;
    const stridesA = broadcastStrides(batchA, batch);
    const stridesB = broadcastStrides(batchB, batch);
    const out = new Float64Array(sizeOf(output));
    for (let z = 0; z < sizeOf(batch); z++) {
      let rest = z;
      let za = 0;
      let zb = 0;
      for (let axis = batch.length - 1; axis >= 0; axis--) {
        za += (rest % batch[axis]) * stridesA[axis];
        zb += (rest % batch[axis]) * stridesB[axis];
        rest = Math.floor(rest / batch[axis]);
      }
      for (let m = 0; m < M; m++) {
        for (let n = 0; n < N; n++) {
          let sum = bias ? bias[biasAxis === "row" ? m : n] : 0;
          for (let k = 0; k < K; k++) {
            sum += a![za * M * K + (transposeA ? k * M + m : m * K + k)] *
              b![zb * K * N + (transposeB ? n * K + k : k * N + n)];
          }
          const at = (z * M + m) * N + n;
          sum += residual?.[at] ?? 0;
          out[at] = activation === "silu" ? sum / (1 + Math.exp(-sum)) : sum;
        }
      }
    }
    return out;
  },
  // Sums of a thousand terms.
  tolerance: { atol: 1e-4, rtol: 2e-4 },
  cases: [
    { shapes: [[1, 1], [1, 1], null, null], attributes: PLAIN },
    { shapes: [[65, 33], [33, 17], null, null], attributes: PLAIN },
    { shapes: [[24, 40], [40, 72], null, null], attributes: PLAIN },
    { shapes: [[3, 1, 6, 10], [1, 4, 10, 6], null, null], attributes: PLAIN },
    { shapes: [[2, 1, 3, 5, 4], [3, 1, 4, 7], null, null], attributes: PLAIN },
    { shapes: [[4, 18, 40], [4, 22, 40], null, null], attributes: { ...PLAIN, transposeB: true } },
    {
      shapes: [[36, 48], [2, 36, 256], [48], [2, 48, 256]],
      attributes: { ...PLAIN, transposeA: true },
    },
    // Sums longer than a window.
    { shapes: [[33, 1100], [1100, 68], null, null], attributes: PLAIN },
    { shapes: [[2, 40, 1030], [2, 1030, 9], null, null], attributes: PLAIN },
    {
      shapes: [[2, 9, 20], [30, 20], [30], [2, 9, 30]],
      attributes: { ...PLAIN, transposeB: true, biasAxis: "column", activation: "silu" },
    },
    { shapes: [[130, 70], [70, 130], null, null], attributes: { ...PLAIN, activation: "silu" } },
  ].flatMap(({ shapes, attributes }) =>
    (["texels", "registers", "tiles"] as const).map((form) => ({
      shapes,
      attributes: { ...attributes, form } as Attributes,
    }))
  ),
});

/** Weights may be of another type than activations: the result is stored as the activations are. */
function activationType(a: TensorSpec, b: TensorSpec, { transposeA }: Attributes) {
  return transposeA ? b.dtype : a.dtype;
}

/** Settings of {@link matmul}. */
export interface MatmulOptions {
  /** `a` is stored `[…, K, M]`. Default false. */
  transposeA?: boolean;
  /** `b` is stored `[…, N, K]`. Default false. */
  transposeB?: boolean;
}

/**
 * `a @ b`, as `torch.matmul`: `[…, M, K] × […, K, N] → […, M, N]`; leading axes broadcast, and a
 * 1-d tensor is a row (left) or a column (right) whose axis vanishes from the result.
 *
 * @throws {ShapeError} if the summed axes differ or the leading axes do not broadcast.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const left = a.shape.length === 1 ? a.reshape([1, a.size]) : a;
  const right = b.shape.length === 1 ? b.reshape([b.size, 1]) : b;
  const product = run(matmulKernel, [left, right, null, null], { ...PLAIN, ...options });
  if (left === a && right === b) return product;
  const shape = [...product.shape];
  if (right !== b) shape.pop();
  if (left !== a) shape.splice(shape.length - (right === b ? 2 : 1), 1);
  return product.reshape(shape);
}

/** Settings of the linear layers. */
export interface LinearOptions {
  /** Added to the result, before the activation. */
  residual?: Tensor | null;
  /** Default `"none"`. */
  activation?: Activation;
}

/**
 * `x · weightᵀ + bias` over the last axis, as `torch.nn.functional.linear`:
 * x `[…, K]`, weight `[N, K]`, bias `[N]` → `[…, N]`.
 *
 * @throws {ShapeError} if the widths do not agree.
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null = null,
  { residual = null, activation = "none" }: LinearOptions = {},
): Tensor {
  const rows = x.shape.length === 1 ? x.reshape([1, x.size]) : x;
  const y = run(matmulKernel, [rows, weight, bias, residual], {
    transposeA: false,
    transposeB: true,
    biasAxis: "column",
    activation,
  });
  return rows === x ? y : y.reshape([y.size]);
}
