/**
 * The denoiser of Stable Diffusion 1.x: `UNet2DConditionModel` of diffusers. It predicts the noise
 * in latents `[B, 4, h, w]` at a timestep, given a text.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { formatShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { assign, cast } from "../kernels/mod.ts";
import {
  type Context,
  disposeCache,
  type FrameAttention,
  type KeyValueCache,
  SELF,
  type Transformer2D,
} from "./attention.ts";
import { skipWidths, type UNetConfig } from "./config.ts";
import { addRows, type ControlResiduals } from "./control_residuals.ts";
import { blockSettings, encoder, projectText, rowsOf, type TimeEmbedding } from "./encoder.ts";
import { conv, norm, repeatRows } from "./layers.ts";
import { fillTokenMap, mapStrides, type TokenMap } from "./token_map.ts";
import { upBlock } from "./unet_blocks.ts";
import {
  loadModel,
  type ModelOptions,
  type Observer,
  type Weights,
  type WeightSource,
} from "./weights.ts";

/**
 * What the blocks below the outermost layers have made of latents: the input of the last layer,
 * `[B, blockOutChannels[0], h, w]` in the type of the model. It changes little between neighbouring
 * steps (Ma, Fang and Wang 2024, "DeepCache: Accelerating Diffusion Models for Free").
 */
export interface DeepFeature {
  /** The feature; filled, or read. */
  readonly feature: Tensor;
  /** Whether it is read: then only the outermost layers are computed. */
  readonly known: boolean;
}

/** Optional inputs of {@link UNet2DConditionModel.forward}. */
export interface UNetOptions {
  /** Which frames see which. Default: every row for itself. */
  readonly frames?: FrameAttention;
  /**
   * Guidance rows that see the same latents, of which the sample then holds one: what does not depend
   * on the text is computed once for all. Default 1.
   */
  readonly copies?: number;
  /** Residuals of ControlNets. Where deep features are used again, only the outermost counts. */
  readonly control?: ControlResiduals | null;
  /** Deep feature to be kept for later steps, or used again. */
  readonly deep?: DeepFeature;
  /** Tokens of the text whose attention is wanted; filled where everything is computed. */
  readonly tokens?: TokenMap;
}

/** The UNet of Stable Diffusion 1.x. */
export class UNet2DConditionModel {
  /** Its configuration. */
  readonly config: UNetConfig;
  readonly #weights: Weights;
  readonly #network: Network;
  readonly #mapStrides: readonly number[];

  private constructor(weights: Weights, config: UNetConfig) {
    this.config = config;
    this.#weights = weights;
    this.#network = network(weights, config);
    this.#mapStrides = mapStrides(config.sampleSize);
  }

  /**
   * Loads a UNet.
   *
   * @throws {WeightError} if tensors are missing, superfluous or of another shape.
   */
  static load(
    source: WeightSource,
    config: UNetConfig,
    options: ModelOptions,
  ): Promise<UNet2DConditionModel> {
    return loadModel(source, options, (weights) => new UNet2DConditionModel(weights, config));
  }

  /** Type of weights and activations. */
  get dtype(): DType {
    return this.#weights.dtype;
  }

  /** Whether the weights of its products are rounded to 8 bits. */
  get quantized(): boolean {
    return this.#weights.quantized;
  }

  /** Device that the model lives on. */
  get device(): Device {
    return this.#weights.device;
  }

  /**
   * Keys and values of a text for all cross-attention layers; they depend on the prompt alone.
   *
   * @param hiddenStates Output of the text encoder, `[B, tokens, width]`.
   * @returns A cache to be freed with `disposeCache`.
   */
  encodeText(hiddenStates: Tensor): KeyValueCache {
    const { config: { crossAttentionDim }, dtype } = this;
    const { transformers } = this.#network;
    return projectText("UNet", transformers, hiddenStates, { crossAttentionDim, dtype });
  }

  /**
   * Predicts the noise (or v, as the model was trained).
   *
   * @param sample Latents, `[B, inChannels, h, w]`; with {@link UNetOptions.copies}, B divided by them.
   * @param timestep One for all rows, or a tensor with one for each row (or for all).
   * @param text Hidden states `[B', tokens, width]`, or what {@link encodeText} made of them; B is a
   * multiple of B'.
   * @returns `[B, outChannels, h, w]` in f32.
   */
  forward(
    sample: Tensor,
    timestep: number | Tensor,
    text: Tensor | KeyValueCache,
    { frames = SELF, copies = 1, control = null, deep, tokens }: UNetOptions = {},
  ): Tensor {
    const channels = sample.shape[1];
    if (sample.shape.length !== 4 || channels !== this.config.inChannels) {
      throw new ShapeError(
        `UNet: latents must have shape [B, ${this.config.inChannels}, h, w], ` +
          `got ${formatShape(sample.shape)}`,
      );
    }
    const rows = rowsOf("UNet", sample, timestep, { frames, copies });
    const cache = text instanceof Map ? text : this.encodeText(text);
    try {
      return this.device.scope(() => {
        const context = {
          temb: this.#network.timeEmbedding(timestep, rows),
          text: cache,
          frames: tokens ? { ...frames, onText: fillTokenMap(tokens, this.#mapStrides) } : frames,
        };
        const input = cast(sample, this.dtype);
        return cast(this.#network.forward(input, context, control, deep), "f32");
      });
    } finally {
      if (cache !== text) disposeCache(cache);
    }
  }

  /** Shows the outputs of submodules, by diffusers' names, to `observer`. */
  observe(observer: Observer | null): void {
    this.#weights.setObserver(observer);
  }

  /** Frees the weights. */
  dispose(): void {
    this.#weights.dispose();
  }
}

interface Network {
  readonly transformers: readonly Transformer2D[];
  readonly timeEmbedding: TimeEmbedding;
  forward(
    sample: Tensor,
    context: Context,
    control: ControlResiduals | null,
    deep?: DeepFeature,
  ): Tensor;
}

/** The network: way down, middle, way up with skip connections. */
function network(w: Weights, config: UNetConfig): Network {
  const { blockOutChannels: widths, layersPerBlock: layers, upAttention } = config;
  const top = widths.length - 1;
  const { groups, eps } = blockSettings(config, 0);
  const { transformers, timeEmbedding, convIn, forward: goDown } = encoder(w, config);
  const skipsLeft = skipWidths(config);
  let channels = widths[top];
  const up = [...widths].reverse().map((width, i) => {
    const inputs = Array.from({ length: layers + 1 }, () => {
      const input = channels + (skipsLeft.pop() as number);
      channels = width;
      return input;
    });
    const kind = { attention: upAttention[i], last: i === top };
    return upBlock(w.at(`up_blocks.${i}`), inputs, width, kind, blockSettings(config, top - i));
  });
  const normOut = norm(w.at("conv_norm_out"), widths[0], { groups, eps, silu: true });
  const convOut = conv(w.at("conv_out"), widths[0], config.outChannels, 3);

  return {
    transformers: [...transformers, ...up.flatMap((block) => block.transformers)],
    timeEmbedding,
    forward(sample, context, control, deep) {
      const first = convIn(sample);
      if (deep?.known) {
        const all = repeatRows(first, context.temb.shape[0]);
        const skip = control ? addRows(all, control.down[0]) : all;
        return convOut(normOut(up[top].finish(deep.feature, [skip], context)));
      }
      const addend = control?.intoMiddle ? control.down.at(-1) : undefined;
      const { skips: made, mid } = goDown(first, context, addend);
      const skips = control ? made.map((skip, i) => addRows(skip, control.down[i])) : made;
      let h = control?.mid ? addRows(mid, control.mid) : mid;
      const keep = deep && ((feature: Tensor) => assign(deep.feature, feature));
      up.forEach((block, i) => h = block.forward(h, skips, context, i === top ? keep : undefined));
      return convOut(normOut(h));
    },
  };
}
