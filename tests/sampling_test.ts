/**
 * Resizing, sampling and pooling: what the kernel cases cannot say, settings and refusals.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError, ShapeError } from "../core/errors.ts";
import { avgPool2d, gridSample, interpolate, maxPool2d } from "../kernels/mod.ts";

const device = await openDevice();
after(() => device.close());

const row = device.tensor([0, 1, 2, 3, 4], [1, 1, 1, 5]);

test("a scale factor rounds the size down and is itself the ratio of places", async () => {
  const y = interpolate(row, { scaleFactor: [1, 1.5], mode: "bilinear" });
  assert.deepEqual([...y.shape], [1, 1, 1, 7]);
  const want = [0, 0.5, 7 / 6, 11 / 6, 2.5, 19 / 6, 23 / 6];
  (await y.data()).forEach((value, i) => assert.ok(Math.abs(value - want[i]) < 1e-5));
  const nearest = interpolate(row, { scaleFactor: [2, 0.5] });
  assert.deepEqual([...nearest.shape], [1, 1, 2, 2]);
  assert.deepEqual([...await nearest.data()], [0, 2, 0, 2]);
});

test("gridSample defaults to bilinear with zeros around", async () => {
  const corners = device.tensor([-1, 0, 0, 0, 1, 0, 9, 0], [1, 1, 4, 2]);
  assert.deepEqual([...await gridSample(row, corners).data()], [0, 2, 2, 0]);
});

test("pooling steps by the window unless told otherwise", async () => {
  assert.deepEqual([...await avgPool2d(row, [1, 2]).data()], [0.5, 2.5]);
  assert.deepEqual([...await maxPool2d(row, [1, 3], 1, [0, 1]).data()], [1, 2, 3, 4, 4]);
});

test("settings that contradict each other are refused", () => {
  assert.throws(() => interpolate(row, {}), InputError);
  assert.throws(() => interpolate(row, { size: [1, 1], scaleFactor: 2 }), InputError);
  assert.throws(() => interpolate(row, { size: [1, 1], alignCorners: true }), InputError);
  assert.throws(() => interpolate(row, { scaleFactor: 0.5 }), ShapeError);
  assert.throws(() => interpolate(row.reshape([5]), { size: [1, 1] }), ShapeError);
  assert.throws(() => gridSample(row, row), /grid \[N, Ho, Wo, 2\]/);
  assert.throws(() => maxPool2d(row, 2), /a window no larger than the padded picture/);
  assert.throws(() => avgPool2d(row, 1, 1, 1), /at most half a window/);
});
