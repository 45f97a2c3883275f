/**
 * Canny's edges on the device against OpenCV's, which `golden/canny/make.py` stored.
 */

import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { InputError, ShapeError } from "../core/errors.ts";
import { gaussianBlur, hysteresis } from "../kernels/mod.ts";
import { hysteresisKernel } from "../kernels/hysteresis.ts";
import { canny, type CannyOptions } from "../video/conditions/canny.ts";
import type { Frame } from "../video/frame.ts";
import { readPicture } from "../video/picture.ts";

const FOLDER = new URL("golden/canny/", import.meta.url);
const DOCS = new URL("../docs/", import.meta.url);

const device = await openDevice();
after(() => device.close());

const names = (await readdir(fileURLToPath(FOLDER))).filter((name) => /\.edges\.png$/.test(name));

/** The picture that edges belong to. */
function pictureOf(name: string): Promise<Frame> {
  const [base] = name.split(".");
  return readPicture(
    base.startsWith("docs-")
      ? new URL(`${base.slice(5)}.png`, DOCS)
      : new URL(`${base}.png`, FOLDER),
  );
}

/** How they were made, as the script has it. */
function settingsOf(name: string): CannyOptions {
  const sigma = /\.blur([\d.]+)\.edges/.exec(name)?.[1];
  if (sigma) return { lowThreshold: 20, highThreshold: 60, blurSigma: Number(sigma) };
  return name.includes("low30") ? { lowThreshold: 30, highThreshold: 90.5 } : {};
}

function count({ data }: Frame, level: number): number {
  return data.filter((value) => value === level).length / 3;
}

test("there are pictures of all sorts", () => {
  assert.ok(names.length >= 18, `${names.length} edge maps`);
});

for (const name of names) {
  test(`${name}: every pixel as OpenCV has it`, async () => {
    const want = await readPicture(new URL(name, FOLDER));
    const live = device.memory().live;
    const got = await canny(device, await pictureOf(name), settingsOf(name));
    assert.equal(device.memory().live, live, "all is freed");
    assert.deepEqual([got.width, got.height], [want.width, want.height]);
    assert.ok(count(want, 255) > 100, "there are edges");
    const different = got.data.filter((value, i) => value !== want.data[i]).length / 3;
    assert.equal(different, 0, `${different} pixels differ`);
  });
}

test("a weak line is followed around from its strong end, and is none without it", async () => {
  const spiral = await pictureOf("spiral.edges.png");
  const strong = await canny(device, spiral, { lowThreshold: 200 });
  const all = await canny(device, spiral);
  assert.ok(count(strong, 255) < 30 && count(all, 255) > 1500);
  const none = await canny(device, spiral, { highThreshold: 500 });
  assert.equal(count(none, 255), 0);
});

test("a tensor in [0, 1] has the edges of the picture", async () => {
  const frame = await pictureOf("colours.edges.png");
  const { width, height, data } = frame;
  const planar = Array.from(
    { length: data.length },
    (_, i) => data[3 * (i % (width * height)) + Math.floor(i / width / height)] / 255,
  );
  const x = device.tensor(planar, [1, 3, height, width]);
  assert.deepEqual(await canny(device, x), await canny(device, frame));
  await assert.rejects(canny(device, x.reshape([3, 1, height, width])), ShapeError);
  x.dispose();
});

test("edges are what chains of candidates lead to, however they wind, every time", async () => {
  const planes = fc.record({
    width: fc.integer({ min: 1, max: 70 }),
    height: fc.integer({ min: 1, max: 70 }),
    weak: fc.integer({ min: 20, max: 70 }),
    seed: fc.nat(),
  });
  await fc.assert(
    fc.asyncProperty(planes, async ({ width, height, weak, seed }) => {
      let state = seed;
      const kinds = Array.from({ length: width * height }, () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return state % 1009 < 3 ? 2 : (state >>> 10) % 100 < weak ? 1 : 0;
      });
      const shape = [height, width];
      const want = hysteresisKernel.reference([Float64Array.from(kinds)], [shape], {}, shape);
      const x = device.tensor(kinds, shape, "u32");
      for (let turn = 0; turn < 2; turn++) {
        const edges = hysteresis(x);
        assert.deepEqual(await edges.data(), Float32Array.from(want));
        edges.dispose();
      }
      x.dispose();
    }),
    { numRuns: 30, seed: 1 },
  );
});

test("settings that make no sense are refused, and say why", async () => {
  const frame = await pictureOf("strip.edges.png");
  const refused: [CannyOptions, RegExp][] = [
    [{ lowThreshold: 201 }, /0 ≤ low ≤ high: got 201 and 200/],
    [{ lowThreshold: -1 }, /got -1/],
    [{ highThreshold: NaN }, /got 100 and NaN/],
    [{ blurSigma: -0.5 }, /blurSigma .* 0 to 32: got -0.5/],
    [{ blurSigma: 33 }, /got 33/],
  ];
  for (const [options, message] of refused) {
    await assert.rejects(canny(device, frame, options), (error) => {
      assert.ok(error instanceof InputError);
      assert.match(error.message, message);
      return true;
    });
  }
  const short = { ...frame, data: frame.data.subarray(3) };
  await assert.rejects(canny(device, short), /must hold 1440 bytes/);
  const plane = device.tensor([1, 2, 3], [3, 1], "u32");
  assert.throws(() => gaussianBlur(plane, 0), /sigma must be .* above 0.*: got 0/);
  plane.dispose();
});
