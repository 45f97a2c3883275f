/**
 * Background smoothing on the command line: where the foreground comes from.
 *
 * @module
 */

import type { Device } from "../../core/device.ts";
import { InputError } from "../../core/errors.ts";
import { openSafetensors } from "../../core/safetensors.ts";
import { U2Net } from "../../models/u2net.ts";
import type { SmoothingBlend } from "../background_smoothing.ts";
import { type MaskSource, salientObjects } from "../foreground.ts";
import type { Frame } from "../frame.ts";
import { openVideo } from "../reader.ts";
import type { BackgroundSmoothing } from "../smoothed_pass.ts";
import type { GenerateFlags } from "./options.ts";

/** Smoothing as flags and settings have it. */
export interface SmoothingNames {
  /** How much of its own background a frame keeps. */
  readonly smooth?: number;
  /** Whose formula. */
  readonly smoothBlend?: SmoothingBlend;
  /** A word of the prompt. */
  readonly subject?: string;
  /** Clip of masks, or one mask for all frames. */
  readonly maskVideo?: string;
  /** Weights of U²-Net. */
  readonly saliency?: string;
}

/** Where the foreground comes from. */
const SOURCES = ["subject", "maskVideo", "saliency"] as const;

const FLAGS = "--subject, --mask-video or --saliency";

/**
 * What the flags ask for, over what settings say; `undefined` if nothing does. A source that a flag
 * names replaces the one in the settings.
 *
 * @throws {InputError} if there are several sources, or none.
 */
export function smoothingNames(
  { smooth, smoothBlend, subject, maskVideo, saliency }: GenerateFlags,
  stored: SmoothingNames,
): SmoothingNames | undefined {
  const flags = given({ subject, maskVideo, saliency });
  const sources = Object.keys(flags).length ? flags : given({
    subject: stored.subject,
    maskVideo: stored.maskVideo,
    saliency: stored.saliency,
  });
  const settings = given({
    smooth: smooth ?? stored.smooth,
    smoothBlend: smoothBlend ?? stored.smoothBlend,
  });
  const count = Object.keys(sources).length;
  if (count > 1) {
    throw new InputError(`the foreground has one source: give one of ${FLAGS}`);
  }
  if (count === 1) return { ...settings, ...sources };
  if (!Object.keys(settings).length) return undefined;
  throw new InputError(`smoothing has to know where the foreground is: give ${FLAGS}`);
}

function given(names: SmoothingNames): SmoothingNames {
  return Object.fromEntries(Object.entries(names).filter(([, value]) => value !== undefined));
}

/**
 * Refuses files that are not there, before a model is loaded.
 *
 * @throws {InputError} naming the file.
 * @throws {WeightError} if weights are no safetensors file.
 */
export async function checkSmoothing(names: SmoothingNames | undefined): Promise<void> {
  if (names?.maskVideo !== undefined) await (await openMaskVideo(names.maskVideo)).close();
  if (names?.saliency !== undefined) await (await openSafetensors(names.saliency)).close();
}

/** Smoothing for the library. */
export interface OpenSmoothing {
  /** The option of the library. */
  readonly options: BackgroundSmoothing;
  /** Frees what it needs, and closes masks. */
  close(): Promise<void>;
}

/** Opens what names say, with networks on `device`. */
export async function openSmoothing(
  { smooth: strength, smoothBlend: blend, ...names }: SmoothingNames,
  device: Device,
): Promise<OpenSmoothing> {
  const [source] = SOURCES.filter((name) => names[name] !== undefined);
  const net = source === "saliency"
    ? await U2Net.open(names.saliency as string, { device })
    : undefined;
  const pictures = source === "maskVideo"
    ? await openMaskVideo(names.maskVideo as string)
    : undefined;
  const masks: MaskSource = net
    ? salientObjects(net)
    : pictures?.frames ?? { subject: names.subject as string };
  const close = async () => {
    net?.dispose();
    await pictures?.close();
  };
  return { options: { masks, strength, blend }, close };
}

/** Masks that can be read more than once. */
interface OpenMasks {
  readonly frames: AsyncIterable<Frame>;
  close(): Promise<void>;
}

/**
 * The masks of `--mask-video`: a video, a GIF, a folder of pictures, or one picture for all frames.
 *
 * @throws {InputError} if they cannot be read.
 */
async function openMaskVideo(path: string): Promise<OpenMasks> {
  const reader = await openVideo(path);
  return {
    frames: { [Symbol.asyncIterator]: () => reader.frames() },
    close: () => reader.close(),
  };
}
