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

/** What random numbers are drawn from. */
export interface NormalSource {
  /** Normal numbers, enough to fill a shape. */
  randn(shape: readonly number[]): Float32Array<ArrayBuffer>;
  /** Another one that goes on as this one would. */
  clone(): NormalSource;
}

/** One generator for everything, in the order in which diffusers' pipeline draws. */
export function noiseOfDiffusers(generator: NormalSource): NoiseSource {
  return {
    initial: (shape) => generator.randn(shape),
    frames: (_, shape) => generator.randn(shape),
    clone: () => noiseOfDiffusers(generator.clone()),
  };
}

/**
 * One generator for everything, as Text2Video-Zero's own code draws: frames lie behind the
 * channels, `[1, C, frames, h, w]`.
 */
export function noiseOfOriginal(generator: NormalSource): NoiseSource {
  return {
    initial: (shape) => generator.randn(shape),
    frames(_, shape) {
      const [frames, channels, h, w] = shape;
      const drawn = generator.randn([1, channels, frames, h, w]);
      const size = h * w;
      const out = new Float32Array(drawn.length);
      for (let c = 0; c < channels; c++) {
        for (let k = 0; k < frames; k++) {
          const from = (c * frames + k) * size;
          out.set(drawn.subarray(from, from + size), (k * channels + c) * size);
        }
      }
      return out;
    },
    clone: () => noiseOfOriginal(generator.clone()),
  };
}

/** The noise that diffusers' pipelines draw for one picture, the same for every frame. */
export function noiseShared(generator: NormalSource): NoiseSource {
  return {
    initial: (shape) => generator.randn(shape),
    frames(_, [frames, ...rest]) {
      const one = generator.randn([1, ...rest]);
      const out = new Float32Array(frames * one.length);
      for (let k = 0; k < frames; k++) out.set(one, k * one.length);
      return out;
    },
    clone: () => noiseShared(generator.clone()),
  };
}

/** Whose order of drawing is followed. */
export type NoiseOrder = "framezero" | "diffusers" | "original";

/** The noise of a Text2Video-Zero clip; only the latter two draw from `generator`. */
export function noiseSource(
  order: NoiseOrder,
  { seed, frameIds, generator = new Generator(seed) }: {
    readonly seed: number;
    readonly frameIds: readonly number[];
    readonly generator?: NormalSource;
  },
): NoiseSource {
  switch (order) {
    case "framezero":
      return noisePerFrame(seed, frameIds);
    case "diffusers":
      return noiseOfDiffusers(generator);
    case "original":
      return noiseOfOriginal(generator);
  }
}
