/**
 * What a convolution is told, and the shapes that follow from it.
 *
 * @module
 */

import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { formatShape, sameShape, type Shape } from "../core/shape.ts";
import type { Activation, GemmForm } from "./gemm.ts";
import type { Window } from "./im2col.ts";
import { PANEL, panelShape } from "./panels.ts";

/** Settings of a convolution. */
export interface ConvAttributes extends Window {
  readonly groups: number;
  readonly activation: Activation;
  /** Outputs of a weight in panels. */
  readonly outputs?: number;
  /** Forces a form of the product, for tests. */
  readonly form?: GemmForm;
}

/** Extents of input and output; O is the number of outputs. */
export interface ConvGeometry {
  readonly B: number;
  readonly C: number;
  readonly H: number;
  readonly W: number;
  readonly O: number;
  readonly outH: number;
  readonly outW: number;
}

/**
 * The shape rule of a convolution.
 *
 * @param type Element type of the weight: panels of 8 bits have another shape.
 * @throws {ShapeError} if image, weight and settings do not fit together.
 */
export function geometry(
  x: Shape,
  weight: Shape,
  type: DType,
  attributes: ConvAttributes,
): ConvGeometry {
  const { kernel: [kh, kw], stride, dilation, padding, groups } = attributes;
  if (x.length !== 4) {
    throw new ShapeError(`conv2d: x must have axes [B, C, H, W], got ${formatShape(x)}`);
  }
  const [B, C, H, W] = x;
  const packed = weight.length === 3 || type === "u32";
  const O = packed ? attributes.outputs ?? weight[0] * PANEL : weight[0];
  const panels = panelShape(O, C * kh * kw, type);
  const wanted = packed ? panels : [O, C / groups, kh, kw];
  if (!sameShape(weight, wanted) || O % groups !== 0 || (packed && groups !== 1)) {
    throw new ShapeError(
      `conv2d: for x of ${formatShape(x)} with ${groups} group(s) the weight must be ` +
        `[O, ${C / groups}, kh, kw], or ${formatShape(panels)} in panels of ` +
        `${O} outputs without groups; got ${formatShape(weight)}`,
    );
  }
  const extent = (size: number, k: number, s: number, d: number, pad: number) =>
    Math.floor((size + pad - d * (k - 1) - 1) / s) + 1;
  const outH = extent(H, kh, stride[0], dilation[0], padding.top + padding.bottom);
  const outW = extent(W, kw, stride[1], dilation[1], padding.left + padding.right);
  if (outH < 1 || outW < 1) {
    throw new ShapeError(
      `conv2d: a ${kh}×${kw} kernel (dilation ${dilation}) does not fit into ${H}×${W} pixels ` +
        `with padding ${JSON.stringify(padding)}`,
    );
  }
  return { B, C, H, W, O, outH, outW };
}
