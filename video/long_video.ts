/**
 * Long videos in chunks, as Text2Video-Zero's own code makes them: every chunk begins with frame 0,
 * the anchor, whose picture is dropped, and draws its noise from the same seed. In the first chunk
 * the anchor is followed by a second frame 0, so that the anchor itself is never shown.
 *
 * framezero has no need of chunks: it denoises any number of frames in the memory of a few,
 * computes the anchor once instead of once a chunk, and a frame depends on its number and the seed
 * alone, not on those it is grouped with. Chunks are here to compare with that code, and for videos
 * whose first frames shall be there before the last ones are begun.
 *
 * ```ts
 * const clip = inChunks(24, 8, (frameIds) =>
 *   textToVideo(sd, "a horse on a street", { frameIds, compat: "original" }));
 * ```
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { concat, narrow } from "../kernels/mod.ts";
import type { Clip, ClipStep } from "./clip.ts";
import type { Frame } from "./frame.ts";
import { checkNumber } from "./generation.ts";

/**
 * The frame numbers of each chunk: 0, then the next `chunkSize` − 1 of 0 … `count` − 1.
 *
 * @throws {InputError} if there are no frames, or a chunk has no place besides the anchor.
 */
export function chunkFrameIds(count: number, chunkSize: number): number[][] {
  checkNumber("count", count, { least: 1, whole: true });
  checkNumber("chunkSize", chunkSize, { least: 2, whole: true });
  const n = chunkSize - 1;
  return Array.from({ length: Math.ceil(count / n) }, (_, chunk) => {
    const start = chunk * n;
    const length = Math.min(n, count - start);
    return [0, ...Array.from({ length }, (_, i) => start + i)];
  });
}

/**
 * A clip of `count` frames, made chunk by chunk. Its frames can be read once: what a chunk holds is
 * freed when its last frame has been read, so that memory does not grow with their number, unless
 * all steps, or the latents, are asked for before.
 *
 * @param chunkSize Frames of a chunk, the anchor included.
 * @param make The clip of the given frame numbers. Called for the first chunk at once, for the
 * others when their turn comes; all must be of one size.
 * @throws {InputError} if a number cannot be used; whatever `make` throws.
 */
export function inChunks(
  count: number,
  chunkSize: number,
  make: (frameIds: readonly number[], chunk: number) => Clip,
): Clip {
  const frameIds = chunkFrameIds(count, chunkSize);
  const chunks: Clip[] = [];
  const chunk = (i: number): Clip => chunks[i] ??= make(frameIds[i], i);
  const { width, height, settings } = chunk(0);
  const shown = frameIds.flatMap((ids) => ids.slice(1));
  let joined: Tensor | null = null;
  let read = false;

  async function* steps(): AsyncGenerator<ClipStep, void> {
    let before = 0;
    for (let i = 0; i < frameIds.length; i++) {
      let own = 0;
      for await (const step of chunk(i).steps) {
        own = step.total;
        const total = before + (frameIds.length - i) * own;
        yield { ...step, step: before + step.step, total };
      }
      before += own;
    }
  }

  async function* frames(): AsyncGenerator<Frame, void> {
    refuseAgain();
    read = true;
    for (let i = 0; i < frameIds.length; i++) {
      let place = 0;
      for await (const frame of chunk(i)) {
        if (place++ > 0) yield frame;
      }
      chunk(i).dispose();
    }
  }

  function refuseAgain(): void {
    if (!read) return;
    throw new InputError(
      "a clip in chunks frees its latents while its frames are read, which can be done once; " +
        "keep the frames, or make the clip again",
    );
  }

  return {
    width,
    height,
    frameIds: shown,
    settings: { ...settings, frameIds: shown, chunkSize },
    get warnings() {
      return [...new Set(chunks.flatMap((clip) => clip.warnings))];
    },
    steps: { [Symbol.asyncIterator]: steps },
    async latents() {
      if (joined) return joined;
      refuseAgain();
      const parts: Tensor[] = [];
      for (const i of frameIds.keys()) parts.push(await chunk(i).latents());
      return joined = parts[0].device.scope(() =>
        concat(parts.map((part) => narrow(part, 0, 1, part.shape[0] - 1)), 0)
      ).keep();
    },
    [Symbol.asyncIterator]: frames,
    dispose() {
      for (const clip of chunks) clip.dispose();
      joined?.dispose();
    },
    [Symbol.dispose]() {
      this.dispose();
    },
  };
}
