/**
 * How much memory a clip takes on the GPU, found without computing it: the same program runs on a
 * device that only accounts.
 *
 * @module
 */

import type { DeviceOptions } from "../core/device.ts";
import type { DType } from "../core/dtype.ts";
import { type Likeness, openNullDevice } from "../core/null_gpu.ts";
import { ClipTextModel } from "../models/clip_text.ts";
import { ControlNetModel } from "../models/controlnet.ts";
import { generatedWeights } from "../models/generated_weights.ts";
import type { Part, PartConfigs } from "../models/sd15.ts";
import { StableDiffusion, type StableDiffusionParts } from "../models/stable_diffusion.ts";
import { controlNetStateDict, stateDicts } from "../models/state_dict.ts";
import { UNet2DConditionModel } from "../models/unet.ts";
import { AutoencoderKL } from "../models/vae.ts";
import type { Clip } from "./clip.ts";

/** A checkpoint without its weights. */
export interface Outline
  extends Pick<StableDiffusionParts, "tokenizer" | "schedulerConfig" | "defaults"> {
  /** Extents of its parts. */
  readonly configs: PartConfigs;
  /** Type of weights and activations. */
  readonly dtype: DType;
  /** Whether the UNet's weights are rounded to 8 bits. Default false. */
  readonly quantize?: boolean;
  /** ControlNets beside it, in types of their own. */
  readonly controlNets?: readonly Pick<ControlNetModel, "config" | "dtype" | "quantized">[];
}

/** The outline of a model that is loaded, and of ControlNets beside it. */
export function outlineOf(
  sd: StableDiffusion,
  controlNets: Outline["controlNets"] = [],
): Outline {
  const { tokenizer, schedulerConfig, defaults, textEncoder, unet, vae } = sd;
  const configs = { text_encoder: textEncoder.config, unet: unet.config, vae: vae.config };
  return {
    tokenizer,
    schedulerConfig,
    defaults,
    configs,
    dtype: unet.dtype,
    quantize: unet.quantized,
    controlNets,
  };
}

/**
 * A model of zeros on a device that only accounts.
 *
 * @param like Limits, features and kind of the device.
 */
export async function openOutline(
  outline: Outline,
  like: Likeness,
  options: DeviceOptions = {},
): Promise<StableDiffusion> {
  // Idle buffers are no need.
  const device = openNullDevice(like, { ...options, poolBytes: 0 });
  const { configs, dtype, quantize, controlNets: _, ...rest } = outline;
  const shapes = stateDicts(configs);
  const zeros = (part: Part) => generatedWeights(part, shapes[part], () => {});
  const to = { device, dtype };
  return StableDiffusion.of({
    ...rest,
    device,
    textEncoder: await ClipTextModel.load(zeros("text_encoder"), configs.text_encoder, to),
    unet: await UNet2DConditionModel.load(zeros("unet"), configs.unet, { ...to, quantize }),
    vae: await AutoencoderKL.load(zeros("vae"), configs.vae, to),
  });
}

async function openControlNets(
  { controlNets = [] }: Outline,
  { device }: StableDiffusion,
): Promise<ControlNetModel[]> {
  const nets: ControlNetModel[] = [];
  for (const { config, dtype, quantized: quantize } of controlNets) {
    const zeros = generatedWeights("controlnet", controlNetStateDict(config), () => {});
    nets.push(await ControlNetModel.fromSource(zeros, config, { device, dtype, quantize }));
  }
  return nets;
}

/**
 * Bytes on the GPU that a clip takes at most while it is made, the model included.
 *
 * With `rows: 1` in the options of the clip it is a memory budget that suffices.
 *
 * @param like Limits, features and kind of the device.
 * @param make The clip, of a model and ControlNets that it is given; made of zeros.
 */
export async function memoryNeeded(
  outline: Outline,
  like: Likeness,
  make: (sd: StableDiffusion, controlNets: readonly ControlNetModel[]) => Clip,
): Promise<number> {
  const sd = await openOutline(outline, like);
  try {
    return await peakOf(make(sd, await openControlNets(outline, sd)), sd);
  } finally {
    sd.dispose();
    sd.device.dispose();
  }
}

/** Bytes on the GPU at most while a clip is made; its frames are dropped. */
export async function peakOf(clip: Clip, { device }: StableDiffusion): Promise<number> {
  try {
    for await (const _ of clip) break; // all frames are denoised before the first is decoded
    return device.memory().peak;
  } finally {
    clip.dispose();
  }
}
