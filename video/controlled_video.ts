/**
 * Videos under control: ControlNets with a map for every frame, as Text2Video-Zero has them
 * (arXiv:2303.13439, §4.2: "Conditional and Specialized Text-to-Video").
 *
 * The original code begins all frames with one and the same noise, and leaves motion to the maps:
 * no motion field, no jump from T0 to T1. Frames attend to the first one in the UNet and in the
 * ControlNet. The paper speaks of attention in the UNet alone and of latents with motion; both can
 * be had (`controlAttention: "unet"`, `motion: true`).
 *
 * @module
 */

import { InputError, WeightError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { linearCombination, tile } from "../kernels/mod.ts";
import type { ControlNetModel } from "../models/controlnet.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import type { ClipStep } from "./clip.ts";
import type { FrameControl } from "./control_branch.ts";
import { checkFrame, type Frame } from "./frame.ts";
import { checkNumber, denoise, type Sampler } from "./generation.ts";
import { cropTo, type Size } from "./picture.ts";

/** A ControlNet, and what it shall see. */
export interface ControlOptions {
  /** The net, on the device of the model that it controls. */
  model: ControlNetModel;
  /**
   * Its maps, ready for it: the n-th is that of the frame with number n, the first accompanies the
   * anchor. They have the size of the clip, or its aspect and are scaled.
   */
  frames: AsyncIterable<Frame> | Iterable<Frame>;
  /** How strongly it acts. Default 1; 0 is as good as no control. */
  scale?: number;
  /** Share of the steps before it begins to act, 0 … 1. Default 0. */
  start?: number;
  /** Share of the steps after which it acts no more, 0 … 1. Default 1. */
  end?: number;
  /**
   * Whether it acts without a prompt: the negative prompt's rows are left uncontrolled, and finer
   * residuals are weaker, from 0.1 of the finest to 1. Default false.
   */
  guessMode?: boolean;
}

/** Where frames attend to the first one: in the UNet and the ControlNets, or in the UNet alone. */
export type ControlAttention = "unet+controlnet" | "unet";

/** Controls, checked and completed; their maps are not read yet. */
export type SettledControl = Readonly<Required<ControlOptions>>;

/**
 * Checks controls and fills in defaults.
 *
 * @throws {InputError} naming the option, the rule and the value.
 * @throws {WeightError} if a net belongs to another kind of model.
 */
export function settleControls(
  sd: StableDiffusion,
  controls: readonly ControlOptions[] = [],
): readonly SettledControl[] {
  return controls.map((control, i) => {
    const { model, frames, scale = 1, start = 0, end = 1, guessMode = false } = control;
    const share = (name: "start" | "end", value: number) =>
      checkNumber(`${name} of control ${i + 1}`, value, { least: 0, most: 1 });
    checkNumber(`scale of control ${i + 1}`, scale);
    if (share("start", start) >= share("end", end)) {
      throw new InputError(
        `control ${i + 1} must start before it ends, got start ${start} and end ${end}`,
      );
    }
    checkPair(sd, model);
    return { model, frames, scale, start, end, guessMode };
  });
}

/** Refuses a net whose residuals do not fit the UNet. */
function checkPair({ unet, factor, device }: StableDiffusion, model: ControlNetModel): void {
  if (model.device !== device) {
    throw new InputError(
      `${model.source}: a ControlNet must be loaded to the device of the model that it controls; ` +
        "give that to ControlNetModel.load",
    );
  }
  const extents = [
    ["a text of width", "crossAttentionDim"],
    ["stages of widths", "blockOutChannels"],
    ["layers per stage", "layersPerBlock"],
    ["latents of channels", "inChannels"],
  ] as const;
  for (const [what, key] of extents) {
    const [own, theirs] = [model.config[key], unet.config[key]];
    if (String(own) === String(theirs)) continue;
    throw new WeightError(
      `${model.source}: this ControlNet has ${what} ${own}, the UNet ${theirs}; it was made for ` +
        "another kind of model",
    );
  }
  if (model.factor === factor) return;
  throw new WeightError(
    `${model.source}: this ControlNet has ${model.factor} pixels a latent cell, the autoencoder ` +
      `${factor}; it was made for another kind of model`,
  );
}

/** What settings of clips say about controls. */
export function controlSettings(
  controls: readonly SettledControl[],
  controlAttention?: ControlAttention,
): Record<string, unknown> {
  if (!controls.length) return {};
  return {
    controls: controls.map(({ model: { source }, scale, start, end, guessMode }) => {
      return { model: source, scale, start, end, guessMode };
    }),
    ...(controlAttention && { controlAttention }),
  };
}

/** The frames that maps are wanted for. */
export interface ControlledFrames {
  /** Their numbers; the n-th map is that of number n. */
  readonly frameIds: readonly number[];
  /** Whether there must be a map for each and no more: frames were counted, not chosen. */
  readonly counted: boolean;
  /** Pixels of the clip. */
  readonly size: Size;
  /** Stops reading. */
  readonly signal?: AbortSignal;
}

/**
 * Reads the maps of all controls.
 *
 * @returns A map for each frame, in the order of the clip.
 * @throws {InputError} if there are too few, too many, or some of another aspect.
 */
export async function readControls(
  controls: readonly SettledControl[],
  frames: ControlledFrames,
): Promise<FrameControl[]> {
  const read: FrameControl[] = [];
  for (const [i, control] of controls.entries()) {
    const maps = await readMaps(control.frames, `control ${i + 1}`, frames);
    read.push({ ...control, maps });
  }
  return read;
}

async function readMaps(
  source: ControlOptions["frames"],
  name: string,
  { frameIds, counted, size, signal }: ControlledFrames,
): Promise<Frame[]> {
  const wanted = new Set(frameIds);
  const due = frameIds.reduce((most, id) => Math.max(most, id), 0) + 1;
  const found = new Map<number, Frame>();
  let count = 0;
  let last: Frame | undefined;
  for await (const map of source) {
    signal?.throwIfAborted();
    if (count === due) {
      if (!counted) break;
      throw new InputError(
        `${name} must have a map for each of the ${due} frames, it has more; ask for as many ` +
          "frames as there are maps, or choose some by frameIds",
      );
    }
    if (wanted.has(count)) {
      checkMap(map, count, name, size);
      // Who makes frames may overwrite them; equal ones are kept, and embedded, once.
      last = last && equalFrames(last, map) ? last : { ...map, data: map.data.slice() };
      found.set(count, last);
    }
    count++;
  }
  if (count < due) {
    throw new InputError(
      `${name} must have a map for each frame up to number ${due - 1}, it has ${count}; ask for ` +
        `${count} frames, or give more maps`,
    );
  }
  return frameIds.map((id) => found.get(id) as Frame);
}

function checkMap(map: Frame, index: number, name: string, size: Size): void {
  checkFrame(map, index, undefined);
  const { width, height } = cropTo(map, size);
  if (width === map.width && height === map.height) return;
  throw new InputError(
    `the maps of ${name} must have the aspect of the clip, ${size.width}x${size.height}: map ` +
      `${index} is ${map.width}x${map.height}; give width and height to match, or crop the maps`,
  );
}

function equalFrames(a: Frame, b: Frame): boolean {
  return a.width === b.width && a.height === b.height &&
    a.data.every((value, i) => value === b.data[i]);
}

/**
 * The original's conditional mode: one x_T for all frames, denoised together from the first step to
 * the last. Yields after every step and returns x_0 of all frames.
 *
 * @param first x_T of the first frame, `[1, C, h, w]`, instead of drawing it.
 */
export async function* denoiseControlled(
  sampler: Sampler,
  { frameIds, latentShape }: {
    readonly frameIds: readonly number[];
    readonly latentShape: readonly number[];
  },
  first?: Tensor,
): AsyncGenerator<ClipStep, Tensor> {
  const { scheduler, noise, unet: { device } } = sampler;
  const { timesteps, initNoiseSigma } = scheduler;
  const start = device.scope(() => {
    const one = first ?? device.tensor(noise.initial(latentShape), latentShape);
    return linearCombination([initNoiseSigma], [tile(one, [frameIds.length, 1, 1, 1])]);
  }).keep();
  const progress = { phase: "frames", before: 0, total: timesteps.length } as const;
  // All frames come the same way, so that one history of steps serves them.
  return yield* denoise({ ...sampler, others: undefined }, start, timesteps, progress);
}
