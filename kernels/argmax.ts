/**
 * The place of the largest element along an axis, or in the whole tensor.
 *
 * NaN counts as the largest; of equals the first is taken.
 *
 * Source: `torch.argmax`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  isShared,
  reducedAxes,
  reducedShape,
  referenceRows,
  rowsOf,
  walkFunction,
  walkParams,
} from "./rows.ts";
import { FLAT_INDEX, flatGrid, foldGroups, IS_NAN, laneTypes, treeFold } from "./wgsl.ts";

interface Attributes {
  /** Axis to search along; `null`: everywhere. */
  readonly axis: number | null;
  readonly keepdim: boolean;
}

const axesOf = ({ axis }: Attributes) => axis === null ? null : [axis];

/** A place that is none: greater than all others, so that it loses every tie. */
const NOWHERE = "0xffffffffu";

/** The kernel behind {@link argmax}. */
export const argmaxKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "argmax",
  inputs: ["x"],
  output([x], attributes) {
    if (!x) throw new ShapeError("argmax: needs a tensor");
    const gone = reducedAxes("argmax", x.shape, axesOf(attributes));
    return { shape: reducedShape(x.shape, gone, attributes.keepdim), dtype: "i32" };
  },
  launch({ inputs, output, attributes, dispatch }) {
    const x = inputs[0] as Tensor;
    const rows = rowsOf(x.shape, reducedAxes("argmax", x.shape, axesOf(attributes)));
    const shared = isShared(rows, output.size);
    const grid = shared
      ? { workgroup: [64, 1, 1] as const, workgroups: foldGroups(output.size) }
      : flatGrid(output.size);
    dispatch({
      variant: `${shared} ${rows.extents.length}`,
      read: { x: scalars(x) },
      write: { out: scalars(output) },
      params: {
        count: u32(output.size),
        length: u32(rows.length),
        lowest: f32(-Infinity),
        ...walkParams(rows),
      },
      ...grid,
      declarations: () => `
        ${laneTypes(1)} ${IS_NAN} ${walkFunction(rows)}
        struct Best { value: f32, place: u32 }
        var<workgroup> bests: array<Best, 64>;
        fn better(a: Best, b: Best) -> Best {
          let greater = b.value > a.value || (isNan(b.value) && !isNan(a.value));
          let less = a.value > b.value || (isNan(a.value) && !isNan(b.value));
          if (greater || (!less && b.place < a.place)) { return b; }
          return a;
        }`,
      main: () => `
        ${shared ? "let i = wg.y * grid.x + wg.x;" : FLAT_INDEX}
        if (i >= p.count) { return; }
        var best = Best(p.lowest, ${NOWHERE});
        for (var r = ${shared ? "lane" : "0u"}; r < p.length; r += ${shared ? 64 : 1}u) {
          best = better(best, Best(f32(x[element(i * p.length + r)]), r));
        }
        ${
        shared
          ? `bests[lane] = best;
            ${treeFold("bests", (a, b) => `better(${a}, ${b})`)}
            if (lane == 0u) { out[i] = out_t(bests[0].place); }`
          : "out[i] = out_t(best.place);"
      }`,
    });
  },
  flops: ([x]) => sizeOf(x?.shape ?? []),
  reference: ([x], [shape], attributes) =>
    Float64Array.from(
      referenceRows(x!, shape!, reducedAxes("argmax", shape!, axesOf(attributes))),
      (values) => values.indexOf(values.reduce((a, b) => Math.max(a, b))),
    ),
  cases: [
    { shapes: [[]], attributes: { axis: null, keepdim: false } },
    { shapes: [[3, 5, 7, 4]], attributes: { axis: -1, keepdim: false } },
    { shapes: [[3, 5, 7, 4]], attributes: { axis: 1, keepdim: true } },
    { shapes: [[3, 5, 7, 4]], attributes: { axis: null, keepdim: false } },
    { shapes: [[2, 77]], attributes: { axis: 1, keepdim: false } },
    {
      shapes: [[200]],
      attributes: { axis: 0, keepdim: false },
      values: [Array.from({ length: 200 }, (_, i) => i % 70)],
    },
    {
      shapes: [[2, 3]],
      attributes: { axis: 1, keepdim: false },
      values: [[-Infinity, -Infinity, -Infinity, 1, 2, 2]],
    },
  ],
  tolerance: { atol: 0, rtol: 0 },
});

/**
 * The index of the largest element along `axis`, or in the flattened tensor if it is `null`; i32.
 *
 * @throws {ShapeError} if the axis does not exist.
 */
export function argmax(
  x: Tensor,
  axis: number | null = null,
  { keepdim = false }: { keepdim?: boolean } = {},
): Tensor {
  return run(argmaxKernel, [x], { axis, keepdim });
}
