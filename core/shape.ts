/**
 * Shape arithmetic: sizes, strides, broadcasting, axes. Plain functions on `readonly number[]`.
 *
 * @module
 */

import { ShapeError } from "./errors.ts";

/** Extent of each axis, outermost first; `[]` is a scalar. */
export type Shape = readonly number[];

/** Number of elements: the product of all extents (1 for a scalar). */
export function sizeOf(shape: Shape): number {
  let size = 1;
  for (const extent of shape) size *= extent;
  return size;
}

/** `2×3×4`, or `scalar`: how shapes are written in messages. */
export function formatShape(shape: Shape): string {
  return shape.length ? shape.join("×") : "scalar";
}

/**
 * Checks that every extent is a whole number of at least 1. Tensors without elements have no WebGPU
 * binding, so they are refused at the door.
 *
 * @throws {ShapeError} naming `what` and the shape.
 */
export function checkShape(shape: Shape, what: string): void {
  if (!shape.every((extent) => Number.isSafeInteger(extent) && extent >= 1)) {
    throw new ShapeError(
      `${what}: every extent of a shape must be a whole number of at least 1, got [${shape}]`,
    );
  }
}

/** Row-major strides in elements. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  return strides;
}

/** Whether two shapes are equal. */
export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((extent, axis) => extent === b[axis]);
}

/**
 * The shape that NumPy broadcasting gives: shapes are aligned at the last axis, extents of 1 stretch.
 *
 * @throws {ShapeError} if two extents differ and neither is 1.
 */
export function broadcastShapes(op: string, ...shapes: Shape[]): number[] {
  const rank = Math.max(0, ...shapes.map((shape) => shape.length));
  const out = new Array<number>(rank).fill(1);
  for (const shape of shapes) {
    const lead = rank - shape.length;
    for (let axis = 0; axis < shape.length; axis++) {
      const extent = shape[axis];
      if (extent === 1 || extent === out[lead + axis]) continue;
      if (out[lead + axis] !== 1) {
        throw new ShapeError(
          `${op}: shapes ${shapes.map(formatShape).join(" and ")} do not broadcast: ` +
            `extents must be equal or 1, counted from the last axis`,
        );
      }
      out[lead + axis] = extent;
    }
  }
  return out;
}

/** Strides (in elements) that read a tensor of `shape` as if it had shape `target`; 0 repeats. */
export function broadcastStrides(shape: Shape, target: Shape): number[] {
  const lead = target.length - shape.length;
  const strides = stridesOf(shape);
  return target.map((extent, axis) =>
    axis < lead || (shape[axis - lead] === 1 && extent !== 1) ? 0 : strides[axis - lead]
  );
}

/**
 * The axis counted from the front: −1 is the last one.
 *
 * @throws {ShapeError} if it lies outside `[-rank, rank)`.
 */
export function normalizeAxis(op: string, axis: number, rank: number): number {
  const from0 = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || from0 < 0 || from0 >= rank) {
    throw new ShapeError(
      `${op}: the axis must be a whole number in [${-rank}, ${rank}), got ${axis}`,
    );
  }
  return from0;
}

/**
 * Fills in one extent of −1 so that the number of elements stays `size`.
 *
 * @throws {ShapeError} if the counts cannot agree.
 */
export function inferShape(shape: Shape, size: number): number[] {
  const known = shape.reduce((product, extent) => extent === -1 ? product : product * extent, 1);
  const open = shape.filter((extent) => extent === -1).length;
  const out = shape.map((extent) => extent === -1 ? size / known : extent);
  if (open > 1 || sizeOf(out) !== size || !out.every((n) => Number.isInteger(n) && n >= 1)) {
    throw new ShapeError(
      `reshape: [${shape}] cannot hold the tensor's ${size} elements; ` +
        `extents must multiply to ${size}, one of them may be -1`,
    );
  }
  return out;
}

/**
 * The same walk over elements with as few axes as possible: extents of 1 go, and neighbours that
 * every list of strides steps through evenly become one. Each list belongs to one tensor.
 */
export function mergeAxes(
  extents: Shape,
  lists: readonly (readonly number[])[],
): { extents: number[]; strides: number[][] } {
  const merged: number[] = [];
  const strides: number[][] = lists.map(() => []);
  extents.forEach((extent, axis) => {
    if (extent === 1) return;
    const last = merged.length - 1;
    if (last >= 0 && lists.every((list, k) => strides[k][last] === list[axis] * extent)) {
      merged[last] *= extent;
      lists.forEach((list, k) => strides[k][last] = list[axis]);
    } else {
      merged.push(extent);
      lists.forEach((list, k) => strides[k].push(list[axis]));
    }
  });
  return { extents: merged, strides };
}
