/**
 * The autoencoder of Stable Diffusion 1.x: `AutoencoderKL` of diffusers. Images `[B, 3, H, W]` in
 * [−1, 1] ↔ latents `[B, 4, H/8, W/8]`.
 *
 * Where the picture is large, it is worked on in bands; the result is that of the whole picture,
 * because group norm takes its statistics from all of it (`bands.ts`).
 *
 * @module
 */

import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { formatShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { attention, cast, clamp, narrow } from "../kernels/mod.ts";
import {
  bandConv,
  bandDownsample,
  bandModule,
  bandNorm,
  type Bands,
  bandUpsample,
  joined,
} from "./bands.ts";
import type { VaeConfig } from "./config.ts";
import { conv, type Layer, linear, norm } from "./layers.ts";
import {
  loadModel,
  type ModelOptions,
  type Observer,
  type Weights,
  type WeightSource,
} from "./weights.ts";

const EPS = 1e-6;

/** What the encoder says of an image: a Gaussian in latent space. */
export interface LatentDistribution {
  /** `[B, 2·C, h, w]`: mean and log-variance as the network gives them. */
  readonly moments: Tensor;
  /** `[B, C, h, w]`. */
  readonly mean: Tensor;
  /** `[B, C, h, w]`, clamped to [−30, 20]. */
  readonly logvar: Tensor;
}

/** How the autoencoder computes. */
export interface VaeOptions {
  /** Type of activations; f32 also works with half-precision weights. Default: that of the weights. */
  readonly dtype?: DType;
  /**
   * Bytes of a band of an activation at most: less takes less memory and a little more time.
   * Default 32 MiB, a quarter of what every adapter binds.
   */
  readonly bandBytes?: number;
}

/** A {@link VaeOptions.bandBytes} that suits all adapters. */
const BAND_BYTES = 2 ** 25;

/** The autoencoder of Stable Diffusion 1.x. */
export class AutoencoderKL {
  /** Its configuration. */
  readonly config: VaeConfig;
  readonly #weights: Weights;
  readonly #encode: BandedLayer;
  readonly #decode: BandedLayer;

  private constructor(weights: Weights, config: VaeConfig) {
    this.config = config;
    this.#weights = weights;
    this.#encode = encoder(weights, config);
    this.#decode = decoder(weights, config);
  }

  /**
   * Loads an autoencoder; the attention layers may have diffusers' present or old names.
   *
   * @throws {WeightError} if tensors are missing, superfluous or of another shape.
   */
  static load(
    source: WeightSource,
    config: VaeConfig,
    options: ModelOptions,
  ): Promise<AutoencoderKL> {
    return loadModel(renamed(source), options, (weights) => new AutoencoderKL(weights, config));
  }

  /** Type of the weights, and of activations unless said otherwise. */
  get dtype(): DType {
    return this.#weights.dtype;
  }

  /** Pixels per latent cell along each side. */
  get factor(): number {
    return 2 ** (this.config.blockOutChannels.length - 1);
  }

  /**
   * Encodes images.
   *
   * @param image `[B, 3, H, W]` in [−1, 1]; H and W multiples of {@link factor}.
   */
  encode(image: Tensor, options: VaeOptions = {}): LatentDistribution {
    const { dtype = this.dtype, bandBytes = BAND_BYTES } = options;
    const [, channels, H, W] = image.shape;
    if (channels !== this.config.inChannels || H % this.factor || W % this.factor) {
      throw new ShapeError(
        `VAE: images must have shape [B, ${this.config.inChannels}, H, W] with H and W multiples ` +
          `of ${this.factor}, got ${formatShape(image.shape)}`,
      );
    }
    return image.device.scope(() => {
      const moments = cast(this.#encode(cast(image, dtype), bandBytes), "f32");
      const C = this.config.latentChannels;
      const logvar = clamp(narrow(moments, 1, C, C), -30, 20);
      return { moments, mean: narrow(moments, 1, 0, C), logvar };
    });
  }

  /**
   * Decodes latents that have been divided by the scaling factor.
   *
   * @param latents `[B, 4, h, w]`.
   * @returns `[B, 3, 8h, 8w]` in f32, about [−1, 1].
   */
  decode(latents: Tensor, options: VaeOptions = {}): Tensor {
    const { dtype = this.dtype, bandBytes = BAND_BYTES } = options;
    const C = this.config.latentChannels;
    if (latents.shape.length !== 4 || latents.shape[1] !== C) {
      throw new ShapeError(
        `VAE: latents must have shape [B, ${C}, h, w], got ${formatShape(latents.shape)}`,
      );
    }
    return latents.device.scope(() => cast(this.#decode(cast(latents, dtype), bandBytes), "f32"));
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

/** Old diffusers files call the projections of the attention layers otherwise. */
const OLD_NAMES: Readonly<Record<string, string>> = {
  query: "to_q",
  key: "to_k",
  value: "to_v",
  proj_attn: "to_out.0",
};

function renamed(source: WeightSource): WeightSource {
  const tensors = new Map([...source.tensors].map(([name, entry]) => [
    name.replace(
      /(\.attentions\.\d+\.)(query|key|value|proj_attn)\./,
      (_, module: string, old: string) => `${module}${OLD_NAMES[old]}.`,
    ),
    entry,
  ]));
  return { name: source.name, tensors, close: () => source.close() };
}

/** From a whole tensor to a whole tensor, in bands of so many bytes where they are large. */
type BandedLayer = (x: Tensor, bandBytes: number) => Tensor;

/** `conv_in`, stages that halve the side, middle, `conv_out`, and the 1×1 `quant_conv`. */
function encoder(root: Weights, config: VaeConfig): BandedLayer {
  const w = root.at("encoder");
  const { blockOutChannels: widths, normNumGroups: groups, latentChannels: C } = config;
  const top = widths.length - 1;
  const convIn = bandConv(w.at("conv_in"), config.inChannels, widths[0]);
  const stages = widths.map((width, i) => {
    const at = w.at(`down_blocks.${i}`);
    const inputs = widths[Math.max(0, i - 1)];
    const resnets = resnetChain(at, inputs, width, config.layersPerBlock, groups);
    const down = i < top ? bandDownsample(at.at("downsamplers.0"), width) : null;
    return bandModule(at, (x: Bands, most: number) => down ? down(resnets(x), most) : resnets(x));
  });
  const mid = midBlock(w.at("mid_block"), widths[top], groups);
  const normOut = norm(w.at("conv_norm_out"), widths[top], { groups, eps: EPS, silu: true });
  const convOut = conv(w.at("conv_out"), widths[top], 2 * C, 3);
  const quant = conv(root.at("quant_conv"), 2 * C, 2 * C, 1);
  return (image, most) => {
    let h = convIn([image], { most, keep: true });
    for (const stage of stages) h = stage(h, most);
    return quant(convOut(normOut(mid(joined(h)))));
  };
}

/** The 1×1 `post_quant_conv`, `conv_in`, middle, stages that double the side, `conv_out`. */
function decoder(root: Weights, config: VaeConfig): BandedLayer {
  const w = root.at("decoder");
  const { normNumGroups: groups, latentChannels: C } = config;
  const widths = [...config.blockOutChannels].reverse();
  const top = widths.length - 1;
  const postQuant = conv(root.at("post_quant_conv"), C, C, 1);
  const convIn = conv(w.at("conv_in"), C, widths[0], 3);
  const mid = midBlock(w.at("mid_block"), widths[0], groups);
  const stages = widths.map((width, i) => {
    const at = w.at(`up_blocks.${i}`);
    const inputs = widths[Math.max(0, i - 1)];
    const resnets = resnetChain(at, inputs, width, config.layersPerBlock + 1, groups);
    const up = i < top ? bandUpsample(at.at("upsamplers.0"), width) : null;
    return bandModule(at, (x: Bands, most: number) => up ? up(resnets(x), most) : resnets(x));
  });
  const normOut = bandNorm(w.at("conv_norm_out"), widths[top], { groups, eps: EPS });
  const convOut = bandConv(w.at("conv_out"), widths[top], config.outChannels);
  return (latents, most) => {
    let h: Bands = [mid(convIn(postQuant(latents)))];
    for (const stage of stages) h = stage(h, most);
    return joined(convOut(h, { before: normOut(h) }));
  };
}

/** ResNet blocks without time embedding, one after the other. */
function resnetChain(
  w: Weights,
  channels: number,
  outputs: number,
  layers: number,
  groups: number,
): (x: Bands) => Bands {
  const resnets = Array.from(
    { length: layers },
    (_, i) => resnetBlock(w.at(`resnets.${i}`), i ? outputs : channels, outputs, groups),
  );
  return (x) => resnets.reduce((h, resnet) => resnet(h), x);
}

/** `ResnetBlock2D` of diffusers without time embedding, on bands. */
function resnetBlock(
  w: Weights,
  channels: number,
  outputs: number,
  groups: number,
): (x: Bands) => Bands {
  const norm1 = bandNorm(w.at("norm1"), channels, { groups, eps: EPS });
  const conv1 = bandConv(w.at("conv1"), channels, outputs);
  const norm2 = bandNorm(w.at("norm2"), outputs, { groups, eps: EPS });
  const conv2 = bandConv(w.at("conv2"), outputs, outputs);
  const shortcut = channels === outputs ? null : conv(w.at("conv_shortcut"), channels, outputs, 1);
  return bandModule(w, (x: Bands) => {
    const h = conv1(x, { before: norm1(x), keep: true });
    return conv2(h, { before: norm2(h), residual: x, shortcut });
  });
}

/** ResNet block, attention of one head over all pixels, ResNet block. */
function midBlock(w: Weights, channels: number, groups: number): Layer {
  const resnet0 = resnetBlock(w.at("resnets.0"), channels, channels, groups);
  const attend = pixelAttention(w.at("attentions.0"), channels, groups);
  const resnet1 = resnetBlock(w.at("resnets.1"), channels, channels, groups);
  return w.module((x: Tensor) => joined(resnet1([attend(joined(resnet0([x])))])));
}

function pixelAttention(w: Weights, channels: number, groups: number): Layer {
  const normIn = norm(w.at("group_norm"), channels, { groups, eps: EPS });
  const toQ = linear(w.at("to_q"), channels, channels);
  const toK = linear(w.at("to_k"), channels, channels);
  const toV = linear(w.at("to_v"), channels, channels);
  const toOut = linear(w.at("to_out.0"), channels, channels);
  return w.module((x: Tensor) => {
    const [B, C, H, W] = x.shape;
    const tokens = [B, C, H * W];
    const h = normIn(x).reshape(tokens);
    const mixed = attention(toQ(h), toK(h), toV(h), { heads: 1 });
    return toOut(mixed, { residual: x.reshape(tokens) }).reshape(x.shape);
  });
}
