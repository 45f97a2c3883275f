/**
 * Strided copies, `out[Σ tₖ·iₖ] = cast(x[offset + Σ fₖ·iₖ])`: the one kernel behind every operation
 * that only moves elements. `x` is read with strides `f` (0 repeats, negative ones run backwards),
 * as `torch.as_strided` does.
 *
 * Neighbouring lanes write neighbouring addresses. Where extents and strides allow, an invocation
 * moves a 4-vector, or turns a 4×4 block in registers, so that a transpose also reads 4-vectors: a
 * large one, for its shader takes longer to compile than small ones by numbers to run.
 *
 * @module
 */

import { bytesPerElement, type DType } from "../core/dtype.ts";
import { GpuError, ShapeError } from "../core/errors.ts";
import {
  type Binding,
  defineKernel,
  type Dispatch,
  type Kernel,
  run,
  scalars,
  u32,
  vectors,
} from "../core/kernel.ts";
import { checkShape, mergeAxes, type Shape, sizeOf, stridesOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  BINDING_ALIGNMENT,
  elementsPerBinding,
  FLAT_INDEX,
  flatGrid,
  listParams,
  pieceOf,
  stridedIndex,
  unravel,
} from "./wgsl.ts";

/** A walk over the elements of a tensor: where it starts and how far each axis steps. */
export interface Walk {
  /** First element. */
  readonly offset: number;
  /** Elements from one index to the next, for each axis. */
  readonly strides: readonly number[];
}

/** What a copy moves: the elements that two walks over the same extents meet. */
export interface CopyRegion {
  /** Extent of each axis. */
  readonly extents: Shape;
  /** Walk over the source. */
  readonly from: Walk;
  /** Walk over the target; it must not meet an element twice. */
  readonly to: Walk;
}

/** Enqueues the shaders that copy a region, converting between element types. */
export function copyRegion(
  dispatch: (dispatch: Dispatch) => void,
  source: Tensor,
  target: Tensor,
  { extents, from, to }: CopyRegion,
): void {
  const merged = mergeAxes(extents, [from.strides, to.strides]);
  const region = {
    extents: merged.extents,
    from: { offset: from.offset, strides: merged.strides[0] },
    to: { offset: to.offset, strides: merged.strides[1] },
  };
  const most = { from: elementsPerBinding(source), to: elementsPerBinding(target) };
  if (source.size <= most.from) most.from = Infinity;
  if (target.size <= most.to) most.to = Infinity;
  for (const part of split(region, most)) dispatch(copyOf(source, target, part));
}

/** Halves a region until both sides of each part can be bound. */
function split(region: CopyRegion, most: { from: number; to: number }): CopyRegion[] {
  const { extents } = region;
  const side = length(extents, region.from) > most.from
    ? region.from
    : length(extents, region.to) > most.to
    ? region.to
    : null;
  if (!side) return [region];
  const reach = extents.map((extent, k) => Math.abs(side.strides[k]) * (extent - 1));
  const axis = reach.indexOf(Math.max(...reach));
  const extent = extents[axis];
  const half = extent > 8 ? Math.ceil(extent / 8) * 4 : Math.ceil(extent / 2);
  const part = (start: number, count: number): CopyRegion => ({
    extents: extents.with(axis, count),
    from: shift(region.from, axis, start),
    to: shift(region.to, axis, start),
  });
  return [...split(part(0, half), most), ...split(part(half, extent - half), most)];
}

function shift({ offset, strides }: Walk, axis: number, start: number): Walk {
  return { offset: offset + start * strides[axis], strides };
}

/** The elements between which a walk stays, the second exclusive. */
function bounds(extents: Shape, { offset, strides }: Walk): [number, number] {
  let [low, high] = [offset, offset];
  extents.forEach((extent, k) => {
    const reach = strides[k] * (extent - 1);
    if (reach < 0) low += reach;
    else high += reach;
  });
  return [low, high + 1];
}

function length(extents: Shape, walk: Walk): number {
  const [low, end] = bounds(extents, walk);
  return end - low;
}

function copyOf(source: Tensor, target: Tensor, { extents, from, to }: CopyRegion): Dispatch {
  const read = pieceOf(source, ...bounds(extents, from));
  const write = pieceOf(target, ...bounds(extents, to));
  const walks = {
    from: { offset: from.offset - read.base, strides: from.strides },
    to: { offset: to.offset - write.base, strides: to.strides },
  };
  const last = extents.length - 1;
  const ends4 = extents[last] % 4 === 0 && walks.to.strides[last] === 1 && inFours(walks.to, last);
  // The axis along which 4-vectors can be read: the last one, or one to turn into it.
  const row = walks.from.strides[last] === 1
    ? last
    : walks.from.strides.findIndex((stride, axis) => stride === 1 && extents[axis] % 4 === 0);
  const vector = ends4 && row >= 0 && inFours(walks.from, row);
  const form = !vector ? SCALAR : row === last ? VECTOR : sizeOf(extents) < LARGE ? SCALAR : BLOCK;
  const bind = form === SCALAR ? scalars : vectors;
  const units = inUnits(form, extents, walks, row);
  const rank = extents.length;
  const count = sizeOf(units.extents);
  const sources: Binding = { ...bind(source), range: read.range };
  const targets: Binding = { ...bind(target), range: write.range };
  return {
    variant: `${form},${rank}`,
    read: { x: sources },
    write: { out: targets },
    params: {
      count: u32(count),
      fromStart: u32(units.from.offset),
      toStart: u32(units.to.offset),
      fromStep: u32(form === BLOCK ? walks.from.strides[last] / 4 : 0),
      toStep: u32(form === BLOCK ? walks.to.strides[row] / 4 : 0),
      ...listParams("e", units.extents),
      ...listParams("f", units.from.strides),
      ...listParams("t", units.to.strides),
    },
    ...flatGrid(count),
    main: () => `
      ${FLAT_INDEX}
      if (i >= p.count) { return; }
      ${unravel(rank)}
      let f = ${stridedIndex(rank, "fromStart", "f")};
      let t = ${stridedIndex(rank, "toStart", "t")};
      ${form === BLOCK ? BLOCK_BODY : "out[t] = out_t(x[f]);"}`,
  };
}

/** Numbers from which a transpose goes by blocks. */
const LARGE = 2 ** 16;

const SCALAR = "scalar";
const VECTOR = "vector";
const BLOCK = "block";

const BLOCK_BODY = `
      let a = out_t(x[f]);
      let b = out_t(x[f + p.fromStep]);
      let c = out_t(x[f + 2u * p.fromStep]);
      let d = out_t(x[f + 3u * p.fromStep]);
      out[t] = out_t(a.x, b.x, c.x, d.x);
      out[t + p.toStep] = out_t(a.y, b.y, c.y, d.y);
      out[t + 2u * p.toStep] = out_t(a.z, b.z, c.z, d.z);
      out[t + 3u * p.toStep] = out_t(a.w, b.w, c.w, d.w);`;

/** Whether a walk visits whole 4-vectors that lie along `axis`. */
function inFours({ offset, strides }: Walk, axis: number): boolean {
  return offset % 4 === 0 && strides.every((stride, k) => k === axis || stride % 4 === 0);
}

/** A region counted in what an invocation moves: elements, 4-vectors, or 4×4 blocks. */
function inUnits(
  form: string,
  extents: Shape,
  { from, to }: Pick<CopyRegion, "from" | "to">,
  row: number,
): CopyRegion {
  if (form === SCALAR) return { extents, from, to };
  const last = extents.length - 1;
  // An axis of which four indexes are taken at once steps by 4·stride elements = stride vectors.
  const fours = ({ offset, strides }: Walk) => ({
    offset: offset / 4,
    strides: strides.map((stride, k) => k === last || k === row ? stride : stride / 4),
  });
  return {
    extents: extents.map((extent, k) => k === last || k === row ? extent / 4 : extent),
    from: fours(from),
    to: fours(to),
  };
}

/** Settings of a strided copy. */
export interface StridedCopy {
  /** Shape of the output. */
  readonly shape: Shape;
  /** Element type of the output; default: the input's. */
  readonly dtype?: DType;
  /** The output's elements in order, as axes of the walk: their product is its size. */
  readonly extents: Shape;
  /** First element that is read. */
  readonly offset: number;
  /** Elements of the input from one index of `extents` to the next. */
  readonly strides: readonly number[];
}

/** The kernel behind `permute`, `slice`, `flip`, `tile`, `cast` and their relatives. */
export const stridedCopyKernel: Kernel<StridedCopy> = defineKernel({
  name: "strided_copy",
  inputs: ["x"],
  output([x], { shape, dtype, extents, offset, strides }) {
    const [low, end] = bounds(extents, { offset, strides });
    const matches = sizeOf(shape) === sizeOf(extents) && strides.length === extents.length;
    if (!x || !matches || low < 0 || end > sizeOf(x.shape)) {
      throw new ShapeError(
        `strided_copy: extents [${extents}] must hold as many elements as shape [${shape}], have ` +
          `a stride each, and stay inside the input; got strides [${strides}] from element ` +
          `${offset} of [${x?.shape}]`,
      );
    }
    return { shape, dtype: dtype ?? x.dtype };
  },
  launch({ inputs: [x], output, attributes: { extents, offset, strides }, dispatch }) {
    const to = { offset: 0, strides: stridesOf(extents) };
    copyRegion(dispatch, x!, output, { extents, from: { offset, strides }, to });
  },
  flops: () => 0,
  bytes: ([x], { shape, dtype }) =>
    sizeOf(shape) * (bytesPerElement(dtype) + bytesPerElement(x?.dtype ?? dtype)),
  reference([x], _shapes, { dtype, extents, offset, strides }, output) {
    const whole = dtype === "i32" || dtype === "u32";
    const steps = stridesOf(extents);
    return Float64Array.from({ length: sizeOf(output) }, (_, i) => {
      let from = offset;
      steps.forEach((step, k) => from += Math.floor(i / step) % extents[k] * strides[k]);
      return whole ? Math.trunc(x![from]) : x![from];
    });
  },
  cases: [
    { shapes: [[1]], attributes: { shape: [], extents: [], offset: 0, strides: [] } },
    { shapes: [[7, 5]], attributes: moved([5, 7], [1, 5]) }, // odd transpose
    { shapes: [[36, 40]], attributes: moved([40, 36], [1, 40]) },
    { shapes: [[260, 256]], attributes: moved([256, 260], [1, 256]) }, // 4×4 blocks
    { shapes: [[3, 128, 172]], attributes: moved([172, 3, 128], [1, 22016, 172]) },
    { shapes: [[2, 3, 4, 8]], attributes: moved([2, 4, 3, 8], [96, 8, 32, 1]) }, // rows of vectors
    { shapes: [[2, 3, 4, 5]], attributes: moved([5, 4, 3, 2], [1, 5, 20, 60]) },
    { shapes: [[48]], attributes: moved([11], [-4], 44) },
    { shapes: [[3, 8]], attributes: moved([3, 8], [-8, 1], 16) }, // rows backwards
    { shapes: [[6]], attributes: { ...moved([2, 6], [0, 1]), shape: [12] } },
    { shapes: [[2, 64, 16]], attributes: moved([2, 24, 16], [1024, 16, 1], 128) },
    { shapes: [[5, 3]], attributes: { ...moved([15], [1]), dtype: "i32" } },
    { shapes: [[4, 8]], attributes: { ...moved([8, 4], [1, 8]), dtype: "f32" } },
    { shapes: [[8]], dtypes: ["i32"], values: [range(8)], attributes: moved([8], [-1], 7) },
    {
      shapes: [[2, 4]],
      dtypes: ["u32"],
      values: [range(8)],
      attributes: { ...moved([8], [1]), dtype: "f32" },
    },
  ],
});

function moved(shape: Shape, strides: readonly number[], offset = 0): StridedCopy {
  return { shape, extents: shape, offset, strides };
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

/**
 * The tensor that a walk over `x` gives: a view if its elements lie together, in order, and on an
 * aligned byte, else a copy. While a tape listens it is always a copy, for the tape to record.
 *
 * @throws {ShapeError} if the walk leaves the tensor.
 */
export function stridedCopy(x: Tensor, copy: StridedCopy): Tensor {
  checkShape(copy.shape, "strided_copy");
  const { extents, strides: [strides] } = mergeAxes(copy.extents, [copy.strides]);
  const together = extents.length === 0 || (extents.length === 1 && strides[0] === 1);
  const byte = copy.offset * bytesPerElement(x.dtype);
  const viewable = together && byte % BINDING_ALIGNMENT === 0 && !x.device.tape;
  if (!viewable || (copy.dtype ?? x.dtype) !== x.dtype) return run(stridedCopyKernel, [x], copy);
  return x.device.view(x, stridedCopyKernel.output([x], copy).shape, x.offset + byte);
}

/** `x` with another element type: numbers become whole ones toward zero, as in C. */
export function cast(x: Tensor, dtype: DType): Tensor {
  const { shape } = x;
  return stridedCopy(x, { shape, dtype, extents: shape, offset: 0, strides: stridesOf(shape) });
}

/**
 * Overwrites elements of `target` with those of `source`, in order and converted to its type: how
 * changing inputs reach a recorded plan. Views of `target` change too. Not differentiable.
 *
 * @param at First element of `target` that is overwritten; without it, all of them are.
 * @throws {ShapeError} if the elements do not fit.
 * @throws {GpuError} if a tensor was disposed of, or the two live on different devices.
 */
export function assign(target: Tensor, source: Tensor, at?: number): void {
  const { device } = target;
  for (const tensor of [target, source]) tensor.checkAlive("assign");
  if (source.device !== device) {
    throw new GpuError("assign: both tensors must live on the same device");
  }
  const { size } = source;
  const fits = at === undefined
    ? size === target.size
    : Number.isInteger(at) && at >= 0 && at + size <= target.size;
  if (!fits) {
    throw new ShapeError(
      at === undefined
        ? `assign: both tensors must have the same number of elements, got [${target.shape}] and ` +
          `[${source.shape}]`
        : `assign: [${source.shape}] does not fit into [${target.shape}] from element ${at} on`,
    );
  }
  const bytes = () => source.bytes + size * bytesPerElement(target.dtype);
  device.beginOp({ name: "assign", flops: () => 0, bytes });
  const copy = (from: Tensor, to: Tensor, first: number) =>
    copyRegion((dispatch) => device.dispatch("assign", dispatch), from, to, {
      extents: [size],
      from: { offset: 0, strides: [1] },
      to: { offset: first, strides: [1] },
    });
  if (source.storage !== target.storage) return copy(source, target, at ?? 0);
  // WebGPU refuses to read and write one buffer in one dispatch.
  const between = device.empty(source.shape, target.dtype);
  copy(source, between, 0);
  copy(between, target, at ?? 0);
  between.dispose();
}
