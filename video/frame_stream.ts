/**
 * What every reader of clips gives: pictures in their order, each with its time, turned into RGB
 * only where it is wanted; and the rule by which some of them are picked.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Frame } from "./frame.ts";

/** What is known of a clip without decoding it. */
export interface VideoInfo {
  /** What messages call it: its path, address or file name. */
  readonly name: string;
  /** What it is, by its content. */
  readonly kind: "mp4" | "mov" | "webm" | "mkv" | "gif" | "apng" | "picture" | "folder";
  /** Pixels in a row as shown: turned upright, pixels square. */
  readonly width: number;
  /** Rows as shown. */
  readonly height: number;
  /** Frames a second, on average. */
  readonly fps: number;
  /** Seconds from the beginning of the first frame to the end of the last one. */
  readonly duration: number;
  /** How many frames there are; `null` where only reading the whole file would tell. */
  readonly frames: number | null;
  /** Whether frames are shown for different times, as far as the first 256 of them tell. */
  readonly hasVariableFrameRate: boolean;
}

/** One picture of a stream. */
export interface Shot {
  /** Seconds after the first one. */
  readonly time: number;
  /** Its pixels, in an array of their own. */
  rgb(): Frame | Promise<Frame>;
  /** Releases what it holds. */
  close(): void;
}

/** An opened clip of some kind. */
export interface FrameStream {
  /** What is known of it. */
  readonly info: VideoInfo;
  /** Its pictures in order, at the latest from the one on that is shown at `from` seconds. */
  shots(from: number): AsyncGenerator<Shot, void>;
  /** Releases the file. */
  close(): Promise<void>;
}

/** A place in time as messages write it. */
export const seconds = (time: number): string => `${Number(time.toFixed(3))} s`;

/** The error of a file whose end is missing, from which frames came up to `time`. */
export function cutOffError(name: string, time: number, duration?: number): InputError {
  const whole = duration === undefined ? "" : ` of ${seconds(duration)}`;
  return new InputError(
    `${name}: the file is cut off, its frames end at ${seconds(time)}${whole}; ` +
      "fetch or make it again, or use only what lies before",
  );
}

/** Every frame of a stream. */
export async function* allFrames(stream: FrameStream): AsyncGenerator<Frame, void> {
  for await (const shot of stream.shots(0)) {
    try {
      yield await shot.rgb();
    } finally {
      shot.close();
    }
  }
}

/**
 * The frames that are on the screen at `times`: the last one that has begun, a frame as often as
 * there are times in it. Reads no further than one frame behind the last of them.
 *
 * @param times Seconds after the first frame, ascending.
 * @throws {InputError} if they are not; whatever the stream throws.
 */
export async function* framesAt(
  stream: FrameStream,
  times: readonly number[],
): AsyncGenerator<Frame, void> {
  const wrong = times.findIndex((time, i) => !(time >= (times[i - 1] ?? 0)));
  if (wrong >= 0) {
    throw new InputError(
      `the times of frames must be seconds from 0 on in ascending order: ${times[wrong]} is not`,
    );
  }
  let next = 0;
  let shown: Shot | undefined;
  try {
    for await (const shot of stream.shots(times[0] ?? 0)) {
      const last = shown;
      shown = shot;
      if (!last) continue;
      try {
        for (; next < times.length && times[next] < shot.time; next++) yield await last.rgb();
      } finally {
        last.close();
      }
      if (next === times.length) return;
    }
    for (; shown && next < times.length; next++) yield await shown.rgb();
  } finally {
    shown?.close();
  }
}
