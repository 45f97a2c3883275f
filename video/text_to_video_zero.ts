/**
 * Text2Video-Zero: a video from an image model, without training (Khachatryan et al.,
 * arXiv:2303.13439, Algorithm 1).
 *
 * 1. The first frame is denoised from x_T down to the timesteps T1 and T0 (T′ and T′−Δt).
 * 2. Motion in the latent codes (§3.2): the other frames begin as translations of the first
 *    frame's latents at T0 ({@link Camera}), and are noised up to T1 again, which gives their
 *    objects freedom to move.
 * 3. Cross-frame attention (§3.3): from T1 all frames are denoised together; in every
 *    self-attention layer each frame attends to the first one ({@link GuidedUNet}).
 *
 * Background smoothing (§3.4) goes around step 3 ({@link denoiseTogether}).
 *
 * With a canvas steps 1 and 2 know more than the first frame: what lies around it is denoised with
 * it ({@link overCanvas}), and that is what the camera moves over.
 *
 * With a start image step 1 is its DDIM inversion to T0 and T1 ({@link invertPicture}), and in step
 * 3 the first frame stays on that way: it is the picture, and the others attend to it.
 *
 * With controls there is no motion unless it is asked for: {@link denoiseControlled} takes the place
 * of steps 1 to 3.
 *
 * Where paper, original code and diffusers disagree, diffusers' pipeline is followed; with its
 * initial latents and noise the results agree to numeric tolerance.
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import { assign, linearCombination, narrow } from "../kernels/mod.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Scheduler, SchedulerState } from "../schedulers/mod.ts";
import { type Camera, cameraOf } from "./camera.ts";
import { type Canvas, drawAround, middleOf, overCanvas } from "./canvas.ts";
import { type Clip, type ClipStep, makeClip } from "./clip.ts";
import {
  controlSettings,
  denoiseControlled,
  readControls,
  settleControls,
} from "./controlled_video.ts";
import { forwardJump, jumpBetween, noiseLevel, type Segments, segments } from "./forward_jump.ts";
import { checkFrame } from "./frame.ts";
import { lookBackOf } from "./frame_attention.ts";
import { noiseWithMiddles, withMiddles } from "./frame_rate.ts";
import {
  checkNumber,
  denoise,
  encodePrompts,
  framesFrom,
  modelSettings,
  type Sampler,
  schedulerFor,
  settle,
} from "./generation.ts";
import { GuidedUNet } from "./guided_unet.ts";
import { checkInvertible, invertPicture, type Trajectory } from "./inversion.ts";
import { noiseSource } from "./noise.ts";
import { courseOf } from "./prompt_travel.ts";
import { samplerWarnings, videoWarnings } from "./sampler_warnings.ts";
import {
  denoiseTogether,
  type JointPass,
  readMasks,
  settleSmoothing,
  type Smoother,
  smoothingSettings,
  watchedTokens,
} from "./smoothed_pass.ts";
import { checkInput, cropRemark } from "./start_image.ts";
import {
  checkGiven,
  checkOriginal,
  checkTogether,
  haveOwnStarts,
  jumpFrom,
  type TextToVideoOptions,
} from "./video_options.ts";

export type { Intermediate, TextToVideoOptions } from "./video_options.ts";

interface VideoSettings {
  readonly sd: StableDiffusion;
  readonly camera: Camera;
  readonly t0: number;
  readonly t1: number;
  readonly frameIds: readonly number[];
  readonly latentShape: readonly number[];
  readonly smoother: Smoother | undefined;
  readonly warnings: string[];
  readonly seed: number;
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
  const { double = false } = options;
  const wholeIds = framesFrom(options);
  const frameIds = double ? withMiddles(wholeIds) : wholeIds;
  const scheduler = schedulerFor(sd, settled);
  const { t0, t1 } = jumpFrom(scheduler, options, defaults);
  const { rows } = options;
  if (rows !== undefined) checkNumber("rows", rows, { least: 1, whole: true });
  const controls = settleControls(sd, options.controls);
  const { crossFrame = true, compat = "framezero", signal } = options;
  const { attention = "first", attentionWindow = 2 } = options;
  checkNumber("attentionWindow", attentionWindow, { least: 1, whole: true });
  const lookBack = lookBackOf(attention, attentionWindow);
  const least = wholeIds.reduce((most, id) => Math.max(most, id), 0) + 1;
  const clipFrames = checkNumber("clipFrames", options.clipFrames ?? least, { least, whole: true });
  const course = courseOf(settled, options, { frameIds, clipFrames });
  const { width, height, guidanceRescale, eta, seed, merge, reuse } = settled;
  const { controlAttention = "unet+controlnet" } = options;
  const ownStarts = haveOwnStarts(options.latents, frameIds.length);
  const { motion = controls.length === 0 && !ownStarts } = options;
  const alike = controls.length > 0 && motion === false;
  const latentShape = [1, unet.config.outChannels, height / factor, width / factor] as const;
  const camera = cameraOf({ ...options, motion }, defaults, { clipFrames, seed, latentShape });
  checkTogether({ ...options, motion }, frameIds.length);
  checkGiven("latents", options.latents, [
    ownStarts ? frameIds.length : 1,
    ...latentShape.slice(1),
  ]);
  checkGiven("noise", options.noise, [frameIds.length - 1, ...latentShape.slice(1)]);
  if (compat === "original") checkOriginal(settled);
  const noise = double
    ? noiseWithMiddles(seed, wholeIds)
    : noiseSource(compat, { seed, frameIds, generator: options.generator });
  // diffusers has one history: that of the first frame, which the others go on from.
  const several = frameIds.length > 1 && compat === "framezero" && !ownStarts;
  const others = several ? schedulerFor(sd, settled) : undefined;
  const warnings = [
    ...samplerWarnings(settled, scheduler),
    ...videoWarnings(settled, scheduler, frameIds.length, compat),
    ...camera.warnings,
  ];
  const { image } = options;
  if (image) {
    checkFrame(image, 0, undefined);
    checkInvertible(settled);
  }
  const smoothing = options.smoothing &&
    settleSmoothing(sd, settled, options.smoothing, frameIds.length);
  const remark = image && cropRemark(image, settled);
  if (remark) warnings.push(remark);

  async function* make(): AsyncGenerator<ClipStep, Tensor> {
    const size = { width, height };
    const [, , ...cells] = latentShape;
    const smoother = smoothing && await readMasks(smoothing, frameIds.length, size, cells);
    const counted = !options.frameIds;
    const nets = await readControls(controls, { frameIds, counted, size, signal });
    const { later, guidanceAt, guidanceScale } = course;
    const words = await encodePrompts(sd, { ...settled, guidanceScale }, warnings, later);
    const text = device.scope(() => narrow(words, 0, 0, words.shape[0] - later.length)).keep();
    options.onIntermediate?.("prompt_embeds", text);
    const relieve = () => sd.releaseTextEncoder();
    const owned: Disposable[] = [text, words];
    try {
      const textAt = await course.textAt(words);
      const steps = t1 + 1;
      const total = (1 + (smoother?.passes ?? 1)) * steps;
      const picture = image &&
        (yield* invertPicture(sd, image, text, settled, { steps, total, signal }));
      if (picture) owned.push(picture);
      const guided = new GuidedUNet(unet, text, cells, {
        guidanceScale,
        guidanceRescale,
        guidanceAt,
        textAt,
        crossFrame,
        lookBack,
        rows,
        merge,
        reuse,
        control: nets.length === 0 ? undefined : {
          nets,
          steps: scheduler.timesteps.length,
          crossFrame: crossFrame && controlAttention === "unet+controlnet",
          intoMiddle: compat === "original",
        },
        subject: watchedTokens(smoother),
        relieve,
      });
      owned.push(guided);
      text.dispose();
      if (!textAt) words.dispose();
      const sampler = { unet: guided, scheduler, others, noise, eta, signal };
      const video = { sd, camera, t0, t1, frameIds, latentShape, smoother, warnings, seed };
      if (alike) return yield* denoiseControlled(sampler, video, options.latents);
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
      frameIds: wholeIds,
      double,
      ...(!alike && { t0, t1 }),
      crossFrame,
      ...(attention !== "first" && { attention }),
      ...(attention === "window" && { attentionWindow }),
      ...(options.prompts && { prompts: options.prompts }),
      ...(options.guidanceScales && { guidanceScales: options.guidanceScales }),
      ...camera.settings,
      compat,
      ...controlSettings(controls, controlAttention),
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
  const { frameIds, latentShape, t0, t1, seed, camera: { canvas } } = video;
  const { device } = sampler.unet;
  const above = canvas ? { ...sampler, unet: overCanvas(sampler.unet, canvas) } : sampler;
  const see = options.onIntermediate ?? (() => {});
  const { toT1, t1ToT0, fromT1 } = segments(scheduler, t0, t1);
  const alone = frameIds.length === 1;
  const passes = video.smoother?.passes ?? 1;
  const total = toT1.length + (alone ? 0 : t1ToT0.length) + passes * fromT1.length;
  const owned: Disposable[] = [];
  try {
    // 1. The first frame, or the canvas around it, down to T1 and on to T0.
    const xT = device.scope(() => {
      const start = options.latents ?? device.tensor(noise.initial(latentShape), latentShape);
      const all = canvas ? drawAround(start, canvas, seed) : start;
      return linearCombination([scheduler.initNoiseSigma], [all]);
    }).keep();
    see("timesteps_0", toT1);
    const atT1 = yield* denoise(above, xT, toT1, { phase: "anchor", before: 0, total });
    see("x_1_t1", atT1);
    const place = toT1.length;
    let before = place;
    const progress = { phase: "frames", before, total, place } as const;
    if (alone) return yield* denoise(sampler, atT1, fromT1, progress);
    owned.push(atT1);
    const history = historyOfFirst(scheduler, canvas);
    owned.push({ [Symbol.dispose]: () => history.dispose() });
    see("timesteps_1", t1ToT0);
    const copy = linearCombination([1], [atT1]).keep();
    const atT0 = yield* denoise(above, copy, t1ToT0, { phase: "anchor", before, total, place });
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
    const joint = { fromT1, before, rewind };
    return yield* together(x, { ...sampler, others }, video, joint, options);
  } finally {
    for (const item of owned) item[Symbol.dispose]();
  }
}

/** What a multistep solver remembers of the first frame. */
function historyOfFirst(scheduler: Scheduler, canvas: Canvas | undefined): SchedulerState {
  const history = scheduler.snapshot();
  if (!canvas) return history;
  try {
    return history.map((kept) => middleOf(kept, canvas));
  } finally {
    history.dispose();
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
  video: VideoSettings,
  { fromT1, before, rewind }: Pick<Segments, "fromT1"> & Pick<JointPass, "before" | "rewind">,
  { onIntermediate = () => {} }: TextToVideoOptions,
): AsyncGenerator<ClipStep, Tensor> {
  const { scheduler } = sampler;
  const place = scheduler.timesteps.length - fromT1.length;
  return denoiseTogether(x, {
    ...video,
    level: noiseLevel(scheduler, fromT1[0], place),
    sampler,
    timesteps: fromT1,
    before,
    place,
    rewind,
    see: onIntermediate,
  });
}

/**
 * The latents of all frames at T1, `[frames, C, h, w]`.
 *
 * @param atT1 The first frame, or the canvas around it.
 * @param atT0 The same at T0.
 */
function startFrames(
  { scheduler, noise }: Sampler,
  atT1: Tensor,
  atT0: Tensor,
  video: VideoSettings & Pick<Segments, "t1ToT0" | "fromT1">,
  options: TextToVideoOptions,
): Tensor {
  const { device } = atT1;
  const { frameIds, camera, latentShape, t1ToT0, fromT1 } = video;
  const see = options.onIntermediate ?? (() => {});
  const others = frameIds.length - 1;
  if (others === 0) return device.scope(() => linearCombination([1], [atT1])).keep();
  const shape = [others, ...latentShape.slice(1)];
  // T0 is the timestep that the first frame would see next: one below the last of T1 … T0.
  const [T0, T1] = [fromT1[t1ToT0.length], fromT1[0]];
  see("t0_t1", [T0, T1]);
  const at = scheduler.timesteps.length - fromT1.length;
  const { compat = "framezero" } = options;
  const levels = compat !== "framezero" && scheduler.space === "vp" ? undefined : scheduler.sigmas;
  const jump = levels
    ? jumpBetween(scheduler.space, levels[at + t1ToT0.length], levels[at])
    : forwardJump(scheduler, T0, T1);
  if (jump.alphaProduct !== null) see("alpha_prod", [jump.alphaProduct]);
  const level = noiseLevel(scheduler, T0, at + t1ToT0.length);
  return device.scope(() => {
    const all = device.empty([frameIds.length, ...latentShape.slice(1)]);
    const first = camera.canvas ? middleOf(atT1, camera.canvas) : atT1;
    assign(all, first, 0);
    const warped = device.empty(shape);
    for (let k = 1; k <= others; k++) {
      device.scope(() => {
        const moved = camera.move(atT0, frameIds[k], level);
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
