/**
 * Reading `config.json` files: checked once, then plain typed data. What is not Stable Diffusion 1.x
 * is recognised and named.
 *
 * @module
 */

import { WeightError } from "../core/errors.ts";

/** The content of a JSON configuration file. */
export type Json = Readonly<Record<string, unknown>>;

/** What a UNet and a ControlNet have in common: their way down and their middle. */
export interface EncoderConfig {
  /** Channels of the input. */
  readonly inChannels: number;
  /** Width of each stage, from the finest. */
  readonly blockOutChannels: readonly number[];
  /** ResNet blocks of a stage on the way down. */
  readonly layersPerBlock: number;
  /** Width of the text. */
  readonly crossAttentionDim: number;
  /** Heads of each block: what SD 1.x files call `attention_head_dim`. */
  readonly heads: readonly number[];
  /** Groups of every group norm. */
  readonly normNumGroups: number;
  /** Added to the variance in ResNet blocks. */
  readonly normEps: number;
  /** Whether each block on the way down has attention. */
  readonly downAttention: readonly boolean[];
  /** Whether the time embedding begins with its cosines. */
  readonly flipSinToCos: boolean;
  /** Taken off the number of frequencies of the time embedding. */
  readonly freqShift: number;
}

/** Channels of the skip connections, in the order in which the way down makes them. */
export function skipWidths(
  { blockOutChannels: widths, layersPerBlock }: EncoderConfig,
): number[] {
  const top = widths.length - 1;
  return widths.reduce(
    (skips, width, stage) => {
      // Every stage but the last ends with a downsampler.
      const outputs = layersPerBlock + (stage < top ? 1 : 0);
      return [...skips, ...new Array<number>(outputs).fill(width)];
    },
    [widths[0]],
  );
}

/** Configuration of a {@link UNet2DConditionModel}, as far as SD 1.x varies it. */
export interface UNetConfig extends EncoderConfig {
  /** Channels of the output. */
  readonly outChannels: number;
  /** Whether each block on the way up has attention. */
  readonly upAttention: readonly boolean[];
  /** Side of the latents that the model was trained with. */
  readonly sampleSize: number;
}

/** Configuration of a {@link ControlNetModel}, as far as those of SD 1.x vary it. */
export interface ControlNetConfig extends EncoderConfig {
  /** Channels of the maps. */
  readonly conditioningChannels: number;
  /** Width of each stage that a map passes through, from pixels down to latent cells. */
  readonly conditioningWidths: readonly number[];
}

/** Configuration of an {@link AutoencoderKL}. */
export interface VaeConfig {
  /** Channels of the input. */
  readonly inChannels: number;
  /** Channels of the output. */
  readonly outChannels: number;
  /** Channels of latents. */
  readonly latentChannels: number;
  /** Width of each stage, from the finest. */
  readonly blockOutChannels: readonly number[];
  /** ResNet blocks of a stage on the way down. */
  readonly layersPerBlock: number;
  /** Groups of every group norm. */
  readonly normNumGroups: number;
  /** Latents of the diffusion model are this many times the encoder's. */
  readonly scalingFactor: number;
}

/** Configuration of a {@link ClipTextModel}. */
export interface ClipTextConfig {
  /** Token ids. */
  readonly vocabSize: number;
  /** Width of a token. */
  readonly hiddenSize: number;
  /** Width inside the feed-forward layers. */
  readonly intermediateSize: number;
  /** Transformer layers. */
  readonly numHiddenLayers: number;
  /** Attention heads. */
  readonly numAttentionHeads: number;
  /** Most tokens of a prompt. */
  readonly maxPositionEmbeddings: number;
  /** Activation of the feed-forward layers. */
  readonly hiddenAct: "quick_gelu" | "gelu";
  /** Added to the variance. */
  readonly layerNormEps: number;
  /** End token. */
  readonly eosTokenId: number;
  /** Width of the projected text. */
  readonly projectionDim: number;
}

/** Configuration of a {@link ClipVisionModel}. */
export interface ClipVisionConfig {
  /** Width of a token. */
  readonly hiddenSize: number;
  /** Width inside the feed-forward layers. */
  readonly intermediateSize: number;
  /** Transformer layers. */
  readonly numHiddenLayers: number;
  /** Attention heads. */
  readonly numAttentionHeads: number;
  /** Side of its pictures in pixels. */
  readonly imageSize: number;
  /** Side of the patches that they are cut into. */
  readonly patchSize: number;
  /** Activation of the feed-forward layers. */
  readonly hiddenAct: "quick_gelu" | "gelu";
  /** Added to the variance. */
  readonly layerNormEps: number;
  /** Width of the projected picture. */
  readonly projectionDim: number;
}

/** Settings that suit a model; a folder may bring its own in `framezero.json`. */
export interface ModelDefaults {
  /** Denoising steps. */
  readonly steps: number;
  /** Classifier-free guidance. */
  readonly guidanceScale: number;
  /** Motion to the right, in 512ths of the width a frame. */
  readonly motionX: number;
  /** Motion downwards, in 512ths of the height a frame. */
  readonly motionY: number;
  /** T0 and T1 of Text2Video-Zero, as fractions of the steps. */
  readonly t0: number;
  /** T1 likewise. */
  readonly t1: number;
}

const SUPPORTED = "framezero runs Stable Diffusion 1.x (UNet2DConditionModel, text width 768)";

/** Models that people may try, by the class name in their configuration. */
const OTHER_CLASSES: Readonly<Record<string, string>> = {
  UNet3DConditionModel: "a video UNet (ModelScope text-to-video)",
  UNetMotionModel: "a video UNet (AnimateDiff)",
  UNetSpatioTemporalConditionModel: "Stable Video Diffusion",
  SD3Transformer2DModel: "Stable Diffusion 3",
  FluxTransformer2DModel: "FLUX",
  Transformer2DModel: "a diffusion transformer",
  T2IAdapter: "a T2I-Adapter, not a ControlNet",
  ControlNetUnionModel: "a ControlNet of several kinds at once, for SDXL",
  SD3ControlNetModel: "a ControlNet for Stable Diffusion 3",
  FluxControlNetModel: "a ControlNet for FLUX",
};

/** Typed access to the values of one file. */
class Reader {
  readonly json: Json;
  readonly file: string;

  constructor(json: Json, file: string) {
    this.json = json;
    this.file = file;
  }

  #wrong(key: string, rule: string): WeightError {
    const value = JSON.stringify(this.json[key]);
    return new WeightError(`${this.file}: "${key}" must be ${rule}, it is ${value ?? "missing"}`);
  }

  count(key: string, fallback?: number): number {
    const value = this.json[key] ?? fallback;
    if (!Number.isSafeInteger(value) || (value as number) < 1) {
      throw this.#wrong(key, "a whole number of at least 1");
    }
    return value as number;
  }

  number(key: string, fallback?: number): number {
    const value = this.json[key] ?? fallback;
    if (typeof value !== "number" || !Number.isFinite(value)) throw this.#wrong(key, "a number");
    return value;
  }

  counts(key: string, fallback?: readonly number[]): number[] {
    const value = this.json[key] ?? fallback;
    const right = Array.isArray(value) && value.length > 0 &&
      value.every((n) => Number.isSafeInteger(n) && n >= 1);
    if (!right) throw this.#wrong(key, "a list of whole numbers");
    return value;
  }

  /** One of the given values; absent means the first. */
  oneOf<T extends string | number | boolean | null>(key: string, ...allowed: T[]): T {
    const value = (this.json[key] ?? allowed[0]) as T;
    if (!allowed.includes(value)) {
      throw this.#wrong(
        key,
        `${allowed.map((v) => JSON.stringify(v)).join(" or ")} (${SUPPORTED})`,
      );
    }
    return value;
  }
}

/**
 * Reads a UNet's configuration.
 *
 * @throws {WeightError} if it is another architecture (named), or a value makes no sense.
 */
export function unetConfig(
  json: Json,
  file: string,
  className = "UNet2DConditionModel",
): UNetConfig {
  const refuse = (what: string) => new WeightError(`${file}: this is ${what}; ${SUPPORTED}`);
  const found = json._class_name;
  if (found !== undefined && found !== className) {
    throw refuse(OTHER_CLASSES[String(found)] ?? `a ${String(found)}, not a ${className}`);
  }
  if (json.addition_embed_type === "text_time" || json.cross_attention_dim === 2048) {
    throw refuse("SDXL");
  }
  if (json.use_linear_projection === true || json.cross_attention_dim === 1024) {
    throw refuse("Stable Diffusion 2.x");
  }
  if (json.time_cond_proj_dim !== undefined && json.time_cond_proj_dim !== null) {
    throw refuse("an LCM-distilled UNet with guidance embedding");
  }
  const read = new Reader(json, file);
  read.oneOf("act_fn", "silu");
  read.oneOf("class_embed_type", null);
  read.oneOf("addition_embed_type", null);
  read.oneOf("encoder_hid_dim_type", null);
  read.oneOf("resnet_time_scale_shift", "default");
  read.oneOf("only_cross_attention", false);
  read.oneOf("dual_cross_attention", false);
  read.oneOf("center_input_sample", false);
  read.oneOf("downsample_padding", 1);
  read.oneOf("mid_block_scale_factor", 1);
  read.oneOf("transformer_layers_per_block", 1);
  read.oneOf("mid_block_type", "UNetMidBlock2DCrossAttn");
  const blockOutChannels = read.counts("block_out_channels");
  const blocks = blockOutChannels.length;
  const attention = (key: string, withAttention: string, without: string, fallback: string[]) => {
    const types = (json[key] ?? fallback) as string[];
    const right = Array.isArray(types) && types.length === blocks &&
      types.every((type) => type === withAttention || type === without);
    if (!right) {
      throw new WeightError(
        `${file}: "${key}" must be ${blocks} of ${withAttention} and ${without}, ` +
          `it is ${JSON.stringify(types)}; ${SUPPORTED}`,
      );
    }
    return types.map((type) => type === withAttention);
  };
  const repeated = (type: string) => new Array<string>(blocks - 1).fill(type);
  const down = [...repeated("CrossAttnDownBlock2D"), "DownBlock2D"];
  const up = ["UpBlock2D", ...repeated("CrossAttnUpBlock2D")];
  const key = json.num_attention_heads ? "num_attention_heads" : "attention_head_dim";
  const heads = Array.isArray(json[key])
    ? read.counts(key)
    : new Array<number>(blocks).fill(read.count(key, 8));
  return {
    inChannels: read.count("in_channels", 4),
    outChannels: read.count("out_channels", 4),
    blockOutChannels,
    layersPerBlock: read.count("layers_per_block", 2),
    crossAttentionDim: read.count("cross_attention_dim"),
    heads,
    normNumGroups: read.count("norm_num_groups", 32),
    normEps: read.number("norm_eps", 1e-5),
    downAttention: attention("down_block_types", "CrossAttnDownBlock2D", "DownBlock2D", down),
    upAttention: className === "ControlNetModel"
      ? []
      : attention("up_block_types", "CrossAttnUpBlock2D", "UpBlock2D", up),
    flipSinToCos: read.oneOf("flip_sin_to_cos", true, false),
    freqShift: read.number("freq_shift", 0),
    sampleSize: read.count("sample_size", 64),
  };
}

/** Widths through which the maps of ControlNets for SD 1.x pass. */
const CONDITIONING_WIDTHS = [16, 32, 96, 256];

/**
 * Reads a ControlNet's configuration.
 *
 * @throws {WeightError} if it is another architecture (named), or a value makes no sense.
 */
export function controlNetConfig(json: Json, file: string): ControlNetConfig {
  const { outChannels: _, upAttention: __, sampleSize: ___, ...shared } = unetConfig(
    json,
    file,
    "ControlNetModel",
  );
  const read = new Reader(json, file);
  read.oneOf("global_pool_conditions", false);
  read.oneOf("controlnet_conditioning_channel_order", "rgb");
  return {
    ...shared,
    conditioningChannels: read.count("conditioning_channels", 3),
    conditioningWidths: read.counts("conditioning_embedding_out_channels", CONDITIONING_WIDTHS),
  };
}

/**
 * Reads a VAE's configuration.
 *
 * @throws {WeightError} if it is another architecture, or a value makes no sense.
 */
export function vaeConfig(json: Json, file: string): VaeConfig {
  const read = new Reader(json, file);
  if (json._class_name !== undefined && json._class_name !== "AutoencoderKL") {
    throw new WeightError(
      `${file}: this is a ${String(json._class_name)}; framezero needs an AutoencoderKL`,
    );
  }
  const blockOutChannels = read.counts("block_out_channels");
  const types = (key: string, type: string) => {
    const found = json[key];
    if (found === undefined) return;
    if (!Array.isArray(found) || !found.every((name) => name === type)) {
      throw new WeightError(
        `${file}: "${key}" must hold only ${type}, it is ${JSON.stringify(found)}`,
      );
    }
  };
  types("down_block_types", "DownEncoderBlock2D");
  types("up_block_types", "UpDecoderBlock2D");
  read.oneOf("act_fn", "silu");
  return {
    inChannels: read.count("in_channels", 3),
    outChannels: read.count("out_channels", 3),
    latentChannels: read.count("latent_channels", 4),
    blockOutChannels,
    layersPerBlock: read.count("layers_per_block", 2),
    normNumGroups: read.count("norm_num_groups", 32),
    scalingFactor: read.number("scaling_factor", 0.18215),
  };
}

/**
 * Reads a CLIP text encoder's configuration.
 *
 * @throws {WeightError} if it is another architecture, or a value makes no sense.
 */
export function clipTextConfig(json: Json, file: string): ClipTextConfig {
  const read = new Reader(json, file);
  // A whole CLIP model nests the text part.
  const nested = json.text_config;
  if (typeof nested === "object" && nested !== null) return clipTextConfig(nested as Json, file);
  const hiddenSize = read.count("hidden_size");
  return {
    vocabSize: read.count("vocab_size"),
    hiddenSize,
    intermediateSize: read.count("intermediate_size"),
    numHiddenLayers: read.count("num_hidden_layers"),
    numAttentionHeads: read.count("num_attention_heads"),
    maxPositionEmbeddings: read.count("max_position_embeddings", 77),
    hiddenAct: read.oneOf("hidden_act", "quick_gelu", "gelu"),
    layerNormEps: read.number("layer_norm_eps", 1e-5),
    eosTokenId: read.number("eos_token_id", 2),
    projectionDim: read.count("projection_dim", hiddenSize),
  };
}

/**
 * Reads a CLIP image encoder's configuration; what is absent is that of ViT-B/32.
 *
 * @throws {WeightError} if it is another architecture, or a value makes no sense.
 */
export function clipVisionConfig(json: Json, file: string): ClipVisionConfig {
  const read = new Reader(json, file);
  return {
    hiddenSize: read.count("hidden_size", 768),
    intermediateSize: read.count("intermediate_size", 3072),
    numHiddenLayers: read.count("num_hidden_layers", 12),
    numAttentionHeads: read.count("num_attention_heads", 12),
    imageSize: read.count("image_size", 224),
    patchSize: read.count("patch_size", 32),
    hiddenAct: read.oneOf("hidden_act", "quick_gelu", "gelu"),
    layerNormEps: read.number("layer_norm_eps", 1e-5),
    projectionDim: read.count("projection_dim", 512),
  };
}

/**
 * Reads the settings that suit a model; what is absent is the paper's: 50 steps, guidance 7.5,
 * motion 12, T0 and T1 after 6 and 3 of 50 steps.
 *
 * @throws {WeightError} if a value makes no sense.
 */
export function modelDefaults(json: Json, file: string): ModelDefaults {
  const read = new Reader(json, file);
  return {
    steps: read.count("steps", 50),
    guidanceScale: read.number("guidance_scale", 7.5),
    motionX: read.number("motion_field_strength_x", 12),
    motionY: read.number("motion_field_strength_y", 12),
    t0: read.number("t0", 0.88),
    t1: read.number("t1", 0.94),
  };
}
