/**
 * Mean and (biased) variance of groups of channels, the statistics of group normalisation; also of a
 * picture that comes in bands, one after the other.
 *
 * Groups are contiguous in memory. Each is cut into parts, whose means and squared distances a
 * second shader combines exactly. Statistics are always f32.
 *
 * Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
 * sample variances".
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import {
  type Binding,
  defineKernel,
  f32,
  type Kernel,
  type Launch,
  type Param,
  run,
  scalars,
  type TensorSpec,
  u32,
  vectors,
} from "../core/kernel.ts";
import { formatShape, sameShape, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { type Elements, elementsOf, type RowAttributes, rowForm } from "./elements.ts";
import {
  elementsPerBinding,
  FLAT_INDEX,
  flatGrid,
  foldGroups,
  momentsOf,
  pieceOf,
} from "./wgsl.ts";

/** What both kernels of groups are told. */
export interface GroupAttributes extends RowAttributes {
  readonly groups: number;
}

interface MomentAttributes extends GroupAttributes {
  /** Numbers of each group that the moments given before describe. */
  readonly seen: number;
}

/** Numbers of a group that one workgroup deals with. */
export const PART = 16384;

/** Parts of a group at most: each workgroup of the second shader combines them all. */
export const MOST_PARTS = 64;

/** A run of groups that are bound at once. */
export interface Groups {
  readonly x: Tensor;
  /** Its elements, as far as they are bound. */
  readonly elements: Elements;
  /** Another array of its shape, or the same piece of it. */
  readonly bind: (tensor: Tensor) => Binding;
  /** Numbers of an element of these arrays. */
  readonly width: 1 | 4;
  /** Groups in the run. */
  readonly count: number;
  /** Numbers of a channel and of a group, in elements of `width`. */
  readonly inner: number;
  readonly length: number;
  readonly params: Readonly<Record<string, Param>>;
}

/** The groups of all batch rows, in runs that fit into a binding. */
export function runsOf(launch: Launch<GroupAttributes>, x: Tensor): Groups[] {
  const { groups } = launch.attributes;
  const [batch, channels] = x.shape;
  const inner = sizeOf(x.shape.slice(2));
  const width = inner % 4 ? 1 : 4;
  const length = channels / groups * inner;
  const segments = batch * groups;
  const most = Math.max(1, Math.floor(elementsPerBinding(x) / length));
  const runs: Groups[] = [];
  for (let first = 0; first < segments; first += most) {
    const count = Math.min(most, segments - first);
    const { base, range } = pieceOf(x, first * length, (first + count) * length);
    runs.push({
      x,
      elements: elementsOf(launch, x, width, range),
      bind: (tensor) => ({ ...(width === 4 ? vectors(tensor) : scalars(tensor)), range }),
      width,
      count,
      inner: inner / width,
      length: length / width,
      params: {
        first_group: u32(first),
        count: u32(count),
        base: u32(base / width),
        groups: u32(groups),
        group_channels: u32(channels / groups),
        inner: u32(inner / width),
        length: u32(length / width),
      },
    });
  }
  return runs;
}

/** The channels of x. @throws {ShapeError} if the groups do not divide them. */
export function checkGroups(op: string, x: TensorSpec | null | undefined, groups: number): number {
  const channels = x?.shape[1] ?? 0;
  if (x && x.shape.length >= 2 && Number.isInteger(groups) && groups >= 1 && !(channels % groups)) {
    return channels;
  }
  throw new ShapeError(
    `${op}: x must be [batch, channels, …] with channels a multiple of the groups, got ` +
      `${x ? formatShape(x.shape) : "nothing"} and ${groups} groups`,
  );
}

/** @throws {ShapeError} if they are not those of `batch` × `groups` groups. */
export function checkMoments(
  op: string,
  moments: TensorSpec | null | undefined,
  batch: number,
  groups: number,
): void {
  if (!moments || sameShape(moments.shape, [batch, groups, 2])) return;
  throw new ShapeError(
    `${op}: moments must be [${batch}, ${groups}, 2], mean and variance of each group, ` +
      `got ${formatShape(moments.shape)}`,
  );
}

/** Mean and biased variance of the numbers of each group, for references. */
export function referenceMoments(
  x: Float64Array,
  segments: number,
): { mean: number; variance: number }[] {
  const length = x.length / segments;
  return Array.from({ length: segments }, (_, group) => {
    const values = x.subarray(group * length, (group + 1) * length);
    const mean = values.reduce((sum, v) => sum + v, 0) / length;
    return { mean, variance: values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / length };
  });
}

/** Means and variances that no tensor of a test has. */
export function someMoments(segments: number): number[] {
  return Array.from({ length: segments }, (_, i) => [0.1 * (i % 7) - 0.3, 0.5 + 0.2 * (i % 5)])
    .flat();
}

/** Shapes and groups that the tests run. */
export const GROUP_CASES: readonly (readonly [Shape, number])[] = [
  [[1, 1], 1],
  [[3, 10], 5],
  [[2, 48, 16, 16], 16],
  [[2, 15, 7, 3], 5],
  [[1, 64, 50], 32],
  [[1, 6, 2, 3, 4], 6],
  [[2, 2, 150, 120], 1],
  [[1, 4, 131, 127], 2],
  [[16, 1, 131, 132], 1],
];

/** The kernel behind {@link groupMoments}. */
export const groupMomentsKernel: Kernel<MomentAttributes> = defineKernel<MomentAttributes>({
  name: "group_moments",
  inputs: ["x", "before"],
  output([x, before], { groups }) {
    checkGroups("group_moments", x, groups);
    const [batch] = x!.shape;
    checkMoments("group_moments", before, batch, groups);
    return { shape: [batch, groups, 2], dtype: "f32" };
  },
  launch(launch) {
    const { inputs: [x, before], attributes: { seen }, output } = launch;
    for (const run of runsOf(launch, x!)) writeMoments(launch, run, output, before, seen);
  },
  flops: ([x]) => 4 * sizeOf(x!.shape),
  reference([x, before], [shape], { groups, seen }) {
    const segments = shape![0] * groups;
    const here = x!.length / segments;
    const all = seen + here;
    return Float64Array.from(
      referenceMoments(x!, segments).flatMap(({ mean, variance }, group) => {
        const [first, spread] = before?.subarray(2 * group) ?? [0, 0];
        const whole = (seen * first + here * mean) / all;
        const squares = seen * (spread + first ** 2) + here * (variance + mean ** 2);
        return [whole, squares / all - whole ** 2];
      }),
    );
  },
  cases: [false, true].flatMap((wide) =>
    GROUP_CASES.flatMap(([shape, groups]) =>
      [0, 100].map((seen) => ({
        shapes: [shape, seen ? [shape[0], groups, 2] : null],
        dtypes: [null, "f32" as const],
        values: [null, seen ? someMoments(shape[0] * groups) : null],
        attributes: { groups, seen, wide },
      }))
    )
  ),
});

/** Binds a tensor as an array of pairs. */
export const pairs = (tensor: Tensor): Binding => ({ tensor, type: "vec2<f32>" });

/** Moments of parts of each group, then of the groups, together with `seen` numbers `before`. */
export function writeMoments(
  launch: Launch<GroupAttributes>,
  { elements, width, count, length, params }: Groups,
  out: Tensor,
  before: Tensor | null,
  seen: number,
): void {
  const { dispatch, temporary } = launch;
  const parts = Math.min(MOST_PARTS, Math.ceil(length * width / PART));
  const part = Math.ceil(length / parts);
  const stats = pairs(temporary([count * parts, 2], "f32"));
  const lanes = rowForm(launch) === "wide" ? 256 : 8;
  dispatch({
    variant: `moments ${lanes} ${elements.variant}`,
    read: { x: elements.binding },
    write: { stats },
    params: { ...params, parts: u32(parts), part: u32(part) },
    workgroup: [lanes, 1, 1],
    workgroups: foldGroups(count * parts),
    declarations: () => elements.declarations + momentsOf(lanes, width),
    main: () => `
      let i = wg.y * grid.x + wg.x;
      if (i >= p.count * p.parts) { return; }
      let start = i % p.parts * p.part;
      let first = (p.first_group + i / p.parts) * p.length - p.base;
      let m = moments(lane, first + start, first + min(start + p.part, p.length));
      if (lane == 0u) { stats[i] = m; }`,
  });
  dispatch({
    variant: `combine ${before ? "before" : ""}`,
    read: { stats, ...(before && { before: pairs(before) }) },
    write: { out: pairs(out) },
    params: {
      count: u32(count),
      first_group: params.first_group,
      parts: u32(parts),
      part: u32(part * width),
      length: u32(length * width),
      seen: f32(seen),
    },
    ...flatGrid(count),
    main: () => `
      ${FLAT_INDEX}
      if (i >= p.count) { return; }
      let group = p.first_group + i;
      var seen = p.seen;
      var mean = ${before ? "before[group].x" : "0.0"};
      var squares = ${before ? "before[group].y * seen" : "0.0"};
      for (var k = 0u; k < p.parts; k++) {
        let m = stats[i * p.parts + k];
        let count = f32(min(p.part, p.length - k * p.part));
        let share = count / (seen + count);
        let d = m.x - mean;
        mean += d * share;
        squares += m.y + d * d * seen * share;
        seen += count;
      }
      out[group] = vec2f(mean, squares / seen);`,
  });
}

/**
 * Mean and biased variance of groups of channels, for {@link GroupNormOptions.moments}.
 *
 * @param x `[B, C, …]`: a whole picture, or one band of it.
 * @param groups Number of groups of neighbouring channels, a divisor of C.
 * @param before What this function gave for the bands before, and their numbers in each group.
 * @returns `[B, groups, 2]` in f32, of all bands so far.
 * @throws {ShapeError} if the shapes do not agree.
 */
export function groupMoments(
  x: Tensor,
  groups: number,
  before: { moments: Tensor; seen: number } | null = null,
): Tensor {
  return run(groupMomentsKernel, [x, before?.moments ?? null], { groups, seen: before?.seen ?? 0 });
}
