/**
 * Long videos in parts.
 *
 * In windows a long clip's first frames are finished before its last ones are begun; the result is
 * the same as without, since a frame depends on its number, the seed and the anchor alone.
 *
 * In chunks Text2Video-Zero's own code makes them: every chunk begins with frame 0,
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
import { type Clip, type ClipEvent, type ClipStep, eventsOf } from "./clip.ts";
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
 * The frame numbers of each window: the first `windowSize`, then 0 and the next `windowSize` − 1,
 * whose 0 is not shown again.
 *
 * @throws {InputError} if there are no frames, or a window has no place besides the anchor.
 */
export function windowFrameIds(count: number, windowSize: number): number[][] {
  checkNumber("count", count, { least: 1, whole: true });
  checkNumber("windowSize", windowSize, { least: 2, whole: true });
  const first = Array.from({ length: Math.min(count, windowSize) }, (_, i) => i);
  const n = windowSize - 1;
  const later = Array.from({ length: Math.ceil((count - first.length) / n) }, (_, i) => {
    const start = windowSize + i * n;
    const length = Math.min(n, count - start);
    return [0, ...Array.from({ length }, (_, k) => start + k)];
  });
  return [first, ...later];
}

/** Makes the clip of some frame numbers, a part of a longer one. */
export type PartMaker = (frameIds: readonly number[], part: number) => Clip;

/**
 * A clip of `count` frames, made chunk by chunk as the original code makes it. Its frames can be
 * read once: what a chunk holds is freed when its last frame has been read, so that memory does not
 * grow with their number, unless all steps, or the latents, are asked for before.
 *
 * @param chunkSize Frames of a chunk, the anchor included.
 * @param make The clip of the given frame numbers. Called for the first chunk at once, for the others
 * when their turn comes; all must be of one size.
 * @throws {InputError} if a number cannot be used; whatever `make` throws.
 */
export function inChunks(count: number, chunkSize: number, make: PartMaker): Clip {
  const parts = chunkFrameIds(count, chunkSize).map((frameIds) => ({ frameIds, hidden: 1 }));
  return chained(parts, make, { chunkSize });
}

/**
 * The same clip as if all frames were made at once, but in windows: the first frames are finished
 * before the last ones are begun. Each window computes the anchor again, and goes through the maps of
 * controls from the first one, so these must not be a generator. Frames can be read once.
 *
 * @param make The clip of the given frame numbers; told the number of all (`clipFrames`), and
 * drawing noise for each frame from its number.
 * @throws {InputError} if a number cannot be used; whatever `make` throws.
 */
export function inWindows(count: number, windowSize: number, make: PartMaker): Clip {
  const parts = windowFrameIds(count, windowSize)
    .map((frameIds, i) => ({ frameIds, hidden: i ? 1 : 0 }));
  return chained(parts, make, {});
}

/** A clip of several that follow each other, without the first `hidden` frames of each. */
function chained(
  parts: readonly { readonly frameIds: readonly number[]; readonly hidden: number }[],
  make: PartMaker,
  settings: Readonly<Record<string, unknown>>,
): Clip {
  const clips = new Map<number, Clip>();
  const warnings = new Set<string>();
  const { width, height, settings: own } = part(0);
  const shown = parts.flatMap(({ frameIds, hidden }) => frameIds.slice(hidden));
  let joined: Tensor | null = null;
  let read = false;

  function part(i: number): Clip {
    const clip = clips.get(i) ?? make(parts[i].frameIds, i);
    clips.set(i, clip);
    return clip;
  }

  function warned(): string[] {
    for (const clip of clips.values()) clip.warnings.forEach((warning) => warnings.add(warning));
    return [...warnings];
  }

  async function* stepsOf(i: number, before: number): AsyncGenerator<ClipStep, number> {
    let made = before;
    for await (const step of part(i).steps) {
      made = before + step.total;
      const total = before + (parts.length - i) * step.total;
      yield { ...step, step: before + step.step, total };
    }
    return made;
  }

  async function* steps(): AsyncGenerator<ClipStep, void> {
    refuseAgain();
    let before = 0;
    for (const i of parts.keys()) before = yield* stepsOf(i, before);
  }

  async function* framesOf(i: number): AsyncGenerator<Frame, void> {
    let place = 0;
    for await (const frame of part(i)) {
      if (place++ >= parts[i].hidden) yield frame;
    }
    warned();
    part(i).dispose();
    clips.delete(i);
  }

  async function* frames(): AsyncGenerator<Frame, void> {
    refuseAgain();
    read = true;
    for (const i of parts.keys()) yield* framesOf(i);
  }

  async function* events(): AsyncGenerator<ClipEvent, void> {
    refuseAgain();
    read = true;
    let before = 0;
    for (const i of parts.keys()) before = yield* eventsOf(stepsOf(i, before), framesOf(i));
  }

  function refuseAgain(): void {
    if (!read) return;
    throw new InputError(
      "a clip in parts frees its latents while its frames are read, which can be done once; keep " +
        "the frames, or make the clip again",
    );
  }

  return {
    width,
    height,
    frameIds: shown,
    settings: { ...own, frameIds: shown, ...settings },
    get warnings() {
      return warned();
    },
    steps: { [Symbol.asyncIterator]: steps },
    events: { [Symbol.asyncIterator]: events },
    async latents() {
      if (joined) return joined;
      refuseAgain();
      const all: Tensor[] = [];
      for (const i of parts.keys()) all.push(await part(i).latents());
      return joined = all[0].device.scope(() =>
        concat(
          all.map((tensor, i) => {
            const { hidden } = parts[i];
            return narrow(tensor, 0, hidden, tensor.shape[0] - hidden);
          }),
          0,
        )
      ).keep();
    },
    [Symbol.asyncIterator]: frames,
    dispose() {
      for (const clip of clips.values()) clip.dispose();
      joined?.dispose();
    },
    [Symbol.dispose]() {
      this.dispose();
    },
  };
}
