/**
 * Token merging (Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion"): tokens that
 * are alike share one query, key and value in self-attention.
 *
 * In each cell of 2×2 tokens one is a destination, the rest are sources. Every source finds the
 * destination that it resembles most, by cosine similarity of the block's input; the sources with
 * the highest similarity are averaged into theirs. Attention then has fewer tokens, and its result
 * is copied to all tokens that were merged. As in Text2Video-Zero's code, every row matches its own
 * tokens, so that frames attend to the merged tokens of the anchor, and only blocks of full
 * resolution merge.
 *
 * @module
 */

import type { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  argmax,
  broadcastTo,
  concat,
  div,
  gather,
  indexSelect,
  matmul,
  max,
  mergeSlots,
  narrow,
  norm,
  scatterMean,
} from "../kernels/mod.ts";

/** How tokens are merged. */
export interface TokenMerging {
  /** Share of the tokens that are merged away; at most the sources, 3/4 of them. */
  readonly ratio: number;
  /** The tokens of a row in the order of {@link drawOrder}, i32 `[N]`: only such rows are merged. */
  readonly order: Tensor;
  /** How many of the order are sources. */
  readonly sources: number;
}

/** Sources of a grid of tokens: all but one in each whole cell of 2×2. */
export function sourcesOf([h, w]: readonly [number, number]): number {
  return h * w - (h >> 1) * (w >> 1);
}

/**
 * The tokens of a grid `h`×`w`: sources first, then the destinations, one drawn from each whole cell
 * of 2×2 tokens.
 */
export function drawOrder(
  [h, w]: readonly [number, number],
  random: Generator,
): Int32Array<ArrayBuffer> {
  const [rows, columns] = [h >> 1, w >> 1];
  const isDestination = new Uint8Array(h * w);
  if (rows * columns) {
    random.randint(0, 4, [rows * columns]).forEach((place, cell) => {
      const y = 2 * Math.floor(cell / columns) + (place >> 1);
      isDestination[y * w + 2 * (cell % columns) + (place & 1)] = 1;
    });
  }
  const tokens = [...isDestination.keys()];
  return Int32Array.from([
    ...tokens.filter((token) => !isDestination[token]),
    ...tokens.filter((token) => isDestination[token]),
  ]);
}

/** Bytes of the similarities that are in memory at once. */
const SIMILARITY_BYTES = 2 ** 25;

/** Which tokens of some rows are merged. */
export interface MatchedTokens {
  /** The means of the tokens that are merged, and the others: `[B, C, N] → [B, C, N − merged]`. */
  merge(tokens: Tensor): Tensor;
  /** What became of each token: `[B, C, N − merged] → [B, C, N]`. */
  unmerge(tokens: Tensor): Tensor;
}

/**
 * Finds the tokens to be merged in every row of `x` `[B, C, N]`.
 *
 * They are `⌊N · ratio⌋`, rounded down to a multiple of 4 so that what is left can be read as
 * vectors.
 *
 * @returns `null` where there is nothing to merge: no merging, or rows that are not of its grid.
 */
export function matchTokens(x: Tensor, merging?: TokenMerging): MatchedTokens | null {
  const [B, C, N] = x.shape;
  if (!merging || merging.order.size !== N) return null;
  const { ratio, order, sources } = merging;
  const merged = Math.min(Math.floor(N * ratio), sources) & ~3;
  if (!merged) return null;
  const slots = x.device.scope(() => {
    const unit = div(x, norm(x, [1], { keepdim: true }));
    const pick = (from: number, count: number) =>
      indexSelect(unit, 2, narrow(order, 0, from, count));
    const destinations = pick(sources, N - sources);
    const most = Math.max(1, Math.floor(SIMILARITY_BYTES / (destinations.bytes / C)));
    const scores: Tensor[] = [];
    const places: Tensor[] = [];
    for (let from = 0; from < sources; from += most) {
      const [score, place] = x.device.scope(() => {
        const some = pick(from, Math.min(most, sources - from));
        const similarity = matmul(some, destinations, { transposeA: true });
        return [max(similarity, [2]), argmax(similarity, 2)];
      });
      scores.push(score);
      places.push(place);
    }
    return mergeSlots(concat(scores, 1), concat(places, 1), order, merged);
  });
  return {
    merge: (tokens) => scatterMean(tokens, slots, N - merged),
    unmerge: (tokens) => gather(tokens, 2, broadcastTo(slots.reshape([B, 1, N]), [B, C, N])),
  };
}
