/**
 * 2-d convolution (cross-correlation),
 * `y[b, o, i, j] = bias[o] + Σ x[b, c, i·s + u·d − p, j·s + v·d − p] · w[o, c, u, v]`, NCHW, with
 * stride, symmetric or one-sided padding, dilation and groups.
 *
 * A 1×1 convolution is a matrix product on the pixels. Software adapters do 3×3 convolutions by
 * Winograd's method where there are pixels enough. GPUs gather the patches of the input while they
 * multiply them (`conv_tiles.ts`). Otherwise patches of the input are gathered into a
 * `[C·kh·kw, pixels]` matrix (im2col), a bounded piece at a time, and multiplied by the weights:
 * channel-major tensors make both operands of that product contiguous. With groups every output is
 * summed directly (`conv_direct.ts`).
 *
 * Source: `torch.nn.functional.conv2d`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, type Launch, run, type TensorSpec } from "../core/kernel.ts";
import { sameShape, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { fitsTexels, type Texels } from "../core/texels.ts";
import { directConvolution } from "./conv_direct.ts";
import { type ConvAttributes, type ConvGeometry, geometry } from "./conv_geometry.ts";
import { gathersPatches, implicitConvolution } from "./conv_tiles.ts";
import { type Activation, type Gemm, gemm, type GemmForm } from "./gemm.ts";
import { PANEL, panelsOf } from "./panels.ts";
import {
  checkScale,
  quantizedCase,
  type QuantizedWeights,
  weightReader,
  weightsOf,
} from "./quantized.ts";
import { variantsOf } from "./variants.ts";
import { im2col, type Padding, type Piece, sharesTaps } from "./im2col.ts";
import { winograd, winogradFor } from "./winograd.ts";

/** Bytes of gathered patches held at once. */
const PATCH_BYTES = 32 * 2 ** 20;

/** The kernel behind {@link conv2d}. */
export const conv2dKernel: Kernel<ConvAttributes> = defineKernel<ConvAttributes>({
  name: "conv2d",
  inputs: ["x", "weight", "bias", "embedding", "residual", "scale"],
  output([x, weight, bias, embedding, residual, scale = null], attributes) {
    if (!x || !weight) throw new ShapeError("conv2d: needs x and weight");
    const { B, O, outH, outW } = geometry(x.shape, weight.shape, weight.dtype, attributes);
    checkScale("conv2d", weight, scale, O);
    const shape = [B, O, outH, outW];
    const rule = (what: string, tensor: TensorSpec | null, wanted: Shape) => {
      if (tensor && !sameShape(tensor.shape, wanted)) {
        throw new ShapeError(`conv2d: ${what} must have shape [${wanted}], got [${tensor.shape}]`);
      }
    };
    rule("the bias", bias, [O]);
    rule("the embedding", embedding, [B, O]);
    rule("the residual", residual, shape);
    return { shape, dtype: x.dtype };
  },
  launch(launch) {
    const [x, weight] = launch.inputs as [Tensor, Tensor];
    const shape = geometry(x.shape, weight.shape, weight.dtype, launch.attributes);
    const { kernel, stride, padding, groups } = launch.attributes;
    const { top, bottom, left, right } = padding;
    if (groups > 1) return directConvolution(launch);
    const panels = inPanels(launch, shape);
    const pointwise = [...kernel, ...stride].every((n) => n === 1) &&
      top + bottom + left + right === 0;
    const tile = winogradTile(launch);
    const form = launch.attributes.form ?? variantsOf(launch.device).gemm;
    const whole = { image: 0, images: shape.B, row: 0, rows: shape.outH };
    if (pointwise) {
      multiply(launch, shape, panels, { tensor: x, columns: shape.outH * shape.outW }, whole);
    } else if (tile) {
      const [, , bias, embedding, residual, scale = null] = launch.inputs;
      const { output, attributes: { activation } } = launch;
      const extras = { scale, bias, embedding, residual, activation };
      winograd(launch, tile, { x, panels, output, top, left, ...extras });
    } else if (gathersPatches(form)) {
      const product = productOf(launch, shape, panels, whole);
      implicitConvolution(launch, form, x, launch.attributes, shape.outW, product);
    } else {
      const shared = sharesTaps(launch.attributes, shape.outW) && x.shape[3] % 4 === 0;
      const texels = form === "texels" && shared && fitsTexels(x) ? launch.texels(x) : null;
      gathered(launch, shape, panels, texels);
    }
  },
  flops([x, weight], { shape }, { kernel: [kh, kw], groups }) {
    const channels = (x?.shape[1] ?? 0) / groups;
    return 2 * sizeOf(shape) * channels * kh * kw * (weight ? 1 : 0);
  },
  reference([x, weight, bias, embedding, residual, scale], [shapeX, shapeW], attributes, output) {
    const type = scale ? "u32" : "f32";
    const { B, C, H, W, O, outH, outW } = geometry(shapeX!, shapeW!, type, attributes);
    const { kernel: [kh, kw], stride, dilation, padding, groups, activation } = attributes;
    const out = new Float64Array(sizeOf(output));
    const inputs = C / groups;
    const w = shapeW!.length === 3
      ? weightReader(weight!, shapeW![1], scale)
      : (o: number, k: number) => weight![o * inputs * kh * kw + k];
    let at = 0;
    for (let b = 0; b < B; b++) {
      for (let o = 0; o < O; o++) {
        const firstChannel = Math.floor(o / (O / groups)) * inputs;
        for (let i = 0; i < outH; i++) {
          for (let j = 0; j < outW; j++, at++) {
            let sum = (bias?.[o] ?? 0) + (embedding?.[b * O + o] ?? 0);
            for (let c = 0; c < inputs; c++) {
              for (let u = 0; u < kh; u++) {
                for (let v = 0; v < kw; v++) {
                  const y = i * stride[0] + u * dilation[0] - padding.top;
                  const z = j * stride[1] + v * dilation[1] - padding.left;
                  if (y < 0 || y >= H || z < 0 || z >= W) continue;
                  sum += x![((b * C + firstChannel + c) * H + y) * W + z] *
                    w(o, (c * kh + u) * kw + v);
                }
              }
            }
            sum += residual?.[at] ?? 0;
            out[at] = activation === "silu" ? sum / (1 + Math.exp(-sum)) : sum;
          }
        }
      }
    }
    return out;
  },
  // F(4×4) loses up to 3e-5 of the sums, which are about 10 here.
  tolerance: { atol: 2e-4, rtol: 2e-4 },
  cases: [
    convCase([1, 1, 1, 1], [1, 1, 1, 1], {}),
    convCase([2, 16, 12, 12], [24, 16, 3, 3], { padding: 1, epilogue: true }),
    convCase([2, 8, 8, 8], [12, 8, 1, 1], { epilogue: true }),
    convCase([2, 7, 5, 3], [9, 7, 1, 1], {}),
    convCase([1, 16, 15, 13], [24, 16, 3, 3], { padding: 1, stride: 2 }),
    convCase([3, 8, 16, 16], [1, 72, 32], {
      outputs: 16,
      padding: { top: 0, bottom: 1, left: 0, right: 1 },
      stride: 2,
      kernel: [3, 3],
    }),
    convCase([2, 48, 4, 4], [3, 432, 32], { padding: 1, kernel: [3, 3], epilogue: true }),
    convCase([2, 48, 4, 4], [3, 432, 32], { padding: 1, kernel: [3, 3], epilogue: true }, "tiles"),
    convCase([2, 64, 8, 8], [64, 64, 3, 3], { padding: 1, epilogue: true }, "texels"),
    convCase([1, 160, 4, 4], [190, 160, 3, 3], { padding: 1, epilogue: true }),
    convCase([1, 70, 12, 12], [36, 70, 3, 3], { padding: 1, activation: "silu" }, "registers"),
    convCase([1, 16, 15, 13], [24, 16, 3, 3], { padding: 1, stride: 2 }, "tiles"),
    // Winograd on software adapters: F(2×2), then F(4×4).
    convCase([2, 16, 16, 16], [24, 16, 3, 3], { padding: 1, epilogue: true }),
    convCase([1, 9, 19, 24], [8, 9, 3, 3], { padding: 1, activation: "silu" }),
    convCase([3, 8, 12, 18], [12, 8, 3, 3], { epilogue: true }),
    convCase([1, 8, 32, 15], [8, 8, 3, 3], {
      padding: { top: 0, bottom: 2, left: 1, right: 2 },
    }),
    convCase([2, 12, 32, 32], [40, 12, 3, 3], { padding: 1, epilogue: true }),
    convCase([1, 33, 37, 50], [9, 33, 3, 3], { activation: "silu" }),
    convCase([1, 8, 42, 63], [8, 8, 3, 3], {
      padding: { top: 0, bottom: 2, left: 1, right: 2 },
    }),
    convCase([1, 8, 13, 13], [8, 8, 3, 3], { padding: 2, dilation: 2 }),
    convCase([2, 16, 9, 9], [32, 4, 3, 3], { padding: 1, groups: 4, epilogue: true }),
    convCase([1, 12, 9, 7], [12, 1, 3, 3], { padding: 1, groups: 12 }),
    convCase([1, 3, 19, 23], [7, 3, 5, 5], { padding: 2, stride: 3 }),
    convCase([1, 6, 10, 10], [6, 6, 3, 1], { padding: [1, 0], activation: "silu" }),
    convCase([1, 3, 32, 32], [24, 3, 16, 16], { stride: 16 }),
    // Of 8 bits: product, patches in two forms, Winograd's F(2×2) and F(4×4).
    eightBits([2, 7, 9, 9], [5, 7, 1, 1], { epilogue: true }),
    eightBits([1, 9, 7, 5], [37, 9, 3, 3], { padding: 1, stride: 2 }, "texels"),
    eightBits([1, 9, 7, 5], [37, 9, 3, 3], { padding: 1, epilogue: true }, "tiles"),
    eightBits([2, 9, 9, 24], [33, 9, 3, 3], { padding: 1, epilogue: true }),
    eightBits([1, 9, 32, 32], [10, 9, 3, 3], { padding: 1, activation: "silu" }),
  ],
});

function convCase(
  x: Shape,
  weight: Shape,
  { epilogue = false, ...options }: Conv2dOptions & { epilogue?: boolean },
  form?: GemmForm,
) {
  const attributes = { ...attributesOf(weight, options), form };
  const { B, O, outH, outW } = geometry(x, weight, "f32", attributes);
  const extras = epilogue ? [[O], [B, O], [B, O, outH, outW]] : [null, null, null];
  return { shapes: [x, weight, ...extras], attributes };
}

function eightBits(...[x, weight, options, form]: Parameters<typeof convCase>) {
  const [O, ...window] = weight;
  return quantizedCase(convCase(x, weight, { ...options, outputs: O }, form), O, sizeOf(window));
}

/** Software adapters save multiplications; others are faster without the detour. */
function winogradTile(
  { device, inputs, output, attributes }: Launch<ConvAttributes>,
): 2 | 4 | null {
  const [x] = inputs as [Tensor];
  const { kernel, stride, dilation, form } = attributes;
  const plain = [...stride, ...dilation].every((n) => n === 1) && kernel.every((n) => n === 3);
  if (form || !plain) return null;
  return winogradFor(variantsOf(device).winograd, x.shape, output.shape);
}

/** The weight in panels, made of PyTorch's layout if need be. */
function inPanels(launch: Launch<ConvAttributes>, { O }: ConvGeometry): Tensor {
  const [, weight] = launch.inputs as [Tensor, Tensor];
  if (weight.shape.length === 3) return weight;
  const K = weight.size / O;
  const source = { tensor: weight, offset: 0, major: K, step: 1, batch: [] };
  return panelsOf(launch, source, { extent: O, K, batch: [] }, PANEL);
}

/** The product that a piece of the output is, all but its patches. */
function productOf(
  { inputs, output, attributes }: Launch<ConvAttributes>,
  { O, outH, outW, C }: ConvGeometry,
  panels: Tensor,
  { image, images, row, rows }: Piece,
): Omit<Gemm, "b" | "form"> {
  const [, , bias, embedding, residual, scale] = inputs;
  const pixels = outH * outW;
  return {
    a: { panels, matrices: 1, scale },
    out: {
      tensor: output,
      offset: image * O * pixels + row * outW,
      major: pixels,
      batch: O * pixels,
    },
    M: O,
    N: rows * outW,
    K: C * attributes.kernel[0] * attributes.kernel[1],
    batch: [images],
    bias,
    biasAxis: "row",
    embedding,
    firstMatrix: image,
    residual,
    activation: attributes.activation,
  };
}

/** Multiplies the weights with patches `[images, K, columns]`, of which a piece is filled. */
function multiply(
  launch: Launch<ConvAttributes>,
  shape: ConvGeometry,
  panels: Tensor,
  { tensor, columns }: { tensor: Tensor; columns: number },
  piece: Piece,
): void {
  const product = productOf(launch, shape, panels, piece);
  const b = { tensor, offset: 0, major: 1, step: columns, batch: [product.K * columns] };
  gemm(launch, { ...product, b, form: launch.attributes.form });
}

/** Convolution by gathered patches, in pieces of whole images or of rows of one image. */
function gathered(
  launch: Launch<ConvAttributes>,
  shape: ConvGeometry,
  panels: Tensor,
  texels: Texels | null,
): void {
  const { kernel: [kh, kw] } = launch.attributes;
  const { B, C, outH, outW } = shape;
  const K = C * kh * kw;
  const [x] = launch.inputs as [Tensor];
  const element = x.dtype === "f16" ? 2 : 4;
  const budget = Math.min(PATCH_BYTES, launch.device.gpu.limits.maxStorageBufferBindingSize);
  const rowsThatFit = Math.floor(budget / (K * outW * element));
  // Pieces start at multiples of four pixels, so that the product can use 4-vectors.
  const aligned = outW % 4 === 0 ? 1 : outW % 2 === 0 ? 2 : 4;
  const rows = rowsThatFit >= outH ? outH : Math.max(aligned, rowsThatFit - rowsThatFit % aligned);
  const images = rows < outH ? 1 : Math.max(1, Math.min(B, Math.floor(rowsThatFit / outH)));
  for (let image = 0; image < B; image += images) {
    for (let row = 0; row < outH; row += rows) {
      const piece = {
        image,
        images: Math.min(images, B - image),
        row,
        rows: Math.min(rows, outH - row),
      };
      const columns = Math.ceil(piece.rows * outW / 4) * 4;
      const patches = launch.temporary([piece.images, K, columns], x.dtype);
      im2col(launch.dispatch, x, texels, patches, launch.attributes, outW, piece);
      multiply(launch, shape, panels, { tensor: patches, columns }, piece);
    }
  }
}

export type { Padding } from "./im2col.ts";

/** Settings of {@link conv2d}. */
export interface Conv2dOptions {
  /** Step between windows. Default 1. */
  stride?: number | readonly [number, number];
  /** Zeros around the image: for all sides, for `[rows, columns]`, or for each side. Default 0. */
  padding?: number | readonly [number, number] | Padding;
  /** Distance between the taps of the window. Default 1. */
  dilation?: number | readonly [number, number];
  /** Groups of channels that do not see each other. Default 1. */
  groups?: number;
  /** Window of a weight in panels. */
  kernel?: readonly [number, number];
  /** Outputs of a weight in panels. Default: all that the panels have room for. */
  outputs?: number;
  /** `[B, O]`, added to every pixel of a channel: the time embedding of a ResNet block. */
  embedding?: Tensor | null;
  /** Added to the result, before the activation. */
  residual?: Tensor | null;
  /** Default `"none"`. */
  activation?: Activation;
}

function attributesOf(weight: Shape, options: Conv2dOptions): ConvAttributes {
  const { stride = 1, padding = 0, dilation = 1, groups = 1, activation = "none" } = options;
  const pair = (value: number | readonly [number, number]): readonly [number, number] =>
    typeof value === "number" ? [value, value] : value;
  let sides: Padding;
  if (typeof padding === "object" && "top" in padding) {
    sides = padding;
  } else {
    const [rows, columns] = pair(padding);
    sides = { top: rows, bottom: rows, left: columns, right: columns };
  }
  const kernel = options.kernel ?? (weight.length === 4 ? [weight[2], weight[3]] as const : null);
  if (!kernel) {
    throw new ShapeError(
      `conv2d: a weight in panels (shape [${weight}]) needs the option kernel: [kh, kw]`,
    );
  }
  const attributes = {
    kernel,
    stride: pair(stride),
    dilation: pair(dilation),
    padding: sides,
    groups,
    activation,
    outputs: options.outputs,
  };
  const positive = [...kernel, ...attributes.stride, ...attributes.dilation, groups];
  const natural = Object.values(sides) as number[];
  if (
    !positive.every((n) => Number.isInteger(n) && n >= 1) ||
    !natural.every((n) => Number.isInteger(n) && n >= 0)
  ) {
    throw new ShapeError(
      `conv2d: kernel, stride, dilation and groups must be whole numbers of at least 1, padding ` +
        `of at least 0; got ${JSON.stringify(attributes)}`,
    );
  }
  return attributes;
}

/**
 * 2-d convolution, as `torch.nn.functional.conv2d`: x `[B, C, H, W]`, weight
 * `[O, C/groups, kh, kw]` (or in panels of `packPanels`, or of 8 bits by `quantize`, with `kernel`),
 * bias `[O]` → `[B, O, H', W']`.
 *
 * @throws {ShapeError} if channels, groups, kernel and padding do not fit together.
 */
export function conv2d(
  x: Tensor,
  weight: Tensor | QuantizedWeights,
  bias: Tensor | null = null,
  options: Conv2dOptions = {},
): Tensor {
  const { embedding = null, residual = null } = options;
  const { panels, scale } = weightsOf(weight);
  const attributes = attributesOf(panels.shape, options);
  return run(conv2dKernel, [x, panels, bias, embedding, residual, scale], attributes);
}
