/** Likeness of pictures, scene cuts and flicker: by definition, and on clips made for them. */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { InputError } from "../core/errors.ts";
import type { Frame } from "../video/frame.ts";
import { flicker } from "../video/metrics/flicker.ts";
import { sceneCuts } from "../video/metrics/scene_cuts.ts";
import { compareClips, psnr, similarity, ssim } from "../video/metrics/similarity.ts";
import { flat, greyFrame, noise, noiseFrame, texture } from "./metrics_setup.ts";

function near(got: number, want: number, most: number): void {
  assert.ok(Math.abs(got - want) <= most, `${got} is not within ${most} of ${want}`);
}

/** SSIM as its paper writes it: every window by itself, covariances about their means. */
function plainSsim(a: Frame, b: Frame): number {
  const { width, height } = a;
  const luma = ({ data }: Frame, i: number) =>
    0.299 * data[3 * i] + 0.587 * data[3 * i + 1] + 0.114 * data[3 * i + 2];
  const bell = Array.from(
    { length: 121 },
    (_, i) => Math.exp(-((i % 11 - 5) ** 2 + (Math.floor(i / 11) - 5) ** 2) / 4.5),
  );
  const total = bell.reduce((x, y) => x + y);
  let sum = 0;
  for (let y = 0; y + 11 <= height; y++) {
    for (let x = 0; x + 11 <= width; x++) {
      const at = (i: number) => (y + Math.floor(i / 11)) * width + x + i % 11;
      const mean = (value: (i: number) => number) =>
        bell.reduce((all, weight, i) => all + weight / total * value(i), 0);
      const [ma, mb] = [mean((i) => luma(a, at(i))), mean((i) => luma(b, at(i)))];
      const va = mean((i) => (luma(a, at(i)) - ma) ** 2);
      const vb = mean((i) => (luma(b, at(i)) - mb) ** 2);
      const both = mean((i) => (luma(a, at(i)) - ma) * (luma(b, at(i)) - mb));
      const [c1, c2] = [6.5025, 58.5225];
      sum += (2 * ma * mb + c1) * (2 * both + c2) / ((ma ** 2 + mb ** 2 + c1) * (va + vb + c2));
    }
  }
  return sum / ((width - 10) * (height - 10));
}

test("SSIM is that of its definition", () => {
  const [a, b] = [noiseFrame(20, 17, "a"), noiseFrame(20, 17, "b")];
  near(ssim(a, b), plainSsim(a, b), 1e-12);
  const mixed = { ...a, data: a.data.map((value, i) => Math.round((3 * value + b.data[i]) / 4)) };
  near(ssim(a, mixed), plainSsim(a, mixed), 1e-12);
  near(ssim(flat(11, 11, [0, 0, 0]), flat(11, 11, [255, 255, 255])), 6.5025 / 65031.5025, 1e-12);
  assert.equal(ssim(a, a), 1);
});

test("SSIM and PSNR do not care which picture comes first", () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), (one, other) => {
      const [a, b] = [noiseFrame(13, 12, one), noiseFrame(13, 12, other)];
      near(ssim(a, b), ssim(b, a), 1e-12);
      assert.equal(psnr(a, b), psnr(b, a));
      assert.ok(ssim(a, b) <= 1);
    }),
    { numRuns: 20 },
  );
});

test("PSNR is exact", () => {
  const black = flat(11, 12, [0, 0, 0]);
  assert.equal(psnr(black, flat(11, 12, [255, 255, 255])), 0);
  near(psnr(black, flat(11, 12, [0, 0, 1])), 10 * Math.log10(3 * 65025), 1e-12);
  assert.equal(psnr(black, black), Infinity);
});

test("consecutive frames are compared, and PSNR is that of all errors together", async () => {
  const [black, one, three] = [0, 1, 3].map((v) => flat(11, 11, [v, v, v]));
  const { psnr, ssim, psnrs, ssims } = await similarity([black, black, one, three]);
  assert.equal(psnrs[0], Infinity);
  near(psnrs[1], 10 * Math.log10(65025), 1e-12);
  near(psnrs[2], 10 * Math.log10(65025 / 4), 1e-12);
  near(psnr, 10 * Math.log10(3 * 65025 / 5), 1e-12);
  near(ssim, ssims.reduce((a, b) => a + b) / 3, 1e-12);
});

test("two clips are compared frame by frame", async () => {
  const [black, grey] = [flat(11, 11, [0, 0, 0]), flat(11, 11, [5, 5, 5])];
  const { psnrs, psnr } = await compareClips([black, grey], [black, black]);
  assert.equal(psnrs[0], Infinity);
  near(psnrs[1], 10 * Math.log10(65025 / 25), 1e-12);
  near(psnr, 10 * Math.log10(2 * 65025 / 25), 1e-12);
});

test("clips and pictures that cannot be compared are refused", async () => {
  const [small, large] = [flat(11, 11, [0, 0, 0]), flat(12, 11, [0, 0, 0])];
  const refused = (action: () => Promise<unknown>, message: RegExp) =>
    assert.rejects(action, (error: unknown) => {
      assert.ok(error instanceof InputError);
      assert.match(error.message, message);
      return true;
    });
  await refused(() => compareClips([small], [large]), /frame 0 is 11x11 in the first and 12x11/);
  await refused(() => compareClips([small, small], [small]), /the first goes on after 1/);
  await refused(() => compareClips([small], [small, small]), /the second goes on after 1/);
  await refused(() => compareClips([], []), /at least one frame/);
  await refused(() => similarity([small]), /needs at least 2 frames, the clip has 1/);
  await refused(() => similarity([small, large]), /frame 1 is 12x11, the first is 11x11/);
  const narrow = flat(10, 30, [0, 0, 0]);
  await refused(() => similarity([narrow, narrow]), /at least 11x11 pixels, these are 10x30/);
  assert.throws(() => psnr(small, large), InputError);
});

test("scores of frames are those of OpenCV's hue, saturation and value", async () => {
  const frames = Array.from({ length: 16 }, (_, i): Frame => {
    const spread = 40 + 60 * Number(i % 3 === 0);
    const data = Uint8Array.from(noise(`scene${i}`, 324), (v) => (v + 1) * spread + 20 * (i % 5));
    return { width: 12, height: 9, data };
  });
  const { scores } = await sceneCuts(frames);
  const wanted = [0, 69.31481481481481, 46.574074074074076, 73.63580246913581, 70.11728395061729];
  wanted.forEach((score, i) => near(scores[i], score, 1e-9));
});

const RED = flat(12, 9, [200, 30, 30]);
const BLUE = flat(12, 9, [30, 40, 210]);

/** A clip whose frames are red or blue. */
const coloured = (isBlue: (i: number) => boolean, count = 40) =>
  Array.from({ length: count }, (_, i) => isBlue(i) ? BLUE : RED);

const cutsOf = async (frames: Iterable<Frame>) => (await sceneCuts(frames)).cuts;

test("a hard cut is found at the first frame of the new scene", async () => {
  assert.deepEqual(await cutsOf(coloured((i) => i >= 20)), [20]);
  assert.deepEqual(await cutsOf(coloured((i) => i >= 20 && i < 37, 60)), [20, 37]);
});

test("a fade is no cut, nor is motion", async () => {
  // Each of its five steps would be large enough: a score of 17.
  const fade = Array.from({ length: 40 }, (_, i) => {
    const value = 51 * Math.max(0, Math.min(5, i - 20));
    return flat(12, 9, [value, value, value]);
  });
  assert.deepEqual(await cutsOf(fade), []);
  const ground = texture("ground");
  const motion = Array.from(
    { length: 30 },
    (_, t) => greyFrame(48, 32, (x, y) => ground(x - 5 * t, y)),
  );
  assert.deepEqual(await cutsOf(motion), []);
});

test("a flash counts as one cut, and scenes have at least 15 frames", async () => {
  assert.deepEqual(await cutsOf(coloured((i) => i === 25)), [25]);
  assert.deepEqual(await cutsOf(coloured((i) => i >= 10)), []);
  assert.deepEqual(await cutsOf(coloured((i) => i >= 13, 16)), [13]);
  assert.deepEqual(await cutsOf(coloured((i) => i >= 20 && i < 30)), [20]);
  // Nothing can be compared with the two frames that would follow.
  assert.deepEqual(await cutsOf(coloured((i) => i >= 38)), []);
});

test("clips too short for a cut are refused", async () => {
  await assert.rejects(
    () => sceneCuts(coloured((i) => i >= 7, 15)),
    /the number of scene cuts needs at least 16 frames, the clip has 15/,
  );
});

/** A grey clip whose brightness follows a function of the frame and the column. */
const shining = (count: number, value: (t: number, x: number) => number) =>
  Array.from({ length: count }, (_, t) => greyFrame(16, 16, (x) => value(t, x)));

test("flicker is the part of sinusoidal brightness above a quarter of the frame rate", async () => {
  for (const count of [20, 64, 150]) {
    const wave = (f: number) => (t: number) => 128 + 40 * Math.sin(2 * Math.PI * f * t);
    const quick = await flicker(shining(count, wave(0.4)));
    for (const { share, level } of [quick.whole, quick.blocks]) {
      near(share, 1, 0.01);
      near(level, 40 / Math.SQRT2, 1.5);
    }
    const peak = quick.whole.power.indexOf(Math.max(...quick.whole.power));
    near(quick.frequencies[peak], 0.4, 0.02);
    const slow = await flicker(shining(count, wave(0.1)));
    assert.ok(slow.whole.share < 0.01 && slow.whole.level < 2, JSON.stringify(slow.whole));
    near(Math.sqrt(slow.whole.power.reduce((a, b) => a + b)), 40 / Math.SQRT2, 3);
  }
});

test("blocks that flicker against each other leave the whole frame as it is", async () => {
  const clip = shining(32, (t, x) => 128 + (t + (x >> 1)) % 2 * 20);
  const { whole, blocks, lumas } = await flicker(clip);
  near(whole.level, 0, 1e-9);
  near(blocks.level, 10, 0.2);
  near(blocks.share, 1, 0.01);
  lumas.forEach((luma) => near(luma, 138, 1e-9));
});

test("a steady clip does not flicker, and power sums to the variance of noise", async () => {
  const steady = await flicker(shining(9, () => 77));
  assert.deepEqual([steady.whole.share, steady.whole.level, steady.blocks.level], [0, 0, 0]);
  const random = noise("brightness", 1000);
  const { whole } = await flicker(shining(1000, (t) => 128 + 100 * random[t]));
  near(whole.power.reduce((a, b) => a + b), 100 ** 2 / 3, 200);
  near(whole.share, 0.5, 0.05);
  await assert.rejects(
    () => flicker(shining(7, () => 0)),
    /needs at least 8 frames, the clip has 7/,
  );
});
