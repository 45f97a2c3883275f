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

/** A ball on a plain ground, which no model has drawn; in the light that the built-in one knows. */
function ball(x: number, y: number, radius: number, colour: readonly number[]): Frame {
  const data = new Uint8Array(3 * 128 * 128);
  for (let i = 0; i < 128 * 128; i++) {
    const [column, row] = [i % 128, Math.floor(i / 128)];
    const share = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(column - x, row - y)));
    const away = Math.hypot(column - x + radius / 2, row - y + radius / 2) / radius;
    const ground = 232 - (column + row) / 10;
    const shaded = colour.map((value) => value * (1.15 - 0.3 * away));
    data.set(shaded.map((value) => Math.min(255, share * value + (1 - share) * ground)), 3 * i);
  }
  return { width: 128, height: 128, data };
}

/** The picture of the tests, 128×128. */
export const PICTURE: Frame = ball(60, 68, 26, [215, 60, 70]);
/** Light on the left half. */
export const MASK: Frame = {
  ...PICTURE,
  data: PICTURE.data.map((_, i) => Math.floor(i / 3) % 128 < 64 ? 255 : 0),
};

/** The frames of a clip. */
export async function framesOf(clip: Clip): Promise<Frame[]> {
  const frames: Frame[] = [];
  for await (const frame of clip) frames.push(frame);
  clip.dispose();
  return frames;
}

/** The latents of the picture, with which image to image begins. */
export async function encodedPicture(sd: StableDiffusion): Promise<Float32Array> {
  const { device } = sd;
  const latents = device.scope(() => encodePicture(sd, fitPicture(device, PICTURE, PICTURE)));
  try {
    return await latents.data();
  } finally {
    latents.dispose();
  }
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
