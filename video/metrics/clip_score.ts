/**
 * CLIP score (Hessel et al. 2021, without its factor and cut): how well pictures match a text, by the
 * angle between their embeddings in CLIP's space. The measure of Text2Video-Zero's comparison.
 *
 * ```
 * score = 100 · mean over frames of E_I(x)·E_T(prompt) / (|E_I(x)| |E_T(prompt)|)
 * ```
 *
 * @module
 */

import type { Tensor } from "../../core/tensor.ts";
import {
  clamp,
  div,
  interpolate,
  mul,
  narrow,
  norm,
  permute,
  round,
  sub,
  sum,
} from "../../kernels/mod.ts";
import type { ClipModel } from "../../models/clip.ts";
import type { Frame } from "../frame.ts";
import type { Frames } from "../writer.ts";
import { meanOf, type Meter, takeMeasure } from "./meter.ts";

/** How well a clip matches a text. */
export interface ClipScore {
  /** Mean over the frames, −100 … 100; good matches reach about 30. Higher is better. */
  readonly score: number;
  /** Score of every frame. */
  readonly scores: readonly number[];
}

/** Mean and standard deviation of the pictures that CLIP was trained with, R, G, B in 0 … 1. */
const MEAN = [0.48145466, 0.4578275, 0.40821073];
const DEVIATION = [0.26862954, 0.26130258, 0.27577711];

/**
 * A frame as CLIP's image encoder takes it: the shorter side scaled to `size` (bicubic, antialiased,
 * rounded to 8 bits), the middle cut out, CLIP's mean and standard deviation taken out.
 *
 * @returns `[1, 3, size, size]`.
 */
export function clipPixels({ device }: ClipModel, frame: Frame, size: number): Tensor {
  const { width, height, data } = frame;
  const shorter = Math.min(width, height);
  const scaled = (side: number) => Math.floor(size * side / shorter);
  return device.scope(() => {
    const rows = device.tensor(Float32Array.from(data), [1, height, width, 3]);
    const picture = interpolate(permute(rows, [0, 3, 1, 2]), {
      size: [scaled(height), scaled(width)],
      mode: "bicubic",
      antialias: true,
    });
    const [, , rowCount, columnCount] = picture.shape;
    const middle = (x: Tensor, axis: number, n: number) =>
      narrow(x, axis, Math.floor((n - size) / 2), size);
    const cut = middle(middle(picture, 2, rowCount), 3, columnCount);
    const of = (values: readonly number[]) =>
      device.tensor(values.map((value) => 255 * value), [1, 3, 1, 1]);
    return div(sub(clamp(round(cut), 0, 255), of(MEAN)), of(DEVIATION));
  });
}

function unit(x: Tensor): Tensor {
  return div(x, norm(x, [1], { keepdim: true }));
}

/** The meter behind {@link clipScore}. */
export function clipMeter(model: ClipModel, prompt: string): Meter<ClipScore> {
  const { device } = model;
  const text = device.scope(() => unit(model.embedTexts([prompt])).keep());
  const scores: number[] = [];
  return {
    name: "the CLIP score",
    least: 1,
    async add(frame) {
      const cosine = device.scope(() => {
        const pixels = clipPixels(model, frame, model.vision.config.imageSize);
        const { imageEmbeds } = model.vision.forward(pixels);
        return sum(mul(unit(imageEmbeds), text)).keep();
      });
      const [value] = await cosine.data().finally(() => cosine.dispose());
      scores.push(100 * value);
    },
    result: () => ({ score: meanOf(scores), scores }),
    close: () => text.dispose(),
  };
}

/**
 * How well the frames of a clip match `prompt`.
 *
 * @throws {InputError} no frames, frames of different sizes, a model without text projection.
 */
export async function clipScore(
  frames: Frames,
  model: ClipModel,
  prompt: string,
): Promise<ClipScore> {
  return await takeMeasure(frames, clipMeter(model, prompt));
}
