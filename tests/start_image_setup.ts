/**
 * Pictures to start from, and how the tests of start images compare what comes of them.
 *
 * @module
 */

import assert from "node:assert/strict";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Clip } from "../video/clip.ts";
import type { Frame } from "../video/frame.ts";
import { fitPicture } from "../video/picture.ts";
import { encodePicture } from "../video/start_image.ts";
import { taken } from "./clips.ts";

/** A ball on a plain ground, which no model has drawn; in the light that the built-in one knows. */
function ball(side: number): Frame {
  const [x, y, radius] = [60, 68, 26].map((length) => length * side / 128);
  const colour = [215, 60, 70];
  const data = new Uint8Array(3 * side * side);
  for (let i = 0; i < side * side; i++) {
    const [column, row] = [i % side, Math.floor(i / side)];
    const share = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(column - x, row - y)));
    const away = Math.hypot(column - x + radius / 2, row - y + radius / 2) / radius;
    const ground = 232 - (column + row) / side * 12.8;
    const shaded = colour.map((value) => value * (1.15 - 0.3 * away));
    data.set(shaded.map((value) => Math.min(255, share * value + (1 - share) * ground)), 3 * i);
  }
  return { width: side, height: side, data };
}

/** Light on the left half. */
function leftHalf(side: number): Frame {
  const data = Uint8Array.from(
    { length: 3 * side * side },
    (_, i) => 2 * (Math.floor(i / 3) % side) < side ? 255 : 0,
  );
  return { width: side, height: side, data };
}

/** The picture of the tests, 128×128, and a mask for it. */
export const PICTURE: Frame = ball(128);
export const MASK: Frame = leftHalf(128);

/** Both, 64×64, for what does not depend on the model's recognizing anything. */
export const SMALL_PICTURE: Frame = ball(64);
export const SMALL_MASK: Frame = leftHalf(64);
/** Their size. */
export const SMALL = { width: 64, height: 64 } as const;

/** The frames of a clip. */
export async function framesOf(clip: Clip): Promise<Frame[]> {
  const frames: Frame[] = [];
  for await (const frame of clip) frames.push(frame);
  clip.dispose();
  return frames;
}

/** The latents of a picture, with which image to image begins. */
export function encodedPicture(
  sd: StableDiffusion,
  picture: Frame = PICTURE,
): Promise<Float32Array> {
  const { device } = sd;
  return taken(device.scope(() => encodePicture(sd, fitPicture(device, picture, picture))));
}

/** Peak signal-to-noise ratio, in dB. */
export function psnr(a: Frame, b: Frame): number {
  const squares = a.data.reduce((sum, value, i) => sum + (value - b.data[i]) ** 2, 0);
  return 10 * Math.log10(255 ** 2 * a.data.length / squares);
}

/** What a run of steps returns. */
export async function resultOf<T>(run: AsyncGenerator<unknown, T>): Promise<T> {
  for (;;) {
    const { done, value } = await run.next();
    if (done) return value;
  }
}

/** The largest difference of two arrays. */
export function largest(a: Float32Array, b: Float32Array): number {
  assert.equal(a.length, b.length);
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);
}
