/**
 * Twice the frame rate: the frames stay what they are, and those between are between them.
 */

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { noiseWithMiddles, withMiddles } from "../video/frame_rate.ts";
import { noisePerFrame } from "../video/noise.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { readSettings } from "../video/writer.ts";
import { run } from "./cli_run.ts";
import { latentsOf } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
const folder = await mkdtemp(join(tmpdir(), "framezero-double-"));
after(async () => {
  sd.dispose();
  await device.close();
  await rm(folder, { recursive: true });
});

const PROMPT = "a red heart in a green meadow";
const SMALL = { width: 64, height: 64 };

test("every two frames get a middle", () => {
  assert.deepEqual(withMiddles([0, 1, 2]), [0, 0.5, 1, 1.5, 2]);
  assert.deepEqual(withMiddles([0, 8, 9]), [0, 4, 8, 8.5, 9]);
  assert.deepEqual(withMiddles([3]), [3]);
});

test("middles have normal noise, equally like that of both neighbours, draw after draw", () => {
  const ids = [0, 1, 2];
  const shape = [5, 4, 64, 64];
  const size = 4 * 64 * 64;
  const [all, own] = [noiseWithMiddles(7, ids), noisePerFrame(7, ids)];
  assert.deepEqual(all.initial([1, 4, 8, 8]), own.initial([1, 4, 8, 8]));
  for (let draw = 0; draw < 2; draw++) {
    const noise = all.frames([0, 1, 2, 3, 4], shape);
    const want = own.frames([0, 1, 2], [3, 4, 64, 64]);
    const row = (k: number) => noise.subarray(k * size, (k + 1) * size);
    for (const k of ids) assert.deepEqual(row(2 * k), want.subarray(k * size, (k + 1) * size));
    const product = (a: number, b: number) =>
      row(a).reduce((sum, value, i) => sum + value * row(b)[i], 0) / size;
    for (
      const [a, b, expected] of [
        [1, 1, 1],
        [1, 0, Math.SQRT1_2],
        [1, 2, Math.SQRT1_2],
        [3, 2, Math.SQRT1_2],
        [1, 3, 0.5],
        [1, 4, 0],
      ]
    ) {
      const got = product(a, b);
      assert.ok(Math.abs(got - expected) < 0.05, `draw ${draw}, ${a} and ${b}: ${got}`);
    }
  }
});

test("a clip of F frames has 2F − 1, among them those that it had", async () => {
  const options = { ...SMALL, steps: 4, t0: 1, t1: 2, seed: 5, frames: 3, motion: "pan 20 0" };
  const few = await latentsOf(textToVideo(sd, PROMPT, options));
  const clip = textToVideo(sd, PROMPT, { ...options, double: true });
  assert.deepEqual(clip.frameIds, [0, 0.5, 1, 1.5, 2]);
  assert.deepEqual([clip.settings.frameIds, clip.settings.double], [[0, 1, 2], true]);
  const many = await latentsOf(clip);
  const size = few.length / 3;
  const far = (a: number, b: number) => {
    const [x, y] = [a, b].map((k) => many.subarray(k * size, (k + 1) * size));
    return x.reduce((sum, value, i) => sum + (value - y[i]) ** 2, 0);
  };
  for (const k of [0, 1, 2]) {
    assert.deepEqual(
      many.slice(2 * k * size, (2 * k + 1) * size),
      few.slice(k * size, (k + 1) * size),
    );
  }
  assert.ok(far(2, 3) < far(2, 4) && far(3, 4) < far(2, 4), "the middle is nearer to both");
});

test("one frame stays one, and diffusers' noise has no middles", async () => {
  const clip = textToVideo(sd, PROMPT, { ...SMALL, steps: 2, frames: 1, double: true });
  assert.equal((await clip.latents()).shape[0], 1);
  clip.dispose();
  assert.throws(
    () => textToVideo(sd, PROMPT, { double: true, compat: "diffusers" }),
    /double needs frames whose noise is their own.*leave one of them out/,
  );
});

test("the command line doubles frames a second, and makes the clip again from its file", async () => {
  const [first, again, other] = ["a.png", "b.png", "c.png"].map((name) => join(folder, name));
  const made = await run([
    ...[PROMPT, "--frames", "2", "--steps", "2", "--width", "64", "--height", "64"],
    ...["--motion", "shake 20; zoom 1.1", "--fps", "3"],
    ...["--double", "--deflicker", "-o", first, "--json"],
  ]);
  assert.equal(made.code, 0, made.stderr);
  const { frames, settings } = JSON.parse(made.stdout);
  assert.equal(frames, 3);
  const { fps, double, deflicker, motion, subCell } = settings;
  assert.deepEqual(
    { fps, double, deflicker, motion, subCell },
    { fps: 3, double: true, deflicker: true, motion: "shake 20; zoom 1.1", subCell: true },
  );
  assert.equal((await run(["--from", first, "-o", again, "--quiet"])).code, 0);
  assert.deepEqual(await readFile(again), await readFile(first));
  const steady = ["--from", first, "-o", other, "--quiet", "--motion-x", "9"];
  assert.equal((await run(steady)).code, 0);
  const changed = await readSettings(other);
  assert.deepEqual(
    [changed?.motion, changed?.motionFieldStrengthX, changed?.subCell],
    [true, 9, false],
  );
});
