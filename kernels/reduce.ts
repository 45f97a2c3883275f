/**
 * Reductions over axes: sum, mean, variance, standard deviation, extremes, product and L2 norm.
 *
 * The tensor is walked with the reduced axes last: one row for each output. Long rows are folded by
 * a workgroup each, 64 partial results then by a tree, which also keeps rounding small; very long
 * rows by several workgroups. Otherwise a lane takes a row. Variance goes through twice, with the
 * mean of the first pass: the one-pass formula cancels.
 *
 * Source: `torch.sum` and its kin.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, type Launch, run, scalars, u32 } from "../core/kernel.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  isShared,
  reducedAxes,
  reducedShape,
  referenceRows,
  type Rows,
  rowsOf,
  walkFunction,
  walkParams,
} from "./rows.ts";
import {
  FLAT_INDEX,
  flatGrid,
  floatType,
  foldGroups,
  IS_NAN,
  laneTypes,
  treeFold,
} from "./wgsl.ts";

/** Names of the reductions to floating-point numbers. */
export type ReduceName = "sum" | "mean" | "var" | "std" | "max" | "min" | "prod" | "norm";

/** Which axes go, and how. */
export interface ReduceAttributes {
  /** Axes to reduce; none, or `null`, means all. */
  readonly axes: readonly number[] | null;
  /** Whether they stay, with extent 1. */
  readonly keepdim: boolean;
  /** Variance: whether the sum of squares is divided by n − 1 instead of n. */
  readonly unbiased: boolean;
}

/** Settings of a reduction. */
export interface ReduceOptions {
  /** Keep the reduced axes, with extent 1. Default false. */
  keepdim?: boolean;
}

/** Settings of {@link variance} and {@link std}. */
export interface VarianceOptions extends ReduceOptions {
  /** Divide by n − 1 instead of n. Default true. */
  unbiased?: boolean;
}

interface Row {
  readonly init: number;
  /** WGSL: what element `v` contributes; `centre` is the mean of its row. */
  readonly term: string;
  /** WGSL: two partial results in one. */
  readonly combine: string;
  /** WGSL: the result, from the folded row `a` and `p.scale`. */
  readonly finish: string;
  /** `p.scale` for rows of `count` elements. */
  readonly scale?: (count: number, unbiased: boolean) => number;
  /** Whether the terms need the row's mean. */
  readonly centred?: boolean;
  readonly reference: (values: number[], unbiased: boolean) => number;
}

const PLUS = { init: 0, combine: "a + b" };
const total = (values: number[]) => values.reduce((sum, v) => sum + v, 0);
const spread = (values: number[], unbiased: boolean) => {
  const mean = total(values) / values.length;
  return total(values.map((v) => (v - mean) ** 2)) / (values.length - +unbiased);
};
const SPREAD = {
  ...PLUS,
  term: "(v - centre) * (v - centre)",
  scale: (count: number, unbiased: boolean) => 1 / (count - +unbiased),
  centred: true,
};

const TABLE: Readonly<Record<ReduceName, Row>> = {
  sum: { ...PLUS, term: "v", finish: "a", reference: total },
  mean: {
    ...PLUS,
    term: "v",
    finish: "a * p.scale",
    scale: (count) => 1 / count,
    reference: (values) => total(values) / values.length,
  },
  var: { ...SPREAD, finish: "a * p.scale", reference: spread },
  std: {
    ...SPREAD,
    finish: "sqrt(a * p.scale)",
    reference: (values, unbiased) => Math.sqrt(spread(values, unbiased)),
  },
  max: {
    init: -Infinity,
    term: "v",
    combine: "select(a, b, b > a || isNan(b))",
    finish: "a",
    reference: (values) => values.reduce((a, b) => Math.max(a, b)),
  },
  min: {
    init: Infinity,
    term: "v",
    combine: "select(a, b, b < a || isNan(b))",
    finish: "a",
    reference: (values) => values.reduce((a, b) => Math.min(a, b)),
  },
  prod: {
    init: 1,
    term: "v",
    combine: "a * b",
    finish: "a",
    reference: (values) => values.reduce((a, b) => a * b),
  },
  norm: {
    ...PLUS,
    term: "v * v",
    finish: "sqrt(a)",
    reference: (values) => Math.hypot(...values),
  },
};

/** Elements that one workgroup folds before others help it. */
const CHUNK = 4096;

interface Fold {
  readonly name: string;
  readonly row: Pick<Row, "init" | "term" | "combine" | "finish">;
  readonly rows: Rows;
  readonly scale: number;
  readonly centre?: Tensor;
}

/** Folds every row of `x` into an element of `out`. */
function fold(
  launch: Pick<Launch<unknown>, "dispatch" | "temporary">,
  x: Tensor,
  out: Tensor,
  { name, row, rows, scale, centre }: Fold,
): void {
  const outputs = out.size;
  const { length } = rows;
  const shared = isShared(rows, outputs);
  const pieces = shared && outputs < 256 ? Math.min(256, Math.ceil(length / CHUNK)) : 1;
  const target = pieces > 1 ? launch.temporary([outputs, pieces], "f32") : out;
  const finish = pieces > 1 ? "a" : row.finish;
  const count = outputs * pieces;
  const grid = shared
    ? { workgroup: [64, 1, 1] as const, workgroups: foldGroups(count) }
    : flatGrid(count);
  launch.dispatch({
    variant: `${name} ${shared} ${rows.extents.length} ${finish}`,
    read: { x: scalars(x), ...(centre ? { mean: scalars(centre) } : {}) },
    write: { out: scalars(target) },
    params: {
      count: u32(count),
      pieces: u32(pieces),
      length: u32(length),
      chunk: u32(Math.ceil(length / pieces)),
      init: f32(row.init),
      scale: f32(scale),
      ...walkParams(rows),
    },
    ...grid,
    declarations: () => `
      ${laneTypes(1)} ${IS_NAN} ${walkFunction(rows)}
      var<workgroup> partial: array<f32, 64>;
      fn combine(a: f32, b: f32) -> f32 { return ${row.combine}; }
      fn finish(a: f32) -> f32 { return ${finish}; }`,
    main: () => `
      ${shared ? "let i = wg.y * grid.x + wg.x;" : FLAT_INDEX}
      if (i >= p.count) { return; }
      let output = i / p.pieces;
      let first = i % p.pieces * p.chunk;
      let end = min(first + p.chunk, p.length);
      ${centre ? "let centre = mean[output];" : ""}
      var a = p.init;
      for (var r = first${shared ? " + lane" : ""}; r < end; r += ${shared ? 64 : 1}u) {
        let v = f32(x[element(output * p.length + r)]);
        a = combine(a, ${row.term});
      }
      ${
      shared
        ? `partial[lane] = a;
          ${treeFold("partial", (a, b) => `combine(${a}, ${b})`)}
          if (lane == 0u) { out[i] = out_t(finish(partial[0])); }`
        : "out[i] = out_t(finish(a));"
    }`,
  });
  if (pieces > 1) {
    fold(launch, target, out, {
      name: `${name} pieces`,
      row: { ...row, term: "v" },
      rows: { length: pieces, extents: [count], strides: [1] },
      scale,
    });
  }
}

const ALL = { axes: null, keepdim: false, unbiased: true };

function reduceKernel(name: ReduceName): Kernel<ReduceAttributes> {
  const row = TABLE[name];
  return defineKernel<ReduceAttributes>({
    name,
    inputs: ["x"],
    output([x], { axes, keepdim }) {
      if (!x) throw new ShapeError(`${name}: needs a tensor`);
      const shape = reducedShape(x.shape, reducedAxes(name, x.shape, axes), keepdim);
      return { shape, dtype: floatType(x) };
    },
    launch({ inputs, output, attributes: { axes, unbiased }, dispatch, temporary }) {
      const x = inputs[0] as Tensor;
      const rows = rowsOf(x.shape, reducedAxes(name, x.shape, axes));
      const launch = { dispatch, temporary };
      let centre: Tensor | undefined;
      if (row.centred) {
        centre = temporary(output.shape, "f32");
        fold(launch, x, centre, { name: "mean", row: TABLE.mean, rows, scale: 1 / rows.length });
      }
      const scale = row.scale?.(rows.length, unbiased) ?? 1;
      fold(launch, x, output, { name, row, rows, scale, centre });
    },
    flops: ([x]) => (row.centred ? 4 : 1) * sizeOf(x?.shape ?? []),
    reference: ([x], [shape], { axes, unbiased }) =>
      Float64Array.from(
        referenceRows(x!, shape!, reducedAxes(name, shape!, axes)),
        (values) => row.reference(values, unbiased),
      ),
    cases: [
      { shapes: [[]], attributes: { ...ALL, unbiased: false } },
      { shapes: [[3, 5, 7, 4]], attributes: ALL },
      { shapes: [[3, 5, 7, 4]], attributes: { ...ALL, axes: [0] } },
      { shapes: [[3, 5, 7, 4]], attributes: { ...ALL, axes: [-1], keepdim: true } },
      { shapes: [[3, 5, 7, 4]], attributes: { ...ALL, axes: [2, 0], unbiased: false } },
      { shapes: [[2, 3, 2, 3, 2, 3]], attributes: { ...ALL, axes: [1, 3, 5] } },
      { shapes: [[6, 77]], attributes: { ...ALL, axes: [1] } },
      { shapes: [[100, 5]], attributes: { ...ALL, axes: [0] } },
      { shapes: [[1, 4, 32, 32]], attributes: { ...ALL, axes: [2, 3] } },
      // Products of more than a few hundred random numbers leave the range of f32.
      ...(name === "prod" ? [] : [{ shapes: [[2, 9000]], attributes: { ...ALL, axes: [1] } }]),
    ],
  });
}

/** The kernels behind the functions of this file, by name. */
export const reduceKernels: Readonly<Record<ReduceName, Kernel<ReduceAttributes>>> = Object
  .fromEntries(
    Object.keys(TABLE).map((name) => [name, reduceKernel(name as ReduceName)]),
  ) as Record<ReduceName, Kernel<ReduceAttributes>>;

/** Axes to reduce; none, or `null`, means all. */
export type Axes = readonly number[] | null;

function apply(name: ReduceName, x: Tensor, axes: Axes, options: VarianceOptions): Tensor {
  const { keepdim = false, unbiased = true } = options;
  return run(reduceKernels[name], [x], { axes, keepdim, unbiased });
}

/**
 * The sum over `axes`.
 *
 * @throws {ShapeError} if an axis does not exist or is named twice.
 */
export function sum(x: Tensor, axes: Axes = null, options: ReduceOptions = {}): Tensor {
  return apply("sum", x, axes, options);
}

/**
 * The mean over `axes`.
 *
 * @throws {ShapeError} if an axis does not exist or is named twice.
 */
export function mean(x: Tensor, axes: Axes = null, options: ReduceOptions = {}): Tensor {
  return apply("mean", x, axes, options);
}

/**
 * The variance over `axes`, `Σ (x − mean)² / (n − 1)`, or `/ n` if not unbiased.
 * One element without bias gives NaN, as in PyTorch.
 *
 * @throws {ShapeError} if an axis does not exist or is named twice.
 */
export function variance(x: Tensor, axes: Axes = null, options: VarianceOptions = {}): Tensor {
  return apply("var", x, axes, options);
}

/**
 * The standard deviation: the square root of {@link variance}.
 *
 * @throws {ShapeError} if an axis does not exist or is named twice.
 */
export function std(x: Tensor, axes: Axes = null, options: VarianceOptions = {}): Tensor {
  return apply("std", x, axes, options);
}

/**
 * The largest element over `axes`; NaN if there is one.
 *
 * @throws {ShapeError} if an axis does not exist or is named twice.
 */
export function max(x: Tensor, axes: Axes = null, options: ReduceOptions = {}): Tensor {
  return apply("max", x, axes, options);
}

/**
 * The smallest element over `axes`; NaN if there is one.
 *
 * @throws {ShapeError} if an axis does not exist or is named twice.
 */
export function min(x: Tensor, axes: Axes = null, options: ReduceOptions = {}): Tensor {
  return apply("min", x, axes, options);
}

/**
 * The product over `axes`.
 *
 * @throws {ShapeError} if an axis does not exist or is named twice.
 */
export function prod(x: Tensor, axes: Axes = null, options: ReduceOptions = {}): Tensor {
  return apply("prod", x, axes, options);
}

/**
 * The L2 norm over `axes`, `√Σ x²`.
 *
 * @throws {ShapeError} if an axis does not exist or is named twice.
 */
export function norm(x: Tensor, axes: Axes = null, options: ReduceOptions = {}): Tensor {
  return apply("norm", x, axes, options);
}
