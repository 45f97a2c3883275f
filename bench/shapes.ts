/**
 * The calls that the models make, walked from their configurations.
 *
 * The walks follow `models/`: same layers, same order, sizes instead of tensors. A test holds them
 * against a recording of the real model and against the published totals of Stable Diffusion 1.5.
 *
 * @module
 */

import type { Kernel, KernelCase } from "../core/kernel.ts";
import type { Shape } from "../core/shape.ts";
import { attentionKernel } from "../kernels/attention.ts";
import { panelShape } from "../kernels/panels.ts";
import { channelLinearKernel } from "../kernels/channel_linear.ts";
import { binaryKernels } from "../kernels/binary.ts";
import { concatKernel } from "../kernels/concat.ts";
import { conv2dKernel } from "../kernels/conv2d.ts";
import { stridedCopyKernel } from "../kernels/copy.ts";
import { indexSelectKernel } from "../kernels/gather.ts";
import { gegluKernel } from "../kernels/geglu.ts";
import { groupNormKernel } from "../kernels/group_norm.ts";
import { interpolateKernel } from "../kernels/interpolate.ts";
import { layerNormKernel } from "../kernels/layer_norm.ts";
import { matmulKernel } from "../kernels/matmul.ts";
import { timestepEmbeddingKernel } from "../kernels/time_embedding.ts";
import { unaryKernels } from "../kernels/unary.ts";
import type { UNetConfig, VaeConfig } from "../models/config.ts";
import type { PartConfigs } from "../models/sd15.ts";
import { callOf, type Workload } from "./workload.ts";

/** The workloads of one model evaluation, or of one purpose. */
export interface Suite {
  /** What tables call it. */
  readonly name: string;
  /** Whether `calls` add up to an evaluation of a model. */
  readonly isModel: boolean;
  /** Different calls, each once. */
  readonly workloads: readonly Workload[];
}

/** What a convolution has besides its weights and its bias. */
export interface ConvolutionOptions {
  /** Pixels from one patch to the next, default 1. */
  readonly stride?: number;
  /** Whether a number is added to each channel. */
  readonly embedding?: boolean;
  /** Whether a tensor of the output's shape is added. */
  readonly residual?: boolean;
}

/** A convolution with weights in panels, padded so that stride 1 keeps the size of the image. */
export function convolution(
  [B, C, H, W]: Shape,
  O: number,
  size: number,
  { stride = 1, embedding = false, residual = false }: ConvolutionOptions = {},
): Workload {
  const pad = (size - 1) / 2;
  const out = [B, O, H / stride, W / stride];
  const extras = [[O], embedding ? [B, O] : null, residual ? out : null];
  return callOf(conv2dKernel, [[B, C, H, W], panelShape(O, C * size * size), ...extras], {
    outputs: O,
    kernel: [size, size],
    stride: [stride, stride],
    dilation: [1, 1],
    padding: { top: pad, bottom: pad, left: pad, right: pad },
    groups: 1,
    activation: "none",
  });
}

/** Collects calls, equal ones once. The methods are the layers of `models/layers.ts`. */
class Walk {
  readonly #calls = new Map<string, Workload>();

  get workloads(): Workload[] {
    return [...this.#calls.values()];
  }

  add<A>(
    kernel: Kernel<A>,
    shapes: readonly (Shape | null)[],
    attributes: A,
    given: Pick<KernelCase<A>, "dtypes" | "values"> = {},
  ): void {
    const key = JSON.stringify([kernel.name, shapes, attributes]);
    const calls = (this.#calls.get(key)?.calls ?? 0) + 1;
    this.#calls.set(key, { kernel, input: { shapes, attributes, ...given }, calls });
  }

  conv(x: Shape, O: number, size: number, options: ConvolutionOptions = {}): void {
    const { kernel, input } = convolution(x, O, size, options);
    this.add(kernel, input.shapes, input.attributes);
  }

  /** On channel-major tokens. */
  linear([B, K, N]: Shape, M: number, { bias = true, residual = false } = {}): void {
    const extras = [bias ? [M] : null, residual ? [B, M, N] : null];
    this.add(channelLinearKernel, [[B, K, N], panelShape(M, K), ...extras], {
      outputs: M,
      activation: "none",
    });
  }

  /** On rows. */
  rowLinear([B, K]: Shape, N: number, activation: "none" | "silu" = "none"): void {
    this.add(matmulKernel, [[B, K], [N, K], [N], null], {
      transposeA: false,
      transposeB: true,
      biasAxis: "column",
      activation,
    });
  }

  norm(x: Shape, groups: number, eps: number, activation: "none" | "silu" = "none"): void {
    this.add(groupNormKernel, [x, [x[1]], [x[1]]], { groups, eps, activation });
  }

  tokenNorm(x: Shape): void {
    this.add(layerNormKernel, [x, [x[1]], [x[1]]], { axis: 1, axes: 1, eps: 1e-5 });
  }

  attention(q: Shape, kv: Shape, heads: number, causal = false): void {
    const frames = q[0] / kv[0];
    this.add(attentionKernel, [q, kv, kv, null], { heads, causal, frames, kvFrames: 1 });
  }

  resnet(
    [B, C, H, W]: Shape,
    O: number,
    { groups, eps, timeWidth }: { groups: number; eps: number; timeWidth: number | null },
  ): void {
    this.norm([B, C, H, W], groups, eps, "silu");
    if (timeWidth) this.rowLinear([B, timeWidth], O);
    this.conv([B, C, H, W], O, 3, { embedding: timeWidth !== null });
    this.norm([B, O, H, W], groups, eps, "silu");
    if (C !== O) this.conv([B, C, H, W], O, 1);
    this.conv([B, O, H, W], O, 3, { residual: true });
  }

  upsample([B, C, H, W]: Shape): void {
    this.add(interpolateKernel, [[B, C, H, W]], {
      mode: "nearest",
      size: [2 * H, 2 * W],
      ratio: [0.5, 0.5],
      alignCorners: false,
      antialias: false,
    });
    this.conv([B, C, 2 * H, 2 * W], C, 3);
  }

  transformer([B, C, H, W]: Shape, heads: number, groups: number, text: Shape): void {
    const x = [B, C, H * W];
    this.norm([B, C, H, W], groups, 1e-6);
    this.linear(x, C);
    this.tokenNorm(x);
    for (let i = 0; i < 3; i++) this.linear(x, C, { bias: false });
    this.attention(x, x, heads);
    this.linear(x, C, { residual: true });
    this.tokenNorm(x);
    this.linear(x, C, { bias: false });
    this.attention(x, [text[0], C, text[2]], heads);
    this.linear(x, C, { residual: true });
    this.tokenNorm(x);
    this.linear(x, 8 * C);
    this.add(gegluKernel, [[B, 8 * C, H * W]], { axis: 1 });
    this.linear([B, 4 * C, H * W], C, { residual: true });
    this.linear(x, C, { residual: true });
  }
}

/** What an evaluation works on. */
export interface Extent {
  /** Rows of the batch: frames times guidance rows. */
  readonly rows: number;
  /** Rows of text; each serves `rows / textRows` rows. */
  readonly textRows: number;
  /** Height and width of the latents. */
  readonly side: number;
}

/** Tokens of a text: the longest that CLIP takes, to which shorter ones are padded. */
const TOKENS = 77;

/**
 * The calls of one evaluation of the UNet, except the keys and values of the text, which are made
 * once a prompt ({@link textWorkloads}).
 */
export function unetWorkloads(config: UNetConfig, { rows, textRows, side }: Extent): Workload[] {
  const walk = new Walk();
  const { blockOutChannels: widths, layersPerBlock, normNumGroups: groups, heads } = config;
  const timeWidth = 4 * widths[0];
  const text = [textRows, config.crossAttentionDim, TOKENS];
  const block = { groups, eps: config.normEps, timeWidth };
  const top = widths.length - 1;
  walk.add(timestepEmbeddingKernel, [[1]], {
    dim: widths[0],
    flipSinToCos: config.flipSinToCos,
    downscaleFreqShift: config.freqShift,
    maxPeriod: 10000,
  });
  walk.rowLinear([1, widths[0]], timeWidth, "silu");
  walk.rowLinear([1, timeWidth], timeWidth);
  walk.add(unaryKernels.silu, [[rows, timeWidth]], {});

  let s = side;
  let C = widths[0];
  walk.conv([rows, config.inChannels, s, s], C, 3);
  const skips = [C];
  widths.forEach((width, i) => {
    for (let layer = 0; layer < layersPerBlock; layer++) {
      walk.resnet([rows, C, s, s], C = width, block);
      if (config.downAttention[i]) walk.transformer([rows, C, s, s], heads[i], groups, text);
      skips.push(C);
    }
    if (i === top) return;
    walk.conv([rows, C, s, s], C, 3, { stride: 2 });
    s /= 2;
    skips.push(C);
  });

  walk.resnet([rows, C, s, s], C, block);
  walk.transformer([rows, C, s, s], heads[top], groups, text);
  walk.resnet([rows, C, s, s], C, block);

  [...widths].reverse().forEach((width, i) => {
    for (let layer = 0; layer <= layersPerBlock; layer++) {
      const skip = skips.pop() ?? 0;
      walk.add(concatKernel, [[rows, C, s, s], [rows, skip, s, s]], { axis: 1, stack: false });
      walk.resnet([rows, C + skip, s, s], width, block);
      C = width;
      if (config.upAttention[i]) walk.transformer([rows, C, s, s], heads[top - i], groups, text);
    }
    if (i === top) return;
    walk.upsample([rows, C, s, s]);
    s *= 2;
  });
  walk.norm([rows, C, s, s], groups, config.normEps, "silu");
  walk.conv([rows, C, s, s], config.outChannels, 3);
  return walk.workloads;
}

/** The calls that decode one picture from latents of `side` × `side`. */
export function vaeWorkloads(config: VaeConfig, side: number): Workload[] {
  const walk = new Walk();
  const { normNumGroups: groups, latentChannels, layersPerBlock } = config;
  const widths = [...config.blockOutChannels].reverse();
  const block = { groups, eps: 1e-6, timeWidth: null };
  let s = side;
  let C = widths[0];
  walk.conv([1, latentChannels, s, s], latentChannels, 1);
  walk.conv([1, latentChannels, s, s], C, 3);
  walk.resnet([1, C, s, s], C, block);
  walk.norm([1, C, s, s], groups, 1e-6);
  const tokens = [1, C, s * s];
  for (let i = 0; i < 3; i++) walk.linear(tokens, C);
  walk.attention(tokens, tokens, 1);
  walk.linear(tokens, C, { residual: true });
  walk.resnet([1, C, s, s], C, block);
  widths.forEach((width, i) => {
    for (let layer = 0; layer <= layersPerBlock; layer++) {
      walk.resnet([1, C, s, s], width, block);
      C = width;
    }
    if (i === widths.length - 1) return;
    walk.upsample([1, C, s, s]);
    s *= 2;
  });
  walk.norm([1, C, s, s], groups, 1e-6, "silu");
  walk.conv([1, C, s, s], config.outChannels, 3);
  return walk.workloads;
}

/** The calls that encode `rows` texts, and project them for the UNet's cross-attention. */
export function textWorkloads({ text_encoder: clip, unet }: PartConfigs, rows: number): Workload[] {
  const walk = new Walk();
  const { hiddenSize: C, intermediateSize, vocabSize, numAttentionHeads } = clip;
  const x = [rows, C, TOKENS];
  const ids = Array.from({ length: rows * TOKENS }, (_, i) => i * 997 % vocabSize);
  walk.add(indexSelectKernel, [[vocabSize, C], [rows, TOKENS]], { axis: 0 }, {
    dtypes: [null, "i32"],
    values: [null, ids],
  });
  walk.add(binaryKernels.add, [[rows, TOKENS, C], [TOKENS, C]], { number: null });
  const strides = [TOKENS * C, 1, C];
  walk.add(stridedCopyKernel, [[rows, TOKENS, C]], { shape: x, extents: x, offset: 0, strides });
  for (let layer = 0; layer < clip.numHiddenLayers; layer++) {
    walk.tokenNorm(x);
    for (let i = 0; i < 3; i++) walk.linear(x, C);
    walk.attention(x, x, numAttentionHeads, true);
    walk.linear(x, C, { residual: true });
    walk.tokenNorm(x);
    walk.linear(x, intermediateSize);
    walk.add(unaryKernels.quick_gelu, [[rows, intermediateSize, TOKENS]], {});
    walk.linear([rows, intermediateSize, TOKENS], C, { residual: true });
  }
  walk.tokenNorm(x);
  const { blockOutChannels: widths, layersPerBlock, downAttention, upAttention } = unet;
  const layers = widths.flatMap((width, i) => [
    ...Array<number>(downAttention[i] ? layersPerBlock : 0).fill(width),
    ...Array<number>(upAttention[widths.length - 1 - i] ? layersPerBlock + 1 : 0).fill(width),
  ]);
  for (const width of [...layers, widths[widths.length - 1]]) {
    for (let i = 0; i < 2; i++) {
      walk.linear([rows, unet.crossAttentionDim, TOKENS], width, { bias: false });
    }
  }
  return walk.workloads;
}

/** A model's parts at `pixels` × `pixels`, as three suites. */
export function modelSuites(
  name: string,
  configs: PartConfigs,
  pixels: number,
  { rows, textRows }: Omit<Extent, "side">,
): Suite[] {
  const side = pixels / 2 ** (configs.vae.blockOutChannels.length - 1);
  const suite = (part: string, workloads: Workload[]) => ({ name: part, isModel: true, workloads });
  return [
    suite(
      `${name}: UNet at ${pixels}², ${rows} row${rows > 1 ? "s" : ""}`,
      unetWorkloads(configs.unet, { rows, textRows, side }),
    ),
    suite(`${name}: VAE decoder at ${pixels}²`, vaeWorkloads(configs.vae, side)),
    suite(`${name}: text, ${textRows} rows`, textWorkloads(configs, textRows)),
  ];
}
