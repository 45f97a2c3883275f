/**
 * What a complete checkpoint of Stable Diffusion 1.x holds: the name and shape of every tensor of a
 * model, from its configuration alone. Needs no file and no device, so that a checkpoint can be
 * judged by its header.
 *
 * @module
 */

import { sameShape, type Shape } from "../core/shape.ts";
import {
  type ClipTextConfig,
  type ControlNetConfig,
  type EncoderConfig,
  skipWidths,
  type UNetConfig,
  type VaeConfig,
} from "./config.ts";
import type { Part, PartConfigs } from "./sd15.ts";

/** Name → shape, in diffusers' names, as PyTorch stores it. */
export type StateDict = ReadonlyMap<string, Shape>;

/** Tensors collected under a path. */
class Tensors {
  readonly found = new Map<string, Shape>();

  affine(path: string, weight: Shape, bias = true): void {
    this.found.set(`${path}.weight`, weight);
    if (bias) this.found.set(`${path}.bias`, [weight[0]]);
  }

  conv(path: string, channels: number, outputs: number, size: number): void {
    this.affine(path, [outputs, channels, size, size]);
  }

  linear(path: string, channels: number, outputs: number, bias = true): void {
    this.affine(path, [outputs, channels], bias);
  }

  norm(path: string, channels: number): void {
    this.affine(path, [channels]);
  }

  /** `timeWidth` is `null` in the autoencoder, which knows no time. */
  resnet(path: string, channels: number, outputs: number, timeWidth: number | null): void {
    this.norm(`${path}.norm1`, channels);
    this.conv(`${path}.conv1`, channels, outputs, 3);
    if (timeWidth !== null) this.linear(`${path}.time_emb_proj`, timeWidth, outputs);
    this.norm(`${path}.norm2`, outputs);
    this.conv(`${path}.conv2`, outputs, outputs, 3);
    if (channels !== outputs) this.conv(`${path}.conv_shortcut`, channels, outputs, 1);
  }

  transformer(path: string, channels: number, textWidth: number): void {
    this.norm(`${path}.norm`, channels);
    this.conv(`${path}.proj_in`, channels, channels, 1);
    const block = `${path}.transformer_blocks.0`;
    for (const norm of ["norm1", "norm2", "norm3"]) this.norm(`${block}.${norm}`, channels);
    for (const [attention, width] of [["attn1", channels], ["attn2", textWidth]] as const) {
      this.linear(`${block}.${attention}.to_q`, channels, channels, false);
      this.linear(`${block}.${attention}.to_k`, width, channels, false);
      this.linear(`${block}.${attention}.to_v`, width, channels, false);
      this.linear(`${block}.${attention}.to_out.0`, channels, channels);
    }
    this.linear(`${block}.ff.net.0.proj`, channels, 8 * channels);
    this.linear(`${block}.ff.net.2`, 4 * channels, channels);
    this.conv(`${path}.proj_out`, channels, channels, 1);
  }
}

/** The way down and the middle. */
function encoderTensors(all: Tensors, config: EncoderConfig): void {
  const { blockOutChannels: widths, layersPerBlock: layers, crossAttentionDim: text } = config;
  const time = 4 * widths[0];
  const top = widths.length - 1;
  all.conv("conv_in", config.inChannels, widths[0], 3);
  all.linear("time_embedding.linear_1", widths[0], time);
  all.linear("time_embedding.linear_2", time, time);
  widths.forEach((width, i) => {
    const block = `down_blocks.${i}`;
    for (let j = 0; j < layers; j++) {
      const channels = j ? width : widths[Math.max(0, i - 1)];
      all.resnet(`${block}.resnets.${j}`, channels, width, time);
      if (config.downAttention[i]) all.transformer(`${block}.attentions.${j}`, width, text);
    }
    if (i < top) all.conv(`${block}.downsamplers.0.conv`, width, width, 3);
  });
  all.resnet("mid_block.resnets.0", widths[top], widths[top], time);
  all.transformer("mid_block.attentions.0", widths[top], text);
  all.resnet("mid_block.resnets.1", widths[top], widths[top], time);
}

/** The tensors of a `UNet2DConditionModel`; 686 for SD 1.5. */
export function unetStateDict(config: UNetConfig): StateDict {
  const all = new Tensors();
  const { blockOutChannels: widths, layersPerBlock: layers, crossAttentionDim: text } = config;
  const time = 4 * widths[0];
  const top = widths.length - 1;
  encoderTensors(all, config);
  // Outputs that the way up takes in again, the last first.
  const skips = skipWidths(config);
  let channels = widths[top];
  widths.toReversed().forEach((width, i) => {
    const block = `up_blocks.${i}`;
    for (let j = 0; j <= layers; j++) {
      all.resnet(`${block}.resnets.${j}`, channels + (skips.pop() as number), width, time);
      if (config.upAttention[i]) all.transformer(`${block}.attentions.${j}`, width, text);
      channels = width;
    }
    if (i < top) all.conv(`${block}.upsamplers.0.conv`, width, width, 3);
  });
  all.norm("conv_norm_out", channels);
  all.conv("conv_out", channels, config.outChannels, 3);
  return all.found;
}

/** The tensors of a `ControlNetModel`; 340 for those of SD 1.5. */
export function controlNetStateDict(config: ControlNetConfig): StateDict {
  const all = new Tensors();
  const { blockOutChannels: widths, conditioningWidths } = config;
  encoderTensors(all, config);
  const embedding = "controlnet_cond_embedding";
  const last = conditioningWidths.length - 1;
  all.conv(`${embedding}.conv_in`, config.conditioningChannels, conditioningWidths[0], 3);
  conditioningWidths.slice(1).forEach((next, i) => {
    all.conv(`${embedding}.blocks.${2 * i}`, conditioningWidths[i], conditioningWidths[i], 3);
    all.conv(`${embedding}.blocks.${2 * i + 1}`, conditioningWidths[i], next, 3);
  });
  all.conv(`${embedding}.conv_out`, conditioningWidths[last], widths[0], 3);
  skipWidths(config).forEach((width, i) =>
    all.conv(`controlnet_down_blocks.${i}`, width, width, 1)
  );
  all.conv("controlnet_mid_block", widths[widths.length - 1], widths[widths.length - 1], 1);
  return all.found;
}

/** The tensors of an `AutoencoderKL`, by the present names of its attention; 248 for SD 1.5. */
export function vaeStateDict(config: VaeConfig): StateDict {
  const all = new Tensors();
  const { blockOutChannels: widths, layersPerBlock: layers, latentChannels: latents } = config;
  const top = widths.length - 1;
  const middle = (path: string, width: number) => {
    all.resnet(`${path}.resnets.0`, width, width, null);
    all.norm(`${path}.attentions.0.group_norm`, width);
    for (const name of ["to_q", "to_k", "to_v", "to_out.0"]) {
      all.linear(`${path}.attentions.0.${name}`, width, width);
    }
    all.resnet(`${path}.resnets.1`, width, width, null);
  };
  all.conv("encoder.conv_in", config.inChannels, widths[0], 3);
  widths.forEach((width, i) => {
    const block = `encoder.down_blocks.${i}`;
    for (let j = 0; j < layers; j++) {
      all.resnet(`${block}.resnets.${j}`, j ? width : widths[Math.max(0, i - 1)], width, null);
    }
    if (i < top) all.conv(`${block}.downsamplers.0.conv`, width, width, 3);
  });
  middle("encoder.mid_block", widths[top]);
  all.norm("encoder.conv_norm_out", widths[top]);
  all.conv("encoder.conv_out", widths[top], 2 * latents, 3);
  all.conv("quant_conv", 2 * latents, 2 * latents, 1);
  all.conv("post_quant_conv", latents, latents, 1);
  all.conv("decoder.conv_in", latents, widths[top], 3);
  middle("decoder.mid_block", widths[top]);
  const up = widths.toReversed();
  up.forEach((width, i) => {
    const block = `decoder.up_blocks.${i}`;
    for (let j = 0; j <= layers; j++) {
      all.resnet(`${block}.resnets.${j}`, j ? width : up[Math.max(0, i - 1)], width, null);
    }
    if (i < top) all.conv(`${block}.upsamplers.0.conv`, width, width, 3);
  });
  all.norm("decoder.conv_norm_out", widths[0]);
  all.conv("decoder.conv_out", widths[0], config.outChannels, 3);
  return all.found;
}

/** The tensors of a `CLIPTextModel`; 196 for SD 1.5. */
export function clipTextStateDict(config: ClipTextConfig): StateDict {
  const all = new Tensors();
  const { hiddenSize: width, intermediateSize: hidden } = config;
  const embeddings = "text_model.embeddings";
  all.affine(`${embeddings}.token_embedding`, [config.vocabSize, width], false);
  all.affine(`${embeddings}.position_embedding`, [config.maxPositionEmbeddings, width], false);
  for (let i = 0; i < config.numHiddenLayers; i++) {
    const layer = `text_model.encoder.layers.${i}`;
    all.norm(`${layer}.layer_norm1`, width);
    for (const name of ["q_proj", "k_proj", "v_proj", "out_proj"]) {
      all.linear(`${layer}.self_attn.${name}`, width, width);
    }
    all.norm(`${layer}.layer_norm2`, width);
    all.linear(`${layer}.mlp.fc1`, width, hidden);
    all.linear(`${layer}.mlp.fc2`, hidden, width);
  }
  all.norm("text_model.final_layer_norm", width);
  return all.found;
}

/** The tensors of every part of a checkpoint. */
export function stateDicts(configs: PartConfigs): Readonly<Record<Part, StateDict>> {
  return {
    text_encoder: clipTextStateDict(configs.text_encoder),
    unet: unetStateDict(configs.unet),
    vae: vaeStateDict(configs.vae),
  };
}

/**
 * Whether two shapes hold the same weights: linear layers are sometimes stored as 1×1 convolutions,
 * and the other way round.
 */
export function sameWeights(a: Shape, b: Shape): boolean {
  const squeezed = (shape: Shape) => shape.slice(0, shape.findLastIndex((n) => n !== 1) + 1);
  return sameShape(squeezed(a), squeezed(b));
}
