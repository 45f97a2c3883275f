/**
 * Where the random numbers of a clip come from.
 *
 * @module
 */

import { Generator, generatorForFrame } from "../core/random.ts";
import { sizeOf } from "../core/shape.ts";

/** Draws of a clip's noise; frames are given by their position in the clip. */
export interface NoiseSource {
  /** x_T of the first frame, of shape `[1, C, h, w]`. */
  initial(shape: readonly number[]): Float32Array<ArrayBuffer>;
  /** Fresh noise for some frames, of shape `[frames, C, h, w]`. */
  frames(positions: readonly number[], shape: readonly number[]): Float32Array<ArrayBuffer>;
  /** Another source that goes on as this one would: for doing the same steps twice. */
  clone(): NoiseSource;
}

/**
 * The first frame as PyTorch's CPU generator draws it, every other frame from `(seed, frame id)`:
 * a frame does not depend on which other frames are made, nor on how they are grouped.
 */
export function noisePerFrame(seed: number, frameIds: readonly number[]): NoiseSource {
  return perFrame(seed, frameIds, new Map());
}

function perFrame(
  seed: number,
  frameIds: readonly number[],
  generators: Map<number, Generator>,
): NoiseSource {
  return {
    initial: (shape) => new Generator(seed).randn(shape),
    frames(positions, shape) {
      const out = new Float32Array(sizeOf(shape));
      const one = [1, ...shape.slice(1)];
      positions.forEach((position, row) => {
        const generator = generators.get(position) ??
          generatorForFrame(seed, frameIds[position]);
        generators.set(position, generator);
        out.set(generator.randn(one), row * sizeOf(one));
      });
      return out;
    },
    clone() {
      const copies = Array.from(generators, ([k, generator]) => [k, generator.clone()] as const);
      return perFrame(seed, frameIds, new Map(copies));
    },
  };
}

/** One generator for everything, in the order in which diffusers' pipeline draws. */
export function noiseOfDiffusers(generator: Generator): NoiseSource {
  return {
    initial: (shape) => generator.randn(shape),
    frames: (_, shape) => generator.randn(shape),
    clone: () => noiseOfDiffusers(generator.clone()),
  };
}
