/**
 * Flicker: how much of the brightness changes quickly.
 *
 * The power spectrum over time is estimated as by Welch (1967): segments of up to 64 frames, a new
 * one every 16, the mean of each taken off, Hann's window, their spectra averaged. Powers are scaled
 * so that they sum to the variance of the brightness. What lies in the upper half of the band, from
 * 1/4 cycle a frame on (a period of 4 frames or less), is flicker: things and cameras move slower.
 *
 * @module
 */

import type { Frame } from "../frame.ts";
import type { Frames } from "../writer.ts";
import { lumaOf } from "./luma.ts";
import { type Meter, takeMeasure } from "./meter.ts";

/** A power spectrum over time. */
export interface Spectrum {
  /** Squared 8-bit levels at each of {@link Flicker.frequencies}. */
  readonly power: readonly number[];
  /** Share of the power in the upper half of the band, 0 … 1; 0 if nothing changes. */
  readonly share: number;
  /** Root of the power there: quick changes in 8-bit levels, 0 … 255. */
  readonly level: number;
}

/** How the brightness of a clip changes over time. */
export interface Flicker {
  /** Frequencies in cycles a frame, evenly spaced, the last at most 1/2; 0 is left out. */
  readonly frequencies: readonly number[];
  /** Of the mean luma of whole frames. */
  readonly whole: Spectrum;
  /** Of the mean luma of blocks, 8 by 8 of them in a frame; the mean of their spectra. */
  readonly blocks: Spectrum;
  /** Mean luma of every frame, 0 … 255. */
  readonly lumas: readonly number[];
}

/** Blocks along a side. */
const BLOCKS = 8;

/** Frames of a segment, in clips that have them. */
const SEGMENT = 64;

/** Frames between the beginnings of segments. */
const HOP = SEGMENT / 4;

/** Cycles a frame from which on changes are quick. */
const QUICK = 1 / 4;

/** Mean luma of the frame, then of each block. */
function meansOf(frame: Frame): Float64Array {
  const { width, height } = frame;
  const luma = lumaOf(frame);
  const [columns, rows] = [Math.min(BLOCKS, width), Math.min(BLOCKS, height)];
  const sums = new Float64Array(1 + columns * rows);
  const counts = new Float64Array(sums.length);
  for (let y = 0, i = 0; y < height; y++) {
    const row = 1 + Math.floor(y * rows / height) * columns;
    for (let x = 0; x < width; x++, i++) {
      const block = row + Math.floor(x * columns / width);
      sums[block] += luma[i];
      counts[block]++;
    }
  }
  sums[0] = sums.reduce((a, b) => a + b);
  counts[0] = luma.length;
  return sums.map((sum, i) => sum / counts[i]);
}

/** Power at the frequencies k / n, k = 1 … n/2, of a series without its mean. */
function powersOf(series: readonly number[]): Float64Array {
  const n = series.length;
  const mean = series.reduce((a, b) => a + b) / n;
  const hann = Array.from({ length: n }, (_, t) => Math.sin(Math.PI * (t + 0.5) / n) ** 2);
  const gain = n * hann.reduce((sum, weight) => sum + weight ** 2, 0);
  return Float64Array.from({ length: Math.floor(n / 2) }, (_, i) => {
    const k = i + 1;
    let [real, imaginary] = [0, 0];
    for (let t = 0; t < n; t++) {
      const value = hann[t] * (series[t] - mean);
      const angle = 2 * Math.PI * (k * t % n) / n;
      real += value * Math.cos(angle);
      imaginary += value * Math.sin(angle);
    }
    return (2 * k === n ? 1 : 2) * (real ** 2 + imaginary ** 2) / gain;
  });
}

function spectrumOf(powers: Float64Array, frequencies: readonly number[]): Spectrum {
  const total = powers.reduce((a, b) => a + b);
  const quick = powers.reduce((sum, p, i) => frequencies[i] >= QUICK ? sum + p : sum, 0);
  return {
    power: Array.from(powers),
    share: total > 0 ? quick / total : 0,
    level: Math.sqrt(quick),
  };
}

/** The meter behind {@link flicker}. */
export function flickerMeter(): Meter<Flicker> {
  const lumas: number[] = [];
  /** Means of the last frames, at most a segment of them. */
  let recent: Float64Array[] = [];
  let segments = 0;
  let whole = new Float64Array();
  let blocks = new Float64Array();
  const addSegment = () => {
    const spectra = Array.from(
      recent[0],
      (_, series) => powersOf(recent.map((means) => means[series])),
    );
    const [first, ...others] = spectra;
    const add = (sums: Float64Array<ArrayBuffer>, more: Float64Array, weight = 1) =>
      more.map((value, i) => (sums[i] ?? 0) + weight * value);
    whole = new Float64Array(add(whole, first));
    for (const other of others) blocks = new Float64Array(add(blocks, other, 1 / others.length));
    segments++;
  };
  return {
    name: "the flicker spectrum",
    least: 8,
    add(frame) {
      const means = meansOf(frame);
      lumas.push(means[0]);
      recent.push(means);
      if (recent.length < SEGMENT) return;
      addSegment();
      recent = recent.slice(HOP);
    },
    result() {
      if (segments === 0) addSegment();
      const n = Math.min(SEGMENT, lumas.length);
      const frequencies = Array.from(whole, (_, i) => (i + 1) / n);
      const averaged = (sums: Float64Array) =>
        spectrumOf(sums.map((sum) => sum / segments), frequencies);
      return { frequencies, whole: averaged(whole), blocks: averaged(blocks), lumas };
    },
  };
}

/**
 * The spectrum of the brightness of a clip over time.
 *
 * @throws {InputError} fewer than 8 frames, frames of different sizes.
 */
export function flicker(frames: Frames): Promise<Flicker> {
  return takeMeasure(frames, flickerMeter());
}
