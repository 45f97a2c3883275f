/**
 * Operations that only move or repeat elements, each a walk of the strided copy. They return a view
 * of their input, without a copy, where the elements lie together on an aligned byte.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import {
  broadcastShapes,
  broadcastStrides,
  formatShape,
  normalizeAxis,
  sameShape,
  type Shape,
  stridesOf,
} from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { stridedCopy } from "./copy.ts";

/**
 * `x` with its axes in another order: axis `k` of the result is axis `order[k]` of `x`.
 *
 * @throws {ShapeError} if `order` does not name every axis once.
 */
export function permute(x: Tensor, order: readonly number[]): Tensor {
  const rank = x.shape.length;
  const axes = order.map((axis) => normalizeAxis("permute", axis, rank));
  if (axes.length !== rank || new Set(axes).size !== rank) {
    throw new ShapeError(
      `permute: the order must name each of the ${rank} axes of [${x.shape}] once, got [${order}]`,
    );
  }
  const strides = stridesOf(x.shape);
  const shape = axes.map((axis) => x.shape[axis]);
  return stridedCopy(x, {
    shape,
    extents: shape,
    offset: 0,
    strides: axes.map((axis) => strides[axis]),
  });
}

/**
 * `x[start₀:end₀:step₀, …]` on the given axes (default: the first ones; steps default to 1).
 * Negative indexes count from the end, and indexes outside are brought to the ends, as in Python.
 *
 * @throws {ShapeError} if a step is not positive, an axis is named twice, counts differ, or nothing
 * is left.
 */
export function slice(
  x: Tensor,
  starts: readonly number[],
  ends: readonly number[],
  axes?: readonly number[],
  steps?: readonly number[],
): Tensor {
  const rank = x.shape.length;
  const named = (axes ?? starts.map((_, axis) => axis)).map((axis) =>
    normalizeAxis("slice", axis, rank)
  );
  const counts = [ends, named, steps ?? starts].map((list) => list.length);
  if (counts.some((count) => count !== starts.length) || new Set(named).size !== named.length) {
    throw new ShapeError(
      `slice: takes one start, end and step for each axis, and each axis once; got starts ` +
        `[${starts}], ends [${ends}], axes [${named}]${steps ? `, steps [${steps}]` : ""}`,
    );
  }
  const shape = [...x.shape];
  const strides = stridesOf(x.shape);
  let offset = 0;
  named.forEach((axis, k) => {
    const extent = x.shape[axis];
    const step = steps?.[k] ?? 1;
    const place = (index: number) =>
      Math.min(Math.max(index < 0 ? index + extent : index, 0), extent);
    const [start, end] = [place(starts[k]), place(ends[k])];
    if (!(Number.isInteger(step) && step >= 1) || !(start < end)) {
      throw new ShapeError(
        `slice: must leave at least one element, by a positive step; ` +
          `${starts[k]}:${ends[k]}:${step} of axis ${axis} of [${x.shape}] does not`,
      );
    }
    shape[axis] = Math.ceil((end - start) / step);
    offset += start * strides[axis];
    strides[axis] *= step;
  });
  return stridedCopy(x, { shape, extents: shape, offset, strides });
}

/**
 * `length` indexes of one axis, from `start` on (counted from the end if negative).
 *
 * @throws {ShapeError} if they are not all inside.
 */
export function narrow(x: Tensor, axis: number, start: number, length: number): Tensor {
  const along = normalizeAxis("narrow", axis, x.shape.length);
  const extent = x.shape[along];
  const first = start < 0 ? start + extent : start;
  const whole = Number.isInteger(first) && Number.isInteger(length);
  if (!whole || first < 0 || length < 1 || first + length > extent) {
    throw new ShapeError(
      `narrow: ${length} indexes from ${start} on must lie inside axis ${axis} of ` +
        `${formatShape(x.shape)}, which has ${extent}`,
    );
  }
  return slice(x, [first], [first + length], [along]);
}

/** `x` in reverse order along the given axes. */
export function flip(x: Tensor, axes: readonly number[]): Tensor {
  const { shape } = x;
  const strides = stridesOf(shape);
  let offset = 0;
  for (const axis of new Set(axes.map((axis) => normalizeAxis("flip", axis, shape.length)))) {
    offset += (shape[axis] - 1) * strides[axis];
    strides[axis] = -strides[axis];
  }
  return stridedCopy(x, { shape, extents: shape, offset, strides });
}

/** `x` repeated as a whole, `reps[k]` times along axis `k`; shapes are aligned at the last axis. */
export function tile(x: Tensor, reps: readonly number[]): Tensor {
  const rank = Math.max(reps.length, x.shape.length);
  const times = [...new Array<number>(rank - reps.length).fill(1), ...reps];
  const shape = [...new Array<number>(rank - x.shape.length).fill(1), ...x.shape];
  const strides = stridesOf(shape);
  return stridedCopy(x, {
    shape: shape.map((extent, axis) => times[axis] * extent),
    extents: shape.flatMap((extent, axis) => [times[axis], extent]),
    offset: 0,
    strides: strides.flatMap((stride) => [0, stride]),
  });
}

/** `x` with each index of one axis repeated `repeats` times in a row. */
export function repeatInterleave(x: Tensor, repeats: number, axis: number): Tensor {
  const along = normalizeAxis("repeatInterleave", axis, x.shape.length);
  const strides = stridesOf(x.shape);
  return stridedCopy(x, {
    shape: x.shape.with(along, x.shape[along] * repeats),
    extents: x.shape.toSpliced(along + 1, 0, repeats),
    offset: 0,
    strides: strides.toSpliced(along + 1, 0, 0),
  });
}

/**
 * `x` stretched to `shape` by the rules of broadcasting.
 *
 * @throws {ShapeError} if an extent differs from the target's and is not 1.
 */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  if (!sameShape(broadcastShapes("broadcastTo", x.shape, shape), shape)) {
    throw new ShapeError(
      `broadcastTo: ${formatShape(x.shape)} does not stretch to ${formatShape(shape)}: ` +
        `only extents of 1 do, counted from the last axis`,
    );
  }
  const strides = broadcastStrides(x.shape, shape);
  return stridedCopy(x, { shape, extents: shape, offset: 0, strides });
}

/**
 * `x` cut along an axis into pieces of `⌈extent / n⌉` indexes; the last one may be shorter, and
 * there may be fewer than `n`.
 *
 * @throws {ShapeError} if `n` is not a whole number of at least 1.
 */
export function chunk(x: Tensor, n: number, axis: number): Tensor[] {
  if (!(Number.isInteger(n) && n >= 1)) {
    throw new ShapeError(`chunk: the number of pieces must be a whole number above 0, got ${n}`);
  }
  const along = normalizeAxis("chunk", axis, x.shape.length);
  const extent = x.shape[along];
  const length = Math.ceil(extent / n);
  return Array.from(
    { length: Math.ceil(extent / length) },
    (_, k) => narrow(x, along, k * length, Math.min(length, extent - k * length)),
  );
}
