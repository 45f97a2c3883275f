/**
 * The mean of all tokens that share a slot, `y[b, c, m] = mean { x[b, c, n] : slots[b, n] = m }`;
 * 0 for slots that none has.
 *
 * No atomics: a first shader links the tokens of each slot in their order, so that sums are the same
 * on every run. Its work is the same for all channels.
 *
 * Source: `torch.scatter_reduce` with `reduce="mean"`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { formatShape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

interface Attributes {
  /** Number of slots. */
  readonly count: number;
}

/** WGSL: the end of a list. */
const NONE = "const NONE = 0xffffffffu;";

/** The kernel behind {@link scatterMean}. */
export const scatterMeanKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "scatter_mean",
  inputs: ["x", "slots"],
  output([x, slots], { count }) {
    const [rows, channels, tokens] = x!.shape;
    if (x!.shape.length !== 3 || formatShape(slots!.shape) !== formatShape([rows, tokens])) {
      throw new ShapeError(
        `scatter_mean: tokens [B, C, N] need slots [B, N], got ${formatShape(x!.shape)} and ` +
          formatShape(slots!.shape),
      );
    }
    if (slots!.dtype !== "i32") {
      throw new ShapeError(`scatter_mean: slots must be i32, got ${slots!.dtype}; use cast`);
    }
    return { shape: [rows, channels, count], dtype: x!.dtype };
  },
  launch({ inputs, output, attributes: { count }, dispatch, temporary }) {
    const [x, slots] = inputs as readonly Tensor[];
    const [rows, channels, tokens] = x.shape;
    const first = temporary([rows, count], "u32");
    const next = temporary([rows, tokens], "u32");
    dispatch({
      variant: "link",
      read: { slots: scalars(slots) },
      write: { head: scalars(first), next: scalars(next) },
      params: { lists: u32(rows * count), slotCount: u32(count), tokens: u32(tokens) },
      ...flatGrid(rows * count),
      declarations: () => NONE,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.lists) { return; }
        let base = i / p.slotCount * p.tokens;
        let slot = i32(i % p.slotCount);
        var last = NONE;
        head[i] = NONE;
        for (var n = 0u; n < p.tokens; n++) {
          if (slots[base + n] != slot) { continue; }
          if (last == NONE) { head[i] = n; } else { next[base + last] = n; }
          last = n;
        }
        if (last != NONE) { next[base + last] = NONE; }`,
    });
    dispatch({
      variant: "mean",
      read: { x: scalars(x), head: scalars(first), next: scalars(next) },
      write: { out: scalars(output) },
      params: {
        count: u32(output.size),
        slotCount: u32(count),
        channels: u32(channels),
        tokens: u32(tokens),
      },
      ...flatGrid(output.size),
      declarations: () => NONE,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let line = i / p.slotCount;
        let row = line / p.channels;
        var sum = 0.0;
        var members = 0.0;
        var n = head[row * p.slotCount + i % p.slotCount];
        while (n != NONE) {
          sum += f32(x[line * p.tokens + n]);
          members += 1.0;
          n = next[row * p.tokens + n];
        }
        out[i] = out_t(sum / max(members, 1.0));`,
    });
  },
  flops: ([x], { shape }) => sizeOf(x!.shape) + sizeOf(shape),
  reference([x, slots], [shape], { count }) {
    const [rows, channels, tokens] = shape!;
    const out = new Float64Array(rows * channels * count);
    for (let line = 0; line < rows * channels; line++) {
      const row = Math.floor(line / channels);
      for (let slot = 0; slot < count; slot++) {
        const members = Array.from({ length: tokens }, (_, n) => n)
          .filter((n) => slots![row * tokens + n] === slot);
        const sum = members.reduce((sum, n) => sum + x![line * tokens + n], 0);
        out[line * count + slot] = sum / Math.max(members.length, 1);
      }
    }
    return out;
  },
  cases: [
    scattering(1, 1, 1, 1, 1),
    scattering(2, 3, 10, 4, 3),
    scattering(1, 5, 70, 90, 7), // empty slots
    scattering(3, 4, 200, 65, 11),
    scattering(2, 8, 64, 64, 5), // nothing shared
  ],
});

/** A case whose tokens get slots by steps of `step`; another sequence in every row. */
function scattering(rows: number, channels: number, tokens: number, count: number, step: number) {
  const slots = Array.from(
    { length: rows * tokens },
    (_, i) => ((i % tokens) * step + Math.floor(i / tokens)) % count,
  );
  return {
    shapes: [[rows, channels, tokens], [rows, tokens]],
    dtypes: [null, "i32"] as const,
    values: [null, slots],
    attributes: { count },
  };
}

/**
 * The means of the tokens `[B, C, N]` that share a slot, `[B, C, count]`.
 *
 * @param slots Slot of each token of a row, i32 `[B, N]`; tokens of other slots are left out.
 * @throws {ShapeError} if shapes do not agree, or slots are not i32.
 */
export function scatterMean(x: Tensor, slots: Tensor, count: number): Tensor {
  return run(scatterMeanKernel, [x, slots], { count });
}
