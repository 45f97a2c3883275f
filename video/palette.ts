/**
 * Reducing a picture to at most 256 colours: Wu's quantizer (Xiaolin Wu, "Efficient statistical
 * computations for optimal color quantization", Graphics Gems II, 1991) and ordered dithering.
 *
 * @module
 */

import type { Frame } from "./frame.ts";

/** A picture of palette entries. */
export interface IndexedPicture {
  /** R, G, B of each entry; at most 256 entries. */
  palette: Uint8Array;
  /** The entry of each pixel. */
  indices: Uint8Array;
}

const SIDE = 65; // 64 levels a channel, and a plane of zeros before them for cumulative sums
const CELLS = SIDE ** 3;

/** Cumulative sums over all cells up to (r, g, b): pixels, their R, G, B, and R² + G² + B². */
type Moments = { count: Float64Array; sums: Float64Array[]; squares: Float64Array };

/** A box of cells, lower bounds exclusive, and the squared error of giving it one colour. */
type Box = { low: number[]; high: number[]; error: number };

const cell = (r: number, g: number, b: number): number => (r * SIDE + g) * SIDE + b;

function moments(data: Uint8Array): Moments {
  const count = new Float64Array(CELLS);
  const sums = [0, 1, 2].map(() => new Float64Array(CELLS));
  const squares = new Float64Array(CELLS);
  for (let i = 0; i < data.length; i += 3) {
    const r = data[i], g = data[i + 1], b = data[i + 2];
    const at = cell((r >> 2) + 1, (g >> 2) + 1, (b >> 2) + 1);
    count[at]++;
    sums[0][at] += r;
    sums[1][at] += g;
    sums[2][at] += b;
    squares[at] += r * r + g * g + b * b;
  }
  for (const table of [count, ...sums, squares]) {
    for (const step of [1, SIDE, SIDE * SIDE]) {
      for (let i = step; i < CELLS; i++) {
        if (Math.floor(i / step) % SIDE > 0) table[i] += table[i - step];
      }
    }
  }
  return { count, sums, squares };
}

/** Total of a cumulative table within `low` (exclusive) … `high`, by inclusion and exclusion. */
function total(table: Float64Array, [r0, g0, b0]: number[], [r1, g1, b1]: number[]): number {
  return table[cell(r1, g1, b1)] - table[cell(r1, g1, b0)] - table[cell(r1, g0, b1)] +
    table[cell(r1, g0, b0)] - table[cell(r0, g1, b1)] + table[cell(r0, g1, b0)] +
    table[cell(r0, g0, b1)] - table[cell(r0, g0, b0)];
}

/** Squared length of a box's summed colour over its pixels: what one colour explains of it. */
function explained({ count, sums }: Moments, low: number[], high: number[]): number {
  const pixels = total(count, low, high);
  if (pixels === 0) return 0;
  return sums.reduce((sum, table) => sum + total(table, low, high) ** 2, 0) / pixels;
}

function makeBox(m: Moments, low: number[], high: number[]): Box {
  return { low, high, error: total(m.squares, low, high) - explained(m, low, high) };
}

/** Cuts a box in two where the two mean colours explain most; `undefined` if nothing is gained. */
function split(m: Moments, { low, high }: Box): [Box, Box] | undefined {
  const whole = total(m.count, low, high);
  let best = explained(m, low, high) * (1 + 1e-12);
  let cut: [number[], number[]] | undefined;
  for (let axis = 0; axis < 3; axis++) {
    for (let at = low[axis] + 1; at < high[axis]; at++) {
      const middleHigh = high.with(axis, at), middleLow = low.with(axis, at);
      const below = total(m.count, low, middleHigh);
      if (below === 0 || below === whole) continue;
      const score = explained(m, low, middleHigh) + explained(m, middleLow, high);
      if (score > best) [best, cut] = [score, [middleHigh, middleLow]];
    }
  }
  return cut && [makeBox(m, low, cut[0]), makeBox(m, cut[1], high)];
}

/** At most `colors` entries, sorted by green, and the root mean square error of a channel. */
function wuPalette(data: Uint8Array, colors: number): { palette: Uint8Array; error: number } {
  const m = moments(data);
  let open = [makeBox(m, [0, 0, 0], [SIDE - 1, SIDE - 1, SIDE - 1])];
  const closed: Box[] = [];
  while (open.length > 0 && open.length + closed.length < colors) {
    const worst = open.reduce((a, b) => b.error > a.error ? b : a);
    const parts = split(m, worst);
    open = open.filter((box) => box !== worst);
    if (parts) open.push(...parts);
    else closed.push(worst);
  }
  const boxes = [...open, ...closed];
  const palette = boxes
    .map(({ low, high }) =>
      m.sums.map((table) => Math.round(total(table, low, high) / total(m.count, low, high)))
    )
    .sort((a, b) => a[1] - b[1])
    .flat();
  const error = boxes.reduce((sum, box) => sum + Math.max(0, box.error), 0);
  return { palette: Uint8Array.from(palette), error: Math.sqrt(error / data.length) };
}

/** The picture in its own colours, if there are no more than `colors` of them. */
function exactPalette(data: Uint8Array, colors: number): IndexedPicture | undefined {
  const entries = new Map<number, number>();
  const indices = new Uint8Array(data.length / 3);
  for (let i = 0; i < indices.length; i++) {
    const color = data[3 * i] << 16 | data[3 * i + 1] << 8 | data[3 * i + 2];
    let entry = entries.get(color);
    if (entry === undefined) {
      if (entries.size === colors) return undefined;
      entries.set(color, entry = entries.size);
    }
    indices[i] = entry;
  }
  const palette = [...entries.keys()].flatMap((
    color,
  ) => [color >> 16, color >> 8 & 255, color & 255]);
  return { palette: Uint8Array.from(palette), indices };
}

/** Thresholds in −½…½ of an 8×8 Bayer matrix: bit-reversed interleaving of x ^ y and y. */
const BAYER = Float64Array.from({ length: 64 }, (_, i) => {
  const x = i & 7, y = i >> 3;
  let value = 0;
  for (let bit = 0; bit < 3; bit++) {
    value = value << 2 | ((x ^ y) >> bit & 1) << 1 | y >> bit & 1;
  }
  return (value + 0.5) / 64 - 0.5;
});

/**
 * A function from colour to nearest palette entry, that remembers its answers in 7-bit cells. It
 * looks outwards from the green of the colour until green alone is further than the best so far.
 *
 * @param palette sorted by green.
 */
function nearestEntry(palette: Uint8Array): (r: number, g: number, b: number) => number {
  const entries = palette.length / 3;
  const known = new Int16Array(1 << 21).fill(-1);
  const firstNotBelow = Uint16Array.from({ length: 256 }, (_, green) => {
    let i = 0;
    while (i < entries && palette[3 * i + 1] < green) i++;
    return i;
  });

  const search = (r: number, g: number, b: number): number => {
    let nearest = 0, least = Infinity;
    const closer = (i: number): boolean => {
      const dr = palette[3 * i] - r, dg = palette[3 * i + 1] - g, db = palette[3 * i + 2] - b;
      const distance = dr * dr + dg * dg + db * db;
      if (distance < least) [least, nearest] = [distance, i];
      return dg * dg < least;
    };
    const start = firstNotBelow[g];
    for (let i = start; i < entries && closer(i);) i++;
    for (let i = start - 1; i >= 0 && closer(i);) i--;
    return nearest;
  };
  return (r, g, b) => {
    const at = r >> 1 << 14 | g >> 1 << 7 | b >> 1;
    if (known[at] < 0) known[at] = search(r | 1, g | 1, b | 1);
    return known[at];
  };
}

/**
 * Reduces `frame` to at most `colors` of its own choice. A picture that has no more is kept
 * exactly; any other is dithered with an 8×8 Bayer matrix, which stays still from frame to frame
 * where error diffusion would crawl. Its strength is the step of a uniform quantizer of the same
 * error: rms·√12.
 */
export function indexColors(frame: Frame, colors = 256): IndexedPicture {
  const { data, width } = frame;
  const exact = exactPalette(data, colors);
  if (exact) return exact;
  const { palette, error } = wuPalette(data, colors);
  const strength = error * Math.sqrt(12);
  const nearest = nearestEntry(palette);
  const indices = new Uint8Array(data.length / 3);
  for (let i = 0; i < indices.length; i++) {
    const x = i % width, y = (i - x) / width;
    const offset = BAYER[(y & 7) << 3 | x & 7] * strength;
    const shifted = (value: number): number => Math.max(0, Math.min(255, value + offset));
    indices[i] = nearest(shifted(data[3 * i]), shifted(data[3 * i + 1]), shifted(data[3 * i + 2]));
  }
  return { palette, indices };
}
