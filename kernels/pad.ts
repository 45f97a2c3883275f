/**
 * Padding, `out[i] = x[i − before]` where that lies inside. Outside, `constant` gives a value,
 * `replicate` the nearest element, `reflect` the mirror image about the edge element.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { type Shape, sizeOf, stridesOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid, listParams, unravel } from "./wgsl.ts";

/** What stands outside the tensor. */
export type PadMode = "constant" | "reflect" | "replicate";

/** Settings of the padding kernel. */
export interface Pad {
  /** Elements before the first and after the last index of each axis; negative ones are cut off. */
  readonly pads: readonly (readonly [number, number])[];
  /** What stands outside. */
  readonly mode: PadMode;
  /** Value outside, for `constant`. */
  readonly value: number;
}

/** Axes with the same extents in all, where neighbours that nothing is added to became one. */
function mergeUnpadded(shape: Shape, { pads }: Pad): { extent: number; pads: readonly number[] }[] {
  const axes: { extent: number; pads: readonly number[] }[] = [];
  shape.forEach((extent, axis) => {
    const last = axes.at(-1);
    const plain = (pair: readonly number[]) => pair[0] === 0 && pair[1] === 0;
    if (last && plain(last.pads) && plain(pads[axis])) last.extent *= extent;
    else axes.push({ extent, pads: pads[axis] });
  });
  return axes;
}

/** WGSL that brings index `j` of axis `k`, of extent `p.n<k>`, inside. */
const INSIDE: Record<PadMode, (k: number) => string> = {
  constant: (k) => `inside = inside && j${k} >= 0 && j${k} < p.n${k};`,
  replicate: (k) => `j${k} = clamp(j${k}, 0, p.n${k} - 1);`,
  reflect: (k) => `j${k} = p.n${k} - 1 - abs(p.n${k} - 1 - abs(j${k}));`,
};

/** The kernel behind {@link pad}. */
export const padKernel: Kernel<Pad> = defineKernel({
  name: "pad",
  inputs: ["x"],
  output([x], { pads, mode }) {
    const { shape, dtype } = x!;
    const whole = pads.length === shape.length && pads.flat().every(Number.isInteger);
    const padded = shape.map((extent, axis) => extent + pads[axis]?.[0] + pads[axis]?.[1]);
    if (!whole || padded.some((extent) => extent < 1)) {
      throw new ShapeError(
        `pad: takes whole numbers (left, right) for at most each axis and must leave an element; ` +
          `got [${pads.map((pair) => `(${pair})`)}] for shape [${shape}]`,
      );
    }
    if (mode === "reflect" && pads.some((pair, axis) => Math.max(...pair) >= shape[axis])) {
      throw new ShapeError(
        `pad: reflect must add less than the extent on each side, got ` +
          `[${pads.map((pair) => `(${pair})`)}] for shape [${shape}]; use replicate`,
      );
    }
    return { shape: padded, dtype };
  },
  launch({ inputs: [x], output, attributes, dispatch }) {
    const axes = mergeUnpadded(x!.shape, attributes);
    const extents = axes.map(({ extent, pads }) => extent + pads[0] + pads[1]);
    const { mode, value } = attributes;
    const count = output.size;
    dispatch({
      variant: `${mode},${axes.length}`,
      read: { x: scalars(x!) },
      write: { out: scalars(output) },
      params: {
        count: u32(count),
        value: f32(value),
        ...listParams("e", extents),
        ...listParams("n", axes.map(({ extent }) => extent), "i32"),
        ...listParams("b", axes.map(({ pads }) => pads[0]), "i32"),
      },
      ...flatGrid(count),
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        ${unravel(axes.length)}
        var inside = true;
        var element = 0;
        ${
        axes.map((_, k) => `
        var j${k} = i32(i${k}) - p.b${k};
        ${INSIDE[mode](k)}
        element = element * p.n${k} + j${k};`).join("")
      }
        if (inside) { out[i] = x[element]; } else { out[i] = out_t(p.value); }`,
    });
  },
  flops: () => 0,
  reference([x], [shape], { pads, mode, value }, output) {
    const steps = stridesOf(output);
    return Float64Array.from({ length: sizeOf(output) }, (_, i) => {
      let from = 0;
      for (let axis = 0; axis < output.length; axis++) {
        const n = shape![axis];
        let j = Math.floor(i / steps[axis]) % output[axis] - pads[axis][0];
        if (j < 0 || j >= n) {
          if (mode === "constant") return Math.fround(value);
          if (mode === "replicate") j = j < 0 ? 0 : n - 1;
          else j = j < 0 ? -j : 2 * (n - 1) - j;
        }
        from = from * n + j;
      }
      return x![from];
    });
  },
  cases: [
    { shapes: [[1]], attributes: { pads: [[0, 0]], mode: "constant", value: 0 } },
    { shapes: [[1]], attributes: { pads: [[2, 1]], mode: "replicate", value: 0 } },
    { shapes: [[7]], attributes: { pads: [[6, 6]], mode: "reflect", value: 0 } },
    {
      shapes: [[2, 3, 8, 8]],
      attributes: { pads: [[0, 0], [0, 0], [0, 1], [0, 1]], mode: "constant", value: 0 },
    },
    {
      shapes: [[2, 3, 5]],
      attributes: { pads: [[1, 0], [0, 0], [-2, 3]], mode: "constant", value: 0.5 },
    },
    {
      shapes: [[2, 3, 4, 5]],
      attributes: { pads: [[0, 0], [0, 0], [1, 1], [1, 2]], mode: "reflect", value: 0 },
    },
    {
      shapes: [[2, 3, 4, 5]],
      attributes: { pads: [[0, 0], [0, 0], [4, 0], [0, 7]], mode: "replicate", value: 0 },
    },
  ],
});

/**
 * `x` with borders. `pads` is `[left, right, top, bottom, …]`, the last axis first, as in PyTorch;
 * axes that it does not reach stay as they are, and negative numbers cut off.
 *
 * @throws {ShapeError} if `pads` is of odd length or too long, nothing is left, or `reflect` would
 * have to reflect twice.
 */
export function pad(
  x: Tensor,
  pads: readonly number[],
  { mode = "constant", value = 0 }: { mode?: PadMode; value?: number } = {},
): Tensor {
  const rank = x.shape.length;
  if (pads.length % 2 || pads.length > 2 * rank) {
    throw new ShapeError(
      `pad: takes two numbers for each padded axis, the last axis first, ` +
        `got [${pads}] for shape [${x.shape}]`,
    );
  }
  const pairs = x.shape.map((_, axis): [number, number] => {
    const k = 2 * (rank - 1 - axis);
    return [pads[k] ?? 0, pads[k + 1] ?? 0];
  });
  return run(padKernel, [x], { pads: pairs, mode, value });
}
