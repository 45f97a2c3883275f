/**
 * The way down and the middle: the half of the denoiser that turns latents, a timestep and a text
 * into features. The UNet goes on from it upwards with skip connections; a ControlNet is a copy of
 * it, whose features are added to the UNet's.
 *
 * @module
 */

import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { formatShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { broadcastTo, cast, linear, permute, silu, timestepEmbedding } from "../kernels/mod.ts";
import {
  type Context,
  disposeCache,
  type FrameAttention,
  type KeyValueCache,
  type Transformer2D,
} from "./attention.ts";
import type { EncoderConfig } from "./config.ts";
import { addRows } from "./control_residuals.ts";
import { type Conv, conv, repeatRows } from "./layers.ts";
import { type BlockSettings, downBlock, midBlock } from "./unet_blocks.ts";
import type { Weights } from "./weights.ts";

/** `SiLU(MLP(sin/cos(t)))` for each row, `[B, width]` in f32. */
export type TimeEmbedding = (timestep: number | Tensor, rows: number) => Tensor;

/** `TimestepEmbedding` of diffusers: two linear layers; the result has passed the SiLU that follows. */
function timeEmbedding(w: Weights, config: EncoderConfig): TimeEmbedding {
  const dim = config.blockOutChannels[0];
  const width = 4 * dim;
  const weight1 = w.tensor("linear_1.weight", [width, dim]);
  const bias1 = w.tensor("linear_1.bias", [width]);
  const weight2 = w.tensor("linear_2.weight", [width, width]);
  const bias2 = w.tensor("linear_2.bias", [width]);
  const { flipSinToCos, freqShift } = config;
  return (timestep, rows) => {
    const t = typeof timestep === "number" ? w.device.tensor([timestep]) : timestep;
    const steps = t.reshape([t.size]);
    const waves = timestepEmbedding(steps, dim, { flipSinToCos, downscaleFreqShift: freqShift });
    const hidden = linear(waves, weight1, bias1, { activation: "silu" });
    const embedding = broadcastTo(linear(hidden, weight2, bias2), [rows, width]);
    w.observe(() => embedding);
    return silu(embedding);
  };
}

/** Extents of the blocks of stage `i`. */
export function blockSettings(config: EncoderConfig, i: number): BlockSettings {
  return {
    groups: config.normNumGroups,
    eps: config.normEps,
    timeWidth: 4 * config.blockOutChannels[0],
    textWidth: config.crossAttentionDim,
    heads: config.heads[i],
  };
}

/** What the way down and the middle make of latents. */
export interface Features {
  /** Inputs of the skip connections; the first is the input itself. */
  readonly skips: Tensor[];
  /** Output of the middle. */
  readonly mid: Tensor;
}

/** The half of a UNet before its way up. */
export interface Encoder {
  readonly transformers: readonly Transformer2D[];
  readonly timeEmbedding: TimeEmbedding;
  /** Latents to features of the first stage. */
  readonly convIn: Conv;
  /**
   * From these through all stages and the middle, to whose input something may be added. They have
   * the rows of the context, or those of one guidance row: then what comes before the first text is
   * computed once for all.
   */
  forward(h: Tensor, context: Context, addend?: Tensor): Features;
}

/** Way down and middle of `UNet2DConditionModel` and `ControlNetModel`, by the same names. */
export function encoder(w: Weights, config: EncoderConfig): Encoder {
  const { blockOutChannels: widths, layersPerBlock: layers, downAttention } = config;
  const top = widths.length - 1;
  const embed = timeEmbedding(w.at("time_embedding"), config);
  const convIn = conv(w.at("conv_in"), config.inChannels, widths[0], 3);
  const down = widths.map((width, i) =>
    downBlock(w.at(`down_blocks.${i}`), widths[Math.max(0, i - 1)], width, layers, {
      attention: downAttention[i],
      last: i === top,
    }, blockSettings(config, i))
  );
  const middle = midBlock(w.at("mid_block"), widths[top], blockSettings(config, top));
  return {
    transformers: [...down, middle].flatMap((block) => block.transformers),
    timeEmbedding: embed,
    convIn,
    forward(input, context, addend) {
      const skips = [input];
      for (const block of down) skips.push(...block.forward(skips[skips.length - 1], context));
      const rows = context.temb.shape[0];
      skips.forEach((skip, i) => skips[i] = repeatRows(skip, rows));
      const last = skips[skips.length - 1];
      return { skips, mid: middle.forward(addend ? addRows(last, addend) : last, context) };
    },
  };
}

/**
 * The rows of an evaluation of `copies` guidance rows, of which the sample has one.
 *
 * @param name What messages call the model.
 * @throws {ShapeError} if they are no whole frames, or copies differ in their timesteps.
 */
export function rowsOf(
  name: string,
  { shape: [given] }: Tensor,
  timestep: number | Tensor,
  { frames: { frames }, copies }: { readonly frames: FrameAttention; readonly copies: number },
): number {
  if (given % frames !== 0) {
    throw new ShapeError(`${name}: ${given} rows are not a multiple of ${frames} frames`);
  }
  const single = typeof timestep === "number" || timestep.size === 1;
  if (!Number.isInteger(copies) || copies < 1 || (copies > 1 && !single)) {
    throw new ShapeError(
      `${name}: copies must be a whole number from 1, and have one timestep; got ${copies} and ` +
        (single ? "one timestep" : `timesteps of shape ${formatShape(timestep.shape)}`),
    );
  }
  return given * copies;
}

/**
 * Keys and values of a text for all cross-attention layers; they depend on the prompt alone.
 *
 * @param name What messages call the model.
 * @param hiddenStates Output of the text encoder, `[B, tokens, width]`.
 * @returns A cache to be freed with `disposeCache`.
 * @throws {ShapeError} if the text has another width.
 */
export function projectText(
  name: string,
  transformers: readonly Transformer2D[],
  hiddenStates: Tensor,
  { crossAttentionDim: width, dtype }: { crossAttentionDim: number; dtype: DType },
): KeyValueCache {
  const cache: KeyValueCache = new Map();
  if (hiddenStates.shape.length !== 3 || hiddenStates.shape[2] !== width) {
    throw new ShapeError(
      `${name}: the text must have shape [B, tokens, ${width}], ` +
        `got ${formatShape(hiddenStates.shape)}; it may come from another text encoder`,
    );
  }
  try {
    hiddenStates.device.scope(() => {
      const tokens = cast(permute(hiddenStates, [0, 2, 1]), dtype);
      for (const { blocks } of transformers) {
        for (const { text, path } of blocks) {
          const { key, value } = text.project(tokens);
          cache.set(path, { key: key.keep(), value: value.keep() });
        }
      }
    });
    return cache;
  } catch (error) {
    disposeCache(cache);
    throw error;
  }
}
