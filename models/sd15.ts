/**
 * The configuration of Stable Diffusion 1.5, for checkpoints that bring none of their own: the
 * values of its published `config.json` files.
 *
 * @module
 */

import {
  type ClipTextConfig,
  clipTextConfig,
  type ControlNetConfig,
  controlNetConfig,
  type Json,
  type UNetConfig,
  unetConfig,
  type VaeConfig,
  vaeConfig,
} from "./config.ts";

/** The parts of a checkpoint that hold weights, named as diffusers names their folders. */
export type Part = "text_encoder" | "unet" | "vae";

/** Names of the parts, in the order in which they are loaded. */
export const PARTS: readonly Part[] = ["text_encoder", "unet", "vae"];

/** `config.json` of each part of SD 1.5. */
export const SD15_JSON: Readonly<Record<Part, Json>> = {
  text_encoder: {
    architectures: ["CLIPTextModel"],
    bos_token_id: 0,
    eos_token_id: 2,
    hidden_act: "quick_gelu",
    hidden_size: 768,
    intermediate_size: 3072,
    layer_norm_eps: 1e-5,
    max_position_embeddings: 77,
    model_type: "clip_text_model",
    num_attention_heads: 12,
    num_hidden_layers: 12,
    pad_token_id: 1,
    projection_dim: 768,
    vocab_size: 49408,
  },
  unet: {
    _class_name: "UNet2DConditionModel",
    act_fn: "silu",
    attention_head_dim: 8,
    block_out_channels: [320, 640, 1280, 1280],
    center_input_sample: false,
    cross_attention_dim: 768,
    down_block_types: [
      "CrossAttnDownBlock2D",
      "CrossAttnDownBlock2D",
      "CrossAttnDownBlock2D",
      "DownBlock2D",
    ],
    downsample_padding: 1,
    flip_sin_to_cos: true,
    freq_shift: 0,
    in_channels: 4,
    layers_per_block: 2,
    mid_block_scale_factor: 1,
    norm_eps: 1e-5,
    norm_num_groups: 32,
    out_channels: 4,
    sample_size: 64,
    up_block_types: [
      "UpBlock2D",
      "CrossAttnUpBlock2D",
      "CrossAttnUpBlock2D",
      "CrossAttnUpBlock2D",
    ],
  },
  vae: {
    _class_name: "AutoencoderKL",
    act_fn: "silu",
    block_out_channels: [128, 256, 512, 512],
    down_block_types: new Array<string>(4).fill("DownEncoderBlock2D"),
    in_channels: 3,
    latent_channels: 4,
    layers_per_block: 2,
    norm_num_groups: 32,
    out_channels: 3,
    sample_size: 512,
    scaling_factor: 0.18215,
    up_block_types: new Array<string>(4).fill("UpDecoderBlock2D"),
  },
};

/** `scheduler_config.json` of SD 1.5. */
export const SD15_SCHEDULER: Json = {
  _class_name: "PNDMScheduler",
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  beta_start: 0.00085,
  clip_sample: false,
  num_train_timesteps: 1000,
  set_alpha_to_one: false,
  skip_prk_steps: true,
  steps_offset: 1,
  trained_betas: null,
};

/** The checked configurations of a checkpoint's parts. */
export interface PartConfigs {
  /** Of the text encoder. */
  readonly text_encoder: ClipTextConfig;
  /** Of the denoiser. */
  readonly unet: UNetConfig;
  /** Of the autoencoder. */
  readonly vae: VaeConfig;
}

/** The configurations of SD 1.5. */
export const SD15: PartConfigs = {
  text_encoder: clipTextConfig(SD15_JSON.text_encoder, "Stable Diffusion 1.5, text_encoder"),
  unet: unetConfig(SD15_JSON.unet, "Stable Diffusion 1.5, unet"),
  vae: vaeConfig(SD15_JSON.vae, "Stable Diffusion 1.5, vae"),
};

/** The configuration of ControlNets for SD 1.5. */
export const SD15_CONTROLNET: ControlNetConfig = controlNetConfig(
  { ...SD15_JSON.unet, _class_name: "ControlNetModel" },
  "ControlNet for Stable Diffusion 1.5",
);
