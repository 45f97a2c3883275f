/**
 * Ready maps: depth on one scale for the whole clip, lines in white on black.
 *
 * The original code stretches the depth of every frame to the full range by itself, so that a
 * thing's brightness changes whenever something comes nearer than all else. Here the whole clip has
 * one scale.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import { checkFrame, type Frame } from "../frame.ts";
import type { Frames } from "../writer.ts";

/** The least and the greatest level of depth, 0 … 255. */
export interface DepthBounds {
  /** Of what is farthest. */
  readonly least: number;
  /** Of what is nearest. */
  readonly greatest: number;
}

/** Mean distance of the channels of a picture above which it is taken for a coloured one. */
const COLOURED = 32;

/** A pixel's level: the mean of its channels. */
function levelAt(data: Uint8Array, at: number): number {
  return (data[at] + data[at + 1] + data[at + 2]) / 3;
}

/**
 * The bounds of depth in a whole clip.
 *
 * @throws {InputError} no frames, or frames that are coloured.
 */
export async function depthBounds(frames: Frames): Promise<DepthBounds> {
  let [least, greatest] = [Infinity, -Infinity];
  let index = 0;
  for await (const frame of frames) {
    checkGrey(frame, index++);
    for (let at = 0; at < frame.data.length; at += 3) {
      const level = levelAt(frame.data, at);
      if (level < least) least = level;
      if (level > greatest) greatest = level;
    }
  }
  if (index === 0) throw new InputError("a clip of depth maps must have a frame: got none");
  return { least, greatest };
}

function checkGrey(frame: Frame, index: number): void {
  checkFrame(frame, index, undefined);
  const { data } = frame;
  let sum = 0;
  for (let at = 0; at < data.length; at += 3) {
    const [r, g, b] = [data[at], data[at + 1], data[at + 2]];
    sum += Math.max(r, g, b) - Math.min(r, g, b);
  }
  if (3 * sum <= COLOURED * data.length) return;
  throw new InputError(
    `depth maps must be grey, the nearer the lighter; frame ${index} is coloured: make them ` +
      "without a colour map",
  );
}

/**
 * Depth maps on one scale: what is farthest in the clip black, what is nearest white.
 *
 * Without bounds the frames are gone through twice, so they must be of a kind that can be: a list,
 * or an object that begins anew with each iterator, and no generator.
 *
 * @throws {InputError} a generator without bounds; bounds that are not 0 ≤ least < greatest ≤ 255,
 * which is so if all depths of the clip are equal; frames that are coloured.
 */
export async function* normaliseDepth(
  frames: Frames,
  bounds?: DepthBounds,
): AsyncGenerator<Frame, void> {
  if (!bounds && isSpentByReading(frames)) {
    throw new InputError(
      "depth is scaled by the bounds of the whole clip, which takes two readings, but this is a " +
        "generator, which can be read once; give the frames as a list, or give the bounds",
    );
  }
  const { least, greatest } = bounds ?? await depthBounds(frames);
  if (!(least >= 0 && least < greatest && greatest <= 255)) {
    throw new InputError(
      `bounds of depth must be 0 ≤ least < greatest ≤ 255: got ${least} and ${greatest}` +
        (bounds ? "" : ", all depths of the clip are equal"),
    );
  }
  let index = 0;
  for await (const frame of frames) {
    checkGrey(frame, index++);
    const data = new Uint8Array(frame.data.length);
    for (let at = 0; at < data.length; at += 3) {
      const share = (levelAt(frame.data, at) - least) / (greatest - least);
      data.fill(Math.round(255 * Math.min(1, Math.max(0, share))), at, at + 3);
    }
    yield { ...frame, data };
  }
}

/** Whether an iterable is its own iterator, as generators are. */
function isSpentByReading(frames: Frames): boolean {
  const iterator: unknown = Symbol.asyncIterator in frames
    ? frames[Symbol.asyncIterator]()
    : frames[Symbol.iterator]();
  return iterator === frames;
}

/** The negative of a picture. */
export function inverted({ width, height, data }: Frame): Frame {
  return { width, height, data: data.map((level) => 255 - level) };
}

/** Whether a picture is light in the mean, as dark lines on paper are. */
export function isLight({ data }: Frame): boolean {
  return data.reduce((sum, level) => sum + level, 0) > 127.5 * data.length;
}

/** The share of a picture's pixels that are black, or nearly so. */
export function shareOfBlack({ data }: Frame): number {
  let black = 0;
  for (let at = 0; at < data.length; at += 3) {
    if (Math.max(data[at], data[at + 1], data[at + 2]) < 32) black++;
  }
  return 3 * black / data.length;
}
