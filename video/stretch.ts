/**
 * Stretching pictures whose pixels are not square, as they are stored in some videos.
 *
 * @module
 */

import type { Frame } from "./frame.ts";
import type { Size } from "./picture.ts";

/** Where the pixels of a stretched axis lie between those of the stored one. */
interface Place {
  readonly first: number;
  readonly second: number;
  /** Of the second one; the first has the rest. */
  readonly weight: number;
}

function places(stored: number, shown: number): Place[] {
  return Array.from({ length: shown }, (_, i) => {
    const place = Math.max(0, (i + 0.5) * stored / shown - 0.5);
    const first = Math.min(Math.floor(place), stored - 1);
    return { first, second: Math.min(first + 1, stored - 1), weight: place - first };
  });
}

/** A picture at another size, bilinear; the picture itself if it has that size. */
export function stretchTo(frame: Frame, { width, height }: Size): Frame {
  if (frame.width === width && frame.height === height) return frame;
  const { data } = frame;
  const columns = places(frame.width, width);
  const stretched = new Uint8ClampedArray(3 * width * height);
  let out = 0;
  for (const row of places(frame.height, height)) {
    const upper = 3 * frame.width * row.first, lower = 3 * frame.width * row.second;
    for (const { first, second, weight } of columns) {
      for (let c = 0; c < 3; c++) {
        const left = 3 * first + c, right = 3 * second + c;
        const above = data[upper + left] + weight * (data[upper + right] - data[upper + left]);
        const below = data[lower + left] + weight * (data[lower + right] - data[lower + left]);
        stretched[out++] = above + row.weight * (below - above);
      }
    }
  }
  return { width, height, data: new Uint8Array(stretched.buffer) };
}
