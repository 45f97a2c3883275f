/**
 * Text to image, from noise or from a picture: Stable Diffusion itself, by the same loop as the
 * video's first frame.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { sameShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import { type Clip, type ClipStep, makeClip } from "./clip.ts";
import {
  type ControlOptions,
  controlSettings,
  readControls,
  settleControls,
} from "./controlled_video.ts";
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
import {
  checkStart,
  cropRemark,
  startFrom,
  type StartImageOptions,
  timestepsFrom,
} from "./start_image.ts";

/** Options of {@link textToImage}. */
export interface TextToImageOptions extends GenerationOptions, StartImageOptions {
  /** x_T, `[1, 4, h, w]`, instead of drawing it. */
  latents?: Tensor;
  /** ControlNets, with one map each. Default: none. */
  controls?: readonly ControlOptions[];
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
  const strength = checkStart(sd, options);
  const scheduler = schedulerFor(sd, settled);
  const timesteps = timestepsFrom(scheduler, settled.steps, strength);
  const { width, height, guidanceScale, guidanceRescale, seed, eta, merge, reuse } = settled;
  const { device, factor, unet } = sd;
  const { signal, image } = options;
  const controls = settleControls(sd, options.controls);
  const shape = [1, unet.config.outChannels, height / factor, width / factor] as const;
  if (options.latents && !sameShape(options.latents.shape, shape)) {
    throw new ShapeError(`latents must have shape [${shape}], got [${options.latents.shape}]`);
  }
  const noise = noisePerFrame(seed, [0]);
  const warnings = samplerWarnings(settled, scheduler);
  const remark = image && cropRemark(image, settled);
  if (remark) warnings.push(remark);

  async function* make(): AsyncGenerator<ClipStep, Tensor> {
    const pictured = { frameIds: [0], counted: true, size: settled, signal };
    const nets = await readControls(controls, pictured);
    const text = await encodePrompts(sd, settled, warnings);
    const [, , ...cells] = shape;
    const relieve = () => sd.releaseTextEncoder();
    const guided = new GuidedUNet(unet, text, cells, {
      guidanceScale,
      guidanceRescale,
      crossFrame: false,
      merge,
      reuse,
      control: nets.length === 0 ? undefined : {
        nets,
        steps: timesteps.length,
        crossFrame: false,
        intoMiddle: false,
      },
      relieve,
    });
    text.dispose();
    const owned: Disposable[] = [guided];
    try {
      const xT = options.latents ?? device.tensor(noise.initial(shape), shape);
      if (!options.latents) owned.push(xT.keep());
      const run = { scheduler, timesteps, strength, noise: xT, size: settled };
      const start = startFrom(sd, options, run);
      owned.push(start);
      const { latents, condition, afterStep } = start;
      const sampler = { unet: guided, scheduler, noise, eta, signal, condition, afterStep };
      const progress = { phase: "frames", before: 0, total: timesteps.length } as const;
      return yield* denoise(sampler, latents, timesteps, progress);
    } finally {
      for (const item of owned) item[Symbol.dispose]();
      scheduler.reset();
      device.trim();
    }
  }

  const settings = {
    ...settled,
    ...(image && { strength }),
    ...controlSettings(controls),
    ...modelSettings(sd),
  };
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
