/**
 * Text2Video-Zero: a video from an image model, without training (Khachatryan et al.,
 * arXiv:2303.13439, Algorithm 1).
 *
 * 1. The first frame is denoised from x_T down to the timesteps T1 and T0 (T′ and T′−Δt).
 * 2. Motion in the latent codes (§3.2): the other frames begin as translations of the first
 *    frame's latents at T0 ({@link warpLatents}), and are noised up to T1 again, which gives their
 *    objects freedom to move.
 * 3. Cross-frame attention (§3.3): from T1 all frames are denoised together; in every
 *    self-attention layer each frame attends to the first one ({@link GuidedUNet}).
 *
 * Background smoothing (§3.4) goes around step 3 ({@link denoiseTogether}).
 *
 * With a start image step 1 is its DDIM inversion to T0 and T1 ({@link invertPicture}), and in step
 * 3 the first frame stays on that way: it is the picture, and the others attend to it.
 *
 * Where paper, original code and diffusers disagree, diffusers' pipeline is followed; with its
 * initial latents and noise the results agree to numeric tolerance.
 *
 * @module
 */

import { InputError, ShapeError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { sameShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { assign, linearCombination } from "../kernels/mod.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import { forwardAlphaProduct, type Scheduler, type SchedulerConfig } from "../schedulers/mod.ts";
import { type Clip, type ClipStep, makeClip } from "./clip.ts";
import { checkFrame, type Frame } from "./frame.ts";
import {
  checkNumber,
  denoise,
  encodePrompts,
  type GenerationOptions,
  modelSettings,
  type Sampler,
  schedulerFor,
  settle,
} from "./generation.ts";
import { GuidedUNet } from "./guided_unet.ts";
import { checkInvertible, invertPicture, type Trajectory } from "./inversion.ts";
import { type Motion, warpLatents } from "./motion_field.ts";
import { noiseOfDiffusers, noisePerFrame } from "./noise.ts";
import { samplerWarnings, videoWarnings } from "./sampler_warnings.ts";
import {
  type BackgroundSmoothing,
  denoiseTogether,
  type JointPass,
  readMasks,
  settleSmoothing,
  type Smoother,
  smoothingSettings,
  watchedTokens,
} from "./smoothed_pass.ts";
import { checkInput, cropRemark } from "./start_image.ts";

/** Options of {@link textToVideo}. */
export interface TextToVideoOptions extends GenerationOptions {
  /**
   * The first frame, instead of what the prompt alone would make; it covers the size and is cropped
   * in the middle. Needs the scheduler `"ddim"`.
   */
  image?: Frame;
  /** Number of frames. Default 8. */
  frames?: number;
  /** Frame numbers, the first of which is the anchor. Default 0 … frames − 1. */
  frameIds?: readonly number[];
  /** Motion of the camera to the right, in 512ths of the width a frame. Default: the model's, or 12. */
  motionFieldStrengthX?: number;
  /** Motion of the camera downwards, in 512ths of the height a frame. Default: as above. */
  motionFieldStrengthY?: number;
  /** Steps that lie below T0, the one at T0 not counted. Default: 44 of 50. */
  t0?: number;
  /** Steps that lie below T1; `t0 < t1 < steps`. Default: 47 of 50. */
  t1?: number;
  /** Whether frames attend to the first frame. Default true; false is an ablation. */
  crossFrame?: boolean;
  /** Whether frames are moved. Default true; false keeps every frame's own noise, unmoved. */
  motion?: boolean;
  /**
   * Rows of the UNet computed at once: more are faster on a large GPU and take more memory. With
   * guidance a frame has two. Default: up to 8, as many as can be bound and fit the memory budget.
   */
  rows?: number;
  /**
   * Who draws the random numbers. `"framezero"` (default): each frame from (seed, frame id), so
   * that a frame does not depend on the others. `"diffusers"`: one PyTorch CPU generator, in the
   * order of diffusers' pipeline.
   */
  compat?: "framezero" | "diffusers";
  /** Draws the backgrounds of all frames towards the first one's. Default: none. */
  smoothing?: BackgroundSmoothing;
  /**
   * x_T of the first frame, `[1, 4, h, w]`, instead of drawing it; or of all frames,
   * `[frames, 4, h, w]`: then each is denoised from its own, and nothing is moved.
   */
  latents?: Tensor;
  /** Noise of step 2 for the other frames, `[frames − 1, 4, h, w]`, instead of drawing it. */
  noise?: Tensor;
  /** Random numbers for `compat: "diffusers"` instead of a new generator from `seed`. */
  generator?: Generator;
  /** Sees what the parts of the method produce; for tests. Tensors are valid during the call. */
  onIntermediate?: (name: Intermediate, value: Tensor | readonly number[]) => void;
}

/** Names of intermediate results: latents and timesteps at the joints of the method. */
export type Intermediate =
  | "prompt_embeds"
  | "timesteps_0"
  | "x_1_t1"
  | "timesteps_1"
  | "x_1_t0"
  | "x_2k_t0_warped"
  | "t0_t1"
  | "alpha_prod"
  | "x_2k_t1"
  | "timesteps_2"
  | "foreground"
  | "x_t1_smoothed";

/** Where in the timesteps the frames part: the first frame's way to T1, T1 to T0, and T1 to 0. */
interface Segments {
  readonly toT1: readonly number[];
  readonly t1ToT0: readonly number[];
  readonly fromT1: readonly number[];
}

interface VideoSettings {
  readonly sd: StableDiffusion;
  readonly motion: Motion;
  readonly useMotion: boolean;
  readonly t0: number;
  readonly t1: number;
  readonly frameIds: readonly number[];
  readonly latentShape: readonly number[];
  readonly smoother: Smoother | undefined;
  readonly warnings: string[];
}

/**
 * Makes a video from a text. Returns at once; the work is done while steps or frames of the clip
 * are iterated.
 *
 * @throws {InputError} if an option cannot be used; the message names it.
 */
export function textToVideo(
  sd: StableDiffusion,
  prompt: string,
  options: TextToVideoOptions = {},
): Clip {
  const settled = settle(sd, prompt, options);
  const { defaults, factor, device, unet } = sd;
  checkInput(unet.config);
  const frameIds = framesFrom(options);
  const scheduler = schedulerFor(sd, settled);
  const { t0, t1 } = jumpFrom(scheduler, options, defaults);
  const motion = {
    x: checkNumber("motionFieldStrengthX", options.motionFieldStrengthX ?? defaults.motionX),
    y: checkNumber("motionFieldStrengthY", options.motionFieldStrengthY ?? defaults.motionY),
  };
  const { rows } = options;
  if (rows !== undefined) checkNumber("rows", rows, { least: 1, whole: true });
  const { crossFrame = true, compat = "framezero", signal } = options;
  const { width, height, guidanceScale, guidanceRescale, eta, seed, merge, reuse } = settled;
  const latentShape = [1, unet.config.outChannels, height / factor, width / factor] as const;
  const ownStarts = frameIds.length > 1 && options.latents?.shape[0] === frameIds.length;
  const useMotion = !ownStarts && (options.motion ?? true);
  checkGiven("latents", options.latents, [
    ownStarts ? frameIds.length : 1,
    ...latentShape.slice(1),
  ]);
  checkGiven("noise", options.noise, [frameIds.length - 1, ...latentShape.slice(1)]);
  const noise = compat === "diffusers"
    ? noiseOfDiffusers(options.generator ?? new Generator(seed))
    : noisePerFrame(seed, frameIds);
  // diffusers has one history: that of the first frame, which the others go on from.
  const several = frameIds.length > 1 && compat !== "diffusers" && !ownStarts;
  const others = several ? schedulerFor(sd, settled) : undefined;
  const warnings = [
    ...samplerWarnings(settled, scheduler),
    ...videoWarnings(settled, scheduler, frameIds.length, compat),
  ];
  const { image } = options;
  if (image) {
    checkFrame(image, 0, undefined);
    checkInvertible(settled);
    if (options.latents) {
      throw new InputError("latents and image both are the first frame: give one");
    }
  }
  if (ownStarts && options.noise) {
    throw new InputError("noise is for frames that begin at the first one's latents; leave it out");
  }
  const smoothing = options.smoothing &&
    settleSmoothing(sd, settled, options.smoothing, frameIds.length);
  const remark = image && cropRemark(image, settled);
  if (remark) warnings.push(remark);

  async function* make(): AsyncGenerator<ClipStep, Tensor> {
    const [, , ...cells] = latentShape;
    const smoother = smoothing && await readMasks(smoothing, frameIds.length, settled, cells);
    const text = await encodePrompts(sd, settled, warnings);
    options.onIntermediate?.("prompt_embeds", text);
    const relieve = () => sd.releaseTextEncoder();
    const owned: Disposable[] = [text];
    try {
      const steps = t1 + 1;
      const total = (1 + (smoother?.passes ?? 1)) * steps;
      const picture = image &&
        (yield* invertPicture(sd, image, text, settled, { steps, total, signal }));
      if (picture) owned.push(picture);
      const guided = new GuidedUNet(unet, text, cells, {
        guidanceScale,
        guidanceRescale,
        crossFrame,
        rows,
        merge,
        reuse,
        subject: watchedTokens(smoother),
        relieve,
      });
      owned.push(guided);
      text.dispose();
      const sampler = { unet: guided, scheduler, others, noise, eta, signal };
      const video = { sd, motion, useMotion, t0, t1, frameIds, latentShape, smoother, warnings };
      if (picture) return yield* followPicture(sampler, picture, video, options);
      return yield* ownStarts
        ? fromOwnNoise(sampler, options.latents as Tensor, video, options)
        : algorithm1(sampler, video, options);
    } finally {
      for (const item of owned) item[Symbol.dispose]();
      scheduler.reset();
      others?.reset();
      device.trim();
    }
  }

  const { prompt: _, ...rest } = settled;
  return makeClip({
    sd,
    frameIds,
    width,
    height,
    signal,
    warnings,
    settings: {
      prompt,
      ...rest,
      frameIds,
      motionFieldStrengthX: motion.x,
      motionFieldStrengthY: motion.y,
      t0,
      t1,
      crossFrame,
      motion: useMotion,
      compat,
      ...smoothingSettings(smoothing),
      ...modelSettings(sd),
    },
    denoise: make(),
  });
}

/** Algorithm 1 of the paper. Yields after every step and returns x_0 of all frames. */
async function* algorithm1(
  { others, ...sampler }: Sampler,
  video: VideoSettings,
  options: TextToVideoOptions,
): AsyncGenerator<ClipStep, Tensor> {
  const { scheduler, noise } = sampler;
  const { frameIds, latentShape, t0, t1 } = video;
  const { device } = sampler.unet;
  const see = options.onIntermediate ?? (() => {});
  const { toT1, t1ToT0, fromT1 } = segments(scheduler, t0, t1);
  const alone = frameIds.length === 1;
  const passes = video.smoother?.passes ?? 1;
  const total = toT1.length + (alone ? 0 : t1ToT0.length) + passes * fromT1.length;
  const owned: Disposable[] = [];
  try {
    // 1. The first frame, down to T1 and on to T0.
    const xT = device.scope(() => {
      const start = options.latents ?? device.tensor(noise.initial(latentShape), latentShape);
      return linearCombination([scheduler.initNoiseSigma], [start]);
    }).keep();
    see("timesteps_0", toT1);
    const atT1 = yield* denoise(sampler, xT, toT1, { phase: "anchor", before: 0, total });
    see("x_1_t1", atT1);
    let before = toT1.length;
    if (alone) return yield* denoise(sampler, atT1, fromT1, { phase: "frames", before, total });
    owned.push(atT1);
    const history = scheduler.snapshot();
    owned.push({ [Symbol.dispose]: () => history.dispose() });
    see("timesteps_1", t1ToT0);
    const copy = linearCombination([1], [atT1]).keep();
    const atT0 = yield* denoise(sampler, copy, t1ToT0, { phase: "anchor", before, total });
    owned.push(atT0);
    see("x_1_t0", atT0);

    // 2. Every other frame: the first frame's latents at T0, moved, and noised up to T1.
    const x = startFrames(sampler, atT1, atT0, { ...video, t1ToT0, fromT1 }, options);

    // 3. All frames together, from T1. The first frame goes on from where it was, with what a
    // multistep solver remembered there; the others begin anew.
    see("timesteps_2", fromT1);
    before += t1ToT0.length;
    const rewind = () => {
      scheduler.restore(history);
      others?.reset();
    };
    return yield* together(x, { ...sampler, others }, video, { fromT1, before, rewind }, options);
  } finally {
    for (const item of owned) item[Symbol.dispose]();
  }
}

/** Every frame denoised from noise of its own, `use_motion_field = False` in the original code. */
async function* fromOwnNoise(
  sampler: Sampler,
  latents: Tensor,
  video: VideoSettings,
  options: TextToVideoOptions,
): AsyncGenerator<ClipStep, Tensor> {
  const { scheduler } = sampler;
  const { toT1, fromT1 } = segments(scheduler, video.t0, video.t1);
  const before = toT1.length;
  const total = before + (video.smoother?.passes ?? 1) * fromT1.length;
  const xT = linearCombination([scheduler.initNoiseSigma], [latents]).keep();
  const x = yield* denoise(sampler, xT, toT1, { phase: "frames", before: 0, total });
  const history = scheduler.snapshot();
  try {
    const rewind = () => scheduler.restore(history);
    return yield* together(x, sampler, video, { fromT1, before, rewind }, options);
  } finally {
    history.dispose();
  }
}

/** Steps 2 and 3 of Algorithm 1 behind an inverted picture, with which the first frame stays. */
async function* followPicture(
  sampler: Sampler,
  picture: Trajectory,
  video: VideoSettings,
  options: TextToVideoOptions,
): AsyncGenerator<ClipStep, Tensor> {
  const { t0, t1 } = video;
  const parts = segments(sampler.scheduler, t0, t1);
  const { t1ToT0, fromT1 } = parts;
  const [atT1, atT0] = [picture.at(fromT1[0]), picture.at(fromT1[t1ToT0.length])];
  const x = startFrames(sampler, atT1, atT0, { ...video, ...parts }, options);
  const before = fromT1.length;
  const afterStep = (latents: Tensor, i: number) => picture.pin(latents, fromT1[i + 1]);
  const rewind = () => {}; // DDIM, which alone can be inverted, remembers nothing
  return yield* together(x, { ...sampler, afterStep }, video, { fromT1, before, rewind }, options);
}

/** All frames from T1 on, their backgrounds smoothed if that is asked for. */
function together(
  x: Tensor,
  sampler: Sampler,
  { motion, useMotion, ...video }: VideoSettings,
  { fromT1, before, rewind }: Pick<Segments, "fromT1"> & Pick<JointPass, "before" | "rewind">,
  { onIntermediate = () => {} }: TextToVideoOptions,
): AsyncGenerator<ClipStep, Tensor> {
  return denoiseTogether(x, {
    ...video,
    motion: useMotion ? motion : null,
    sampler,
    timesteps: fromT1,
    before,
    rewind,
    see: onIntermediate,
  });
}

/** The latents of all frames at T1, `[frames, C, h, w]`. */
function startFrames(
  { scheduler, noise }: Sampler,
  first: Tensor,
  atT0: Tensor,
  video: VideoSettings & Pick<Segments, "t1ToT0" | "fromT1">,
  options: TextToVideoOptions,
): Tensor {
  const { device } = first;
  const { frameIds, motion, useMotion, latentShape, t1ToT0, fromT1 } = video;
  const see = options.onIntermediate ?? (() => {});
  const others = frameIds.length - 1;
  if (others === 0) return device.scope(() => linearCombination([1], [first])).keep();
  const shape = [others, ...latentShape.slice(1)];
  // T0 is the timestep that the first frame would see next: one below the last of T1 … T0.
  const [T0, T1] = [fromT1[t1ToT0.length], fromT1[0]];
  see("t0_t1", [T0, T1]);
  const at = scheduler.timesteps.length - fromT1.length;
  const levels = options.compat === "diffusers" && scheduler.space === "vp"
    ? undefined
    : scheduler.sigmas;
  const jump = levels
    ? jumpBetween(scheduler.space, levels[at + t1ToT0.length], levels[at])
    : forwardJump(scheduler, T0, T1);
  if (jump.alphaProduct !== null) see("alpha_prod", [jump.alphaProduct]);
  return device.scope(() => {
    const all = device.empty([frameIds.length, ...latentShape.slice(1)]);
    assign(all, first, 0);
    const warped = device.empty(shape);
    for (let k = 1; k <= others; k++) {
      device.scope(() => {
        const moved = useMotion ? warpLatents(atT0, frameIds[k], motion) : atT0;
        assign(warped, moved, (k - 1) * moved.size);
      });
    }
    see("x_2k_t0_warped", warped);
    const positions = frameIds.slice(1).map((_, i) => i + 1);
    const e = options.noise ?? device.tensor(noise.frames(positions, shape), shape);
    const noised = linearCombination([jump.signal, jump.noise], [warped, e]);
    see("x_2k_t1", noised);
    assign(all, noised, first.size);
    return all;
  }).keep();
}

/** What is left of the latents at T0, and how much noise comes to them; A where there is one. */
interface Jump {
  readonly signal: number;
  readonly noise: number;
  readonly alphaProduct: number | null;
}

/**
 * The forward process from T0 to T1 in one step: `x_T1 = √A·x_T0 + √(1−A)·e` with
 * `A = Π α_t, t = T0 … T1−1`, as the original code has it.
 */
function forwardJump({ config }: Scheduler, T0: number, T1: number): Jump {
  const A = forwardAlphaProduct(config as Partial<SchedulerConfig>, T0, T1);
  return { signal: Math.sqrt(A), noise: Math.sqrt(1 - A), alphaProduct: A };
}

/**
 * The same between levels σ = √((1−ᾱ)/ᾱ): `A = ᾱ_T1 / ᾱ_T0`; for latents kept as `x_0 + σ·ε`,
 * `x_T1 = x_T0 + √(σ_T1² − σ_T0²)·e`.
 */
function jumpBetween(space: Scheduler["space"], atT0: number, atT1: number): Jump {
  if (space === "sigma") {
    return { signal: 1, noise: Math.sqrt(atT1 ** 2 - atT0 ** 2), alphaProduct: null };
  }
  const A = (1 + atT0 ** 2) / (1 + atT1 ** 2);
  return { signal: Math.sqrt(A), noise: Math.sqrt(1 - A), alphaProduct: A };
}

/** Places in the timesteps where a step begins. */
function stepStarts({ timesteps, stepStarts }: Scheduler): readonly number[] {
  return stepStarts ?? [...timesteps.keys()];
}

/** t0 and t1 count steps from the end, as in diffusers, which has one timestep a step. */
function segments(scheduler: Scheduler, t0: number, t1: number): Segments {
  const { timesteps } = scheduler;
  const starts = stepStarts(scheduler);
  const atT1 = starts[starts.length - t1 - 1];
  const atT0 = starts[starts.length - t0 - 1];
  return {
    toT1: timesteps.slice(0, atT1),
    t1ToT0: timesteps.slice(atT1, atT0),
    fromT1: timesteps.slice(atT1),
  };
}

function framesFrom({ frames, frameIds }: TextToVideoOptions): readonly number[] {
  if (!frameIds) {
    const count = checkNumber("frames", frames ?? 8, { least: 1, whole: true });
    return Array.from({ length: count }, (_, i) => i);
  }
  if (!frameIds.length) throw new InputError("frameIds must list at least one frame, got none");
  for (const id of frameIds) checkNumber("frameIds", id, { least: 0, whole: true });
  if (frames !== undefined && frames !== frameIds.length) {
    throw new InputError(`frames is ${frames}, but frameIds lists ${frameIds.length}; give one`);
  }
  return frameIds;
}

/** t0 and t1, by default at the same fraction of the steps as the reference's 44 and 47 of 50. */
function jumpFrom(
  scheduler: Scheduler,
  options: TextToVideoOptions,
  defaults: StableDiffusion["defaults"],
): { t0: number; t1: number } {
  const count = stepStarts(scheduler).length;
  const single = count === 1 || (options.frames ?? options.frameIds?.length ?? 8) === 1;
  if (single && options.t0 === undefined && options.t1 === undefined) {
    return { t0: 0, t1: count - 1 };
  }
  const t1 = options.t1 ?? Math.min(count - 1, Math.max(1, Math.round(defaults.t1 * count)));
  const t0 = options.t0 ?? Math.max(0, Math.min(t1 - 1, Math.round(defaults.t0 * count)));
  checkNumber("t0", t0, { least: 0, whole: true });
  checkNumber("t1", t1, { least: 0, whole: true });
  if (t0 >= t1 || t1 >= count) {
    throw new InputError(
      `t0 and t1 count steps from the end and must satisfy t0 < t1 < ${count} (the number of ` +
        `steps), got t0 = ${t0} and t1 = ${t1}`,
    );
  }
  return { t0, t1 };
}

function checkGiven(name: string, tensor: Tensor | undefined, shape: readonly number[]): void {
  if (!tensor || sameShape(tensor.shape, shape)) return;
  throw new ShapeError(`${name} must have shape [${shape}], got [${tensor.shape}]`);
}
