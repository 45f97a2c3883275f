/**
 * Group normalisation, `out = (x − mean) / √(variance + eps) · weight + bias` with mean and
 * (biased) variance over the channels of a group and all positions, and SiLU after it where
 * wanted: the fused form means `silu(groupNorm(x))`.
 *
 * Groups are contiguous in memory. A group that a workgroup can manage is read and written by one;
 * a longer one is cut into parts, whose means and squared distances a second shader combines
 * exactly (Chan, Golub and LeVeque 1979) before a third normalises. Where a workgroup is a vector of
 * a CPU, any group can be managed as long as all cores have some: it stays in the core's cache
 * between the readings. Statistics are always f32.
 *
 * {@link groupMoments} gives the statistics alone, also of a picture that comes in bands: so bands
 * can be normalised one by one as if they were whole.
 *
 * Source: Wu and He 2018, "Group Normalization"; `torch.nn.functional.group_norm`.
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
  run,
  scalars,
  u32,
} from "../core/kernel.ts";
import { formatShape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  checkGroups,
  checkMoments,
  GROUP_CASES,
  type GroupAttributes,
  type Groups,
  pairs,
  PART,
  referenceMoments,
  runsOf,
  someMoments,
  writeMoments,
} from "./group_moments.ts";
import { rowForm } from "./elements.ts";
import { floatType, foldGroups, momentsOf } from "./wgsl.ts";

/** Settings of {@link groupNorm}. */
export interface GroupNormOptions {
  /** Added to the variance. Default 1e-5. */
  readonly eps?: number;
  /** What follows the normalisation. Default `"none"`. */
  readonly activation?: "none" | "silu";
  /** Mean and variance of each group, `[B, groups, 2]`. Default: those of `x`. */
  readonly moments?: Tensor | null;
}

interface Attributes extends GroupAttributes, Required<Omit<GroupNormOptions, "moments">> {}

/** Workgroups that keep the cores busy of an adapter that computes on the CPU. */
const BUSY = 8;

/** The kernel behind {@link groupNorm}. */
export const groupNormKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "group_norm",
  inputs: ["x", "weight", "bias", "moments"],
  output([x, weight, bias, moments], { groups }) {
    const channels = checkGroups("group_norm", x, groups);
    checkMoments("group_norm", moments, x!.shape[0], groups);
    for (const affine of [weight, bias]) {
      if (affine && (affine.shape.length !== 1 || affine.shape[0] !== channels)) {
        throw new ShapeError(
          `group_norm: weight and bias must be [${channels}], one number a channel of ` +
            `${formatShape(x!.shape)}, got ${formatShape(affine.shape)}`,
        );
      }
    }
    return { shape: x!.shape, dtype: floatType(x) };
  },
  launch(launch) {
    const { inputs: [x, , , given], attributes: { groups }, temporary } = launch;
    const runs = runsOf(launch, x!);
    const { count, length, width } = runs[0];
    const busy = rowForm(launch) !== "wide" && count >= BUSY;
    if (!given && (busy || length * width <= PART)) {
      for (const run of runs) normalizeWhole(launch, run);
      return;
    }
    const moments = given ?? temporary([x!.shape[0], groups, 2], "f32");
    for (const run of runs) {
      if (!given) writeMoments(launch, run, moments, null, 0);
      normalizeBy(launch, run, moments);
    }
  },
  flops: (_inputs, output, { activation }) =>
    (activation === "silu" ? 12 : 8) * sizeOf(output.shape),
  reference([x, weight, bias, moments], [shape], { groups, eps, activation }) {
    const [batch, channels] = shape!;
    const inner = sizeOf(shape!.slice(2));
    const length = channels / groups * inner;
    const own = referenceMoments(x!, batch * groups);
    return x!.map((v, at) => {
      const group = Math.floor(at / length);
      const [mean, variance] = moments?.subarray(2 * group) ??
        [own[group].mean, own[group].variance];
      const channel = Math.floor(at / inner) % channels;
      const y = (v - mean) / Math.sqrt(variance + eps) * (weight?.[channel] ?? 1) +
        (bias?.[channel] ?? 0);
      return activation === "silu" ? y / (1 + Math.exp(-y)) : y;
    });
  },
  cases: [false, true].flatMap((wide) => {
    const affines = ["none", "both", "both", "weight", "bias", "both", "both", "none", "both"];
    return GROUP_CASES.flatMap(([shape, groups], i) =>
      [false, true].map((given) => ({
        shapes: [
          shape,
          affines[i] === "both" || affines[i] === "weight" ? [shape[1]] : null,
          affines[i] === "both" || affines[i] === "bias" ? [shape[1]] : null,
          given ? [shape[0], groups, 2] : null,
        ],
        dtypes: [null, null, null, "f32" as const],
        values: [null, null, null, given ? someMoments(shape[0] * groups) : null],
        attributes: {
          groups,
          eps: 1e-5,
          activation: [2, 3, 6].includes(i) ? "silu" as const : "none" as const,
          wide,
        },
      }))
    );
  }),
});

/**
 * The arrays of weight and bias, which may be missing, and what follows the normalisation. They are
 * read once a channel: what a loop reads from storage besides `x` would cost as much as that.
 */
function affineOf({ inputs: [, weight, bias], attributes: { activation } }: Launch<Attributes>): {
  variant: string;
  read: Record<string, Binding>;
  /** WGSL: declares `gain` and `shift` of a `channel`, given `scale`, one over the deviation. */
  begin: string;
  /** WGSL: `affine(distance, gain, shift)` of a distance from the mean. */
  wgsl: string;
} {
  return {
    variant: `${weight ? "weight" : ""} ${bias ? "bias" : ""} ${activation}`,
    read: {
      ...(weight && { weight: scalars(weight) }),
      ...(bias && { bias: scalars(bias) }),
    },
    begin: `
        let gain = scale${weight ? " * f32(weight[channel])" : ""};
        let shift = ${bias ? "f32(bias[channel])" : "0.0"};`,
    wgsl: `
      fn affine(distance: V, gain: f32, shift: f32) -> V {
        let y = distance * gain + shift;
        return ${activation === "silu" ? "y / (1.0 + exp(-y))" : "y"};
      }`,
  };
}

/** A workgroup reads a group, then writes it. */
function normalizeWhole(launch: Launch<Attributes>, groups: Groups): void {
  const { output, attributes: { eps }, dispatch } = launch;
  const { elements, bind, width, count, inner, params } = groups;
  const affine = affineOf(launch);
  const lanes = rowForm(launch) === "wide" ? 256 : 8;
  // A power of two of lanes walks along a channel, so that short channels keep all lanes busy.
  const columns = Math.min(lanes, 2 ** Math.ceil(Math.log2(inner)));
  dispatch({
    variant: `whole ${lanes} ${elements.variant} ${affine.variant}`,
    read: { x: elements.binding, ...affine.read },
    write: { out: bind(output) },
    params: { ...params, eps: f32(eps), columns: u32(columns) },
    workgroup: [lanes, 1, 1],
    workgroups: foldGroups(count),
    declarations: () => elements.declarations + momentsOf(lanes, width) + affine.wgsl,
    main: () => `
      let i = wg.y * grid.x + wg.x;
      if (i >= p.count) { return; }
      let group = p.first_group + i;
      let first = group * p.length - p.base;
      let m = moments(lane, first, first + p.length);
      let scale = inverseSqrt(m.y / f32(p.length * ${width}u) + p.eps);
      for (var c = lane / p.columns; c < p.group_channels; c += ${lanes}u / p.columns) {
        let channel = group % p.groups * p.group_channels + c;
        ${affine.begin}
        let end = first + (c + 1u) * p.inner;
        // Two at once: the second load need not wait for the first store.
        for (var at = end - p.inner + lane % p.columns; at < end; at += 2u * p.columns) {
          let next = at + p.columns;
          let y = affine(load_x(at) - m.x, gain, shift);
          let z = affine(load_x(next) - m.x, gain, shift);
          out[at] = out_t(y);
          if (next < end) { out[next] = out_t(z); }
        }
      }`,
  });
}

/** Normalises by moments that are known. */
function normalizeBy(launch: Launch<Attributes>, groups: Groups, moments: Tensor): void {
  const { output, attributes: { eps, groups: groupCount }, dispatch } = launch;
  const { x, elements, bind, count, inner, params } = groups;
  const affine = affineOf(launch);
  const lanes = rowForm(launch) === "wide" ? 64 : 8;
  const chunk = PART / 4;
  dispatch({
    variant: `apply ${lanes} ${elements.variant} ${affine.variant}`,
    read: { x: elements.binding, moments: pairs(moments), ...affine.read },
    write: { out: bind(output) },
    params: { ...params, eps: f32(eps) },
    workgroup: [lanes, 1, 1],
    workgroups: [Math.ceil(inner / chunk), x.shape[1] / groupCount, count],
    declarations: () => elements.declarations + affine.wgsl,
    main: () => `
      let group = p.first_group + wg.z;
      let channel = group % p.groups * p.group_channels + wg.y;
      let m = moments[group];
      let scale = inverseSqrt(m.y + p.eps);
      ${affine.begin}
      let row = group * p.length - p.base + wg.y * p.inner;
      let end = row + min((wg.x + 1u) * ${chunk}u, p.inner);
      for (var i = row + wg.x * ${chunk}u + lane; i < end; i += ${lanes}u) {
        out[i] = out_t(affine(load_x(i) - m.x, gain, shift));
      }`,
  });
}

/**
 * Normalises groups of channels, then scales and shifts every channel.
 *
 * @param x `[B, C, …]`, of any rank from 2.
 * @param groups Number of groups of neighbouring channels, a divisor of C.
 * @param weight `[C]`, or `null` for ones.
 * @param bias `[C]`, or `null` for zeros.
 * @returns A tensor of the shape and type of x.
 * @throws {ShapeError} if the shapes do not agree.
 */
export function groupNorm(
  x: Tensor,
  groups: number,
  weight: Tensor | null = null,
  bias: Tensor | null = null,
  options: GroupNormOptions = {},
): Tensor {
  const { eps = 1e-5, activation = "none", moments = null } = options;
  return run(groupNormKernel, [x, weight, bias, moments], { groups, eps, activation });
}
