/**
 * Where tokens go when the sources that resemble a destination most are merged into it.
 *
 * Of S sources, those with the `merged` highest scores share the slot of their destination; the
 * others keep slots of their own, in falling order of their scores, before the destinations.
 *
 * Source: the bipartite matching of Bolya and Hoffman 2023, "Token Merging for Fast Stable
 * Diffusion".
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { formatShape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

interface Attributes {
  /** Sources that are merged in each row. */
  readonly merged: number;
}

/** The kernel behind {@link mergeSlots}. */
export const mergeSlotsKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "merge_slots",
  inputs: ["score", "place", "order"],
  output([score, place, order], { merged }) {
    const [rows, sources] = score!.shape;
    const fits = score!.shape.length === 2 && order!.shape.length === 1 &&
      formatShape(place!.shape) === formatShape(score!.shape) && order!.shape[0] > sources &&
      place!.dtype === "i32" && order!.dtype === "i32";
    if (!fits) {
      throw new ShapeError(
        `merge_slots: scores and places (i32) must have shape [rows, sources] and the order (i32) ` +
          `one axis with more tokens than sources, got ${formatShape(score!.shape)}, ` +
          `${formatShape(place!.shape)} and ${formatShape(order!.shape)}`,
      );
    }
    if (!(Number.isInteger(merged) && merged >= 0 && merged <= sources)) {
      throw new ShapeError(
        `merge_slots: of ${sources} sources 0 to ${sources} can be merged, got ${merged}`,
      );
    }
    return { shape: [rows, order!.shape[0]], dtype: "i32" };
  },
  launch({ inputs, output, attributes: { merged }, dispatch }) {
    const [score, place, order] = inputs as readonly Tensor[];
    dispatch({
      variant: "",
      read: { score: scalars(score), place: scalars(place), order: scalars(order) },
      write: { out: scalars(output) },
      params: {
        count: u32(output.size),
        tokens: u32(order.size),
        sources: u32(score.shape[1]),
        merged: u32(merged),
      },
      ...flatGrid(output.size),
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let row = i / p.tokens;
        let k = i % p.tokens;
        let kept = p.sources - p.merged;
        var slot = k - p.merged;
        if (k < p.sources) {
          let first = row * p.sources;
          let own = score[first + k];
          var rank = 0u;
          for (var j = 0u; j < p.sources; j++) {
            let other = score[first + j];
            rank += select(0u, 1u, other > own || (other == own && j < k));
          }
          slot = rank - p.merged;
          if (rank < p.merged) { slot = kept + u32(place[first + k]); }
        }
        out[row * p.tokens + u32(order[k])] = i32(slot);`,
    });
  },
  flops: ([score], { shape }) => 2 * sizeOf(score!.shape) * score!.shape[1] + sizeOf(shape),
  reference([score, place, order], [shape], { merged }) {
    const [rows, sources] = shape!;
    const tokens = order!.length;
    const out = new Float64Array(rows * tokens);
    for (let row = 0; row < rows; row++) {
      const own = (k: number) => score![row * sources + k];
      const falling = Array.from({ length: sources }, (_, k) => k)
        .sort((a, b) => own(b) - own(a) || a - b);
      const slots = new Map(falling.map((k, rank) => [
        k,
        rank < merged ? sources - merged + place![row * sources + k] : rank - merged,
      ]));
      order!.forEach((token, k) => out[row * tokens + token] = slots.get(k) ?? k - merged);
    }
    return out;
  },
  cases: [
    matching(1, [1, 0], [0], 1),
    matching(1, [2, 0, 1, 3], [0, 0, 0], 2),
    matching(2, [7, 1, 4, 0, 2, 3, 6, 5, 9, 8], [2, 0, 1, 1, 2, 0, 0], 0),
    matching(3, [7, 1, 4, 0, 2, 3, 6, 5, 9, 8], [2, 0, 1, 1, 2, 0, 0], 4),
    matching(2, Array.from({ length: 190 }, (_, i) => (77 * i) % 190), [3, 0, 9], 100),
    // Equal scores are taken in order.
    { ...matching(1, [3, 2, 1, 0], [0, 0, 0], 1), values: [[5, 5, 5], [0, 0, 0], [3, 2, 1, 0]] },
  ],
  tolerance: { atol: 0, rtol: 0 },
});

/** A case: the last tokens of the order are destinations, all that `places` name among them. */
function matching(
  rows: number,
  order: readonly number[],
  places: readonly number[],
  merged: number,
) {
  const sources = order.length - Math.max(...places) - 1;
  const place = Array.from({ length: rows * sources }, (_, i) => places[i % places.length]);
  return {
    shapes: [[rows, sources], [rows, sources], [order.length]],
    dtypes: [null, "i32", "i32"] as const,
    values: [null, place, order],
    attributes: { merged },
  };
}

/**
 * The slot of every token, i32 `[B, N]`, in sequences of `N − merged` tokens.
 *
 * @param score How much each source resembles its destination, `[B, S]`.
 * @param place Which destination that is, i32 `[B, S]`.
 * @param order The tokens, i32 `[N]`: S sources, then the destinations.
 * @throws {ShapeError} if shapes do not agree, or more are to be merged than there are sources.
 */
export function mergeSlots(score: Tensor, place: Tensor, order: Tensor, merged: number): Tensor {
  return run(mergeSlotsKernel, [score, place, order], { merged });
}
