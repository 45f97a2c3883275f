/**
 * Scene cuts, as PySceneDetect's `AdaptiveDetector` finds them with its default settings: the measure
 * SCuts of StreamingT2V (arXiv:2403.14773).
 *
 * The score of a frame is the mean of how much hue, saturation and value differ from the frame before,
 * in OpenCV's 8-bit HSV. A frame is the first of a new scene if its score is 3 times the mean of the
 * two scores before and the two after it, and at least 15, no sooner than 15 frames after the last
 * cut, counted to the newest frame seen. Slow changes, such as fades and camera motion, raise the
 * neighbours' scores too; a flash of one frame counts as a cut.
 *
 * @module
 */

import type { Frame } from "../frame.ts";
import type { Frames } from "../writer.ts";
import { meanOf, type Meter, takeMeasure } from "./meter.ts";

/** Where a clip changes to another scene. */
export interface SceneCuts {
  /** Number of cuts. */
  readonly count: number;
  /** First frame of each new scene, counted from 0. */
  readonly cuts: readonly number[];
  /** Change of every frame from the one before, 0 … about 230; 0 for the first. */
  readonly scores: readonly number[];
}

/** Frames on either side that a score is compared with. */
const REACH = 2;

/** How much larger a score must be than theirs. */
const RATIO = 3;

/** The least score of a cut. */
const LEAST_SCORE = 15;

/** Frames of the shortest scene. */
const SHORTEST_SCENE = 15;

/** Where the neighbours' mean counts as 0. */
const NOTHING = 1e-5;

/** Fractions of OpenCV's fixed-point divisions: 12 bits. */
const BITS = 12;
const HALF = 1 << (BITS - 1);
const reciprocals = (numerator: number) =>
  Int32Array.from({ length: 256 }, (_, i) => i ? Math.round((numerator << BITS) / i) : 0);
const BY_VALUE = reciprocals(255);
const BY_RANGE = reciprocals(180 / 6);

/**
 * Hue (0 … 179), saturation and value of every pixel, side by side, as OpenCV's `COLOR_RGB2HSV` has
 * them.
 */
export function hsvOf({ data }: Frame): Uint8Array {
  const hsv = new Uint8Array(data.length);
  for (let at = 0; at < data.length; at += 3) {
    const [r, g, b] = [data[at], data[at + 1], data[at + 2]];
    const value = Math.max(r, g, b);
    const range = value - Math.min(r, g, b);
    const sector = value === r ? g - b : value === g ? b - r + 2 * range : r - g + 4 * range;
    const hue = (sector * BY_RANGE[range] + HALF) >> BITS;
    hsv[at] = hue < 0 ? hue + 180 : hue;
    hsv[at + 1] = (range * BY_VALUE[value] + HALF) >> BITS;
    hsv[at + 2] = value;
  }
  return hsv;
}

/** The meter behind {@link sceneCuts}. */
export function sceneCutMeter(): Meter<SceneCuts> {
  const scores: number[] = [];
  const cuts: number[] = [];
  let before: Uint8Array | undefined;
  const isCut = (at: number): boolean => {
    const score = scores[at];
    const near = scores.slice(at - REACH, at + REACH + 1);
    const others = meanOf(near.toSpliced(REACH, 1));
    const ratio = others < NOTHING ? Infinity : score / others;
    return ratio >= RATIO && score >= LEAST_SCORE;
  };
  return {
    name: "the number of scene cuts",
    least: SHORTEST_SCENE + 1,
    add(frame) {
      const hsv = hsvOf(frame);
      scores.push(before ? differenceOf(before, hsv) : 0);
      before = hsv;
      const newest = scores.length - 1;
      const at = newest - REACH;
      const longEnough = newest - (cuts.at(-1) ?? 0) >= SHORTEST_SCENE;
      if (at >= REACH && longEnough && isCut(at)) cuts.push(at);
    },
    result: () => ({ count: cuts.length, cuts, scores }),
  };
}

function differenceOf(a: Uint8Array, b: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += Math.abs(a[i] - b[i]);
  return sum / a.length;
}

/**
 * Finds the cuts of a clip.
 *
 * @throws {InputError} fewer than 16 frames, before which there can be no cut; frames of different
 * sizes.
 */
export function sceneCuts(frames: Frames): Promise<SceneCuts> {
  return takeMeasure(frames, sceneCutMeter());
}
