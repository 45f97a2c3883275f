/**
 * Group normalisation, `out = (x − mean) / √(variance + eps) · weight + bias` with mean and
 * (biased) variance over the channels of a group and all positions, and SiLU after it where
 * wanted: the fused form means `silu(groupNorm(x))`.
 *
 * Groups are contiguous in memory. A group that a workgroup can manage is read and written by one;
 * a longer one is cut into parts, whose means and squared distances a second shader combines
 * exactly (Chan, Golub and LeVeque 1979) before it normalises. Statistics are always f32.
 *
 * Source: Wu and He 2018, "Group Normalization"; `torch.nn.functional.group_norm`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { type Binding, defineKernel, f32, type Kernel, type Launch } from "../core/kernel.ts";
import { type Param, run, scalars, u32, vectors } from "../core/kernel.ts";
import { formatShape, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { variantsOf } from "./variants.ts";
import { elementsPerBinding, floatType, foldGroups, momentsOf, pieceOf } from "./wgsl.ts";

/** Settings of {@link groupNorm}. */
export interface GroupNormOptions {
  /** Added to the variance. Default 1e-5. */
  readonly eps?: number;
  /** What follows the normalisation. Default `"none"`. */
  readonly activation?: "none" | "silu";
}

interface Attributes extends Required<GroupNormOptions> {
  readonly groups: number;
  /** Workgroups as wide as on a GPU, whatever the adapter. For tests. */
  readonly wide?: boolean;
}

function isWide({ device, attributes }: Launch<Attributes>): boolean {
  return attributes.wide ?? variantsOf(device).wideRows;
}

/** Numbers of a group that one workgroup deals with. */
const PART = 16384;

/** Parts of a group at most: each workgroup of the second shader combines them all. */
const MOST_PARTS = 64;

/** A run of groups to normalise, and what both ways of doing so need. */
interface Groups {
  readonly x: Tensor;
  readonly weight: Tensor | null;
  readonly bias: Tensor | null;
  /** The arrays x and out, or the piece of them that is bound. */
  readonly bind: (tensor: Tensor) => Binding;
  /** Numbers of an element of these arrays. */
  readonly width: 1 | 4;
  /** Groups to normalise, of all batch rows. */
  readonly count: number;
  /** Numbers of a channel and of a group, in elements of `width`. */
  readonly inner: number;
  readonly length: number;
  readonly params: Readonly<Record<string, Param>>;
  readonly variant: string;
}

/** The kernel behind {@link groupNorm}. */
export const groupNormKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "group_norm",
  inputs: ["x", "weight", "bias"],
  output([x, weight, bias], { groups }) {
    const channels = x?.shape[1] ?? 0;
    if (!x || x.shape.length < 2 || !Number.isInteger(groups) || groups < 1 || channels % groups) {
      throw new ShapeError(
        `group_norm: x must be [batch, channels, …] with channels a multiple of the groups, got ` +
          `${x ? formatShape(x.shape) : "nothing"} and ${groups} groups`,
      );
    }
    for (const affine of [weight, bias]) {
      if (affine && (affine.shape.length !== 1 || affine.shape[0] !== channels)) {
        throw new ShapeError(
          `group_norm: weight and bias must be [${channels}], one number a channel of ` +
            `${formatShape(x.shape)}, got ${formatShape(affine.shape)}`,
        );
      }
    }
    return { shape: x.shape, dtype: floatType(x) };
  },
  launch(launch) {
    const { inputs, attributes: { groups, eps, activation } } = launch;
    const [x, weight, bias] = inputs as [Tensor, Tensor | null, Tensor | null];
    const [batch, channels] = x.shape;
    const inner = sizeOf(x.shape.slice(2));
    const width = inner % 4 ? 1 : 4;
    const length = channels / groups * inner;
    const segments = batch * groups;
    const most = Math.max(1, Math.floor(elementsPerBinding(x) / length));
    for (let first = 0; first < segments; first += most) {
      const count = Math.min(most, segments - first);
      const { base, range } = pieceOf(x, first * length, (first + count) * length);
      const part: Groups = {
        x,
        weight,
        bias,
        bind: (tensor) => ({ ...(width === 4 ? vectors(tensor) : scalars(tensor)), range }),
        width,
        count,
        inner: inner / width,
        length: length / width,
        variant: `${weight ? "weight" : ""} ${bias ? "bias" : ""} ${activation}`,
        params: {
          first_group: u32(first),
          count: u32(count),
          base: u32(base / width),
          groups: u32(groups),
          group_channels: u32(channels / groups),
          inner: u32(inner / width),
          length: u32(length / width),
          eps: f32(eps),
        },
      };
      if (length <= PART) normalizeWhole(launch, part);
      else normalizeInParts(launch, part, Math.min(MOST_PARTS, Math.ceil(length / PART)));
    }
  },
  flops: (_inputs, output, { activation }) =>
    (activation === "silu" ? 12 : 8) * sizeOf(output.shape),
  reference([x, weight, bias], [shape], { groups, eps, activation }) {
    const [batch, channels] = shape!;
    const inner = sizeOf(shape!.slice(2));
    const length = channels / groups * inner;
    const out = new Float64Array(x!.length);
    for (let group = 0; group < batch * groups; group++) {
      const values = x!.subarray(group * length, (group + 1) * length);
      const mean = values.reduce((sum, v) => sum + v, 0) / length;
      const variance = values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / length;
      values.forEach((v, i) => {
        const at = group * length + i;
        const channel = Math.floor(at / inner) % channels;
        const y = (v - mean) / Math.sqrt(variance + eps) * (weight?.[channel] ?? 1) +
          (bias?.[channel] ?? 0);
        out[at] = activation === "silu" ? y / (1 + Math.exp(-y)) : y;
      });
    }
    return out;
  },
  cases: [false, true].flatMap((wide) => {
    const one = (
      shape: Shape,
      groups: number,
      activation: "none" | "silu",
      affine: "both" | "weight" | "bias" | "none",
    ) => ({
      shapes: [
        shape,
        affine === "both" || affine === "weight" ? [shape[1]] : null,
        affine === "both" || affine === "bias" ? [shape[1]] : null,
      ],
      attributes: { groups, eps: 1e-5, activation, wide },
    });
    return [
      one([1, 1], 1, "none", "none"),
      one([3, 10], 5, "none", "both"),
      one([2, 48, 16, 16], 16, "silu", "both"),
      one([2, 15, 7, 3], 5, "silu", "weight"),
      one([1, 64, 50], 32, "none", "bias"),
      one([1, 6, 2, 3, 4], 6, "none", "both"),
      one([2, 2, 150, 120], 1, "silu", "both"),
      one([1, 4, 131, 127], 2, "none", "none"),
    ];
  }),
});

/** WGSL: `affine(v, channel)`, what follows the normalisation. */
function affine({ weight, bias }: Groups, activation: string): string {
  return `
    fn affine(normal: V, channel: u32) -> V {
      let y = normal${weight ? " * f32(weight[channel])" : ""}${
    bias ? " + f32(bias[channel])" : ""
  };
      return ${activation === "silu" ? "y / (1.0 + exp(-y))" : "y"};
    }`;
}

/** A workgroup reads a group, then writes it. */
function normalizeWhole(launch: Launch<Attributes>, groups: Groups): void {
  const { output, attributes: { activation }, dispatch } = launch;
  const { x, weight, bias, bind, width, count, inner, params, variant } = groups;
  const lanes = isWide(launch) ? 256 : 8;
  // A power of two of lanes walks along a channel, so that short channels keep all lanes busy.
  const columns = Math.min(lanes, 2 ** Math.ceil(Math.log2(inner)));
  dispatch({
    variant: `whole ${lanes} ${variant}`,
    read: {
      x: bind(x),
      ...(weight && { weight: scalars(weight) }),
      ...(bias && { bias: scalars(bias) }),
    },
    write: { out: bind(output) },
    params: { ...params, columns: u32(columns) },
    workgroup: [lanes, 1, 1],
    workgroups: foldGroups(count),
    declarations: () => momentsOf(lanes, width) + affine(groups, activation),
    main: () => `
      let i = wg.y * grid.x + wg.x;
      if (i >= p.count) { return; }
      let group = p.first_group + i;
      let first = group * p.length - p.base;
      let m = moments(lane, first, first + p.length);
      let scale = inverseSqrt(m.y / f32(p.length * ${width}u) + p.eps);
      for (var c = lane / p.columns; c < p.group_channels; c += ${lanes}u / p.columns) {
        let channel = group % p.groups * p.group_channels + c;
        let end = first + (c + 1u) * p.inner;
        for (var at = end - p.inner + lane % p.columns; at < end; at += p.columns) {
          out[at] = out_t(affine((V(x[at]) - m.x) * scale, channel));
        }
      }`,
  });
}

/** Workgroups find the moments of parts of a group; others combine them and write. */
function normalizeInParts(launch: Launch<Attributes>, groups: Groups, parts: number): void {
  const { output, attributes: { activation, groups: groupCount }, dispatch, temporary } = launch;
  const { x, weight, bias, bind, width, count, inner, length, variant } = groups;
  const part = Math.ceil(length / parts);
  const params = { ...groups.params, parts: u32(parts), part: u32(part) };
  const stats = { tensor: temporary([count * parts, 2], "f32"), type: "vec2<f32>" };
  const statLanes = isWide(launch) ? 256 : 8;
  dispatch({
    variant: `moments ${statLanes}`,
    read: { x: bind(x) },
    write: { stats },
    params,
    workgroup: [statLanes, 1, 1],
    workgroups: foldGroups(count * parts),
    declarations: () => momentsOf(statLanes, width),
    main: () => `
      let i = wg.y * grid.x + wg.x;
      if (i >= p.count * p.parts) { return; }
      let start = i % p.parts * p.part;
      let first = (p.first_group + i / p.parts) * p.length - p.base;
      let m = moments(lane, first + start, first + min(start + p.part, p.length));
      if (lane == 0u) { stats[i] = m; }`,
  });
  const lanes = isWide(launch) ? 64 : 8;
  const chunk = PART / 4;
  dispatch({
    variant: `apply ${lanes} ${variant}`,
    read: {
      x: bind(x),
      stats,
      ...(weight && { weight: scalars(weight) }),
      ...(bias && { bias: scalars(bias) }),
    },
    write: { out: bind(output) },
    params,
    workgroup: [lanes, 1, 1],
    workgroups: [Math.ceil(inner / chunk), x.shape[1] / groupCount, count],
    declarations: () => `alias V = ${width === 4 ? "vec4f" : "f32"};` + affine(groups, activation),
    main: () => `
      let group = p.first_group + wg.z;
      let channel = group % p.groups * p.group_channels + wg.y;
      var mean = 0.0;
      var squares = 0.0;
      var seen = 0.0;
      for (var i = 0u; i < p.parts; i++) {
        let m = stats[wg.z * p.parts + i];
        let count = f32(min(p.part, p.length - i * p.part) * ${width}u);
        let share = count / (seen + count);
        let d = m.x - mean;
        mean += d * share;
        squares += m.y + d * d * seen * share;
        seen += count;
      }
      let scale = inverseSqrt(squares / seen + p.eps);
      let row = group * p.length - p.base + wg.y * p.inner;
      let end = row + min((wg.x + 1u) * ${chunk}u, p.inner);
      for (var i = row + wg.x * ${chunk}u + lane; i < end; i += ${lanes}u) {
        out[i] = out_t(affine((V(x[i]) - mean) * scale, channel));
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
  const { eps = 1e-5, activation = "none" } = options;
  return run(groupNormKernel, [x, weight, bias], { groups, eps, activation });
}
