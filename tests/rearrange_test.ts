/**
 * Operations that move elements, against plain loops; views; writing into tensors; large tensors.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { ShapeError } from "../core/errors.ts";
import { mergeAxes, type Shape, sizeOf, stridesOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  assign,
  broadcastTo,
  cast,
  chunk,
  concat,
  flip,
  narrow,
  pad,
  permute,
  repeatInterleave,
  slice,
  stack,
  tile,
} from "../kernels/mod.ts";

const device = await openDevice();
after(() => device.close());

const counting = (shape: Shape, from = 0): Tensor =>
  device.tensor(Array.from({ length: sizeOf(shape) }, (_, i) => from + i), shape);

/** Checks that element `at` of the result is number `pick(at)` of a counting tensor. */
async function same(y: Tensor, shape: Shape, pick: (at: readonly number[]) => number) {
  assert.deepEqual([...y.shape], [...shape]);
  const steps = stridesOf(shape);
  const want = Array.from(
    { length: sizeOf(shape) },
    (_, i) => pick(shape.map((extent, k) => Math.floor(i / steps[k]) % extent)),
  );
  assert.deepEqual([...await y.data()], want);
  y.dispose();
}

const element = (shape: Shape, at: readonly number[]) =>
  stridesOf(shape).reduce((sum, step, k) => sum + step * at[k], 0);

const shapes = fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 4 });
const SOME = { numRuns: 25, seed: 7 };

test("merged axes walk the same elements", () => {
  fc.assert(fc.property(shapes, fc.integer({ min: 0, max: 23 }), (shape, turn) => {
    const order = shape.map((_, k) => (k + turn) % shape.length);
    const extents = order.map((axis) => shape[axis]);
    const strides = order.map((axis) => stridesOf(shape)[axis]);
    const walk = (extents: Shape, strides: readonly number[]) =>
      Array.from(
        { length: sizeOf(extents) },
        (_, i) =>
          stridesOf(extents).reduce(
            (sum, step, k) => sum + Math.floor(i / step) % extents[k] * strides[k],
            0,
          ),
      );
    const merged = mergeAxes(extents, [strides, stridesOf(extents)]);
    assert.deepEqual(walk(merged.extents, merged.strides[0]), walk(extents, strides));
    assert.ok(merged.extents.length <= extents.length);
  }));
  assert.deepEqual(mergeAxes([2, 3, 1, 4], [[12, 4, 4, 1]]), { extents: [24], strides: [[1]] });
});

test("permute, flip, slice, tile and repeatInterleave pick the right elements", async () => {
  await fc.assert(
    fc.asyncProperty(shapes, fc.infiniteStream(fc.nat(99)), async (shape, numbers) => {
      const x = counting(shape);
      const below = (n: number) => Number(numbers.next().value) % n;
      const order = shape.map((_, k) => k).sort(() => below(3) - 1);
      const turned = order.map((axis) => shape[axis]);
      await same(permute(x, order), turned, (at) => {
        const back = shape.map((_, axis) => at[order.indexOf(axis)]);
        return element(shape, back);
      });
      const axis = below(shape.length);
      await same(
        flip(x, [axis - shape.length]),
        shape,
        (at) => element(shape, at.map((i, k) => k === axis ? shape[k] - 1 - i : i)),
      );
      const start = below(shape[axis]);
      const step = 1 + below(3);
      const left = Math.ceil((shape[axis] - start) / step);
      await same(
        slice(x, [start - shape[axis]], [999], [axis], [step]),
        shape.map((extent, k) => k === axis ? left : extent),
        (at) => element(shape, at.map((i, k) => k === axis ? start + i * step : i)),
      );
      const reps = shape.map(() => 1 + below(2));
      await same(
        tile(x, reps),
        shape.map((extent, k) => extent * reps[k]),
        (at) => element(shape, at.map((i, k) => i % shape[k])),
      );
      await same(
        repeatInterleave(x, 3, axis),
        shape.map((extent, k) => k === axis ? 3 * extent : extent),
        (at) => element(shape, at.map((i, k) => k === axis ? Math.floor(i / 3) : i)),
      );
      x.dispose();
    }),
    SOME,
  );
});

test("broadcastTo, chunk, stack and pad follow PyTorch", async () => {
  await same(broadcastTo(counting([3, 1]), [2, 3, 4]), [2, 3, 4], ([, row]) => row);
  const parts = chunk(counting([2, 7]), 3, -1);
  assert.deepEqual(parts.map((part) => part.shape[1]), [3, 3, 1]);
  await same(parts[2], [2, 1], ([row]) => 7 * row + 6);
  await same(
    stack([counting([2, 3]), counting([2, 3], 6)], -1),
    [2, 3, 2],
    ([row, column, which]) => 6 * which + 3 * row + column,
  );
  await same(
    pad(counting([2, 3]), [1, 1], { mode: "constant", value: -1 }),
    [2, 5],
    ([row, column]) => column % 4 ? 3 * row + column - 1 : -1,
  );
});

test("a slice that lies together on an aligned byte is a view, any other a copy", async () => {
  const x = counting([4, 64]);
  const before = device.memory().live;
  const row = narrow(x, 0, 2, 1);
  assert.equal(device.memory().live, before);
  assert.equal(row.storage, x.storage);
  const column = narrow(x, 1, 1, 1);
  assert.notEqual(column.storage, x.storage);
  const heard: string[] = [];
  device.tape = ({ kernel }) => heard.push(kernel.name);
  narrow(x, 0, 2, 1).dispose();
  device.tape = null;
  assert.deepEqual(heard, ["strided_copy"]);
  x.dispose();
  await same(row, [1, 64], ([, i]) => 128 + i);
  await same(column, [4, 1], ([i]) => 64 * i + 1);
});

test("assign overwrites elements in place, across dtypes and inside one buffer", async () => {
  const x = counting([4, 64]);
  const first = narrow(x, 0, 0, 1);
  const last = narrow(x, 0, 3, 1);
  assign(first, last);
  assert.deepEqual((await x.data()).slice(0, 3), new Float32Array([192, 193, 194]));
  assign(last, device.tensor(new Int32Array(64).fill(-5)));
  const data = await x.data();
  assert.deepEqual([data[191], data[192], data[255]], [191, -5, -5]);
  assert.throws(() => assign(x, first), ShapeError);
});

test("a recorded plan reads what was assigned to its input", async () => {
  const input = counting([8]);
  const plan = device.record(() => flip(input, [0]));
  assign(input, counting([8], 10));
  plan.run();
  assert.deepEqual([...await plan.result.data()], [17, 16, 15, 14, 13, 12, 11, 10]);
  plan.dispose();
});

test("casts cut toward zero, and round to half precision", async () => {
  const x = device.tensor([1.7, -1.7, 0.1, 300]);
  assert.deepEqual([...await cast(x, "i32").data()], [1, -1, 0, 300]);
  assert.deepEqual([...await cast(cast(x, "i32"), "f32").data()], [1, -1, 0, 300]);
  if (!device.info.f16) return;
  const half = await cast(x, "f16").data();
  assert.ok(Math.abs(half[2] - 0.1) < 5e-5 && half[3] === 300);
});

test("tensors larger than a binding are copied in parts", async () => {
  const small = await openDevice();
  const { limits } = small.gpu;
  Object.defineProperty(small.gpu, "limits", {
    value: new Proxy(limits, {
      get: (_, key) =>
        key === "maxStorageBufferBindingSize" ? 2048 : Reflect.get(limits, key, limits),
    }),
  });
  for (const dtype of small.info.f16 ? ["f32", "f16"] as const : ["f32"] as const) {
    for (const shape of [[45, 37], [48, 40], [2, 1000]]) {
      const [rows, columns] = shape;
      const x = small.tensor(Array.from({ length: rows * columns }, (_, i) => i), shape, dtype);
      const before = small.counts().dispatches;
      await same(permute(x, [1, 0]), [columns, rows], ([i, j]) => j * columns + i);
      assert.ok(small.counts().dispatches - before > 1);
      await same(
        flip(x, [0, 1]),
        shape,
        ([i, j]) => (rows - 1 - i) * columns + columns - 1 - j,
      );
      await same(
        concat([x, x], 1),
        [rows, 2 * columns],
        ([i, j]) => i * columns + j % columns,
      );
      const copy = small.empty(shape, "i32");
      assign(copy, x);
      await same(copy, shape, ([i, j]) => i * columns + j);
      x.dispose();
    }
  }
  small.dispose();
});

test("what cannot be moved is refused with the rule", () => {
  const x = counting([2, 3]);
  const refused: [() => unknown, RegExp][] = [
    [() => permute(x, [0, 0]), /permute: the order must name each of the 2 axes/],
    [() => slice(x, [1], [1]), /slice: must leave at least one element/],
    [() => slice(x, [0], [2], [0], [-1]), /by a positive step/],
    [() => slice(x, [0, 0], [2]), /one start, end and step for each axis/],
    [() => narrow(x, 1, 2, 2), /narrow: 2 indexes from 2 on must lie inside axis 1/],
    [() => broadcastTo(x, [2, 6]), /broadcastTo/],
    [() => broadcastTo(x, [3]), /broadcastTo/],
    [() => tile(x, [0]), /every extent/],
    [() => chunk(x, 0, 0), /chunk: the number of pieces/],
    [() => concat([x, counting([3, 2])], 0), /concat: shapes must be equal except on axis 0/],
    [() => concat([], 0), /at least one tensor/],
    [() => stack([x, counting([2, 1])], 0), /stack: all tensors must have the same shape/],
    [() => pad(x, [1]), /pad: takes two numbers for each padded axis/],
    [() => pad(x, [-2, -1]), /must leave an element/],
    [() => pad(x, [3, 0], { mode: "reflect" }), /reflect must add less than the extent/],
  ];
  for (const [body, message] of refused) {
    assert.throws(body, (error) => error instanceof ShapeError && message.test(error.message));
  }
});
