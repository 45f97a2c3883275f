/**
 * Linear layer on channel-major tokens, `y[b, m, n] = Σₖ w[m, k] · x[b, k, n] + bias[m]`: a product
 * without a transpose, because the models keep their activations as `[B, C, N]` and their weights
 * in panels.
 *
 * Source: `torch.nn.functional.linear`, on the second axis.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import {
  defineKernel,
  type Kernel,
  type KernelCase,
  run,
  type TensorSpec,
} from "../core/kernel.ts";
import { sameShape, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { type Activation, gemm, type GemmForm } from "./gemm.ts";
import { PANEL, panelShape } from "./panels.ts";
import {
  checkScale,
  quantizedCase,
  type QuantizedWeights,
  weightReader,
  weightsOf,
} from "./quantized.ts";

interface Attributes {
  readonly outputs: number;
  readonly activation: Activation;
  /** Forces a form, for tests. */
  readonly form?: GemmForm;
}

/** The kernel behind {@link channelLinear}. */
export const channelLinearKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "channel_linear",
  inputs: ["x", "weight", "bias", "residual", "scale"],
  output([x, weight, bias, residual, scale = null], { outputs }) {
    if (x?.shape.length !== 3) {
      throw new ShapeError(`channel_linear: x must have axes [B, K, N], got [${x?.shape}]`);
    }
    if (!weight) throw new ShapeError("channel_linear: needs a weight");
    const [B, K, N] = x.shape;
    const shape = [B, outputs, N];
    const rule = (what: string, tensor: TensorSpec | null, wanted: Shape) => {
      if (tensor && !sameShape(tensor.shape, wanted)) {
        throw new ShapeError(
          `channel_linear: ${what} must have shape [${wanted}], got [${tensor.shape}]`,
        );
      }
    };
    rule(
      `the weight of ${K} inputs and ${outputs} outputs`,
      weight,
      panelShape(outputs, K, weight.dtype),
    );
    checkScale("channel_linear", weight, scale, outputs);
    rule("the bias", bias, [outputs]);
    rule("the residual", residual, shape);
    return { shape, dtype: x.dtype };
  },
  launch(launch) {
    const { inputs, output, attributes } = launch;
    const [x, panels, bias, residual, scale] = inputs as [Tensor, Tensor, ...(Tensor | null)[]];
    const [B, K, N] = x.shape;
    const { outputs: M, activation, form } = attributes;
    gemm(launch, {
      a: { panels, matrices: 1, scale },
      b: { tensor: x, offset: 0, major: 1, step: N, batch: [K * N] },
      out: { tensor: output, offset: 0, major: N, batch: M * N },
      M,
      N,
      K,
      batch: [B],
      bias,
      biasAxis: "row",
      embedding: null,
      firstMatrix: 0,
      residual,
      activation,
      form,
    });
  },
  flops: ([x], { shape }) => 2 * sizeOf(shape) * (x?.shape[1] ?? 0),
  reference([x, weight, bias, residual, scale], [shape], { outputs, activation }, output) {
    const [B, K, N] = shape!;
    const [, depth] = panelShape(outputs, K);
    const w = weightReader(weight!, depth, scale);
    const out = new Float64Array(sizeOf(output));
    for (let b = 0; b < B; b++) {
      for (let m = 0; m < outputs; m++) {
        for (let n = 0; n < N; n++) {
          let sum = bias?.[m] ?? 0;
          for (let k = 0; k < K; k++) sum += w(m, k) * x![(b * K + k) * N + n];
          const at = (b * outputs + m) * N + n;
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
    ...[
      [48, 36, 256],
      [64, 36, 64],
      [96, 36, 16],
      [20, 36, 8],
      [36, 36, 100],
      [40, 40, 1],
      [4, 36, 4096],
      [34, 38, 68],
      [40, 36, 99],
      [36, 1032, 76],
      [70, 1100, 12],
      [65, 530, 3],
    ].flatMap(inForms),
    // Rows that are no whole vectors, and nothing to add to them.
    ...[[36, 38, 70], [33, 2100, 67]].flatMap((sizes) =>
      inForms(sizes).map(({ shapes, ...rest }) => ({
        shapes: [...shapes.slice(0, 3), null],
        ...rest,
      }))
    ),
    // Few columns, but enough work for a shader of their own.
    ...[[1160, 1210, 3], [700, 1000, 6], [520, 700, 12], [360, 330, 36]]
      .map((sizes) => inForms(sizes)[0]),
    quantizedCase(inForms([520, 700, 12])[0], 520, 700),
    // Of 8 bits.
    ...[[36, 38, 68], [65, 530, 3], [3, 37, 70], [17, 2100, 66]].flatMap(([M, K, N]) =>
      inForms([M, K, N]).map((example) => quantizedCase(example, M, K))
    ),
  ],
});

function inForms([M, K, N]: readonly number[]): KernelCase<Attributes>[] {
  return (["texels", "registers", "tiles"] as const).map((form) => ({
    shapes: [[2, K, N], panelShape(M, K), [M], [2, M, N]],
    attributes: { outputs: M, activation: M === 36 ? "silu" : "none", form },
  }));
}

/** Settings of the linear layer. */
export interface ChannelLinearOptions {
  /** Number of outputs. Default: all that the panels have room for. */
  outputs?: number;
  /** Added to the result, before the activation. */
  residual?: Tensor | null;
  /** Default `"none"`. */
  activation?: Activation;
}

/**
 * Linear layer on channel-major tokens: x `[B, K, N]`, weight in panels (`packPanels`) or of 8 bits
 * (`quantize`), bias `[M]` → `[B, M, N]`.
 *
 * @throws {ShapeError} if the widths do not agree.
 */
export function channelLinear(
  x: Tensor,
  weight: Tensor | QuantizedWeights,
  bias: Tensor | null = null,
  options: ChannelLinearOptions = {},
): Tensor {
  const { panels, scale } = weightsOf(weight);
  const { outputs = panels.shape[0] * PANEL, residual = null, activation = "none" } = options;
  return run(channelLinearKernel, [x, panels, bias, residual, scale], { outputs, activation });
}
