/**
 * Reading by index: whole slices of an axis (`index_select`, of which an embedding is the case of
 * axis 0), and single elements (`gather`).
 *
 * A shader cannot fail, so indexes in tensors are clamped to the axis; indexes that come from the
 * host are checked. A table larger than a binding may be is read in ranges of rows, one dispatch
 * each.
 *
 * @module
 */

import { bytesPerElement } from "../core/dtype.ts";
import { InputError, ShapeError } from "../core/errors.ts";
import {
  defineKernel,
  type Kernel,
  run,
  scalars,
  type TensorSpec,
  u32,
  vectors,
} from "../core/kernel.ts";
import {
  formatShape,
  mergeAxes,
  normalizeAxis,
  type Shape,
  sizeOf,
  stridesOf,
} from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  elementsPerBinding,
  FLAT_INDEX,
  flatGrid,
  listParams,
  pieceOf,
  stridedIndex,
  unravel,
} from "./wgsl.ts";

/** Indexes as the public operations take them: on the device, or checked and uploaded. */
export type Indexes = Tensor | Int32Array<ArrayBuffer> | readonly number[];

function checkIndexes(op: string, ids: TensorSpec): void {
  if (ids.dtype === "i32" || ids.dtype === "u32") return;
  throw new ShapeError(`${op}: indexes must be i32 or u32, got ${ids.dtype}; use cast`);
}

/** WGSL: an index from `ids`, brought into the axis. */
const CLAMPED = (at: string) => `min(u32(max(i32(ids[${at}]), 0)), p.rows - 1u)`;

/** The kernel behind {@link embedding} and {@link indexSelect}: `ids` take the place of `axis`. */
export const indexSelectKernel: Kernel<{ axis: number }> = defineKernel({
  name: "index_select",
  inputs: ["x", "ids"],
  output([x, ids], { axis }) {
    checkIndexes("index_select", ids!);
    return { shape: x!.shape.toSpliced(axis, 1, ...ids!.shape), dtype: x!.dtype };
  },
  launch({ inputs, output, attributes: { axis }, dispatch }) {
    const [x, ids] = inputs as readonly Tensor[];
    const rows = x.shape[axis];
    const inner = sizeOf(x.shape.slice(axis + 1));
    const four = inner % 4 === 0 ? 4 : 1;
    const bind = four === 4 ? vectors : scalars;
    const count = output.size / four;
    const most = Math.floor(elementsPerBinding(x) / inner);
    // Ranges of rows are whole pieces of memory only where `axis` is the outermost.
    const step = x.size === rows * inner ? Math.max(1, Math.min(rows, most)) : rows;
    for (let first = 0; first < rows; first += step) {
      const taken = Math.min(step, rows - first);
      const { base, range } = step < rows
        ? pieceOf(x, first * inner, (first + taken) * inner)
        : { base: 0 };
      dispatch({
        variant: "",
        read: { x: { ...bind(x), range }, ids: scalars(ids) },
        write: { out: bind(output) },
        params: {
          count: u32(count),
          rows: u32(rows),
          inner: u32(inner / four),
          picked: u32(ids.size),
          first: u32(first),
          taken: u32(taken),
          base: u32(base / four),
        },
        ...flatGrid(count),
        main: () => `
          ${FLAT_INDEX}
          if (i >= p.count) { return; }
          let line = i / p.inner;
          let id = ${CLAMPED("line % p.picked")};
          if (id - p.first >= p.taken) { return; }
          let row = line / p.picked * p.rows + id;
          out[i] = x[row * p.inner + i % p.inner - p.base];`,
      });
    }
  },
  flops: () => 0,
  bytes: ([, ids], { shape, dtype }) =>
    2 * sizeOf(shape) * bytesPerElement(dtype) + 4 * sizeOf(ids!.shape),
  reference([x, ids], [shape], { axis }) {
    const inner = sizeOf(shape!.slice(axis + 1));
    const rows = shape![axis];
    const out: number[] = [];
    for (let outer = 0; outer < sizeOf(shape!.slice(0, axis)); outer++) {
      for (const id of ids!) {
        const row = outer * rows + Math.min(Math.max(id, 0), rows - 1);
        out.push(...x!.subarray(row * inner, (row + 1) * inner));
      }
    }
    return Float64Array.from(out);
  },
  cases: [
    selection([1], [1], [0], 0),
    selection([49, 32], [2, 7], [0, 48, 3, 3, 1, 7, 20, 48, 0, 5, 6, 31, 2, 40], 0),
    selection([6, 5], [2, 4], [5, 0, 1, 1, 2, 3, 4, 5], 0),
    selection([6, 4], [3], [-1, 6, 900], 0), // clamped
    selection([2, 4, 3], [4], [3, 0, 0, 2], 1),
    selection([3, 5, 8], [2], [4, 1], 1),
    selection([2, 9], [5], [8, 0, 3, 3, 1], 1),
  ],
});

function selection(x: Shape, ids: Shape, values: readonly number[], axis: number) {
  return {
    shapes: [x, ids],
    dtypes: [null, "i32"] as const,
    values: [null, values],
    attributes: { axis },
  };
}

/** The kernel behind {@link gather}. */
export const gatherKernel: Kernel<{ axis: number }> = defineKernel({
  name: "gather",
  inputs: ["x", "ids"],
  output([x, ids], { axis }) {
    checkIndexes("gather", ids!);
    const fits = ids!.shape.length === x!.shape.length &&
      ids!.shape.every((extent, k) => k === axis || extent <= x!.shape[k]);
    if (!fits) {
      throw new ShapeError(
        `gather: the indexes must have as many axes as x and, except on axis ${axis}, no larger ` +
          `extents; got ${formatShape(ids!.shape)} for ${formatShape(x!.shape)}`,
      );
    }
    return { shape: ids!.shape, dtype: x!.dtype };
  },
  launch({ inputs, output, attributes: { axis }, dispatch }) {
    const [x, ids] = inputs as readonly Tensor[];
    const steps = stridesOf(x.shape);
    const { extents, strides } = mergeAxes(ids.shape, [
      steps.with(axis, 0),
      stridesOf(ids.shape),
    ]);
    const rank = extents.length;
    const count = output.size;
    dispatch({
      variant: `${rank}`,
      read: { x: scalars(x), ids: scalars(ids) },
      write: { out: scalars(output) },
      params: {
        count: u32(count),
        rows: u32(x.shape[axis]),
        step: u32(steps[axis]),
        start: u32(0),
        ...listParams("e", extents),
        ...listParams("f", strides[0]),
      },
      ...flatGrid(count),
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        ${unravel(rank)}
        let id = ${CLAMPED("i")};
        out[i] = x[${stridedIndex(rank, "start", "f")} + id * p.step];`,
    });
  },
  flops: () => 0,
  reference([x, ids], [shape, picked], { axis }) {
    const steps = stridesOf(shape!);
    const places = stridesOf(picked!);
    return ids!.map((id, i) => {
      let element = 0;
      places.forEach((place, k) => {
        const index = k === axis
          ? Math.min(Math.max(id, 0), shape![k] - 1)
          : Math.floor(i / place) % picked![k];
        element += index * steps[k];
      });
      return x![element];
    });
  },
  cases: [
    selection([1], [1], [0], 0),
    selection([4, 6], [4, 3], [0, 5, 2, 1, 1, 1, 3, 4, 0, 5, -3, 99], 1),
    selection([4, 6], [2, 5], [0, 3, 2, 1, 1, 3, 3, 0, 0, 2], 0),
    selection([2, 3, 4], [2, 2, 4], [0, 1, 2, 2, 1, 0, 2, 1, 2, 2, 2, 0, 0, 1, 0, 2], 1),
  ],
});

/** Runs `body` with the indexes on the device; those from the host are checked and freed again. */
function withIndexes(
  op: string,
  x: Tensor,
  axis: number,
  ids: Indexes,
  body: (ids: Tensor) => Tensor,
): Tensor {
  if ("storage" in ids) return body(ids);
  const extent = x.shape[axis];
  const wrong = ids.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < extent));
  if (wrong >= 0) {
    throw new InputError(
      `${op}: indexes must be whole numbers from 0 to ${extent - 1}, the axis of ` +
        `[${x.shape}] that they select from; number ${wrong} is ${ids[wrong]}`,
    );
  }
  const uploaded = x.device.tensor(ids, [ids.length], "i32");
  try {
    return body(uploaded);
  } finally {
    uploaded.dispose();
  }
}

/**
 * Rows of a table: `weight` `[V, D]` and indexes of any shape give `ids.shape + [D]`. The table may
 * be larger than the adapter binds. Indexes in a tensor are clamped to `[0, V)`.
 *
 * @throws {InputError} if an index given by the host is outside.
 * @throws {ShapeError} if the table does not have two axes, or an index tensor is not of integers.
 */
export function embedding(weight: Tensor, ids: Indexes): Tensor {
  if (weight.shape.length !== 2) {
    throw new ShapeError(
      `embedding: the table must have shape [rows, width], got [${weight.shape}]`,
    );
  }
  return withIndexes(
    "embedding",
    weight,
    0,
    ids,
    (ids) => run(indexSelectKernel, [weight, ids], { axis: 0 }),
  );
}

/**
 * The slices of `x` that `ids` (one axis) names along `axis`. Indexes in a tensor are clamped.
 *
 * @throws {InputError} if an index given by the host is outside.
 * @throws {ShapeError} if an index tensor has more than one axis, or is not of integers.
 */
export function indexSelect(x: Tensor, axis: number, ids: Indexes): Tensor {
  const along = normalizeAxis("indexSelect", axis, x.shape.length);
  return withIndexes("indexSelect", x, along, ids, (ids) => {
    if (ids.shape.length !== 1) {
      throw new ShapeError(`indexSelect: indexes must have one axis, got [${ids.shape}]`);
    }
    return run(indexSelectKernel, [x, ids], { axis: along });
  });
}

/**
 * `out[…, i, …] = x[…, ids[…, i, …], …]` along `axis`; the result has the shape of `ids`. Indexes
 * are clamped.
 *
 * @throws {ShapeError} if `ids` has another number of axes or larger extents on the others.
 */
export function gather(x: Tensor, axis: number, ids: Tensor): Tensor {
  return run(gatherKernel, [x, ids], { axis: normalizeAxis("gather", axis, x.shape.length) });
}
