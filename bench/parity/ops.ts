/**
 * The operations of reference files, each as a call of ours. References keep PyTorch's layouts.
 *
 * @module
 */

import { ops, type Tensor } from "../../mod.ts";
import { warpLatents } from "../../video/motion_field.ts";
import { choice, flag, number, numbers, pair, type Params, record } from "./params.ts";

/** Inputs by role; an optional one may be absent. */
export type Inputs = Readonly<Record<string, Tensor>>;

/** Computes one case. A tensor alone is the output `y`. */
export type Op = (inputs: Inputs, params: Params) => Tensor | Readonly<Record<string, Tensor>>;

/** Inputs that say where or which, and so are never rounded to half precision. */
export const COORDINATES: ReadonlySet<string> = new Set(["grid", "t"]);

type Unary = (x: Tensor) => Tensor;
type Binary = (a: Tensor, b: Tensor) => Tensor;

const unary = (f: Unary): Op => ({ x }) => f(x);
const binary = (f: Binary): Op => ({ a, b }) => f(a, b);

type Reduce = (x: Tensor, axes: ops.Axes, options: ops.VarianceOptions) => Tensor;

const reduce = (f: Reduce): Op => ({ x }, p) => {
  const axes = p.axes ? numbers(p, "axes") : null;
  return f(x, axes, { keepdim: flag(p, "keepdim", false), unbiased: flag(p, "unbiased", true) });
};

const axis = (p: Params) => number(p, "axis", -1);

/** `padding` and, where given, `pad_before`: zeros added at the four sides. */
function sides(p: Params): ops.Padding {
  const [rows, columns] = pair(p, "padding", 0);
  const before = record(p, "pad_before");
  return {
    top: rows + number(before, "top", 0),
    bottom: rows + number(before, "bottom", 0),
    left: columns + number(before, "left", 0),
    right: columns + number(before, "right", 0),
  };
}

const sdpa: Op = ({ q, k, v, bias }, p) =>
  ops.scaledDotProductAttention(q, k, v, {
    scale: number(p, "scale", q.shape[3] ** -0.5),
    causal: flag(p, "causal", false),
    bias,
  });

const INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "area"] as const;

/** All operations, by their name in reference files. */
export const OPS: ReadonlyMap<string, Op> = new Map(Object.entries<Op>({
  conv2d: ({ x, w, b }, p) =>
    ops.conv2d(x, w, b ?? null, {
      stride: pair(p, "stride", 1),
      dilation: pair(p, "dilation", 1),
      groups: number(p, "groups", 1),
      padding: sides(p),
    }),
  upsample_nearest2x_conv3x3: ({ x, w, b }) =>
    ops.conv2d(ops.interpolate(x, { scaleFactor: 2 }), w, b ?? null, { padding: 1 }),
  linear: ({ x, w, b }) => ops.linear(x, w, b ?? null),
  matmul: binary((a, b) => ops.matmul(a, b)),
  matmul_transpose_b: binary((a, b) => ops.matmul(a, b, { transposeB: true })),
  geglu: ({ x, w, b }) => ops.geglu(ops.linear(x, w, b ?? null)),

  group_norm: ({ x, w, b }, p) =>
    ops.groupNorm(x, number(p, "groups"), w ?? null, b ?? null, { eps: number(p, "eps", 1e-5) }),
  layer_norm: ({ x, w, b }, p) => {
    const axes = numbers(p, "normalized_shape").length;
    return ops.layerNorm(x, w ?? null, b ?? null, {
      axis: -axes,
      axes,
      eps: number(p, "eps", 1e-5),
    });
  },
  softmax: ({ x }, p) => ops.softmax(x, axis(p)),
  log_softmax: ({ x }, p) => ops.logSoftmax(x, axis(p)),
  sdpa,
  sdpa_bias: sdpa,
  cross_frame_attention: ({ q, k, v }, p) =>
    ops.crossFrameAttention(q, k, v, {
      mode: choice(p, "mode", ["self", "first", "previous", "first+previous", "all"]),
      frames: number(p, "frames"),
    }),

  silu: unary(ops.silu),
  gelu_erf: unary(ops.gelu),
  gelu_tanh: unary((x) => ops.gelu(x, { approximate: "tanh" })),
  quick_gelu: unary(ops.quickGelu),
  sigmoid: unary(ops.sigmoid),
  tanh: unary(ops.tanh),
  relu: unary(ops.relu),
  exp: ({ x }, p) => ops.exp(p.note === "exp(x/4)" ? ops.mul(x, 0.25) : x),
  softplus: unary(ops.softplus),
  erf: unary(ops.erf),
  sin: unary(ops.sin),
  cos: unary(ops.cos),
  abs: unary(ops.abs),
  neg: unary(ops.neg),
  square: unary(ops.square),
  sqrt: unary(ops.sqrt),
  rsqrt: unary(ops.rsqrt),
  log: unary(ops.log),
  reciprocal: unary(ops.reciprocal),
  round: unary(ops.round),
  floor: unary(ops.floor),
  clamp: ({ x }, p) => ops.clamp(x, number(p, "min", -Infinity), number(p, "max", Infinity)),

  add: binary(ops.add),
  sub: binary(ops.sub),
  mul: binary(ops.mul),
  div: binary(ops.div),
  pow: binary(ops.pow),
  maximum: binary(ops.maximum),
  minimum: binary(ops.minimum),
  greater: binary(ops.greater),
  where: ({ cond, a, b }) => ops.where(cond, a, b),

  sum: reduce(ops.sum),
  mean: reduce(ops.mean),
  var: reduce(ops.variance),
  std: reduce(ops.std),
  max: reduce(ops.max),
  min: reduce(ops.min),
  prod: reduce(ops.prod),
  norm: reduce(ops.norm),
  cumsum: ({ x }, p) => ops.cumsum(x, axis(p)),
  cumprod: ({ x }, p) => ops.cumprod(x, axis(p)),
  argmax: ({ x }, p) =>
    ops.argmax(x, typeof p.axis === "number" ? p.axis : null, {
      keepdim: flag(p, "keepdim", false),
    }),

  grid_sample: ({ x, grid }, p) =>
    ops.gridSample(x, grid, {
      mode: choice(p, "mode", ["bilinear", "nearest", "bicubic"], "bilinear"),
      paddingMode: choice(p, "padding", ["zeros", "border", "reflection"], "zeros"),
      alignCorners: flag(p, "align_corners", false),
    }),
  interpolate: ({ x }, p) =>
    ops.interpolate(x, {
      ...(p.size ? { size: pair(p, "size", 1) } : { scaleFactor: pair(p, "scale_factor", 1) }),
      mode: choice(p, "mode", INTERPOLATIONS, "nearest"),
      alignCorners: flag(p, "align_corners", false),
      antialias: flag(p, "antialias", false),
    }),
  avg_pool2d: ({ x }, p) => {
    const kernel = pair(p, "kernel", 1);
    return ops.avgPool2d(
      x,
      kernel,
      p.stride ? pair(p, "stride", 1) : kernel,
      pair(p, "padding", 0),
    );
  },
  dilation_5x5: ({ x }) => ops.maxPool2d(x, 5, 1, 2),
  t2v_zero_warp: ({ latent }, p) => {
    const motion = {
      x: number(p, "motion_field_strength_x"),
      y: number(p, "motion_field_strength_y"),
    };
    return ops.concat(numbers(p, "frame_ids").map((id) => warpLatents(latent, id, motion)), 0);
  },

  permute: ({ x }, p) => ops.permute(x, numbers(p, "perm")),
  permute_reshape: ({ x }, p) => ops.permute(x, numbers(p, "perm")).reshape(numbers(p, "shape")),
  reshape: ({ x }, p) => x.reshape(numbers(p, "shape")),
  concat: (t, p) => ops.concat(Object.values(t), axis(p)),
  stack: (t, p) => ops.stack(Object.values(t), axis(p)),
  chunk: ({ x }, p) =>
    Object.fromEntries(ops.chunk(x, number(p, "n"), axis(p)).map((y, i) => [`y${i}`, y])),
  slice: ({ x }, p) =>
    ops.slice(
      x,
      numbers(p, "starts"),
      numbers(p, "ends"),
      p.axes ? numbers(p, "axes") : undefined,
      p.steps ? numbers(p, "steps") : undefined,
    ),
  flip: ({ x }, p) => ops.flip(x, numbers(p, "axes")),
  tile: ({ x }, p) => ops.tile(x, numbers(p, "reps")),
  repeat_interleave: ({ x }, p) => ops.repeatInterleave(x, number(p, "repeats"), axis(p)),
  broadcast_to: ({ x }, p) => ops.broadcastTo(x, numbers(p, "shape")),
  pad: ({ x }, p) => ops.pad(x, numbers(p, "pad_last_to_first"), { value: number(p, "value", 0) }),
  pad_reflect: ({ x }, p) => ops.pad(x, numbers(p, "pad_last_to_first"), { mode: "reflect" }),
  embedding: ({ w, ids }) => ops.embedding(w, ids),
  index_select: ({ x, ids }, p) => ops.indexSelect(x, axis(p), ids),
  gather: ({ x, ids }, p) => ops.gather(x, axis(p), ids),
  timestep_embedding: ({ t }, p) =>
    ops.timestepEmbedding(t, number(p, "dim"), {
      flipSinToCos: flag(p, "flip_sin_to_cos", false),
      downscaleFreqShift: number(p, "downscale_freq_shift", 1),
      maxPeriod: number(p, "max_period", 10000),
    }),
}));
