/**
 * The layers that all models are made of. Each constructor takes a cursor into the weights and
 * returns a function; activations are channel-major, `[B, C, H, W]` or `[B, C, N]`.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import {
  channelLinear,
  type ChannelLinearOptions,
  conv2d,
  type Conv2dOptions,
  groupNorm,
  layerNorm,
  tile,
} from "../kernels/mod.ts";
import type { Weights } from "./weights.ts";

/** A layer that maps one tensor. */
export type Layer = (x: Tensor) => Tensor;

/** A linear layer on channel-major tokens, `[B, K, N] → [B, M, N]`. */
export type Linear = (x: Tensor, options?: ChannelLinearOptions) => Tensor;

/** Linear layer (`torch.nn.Linear`), or a 1×1 convolution on tokens: the same product. */
export function linear(w: Weights, K: number, M: number, { bias = true } = {}): Linear {
  const weight = w.packed("weight", [M, K]);
  const b = bias ? w.tensor("bias", [M]) : null;
  return (x, options) => channelLinear(x, weight, b, { outputs: M, ...options });
}

/** Those of one guidance row for all: `rows` rows, copy after copy of x. */
export function repeatRows(x: Tensor, rows: number): Tensor {
  const [own, ...others] = x.shape;
  return own === rows ? x : tile(x, [rows / own, ...others.map(() => 1)]);
}

/** A convolution whose window and step are fixed; parts of a picture have a padding of their own. */
export type Conv = (
  x: Tensor,
  options?: Pick<Conv2dOptions, "embedding" | "residual" | "activation" | "padding">,
) => Tensor;

/** 2-d convolution (`torch.nn.Conv2d`) with a square window; default padding keeps the size. */
export function conv(
  w: Weights,
  channels: number,
  outputs: number,
  size: number,
  settings: { stride?: number; padding?: Conv2dOptions["padding"]; bias?: boolean } = {},
): Conv {
  return w.module(partConv(w, channels, outputs, size, settings));
}

/** {@link conv} for parts of a picture, which nobody observes. */
export function partConv(
  w: Weights,
  channels: number,
  outputs: number,
  size: number,
  { stride = 1, padding = (size - 1) / 2 as Conv2dOptions["padding"], bias = true } = {},
): Conv {
  const weight = w.packed("weight", [outputs, channels, size, size]);
  const b = bias ? w.tensor("bias", [outputs]) : null;
  return (x, options = {}) =>
    conv2d(x, weight, b, { kernel: [size, size], outputs, stride, padding, ...options });
}

/** Group norm (`torch.nn.GroupNorm`), optionally followed by SiLU. */
export function norm(
  w: Weights,
  channels: number,
  { groups, eps, silu = false }: { groups: number; eps: number; silu?: boolean },
): Layer {
  const weight = w.tensor("weight", [channels]);
  const bias = w.tensor("bias", [channels]);
  const activation = silu ? "silu" : "none";
  return (x) => {
    w.observe(() => groupNorm(x, groups, weight, bias, { eps }));
    return groupNorm(x, groups, weight, bias, { eps, activation });
  };
}

/** Layer norm over the channels of tokens `[B, C, N]` (`torch.nn.LayerNorm`). */
export function tokenNorm(w: Weights, channels: number, eps: number): Layer {
  const weight = w.tensor("weight", [channels]);
  const bias = w.tensor("bias", [channels]);
  return (x) => layerNorm(x, weight, bias, { axis: 1, eps });
}
