/**
 * Reading by index: checked host indexes, clamped device indexes, tables larger than a binding.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError, ShapeError } from "../core/errors.ts";
import { embedding, gather, indexSelect } from "../kernels/mod.ts";

const device = await openDevice();
after(() => device.close());

test("indexes from the host are checked and leave no memory behind", async () => {
  const table = device.tensor([0, 1, 2, 3, 4, 5], [3, 2]);
  const before = device.memory().live;
  const rows = embedding(table, [2, 0]);
  assert.deepEqual([...rows.shape], [2, 2]);
  assert.deepEqual([...await rows.data()], [4, 5, 0, 1]);
  rows.dispose();
  assert.equal(device.memory().live, before);
  const columns = indexSelect(table, -1, Int32Array.of(1));
  assert.deepEqual([...await columns.data()], [1, 3, 5]);
  for (const wrong of [[3], [-1], [0.5], [0, NaN]]) {
    assert.throws(() => embedding(table, wrong), InputError);
  }
  assert.throws(
    () => indexSelect(table, 1, [0, 2]),
    /indexSelect: indexes must be whole numbers from 0 to 1, .* number 1 is 2/,
  );
});

test("indexes on the device are clamped, whatever integer type they have", async () => {
  const table = device.tensor([10, 11, 12], [3, 1]);
  const rows = embedding(table, device.tensor(Int32Array.of(-7, 1, 99), [3, 1]));
  assert.deepEqual([...rows.shape], [3, 1, 1]);
  assert.deepEqual([...await rows.data()], [10, 11, 12]);
  const same = embedding(table, device.tensor(Uint32Array.of(2, 0)));
  assert.deepEqual([...await same.data()], [12, 10]);
});

test("wrong shapes and types are refused", () => {
  const x = device.tensor([0, 1, 2, 3], [2, 2]);
  const ids = device.tensor(Int32Array.of(0, 1));
  assert.throws(() => embedding(ids, ids), /the table must have shape \[rows, width\]/);
  assert.throws(() => embedding(x, x), /indexes must be i32 or u32, got f32/);
  assert.throws(() => indexSelect(x, 0, ids.reshape([1, 2])), /must have one axis/);
  assert.throws(() => gather(x, 0, ids), ShapeError);
  assert.throws(() => gather(x, 0, device.tensor(new Int32Array(3), [1, 3])), ShapeError);
});

test("a table larger than a binding is read in ranges of rows", async () => {
  const { maxBufferSize, maxStorageBufferBindingSize } = device.gpu.limits;
  const width = 768;
  // A row too many for a binding of 128 MiB, which is what many adapters allow.
  const limit = Math.min(maxStorageBufferBindingSize, 2 ** 27);
  const bytes = Math.min(limit + 4 * width, maxBufferSize);
  const rows = Math.floor(bytes / (4 * width));
  const table = device.empty([rows, width]);
  const used = [0, 1, rows >> 1, rows - 2, rows - 1];
  for (const row of used) {
    const view = device.view(table, [width], 4 * width * row);
    device.write(view, Float32Array.from({ length: width }, (_, i) => row + i / 1024));
    view.dispose();
  }
  const ids = [...used].reverse();
  const got = embedding(table, ids);
  const data = await got.data();
  ids.forEach((row, k) => {
    assert.equal(data[k * width], row);
    assert.equal(data[k * width + width - 1], Math.fround(row + (width - 1) / 1024));
  });
  table.dispose();
  got.dispose();
  device.trim();
});
