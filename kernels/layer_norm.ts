/**
 * Layer normalisation, `out = (x − mean) / √(variance + eps) · weight + bias` with mean and
 * (biased) variance over some neighbouring axes: the last ones in PyTorch's layout, the channel
 * axis in channel-major tokens `[B, C, N]`.
 *
 * A row along memory is shared by a workgroup. Rows across memory go to a lane each, so that
 * neighbouring lanes read neighbouring elements, and on GPUs 16 lanes share a row; there statistics
 * take two passes, of which the second also corrects the mean. They are f32.
 *
 * Source: Ba, Kiros and Hinton 2016, "Layer Normalization"; `torch.nn.functional.layer_norm`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, run, scalars, u32, vectors } from "../core/kernel.ts";
import { formatShape, normalizeAxis, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { elementsOf, type RowAttributes, rowForm } from "./elements.ts";
import { elementsPerBinding, floatType, foldGroups, momentsOf, pieceOf } from "./wgsl.ts";

/** Settings of {@link layerNorm}. */
export interface LayerNormOptions {
  /** First axis to normalise over; −1 is the last. Default −1. */
  readonly axis?: number;
  /** Number of neighbouring axes to normalise over. Default 1. */
  readonly axes?: number;
  /** Added to the variance. Default 1e-5. */
  readonly eps?: number;
}

interface Attributes extends Required<LayerNormOptions>, RowAttributes {}

/** How a tensor is walked: `outer · inner` rows of `length` elements that lie `inner` apart. */
interface Geometry {
  readonly normalized: Shape;
  readonly outer: number;
  readonly length: number;
  readonly inner: number;
}

function geometry(shape: Shape, { axis, axes }: Attributes): Geometry {
  const first = normalizeAxis("layer_norm", axis, shape.length);
  if (!Number.isInteger(axes) || axes < 1 || first + axes > shape.length) {
    throw new ShapeError(
      `layer_norm: ${axes} axes from axis ${axis} do not lie in ${formatShape(shape)}`,
    );
  }
  const normalized = shape.slice(first, first + axes);
  return {
    normalized,
    outer: sizeOf(shape.slice(0, first)),
    length: sizeOf(normalized),
    inner: sizeOf(shape.slice(first + axes)),
  };
}

/** The kernel behind {@link layerNorm}. */
export const layerNormKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "layer_norm",
  inputs: ["x", "weight", "bias"],
  output([x, weight, bias], attributes) {
    if (!x) throw new ShapeError("layer_norm: needs a tensor");
    const { normalized } = geometry(x.shape, attributes);
    for (const affine of [weight, bias]) {
      if (affine && affine.shape.join() !== normalized.join()) {
        throw new ShapeError(
          `layer_norm: weight and bias must have the normalised shape ${formatShape(normalized)} ` +
            `of ${formatShape(x.shape)}, got ${formatShape(affine.shape)}`,
        );
      }
    }
    return { shape: x.shape, dtype: floatType(x) };
  },
  launch(launch) {
    const { inputs, output, attributes, dispatch } = launch;
    const [x, weight, bias] = inputs as [Tensor, Tensor | null, Tensor | null];
    const { outer, length, inner } = geometry(x.shape, attributes);
    const width = (inner === 1 ? length : inner) % 4 ? 1 : 4;
    const wide = rowForm(launch) === "wide";
    const form = inner === 1
      ? alongForm(wide, width, weight !== null, bias !== null)
      : acrossForm(wide, weight !== null, bias !== null);
    const vectorAffine = inner === 1 && width === 4;
    const bind = (tensor: Tensor) => width === 4 ? vectors(tensor) : scalars(tensor);
    const bindAffine = (tensor: Tensor) => vectorAffine ? vectors(tensor) : scalars(tensor);
    const most = Math.max(1, Math.floor(elementsPerBinding(x) / (length * inner)));
    for (let first = 0; first < outer; first += most) {
      const count = Math.min(most, outer - first);
      const { base, range } = pieceOf(x, first * length * inner, (first + count) * length * inner);
      const elements = elementsOf(launch, x, width, range);
      dispatch({
        variant: `${form.variant} ${elements.variant}`,
        read: {
          x: elements.binding,
          ...(weight && { weight: bindAffine(weight) }),
          ...(bias && { bias: bindAffine(bias) }),
        },
        write: { out: { ...bind(output), range } },
        params: {
          first: u32(first),
          count: u32(count),
          base: u32(base / width),
          length: u32(inner === 1 ? length / width : length),
          inner: u32(inner === 1 ? 1 : inner / width),
          eps: f32(attributes.eps),
        },
        workgroup: form.workgroup,
        workgroups: form.workgroups(count, inner / width),
        declarations: () => elements.declarations + form.declarations(),
        main: form.main,
      });
    }
  },
  flops: (_inputs, output) => 8 * sizeOf(output.shape),
  reference([x, weight, bias], [shape], attributes) {
    const { outer, length, inner } = geometry(shape!, attributes);
    const out = new Float64Array(x!.length);
    for (let row = 0; row < outer * inner; row++) {
      const first = Math.floor(row / inner) * length * inner + row % inner;
      const values = Array.from({ length }, (_, c) => x![first + c * inner]);
      const mean = values.reduce((sum, v) => sum + v, 0) / length;
      const variance = values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / length;
      values.forEach((v, c) => {
        out[first + c * inner] = (v - mean) / Math.sqrt(variance + attributes.eps) *
            (weight?.[c] ?? 1) + (bias?.[c] ?? 0);
      });
    }
    return out;
  },
  cases: [false, true].flatMap((wide) => {
    const one = (x: Shape, weight: Shape | null, bias: Shape | null, axis: number, axes = 1) => ({
      shapes: [x, weight, bias],
      attributes: { axis, axes, eps: 1e-5, wide },
    });
    return [
      one([1], null, null, -1),
      one([3, 77], [77], [77], -1),
      one([2, 9, 320], [320], null, -1),
      one([2, 9, 320], null, [320], -1),
      one([2, 3, 5, 4], [5, 4], [5, 4], -2, 2),
      one([2, 48, 64], [48], [48], 1),
      one([2, 33, 77], null, [33], 1),
      one([2, 33, 77], [33], null, 1),
      one([3, 4, 5, 6], [4, 5], [4, 5], 1, 2),
      one([1, 1280, 16], [1280], [1280], 1),
    ];
  }),
});

/** A shader: how it cuts the work, and its text. */
interface Form {
  readonly variant: string;
  readonly workgroup: readonly [number, number, number];
  readonly workgroups: (outer: number, inner: number) => [number, number, number];
  readonly declarations: () => string;
  readonly main: () => string;
}

/** A workgroup for each row along memory. */
function alongForm(wide: boolean, width: 1 | 4, weight: boolean, bias: boolean): Form {
  const lanes = wide ? 64 : 8;
  return {
    variant: `along ${lanes} ${weight} ${bias}`,
    workgroup: [lanes, 1, 1],
    workgroups: foldGroups,
    declarations: () => momentsOf(lanes, width),
    main: () => `
      let row = wg.y * grid.x + wg.x;
      if (row >= p.count) { return; }
      let first = (p.first + row) * p.length - p.base;
      let m = moments(lane, first, first + p.length);
      let scale = inverseSqrt(m.y / f32(p.length * ${width}u) + p.eps);
      for (var i = lane; i < p.length; i += ${lanes}u) {
        let normal = (load_x(first + i) - m.x) * scale;
        out[first + i] = out_t(normal${weight ? " * V(weight[i])" : ""}${
      bias ? " + V(bias[i])" : ""
    });
      }`,
  };
}

/** Neighbouring lanes on neighbouring rows across memory; on GPUs 16 share a row. */
function acrossForm(wide: boolean, weight: boolean, bias: boolean): Form {
  const [across, along] = wide ? [16, 16] : [8, 1];
  const total = along === 1 ? "return share;" : `
    partial[id.y * ${across}u + id.x] = share;
    workgroupBarrier();
    var sum = V();
    for (var i = 0u; i < ${along}u; i++) { sum += partial[i * ${across}u + id.x]; }
    workgroupBarrier();
    return sum;`;
  return {
    variant: `across ${across}x${along} ${weight} ${bias}`,
    workgroup: [across, along, 1],
    workgroups(outer, inner) {
      const [columns, rows] = foldGroups(outer);
      return [Math.ceil(inner / across), columns, rows];
    },
    declarations: () => `
      var<workgroup> partial: array<V, ${across * along}>;
      fn total(id: vec3u, share: V) -> V { ${total} }`,
    main: () => `
      let row = wg.z * grid.y + wg.y;
      if (row >= p.count) { return; }
      let token = wg.x * ${across}u + lid.x;
      let first = (p.first + row) * p.length * p.inner - p.base + min(token, p.inner - 1u);
      let count = f32(p.length);
      var sum = V();
      for (var c = lid.y; c < p.length; c += ${along}u) { sum += load_x(first + c * p.inner); }
      let mean = total(lid, sum) / count;
      var d1 = V();
      var d2 = V();
      for (var c = lid.y; c < p.length; c += ${along}u) {
        let d = load_x(first + c * p.inner) - mean;
        d1 += d;
        d2 += d * d;
      }
      let shift = total(lid, d1) / count;
      let variance = total(lid, d2) / count - shift * shift;
      let scale = inverseSqrt(variance + p.eps);
      if (token >= p.inner) { return; }
      for (var c = lid.y; c < p.length; c += ${along}u) {
        let at = first + c * p.inner;
        let normal = (load_x(at) - mean - shift) * scale;
        out[at] = out_t(normal${weight ? " * f32(weight[c])" : ""}${bias ? " + f32(bias[c])" : ""});
      }`,
  };
}

/**
 * Normalises over one or more neighbouring axes, then scales and shifts.
 *
 * `layerNorm(x, w, b)` is PyTorch's over the last axis; `{ axis: -2, axes: 2 }` its
 * `normalized_shape` of two extents; `{ axis: 1 }` normalises channel-major tokens `[B, C, N]`.
 *
 * @param x Any shape.
 * @param weight Of the extents normalised over, or `null` for ones.
 * @param bias Likewise, or `null` for zeros.
 * @returns A tensor of the shape and type of x.
 * @throws {ShapeError} if there are no such axes, or weight or bias have other extents.
 */
export function layerNorm(
  x: Tensor,
  weight: Tensor | null = null,
  bias: Tensor | null = null,
  options: LayerNormOptions = {},
): Tensor {
  const { axis = -1, axes = 1, eps = 1e-5 } = options;
  return run(layerNormKernel, [x, weight, bias], { axis, axes, eps });
}
