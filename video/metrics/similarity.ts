/**
 * How alike two pictures are: PSNR and SSIM (Wang, Bovik, Sheikh and Simoncelli 2004), of
 * consecutive frames of a clip, or of two clips frame by frame.
 *
 * SSIM compares luma in windows of 11×11 pixels with Gaussian weights (σ = 1.5) that lie wholly
 * inside the picture:
 *
 * ```
 * SSIM = (2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)),
 * C1 = (0.01 · 255)², C2 = (0.03 · 255)²
 * ```
 *
 * and takes the mean over all places, as the authors' code does.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import { checkFrame, type Frame } from "../frame.ts";
import type { Frames } from "../writer.ts";
import { lumaOf } from "./luma.ts";
import { meanOf, type Meter, takeMeasure } from "./meter.ts";

/** How alike pictures are, pair by pair. */
export interface Similarity {
  /**
   * Peak signal-to-noise ratio in dB over all pairs, R, G and B alike: 10·log₁₀(255² / mean squared
   * error of all pairs). Higher is more alike, `Infinity` if nothing differs.
   */
  readonly psnr: number;
  /** Mean structural similarity, −1 … 1: 1 if nothing differs. */
  readonly ssim: number;
  /** PSNR of each pair in dB. */
  readonly psnrs: readonly number[];
  /** SSIM of each pair. */
  readonly ssims: readonly number[];
}

/** Side of SSIM's window. */
const SIDE = 11;

const SIGMA = 1.5;
const C1 = (0.01 * 255) ** 2;
const C2 = (0.03 * 255) ** 2;

const WEIGHTS = (() => {
  const bell = Array.from(
    { length: SIDE },
    (_, i) => Math.exp(-((i - (SIDE - 1) / 2) ** 2) / (2 * SIGMA ** 2)),
  );
  const sum = bell.reduce((a, b) => a + b);
  return bell.map((weight) => weight / sum);
})();

/** What SSIM needs to know of one picture. */
interface Windows {
  readonly luma: Float64Array;
  readonly width: number;
  /** Weighted mean of each window. */
  readonly mean: Float64Array;
  /** Weighted variance of each window. */
  readonly variance: Float64Array;
}

/** Weighted means of `a[i] · b[i]` (or of `a[i]`) in all windows. */
function weighted(width: number, a: Float64Array, b?: Float64Array): Float64Array {
  const height = a.length / width;
  const columns = width - SIDE + 1;
  const rows = height - SIDE + 1;
  const across = new Float64Array(columns * height);
  const line = new Float64Array(width);
  for (let y = 0; y < height; y++) {
    const from = y * width;
    for (let x = 0; x < width; x++) line[x] = b ? a[from + x] * b[from + x] : a[from + x];
    for (let x = 0; x < columns; x++) {
      let sum = 0;
      for (let k = 0; k < SIDE; k++) sum += WEIGHTS[k] * line[x + k];
      across[y * columns + x] = sum;
    }
  }
  const out = new Float64Array(columns * rows);
  for (let y = 0; y < rows; y++) {
    for (let k = 0; k < SIDE; k++) {
      const from = (y + k) * columns;
      for (let x = 0; x < columns; x++) out[y * columns + x] += WEIGHTS[k] * across[from + x];
    }
  }
  return out;
}

function windowsOf(frame: Frame): Windows {
  const { width, height } = frame;
  if (Math.min(width, height) < SIDE) {
    throw new InputError(
      `SSIM needs frames of at least ${SIDE}x${SIDE} pixels, these are ${width}x${height}; ` +
        "scale them up first",
    );
  }
  const luma = lumaOf(frame);
  const mean = weighted(width, luma);
  const variance = weighted(width, luma, luma).map((square, i) => square - mean[i] ** 2);
  return { luma, width, mean, variance };
}

function ssimOf(x: Windows, y: Windows): number {
  const products = weighted(x.width, x.luma, y.luma);
  let sum = 0;
  for (let i = 0; i < products.length; i++) {
    const both = x.mean[i] * y.mean[i];
    sum += (2 * both + C1) * (2 * (products[i] - both) + C2) /
      ((x.mean[i] ** 2 + y.mean[i] ** 2 + C1) * (x.variance[i] + y.variance[i] + C2));
  }
  return sum / products.length;
}

function squaredError(a: Uint8Array, b: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return sum / a.length;
}

function decibels(squaredError: number): number {
  return 10 * Math.log10(255 ** 2 / squaredError);
}

/**
 * Structural similarity of two pictures, −1 … 1.
 *
 * @throws {InputError} if they differ in size, or have fewer than 11 pixels along a side.
 */
export function ssim(a: Frame, b: Frame): number {
  checkPair(a, b);
  return ssimOf(windowsOf(a), windowsOf(b));
}

/**
 * Peak signal-to-noise ratio of two pictures in dB; `Infinity` if they are the same.
 *
 * @throws {InputError} if they differ in size.
 */
export function psnr(a: Frame, b: Frame): number {
  checkPair(a, b);
  return decibels(squaredError(a.data, b.data));
}

function checkPair(a: Frame, b: Frame): void {
  checkFrame(a, 0, undefined);
  checkFrame(b, 1, a);
}

function summary(errors: readonly number[], ssims: readonly number[]): Similarity {
  return {
    psnr: decibels(meanOf(errors)),
    ssim: meanOf(ssims),
    psnrs: errors.map(decibels),
    ssims,
  };
}

/** The meter behind {@link similarity}. */
export function similarityMeter(): Meter<Similarity> {
  let before: { data: Uint8Array; windows: Windows } | undefined;
  const errors: number[] = [];
  const ssims: number[] = [];
  return {
    name: "the similarity of consecutive frames (PSNR, SSIM)",
    least: 2,
    add(frame) {
      const windows = windowsOf(frame);
      if (before) {
        errors.push(squaredError(before.data, frame.data));
        ssims.push(ssimOf(before.windows, windows));
      }
      before = { data: frame.data.slice(), windows };
    },
    result: () => summary(errors, ssims),
  };
}

/**
 * How alike each frame is to the one before it.
 *
 * @throws {InputError} fewer than 2 frames, frames of different sizes or of fewer than 11×11 pixels.
 */
export function similarity(frames: Frames): Promise<Similarity> {
  return takeMeasure(frames, similarityMeter());
}

/**
 * How alike two clips are, frame by frame.
 *
 * @throws {InputError} clips of different length or size, no frames, fewer than 11×11 pixels.
 */
export async function compareClips(a: Frames, b: Frames): Promise<Similarity> {
  const errors: number[] = [];
  const ssims: number[] = [];
  const others = iteratorOf(b);
  try {
    for await (const frame of a) {
      const index = errors.length;
      const other = await others.next();
      if (other.done) throw differentLength("first", index);
      const { width, height } = other.value;
      if (frame.width !== width || frame.height !== height) {
        throw new InputError(
          `clips to compare must have one size: frame ${index} is ${frame.width}x${frame.height} ` +
            `in the first and ${width}x${height} in the second; scale one of them`,
        );
      }
      ssims.push(ssim(frame, other.value));
      errors.push(squaredError(frame.data, other.value.data));
    }
    if (!(await others.next()).done) throw differentLength("second", errors.length);
  } finally {
    await others.return?.();
  }
  if (!errors.length) throw new InputError("clips to compare must have at least one frame");
  return summary(errors, ssims);
}

function iteratorOf(frames: Frames): AsyncIterator<Frame> | Iterator<Frame> {
  return Symbol.asyncIterator in frames
    ? frames[Symbol.asyncIterator]()
    : frames[Symbol.iterator]();
}

function differentLength(longer: string, count: number): InputError {
  return new InputError(
    `clips to compare must have as many frames, the ${longer} goes on after ${count}; cut it`,
  );
}
