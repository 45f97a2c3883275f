/**
 * DDIM inversion (arXiv:2010.02502, §4.3; arXiv:2105.05233, appendix F): the noise from which
 * deterministic DDIM makes a given picture. With it Text2Video-Zero begins at a picture: the
 * latents at T1 and T0 are read off the way from the picture to its noise, instead of being
 * denoised.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { assign, linearCombination, narrow } from "../kernels/mod.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import type { ClipStep } from "./clip.ts";
import type { Frame } from "./frame.ts";
import { denoise, inverseScheduler, type Settled } from "./generation.ts";
import { GuidedUNet } from "./guided_unet.ts";
import type { NoiseSource } from "./noise.ts";
import { fitPicture } from "./picture.ts";
import { encodePicture } from "./start_image.ts";

/** The latents of a picture at all noise levels of a schedule, as far as it was inverted. */
export interface Trajectory extends Disposable {
  /** The latents `[1, C, h, w]` at the level of a timestep; without one, those without noise. */
  at(timestep?: number): Tensor;
  /** Puts the picture in the place of the first frame of latents at that level. */
  pin(latents: Tensor, timestep?: number): Tensor;
}

/** How far to invert, and what for. */
export interface InversionOptions {
  /** Steps to invert, from the picture upwards. */
  readonly steps: number;
  /** Steps in all that the clip takes. */
  readonly total: number;
  /** Stops the work within a step. */
  readonly signal?: AbortSignal;
}

/**
 * Refuses schedulers whose steps cannot be inverted.
 *
 * @throws {InputError} for any but DDIM.
 */
export function checkInvertible({ scheduler }: Settled): void {
  if (/^ddim(scheduler)?$/i.test(scheduler)) return;
  throw new InputError(
    `a video from a start image needs the scheduler ddim, whose steps can be inverted, got ` +
      `${scheduler}; leave the scheduler out, or the start image`,
  );
}

/**
 * Inverts a picture without guidance: with it, errors would grow from step to step. Yields after
 * every step.
 *
 * @param text Hidden states of the prompts, the positive one last.
 */
export async function* invertPicture(
  sd: StableDiffusion,
  picture: Frame,
  text: Tensor,
  settled: Settled,
  { steps, total, signal }: InversionOptions,
): AsyncGenerator<ClipStep, Trajectory> {
  const { device, unet, factor } = sd;
  const { width, height } = settled;
  const clean = device.scope(() => encodePicture(sd, fitPicture(device, picture, settled))).keep();
  const levels = new Map<number | undefined, Tensor>([[undefined, clean]]);
  const trajectory = trajectoryOf(levels);
  const scheduler = inverseScheduler(sd, settled);
  const timesteps = scheduler.timesteps.slice(0, steps);
  const guided = device.scope(() =>
    new GuidedUNet(
      unet,
      narrow(text, 0, text.shape[0] - 1, 1),
      [height / factor, width / factor],
      { guidanceScale: 1, crossFrame: false, relieve: () => sd.releaseTextEncoder() },
    )
  );
  let finished = false;
  try {
    const start = device.scope(() => copy(clean)).keep();
    const sampler = {
      unet: guided,
      scheduler,
      noise: NO_NOISE,
      eta: 0,
      signal,
      afterStep: (latents: Tensor, i: number) => {
        levels.set(timesteps[i], copy(latents).keep());
        return latents;
      },
    };
    const progress = { phase: "inversion", before: 0, total } as const;
    (yield* denoise(sampler, start, timesteps, progress)).dispose();
    finished = true;
    return trajectory;
  } finally {
    guided.dispose();
    if (!finished) trajectory[Symbol.dispose]();
  }
}

const copy = (tensor: Tensor): Tensor => linearCombination([1], [tensor]);

/** Deterministic steps draw nothing. */
const NO_NOISE: NoiseSource = { initial: unasked, frames: unasked, clone: unasked };

function unasked(): never {
  throw new Error("inversion is deterministic and draws no noise");
}

function trajectoryOf(levels: Map<number | undefined, Tensor>): Trajectory {
  const at = (timestep?: number): Tensor => {
    const level = levels.get(timestep);
    if (!level) throw new InputError(`the picture was not inverted to timestep ${timestep}`);
    return level;
  };
  return {
    at,
    pin(latents, timestep) {
      assign(latents, at(timestep), 0);
      return latents;
    },
    [Symbol.dispose]() {
      for (const level of levels.values()) level.dispose();
    },
  };
}
