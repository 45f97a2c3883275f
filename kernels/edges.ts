/**
 * The first two stages of Canny's edge detector: the gradient of a picture, and which pixels are
 * largest along theirs. The third one is in `hysteresis.ts`.
 *
 * The gradient is Sobel's of 3×3 pixels, the border repeated beyond itself, with the magnitude
 * m = |∂x| + |∂y| of whichever channel has the largest (the first of equals). Its direction is one
 * of four sectors, told apart by tan 22.5° in whole numbers of 2⁻¹⁵. A pixel is a candidate if
 * m > low, and m exceeds that of both neighbours along the gradient; of a level pair across or
 * along rows the one before is taken. A candidate is strong if m > high.
 *
 * Source: Canny 1986, "A Computational Approach to Edge Detection", with the numbers and the ties
 * of OpenCV's `Canny` (aperture 3, L1 norm), whose results are the same.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, scalars, type TensorSpec, u32 } from "../core/kernel.ts";
import { formatShape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

type NoAttributes = Readonly<Record<string, never>>;

/** tan 22.5° · 2¹⁵. tan 67.5° is 2 more, before the factor. */
const TAN_22 = 13573;

/** Refuses what is not u32 `[H, W]`. */
export function checkPlane(op: string, x: TensorSpec): void {
  if (x.shape.length === 2 && x.dtype === "u32") return;
  throw new ShapeError(`${op}: takes a u32 plane [H, W], got ${x.dtype} ${formatShape(x.shape)}`);
}

/** The kernel behind {@link edgeGradient}. */
export const edgeGradientKernel: Kernel<NoAttributes> = defineKernel<NoAttributes>({
  name: "edge_gradient",
  inputs: ["x"],
  output([x]) {
    checkPlane("edge_gradient", x!);
    return { shape: x!.shape, dtype: "u32" };
  },
  launch({ inputs: [x], output, dispatch }) {
    const [height, width] = output.shape;
    dispatch({
      variant: "",
      read: { x: scalars(x!) },
      write: { out: scalars(output) },
      params: { count: u32(output.size), height: u32(height), width: u32(width) },
      ...flatGrid(output.size),
      declarations: () => `
        fn levels(at: u32) -> vec3i {
          let pixel = x[at];
          return vec3i(vec3u(pixel, pixel >> 8u, pixel >> 16u) & vec3u(0xffu));
        }`,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let column = i % p.width;
        let row = i / p.width;
        let above = (row - min(row, 1u)) * p.width;
        let here = row * p.width;
        let below = min(row + 1u, p.height - 1u) * p.width;
        let left = column - min(column, 1u);
        let right = min(column + 1u, p.width - 1u);
        let nw = levels(above + left);
        let ne = levels(above + right);
        let sw = levels(below + left);
        let se = levels(below + right);
        let dx = ne - nw + se - sw + 2 * (levels(here + right) - levels(here + left));
        let dy = sw - nw + se - ne + 2 * (levels(below + column) - levels(above + column));
        let m = abs(dx) + abs(dy);
        var best = vec3i(m.x, dx.x, dy.x);
        if (m.y > best.x) { best = vec3i(m.y, dx.y, dy.y); }
        if (m.z > best.x) { best = vec3i(m.z, dx.z, dy.z); }
        let across = abs(best.y) * ${TAN_22};
        let down = abs(best.z) << 15u;
        var sector = select(2u, 3u, (best.y ^ best.z) < 0);
        if (down < across) { sector = 0u; }
        if (down > across + (abs(best.y) << 16u)) { sector = 1u; }
        out[i] = (u32(best.x) << 2u) | sector;`,
    });
  },
  flops: (_inputs, { shape }) => 50 * sizeOf(shape),
  reference([x], [shape]) {
    const [height, width] = shape!;
    const clamped = (k: number, extent: number) => Math.min(Math.max(k, 0), extent - 1);
    return x!.map((_, i) => {
      const level = (down: number, across: number, c: number) => {
        const row = clamped(Math.floor(i / width) + down, height);
        const pixel = x![row * width + clamped(i % width + across, width)];
        return Math.floor(pixel / 256 ** c) % 256;
      };
      const gradients = [0, 1, 2].map((c) => {
        let [dx, dy] = [0, 0];
        for (const k of [-1, 0, 1]) {
          const weight = k === 0 ? 2 : 1;
          dx += weight * (level(k, 1, c) - level(k, -1, c));
          dy += weight * (level(1, k, c) - level(-1, k, c));
        }
        return { dx, dy, m: Math.abs(dx) + Math.abs(dy) };
      });
      const { dx, dy, m } = gradients.reduce((best, other) => other.m > best.m ? other : best);
      const [across, down] = [Math.abs(dx) * TAN_22 / 2 ** 15, Math.abs(dy)];
      const diagonal = dx * dy < 0 ? 3 : 2;
      return 4 * m + (down < across ? 0 : down > across + 2 * Math.abs(dx) ? 1 : diagonal);
    });
  },
  cases: [
    picture(1, 1, 256),
    picture(1, 9, 256),
    picture(7, 1, 256),
    picture(13, 17, 256),
    picture(19, 33, 3),
  ],
  tolerance: { atol: 0, rtol: 0 },
});

/** A case of pixels of `levels` levels; few of them make many ties. */
function picture(height: number, width: number, levels: number) {
  const level = (k: number) => (k * 2654435 >>> 5) % levels;
  const pixels = Array.from(
    { length: height * width },
    (_, i) => level(i + 1) + 256 * level(3 * i + 2) + 65536 * level(7 * i),
  );
  return {
    shapes: [[height, width]],
    dtypes: ["u32"] as const,
    values: [pixels],
    attributes: {},
  };
}

interface Thresholds {
  /** Above it a pixel may be part of an edge. */
  readonly low: number;
  /** Above it it is. */
  readonly high: number;
}

/** The neighbour in the direction of each sector: columns, and rows. */
const [COLUMNS, ROWS] = [[1, 0, 1, -1], [0, 1, 1, 1]];

/** The kernel behind {@link edgeCandidates}. */
export const edgeCandidatesKernel: Kernel<Thresholds> = defineKernel<Thresholds>({
  name: "edge_candidates",
  inputs: ["gradient"],
  output([gradient], { low, high }) {
    checkPlane("edge_candidates", gradient!);
    if (![low, high].every((limit) => Number.isInteger(limit) && limit >= 0) || low > high) {
      throw new ShapeError(
        `edge_candidates: thresholds must be whole numbers, 0 ≤ low ≤ high; got ${low}, ${high}`,
      );
    }
    return { shape: gradient!.shape, dtype: "u32" };
  },
  launch({ inputs: [gradient], output, attributes: { low, high }, dispatch }) {
    const [height, width] = output.shape;
    dispatch({
      variant: "",
      read: { gradient: scalars(gradient!) },
      write: { out: scalars(output) },
      params: {
        count: u32(output.size),
        height: u32(height),
        width: u32(width),
        low: u32(low),
        high: u32(high),
      },
      ...flatGrid(output.size),
      declarations: () => `
        fn magnitude(column: i32, row: i32) -> u32 {
          let inside = column >= 0 && row >= 0 && column < i32(p.width) && row < i32(p.height);
          if (!inside) { return 0u; }
          return gradient[u32(row) * p.width + u32(column)] >> 2u;
        }`,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let m = gradient[i] >> 2u;
        let sector = gradient[i] & 3u;
        var kind = 0u;
        if (m > p.low) {
          let column = i32(i % p.width);
          let row = i32(i / p.width);
          let across = vec4i(${COLUMNS})[sector];
          let down = vec4i(${ROWS})[sector];
          let before = magnitude(column - across, row - down);
          let after = magnitude(column + across, row + down);
          if (m > before && (m > after || (m == after && sector < 2u))) {
            kind = select(1u, 2u, m > p.high);
          }
        }
        out[i] = kind;`,
    });
  },
  flops: (_inputs, { shape }) => 6 * sizeOf(shape),
  reference([gradient], [shape], { low, high }) {
    const [height, width] = shape!;
    const magnitude = (column: number, row: number) =>
      column < 0 || row < 0 || column >= width || row >= height
        ? 0
        : Math.floor(gradient![row * width + column] / 4);
    return gradient!.map((value, i) => {
      const [m, sector] = [Math.floor(value / 4), value % 4];
      const [column, row] = [i % width, Math.floor(i / width)];
      const before = magnitude(column - COLUMNS[sector], row - ROWS[sector]);
      const after = magnitude(column + COLUMNS[sector], row + ROWS[sector]);
      const largest = m > before && (sector < 2 ? m >= after : m > after);
      return m > low && largest ? m > high ? 2 : 1 : 0;
    });
  },
  cases: [
    gradients(1, 1, 2041, { low: 100, high: 200 }),
    gradients(1, 8, 2041, { low: 100, high: 200 }),
    gradients(9, 1, 2041, { low: 0, high: 0 }),
    gradients(17, 13, 2041, { low: 100, high: 1500 }),
    gradients(33, 20, 5, { low: 1, high: 3 }),
  ],
  tolerance: { atol: 0, rtol: 0 },
});

function gradients(height: number, width: number, levels: number, attributes: Thresholds) {
  const values = Array.from({ length: height * width }, (_, i) => {
    const drawn = (i + 5) * 2654435 >>> 4;
    return 4 * (drawn % levels) + (drawn >>> 11) % 4;
  });
  return { shapes: [[height, width]], dtypes: ["u32"] as const, values: [values], attributes };
}

/**
 * The gradient of a picture, u32 `[H, W]`: 4·m + its sector, which is 0 along rows, 1 along
 * columns, 2 along the diagonal that falls to the right, 3 along the other one.
 *
 * @param x u32 `[H, W]`, red + 2⁸·green + 2¹⁶·blue in an element.
 * @throws {ShapeError} if it is not such a picture.
 */
export function edgeGradient(x: Tensor): Tensor {
  return run(edgeGradientKernel, [x], {});
}

/**
 * The pixels that are largest along their gradient, u32 `[H, W]`: 2 where m exceeds `high`, 1 where
 * it exceeds `low`, else 0.
 *
 * @param gradient As {@link edgeGradient} gives it.
 * @throws {ShapeError} if it is no u32 plane, or the thresholds are not whole numbers in order.
 */
export function edgeCandidates(gradient: Tensor, low: number, high: number): Tensor {
  return run(edgeCandidatesKernel, [gradient], { low, high });
}
