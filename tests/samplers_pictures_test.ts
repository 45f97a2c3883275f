/**
 * Every sampler makes the pictures that its prompts ask for, at its usual number of steps, with the
 * built-in model: background and object must have the colours that were named.
 *
 * @module
 */

import assert from "node:assert/strict";
import process from "node:process";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { samplers } from "../schedulers/mod.ts";
import { decodeFrame } from "../video/clip.ts";
import { textToImage } from "../video/text_to_image.ts";
import { sharedOut } from "./shared_out.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

/** What the model was taught to call these. */
const COLOURS: Readonly<Record<string, readonly [number, number, number]>> = {
  red: [0.86, 0.15, 0.15],
  yellow: [0.96, 0.86, 0.16],
  green: [0.18, 0.66, 0.26],
  blue: [0.16, 0.32, 0.86],
  purple: [0.55, 0.22, 0.72],
  pink: [0.97, 0.56, 0.74],
  white: [0.96, 0.96, 0.96],
  black: [0.07, 0.07, 0.07],
};

const PROMPTS = [
  "a red circle on a blue background",
  "a yellow square on a green background",
  "a pink heart on a black background",
  "a green triangle on a white background",
  "a large blue ring on a yellow background",
  "a red star on a white background",
];

const SIZE = 128;

type Colour = readonly number[];

function distance(a: Colour, b: Colour): number {
  return Math.hypot(...a.map((value, c) => value - b[c]));
}

/** The nearest colour's name for the mean of some. */
function nameOf(colours: readonly Colour[]): string {
  const mean = [0, 1, 2].map((c) => colours.reduce((sum, one) => sum + one[c], 0) / colours.length);
  return Object.keys(COLOURS).reduce((a, b) =>
    distance(COLOURS[b], mean) < distance(COLOURS[a], mean) ? b : a
  );
}

/**
 * `"<object> on <background>"` as the pixels `[3, H, W]` have it: the background is what is near the
 * edges, the object what is farthest from that in colour, so that soft outlines do not count.
 */
function colours(pixels: Float32Array): string {
  const plane = SIZE * SIZE;
  const all = Array.from({ length: plane }, (_, i) => [0, 1, 2].map((c) => pixels[c * plane + i]));
  const atEdge = (i: number) => {
    const [x, y] = [i % SIZE, Math.floor(i / SIZE)];
    return Math.min(x, y, SIZE - 1 - x, SIZE - 1 - y) < 8;
  };
  const background = nameOf(all.filter((_, i) => atEdge(i)));
  const far = (colour: Colour) => distance(colour, COLOURS[background]);
  const inner = all.filter((_, i) => !atEdge(i)).sort((a, b) => far(b) - far(a));
  return `${nameOf(inner.slice(0, plane / 64))} on ${background}`;
}

/** What the prompt names. */
function wanted(prompt: string): string {
  const named = prompt.split(" ").filter((word) => word in COLOURS);
  return `${named[0]} on ${named[1]}`;
}

/** Draws a prompt and says what colours it came out in. */
async function draw(
  prompt: string,
  scheduler: string,
  steps: number,
  guidanceScale: number,
): Promise<string> {
  const clip = textToImage(sd, prompt, { scheduler, steps, guidanceScale, seed: 3 });
  try {
    return colours(await decodeFrame(sd, await clip.latents(), 0, []));
  } finally {
    clip.dispose();
  }
}

// Each sampler draws one of the prompts, or all of them if SAMPLER_PROMPTS=all. It does so in one
// runtime: the arithmetic is the adapter's in both.
const all = process.env.SAMPLER_PROMPTS === "all";
for (const { name, usualSteps } of sharedOut(samplers)) {
  const own = samplers.findIndex((sampler) => sampler.name === name) % PROMPTS.length;
  for (const prompt of all ? PROMPTS : [PROMPTS[own]]) {
    test(`${name} draws ${prompt} in ${usualSteps} steps`, async () => {
      // LCM is for models that were distilled for it, which want little guidance.
      assert.equal(await draw(prompt, name, usualSteps, name === "lcm" ? 1.5 : 5), wanted(prompt));
    });
  }
}
