/** Optical flow on known motion, hidden pixels, and the measures that follow from both. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError, ShapeError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import type { Frame } from "../video/frame.ts";
import { opticalFlow, visiblePixels, warpByFlow } from "../video/metrics/optical_flow.ts";
import { warpErrors } from "../video/metrics/warp.ts";
import { flat, greyFrame, level, noiseFrame, texture } from "./metrics_setup.ts";

const device = await openDevice();
after(() => device.close());

const SIDE = 128;
const ground = texture("ground");

type Point = readonly [x: number, y: number];

/** A picture `[1, 1, 128, 128]`. */
function picture(value: (x: number, y: number) => number): Tensor {
  const values = Float32Array.from(
    { length: SIDE * SIDE },
    (_, i) => level(value(i % SIDE, Math.floor(i / SIDE))),
  );
  return device.tensor(values, [1, 1, SIDE, SIDE]);
}

/** Mean end-point error where both ends lie 8 pixels off the border, and everywhere inside. */
async function endPointErrors(
  motion: (x: number, y: number) => Point,
  back: (x: number, y: number) => Point,
): Promise<{ inner: number; all: number }> {
  const from = picture(ground);
  const to = picture((x, y) => ground(...back(x, y)));
  const estimate = opticalFlow(from, to);
  const flow = await estimate.data();
  for (const tensor of [from, to, estimate]) tensor.dispose();
  const errors = { inner: [] as number[], all: [] as number[] };
  for (let i = 0; i < SIDE * SIDE; i++) {
    const [x, y] = [i % SIDE, Math.floor(i / SIDE)];
    const [u, v] = motion(x, y);
    const error = Math.hypot(flow[i] - (u - x), flow[SIDE * SIDE + i] - (v - y));
    const margin = Math.min(x, y, u, v, SIDE - 1 - x, SIDE - 1 - y, SIDE - 1 - u, SIDE - 1 - v);
    if (margin >= 0) errors.all.push(error);
    if (margin >= 8) errors.inner.push(error);
  }
  const mean = (values: number[]) => values.reduce((a, b) => a + b) / values.length;
  return { inner: mean(errors.inner), all: mean(errors.all) };
}

test("nothing moves in two equal pictures", async () => {
  const { all } = await endPointErrors((x, y) => [x, y], (x, y) => [x, y]);
  assert.equal(all, 0);
});

test("translations from a quarter of a pixel to 16 pixels are found", async () => {
  for (const d of [0.25, 0.5, 1, 2, 4, 8, 16]) {
    const { inner, all } = await endPointErrors(
      (x, y) => [x + d, y + d / 2],
      (x, y) => [x - d, y - d / 2],
    );
    assert.ok(inner < 0.05, `${d} pixels: mean end-point error ${inner}`);
    assert.ok(all < 0.04 + 0.03 * d, `${d} pixels: with the border ${all}`);
  }
});

test("zooms and rotations are found", async () => {
  const c = (SIDE - 1) / 2;
  const zoomed = (z: number) => (x: number, y: number): Point => [c + (x - c) * z, c + (y - c) * z];
  for (const [z, most] of [[1.02, 0.04], [1.1, 0.15]]) {
    const { inner } = await endPointErrors(zoomed(z), zoomed(1 / z));
    assert.ok(inner < most, `zoom ${z}: mean end-point error ${inner}`);
  }
  const turned = (degrees: number) => (x: number, y: number): Point => {
    const [cos, sin] = [Math.cos(degrees * Math.PI / 180), Math.sin(degrees * Math.PI / 180)];
    return [c + cos * (x - c) - sin * (y - c), c + sin * (x - c) + cos * (y - c)];
  };
  for (const [degrees, most] of [[2, 0.07], [8, 0.2]]) {
    const { inner } = await endPointErrors(turned(degrees), turned(-degrees));
    assert.ok(inner < most, `${degrees} degrees: mean end-point error ${inner}`);
  }
});

test("pictures in colour move as their luma does, several of them at once", async () => {
  const [a, b] = [noiseFrame(24, 20, "a"), noiseFrame(24, 20, "b")];
  const planes = (frame: Frame) =>
    [0, 1, 2].flatMap((c) => Array.from(frame.data).filter((_, i) => i % 3 === c));
  const lumas = ({ data }: Frame) =>
    Array.from(
      { length: 480 },
      (_, i) => 0.299 * data[3 * i] + 0.587 * data[3 * i + 1] + 0.114 * data[3 * i + 2],
    );
  const colour = await device.scope(() =>
    opticalFlow(
      device.tensor([...planes(a), ...planes(b)], [2, 3, 20, 24]),
      device.tensor([...planes(b), ...planes(a)], [2, 3, 20, 24]),
    )
  ).data();
  const grey = await device.scope(() =>
    opticalFlow(
      device.tensor(lumas(b), [1, 1, 20, 24]),
      device.tensor(lumas(a), [1, 1, 20, 24]),
    )
  ).data();
  grey.forEach((value, i) => assert.ok(Math.abs(value - colour[960 + i]) < 2e-2));
});

test("shapes that are no pairs of pictures are refused", () => {
  const of = (...shape: number[]) => device.empty(shape);
  assert.throws(() => opticalFlow(of(1, 3, 16, 16), of(1, 3, 16, 17)), ShapeError);
  assert.throws(() => opticalFlow(of(1, 2, 16, 16), of(1, 2, 16, 16)), ShapeError);
  assert.throws(() => opticalFlow(of(3, 16, 16), of(3, 16, 16)), ShapeError);
});

test("a picture pulled along a flow of whole pixels is that picture moved", async () => {
  const x = device.tensor(Array.from({ length: 20 }, (_, i) => i), [1, 1, 4, 5]);
  const flow = device.tensor([...Array(20).fill(2), ...Array(20).fill(-1)], [1, 2, 4, 5]);
  const moved = await warpByFlow(x, flow).data();
  moved.forEach((value, i) => {
    const from = Math.max(0, Math.floor(i / 5) - 1) * 5 + Math.min(4, i % 5 + 2);
    assert.ok(Math.abs(value - from) < 1e-4, `pixel ${i}: ${value} instead of ${from}`);
  });
});

test("pixels are seen again if the flow back returns to them, inside the picture", async () => {
  const constant = (x: number, y: number) =>
    device.tensor([...Array(64).fill(x), ...Array(64).fill(y)], [1, 2, 8, 8]);
  const there = constant(3, 0);
  const returning = await visiblePixels(there, constant(-3, 0)).data();
  assert.deepEqual(Array.from(returning.slice(0, 8)), [1, 1, 1, 1, 1, 0, 0, 0]);
  // 0.01 · (9 + 4) + 0.5 = 0.63: a pixel off is too much, half a pixel is not.
  assert.equal((await visiblePixels(there, constant(-2, 0)).data()).includes(1), false);
  assert.equal((await visiblePixels(there, constant(-2.5, 0)).data())[0], 1);
});

test("what a moving square covers is found to be hidden", async () => {
  const square = texture("square");
  const [dx, dy] = [6, 3];
  const on = (x: number, y: number) => x >= 40 && x < 90 && y >= 40 && y < 90;
  const at = (time: number) =>
    picture((x, y) => {
      const [u, v] = [x - time * dx, y - time * dy];
      return on(u, v) ? square(u, v) : ground(x, y);
    });
  const [first, second] = [at(0), at(1)];
  const visible = await device.scope(() =>
    visiblePixels(opticalFlow(first, second), opticalFlow(second, first))
  ).data();
  const counts = { hidden: 0, found: 0, seen: 0, kept: 0 };
  for (let i = 0; i < SIDE * SIDE; i++) {
    const [x, y] = [i % SIDE, Math.floor(i / SIDE)];
    if (!on(x, y) && on(x - dx, y - dy)) {
      counts.hidden++;
      counts.found += 1 - visible[i];
    } else {
      counts.seen++;
      counts.kept += visible[i];
    }
  }
  // Half a window around the square's border is a matter of luck.
  assert.ok(counts.found > 0.55 * counts.hidden, JSON.stringify(counts));
  assert.ok(counts.kept > 0.9 * counts.seen, JSON.stringify(counts));
});

/** A clip of a texture that moves by `d` pixels a frame to the right. */
const moving = (d: number, frames = 3) =>
  Array.from({ length: frames }, (_, t) => greyFrame(64, 48, (x, y) => ground(x - d * t, y)));

test("motion is measured in pixels a frame, and explains a translation", async () => {
  const measured = await warpErrors(moving(2), device);
  const warpError = measured.warpError ?? NaN;
  assert.ok(Math.abs(measured.opticalFlowScore - 2) < 0.1, `OFS ${measured.opticalFlowScore}`);
  const [first, second] = moving(2);
  const unexplained = first.data.reduce((sum, a, i) => sum + (a - second.data[i]) ** 2, 0) /
    first.data.length;
  assert.ok(warpError < 0.02 * unexplained, `W ${warpError} of ${unexplained}`);
  assert.equal(measured.mawe, warpError / (9.5 * measured.opticalFlowScore));
  assert.ok(measured.visible > 0.93 && measured.visible < 1);
  assert.equal(measured.lengths.length, 2);
  assert.equal(measured.errors.length, 2);
});

test("what motion does not explain is the warp error", async () => {
  const frames = moving(2).map((frame, t) => ({
    ...frame,
    data: frame.data.map((value) => t === 1 ? level(value + 10) : value),
  }));
  const [steady, brighter] = [
    await warpErrors(moving(2), device),
    await warpErrors(frames, device),
  ];
  const warpError = brighter.warpError ?? NaN;
  assert.ok(warpError > 50 && warpError < 110, `W ${warpError}`);
  assert.ok((brighter.mawe ?? 0) > 20 * (steady.mawe ?? 0));
});

test("a still clip has no MAWE", async () => {
  const picture = noiseFrame(32, 24, "still");
  const { opticalFlowScore, warpError, mawe, visible } = await warpErrors(
    [picture, picture],
    device,
  );
  assert.ok(opticalFlowScore < 1e-4, `OFS ${opticalFlowScore}`);
  assert.ok((warpError ?? NaN) < 1e-3, `W ${warpError}`);
  assert.deepEqual([mawe, visible], [null, 1]);
});

test("frames are scaled to a square where asked for", async () => {
  const { opticalFlowScore } = await warpErrors(moving(2), device, { side: 96 });
  assert.ok(Math.abs(opticalFlowScore - 3) < 0.2, `OFS ${opticalFlowScore}`);
});

test("too few, too small and unequal frames are refused", async () => {
  const refused = (frames: Frame[], message: RegExp, side?: number) =>
    assert.rejects(async () => await warpErrors(frames, device, { side }), (error: unknown) => {
      assert.ok(error instanceof InputError);
      assert.match(error.message, message);
      return true;
    });
  const [small, large] = [flat(14, 20, [0, 0, 0]), flat(20, 20, [0, 0, 0])];
  await refused([large], /needs at least 2 frames, the clip has 1/);
  await refused([], /at least one frame: got none/);
  await refused([small, small], /at least 15x15 pixels, these are 14x20/);
  await refused([large, small], /must have one size: frame 1 is 14x20, the first is 20x20/);
  await refused([large, large], /side of frames must be a whole number from 15: got 3/, 3);
});
