/**
 * Pictures to start from: their latents, and image to image with or without a mask, as diffusers'
 * `StableDiffusionImg2ImgPipeline` and `StableDiffusionInpaintPipeline` have it (SDEdit,
 * arXiv:2108.01073; RePaint's blending, arXiv:2201.09865). The latents of a picture are the mean of
 * the encoder's distribution, where these pipelines draw from it.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, concat, linearCombination, mul, sub } from "../kernels/mod.ts";
import type { UNetConfig } from "../models/config.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Scheduler } from "../schedulers/mod.ts";
import { inFittingBands } from "./clip.ts";
import { checkFrame, type Frame } from "./frame.ts";
import { checkNumber, type Sampler } from "./generation.ts";
import { cropTo, fitMask, fitPicture, type Size } from "./picture.ts";

/** Options of image to image. */
export interface StartImageOptions {
  /** Picture to start from; it covers the size and is cropped in the middle. */
  image?: Frame;
  /**
   * How far `image` is left behind, 0 … 1: ⌊strength · steps⌋ steps are made. 0 gives it back as
   * the autoencoder has it, 1 begins with noise alone. Default 0.8; with a mask 1.
   */
  strength?: number;
  /** Where `image` is painted anew: where this picture of its size is light. */
  mask?: Frame;
}

/** Where a run of image to image begins, and what holds it to its picture. */
export interface Start extends Pick<Sampler, "condition" | "afterStep">, Disposable {
  /** The first latents, `[1, C, h, w]`; the caller's. */
  readonly latents: Tensor;
}

/**
 * The mean of the encoder's distribution for a picture, `[1, C, h, w]`. Computed in f32: what comes
 * of it follows it all the way.
 *
 * @param image `[1, 3, H, W]` in [−1, 1].
 */
export function pictureMean(sd: StableDiffusion, image: Tensor): Tensor {
  return sd.device.scope(() =>
    inFittingBands(sd, (bandBytes) => sd.vae.encode(image, { dtype: "f32", bandBytes })).mean
  );
}

/** The latents of a picture as the UNet has them: {@link pictureMean}, scaled. */
export function encodePicture(sd: StableDiffusion, image: Tensor): Tensor {
  const { scalingFactor } = sd.vae.config;
  return sd.device.scope(() => linearCombination([scalingFactor], [pictureMean(sd, image)]));
}

/** What is cut off a picture, as a remark for the user; `null` if nothing is. */
export function cropRemark(picture: Size, size: Size, what = "start image"): string | null {
  const { width, height } = cropTo(picture, size);
  if (width === picture.width && height === picture.height) return null;
  return `the ${what} of ${picture.width}x${picture.height} has another aspect than ` +
    `${size.width}x${size.height}: only the middle ${width}x${height} of it is used`;
}

/**
 * Refuses a UNet whose input is neither the latents nor, with a mask, those of inpainting: latents,
 * mask, latents of the masked picture. One of InstructPix2Pix takes those of a picture besides.
 *
 * @throws {InputError} saying what the model is for.
 */
export function checkInput({ inChannels, outChannels }: UNetConfig, mask?: Frame): void {
  if (inChannels === outChannels) return;
  if (inChannels === 2 * outChannels) {
    throw new InputError(
      "this is an InstructPix2Pix model, which changes pictures and videos as it is told; give " +
        "it one (edit INSTRUCTION --video FILE), or choose a text-to-image model",
    );
  }
  if (inChannels !== 2 * outChannels + 1) {
    throw new InputError(
      `the UNet must take latents of ${outChannels} channels, or ${2 * outChannels + 1} of ` +
        `inpainting, this one takes ${inChannels}; choose another model`,
    );
  }
  if (mask) return;
  throw new InputError(
    "this is an inpainting model, which makes single pictures from a picture and a mask; give " +
      "both (image --init FILE --mask FILE), or choose a text-to-image model",
  );
}

/**
 * Checks the options of image to image.
 *
 * @returns The strength: 1 without a picture.
 * @throws {InputError} naming the option, the rule and the value.
 */
export function checkStart({ unet }: StableDiffusion, options: StartImageOptions): number {
  const { image, mask, strength } = options;
  checkInput(unet.config, mask);
  if (!image) {
    const lonely = mask ? "mask" : strength === undefined ? null : "strength";
    if (lonely === null) return 1;
    throw new InputError(`${lonely} is about a start image; give one`);
  }
  checkFrame(image, 0, undefined);
  if (mask) {
    checkFrame(mask, 0, undefined);
    if (mask.width !== image.width || mask.height !== image.height) {
      throw new InputError(
        `a mask must have the size of its picture, ${image.width}x${image.height}; this one is ` +
          `${mask.width}x${mask.height}`,
      );
    }
  }
  return checkNumber("strength", strength ?? (mask ? 1 : 0.8), { least: 0, most: 1 });
}

/**
 * The timesteps that are left of a run: those of the last ⌊strength · steps⌋ steps. They are
 * counted from the end, since warm-up lengthens some schedules at their beginning.
 *
 * @param steps Denoising steps, which some schedulers make of several timesteps each.
 */
export function timestepsFrom(
  { timesteps, order }: Pick<Scheduler, "timesteps" | "order">,
  steps: number,
  strength: number,
): readonly number[] {
  const left = Math.floor(steps * strength);
  if (left === steps) return timesteps;
  // The last step ends at no noise, where there is nothing to evaluate a second time.
  return timesteps.slice(timesteps.length - Math.max(0, order * (left - 1) + 1));
}

/**
 * Where a picture begins: at noise, or with a start image at its latents with noise of the first
 * timestep, at full strength noise alone, without any timesteps left the latents themselves.
 *
 * With a mask an inpainting UNet is shown the picture without the masked part. Any other is led:
 * what is not masked is replaced by the picture after every step, with noise of the level reached.
 *
 * @param noise Standard normal noise, `[1, C, h, w]`; must live as long as the start.
 */
export function startFrom(
  sd: StableDiffusion,
  { image, mask }: StartImageOptions,
  { scheduler, timesteps, strength, noise, size }: {
    readonly scheduler: Scheduler;
    readonly timesteps: readonly number[];
    readonly strength: number;
    readonly noise: Tensor;
    readonly size: Size;
  },
): Start {
  const { device, unet } = sd;
  const inpaints = unet.config.inChannels > unet.config.outChannels;
  const pixels = mask && fitMask(mask, size);
  const { latents, ...held } = device.scope(() => {
    const fitted = image && fitPicture(device, image, size);
    const clean = fitted && encodePicture(sd, fitted);
    const latents = !clean || strength === 1
      ? linearCombination([scheduler.initNoiseSigma], [noise])
      : timesteps.length > 0
      ? scheduler.addNoise(clean, noise, timesteps[0])
      : linearCombination([1], [clean]);
    const cells = pixels && maskedCells(sd, pixels, size);
    const condition = fitted && pixels && cells && inpaints
      ? concat([cells, encodePicture(sd, withoutMasked(fitted, pixels))], 1)
      : undefined;
    return { latents, clean, cells, condition };
  });
  const { clean, cells, condition } = held;
  const owned = [clean, cells, condition].filter((tensor) => tensor !== undefined);
  for (const tensor of [latents, ...owned]) tensor.keep();
  return {
    latents,
    condition,
    afterStep: clean && cells && !inpaints
      ? (latents, i) => {
        const next = timesteps[i + 1];
        const known = next === undefined ? clean : scheduler.addNoise(clean, noise, next);
        return add(known, mul(sub(latents, known), cells));
      }
      : undefined,
    [Symbol.dispose]() {
      for (const tensor of owned) tensor.dispose();
    },
  };
}

/** A mask of pixels on the latents, `[1, 1, h, w]`: the first pixel of each cell decides. */
function maskedCells({ device, factor }: StableDiffusion, mask: Float32Array, size: Size): Tensor {
  const [w, h] = [size.width / factor, size.height / factor];
  const cells = Float32Array.from(
    { length: w * h },
    (_, i) => mask[factor * (Math.floor(i / w) * size.width + i % w)],
  );
  return device.tensor(cells, [1, 1, h, w]);
}

/** A picture `[1, 3, H, W]` in [−1, 1] whose masked part is grey. */
function withoutMasked(picture: Tensor, mask: Float32Array): Tensor {
  const [, , height, width] = picture.shape;
  const unmasked = picture.device.tensor(mask.map((value) => 1 - value), [1, 1, height, width]);
  return mul(picture, unmasked);
}
