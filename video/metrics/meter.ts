/**
 * What all measures of a clip have in common: they see its frames once, one after the other, and
 * keep at most the last few of them, so that memory does not grow with the length of the clip
 * (besides a few numbers a frame).
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import { checkFrame, type Frame } from "../frame.ts";
import type { Frames } from "../writer.ts";

/** A measure of a clip while it is being taken. */
export interface Meter<Result> {
  /** What is measured, for messages. */
  readonly name: string;
  /** Frames that it needs. */
  readonly least: number;
  /** Sees the next frame, which may be overwritten afterwards. */
  add(frame: Frame): void | Promise<void>;
  /** What was measured, after at least `least` frames. */
  result(): Result;
  /** Frees what it holds. */
  close?(): void;
}

/** What went through meters. */
export interface Measured {
  /** Number of frames. */
  readonly count: number;
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
}

/**
 * Shows every frame to all `meters`.
 *
 * @throws {InputError} no frames, frames of different sizes; whatever the frames throw.
 */
export async function feedMeters(
  frames: Frames,
  meters: readonly Meter<unknown>[],
): Promise<Measured> {
  let first: Frame | undefined;
  let count = 0;
  try {
    for await (const frame of frames) {
      checkFrame(frame, count++, first);
      first ??= { ...frame };
      for (const meter of meters) await meter.add(frame);
    }
  } finally {
    for (const meter of meters) meter.close?.();
  }
  if (!first) throw new InputError("a clip to measure must have at least one frame: got none");
  return { count, width: first.width, height: first.height };
}

/**
 * Takes one measure of a whole clip.
 *
 * @throws {InputError} fewer frames than it needs, frames of different sizes.
 */
export async function takeMeasure<Result>(frames: Frames, meter: Meter<Result>): Promise<Result> {
  const { count } = await feedMeters(frames, [meter]);
  if (count < meter.least) throw new InputError(tooShort(meter, count));
  return meter.result();
}

/** Why a clip of `count` frames has no such measure. */
export function tooShort({ name, least }: Meter<unknown>, count: number): string {
  return `${name} needs at least ${least} frames, the clip has ${count}`;
}

/** The arithmetic mean. */
export function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
