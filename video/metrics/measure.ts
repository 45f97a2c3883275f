/**
 * All measures of a clip in one pass over its frames.
 *
 * @module
 */

import type { Device } from "../../core/device.ts";
import { InputError } from "../../core/errors.ts";
import type { ClipModel } from "../../models/clip.ts";
import type { Frames } from "../writer.ts";
import { clipMeter, type ClipScore } from "./clip_score.ts";
import { type Flicker, flickerMeter } from "./flicker.ts";
import { feedMeters, type Meter, tooShort } from "./meter.ts";
import { sceneCutMeter, type SceneCuts } from "./scene_cuts.ts";
import { type Similarity, similarityMeter } from "./similarity.ts";
import { type WarpErrors, warpMeter, type WarpOptions } from "./warp.ts";

/** What to measure. */
export interface MeasureOptions extends WarpOptions {
  /** Where optical flow is computed; without it there is no motion and no warp error. */
  readonly device?: Device;
  /** What the CLIP score compares with; without it there is none. */
  readonly clip?: {
    /** Text and image encoder. */
    readonly model: ClipModel;
    /** What the clip should show. */
    readonly prompt: string;
  };
}

/** The figures of a clip. Those are absent that were not asked for, or that it is too short for. */
export interface Measures {
  /** Number of frames. */
  readonly frames: number;
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Motion, and changes that it does not explain. From 2 frames on. */
  readonly motion?: WarpErrors;
  /** How alike consecutive frames are. From 2 frames on. */
  readonly similarity?: Similarity;
  /** Changes to other scenes. From 16 frames on. */
  readonly sceneCuts?: SceneCuts;
  /** Quick changes of brightness. From 8 frames on. */
  readonly flicker?: Flicker;
  /** How well it matches its prompt. */
  readonly clip?: ClipScore;
  /** What was left out because the clip is too short, and how many frames it would take. */
  readonly remarks: readonly string[];
}

/**
 * Measures a clip. Its frames are gone through once and not kept.
 *
 * @throws {InputError} no frames, frames of different sizes or below 15×15 pixels, a clip so short
 * that nothing can be measured.
 */
export async function measure(frames: Frames, options: MeasureOptions = {}): Promise<Measures> {
  const { device, clip, side } = options;
  const meters = {
    similarity: similarityMeter(),
    sceneCuts: sceneCutMeter(),
    flicker: flickerMeter(),
    ...(device && { motion: warpMeter(device, { side }) }),
    ...(clip && { clip: clipMeter(clip.model, clip.prompt) }),
  };
  const all: Meter<unknown>[] = Object.values(meters);
  const { count, width, height } = await feedMeters(frames, all);
  const remarks = all.filter(({ least }) => count < least).map((meter) => tooShort(meter, count));
  if (remarks.length === all.length) {
    throw new InputError(`there is nothing to measure: ${remarks.join("; ")}`);
  }
  const resultOf = <Result>(meter: Meter<Result> | undefined): Result | undefined =>
    meter && count >= meter.least ? meter.result() : undefined;
  return {
    frames: count,
    width,
    height,
    motion: resultOf(meters.motion),
    similarity: resultOf(meters.similarity),
    sceneCuts: resultOf(meters.sceneCuts),
    flicker: resultOf(meters.flicker),
    clip: resultOf(meters.clip),
    remarks,
  };
}
