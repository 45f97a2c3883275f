/**
 * Winograd's minimal filtering F(2×2, 3×3) (Lavin & Gray, arXiv:1509.09308): 3×3 convolution with
 * stride 1 from 16 products where the sum over the window needs 36,
 * `Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A`, summed over channels by 16 matrix products.
 *
 * Tiles of 2×2 outputs are transformed four at a time, so that every load and store is a 4-vector
 * over neighbouring tiles. Between the transforms everything is f32; the error stays within a few
 * units of the last place of the plain sum. Pieces of the image keep the intermediate bounded.
 *
 * @module
 */

import { type Launch, scalars, u32, vectors } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";
import { type Activation, gemm } from "./gemm.ts";

/** A convolution that {@link winograd} can do. */
export interface WinogradConvolution {
  /** `[B, C, H, W]`. */
  readonly x: Tensor;
  /** Packed, `[C·9, O]`. */
  readonly weight: Tensor;
  readonly bias: Tensor | null;
  readonly embedding: Tensor | null;
  readonly residual: Tensor | null;
  /** `[B, O, outH, outW]`. */
  readonly output: Tensor;
  readonly top: number;
  readonly left: number;
  readonly activation: Activation;
}

const LANES = 64;
const TAPS = 16;

/** Bytes of one intermediate held at once. */
const PIECE_BYTES = 32 * 2 ** 20;

/**
 * Whether extents allow it (vectors over four tiles), and there are tiles enough to pay for it. The
 * number of images does not count: a picture must not depend on how many others are made with it.
 */
export function winogradFits(x: readonly number[], output: readonly number[]): boolean {
  const [, C] = x;
  const [, O, outH, outW] = output;
  return outW % 8 === 0 && O % 4 === 0 && C >= 8 && O >= 8 && outH * outW >= 64;
}

/** Enqueues the transforms and the products. */
export function winograd(
  { device, dispatch, temporary }: Pick<Launch<unknown>, "device" | "dispatch" | "temporary">,
  convolution: WinogradConvolution,
): void {
  const { x, weight, output } = convolution;
  const [B, C] = x.shape;
  const [, O, outH, outW] = output.shape;
  const filters = temporary([TAPS, C, O], "f32");
  transformFilters(dispatch, weight, filters);
  // Groups of four tiles, in the order of the output.
  const groups = B * Math.ceil(outH / 2) * outW / 8;
  const groupBytes = TAPS * 4 * 4;
  const limit = Math.min(PIECE_BYTES, device.gpu.limits.maxStorageBufferBindingSize);
  const most = Math.max(1, Math.floor(limit / (groupBytes * Math.max(C, O))));
  for (let first = 0; first < groups; first += most) {
    const count = Math.min(most, groups - first);
    const tiles = temporary([TAPS, C, 4 * count], "f32");
    const sums = temporary([TAPS, O, 4 * count], "f32");
    transformInput(dispatch, convolution, tiles, first);
    gemm({ device, dispatch }, {
      a: { tensor: filters, offset: 0, major: 1, step: O, batch: [C * O] },
      b: { tensor: tiles, offset: 0, major: 1, step: 4 * count, batch: [C * 4 * count] },
      out: { tensor: sums, offset: 0, major: 4 * count, batch: O * 4 * count },
      M: O,
      N: 4 * count,
      K: C,
      batch: [TAPS],
      bias: null,
      biasAxis: "row",
      embedding: null,
      firstMatrix: 0,
      residual: null,
      activation: "none",
    });
    transformOutput(dispatch, convolution, sums, first);
  }
}

type Dispatching = Launch<unknown>["dispatch"];

const four = [0, 1, 2, 3];

/** `U = G g Gᵀ` for every pair of channels; four output channels an invocation. */
function transformFilters(dispatch: Dispatching, weight: Tensor, filters: Tensor): void {
  const [, C, O] = filters.shape;
  const row = (a: string, b: string, c: string) => [
    a,
    `0.5 * (${a} + ${b} + ${c})`,
    `0.5 * (${a} - ${b} + ${c})`,
    c,
  ];
  dispatch({
    variant: "winograd filters",
    read: { weight: vectors(weight) },
    write: { filters: vectors(filters) },
    params: { C: u32(C), O: u32(O / 4) },
    workgroup: [LANES, 1, 1],
    workgroups: [Math.ceil(O / 4 / LANES), C, 1],
    main: () => `
      let o = wg.x * ${LANES}u + lane;
      if (o >= p.O) { return; }
      ${
      Array.from(
        { length: 9 },
        (_, i) => `let g${i} = vec4f(weight[(wg.y * 9u + ${i}u) * p.O + o]);`,
      ).join("\n")
    }
      ${
      [0, 1, 2].map((v) =>
        row(`g${v}`, `g${3 + v}`, `g${6 + v}`).map((e, i) => `let r${i}${v} = ${e};`).join("\n")
      ).join("\n")
    }
      var at = wg.y * p.O + o;
      ${
      four.flatMap((i) =>
        row(`r${i}0`, `r${i}1`, `r${i}2`)
          .map((e) => `filters[at] = ${e}; at += p.C * p.O;`)
      ).join("\n")
    }`,
  });
}

/** `V = Bᵀ d B` for four neighbouring tiles of one channel. */
function transformInput(
  dispatch: Dispatching,
  { x, output, top, left }: WinogradConvolution,
  tiles: Tensor,
  first: number,
): void {
  const [, C, H, W] = x.shape;
  const [, , outH, outW] = output.shape;
  const groups = tiles.shape[2] / 4;
  const fold = (a: string[]) => [
    `${a[0]} - ${a[2]}`,
    `${a[1]} + ${a[2]}`,
    `${a[2]} - ${a[1]}`,
    `${a[1]} - ${a[3]}`,
  ];
  dispatch({
    variant: "winograd input",
    read: { x: scalars(x) },
    write: { tiles: vectors(tiles) },
    params: {
      first: u32(first),
      groups: u32(groups),
      groupsX: u32(outW / 8),
      tilesY: u32(Math.ceil(outH / 2)),
      C: u32(C),
      H: u32(H),
      W: u32(W),
      top: u32(top),
      left: u32(left),
    },
    workgroup: [LANES, 1, 1],
    workgroups: [Math.ceil(groups / LANES), C, 1],
    main: () => `
      let group = wg.x * ${LANES}u + lane;
      if (group >= p.groups) { return; }
      let g = p.first + group;
      let row = g / p.groupsX;
      let plane = (row / p.tilesY * p.C + wg.y) * p.H * p.W;
      // Unsigned: what lies before the first row or column wraps to a large number.
      let y = row % p.tilesY * 2u - p.top;
      let left = g % p.groupsX * 8u - p.left;
      ${
      four.map((r) => `
      let y${r} = y + ${r}u;
      let line${r} = plane + min(y${r}, p.H - 1u) * p.W;
      ${
        Array.from({ length: 10 }, (_, i) =>
          `let x${r}_${i} = select(0.0, f32(x[line${r} + min(left + ${i}u, p.W - 1u)]),
            y${r} < p.H && left + ${i}u < p.W);`).join("\n")
      }
      ${
        four.map((j) =>
          `let d${r}${j} = vec4f(${four.map((n) => `x${r}_${2 * n + j}`).join(", ")});`
        ).join("\n")
      }`).join("\n")
    }
      ${
      four.map((j) =>
        fold(four.map((r) => `d${r}${j}`)).map((e, i) => `let t${i}${j} = ${e};`).join("\n")
      ).join("\n")
    }
      var at = wg.y * p.groups + group;
      ${
      four.flatMap((i) =>
        fold(four.map((j) => `t${i}${j}`)).map((e) => `tiles[at] = ${e}; at += p.C * p.groups;`)
      ).join("\n")
    }`,
  });
}

/** `Y = Aᵀ M A` for four neighbouring tiles of one channel, then what is added to the sum. */
function transformOutput(
  dispatch: Dispatching,
  { output, bias, embedding, residual, activation }: WinogradConvolution,
  sums: Tensor,
  first: number,
): void {
  const [, O, outH, outW] = output.shape;
  const groups = sums.shape[2] / 4;
  const extras = {
    ...(bias ? { bias: scalars(bias) } : {}),
    ...(embedding ? { embedding: scalars(embedding) } : {}),
    ...(residual ? { residual: vectors(residual) } : {}),
  };
  dispatch({
    variant: `winograd output ${Object.keys(extras)} ${activation}`,
    read: { sums: vectors(sums), ...extras },
    write: { out: vectors(output) },
    params: {
      first: u32(first),
      groups: u32(groups),
      groupsX: u32(outW / 8),
      tilesY: u32(Math.ceil(outH / 2)),
      O: u32(O),
      outH: u32(outH),
    },
    workgroup: [LANES, 1, 1],
    workgroups: [Math.ceil(groups / LANES), O, 1],
    declarations: () => `
      fn store(at: u32, base: f32, sum: vec4f) {
        var v = sum + base;
        ${residual ? `v += vec4f(residual[at]);` : ""}
        ${activation === "silu" ? `v = v / (1.0 + exp(-v));` : ""}
        out[at] = out_t(v);
      }`,
    main: () => `
      let group = wg.x * ${LANES}u + lane;
      if (group >= p.groups) { return; }
      let g = p.first + group;
      let row = g / p.groupsX;
      let b = row / p.tilesY;
      let o = wg.y;
      var at = o * p.groups + group;
      ${
      four.flatMap((i) => four.map((j) => `let m${i}${j} = sums[at]; at += p.O * p.groups;`)).join(
        "\n",
      )
    }
      ${
      four.map((j) => `
      let s0${j} = m0${j} + m1${j} + m2${j};
      let s1${j} = m1${j} - m2${j} - m3${j};`).join("")
    }
      let base = 0.0 ${bias ? `+ f32(bias[o])` : ""}
        ${embedding ? `+ f32(embedding[b * p.O + o])` : ""};
      let y = row % p.tilesY * 2u;
      let to = ((b * p.O + o) * p.outH + y) * p.groupsX * 2u + g % p.groupsX * 2u;
      for (var r = 0u; r < 2u; r++) {
        if (y + r >= p.outH) { break; }
        let s0 = select(s00, s10, r == 1u);
        let s1 = select(s01, s11, r == 1u);
        let s2 = select(s02, s12, r == 1u);
        let s3 = select(s03, s13, r == 1u);
        let even = s0 + s1 + s2;
        let odd = s1 - s2 - s3;
        let line = to + r * p.groupsX * 2u;
        store(line, base, vec4f(even.x, odd.x, even.y, odd.y));
        store(line + 1u, base, vec4f(even.z, odd.z, even.w, odd.w));
      }`,
  });
}
