/**
 * Edges of a picture, by Canny's detector on the device.
 *
 * The original code of Text2Video-Zero makes its edge maps with `cv2.Canny(picture, 100, 200)`. So
 * does this: pixel by pixel the same, with the kernels of `kernels/edges.ts` and
 * `kernels/hysteresis.ts`.
 *
 * @module
 */

import type { Device } from "../../core/device.ts";
import { InputError, ShapeError } from "../../core/errors.ts";
import { formatShape } from "../../core/shape.ts";
import type { Tensor } from "../../core/tensor.ts";
import {
  cast,
  clamp,
  edgeCandidates,
  edgeGradient,
  gaussianBlur,
  hysteresis,
  linearCombination,
  narrow,
  round,
} from "../../kernels/mod.ts";
import { checkFrame, type Frame } from "../frame.ts";

/** Settings of {@link canny}. */
export interface CannyOptions {
  /**
   * Gradients up to it are no edge; |∂x| + |∂y| of 8-bit levels by Sobel's filter, 0 … 2040.
   * Default 100.
   */
  lowThreshold?: number;
  /** Gradients above it are an edge; those between, where they continue one. Default 200. */
  highThreshold?: number;
  /** Standard deviation in pixels of a Gaussian blur before, 0 … 32. Default 0: none. */
  blurSigma?: number;
}

/**
 * The edges of a picture as ControlNets for edges want them: white on black, a pixel wide.
 *
 * @param picture A frame, or a tensor `[1, 3, H, W]` in [0, 1], which is rounded to 8 bits.
 * @throws {InputError} thresholds that are not 0 ≤ low ≤ high, a blur that is not 0 … 32, a frame
 * that is no picture.
 * @throws {ShapeError} a tensor of another shape.
 */
export async function canny(
  device: Device,
  picture: Frame | Tensor,
  options: CannyOptions = {},
): Promise<Frame> {
  const settings = checkCanny(options);
  const edges = device.scope(() => findEdges(pixelsOf(device, picture), settings));
  try {
    const [height, width] = edges.shape;
    const found = await edges.raw();
    const data = new Uint8Array(3 * found.length);
    for (let i = 0; i < found.length; i++) {
      if (found[i]) data.fill(255, 3 * i, 3 * i + 3);
    }
    return { width, height, data };
  } finally {
    edges.dispose();
  }
}

/**
 * The settings with their defaults.
 *
 * @throws {InputError} naming the option, the rule and the value.
 */
export function checkCanny(
  { lowThreshold = 100, highThreshold = 200, blurSigma = 0 }: CannyOptions,
): Required<CannyOptions> {
  if (!(lowThreshold >= 0 && lowThreshold <= highThreshold && highThreshold < Infinity)) {
    throw new InputError(
      `the thresholds of edges must be 0 ≤ low ≤ high: got ${lowThreshold} and ${highThreshold}`,
    );
  }
  if (!(blurSigma >= 0 && blurSigma <= 32)) {
    throw new InputError(`blurSigma must be a number of pixels, 0 to 32: got ${blurSigma}`);
  }
  return { lowThreshold, highThreshold, blurSigma };
}

function findEdges(pixels: Tensor, settings: Required<CannyOptions>): Tensor {
  const { lowThreshold, highThreshold, blurSigma } = settings;
  const smooth = blurSigma > 0 ? gaussianBlur(pixels, blurSigma) : pixels;
  // Gradients are whole numbers: what is above a fraction is above the number below it.
  const [low, high] = [Math.floor(lowThreshold), Math.floor(highThreshold)];
  return hysteresis(edgeCandidates(edgeGradient(smooth), low, high));
}

/** A picture as the kernels take it: u32 `[H, W]`, red + 2⁸·green + 2¹⁶·blue in an element. */
function pixelsOf(device: Device, picture: Frame | Tensor): Tensor {
  if ("storage" in picture) return packed(picture);
  checkFrame(picture, 0, undefined);
  const { width, height, data } = picture;
  const pixels = new Uint32Array(width * height);
  for (let i = 0; i < pixels.length; i++) {
    pixels[i] = data[3 * i] | data[3 * i + 1] << 8 | data[3 * i + 2] << 16;
  }
  return device.tensor(pixels, [height, width]);
}

function packed(x: Tensor): Tensor {
  const { shape: [rows, channels, height, width] } = x;
  if (x.shape.length !== 4 || rows !== 1 || channels !== 3) {
    throw new ShapeError(`canny: takes a picture [1, 3, H, W], got ${formatShape(x.shape)}`);
  }
  const levels = round(linearCombination([255], [clamp(cast(x, "f32"), 0, 1)]));
  const colours = [0, 1, 2].map((c) => narrow(levels, 1, c, 1));
  return cast(linearCombination([1, 2 ** 8, 2 ** 16], colours), "u32").reshape([height, width]);
}
