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
import { generatedWeights } from "../models/generated_weights.ts";
import type { Part, PartConfigs } from "../models/sd15.ts";
import { StableDiffusion, type StableDiffusionParts } from "../models/stable_diffusion.ts";
import { stateDicts } from "../models/state_dict.ts";
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
}

/** The outline of a model that is loaded. */
export function outlineOf(sd: StableDiffusion): Outline {
  const { tokenizer, schedulerConfig, defaults, textEncoder, unet, vae } = sd;
  const configs = { text_encoder: textEncoder.config, unet: unet.config, vae: vae.config };
  return { tokenizer, schedulerConfig, defaults, configs, dtype: unet.dtype };
}

/**
 * Bytes on the GPU that a clip takes at most while it is made, the model included.
 *
 * With `rows: 1` in the options of the clip it is the smallest memory budget that suffices.
 *
 * @param like Limits, features and kind of the device.
 * @param make The clip, of a model that it is given; made of zeros.
 */
export async function memoryNeeded(
  outline: Outline,
  like: Likeness,
  make: (sd: StableDiffusion) => Clip,
  options: DeviceOptions = {},
): Promise<number> {
  // Idle buffers are no need.
  const device = openNullDevice(like, { ...options, poolBytes: 0 });
  const { configs, dtype, ...rest } = outline;
  const shapes = stateDicts(configs);
  const zeros = (part: Part) => generatedWeights(part, shapes[part], () => {});
  const to = { device, dtype };
  const sd = StableDiffusion.of({
    ...rest,
    device,
    textEncoder: await ClipTextModel.load(zeros("text_encoder"), configs.text_encoder, to),
    unet: await UNet2DConditionModel.load(zeros("unet"), configs.unet, to),
    vae: await AutoencoderKL.load(zeros("vae"), configs.vae, to),
  });
  const clip = make(sd);
  try {
    for await (const _ of clip) break; // all frames are denoised before the first is decoded
    return device.memory().peak;
  } finally {
    clip.dispose();
    sd.dispose();
    device.dispose();
  }
}
