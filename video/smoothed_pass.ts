/**
 * The joint pass of Text2Video-Zero, all frames from T1 on, with background smoothing: where the
 * foreground has to be found in the frames, they are denoised twice, the second time from smoothed
 * latents. Masks that are given need no first time: smoothing takes nothing else from it.
 *
 * The second pass is the first with other latents: it has the same noise and recorded work.
 * Keys and values of the first frame are computed anew; keeping them for all steps would take
 * gigabytes where they take a share of 1/frames of the pass.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { linearCombination } from "../kernels/mod.ts";
import { findWords } from "../models/prompt.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import {
  foregroundOf,
  maskOfCells,
  smoothBackground,
  type SmoothingBlend,
  type SmoothingSettings,
} from "./background_smoothing.ts";
import { type ClipStep, decodeFrame, toFrame } from "./clip.ts";
import {
  cellsOfFrames,
  checkMask,
  type MaskDetector,
  type MaskSource,
  SubjectAttention,
} from "./foreground.ts";
import type { Frame } from "./frame.ts";
import { checkNumber, denoise, type Sampler, type Settled } from "./generation.ts";
import type { NoiseSource } from "./noise.ts";
import type { Size } from "./picture.ts";

/** Background smoothing of a clip. */
export interface BackgroundSmoothing {
  /** Where the foreground is. */
  masks: MaskSource;
  /**
   * How much of its own background a frame keeps at T1, 0 … 1: at 0 it begins with the first
   * frame's, at 1 nothing changes. Default 0.4, as in the original code (the paper's α is 0.6).
   */
  strength?: number;
  /** Whose formula. Default `"code"`, that of the authors' code. */
  blend?: SmoothingBlend;
}

/** How the foreground becomes known. */
type Foreground =
  | { readonly by: "cells"; readonly cells: readonly Float32Array[] }
  | { readonly by: "subject"; readonly subject: string; readonly tokens: readonly number[] }
  | { readonly by: "detector"; readonly detector: MaskDetector };

/** Pictures that have not been read yet. */
type Unread = {
  readonly by: "pictures";
  readonly pictures: Iterable<Frame> | AsyncIterable<Frame>;
};

/** Background smoothing, checked and completed. */
export interface Smoother<F = Foreground> extends Pick<SmoothingSettings, "strength" | "blend"> {
  readonly foreground: F;
  /** How often the joint pass is made. */
  readonly passes: 1 | 2;
}

const BLENDS: readonly SmoothingBlend[] = ["code", "paper"];

/**
 * Checks the options of smoothing.
 *
 * @param frames How many the clip has.
 * @throws {InputError} naming the option, the rule and the value; a subject that the prompt lacks.
 */
export function settleSmoothing(
  sd: StableDiffusion,
  settled: Settled,
  { masks, strength = 0.4, blend = "code" }: BackgroundSmoothing,
  frames: number,
): Smoother<Foreground | Unread> {
  if (frames < 2) {
    throw new InputError(
      "smoothing draws frames towards the first one and needs two at least, got 1; leave it out",
    );
  }
  if (!BLENDS.includes(blend)) {
    throw new InputError(
      `smoothing: blend must be one of ${BLENDS.join(", ")}, got ${String(blend)}`,
    );
  }
  checkNumber("smoothing: strength", strength, { least: 0, most: 1 });
  const foreground = foregroundFrom(sd, settled, masks);
  return { strength, blend, foreground, passes: foreground.by === "pictures" ? 1 : 2 };
}

function foregroundFrom(
  sd: StableDiffusion,
  settled: Settled,
  masks: MaskSource,
): Foreground | Unread {
  if ("subject" in masks) {
    const { subject } = masks;
    return { by: "subject", subject, tokens: findWords(sd, settled.prompt, subject, settled) };
  }
  return "detect" in masks
    ? { by: "detector", detector: masks }
    : { by: "pictures", pictures: masks };
}

/**
 * Reads masks that are given, before anything is computed.
 *
 * @throws {InputError} if there are not as many as frames, or one has another aspect.
 */
export async function readMasks(
  smoother: Smoother<Foreground | Unread>,
  frames: number,
  clip: Size,
  cells: readonly [number, number],
): Promise<Smoother> {
  const { foreground, ...rest } = smoother;
  if (foreground.by !== "pictures") return { ...rest, foreground };
  const read = await cellsOfFrames(foreground.pictures, frames, clip, cells);
  return { ...rest, foreground: { by: "cells", cells: read } };
}

/** Tokens of the prompt that the UNet has to watch. */
export function watchedTokens(smoother?: Smoother): readonly number[] | undefined {
  return smoother?.foreground.by === "subject" ? smoother.foreground.tokens : undefined;
}

/** What settings of clips say about smoothing. */
export function smoothingSettings(
  smoother?: Smoother<Foreground | Unread>,
): Record<string, unknown> {
  if (!smoother) return {};
  const { strength, blend, foreground } = smoother;
  return {
    smooth: strength,
    smoothBlend: blend,
    ...(foreground.by === "subject" && { subject: foreground.subject }),
  };
}

/** The joint pass of a clip. */
export interface JointPass extends Pick<SmoothingSettings, "camera" | "level" | "frameIds"> {
  readonly sd: StableDiffusion;
  readonly sampler: Sampler;
  /** From T1 on. */
  readonly timesteps: readonly number[];
  /** Steps made before. */
  readonly before: number;
  /** Place of T1 in the whole schedule. */
  readonly place: number;
  /** Whose smoothing it is, if there is any. */
  readonly smoother: Smoother | undefined;
  /** Takes schedulers back to what they remember at T1. */
  readonly rewind: () => void;
  /** Remarks for the user are added to these. */
  readonly warnings: string[];
  /** Sees foreground and smoothed latents. */
  readonly see: (name: "foreground" | "x_t1_smoothed", value: Tensor) => void;
}

/**
 * Denoises all frames from T1 on, with smoothing where there is a smoother. Yields every step.
 *
 * @param x Latents at T1, `[frames, C, h, w]`; is disposed of.
 * @returns x_0 of all frames.
 */
export async function* denoiseTogether(
  x: Tensor,
  pass: JointPass,
): AsyncGenerator<ClipStep, Tensor> {
  const { sampler, smoother, see } = pass;
  if (!smoother) return yield* run(x, pass, sampler.noise, "frames");
  const { device } = x;
  const [, , h, w] = x.shape;
  const noise = sampler.noise.clone();
  let smoothed: Tensor;
  try {
    const cells = yield* foregroundCellsOf(x, pass, smoother.foreground);
    smoothed = device.scope(() => {
      const foreground = foregroundOf(device, cells, [h, w]);
      see("foreground", foreground);
      return smoothBackground(x, foreground, { ...smoother, ...pass });
    }).keep();
  } finally {
    x.dispose();
  }
  see("x_t1_smoothed", smoothed);
  return yield* run(smoothed, pass, noise, smoother.passes === 1 ? "frames" : "smoothing");
}

function run(
  start: Tensor,
  { sampler, timesteps, before, place, rewind, smoother }: JointPass,
  noise: NoiseSource,
  phase: "frames" | "smoothing",
): AsyncGenerator<ClipStep, Tensor> {
  rewind();
  const made = before + (phase === "smoothing" ? timesteps.length : 0);
  const total = before + (smoother?.passes ?? 1) * timesteps.length;
  return denoise({ ...sampler, noise }, start, timesteps, { phase, before: made, total, place });
}

/** The foreground of every frame, in cells. */
async function* foregroundCellsOf(
  x: Tensor,
  pass: JointPass,
  foreground: Foreground,
): AsyncGenerator<ClipStep, readonly Float32Array[]> {
  const { sampler, timesteps } = pass;
  const copy = () => x.device.scope(() => linearCombination([1], [x])).keep();
  switch (foreground.by) {
    case "cells":
      return foreground.cells;
    case "detector": {
      const clean = yield* run(copy(), pass, sampler.noise, "frames");
      return await detected(foreground.detector, clean, pass).finally(() => clean.dispose());
    }
    case "subject": {
      const attention = new SubjectAttention(timesteps.length);
      const afterStep = (latents: Tensor, i: number): Tensor => {
        attention.add(sampler.unet.subjectMap as Tensor, i);
        return sampler.afterStep?.(latents, i) ?? latents;
      };
      const watched = { ...pass, sampler: { ...sampler, afterStep } };
      try {
        (yield* run(copy(), watched, sampler.noise, "frames")).dispose();
        return await attention.masks();
      } finally {
        attention[Symbol.dispose]();
      }
    }
  }
}

/** What a detector sees in the frames. */
async function detected(
  detector: MaskDetector,
  latents: Tensor,
  { sd, warnings, sampler }: JointPass,
): Promise<Float32Array[]> {
  const [frames, , h, w] = latents.shape;
  const clip = { width: w * sd.factor, height: h * sd.factor };
  const masks: Float32Array[] = [];
  for (let k = 0; k < frames; k++) {
    sampler.signal?.throwIfAborted();
    const pixels = await decodeFrame(sd, latents, k, warnings);
    const mask = await detector.detect(toFrame(pixels, clip.width, clip.height));
    checkMask(mask, clip, k);
    masks.push(maskOfCells(mask, [h, w]));
  }
  sd.device.trim(); // the second pass has no use for what a detector's buffers were
  return masks;
}
