/**
 * The convolutional blocks of the UNet and the VAE. Names and wiring are those of diffusers.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import { concat, interpolate, linear as rowLinear, narrow } from "../kernels/mod.ts";
import { type Context, type Transformer2D, transformer2d } from "./attention.ts";
import { conv, type Layer, norm } from "./layers.ts";
import type { Weights } from "./weights.ts";

/** Two convolutions with group norm and SiLU, and a shortcut; `temb` is SiLU(time embedding). */
export type ResnetBlock = (x: Tensor, temb: Tensor) => Tensor;

/** `ResnetBlock2D` of diffusers. */
export function resnetBlock(
  w: Weights,
  channels: number,
  outputs: number,
  { groups, eps, timeWidth }: { groups: number; eps: number; timeWidth: number },
): ResnetBlock {
  const norm1 = norm(w.at("norm1"), channels, { groups, eps, silu: true });
  const conv1 = conv(w.at("conv1"), channels, outputs, 3);
  const timeProj = timeProjection(w.at("time_emb_proj"), timeWidth, outputs);
  const norm2 = norm(w.at("norm2"), outputs, { groups, eps, silu: true });
  const conv2 = conv(w.at("conv2"), outputs, outputs, 3);
  const shortcut = channels === outputs ? null : conv(w.at("conv_shortcut"), channels, outputs, 1);
  return w.module((x: Tensor, temb: Tensor) => {
    const h = conv1(norm1(x), { embedding: timeProj(temb) });
    return conv2(norm2(h), { residual: shortcut ? shortcut(x) : x });
  });
}

/** `[B, timeWidth] → [B, outputs]`, in the type of the embedding. */
function timeProjection(w: Weights, timeWidth: number, outputs: number): (x: Tensor) => Tensor {
  const weight = w.tensor("weight", [outputs, timeWidth]);
  const bias = w.tensor("bias", [outputs]);
  return (x) => rowLinear(x, weight, bias);
}

/** Nearest-neighbour enlargement to `size` (default twice), then a 3×3 convolution. */
export type Upsample = (x: Tensor, size?: readonly [number, number]) => Tensor;

/** `Upsample2D` of diffusers. */
export function upsample(w: Weights, channels: number): Upsample {
  const convolve = conv(w.at("conv"), channels, channels, 3);
  return w.module((x: Tensor, size?: readonly [number, number]) => {
    const [, , H, W] = x.shape;
    return convolve(interpolate(x, { size: size ?? [2 * H, 2 * W], mode: "nearest" }));
  });
}

/** `Downsample2D` of diffusers: a 3×3 convolution with stride 2. */
export function downsample(w: Weights, channels: number): Layer {
  const convolve = conv(w.at("conv"), channels, channels, 3, { stride: 2, padding: 1 });
  return w.module((x: Tensor) => convolve(x));
}

/** Extents that all blocks of a UNet share. */
export interface BlockSettings {
  readonly groups: number;
  readonly eps: number;
  readonly timeWidth: number;
  readonly textWidth: number;
  readonly heads: number;
}

/** A stage on the way down: its output and the outputs that the way up will need. */
export interface DownBlock {
  readonly transformers: readonly Transformer2D[];
  /** x has the rows of the context, or those of one guidance row for all. */
  forward(x: Tensor, context: Context): Tensor[];
}

/** `CrossAttnDownBlock2D` and `DownBlock2D`: returns the skips, the last of which is the output. */
export function downBlock(
  w: Weights,
  channels: number,
  outputs: number,
  layers: number,
  { attention, last }: { attention: boolean; last: boolean },
  settings: BlockSettings,
): DownBlock {
  const { textWidth, heads, groups } = settings;
  const resnets: ResnetBlock[] = [];
  const transformers: Transformer2D[] = [];
  for (let i = 0; i < layers; i++) {
    resnets.push(resnetBlock(w.at(`resnets.${i}`), i ? outputs : channels, outputs, settings));
    if (!attention) continue;
    const at = w.at(`attentions.${i}`);
    transformers.push(transformer2d(at, outputs, textWidth, heads, groups));
  }
  const down = last ? null : downsample(w.at("downsamplers.0"), outputs);
  return {
    transformers,
    forward(x, context) {
      const { temb } = context;
      const skips: Tensor[] = [];
      let h = x;
      resnets.forEach((resnet, i) => {
        h = x.device.scope(() => {
          const [rows] = h.shape;
          const out = resnet(h, rows < temb.shape[0] ? narrow(temb, 0, 0, rows) : temb);
          return attention ? transformers[i].forward(out, context) : out;
        });
        skips.push(h);
      });
      if (down) skips.push(h = down(h));
      w.observe(() => h);
      return skips;
    },
  };
}

/** The stage between the way down and the way up. */
export interface MidBlock {
  readonly transformers: readonly Transformer2D[];
  forward(x: Tensor, context: Context): Tensor;
}

/** `UNetMidBlock2DCrossAttn` of diffusers. */
export function midBlock(w: Weights, channels: number, settings: BlockSettings): MidBlock {
  const { textWidth, heads, groups } = settings;
  const resnet0 = resnetBlock(w.at("resnets.0"), channels, channels, settings);
  const transformer = transformer2d(w.at("attentions.0"), channels, textWidth, heads, groups);
  const resnet1 = resnetBlock(w.at("resnets.1"), channels, channels, settings);
  const forward = w.module((x: Tensor, context: Context) =>
    resnet1(transformer.forward(resnet0(x, context.temb), context), context.temb)
  );
  return { transformers: [transformer], forward };
}

/** A stage on the way up. */
export interface UpBlock {
  readonly transformers: readonly Transformer2D[];
  /**
   * Takes its skips from the end of `skips`, and enlarges to the size of the next one. Shows the
   * input of its last layer, before it is joined with a skip, to `onDeep`.
   */
  forward(x: Tensor, skips: Tensor[], context: Context, onDeep?: (h: Tensor) => void): Tensor;
  /** The last layer alone, with such an input. */
  finish(deep: Tensor, skips: Tensor[], context: Context): Tensor;
}

/** `CrossAttnUpBlock2D` and `UpBlock2D`; `inputs[i]` are the channels of layer i with its skip. */
export function upBlock(
  w: Weights,
  inputs: readonly number[],
  outputs: number,
  { attention, last }: { attention: boolean; last: boolean },
  settings: BlockSettings,
): UpBlock {
  const { textWidth, heads, groups } = settings;
  const resnets: ResnetBlock[] = [];
  const transformers: Transformer2D[] = [];
  inputs.forEach((channels, i) => {
    resnets.push(resnetBlock(w.at(`resnets.${i}`), channels, outputs, settings));
    if (!attention) return;
    const at = w.at(`attentions.${i}`);
    transformers.push(transformer2d(at, outputs, textWidth, heads, groups));
  });
  const up = last ? null : upsample(w.at("upsamplers.0"), outputs);
  const layer = (i: number, h: Tensor, skips: Tensor[], context: Context) =>
    h.device.scope(() => {
      const out = resnets[i](concat([h, skips.pop() as Tensor], 1), context.temb);
      return attention ? transformers[i].forward(out, context) : out;
    });
  const enlarge = (h: Tensor, skips: Tensor[]) => {
    const next = skips.at(-1);
    return up ? up(h, next && [next.shape[2], next.shape[3]]) : h;
  };
  const top = inputs.length - 1;
  const forward = w.module(
    (x: Tensor, skips: Tensor[], context: Context, onDeep?: (h: Tensor) => void) => {
      let h = x;
      for (let i = 0; i <= top; i++) {
        if (i === top) onDeep?.(h);
        const before = h;
        h = layer(i, h, skips, context);
        if (before !== x) before.dispose();
      }
      return enlarge(h, skips);
    },
  );
  const finish = w.module((deep: Tensor, skips: Tensor[], context: Context) =>
    enlarge(layer(top, deep, skips, context), skips)
  );
  return { transformers, forward, finish };
}
