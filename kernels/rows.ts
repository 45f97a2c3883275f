/**
 * The walk that reductions share: a tensor with the reduced axes last, in rows of one output each.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { type Param, u32 } from "../core/kernel.ts";
import {
  formatShape,
  mergeAxes,
  normalizeAxis,
  type Shape,
  sizeOf,
  stridesOf,
} from "../core/shape.ts";
import { listParams, stridedIndex, unravel } from "./wgsl.ts";

/** A tensor walked in rows of `length` elements, a row for each output. */
export interface Rows {
  /** Elements of a row. */
  readonly length: number;
  /** Extents of the walk, its axes merged. */
  readonly extents: readonly number[];
  /** Steps of the walk in the tensor. */
  readonly strides: readonly number[];
}

/**
 * The axes that go, counted from the front; none named means all.
 *
 * @throws {ShapeError} if one does not exist or is named twice.
 */
export function reducedAxes(op: string, shape: Shape, axes: readonly number[] | null): Set<number> {
  if (!axes?.length) return new Set(shape.keys());
  const set = new Set(axes.map((axis) => normalizeAxis(op, axis, shape.length)));
  if (set.size !== axes.length) {
    throw new ShapeError(
      `${op}: every axis may be named once, got [${axes}] for ${formatShape(shape)}`,
    );
  }
  return set;
}

/** The shape that stays, reduced axes left out or of extent 1. */
export function reducedShape(shape: Shape, gone: ReadonlySet<number>, keepdim: boolean): number[] {
  return keepdim
    ? shape.map((extent, axis) => gone.has(axis) ? 1 : extent)
    : shape.filter((_, axis) => !gone.has(axis));
}

/** The walk over a tensor of `shape` with the axes in `gone` last. */
export function rowsOf(shape: Shape, gone: ReadonlySet<number>): Rows {
  const axes = [...shape.keys()];
  const order = [...axes.filter((a) => !gone.has(a)), ...axes.filter((a) => gone.has(a))];
  const strides = stridesOf(shape);
  const merged = mergeAxes(order.map((axis) => shape[axis]), [order.map((axis) => strides[axis])]);
  return {
    length: sizeOf([...gone].map((axis) => shape[axis])),
    extents: merged.extents,
    strides: merged.strides[0],
  };
}

/** The elements of each row, for references. */
export function referenceRows(
  x: Float64Array,
  shape: Shape,
  gone: ReadonlySet<number>,
): number[][] {
  const strides = stridesOf(shape);
  const kept = [...shape.keys()].filter((axis) => !gone.has(axis));
  const outer = stridesOf(kept.map((axis) => shape[axis]));
  const rows: number[][] = [];
  x.forEach((v, i) => {
    const row = kept.reduce(
      (sum, axis, k) => sum + Math.floor(i / strides[axis]) % shape[axis] * outer[k],
      0,
    );
    (rows[row] ??= []).push(v);
  });
  return rows;
}

/** WGSL: the function `element(i)`, the place of the i-th element of the walk. */
export function walkFunction({ extents }: Rows): string {
  const rank = extents.length;
  return `fn element(i: u32) -> u32 {
    ${unravel(rank)}
    return ${stridedIndex(rank, "start", "s")};
  }`;
}

/** The parameters that {@link walkFunction} reads. */
export function walkParams({ extents, strides }: Rows): Record<string, Param> {
  return { start: u32(0), ...listParams("e", extents), ...listParams("s", strides) };
}

/**
 * Whether a workgroup should share a row: if rows are long, and either lie along memory or are too
 * few to feed the lanes one by one.
 */
export function isShared({ length, strides }: Rows, outputs: number): boolean {
  return length >= 64 && (strides.at(-1) === 1 || outputs < 1024);
}
