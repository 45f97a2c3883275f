/**
 * Twice the frame rate: a frame between every two.
 *
 * Mixing two finished frames, or their latents, shows both at once. So a frame between two is made
 * like any other, from what sets it apart: its camera stands half-way, and its noise is the middle
 * of theirs on the sphere on which normal noise lies (Shoemake, "Animating rotation with quaternion
 * curves", 1985). For two independent draws that is `(e₀ + e₁)/√2`, normal noise again, equally
 * like both. Then it is denoised with all others.
 *
 * @module
 */

import { noisePerFrame, type NoiseSource } from "./noise.ts";

/** Frame numbers with the middle of every two neighbours between them: n become 2n − 1. */
export function withMiddles(frameIds: readonly number[]): number[] {
  return frameIds.flatMap((id, i) => i === 0 ? [id] : [(frameIds[i - 1] + id) / 2, id]);
}

/**
 * The noise of frames and of the middles between them: the frames draw what they would without
 * middles.
 *
 * @param frameIds The numbers without the middles; positions count with them.
 */
export function noiseWithMiddles(seed: number, frameIds: readonly number[]): NoiseSource {
  const source = () => noisePerFrame(seed, frameIds);
  // A middle draws what its neighbours draw, at its own pace.
  return middlesAmong(source(), source(), source());
}

function middlesAmong(own: NoiseSource, before: NoiseSource, behind: NoiseSource): NoiseSource {
  return {
    initial: (shape) => own.initial(shape),
    frames(positions, shape) {
      const one = [1, ...shape.slice(1)];
      const draws = positions.map((position) => {
        if (position % 2 === 0) return own.frames([position / 2], one);
        const [a, b] = [(position - 1) / 2, (position + 1) / 2];
        return middle(before.frames([a], one), behind.frames([b], one));
      });
      return Float32Array.from(draws.flatMap((draw) => [...draw]));
    },
    clone: () => middlesAmong(own.clone(), before.clone(), behind.clone()),
  };
}

/** The middle of two independent draws of normal noise. */
function middle(
  a: Float32Array<ArrayBuffer>,
  b: Float32Array<ArrayBuffer>,
): Float32Array<ArrayBuffer> {
  return a.map((value, i) => (value + b[i]) * Math.SQRT1_2);
}
