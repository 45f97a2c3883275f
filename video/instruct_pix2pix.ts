/**
 * Video Instruct-Pix2Pix: a video changed as an instruction says, by an image model without
 * training (Text2Video-Zero, arXiv:2303.13439, §3.4, with InstructPix2Pix, arXiv:2211.09800).
 *
 * Every frame is denoised from noise while the model sees the frame of the video: the channels of
 * its latents lie behind those of the noisy ones. Guidance weighs the instruction (s_T) and the
 * frame (s_I) apart (`guidance.ts`). In every self-attention layer each frame attends to the first
 * one, as in text to video.
 *
 * All frames begin with the same noise, and their steps add the same: what differs between two
 * frames is then what differs in the video. The method's own code draws new noise for every frame,
 * which makes still parts of a video flicker.
 *
 * @module
 */

import { InputError, ShapeError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { sameShape } from "../core/shape.ts";
import { Tensor } from "../core/tensor.ts";
import { assign, linearCombination, narrow } from "../kernels/mod.ts";
import type { UNetConfig } from "../models/config.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import { type Clip, type ClipStep, makeClip } from "./clip.ts";
import { checkFrame, type Frame } from "./frame.ts";
import {
  checkNumber,
  denoise,
  encodePrompts,
  framesFrom,
  type GenerationOptions,
  modelSettings,
  schedulerFor,
  settle,
} from "./generation.ts";
import { GuidedUNet } from "./guided_unet.ts";
import { noiseOfDiffusers, noisePerFrame, noiseShared, type NormalSource } from "./noise.ts";
import { fitPicture, type Size } from "./picture.ts";
import { samplerWarnings } from "./sampler_warnings.ts";
import { cropRemark, pictureMean } from "./start_image.ts";
import type { Frames } from "./writer.ts";

/** Options of {@link videoInstructPix2Pix}. */
export interface VideoInstructPix2PixOptions extends Omit<GenerationOptions, "scheduler"> {
  /**
   * The frames to change, read once and one at a time; of another aspect than the clip they cover
   * it. Or their latents `[frames, 4, h, w]`, as {@link encodeVideo} makes them.
   */
  video: Frames | Tensor;
  /** Number of frames to take. Default: all; must be given unless that can be counted. */
  frames?: number;
  /** Which frames of the video to take, counted from 0; the first is the anchor. Default: all. */
  frameIds?: readonly number[];
  /** Pixels, a multiple of 8. Default: as the video; must be given unless it is an array. */
  width?: number;
  /** Pixels, a multiple of 8. Default: as `width`'s. */
  height?: number;
  /**
   * How closely the frames of the video are followed; less than 1 is less than the model does by
   * itself. Default 1, as Text2Video-Zero has it; diffusers' pipeline for single pictures has 1.5.
   */
  imageGuidanceScale?: number;
  /** Name of the scheduler. Default `"euler-a"`, the method's own. */
  scheduler?: string;
  /**
   * Whether all frames have the same noise. Default true; false draws that of each frame from
   * (seed, frame id).
   */
  sharedNoise?: boolean;
  /** Whether frames attend to the first frame. Default true; false is an ablation. */
  crossFrame?: boolean;
  /** Rows of the UNet computed at once, two or three a frame. Default: up to 8, as many as fit. */
  rows?: number;
  /**
   * Who draws the random numbers. `"framezero"` (default): as `sharedNoise` says. `"original"`: one
   * PyTorch CPU generator for all frames, x_T first, then the noise of each step.
   */
  compat?: "framezero" | "original";
  /** x_T, `[frames, 4, h, w]`, instead of drawing it. */
  latents?: Tensor;
  /** Random numbers for `compat: "original"` instead of a new generator from `seed`. */
  generator?: NormalSource;
}

/**
 * Changes a video as an instruction says. Returns at once; the work is done while steps or frames
 * of the clip are iterated. A video of one frame changes a single picture; the numbers are then
 * those of diffusers' pipeline with a CPU generator.
 *
 * @param sd A model of InstructPix2Pix, such as timbrooks/instruct-pix2pix.
 * @param instruction What to change, like "make it winter".
 * @throws {InputError} if an option cannot be used, or the model is another; the message names it.
 */
export function videoInstructPix2Pix(
  sd: StableDiffusion,
  instruction: string,
  options: VideoInstructPix2PixOptions,
): Clip {
  const { device, factor, unet } = sd;
  checkEditing(unet.config);
  if (typeof instruction !== "string" || !instruction.trim()) {
    throw new InputError('the instruction is empty; say what to change, like "make it winter"');
  }
  const { video, rows, crossFrame = true, compat = "framezero", signal } = options;
  const { sharedNoise = compat === "framezero", imageGuidanceScale = 1 } = options;
  const known = whatIsKnown(video, factor);
  const frameIds = framesOf(options, known);
  const settled = {
    ...settle(sd, instruction, {
      ...options,
      ...sizeOf(options, known),
      scheduler: options.scheduler ?? "euler-a",
    }),
    imageGuidanceScale: checkNumber("imageGuidanceScale", imageGuidanceScale, { least: 0 }),
  };
  if (rows !== undefined) checkNumber("rows", rows, { least: 1, whole: true });
  if (compat === "original" && sharedNoise) {
    throw new InputError(
      'compat "original" draws noise for each frame, sharedNoise the same for all; leave one out',
    );
  }
  const { width, height, guidanceScale, guidanceRescale, seed, eta, merge, reuse } = settled;
  const cells = [height / factor, width / factor] as const;
  const shape = [frameIds.length, unet.config.outChannels, ...cells];
  checkLatents(options, shape);
  const scheduler = schedulerFor(sd, settled);
  const noise = compat === "original"
    ? noiseOfDiffusers(options.generator ?? new Generator(seed))
    : sharedNoise
    ? noiseShared(new Generator(seed))
    : noisePerFrame(seed, frameIds);
  const warnings = samplerWarnings(settled, scheduler);

  async function* make(): AsyncGenerator<ClipStep, Tensor> {
    const text = await encodePrompts(sd, settled, warnings);
    const owned: Disposable[] = [text];
    try {
      const encoding = { frameIds, signal, warnings };
      const condition = video instanceof Tensor
        ? device.scope(() => chosen(video, frameIds)).keep()
        : await encodeVideo(sd, video, settled, encoding);
      owned.push(condition);
      const guided = new GuidedUNet(unet, text, cells, {
        guidanceScale,
        imageGuidanceScale,
        guidanceRescale,
        crossFrame,
        rows,
        merge,
        reuse,
        relieve: () => sd.releaseTextEncoder(),
      });
      owned.push(guided);
      text.dispose();
      const xT = device.scope(() => {
        const drawn = () => device.tensor(noise.frames([...frameIds.keys()], shape), shape);
        return linearCombination([scheduler.initNoiseSigma], [options.latents ?? drawn()]);
      }).keep();
      const sampler = { unet: guided, scheduler, noise, eta, signal, condition };
      const { timesteps } = scheduler;
      const progress = { phase: "frames", before: 0, total: timesteps.length } as const;
      return yield* denoise(sampler, xT, timesteps, progress);
    } finally {
      for (const item of owned) item[Symbol.dispose]();
      scheduler.reset();
      device.trim();
    }
  }

  return makeClip({
    sd,
    frameIds,
    width,
    height,
    signal,
    warnings,
    settings: { ...settled, frameIds, crossFrame, sharedNoise, compat, ...modelSettings(sd) },
    denoise: make(),
  });
}

/** How {@link encodeVideo} reads a video. */
export interface EncodeVideoOptions {
  /** Frames to take, counted from 0; may repeat. */
  readonly frameIds: readonly number[];
  /** Stops between two frames. */
  readonly signal?: AbortSignal;
  /** Gets a remark if frames are cropped. */
  readonly warnings?: string[];
}

/**
 * The latents of a video as InstructPix2Pix is shown them: means of the encoder's distribution, not
 * scaled. Frames are read and encoded one at a time, so that only latents are kept; frames behind
 * the last one that is taken are not read.
 *
 * @param size Pixels that frames are brought to, multiples of 8.
 * @returns `[frameIds.length, C, h, w]`, to be disposed of by the caller.
 * @throws {InputError} if the video ends before a frame that shall be taken.
 */
export async function encodeVideo(
  sd: StableDiffusion,
  video: Frames,
  size: Size,
  { frameIds, signal, warnings }: EncodeVideoOptions,
): Promise<Tensor> {
  const { device, factor } = sd;
  const one = [sd.unet.config.outChannels, size.height / factor, size.width / factor];
  const last = frameIds.reduce((most, id) => Math.max(most, id));
  const latents = device.empty([frameIds.length, ...one]).keep();
  try {
    let id = 0;
    for await (const frame of video) {
      signal?.throwIfAborted();
      const places = [...frameIds.keys()].filter((place) => frameIds[place] === id);
      if (places.length) {
        checkFrame(frame, id, undefined);
        const remark = cropRemark(frame, size, "video");
        if (remark && id === frameIds[0]) warnings?.push(remark);
        device.scope(() => {
          const mean = pictureMean(sd, fitPicture(device, frame, size));
          for (const place of places) assign(latents, mean, place * mean.size);
        });
        await device.sync();
      }
      if (id++ === last) return latents;
    }
    throw new InputError(
      `frame ${last} of the video was asked for, counted from 0, but it has ${id}; take fewer ` +
        "frames, and give a video that can be read only once to one clip only",
    );
  } catch (error) {
    latents.dispose();
    throw error;
  }
}

/** Some frames of latents, `[frameIds.length, C, h, w]`. */
function chosen(latents: Tensor, frameIds: readonly number[]): Tensor {
  const [, ...one] = latents.shape;
  const out = latents.device.empty([frameIds.length, ...one]);
  frameIds.forEach((id, place) => {
    latents.device.scope(() =>
      assign(out, narrow(latents, 0, id, 1), place * out.size / out.shape[0])
    );
  });
  return out;
}

/** What a video tells before it is read. */
type Known = Partial<Size> & { readonly count?: number };

function whatIsKnown(video: Frames | Tensor, factor: number): Known {
  if (video instanceof Tensor) {
    const [count, , h, w] = video.shape;
    return { count, width: w * factor, height: h * factor };
  }
  if (!Array.isArray(video)) return {};
  const [first]: Partial<Frame>[] = video;
  return { count: video.length, width: first?.width, height: first?.height };
}

function framesOf(options: VideoInstructPix2PixOptions, { count }: Known): readonly number[] {
  if (options.frames === undefined && !options.frameIds && count === undefined) {
    throw new InputError(
      "how many frames the video has is not known before it is read; give their number in frames",
    );
  }
  const frameIds = framesFrom(options, count);
  const beyond = frameIds.find((id) => id >= (count ?? Infinity));
  if (beyond === undefined) return frameIds;
  throw new InputError(
    `frame ${beyond} of the video was asked for, counted from 0, but it has ${count}; take fewer`,
  );
}

function sizeOf(options: Partial<Size>, known: Partial<Size>): Size {
  const { width = known.width, height = known.height } = options;
  if (width !== undefined && height !== undefined) return { width, height };
  throw new InputError(
    "how large the frames of the video are is not known before it is read; give width and height",
  );
}

function checkLatents(
  { latents, video }: VideoInstructPix2PixOptions,
  shape: readonly number[],
): void {
  if (latents && !sameShape(latents.shape, shape)) {
    throw new ShapeError(`latents must have shape [${shape}], got [${latents.shape}]`);
  }
  if (video instanceof Tensor && !sameShape(video.shape.slice(1), shape.slice(1))) {
    throw new ShapeError(
      `latents of a video must have shape [frames, ${shape.slice(1)}], got [${video.shape}]`,
    );
  }
}

/**
 * Refuses a UNet that is not shown a picture.
 *
 * @throws {InputError} saying what the model is for.
 */
function checkEditing({ inChannels, outChannels }: UNetConfig): void {
  if (inChannels === 2 * outChannels) return;
  const what = inChannels === outChannels
    ? "this is a text-to-image model, which follows descriptions (video, image)"
    : inChannels === 2 * outChannels + 1
    ? "this is an inpainting model, which paints parts of pictures (image --init FILE --mask FILE)"
    : `the UNet takes ${inChannels} channels`;
  throw new InputError(
    `${what}; changing a video by an instruction needs a model of InstructPix2Pix, such as ` +
      "timbrooks/instruct-pix2pix",
  );
}
