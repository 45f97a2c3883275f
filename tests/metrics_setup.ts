/**
 * Pictures of known content for tests of measures.
 *
 * @module
 */

import type { Frame } from "../video/frame.ts";

/**
 * Numbers in [−1, 1) that follow from a name and an index, so that other languages can make them too:
 * FNV-1a of the name, then a mix of the bits of `index · 2654435761 + hash`.
 */
export function noise(name: string, count: number): Float64Array {
  const hash = new TextEncoder().encode(name)
    .reduce((h, byte) => Math.imul(h ^ byte, 16777619) >>> 0, 2166136261);
  return Float64Array.from({ length: count }, (_, i) => {
    let x = (Math.imul(i, 2654435761) + hash) >>> 0;
    x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
    return ((x ^ (x >>> 16)) >>> 0) / 2 ** 31 - 1;
  });
}

/** A smooth random grey texture of periods from 4 pixels on, defined between pixels too. */
export function texture(name: string): (x: number, y: number) => number {
  const random = noise(name, 180);
  const waves = Array.from({ length: 60 }, (_, i) => {
    const frequency = 0.004 * 60 ** ((random[3 * i] + 1) / 2);
    const angle = Math.PI * random[3 * i + 1];
    const turn = 2 * Math.PI * frequency;
    return [turn * Math.cos(angle), turn * Math.sin(angle), Math.PI * random[3 * i + 2]];
  });
  return (x, y) =>
    128 + 14 * waves.reduce((sum, [u, v, p]) => sum + Math.sin(u * x + v * y + p), 0);
}

/** The 8-bit level nearest to a value. */
export function level(value: number): number {
  return Math.max(0, Math.min(255, Math.round(value)));
}

/** A grey picture whose levels are given by a function. */
export function greyFrame(
  width: number,
  height: number,
  value: (x: number, y: number) => number,
): Frame {
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    data.fill(level(value(i % width, Math.floor(i / width))), 3 * i, 3 * i + 3);
  }
  return { width, height, data };
}

/** A picture of one colour. */
export function flat(width: number, height: number, colour: readonly number[]): Frame {
  const data = Uint8Array.from({ length: 3 * width * height }, (_, i) => colour[i % 3]);
  return { width, height, data };
}

/** A colour picture of noise. */
export function noiseFrame(width: number, height: number, name: string): Frame {
  const data = Uint8Array.from(noise(name, 3 * width * height), (value) => 128 * (value + 1));
  return { width, height, data };
}
