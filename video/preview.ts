/**
 * What unfinished latents look like, quickly: a linear map from latent cells to colours, or TAESD's
 * decoder where its weights are given, or the autoencoder itself.
 *
 * @module
 */

import { MemoryError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, clamp, interpolate, matmul, narrow } from "../kernels/mod.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import type { TaesdDecoder } from "../models/taesd.ts";
import { decodeFrame, toFrame } from "./clip.ts";
import type { Frame } from "./frame.ts";

/** Frames of a preview at most: those of a long clip would take too long. */
export const PREVIEW_FRAMES = 4;

/**
 * Red, green and blue, in [−1, 1], of the four channels of Stable Diffusion 1.x's latents: a fit by
 * keturn, "Decoding latents to RGB without upscaling", forum of Hugging Face, 2022.
 */
const RGB_FACTORS: readonly (readonly [number, number, number])[] = [
  [0.298, 0.207, 0.208],
  [0.187, 0.286, 0.173],
  [-0.158, 0.189, 0.264],
  [-0.184, -0.271, -0.473],
];

/** How a preview is made: by a linear map, by the autoencoder itself, or by TAESD. */
export type PreviewKind = "linear" | "exact" | TaesdDecoder;

/**
 * Colours of latents by a linear map.
 *
 * @param latents `[1, 4, h, w]`, scaled as the UNet has them.
 * @returns `[1, 3, H, W]` in [0, 1], bilinearly enlarged.
 */
export function linearColours(latents: Tensor, size: readonly [number, number]): Tensor {
  const { device, shape: [, channels, h, w] } = latents;
  return device.scope(() => {
    // [−1, 1] becomes [0, 1].
    const factors = RGB_FACTORS.flat().map((factor) => factor / 2);
    const map = device.tensor(factors, [channels, 3]);
    const colours = matmul(map, latents.reshape([channels, h * w]), { transposeA: true });
    const picture = add(colours, 0.5).reshape([1, 3, h, w]);
    return clamp(interpolate(picture, { size, mode: "bilinear" }), 0, 1);
  });
}

/**
 * Pictures of some frames, the first and the last among them.
 *
 * Where there is no memory for TAESD, the linear map takes its place.
 *
 * @param latents `[frames, 4, h, w]`, scaled as the UNet has them.
 */
export async function* previewFrames(
  sd: StableDiffusion,
  latents: Tensor,
  kind: PreviewKind,
): AsyncGenerator<Frame, void> {
  const [frames, , h, w] = latents.shape;
  const [height, width] = [h * sd.factor, w * sd.factor];
  const count = Math.min(PREVIEW_FRAMES, frames);
  for (let i = 0; i < count; i++) {
    const index = count === 1 ? 0 : Math.round(i * (frames - 1) / (count - 1));
    const pixels = kind === "exact"
      ? await decodeFrame(sd, latents, index, [])
      : await colours(latents, index, [height, width], kind);
    yield toFrame(pixels, width, height);
  }
}

async function colours(
  latents: Tensor,
  index: number,
  size: readonly [number, number],
  kind: Exclude<PreviewKind, "exact">,
): Promise<Float32Array> {
  const picture = latents.device.scope(() => {
    const one = narrow(latents, 0, index, 1);
    if (kind === "linear") return linearColours(one, size);
    try {
      return clamp(kind.decode(one), 0, 1);
    } catch (error) {
      if (!(error instanceof MemoryError)) throw error;
      return linearColours(one, size);
    }
  });
  try {
    return await picture.data();
  } finally {
    picture.dispose();
  }
}

/** Frames side by side, of at most `most` rows of pixels: whole rows and columns are left out. */
export function sideBySide(frames: readonly Frame[], most: number): Frame {
  const [{ width, height }] = frames;
  const step = Math.ceil(height / most);
  const [columns, rows] = [Math.ceil(width / step), Math.ceil(height / step)];
  const all = columns * frames.length;
  const data = new Uint8Array(3 * all * rows);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < all; x++) {
      const source = frames[Math.floor(x / columns)].data;
      const from = 3 * (y * step * width + (x % columns) * step);
      data.set(source.subarray(from, from + 3), 3 * (y * all + x));
    }
  }
  return { width: all, height: rows, data };
}
