/**
 * Reference clips, and how frames are compared with them.
 *
 * @module
 */

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { InputError } from "../core/errors.ts";
import type { Frame } from "../video/frame.ts";
import { readPicture } from "../video/picture.ts";

/** The path of a reference file. */
export function videoPath(name: string): string {
  return fileURLToPath(new URL(`./golden/video/${name}`, import.meta.url));
}

/** All frames. */
export async function collect(frames: AsyncIterable<Frame>): Promise<Frame[]> {
  const all: Frame[] = [];
  for await (const frame of frames) all.push(frame);
  return all;
}

/** The frames in a strip of frames side by side. */
export async function framesInStrip(name: string, count: number): Promise<Frame[]> {
  const strip = await readPicture(videoPath(name));
  const width = strip.width / count;
  return Array.from({ length: count }, (_, i) => {
    const data = new Uint8Array(3 * width * strip.height);
    for (let y = 0; y < strip.height; y++) {
      const at = 3 * (y * strip.width + i * width);
      data.set(strip.data.subarray(at, at + 3 * width), 3 * y * width);
    }
    return { width, height: strip.height, data };
  });
}

/** Mean and largest absolute difference of two frames of one size, in steps of 255. */
export function difference(got: Frame, want: Frame): { mean: number; max: number } {
  assert.deepEqual([got.width, got.height], [want.width, want.height]);
  assert.equal(got.data.length, want.data.length);
  let sum = 0, max = 0;
  for (let i = 0; i < got.data.length; i++) {
    const apart = Math.abs(got.data[i] - want.data[i]);
    sum += apart;
    max = Math.max(max, apart);
  }
  return { mean: sum / got.data.length, max };
}

/** Rejects with an InputError whose message matches. */
export async function refuses(action: Promise<unknown>, message: RegExp): Promise<void> {
  await assert.rejects(action, (error) => {
    assert.ok(error instanceof InputError, String(error));
    assert.match(error.message, message);
    return true;
  });
}
