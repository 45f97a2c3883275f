/**
 * ControlNets of Stable Diffusion 1.x: `ControlNetModel` of diffusers (Zhang, Rao and Agrawala 2023,
 * "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv:2302.05543). A copy of the
 * UNet's way down and middle sees a map besides the latents; zero convolutions, 1×1 convolutions
 * that training began at zero, lead its features to the UNet's skip connections.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { formatShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, cast, mul, tile } from "../kernels/mod.ts";
import { disposeCache, type FrameAttention, type KeyValueCache, SELF } from "./attention.ts";
import type { Location } from "./checkpoint.ts";
import { type ControlNetConfig, skipWidths } from "./config.ts";
import { type ControlNetOptions, openControlNet } from "./controlnet_file.ts";
import type { ControlResiduals } from "./control_residuals.ts";
import { type Encoder, encoder, projectText, rowsOf } from "./encoder.ts";
import { conv, type Layer, repeatRows } from "./layers.ts";
import { tooLarge } from "./parts.ts";
import { controlNetStateDict } from "./state_dict.ts";
import {
  loadModel,
  type ModelOptions,
  type Observer,
  type Weights,
  type WeightSource,
} from "./weights.ts";

/** Optional inputs of {@link ControlNetModel.forward}. */
export interface ControlNetForwardOptions {
  /** Which frames see which. Default: every row for itself. */
  readonly frames?: FrameAttention;
  /** Guidance rows that see the same latents, of which the sample then holds one. Default 1. */
  readonly copies?: number;
  /** What all residuals are multiplied by. Default 1. */
  readonly scale?: number;
  /**
   * Whether the net shall find out by itself what the map shows: residuals are weaker the finer
   * they are, by powers of ten from 0.1 to 1. Default false.
   */
  readonly guessMode?: boolean;
}

/** A ControlNet for Stable Diffusion 1.x. */
export class ControlNetModel {
  /** Its configuration. */
  readonly config: ControlNetConfig;
  /** What names it again; a ControlNet of the Hub with its commit. */
  readonly source: string;
  readonly #weights: Weights;
  readonly #network: Network;

  private constructor(weights: Weights, config: ControlNetConfig, source: string) {
    this.config = config;
    this.source = source;
    this.#weights = weights;
    this.#network = network(weights, config);
  }

  /**
   * Loads a ControlNet: a folder of diffusers with `config.json` and its weights, a single
   * `.safetensors` file with the names of diffusers or of the original code, or what
   * `locateModel` finds one by, such as `"lllyasviel/sd-controlnet-canny"`.
   *
   * @throws {InputError} if there is none, or it is something else, which is named.
   * @throws {WeightError} if it is damaged, incomplete, for another Stable Diffusion, or of a kind
   * that is no plain ControlNet.
   * @throws {MemoryError} if its weights exceed the device's budget.
   */
  static async load(location: Location, options: ControlNetOptions): Promise<ControlNetModel> {
    const { name, config, source } = await openControlNet(location, options);
    try {
      return await ControlNetModel.fromSource(source, config, options, name);
    } catch (error) {
      throw tooLarge(name, [controlNetStateDict(config)], options, error);
    } finally {
      await source.close();
    }
  }

  /**
   * Loads a ControlNet from weights by diffusers' names.
   *
   * @param name What names it again.
   * @throws {WeightError} if tensors are missing, superfluous or of another shape.
   */
  static fromSource(
    source: WeightSource,
    config: ControlNetConfig,
    options: ModelOptions,
    name: string = source.name,
  ): Promise<ControlNetModel> {
    return loadModel(source, options, (w) => new ControlNetModel(w, config, name));
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

  /** Pixels of a map per latent cell along each side. */
  get factor(): number {
    return 2 ** (this.config.conditioningWidths.length - 1);
  }

  /**
   * Keys and values of a text for all cross-attention layers; they depend on the prompt alone.
   *
   * @param hiddenStates Output of the text encoder, `[B, tokens, width]`.
   * @returns A cache to be freed with `disposeCache`.
   */
  encodeText(hiddenStates: Tensor): KeyValueCache {
    const { config: { crossAttentionDim }, dtype } = this;
    const { transformers } = this.#network.encoder;
    return projectText("ControlNet", transformers, hiddenStates, { crossAttentionDim, dtype });
  }

  /**
   * What the net makes of maps before it sees latents: it does not depend on the timestep, and can
   * be kept for all steps.
   *
   * @param maps `[F, conditioningChannels, H, W]` in [0, 1]; H and W multiples of {@link factor}.
   * @returns `[F, blockOutChannels[0], H / factor, W / factor]` in the type of the model.
   */
  embed(maps: Tensor): Tensor {
    const { config: { conditioningChannels: channels }, factor } = this;
    const [, found, H, W] = maps.shape;
    if (maps.shape.length !== 4 || found !== channels || H % factor || W % factor) {
      throw new ShapeError(
        `ControlNet: maps must have shape [F, ${channels}, H, W], H and W multiples of ${factor}, ` +
          `got ${formatShape(maps.shape)}`,
      );
    }
    return this.device.scope(() => this.#network.embed(cast(maps, this.dtype)));
  }

  /**
   * The residuals for a UNet.
   *
   * @param sample Latents, `[B, inChannels, h, w]`; with `copies`, B divided by them.
   * @param timestep One for all rows, or a tensor with one for each row (or for all).
   * @param text Hidden states `[B', tokens, width]`, or what {@link encodeText} made of them; B is a
   * multiple of B'.
   * @param embedded What {@link embed} made of the maps, `[F, …]`; B is a multiple of F, rows being
   * laid out `(guidance, frame)`.
   */
  forward(
    sample: Tensor,
    timestep: number | Tensor,
    text: Tensor | KeyValueCache,
    embedded: Tensor,
    { frames = SELF, copies = 1, scale = 1, guessMode = false }: ControlNetForwardOptions = {},
  ): ControlResiduals {
    const rows = rowsOf("ControlNet", sample, timestep, { frames, copies });
    const cache = text instanceof Map ? text : this.encodeText(text);
    const { encoder: { timeEmbedding, forward }, zeroConvs, middleConv } = this.#network;
    try {
      const { down, mid } = this.device.scope(() => {
        const input = this.#input(sample, embedded);
        const temb = timeEmbedding(timestep, rows);
        const { skips, mid } = forward(input, { temb, text: cache, frames });
        const scales = this.#scales(scale, guessMode);
        return {
          down: skips.map((skip, i) => scaled(zeroConvs[i](skip), scales[i])),
          mid: scaled(middleConv(mid), scales[skips.length]),
        };
      });
      return { down, mid };
    } finally {
      if (cache !== text) disposeCache(cache);
    }
  }

  /**
   * The first residual alone, for which neither timestep nor text is needed: all that a UNet takes
   * in where it uses deep features again.
   */
  outermost(
    sample: Tensor,
    embedded: Tensor,
    { copies = 1, scale = 1, guessMode = false }: Omit<ControlNetForwardOptions, "frames"> = {},
  ): ControlResiduals {
    const first = this.device.scope(() => {
      const residual = this.#network.zeroConvs[0](this.#input(sample, embedded));
      const all = repeatRows(residual, sample.shape[0] * copies);
      return scaled(all, this.#scales(scale, guessMode)[0]);
    });
    return { down: [first] };
  }

  /** The first features of the latents, and what the maps add to them. */
  #input(sample: Tensor, embedded: Tensor): Tensor {
    const { inChannels, blockOutChannels: [width] } = this.config;
    const [rows, channels, h, w] = sample.shape;
    if (sample.shape.length !== 4 || channels !== inChannels) {
      throw new ShapeError(
        `ControlNet: latents must have shape [B, ${inChannels}, h, w], ` +
          `got ${formatShape(sample.shape)}`,
      );
    }
    const [maps, ...extents] = embedded.shape;
    if (rows % maps !== 0 || String(extents) !== String([width, h, w])) {
      throw new ShapeError(
        `ControlNet: latents of shape ${formatShape(sample.shape)} need maps embedded as ` +
          `[F, ${width}, ${h}, ${w}] where F divides ${rows}, got ${formatShape(embedded.shape)}`,
      );
    }
    const repeated = maps === rows ? embedded : tile(embedded, [rows / maps, 1, 1, 1]);
    return add(this.#network.encoder.convIn(cast(sample, this.dtype)), repeated);
  }

  /** A factor for each residual; in guess mode `10^(−1 … 0)`, evenly spaced in the exponent. */
  #scales(scale: number, guessMode: boolean): number[] {
    const last = skipWidths(this.config).length;
    return Array.from(
      { length: last + 1 },
      (_, i) => guessMode ? scale * 10 ** (i / last - 1) : scale,
    );
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

const scaled = (residual: Tensor, scale: number): Tensor =>
  scale === 1 ? residual : mul(residual, scale);

interface Network {
  readonly encoder: Encoder;
  /** Maps to features of the first stage. */
  readonly embed: Layer;
  /** One for each skip connection. */
  readonly zeroConvs: readonly Layer[];
  readonly middleConv: Layer;
}

function network(w: Weights, config: ControlNetConfig): Network {
  const { blockOutChannels: widths } = config;
  const zeroConv = (name: string, width: number): Layer => {
    const convolve = conv(w.at(name), width, width, 1);
    return (x) => convolve(x);
  };
  return {
    encoder: encoder(w, config),
    embed: conditionEmbedding(w.at("controlnet_cond_embedding"), config),
    zeroConvs: skipWidths(config).map((width, i) => zeroConv(`controlnet_down_blocks.${i}`, width)),
    middleConv: zeroConv("controlnet_mid_block", widths[widths.length - 1]),
  };
}

/**
 * `ControlNetConditioningEmbedding` of diffusers: 3×3 convolutions with SiLU, every second one of
 * which halves the sides, down from pixels to latent cells.
 */
function conditionEmbedding(w: Weights, config: ControlNetConfig): Layer {
  const { conditioningChannels, conditioningWidths: widths, blockOutChannels: [width] } = config;
  const convIn = conv(w.at("conv_in"), conditioningChannels, widths[0], 3);
  const blocks = widths.slice(1).flatMap((next, i) => [
    conv(w.at(`blocks.${2 * i}`), widths[i], widths[i], 3),
    conv(w.at(`blocks.${2 * i + 1}`), widths[i], next, 3, { stride: 2, padding: 1 }),
  ]);
  const convOut = conv(w.at("conv_out"), widths[widths.length - 1], width, 3);
  return w.module((maps: Tensor) => {
    const activation = "silu";
    let h = convIn(maps, { activation });
    for (const block of blocks) {
      const before = h;
      h = block(before, { activation });
      before.dispose();
    }
    return convOut(h);
  });
}
