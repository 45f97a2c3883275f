/**
 * All operations on tensors, and with them the registry of their kernels.
 *
 * @module
 */

export { conv2d, type Conv2dOptions, type Padding } from "./conv2d.ts";
export { linear, type LinearOptions, matmul, type MatmulOptions } from "./matmul.ts";
export { channelLinear, type ChannelLinearOptions } from "./channel_linear.ts";
export { packPanels } from "./panels.ts";
export { quantize, type QuantizedWeights } from "./quantized.ts";
export { linearCombination } from "./linear_combination.ts";
export { assign, cast } from "./copy.ts";
export {
  broadcastTo,
  chunk,
  flip,
  narrow,
  permute,
  repeatInterleave,
  slice,
  tile,
} from "./rearrange.ts";
export { concat, stack } from "./concat.ts";
export { pad, type PadMode } from "./pad.ts";
export {
  abs,
  cos,
  erf,
  exp,
  floor,
  gelu,
  log,
  neg,
  quickGelu,
  reciprocal,
  relu,
  round,
  rsqrt,
  sigmoid,
  silu,
  sin,
  softplus,
  sqrt,
  square,
  tanh,
} from "./unary.ts";
export { clamp } from "./clamp.ts";
export { add, div, greater, maximum, minimum, mul, pow, sub } from "./binary.ts";
export { where } from "./where.ts";
export { geglu } from "./geglu.ts";
export { embedding, gather, type Indexes, indexSelect } from "./gather.ts";
export { gridSample, type GridSampleOptions } from "./grid_sample.ts";
export { interpolate, type InterpolateOptions } from "./interpolate.ts";
export { gaussianBlur } from "./gaussian_blur.ts";
export { edgeCandidates, edgeGradient } from "./edges.ts";
export { hysteresis } from "./hysteresis.ts";
export { avgPool2d, maxPool2d, type Pair } from "./pool.ts";
export {
  type Axes,
  max,
  mean,
  min,
  norm,
  prod,
  type ReduceOptions,
  std,
  sum,
  variance,
  type VarianceOptions,
} from "./reduce.ts";
export { argmax } from "./argmax.ts";
export { mergeSlots } from "./merge_slots.ts";
export { scatterMean } from "./scatter_mean.ts";
export { cumprod, cumsum } from "./cumulative.ts";
export { logSoftmax, softmax } from "./softmax.ts";
export { timestepEmbedding, type TimestepEmbeddingOptions } from "./time_embedding.ts";
export {
  attention,
  type AttentionMode,
  type AttentionOptions,
  crossFrameAttention,
  scaledDotProductAttention,
  type ScaledDotProductOptions,
} from "./attention.ts";
export { groupMoments } from "./group_moments.ts";
export { groupNorm, type GroupNormOptions } from "./group_norm.ts";
export { layerNorm, type LayerNormOptions } from "./layer_norm.ts";
export {
  type AttentionForm,
  type GemmForm,
  overrideVariants,
  type Tile,
  type VariantChoices,
  type Variants,
  type VariantSource,
} from "./variants.ts";
