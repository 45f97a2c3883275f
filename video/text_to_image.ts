/**
 * Text to image: Stable Diffusion itself, by the same loop as the video's first frame.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { sameShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { linearCombination } from "../kernels/mod.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import { type Clip, type ClipStep, makeClip } from "./clip.ts";
import {
  denoise,
  encodePrompts,
  type GenerationOptions,
  modelSettings,
  schedulerFor,
  settle,
} from "./generation.ts";
import { GuidedUNet } from "./guided_unet.ts";
import { noisePerFrame } from "./noise.ts";
import { samplerWarnings } from "./sampler_warnings.ts";

/** Options of {@link textToImage}. */
export interface TextToImageOptions extends GenerationOptions {
  /** x_T, `[1, 4, h, w]`, instead of drawing it. */
  latents?: Tensor;
}

/**
 * Makes one picture: a clip of one frame.
 *
 * @throws {InputError} if an option cannot be used; the message names it.
 */
export function textToImage(
  sd: StableDiffusion,
  prompt: string,
  options: TextToImageOptions = {},
): Clip {
  const settled = settle(sd, prompt, options);
  const scheduler = schedulerFor(sd, settled);
  const { width, height, guidanceScale, guidanceRescale, seed, eta, merge, reuse } = settled;
  const { device, factor, unet } = sd;
  const { signal } = options;
  const shape = [1, unet.config.outChannels, height / factor, width / factor] as const;
  if (options.latents && !sameShape(options.latents.shape, shape)) {
    throw new ShapeError(`latents must have shape [${shape}], got [${options.latents.shape}]`);
  }
  const noise = noisePerFrame(seed, [0]);
  const warnings = samplerWarnings(settled, scheduler);

  async function* make(): AsyncGenerator<ClipStep, Tensor> {
    const text = await encodePrompts(sd, settled, warnings);
    const [, , ...cells] = shape;
    const relieve = () => sd.releaseTextEncoder();
    const guided = new GuidedUNet(unet, text, cells, {
      guidanceScale,
      guidanceRescale,
      crossFrame: false,
      merge,
      reuse,
      relieve,
    });
    text.dispose();
    try {
      const start = device.scope(() => {
        const xT = options.latents ?? device.tensor(noise.initial(shape), shape);
        return linearCombination([scheduler.initNoiseSigma], [xT]);
      }).keep();
      const sampler = { unet: guided, scheduler, noise, eta, signal };
      const total = scheduler.timesteps.length;
      const progress = { phase: "frames", before: 0, total } as const;
      return yield* denoise(sampler, start, scheduler.timesteps, progress);
    } finally {
      guided.dispose();
      scheduler.reset();
      device.trim();
    }
  }

  const settings = { ...settled, ...modelSettings(sd) };
  return makeClip({
    sd,
    frameIds: [0],
    width,
    height,
    settings,
    warnings,
    signal,
    denoise: make(),
  });
}
