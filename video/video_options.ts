/**
 * The options of text to video, with their checks and defaults.
 *
 * @module
 */

import { InputError, ShapeError } from "../core/errors.ts";
import { sameShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Scheduler } from "../schedulers/mod.ts";
import type { CameraOptions } from "./camera.ts";
import type { ControlAttention, ControlOptions } from "./controlled_video.ts";
import { stepStarts } from "./forward_jump.ts";
import type { Frame } from "./frame.ts";
import type { FrameAttentionChoice } from "./frame_attention.ts";
import { checkNumber, type GenerationOptions, type Settled } from "./generation.ts";
import type { NoiseOrder, NormalSource } from "./noise.ts";
import type { ChangingText } from "./prompt_travel.ts";
import type { BackgroundSmoothing } from "./smoothed_pass.ts";

/** Options of `textToVideo`. */
export interface TextToVideoOptions extends GenerationOptions, CameraOptions, ChangingText {
  /**
   * The first frame, instead of what the prompt alone would make; it covers the size and is cropped
   * in the middle. Needs the scheduler `"ddim"`.
   */
  image?: Frame;
  /** Number of frames. Default 8. */
  frames?: number;
  /** Frame numbers, the first of which is the anchor. Default 0 … frames − 1. */
  frameIds?: readonly number[];
  /**
   * Frames of the whole clip, of which these are a part: decides how long motion takes, and which
   * frames can be named. Default: up to the largest frame number.
   */
  clipFrames?: number;
  /**
   * Whether a frame is made between every two, at half of the motion and with noise between theirs:
   * 2·frames − 1 in all. Default false.
   */
  double?: boolean;
  /** Steps that lie below T0, the one at T0 not counted. Default: 44 of 50. */
  t0?: number;
  /** Steps that lie below T1; `t0 < t1 < steps`. Default: 47 of 50. */
  t1?: number;
  /** Whether frames attend to the first frame. Default true; false is an ablation. */
  crossFrame?: boolean;
  /**
   * To which frames they attend in the UNet. Default `"first"`, the paper's, which ControlNets keep
   * to whatever is chosen here.
   */
  attention?: FrameAttentionChoice;
  /** Frames of `attention: "window"`, the frame itself included. Default 2. */
  attentionWindow?: number;
  /** ControlNets, with a map for every frame. Default: none. */
  controls?: readonly ControlOptions[];
  /** Where frames attend to the first one, with controls. Default `"unet+controlnet"`. */
  controlAttention?: ControlAttention;
  /**
   * Rows of the UNet computed at once: more are faster on a large GPU and take more memory. With
   * guidance a frame has two. Default: up to 8, as many as can be bound and fit the memory budget.
   */
  rows?: number;
  /**
   * Who draws the random numbers. `"framezero"` (default): each frame from (seed, frame id), so
   * that a frame does not depend on the others. `"diffusers"`: one PyTorch CPU generator, in the
   * order of diffusers' pipeline. `"original"`: one generator again, in the order of the method's
   * own code, which always samples with DDIM; and ControlNets act as there, where diffusers 0.14
   * added their last residual to the input of the UNet's middle besides.
   */
  compat?: NoiseOrder;
  /** Draws the backgrounds of all frames towards the first one's. Default: none. */
  smoothing?: BackgroundSmoothing;
  /**
   * x_T of the first frame, `[1, 4, h, w]`, instead of drawing it (on a canvas that around it is
   * drawn); or of all frames, `[frames, 4, h, w]`: then each is denoised from its own, and nothing
   * is moved.
   */
  latents?: Tensor;
  /** Noise of step 2 for the other frames, `[frames − 1, 4, h, w]`, instead of drawing it. */
  noise?: Tensor;
  /** Random numbers for the other two `compat` instead of a new generator from `seed`. */
  generator?: NormalSource;
  /** Sees what the parts of the method produce; for tests. Tensors are valid during the call. */
  onIntermediate?: (name: Intermediate, value: Tensor | readonly number[]) => void;
}

/**
 * Names of intermediate results: latents and timesteps at the joints of the method. On a canvas
 * `x_1_t1` and `x_1_t0` are all of it.
 */
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

/** The method's own code has no other sampler, and leaves its steps without fresh noise. */
export function checkOriginal({ scheduler, eta }: Settled): void {
  if (/^ddim(scheduler)?$/i.test(scheduler) && eta === 0) return;
  throw new InputError(
    `compat "original" needs the scheduler ddim with eta 0, which that code always uses, got ` +
      `${scheduler} with eta ${eta}; leave them out, or compat`,
  );
}

/** t0 and t1, by default at the same fraction of the steps as the reference's 44 and 47 of 50. */
export function jumpFrom(
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

/** Whether latents are x_T of every frame, not of the first one alone. */
export function haveOwnStarts(latents: Tensor | undefined, frames: number): boolean {
  return frames > 1 && latents?.shape[0] === frames;
}

/** What cannot be had together, and what is said about it. */
type Contradictions = readonly (readonly [applies: unknown, text: string])[];

/**
 * Refuses options that contradict each other.
 *
 * @param frames Number of frames.
 * @throws {InputError} naming them.
 */
export function checkTogether(options: TextToVideoOptions, frames: number): void {
  const { double, motion, controls = [], compat = "framezero", image, latents, noise } = options;
  const { canvas, smoothing } = options;
  const controlled = controls.length > 0;
  const ownNoise = compat === "framezero";
  const ownStarts = haveOwnStarts(latents, frames);
  const contradictions: Contradictions = [
    [
      double && controlled,
      "double makes frames between those that controls have maps for; leave it out, or give a " +
      "clip of maps with a higher rate",
    ],
    [
      double && !ownNoise,
      "double needs frames whose noise is their own, and compat " +
      `"${compat}" draws it for all at once; leave one of them out`,
    ],
    [
      controlled && motion === false && (image || noise),
      `${image ? "a start image" : "noise"} is for clips with motion; with controls, ask for ` +
      "that (motion: true), or leave it out",
    ],
    [image && latents, "latents and image both are the first frame: give one"],
    [
      ownStarts && noise,
      "noise is for frames that begin at the first one's latents; leave it out",
    ],
    [
      canvas && frames === 1,
      "canvas is what the camera moves over, and one frame does not move; ask for more frames, " +
      "or leave canvas out",
    ],
    [
      canvas && controlled,
      "canvas has parts that controls have no maps for; leave one of them out",
    ],
    [
      canvas && ownStarts,
      "canvas is for frames that begin at the first one's latents; give latents of that one " +
      "alone, or leave canvas out",
    ],
    [
      canvas && motion === false,
      "canvas is what the camera moves over, and motion: false lets nothing move; leave one of " +
      "them out",
    ],
    [
      canvas && image,
      "canvas is made together with the first frame, and a start image has nothing around it; " +
      "leave one of them out",
    ],
    [
      canvas && smoothing,
      "canvas lets the camera leave the first frame, whose background smoothing takes; leave one " +
      "of them out",
    ],
    [
      canvas && !ownNoise,
      `canvas is no part of the code that compat "${compat}" follows; leave one of them out`,
    ],
  ];
  for (const [applies, text] of contradictions) if (applies) throw new InputError(text);
}

/** Refuses a tensor of another shape. */
export function checkGiven(
  name: string,
  tensor: Tensor | undefined,
  shape: readonly number[],
): void {
  if (!tensor || sameShape(tensor.shape, shape)) return;
  throw new ShapeError(`${name} must have shape [${shape}], got [${tensor.shape}]`);
}
