/**
 * Where the foreground of a clip is, for smoothing what is behind it: from masks that are given,
 * from where the UNet attends to a word of the prompt, or from a detector that looks at pictures.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, assign, linearCombination, mul } from "../kernels/mod.ts";
import type { U2Net } from "../models/u2net.ts";
import { type Mask, maskOfCells } from "./background_smoothing.ts";
import { checkFrame, type Frame } from "./frame.ts";
import { fitPicture, type Size } from "./picture.ts";

/** A word of the prompt, or several that follow each other there. */
export interface Subject {
  /** As it stands in the prompt. */
  readonly subject: string;
}

/** Finds the foreground of a picture, such as a model of salient objects. */
export interface MaskDetector {
  /** The foreground of a frame, with its aspect. */
  detect(frame: Frame): Promise<Mask>;
}

/**
 * Where masks come from: pictures, light where the foreground is, one for each frame or one for
 * all; a word of the prompt; or a detector, which is shown the frames without smoothing.
 */
export type MaskSource = Iterable<Frame> | AsyncIterable<Frame> | Subject | MaskDetector;

/** A detector of salient objects. */
export function salientObjects(net: U2Net): MaskDetector {
  return {
    async detect(frame) {
      const { width, height } = frame;
      const map = net.device.scope(() => {
        const picture = fitPicture(net.device, frame, frame); // in [−1, 1]
        return net.detect(mul(add(picture, 1), 0.5));
      }).keep();
      try {
        return { width, height, values: await map.data() };
      } finally {
        map.dispose();
      }
    },
  };
}

/** A picture as a mask: its luma, 0 for black and 1 for white. */
export function maskOfFrame({ width, height, data }: Frame): Mask {
  const values = Float32Array.from({ length: width * height }, (_, i) => {
    const [r, g, b] = data.subarray(3 * i);
    return (0.299 * r + 0.587 * g + 0.114 * b) / 255;
  });
  return { width, height, values };
}

/**
 * Refuses a mask of another aspect than the clip.
 *
 * @throws {InputError} naming both sizes.
 */
export function checkMask(mask: Size, clip: Size, index: number): void {
  const wide = Math.round(mask.height * clip.width / clip.height) === mask.width;
  const high = Math.round(mask.width * clip.height / clip.width) === mask.height;
  if (wide || high) return;
  throw new InputError(
    `masks must have the aspect of the clip, ${clip.width}x${clip.height}; mask ${index} is ` +
      `${mask.width}x${mask.height}: crop it, or make the clip in its aspect`,
  );
}

/**
 * Masks of cells out of pictures, one for each frame, or one for all.
 *
 * @throws {InputError} if their number is another, or one has another aspect.
 */
export async function cellsOfFrames(
  pictures: Iterable<Frame> | AsyncIterable<Frame>,
  frames: number,
  clip: Size,
  cells: readonly [number, number],
): Promise<Float32Array[]> {
  const masks: Float32Array[] = [];
  for await (const picture of pictures) {
    if (masks.length === frames) throw wrongCount(frames, `more than ${frames}`);
    checkFrame(picture, masks.length, undefined);
    checkMask(picture, clip, masks.length);
    masks.push(maskOfCells(maskOfFrame(picture), cells));
  }
  if (masks.length === 1) return Array<Float32Array>(frames).fill(masks[0]);
  if (masks.length < frames) throw wrongCount(frames, `${masks.length}`);
  return masks;
}

const wrongCount = (frames: number, got: string) =>
  new InputError(
    `a clip of ${frames} frames needs ${frames} masks, got ${got}; give one for each frame, or ` +
      "one for all",
  );

/** Share of the steps, the last ones, whose attention counts. */
const LAST_STEPS = 0.5;

/** The mean of the attention to the subject over the last half of a run of steps. */
export class SubjectAttention implements Disposable {
  readonly #steps: number;
  #sum: Tensor | null = null;

  /** @param steps Steps of the run. */
  constructor(steps: number) {
    this.#steps = steps;
  }

  /** Takes the attention `[frames, 1, h, w]` in step `i`. */
  add(map: Tensor, i: number): void {
    if (i < Math.floor(this.#steps * (1 - LAST_STEPS))) return;
    const { device } = map;
    device.scope(() => {
      if (this.#sum) assign(this.#sum, linearCombination([1, 1], [this.#sum, map]));
      else this.#sum = linearCombination([1], [map]).keep();
    });
  }

  /** The foreground of each frame, 0 or 1 for each cell, by {@link foregroundCells}. */
  async masks(): Promise<Float32Array[]> {
    const sum = this.#sum as Tensor;
    const [frames] = sum.shape;
    const all = await sum.data();
    const size = all.length / frames;
    return Array.from(
      { length: frames },
      (_, k) => foregroundCells(all.subarray(k * size, (k + 1) * size)),
    );
  }

  /** Frees the sum. */
  [Symbol.dispose](): void {
    this.#sum?.dispose();
  }
}

/** 1 where the attention of a frame is above Otsu's threshold, else 0. */
export function foregroundCells(attention: Float32Array): Float32Array {
  const threshold = otsuThreshold(attention);
  return attention.map((value) => value > threshold ? 1 : 0);
}

/** Classes of values that the threshold is chosen among. */
const BINS = 256;

/**
 * The threshold that parts values into two classes with the largest variance between them,
 * `ω₀·ω₁·(μ₀ − μ₁)²` (Otsu 1979, "A Threshold Selection Method from Gray-Level Histograms").
 */
export function otsuThreshold(values: Float32Array): number {
  const least = values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const width = (most - least) / BINS;
  if (!(width > 0)) return most;
  const counts = new Float64Array(BINS);
  for (const value of values) counts[Math.min(BINS - 1, Math.floor((value - least) / width))]++;
  const moment = counts.reduce((sum, count, bin) => sum + bin * count, 0);
  let [best, bestSpread, below, momentBelow] = [0, -1, 0, 0];
  counts.forEach((count, bin) => {
    below += count;
    momentBelow += bin * count;
    const above = values.length - below;
    const spread = above > 0
      ? below * above * (momentBelow / below - (moment - momentBelow) / above) ** 2
      : -1;
    if (spread > bestSpread) [best, bestSpread] = [bin, spread];
  });
  return least + (best + 1) * width;
}
