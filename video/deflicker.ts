/**
 * Brightness and colour that flicker from frame to frame, made steady without mixing pictures.
 *
 * Of every frame the mean and the standard deviation of each colour are taken, and both are
 * smoothed over time with a Gaussian window. Then each frame's values are stretched and moved,
 * `v ↦ (v − μ)·σ̄/σ + μ̄`, so that they have the smoothed ones. Every pixel of a frame comes from
 * that frame alone: nothing ghosts, and what moves stays sharp. Flicker of single places is left as
 * it is.
 *
 * A window ends at a cut, told by the pattern of light and dark in a thumbnail, which brightness
 * does not change.
 *
 * @module
 */

import { checkFrame, type Frame } from "./frame.ts";
import type { Frames } from "./writer.ts";

/** Frames on either side that a frame's brightness is made of, and so how far it looks ahead. */
const RADIUS = 6;

/** Standard deviation of the window, in frames. */
const SPREAD = RADIUS / 2;

/** Sides of thumbnails, in cells. */
const THUMBNAIL = 8;

/** Likeness of the thumbnails of two frames below which a cut lies between them. */
const SAME_SCENE = 0.5;

/** How far contrast may be changed: a frame that is nearly flat says little about it. */
const MOST_GAIN = 2;

/** Standard deviation, in 255ths, below which a colour counts as flat. */
const FLAT = 1;

/** Mean and standard deviation of a colour. */
interface Level {
  readonly mean: number;
  readonly spread: number;
}

/** A frame in the window. */
interface Item {
  readonly frame: Frame;
  readonly levels: readonly Level[];
  readonly thumbnail: Float64Array;
  /** Number of cuts before it. */
  readonly scene: number;
}

/**
 * The frames with steady brightness and colours, {@link RADIUS} behind those that come in. Copies
 * are kept of up to 2·RADIUS + 1 of them.
 *
 * @throws {InputError} when iterated, if frames have different sizes or are no pictures.
 */
export function deflicker(frames: Frames): Frames {
  return {
    ...(frames.settings && { settings: { ...frames.settings, deflicker: true } }),
    [Symbol.asyncIterator]: () => steadied(frames),
  };
}

async function* steadied(frames: Frames): AsyncGenerator<Frame, void> {
  const window: Item[] = [];
  let count = 0;
  let next = 0; // place in the window of the frame that is given out next
  for await (const frame of frames) {
    checkFrame(frame, count++, window.at(-1)?.frame);
    window.push(itemOf(frame, window.at(-1)));
    if (window.length <= next + RADIUS) continue;
    yield corrected(window, next);
    if (next < RADIUS) next++;
    else window.shift();
  }
  for (; next < window.length; next++) yield corrected(window, next);
}

function itemOf({ width, height, data }: Frame, before: Item | undefined): Item {
  const frame = { width, height, data: data.slice() };
  const thumbnail = thumbnailOf(frame);
  const cut = before !== undefined && likeness(before.thumbnail, thumbnail) < SAME_SCENE;
  return {
    frame,
    levels: [0, 1, 2].map((channel) => levelOf(frame, channel)),
    thumbnail,
    scene: (before?.scene ?? 0) + (cut ? 1 : 0),
  };
}

function levelOf({ data }: Frame, channel: number): Level {
  let sum = 0, squares = 0;
  for (let i = channel; i < data.length; i += 3) {
    sum += data[i];
    squares += data[i] ** 2;
  }
  const mean = 3 * sum / data.length;
  return { mean, spread: Math.sqrt(Math.max(0, 3 * squares / data.length - mean ** 2)) };
}

/** Light of the cells of a grid over the frame, of mean 0 and length 1; all alike if it is flat. */
function thumbnailOf({ width, height, data }: Frame): Float64Array {
  const sums = new Float64Array(THUMBNAIL ** 2);
  const counts = new Float64Array(THUMBNAIL ** 2);
  for (let y = 0, i = 0; y < height; y++) {
    const row = THUMBNAIL * Math.floor(y * THUMBNAIL / height);
    for (let x = 0; x < width; x++, i += 3) {
      const cell = row + Math.floor(x * THUMBNAIL / width);
      sums[cell] += data[i] + data[i + 1] + data[i + 2];
      counts[cell]++;
    }
  }
  // Small pictures leave some cells without a pixel.
  const means = sums.map((sum, cell) => sum / Math.max(1, counts[cell]));
  const mean = means.reduce((sum, value) => sum + value, 0) / means.length;
  const around = means.map((value) => value - mean);
  const length = Math.sqrt(likeness(around, around));
  const flat = length < 3 * THUMBNAIL * FLAT;
  return around.map((value) => flat ? 1 / THUMBNAIL : value / length);
}

function likeness(a: Float64Array, b: Float64Array): number {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

/** Frame `at` of the window with the smoothed levels around it. */
function corrected(window: readonly Item[], at: number): Frame {
  const { frame, levels, scene } = window[at];
  const near = window.map((item, i) => ({
    levels: item.levels,
    weight: item.scene === scene && Math.abs(i - at) <= RADIUS
      ? Math.exp(-0.5 * ((i - at) / SPREAD) ** 2)
      : 0,
  }));
  const total = near.reduce((sum, { weight }) => sum + weight, 0);
  const tables = levels.map(({ mean, spread }, channel) => {
    const smoothed = (key: keyof Level) =>
      near.reduce((sum, { levels, weight }) => sum + weight * levels[channel][key], 0) / total;
    const ratio = spread > FLAT ? smoothed("spread") / spread : 1;
    const gain = Math.min(MOST_GAIN, Math.max(1 / MOST_GAIN, ratio));
    const target = smoothed("mean");
    // Stored bytes clamp and round by themselves.
    return Uint8ClampedArray.from({ length: 256 }, (_, v) => (v - mean) * gain + target);
  });
  return { ...frame, data: frame.data.map((value, i) => tables[i % 3][value]) };
}
