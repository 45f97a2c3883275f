/**
 * The last stage of Canny's edge detector: a weak pixel is part of an edge if a chain of weak
 * pixels, each next to the one before it or diagonal to it, leads to a strong one.
 *
 * Such chains may wind through the whole picture, so they are not followed: they are components of
 * a graph, which a union-find over all pixels joins in one pass. All strong pixels are one node of
 * it, number 0. A node points to one of a lower number, or to itself if it is a root. Two pixels
 * are joined by lowering the higher of their roots to the other with an atomic minimum; since nodes
 * are only ever lowered, that ends, and who comes first does not show in the result.
 *
 * Source: Canny 1986; the joining as in Playne and Hawick 2018, "A New Algorithm for Parallel
 * Connected-Component Labelling on GPUs".
 *
 * @module
 */

import { defineKernel, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { checkPlane } from "./edges.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

type NoAttributes = Readonly<Record<string, never>>;

/** The kernel behind {@link hysteresis}. */
export const hysteresisKernel: Kernel<NoAttributes> = defineKernel<NoAttributes>({
  name: "hysteresis",
  inputs: ["candidates"],
  output([candidates]) {
    checkPlane("hysteresis", candidates!);
    return { shape: candidates!.shape, dtype: "u32" };
  },
  launch({ inputs, output, dispatch, temporary }) {
    const candidates = scalars(inputs[0]!);
    // Pixel i is node i + 1.
    const parent = temporary([output.size + 1], "u32");
    dispatch({
      variant: "begin",
      read: { candidates },
      write: { parent: scalars(parent) },
      params: { count: u32(parent.size) },
      ...flatGrid(parent.size),
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        parent[i] = select(i, 0u, i > 0u && candidates[max(i, 1u) - 1u] == 2u);`,
    });
    dispatch({
      variant: "join",
      read: { candidates },
      write: { parent: { tensor: parent, type: "atomic<u32>" } },
      params: { count: u32(output.size), width: u32(output.shape[1]) },
      ...flatGrid(output.size),
      declarations: () => `
        fn rootOf(node: u32) -> u32 {
          var k = node;
          loop {
            let up = atomicLoad(&parent[k]);
            if (up == k) { break; }
            k = up;
          }
          return k;
        }
        fn join(one: u32, other: u32) {
          var a = rootOf(one);
          var b = rootOf(other);
          loop {
            if (a == b) { break; }
            let high = max(a, b);
            let low = min(a, b);
            let old = atomicMin(&parent[high], low);
            if (old == high) { break; }
            // It was no root any more: what it pointed to has to be joined.
            a = rootOf(old);
            b = rootOf(low);
          }
        }`,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count || candidates[i] == 0u) { return; }
        let node = i + 1u;
        let column = i % p.width;
        let west = column > 0u && candidates[max(i, 1u) - 1u] > 0u;
        if (i >= p.width) {
          let above = i - p.width;
          // Two neighbours that touch each other join by themselves.
          if (candidates[above] > 0u) {
            join(node, node - p.width);
            return;
          }
          if (column + 1u < p.width && candidates[above + 1u] > 0u) {
            join(node, node - p.width + 1u);
          }
          if (!west && column > 0u && candidates[above - 1u] > 0u) {
            join(node, node - p.width - 1u);
          }
        }
        if (west) { join(node, node - 1u); }`,
    });
    dispatch({
      variant: "end",
      read: { candidates, parent: scalars(parent) },
      write: { out: scalars(output) },
      params: { count: u32(output.size) },
      ...flatGrid(output.size),
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        var k = i + 1u;
        if (candidates[i] > 0u) {
          loop {
            let up = parent[k];
            if (up == k) { break; }
            k = up;
          }
        }
        out[i] = select(0u, 1u, k == 0u);`,
    });
  },
  flops: (_inputs, { shape }) => 6 * sizeOf(shape),
  reference([candidates], [shape]) {
    const [height, width] = shape!;
    const out = candidates!.map((kind) => kind === 2 ? 1 : 0);
    const waiting = [...out.keys()].filter((i) => out[i] === 1);
    for (let i = waiting.pop(); i !== undefined; i = waiting.pop()) {
      for (const down of [-1, 0, 1]) {
        for (const across of [-1, 0, 1]) {
          const [row, column] = [Math.floor(i / width) + down, i % width + across];
          if (row < 0 || column < 0 || row >= height || column >= width) continue;
          const next = row * width + column;
          if (candidates![next] === 0 || out[next] === 1) continue;
          out[next] = 1;
          waiting.push(next);
        }
      }
    }
    return out;
  },
  cases: [
    plane(1, 1, () => 2),
    plane(1, 7, (i) => i === 6 ? 2 : i % 4 ? 1 : 0),
    plane(9, 1, (i) => i === 0 ? 2 : 1),
    // Near the density at which chains wind most.
    plane(37, 41, (i) => noise(i) % 100 < 1 ? 2 : noise(i) % 100 < 42 ? 1 : 0),
    plane(64, 65, (i) => i === 65 * 62 ? 2 : onWindings(i, 65) ? 1 : 0),
    plane(33, 30, (i) => onWindings(i, 30) ? 1 : 0),
  ],
  tolerance: { atol: 0, rtol: 0 },
});

function plane(height: number, width: number, kind: (i: number) => number) {
  return {
    shapes: [[height, width]],
    dtypes: ["u32"] as const,
    values: [Array.from({ length: height * width }, (_, i) => kind(i))],
    attributes: {},
  };
}

/** Whether a pixel is on the chain that goes through every other row, to and fro. */
function onWindings(i: number, width: number): boolean {
  const [row, column] = [Math.floor(i / width), i % width];
  return row % 2 === 0 || column === (row % 4 === 1 ? width - 1 : 0);
}

function noise(i: number): number {
  return Math.imul(i + 1, 2654435761) >>> 8;
}

/**
 * The candidates that belong to edges, u32 `[H, W]`: 1 for strong ones and for weak ones from which
 * a chain of candidates leads to a strong one, else 0.
 *
 * @param candidates u32 `[H, W]`: 2 strong, 1 weak, 0 neither.
 * @throws {ShapeError} if it is no u32 plane.
 */
export function hysteresis(candidates: Tensor): Tensor {
  return run(hysteresisKernel, [candidates], {});
}
