/** Prompts and guidance that change over a clip. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { courseOf, slerpWeights } from "../video/prompt_travel.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { latentsOf } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

const RED = "a red heart in a green meadow";
const BLUE = "a blue circle in a green meadow";
const QUICK = { steps: 4, t0: 1, t1: 2, seed: 5, width: 64, height: 64 } as const;
const SIZE = 4 * 8 * 8;

function video(prompt: string, options: TextToVideoOptions): Promise<Float32Array> {
  return latentsOf(textToVideo(sd, prompt, { ...QUICK, ...options }));
}

function close(a: Float32Array, b: Float32Array): void {
  const error = Math.max(...a.map((value, i) => Math.abs(value - b[i])));
  assert.ok(error < 1e-4, `largest difference ${error}`);
}

test("spherical interpolation keeps the length of unit vectors and meets its ends", () => {
  const vector = fc.array(fc.double({ min: -1, max: 1, noNaN: true }), {
    minLength: 4,
    maxLength: 4,
  }).filter((values) => Math.hypot(...values) > 0.1)
    .map((values) => values.map((value) => value / Math.hypot(...values)));
  fc.assert(
    fc.property(vector, vector, fc.double({ min: 0, max: 1, noNaN: true }), (a, b, share) => {
      fc.pre(Math.abs(a.reduce((sum, value, i) => sum + value * b[i], 0)) < 0.999);
      const [wa, wb] = slerpWeights(a, b, share);
      const length = Math.hypot(...a.map((value, i) => wa * value + wb * b[i]));
      assert.ok(Math.abs(length - 1) < 1e-9);
      assert.deepEqual(slerpWeights(a, b, 0).map((w) => Math.round(1e9 * w) / 1e9), [1, 0]);
      assert.deepEqual(slerpWeights(a, b, 1).map((w) => Math.round(1e9 * w) / 1e9), [0, 1]);
    }),
    { seed: 1, numRuns: 200 },
  );
});

test("guidance is linear between key frames and holds behind the last", () => {
  const { guidanceAt, guidanceScale, later } = courseOf(
    { prompt: RED, guidanceScale: 1 },
    { guidanceScales: { 4: 5, 6: 3 } },
    { frameIds: [0, 2, 4, 5, 6, 9], clipFrames: 10 },
  );
  assert.ok(guidanceAt && guidanceScale === 5 && later.length === 0);
  assert.deepEqual([0, 1, 2, 3, 4, 5].map(guidanceAt), [1, 3, 5, 4, 3, 3]);
});

test("scheduled guidance of 1 and below uses the prompt alone, as guidance of a clip does", async () => {
  const { guidanceAt } = courseOf(
    { prompt: RED, guidanceScale: 0 },
    { guidanceScales: { 4: 4 } },
    { frameIds: [0, 1, 2, 3], clipFrames: 5 },
  );
  assert.deepEqual([0, 1, 2, 3].map((position) => guidanceAt?.(position)), [1, 1, 2, 3]);
  const first = { frameIds: [0], clipFrames: 3, guidanceScale: 0 };
  close(await video(RED, { ...first, guidanceScales: { 2: 4 } }), await video(RED, first));
});

test("a journey from a prompt to itself is the clip of that prompt", async () => {
  const plain = await video(RED, { frames: 3 });
  close(await video(RED, { frames: 3, prompts: { 2: RED } }), plain);
  close(await video(RED, { frames: 3, guidanceScales: { 2: sd.defaults.guidanceScale } }), plain);
});

test("frames at key frames are those of that prompt and guidance, whatever the grouping", async () => {
  const plain = await video(RED, { frames: 3 });
  const travelled = await video(RED, { frames: 3, prompts: { 2: BLUE }, guidanceScales: { 1: 3 } });
  close(travelled.subarray(0, SIZE), plain.subarray(0, SIZE));
  for (const rows of [1, 2, 6]) {
    const options = { frames: 3, prompts: { 2: BLUE }, guidanceScales: { 1: 3 }, rows };
    close(await video(RED, options), travelled);
  }
  assert.notDeepEqual(travelled.subarray(2 * SIZE), plain.subarray(2 * SIZE));
});

test("key frames that do not exist and empty prompts are refused by name", () => {
  const make = (options: TextToVideoOptions) => () => textToVideo(sd, RED, options);
  const refused = (message: RegExp) => (error: Error) =>
    error instanceof InputError && message.test(error.message);
  assert.throws(
    make({ frames: 4, prompts: { 4: BLUE } }),
    refused(/prompts: there is no frame 4, the clip has frames 0 to 3/),
  );
  assert.throws(make({ frames: 4, prompts: { 2: " " } }), refused(/prompts: a prompt is empty/));
  assert.throws(
    make({ guidanceScales: { 3: -1 } }),
    refused(/guidanceScales must be a number of at least 0, got -1/),
  );
});
