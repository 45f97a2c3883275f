/**
 * Prompts that change over a clip, and guidance that does: values at key frames, and what lies
 * between them. Texts are interpolated on the sphere, token by token: between two directions the
 * straight line would be shorter than either, and text of small norm says little.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, concat, mul, narrow } from "../kernels/mod.ts";
import { checkNumber } from "./generation.ts";
import { guidanceRows } from "./guidance.ts";

/** Values by the number of the frame from which on they are in force. */
export type AtFrames<T> = Readonly<Record<number, T>>;

/** What changes over the frames of a clip. */
export interface ChangingText {
  /** Prompts of later frames, by frame number; texts between them are interpolated. */
  prompts?: AtFrames<string>;
  /**
   * Guidance of later frames, by frame number; linear between them. As with `guidanceScale`, frames
   * at 1 and below use the prompt alone.
   */
  guidanceScales?: AtFrames<number>;
}

/** Texts and guidance of a clip. */
export interface Course {
  /** Prompts of the key frames behind the first. */
  readonly later: readonly string[];
  /** The strongest guidance of all frames: decides which rows are needed. */
  readonly guidanceScale: number;
  /** Guidance of a frame, 1 or more, by its place in the clip; absent where all have one. */
  readonly guidanceAt?: (position: number) => number;
  /**
   * Text of a frame, by its place in the clip; absent where all have one.
   *
   * @param words Hidden states of the negative prompt if guided, the prompt, and the later ones.
   */
  textAt(words: Tensor): Promise<((position: number) => Tensor) | undefined>;
}

/**
 * The course of texts and guidance over a clip.
 *
 * @throws {InputError} if a key frame is none of the clip's, a prompt is empty, or a weight none.
 */
export function courseOf(
  { prompt, guidanceScale }: { readonly prompt: string; readonly guidanceScale: number },
  { prompts = {}, guidanceScales = {} }: ChangingText,
  { frameIds, clipFrames }: { readonly frameIds: readonly number[]; readonly clipFrames: number },
): Course {
  const texts = keyFrames("prompts", prompt, prompts, clipFrames);
  const scales = keyFrames("guidanceScales", guidanceScale, guidanceScales, clipFrames);
  for (const text of texts.values) {
    if (typeof text !== "string" || !text.trim()) {
      throw new InputError("prompts: a prompt is empty; say what to show from that frame on");
    }
  }
  for (const scale of scales.values) checkNumber("guidanceScales", scale, { least: 0 });
  const strongest = Math.max(...scales.values);
  const shared = guidanceRows({ guidanceScale: strongest }).length - 1;
  const later = texts.values.slice(1);
  return {
    later,
    guidanceScale: strongest,
    ...(scales.values.length > 1 && {
      guidanceAt(position: number) {
        const { from, to, share } = between(scales.frames, frameIds[position]);
        const scale = (1 - share) * scales.values[from] + share * scales.values[to];
        // At 1 the negative prompt has weight 0, whose row such a frame has beside others.
        return Math.max(1, scale);
      },
    }),
    async textAt(words) {
      if (!later.length) return undefined;
      const at = await travel(words, shared, texts.frames);
      return (position) => at(frameIds[position]);
    },
  };
}

/** A value between two key frames: `1 − share` of the one, `share` of the other. */
interface Between {
  /** Place of the earlier key frame among them. */
  readonly from: number;
  /** Place of the later one; the same behind the last. */
  readonly to: number;
  /** How far it is to the later one, 0 … 1. */
  readonly share: number;
}

/**
 * The key frames in order, the first frame among them.
 *
 * @param name What messages call the option.
 * @param base In force from the first frame on.
 * @throws {InputError} if a key frame is none of the clip's.
 */
function keyFrames<T>(
  name: string,
  base: T,
  at: AtFrames<T>,
  clipFrames: number,
): { readonly frames: readonly number[]; readonly values: readonly T[] } {
  const byFrame = new Map<number, T>([[0, base]]);
  for (const [text, value] of Object.entries<T>(at)) {
    const frame = Number(text);
    if (!Number.isInteger(frame) || frame < 0 || frame >= clipFrames) {
      throw new InputError(
        `${name}: there is no frame ${text}, the clip has frames 0 to ${
          clipFrames - 1
        }; name one ` +
          "of these",
      );
    }
    byFrame.set(frame, value);
  }
  const frames = [...byFrame.keys()].sort((a, b) => a - b);
  return { frames, values: frames.map((frame) => byFrame.get(frame) as T) };
}

/** Where a frame lies among key frames. */
function between(frames: readonly number[], frame: number): Between {
  const after = frames.findIndex((key) => key > frame);
  if (after < 0) return { from: frames.length - 1, to: frames.length - 1, share: 0 };
  const from = after - 1;
  return { from, to: after, share: (frame - frames[from]) / (frames[after] - frames[from]) };
}

/**
 * The texts of a clip whose prompt changes.
 *
 * @param hiddenStates `[rows, tokens, width]`: rows that all frames share (the negative prompt),
 * then one for each key frame.
 * @param shared How many they share.
 * @returns For a frame, its rows `[shared + 1, tokens, width]`; call it inside a scope.
 */
async function travel(
  hiddenStates: Tensor,
  shared: number,
  frames: readonly number[],
): Promise<(frame: number) => Tensor> {
  const [, tokens, width] = hiddenStates.shape;
  const data = await hiddenStates.data();
  const row = (key: number) => narrow(hiddenStates, 0, shared + key, 1);
  const vector = (key: number, token: number) => {
    const at = ((shared + key) * tokens + token) * width;
    return data.subarray(at, at + width);
  };
  return (frame) => {
    const { from, to, share } = between(frames, frame);
    const weights = Array.from(
      { length: tokens },
      (_, token) => slerpWeights(vector(from, token), vector(to, token), share),
    );
    const weighed = (key: number, which: 0 | 1) => {
      const values = Float32Array.from(weights, (pair) => pair[which]);
      return mul(row(key), hiddenStates.device.tensor(values, [1, tokens, 1]));
    };
    const text = share === 0 ? row(from) : add(weighed(from, 0), weighed(to, 1));
    return shared ? concat([narrow(hiddenStates, 0, 0, shared), text], 0) : text;
  };
}

/**
 * Weights of spherical interpolation (Shoemake 1985): `sin((1−u)θ)/sin θ` and `sin(uθ)/sin θ`, θ the
 * angle between the vectors; linear ones where they are nearly parallel.
 */
export function slerpWeights(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  share: number,
): readonly [number, number] {
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  const cosine = dot / Math.sqrt(aa * bb);
  if (!(Math.abs(cosine) < 0.9995)) return [1 - share, share];
  const angle = Math.acos(cosine);
  return [Math.sin((1 - share) * angle), Math.sin(share * angle)]
    .map((sine) => sine / Math.sin(angle)) as [number, number];
}
