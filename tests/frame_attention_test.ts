/** To which frames a frame attends: the keys it is given, and whole clips in every mode. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { concat, linearCombination, narrow } from "../kernels/mod.ts";
import { disposeCache, type KeyValueCache, lookingBack } from "../models/attention.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import {
  FRAME_ATTENTION,
  type FrameAttentionChoice,
  lookBackOf,
} from "../video/frame_attention.ts";
import { GuidedUNet } from "../video/guided_unet.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { latentsOf } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

const OTHERS = FRAME_ATTENTION.filter((mode) => mode !== "first");

/** Keys whose values say their frame, two guidance rows of one channel and one token. */
function numbered(frames: readonly number[]): Tensor {
  const rows = [0, 100].flatMap((row) => frames.map((frame) => row + frame));
  return device.tensor(rows, [rows.length, 1, 1]);
}

async function keysSeen(mode: FrameAttentionChoice, window: number): Promise<number[][]> {
  const lookBack = lookBackOf(mode, window);
  assert.ok(lookBack);
  const anchor: KeyValueCache = new Map();
  const before: KeyValueCache = new Map();
  const seen: number[][] = [];
  for (const frames of [[0], [1, 2], [3], [4, 5, 6]]) {
    const key = numbered(frames);
    const kv = lookingBack(
      { key, value: key },
      "layer",
      { mode: "first", frames: frames.length, anchor },
      { ...lookBack, before },
    );
    const data = [...await kv.key.data()];
    const each = data.length / 2 / frames.length;
    frames.forEach((_, i) => {
      const one = data.slice(i * each, (i + 1) * each);
      const other = data.slice((frames.length + i) * each, (frames.length + i + 1) * each);
      assert.deepEqual(other, one.map((frame) => frame + 100));
      seen.push(one);
    });
  }
  disposeCache(anchor);
  disposeCache(before);
  return seen;
}

test("each frame is given the keys of the frames that its mode names, across groups", async () => {
  assert.deepEqual(await keysSeen("previous", 2), [[0], [0], [1], [2], [3], [4], [5]]);
  assert.deepEqual(
    await keysSeen("first+previous", 2),
    [[0], [0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5]],
  );
  assert.deepEqual(
    await keysSeen("window", 1),
    [[0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [0, 6]],
  );
  assert.deepEqual(
    await keysSeen("window", 3),
    [[0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4, 5], [0, 4, 5, 6]],
  );
});

test("looking back equals attention over the whole clip, however frames are grouped", async () => {
  const random = new Generator(4);
  const F = 4;
  const x = device.tensor(random.randn([F, 4, 8, 8]), [F, 4, 8, 8]);
  const { hiddenStates } = sd.encodePrompt(["", "a blue star on a beach"]);
  const scale = 5;
  for (const attention of OTHERS) {
    const results: Float32Array[] = [];
    for (const rows of [2, 4, 16]) {
      const guided = new GuidedUNet(sd.unet, hiddenStates, [8, 8], {
        guidanceScale: scale,
        crossFrame: true,
        lookBack: lookBackOf(attention, 2),
        rows,
      });
      const noise = await guided.predict(x, 700, 0, () => Promise.resolve());
      // A second time: what frames left behind must not outlive the step.
      const again = await guided.predict(x, 700, 1, () => Promise.resolve());
      results.push(await noise.data());
      assert.deepEqual(await again.data(), results.at(-1));
      for (const owned of [noise, again, guided]) owned.dispose();
    }
    if (attention !== "window") {
      const whole = device.scope(() => {
        const all = sd.unet.forward(concat([x, x], 0), 700, hiddenStates, {
          frames: { mode: attention, frames: F },
        });
        return linearCombination([1 - scale, scale], [narrow(all, 0, 0, F), narrow(all, 0, F, F)]);
      });
      results.push(await whole.data());
    }
    for (const other of results.slice(1)) {
      other.forEach((value, i) => assert.ok(Math.abs(value - results[0][i]) < 2e-4));
    }
  }
  hiddenStates.dispose();
  x.dispose();
});

test("the first frame is the same in every mode, the others differ", async () => {
  const clip = (attention: FrameAttentionChoice) =>
    latentsOf(textToVideo(sd, "a red heart in a green meadow", {
      ...{ steps: 3, t0: 0, t1: 1, frames: 3, width: 64, height: 64 },
      attention,
    }));
  const first = await clip("first");
  for (const attention of OTHERS) {
    const other = await clip(attention);
    assert.deepEqual(other.subarray(0, 256), first.subarray(0, 256), "the anchor is the same");
    assert.notDeepEqual(other.subarray(256), first.subarray(256));
  }
});

test("bad choices are refused by name", () => {
  const video = (options: object) => textToVideo(sd, "a heart", options);
  assert.throws(() => video({ attention: "next" }), (error: Error) => {
    assert.ok(error instanceof InputError);
    return /attention must be one of first, previous, .*got next/.test(error.message);
  });
  assert.throws(() => video({ attentionWindow: 0 }), /attentionWindow must be a whole number/);
});
