/**
 * Winograd's minimal filtering F(m×m, 3×3), m = 2 or 4 (Lavin & Gray, arXiv:1509.09308): 3×3
 * convolution with stride 1 from (m+2)² products where the sum over the window needs 9m²,
 * `Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A`, summed over channels by (m+2)² matrix products.
 *
 * Tiles of m×m outputs are transformed four at a time, so that loads and stores are 4-vectors over
 * neighbouring tiles. Between the transforms everything is f32; the relative error is about 2e-6
 * for F(2×2) and 3e-5 for F(4×4). Pieces of the image keep the intermediate bounded.
 *
 * @module
 */

import { scalars, u32, vectors } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";
import { fitsTexels, texelLoader, type Texels } from "../core/texels.ts";
import { type Activation, FLAGS, gemm, type GemmLaunch, HAS_FLAG } from "./gemm.ts";
import { PANEL } from "./panels.ts";
import { UNPACK } from "./quantized.ts";
import { type Variants, variantsOf } from "./variants.ts";
import { each } from "./wgsl.ts";

/** A convolution that {@link winograd} can do. */
export interface WinogradConvolution {
  /** `[B, C, H, W]`. */
  readonly x: Tensor;
  /** Weights of `9C` inputs and `O` outputs in panels; their scale, if they are of 8 bits. */
  readonly panels: Tensor;
  readonly scale: Tensor | null;
  readonly bias: Tensor | null;
  readonly embedding: Tensor | null;
  readonly residual: Tensor | null;
  /** `[B, O, outH, outW]`. */
  readonly output: Tensor;
  readonly top: number;
  readonly left: number;
  readonly activation: Activation;
}

type Matrix = readonly (readonly number[])[];

/** The matrices of the method, as the paper gives them. */
const TRANSFORMS: Readonly<Record<2 | 4, { B: Matrix; G: Matrix; A: Matrix }>> = {
  2: {
    B: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    G: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    A: [[1, 1, 1, 0], [0, 1, -1, -1]],
  },
  4: {
    B: [
      [4, 0, -5, 0, 1, 0],
      [0, -4, -4, 1, 1, 0],
      [0, 4, -4, -1, 1, 0],
      [0, -2, -1, 2, 1, 0],
      [0, 2, -1, -2, 1, 0],
      [0, 4, 0, -5, 0, 1],
    ],
    G: [
      [1 / 4, 0, 0],
      [-1 / 6, -1 / 6, -1 / 6],
      [-1 / 6, 1 / 6, -1 / 6],
      [1 / 24, 1 / 12, 1 / 6],
      [1 / 24, -1 / 12, 1 / 6],
      [0, 0, 1],
    ],
    A: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
  },
};

const LANES = 8;

/** Bytes of one intermediate held at once. */
const PIECE_BYTES = 32 * 2 ** 20;

/**
 * Tile for a convolution, or `null` where another way is faster. The number of images does not
 * count: a picture must not depend on how many others are made with it.
 */
export function winogradFor(
  least: Variants["winograd"],
  x: readonly number[],
  output: readonly number[],
): 2 | 4 | null {
  const [, C] = x;
  const [, O, outH, outW] = output;
  if (C < 8 || O < 8) return null;
  if (outW % 16 === 0 && outH * outW >= least.four) return 4;
  return outW % 8 === 0 && outH * outW >= least.two ? 2 : null;
}

/** How the outputs are cut into groups of four tiles side by side. */
interface Tiling {
  readonly m: 2 | 4;
  /** Edge of a transformed tile. */
  readonly t: number;
  /** Groups in a row, rows of tiles in an image. */
  readonly groupsX: number;
  readonly tilesY: number;
}

/** Enqueues the transforms and the products. */
export function winograd(
  launch: GemmLaunch,
  m: 2 | 4,
  convolution: WinogradConvolution,
): void {
  const { device, dispatch, temporary } = launch;
  const { x, output } = convolution;
  const [B, C] = x.shape;
  const [, O, outH, outW] = output.shape;
  const tiling = { m, t: m + 2, groupsX: outW / (4 * m), tilesY: Math.ceil(outH / m) };
  const taps = tiling.t ** 2;
  const depth = Math.ceil(C / 4) * 4;
  const groups = B * tiling.tilesY * tiling.groupsX;
  const limit = Math.min(PIECE_BYTES, device.gpu.limits.maxStorageBufferBindingSize);
  const most = Math.max(1, Math.floor(limit / (taps * 16 * Math.max(C, O))));
  // Filters grow by 16/9 or 4, and wide layers' do not fit into one binding.
  const panels = Math.ceil(O / PANEL);
  const panelsAtOnce = Math.max(1, Math.floor(2 * limit / (taps * depth * PANEL * 4)));
  let filters: Tensor | null = null;
  // With a border of one, four tiles begin at a multiple of four pixels: whole vectors.
  const aligned = convolution.left === 1 && x.shape[3] % 4 === 0;
  const inTexels = (tensor: Tensor) =>
    variantsOf(device).gemm === "texels" && fitsTexels(tensor) ? launch.texels(tensor) : null;
  const image = aligned ? inTexels(x) : null;
  const weights = inTexels(convolution.panels);
  for (let first = 0; first < groups; first += most) {
    const count = Math.min(most, groups - first);
    const tiles = temporary([taps, C, 4 * count], "f32");
    const sums = temporary([taps, O, 4 * count], "f32");
    transformInput(dispatch, convolution, image, tiling, tiles, { first, count });
    for (let panel = 0; panel < panels; panel += panelsAtOnce) {
      if (!filters || panelsAtOnce < panels) {
        const shape = [taps, Math.min(panelsAtOnce, panels - panel), depth, PANEL];
        if (filters?.shape[1] !== shape[1]) {
          filters = temporary(shape, "f32");
        }
        transformFilters(dispatch, convolution, weights, tiling, filters, panel);
      }
      const firstOutput = panel * PANEL;
      gemm(launch, {
        a: { panels: filters, matrices: taps },
        b: { tensor: tiles, offset: 0, major: 1, step: 4 * count, batch: [C * 4 * count] },
        out: {
          tensor: sums,
          offset: firstOutput * 4 * count,
          major: 4 * count,
          batch: O * 4 * count,
        },
        M: Math.min(panelsAtOnce * PANEL, O - firstOutput),
        N: 4 * count,
        K: C,
        batch: [taps],
        bias: null,
        biasAxis: "row",
        embedding: null,
        firstMatrix: 0,
        residual: null,
        activation: "none",
      });
    }
    transformOutput(dispatch, convolution, tiling, sums, first);
  }
}

type Dispatching = GemmLaunch["dispatch"];

/** WGSL: a vector of what `text` says for 0 … 3. */
const four = (text: (n: number) => string) => `vec4f(${[0, 1, 2, 3].map(text).join(", ")})`;

/** WGSL: `Σ row[i] · <term>i`. */
function combination(row: readonly number[], term: string): string {
  const parts = row.map((factor, i) => {
    const size = Math.abs(factor);
    return factor && `${factor < 0 ? "-" : "+"} ${size === 1 ? "" : `${size} * `}${term}${i}`;
  });
  return parts.filter((part) => part !== 0).join(" ").replace(/^\+ /, "");
}

/** WGSL: of a row of whole numbers the one at `index`. */
function chosen(row: readonly number[], index: string): string {
  return row.reduce(
    (text, factor, i) => factor ? `select(${text}, ${factor}.0, ${index} == ${i}u)` : text,
    "0.0",
  );
}

/** What `text` says for all pairs of 0 … count − 1, row by row. */
function square(count: number, text: (i: number, j: number) => string): string[] {
  return Array.from({ length: count ** 2 }, (_, k) => text(Math.floor(k / count), k % count));
}

/** `U = G g Gᵀ` for every pair of channels; a workgroup has the outputs of a panel. */
function transformFilters(
  dispatch: Dispatching,
  { x, panels }: WinogradConvolution,
  texels: Texels | null,
  { m, t }: Tiling,
  filters: Tensor,
  firstPanel: number,
): void {
  const [, count, depth] = filters.shape;
  const { G } = TRANSFORMS[m];
  // The transforms are linear: the scale of 8 bits waits until the outputs.
  const quantized = panels.dtype === "u32";
  const load = (at: string) =>
    texels ? `load_weight(${at})` : `${quantized ? "unpack" : "vec4f"}(weight[${at}])`;
  dispatch({
    variant: `winograd filters ${m}`,
    read: { weight: texels ?? (quantized ? scalars(panels) : vectors(panels)) },
    write: { filters: vectors(filters) },
    params: {
      t: u32(t),
      C: u32(x.shape[1]),
      depth: u32(depth),
      firstPanel: u32(firstPanel),
      weightDepth: u32(panels.shape[panels.shape.length - 2]),
      plane: u32(count * depth * PANEL / 4),
    },
    workgroup: [LANES, 1, 1],
    workgroups: [count, depth, 1],
    declarations: () => texels ? texelLoader("weight") : quantized ? UNPACK : "",
    main: () => `
      var at = (wg.x * p.depth + wg.y) * ${PANEL / 4}u + lane;
      // The panels are filled up with zeros.
      let first = ((p.firstPanel + wg.x) * p.weightDepth + min(wg.y, p.C - 1u) * 9u) * ${
      PANEL / 4
    }u + lane;
      let there = select(0.0, 1.0, wg.y < p.C);
      ${each(9, (i) => `let g${i} = there * ${load(`first + ${i * PANEL / 4}u`)};`)}
      var factors = array<vec3f, ${t}>(${G.map((row) => `vec3f(${row.join(", ")})`).join(", ")});
      // Drivers would unroll loops of known length, and compile the result for seconds.
      for (var i = 0u; i < p.t; i++) {
        let f = factors[i];
        ${each(3, (v) => `let r${v} = f.x * g${v} + f.y * g${3 + v} + f.z * g${6 + v};`)}
        ${each(t, (j) => `filters[at] = ${combination(G[j], "r")}; at += p.plane;`)}
      }`,
  });
}

/** `V = Bᵀ d B` for four neighbouring tiles of one channel. */
function transformInput(
  dispatch: Dispatching,
  { x, top, left }: WinogradConvolution,
  texels: Texels | null,
  { m, t, groupsX, tilesY }: Tiling,
  tiles: Tensor,
  { first, count: groups }: { first: number; count: number },
): void {
  const [, C, H, W] = x.shape;
  const { B } = TRANSFORMS[m];
  const width = 4 * m + 2;
  // One texel before and one behind, of which a pixel each is needed.
  const load = texels
    ? `
        let first4 = (line + column) / 4u;
        ${each(m, (i) => `let q${i} = select(vec4f(), load_x(first4 + ${i}u), inside);`)}
        let x0 = select(0.0, load_x(max(first4, 1u) - 1u).w, inside && column > 0u);
        ${each(4 * m, (i) => `let x${i + 1} = q${i >> 2}.${"xyzw"[i & 3]};`)}
        let x${width - 1} = select(0.0, load_x(first4 + ${m}u).x,
          inside && column + ${4 * m}u < p.W);`
    : `
        var window = array<f32, ${width}>();
        for (var i = 0u; i < ${width}u; i++) {
          let c = column - p.left + i;
          window[i] = select(0.0, f32(x[line + min(c, p.W - 1u)]), inside && c < p.W);
        }
        ${each(width, (i) => `let x${i} = window[${i}];`)}`;
  dispatch({
    variant: `winograd input ${m}${texels ? " texels" : ""}`,
    read: { x: texels ?? scalars(x) },
    write: { tiles: vectors(tiles) },
    params: {
      first: u32(first),
      groups: u32(groups),
      t: u32(t),
      groupsX: u32(groupsX),
      tilesY: u32(tilesY),
      C: u32(C),
      H: u32(H),
      W: u32(W),
      top: u32(top),
      left: u32(left),
    },
    workgroup: [LANES, 1, 1],
    workgroups: [Math.ceil(groups / LANES), C, 1],
    declarations: () => texels ? texelLoader("x") : "",
    main: () => `
      let group = wg.x * ${LANES}u + lane;
      if (group >= p.groups) { return; }
      let g = p.first + group;
      let row = g / p.groupsX;
      let plane = (row / p.tilesY * p.C + wg.y) * p.H * p.W;
      // Unsigned: what lies before the first row or column wraps to a large number.
      let y = row % p.tilesY * ${m}u - p.top;
      let column = g % p.groupsX * ${4 * m}u;
      ${square(t, (i, j) => `var v${i}_${j} = vec4f();`).join("\n")}
      // Drivers would unroll loops of known length, and compile the result for ten seconds. What a
      // row of pixels gives is added at once: arrays with a changing index are slow on a CPU.
      for (var r = 0u; r < p.t; r++) {
        let inside = y + r < p.H;
        let line = plane + min(y + r, p.H - 1u) * p.W;
        ${load}
        ${each(t, (j) => `let d${j} = ${four((n) => `x${m * n + j}`)};`)}
        ${each(t, (j) => `let w${j} = ${combination(B[j], "d")};`)}
        ${each(t, (i) => `let b${i} = ${chosen(B[i], "r")};`)}
        ${square(t, (i, j) => `v${i}_${j} = fma(vec4f(b${i}), w${j}, v${i}_${j});`).join("\n")}
      }
      var all = array<vec4f, ${t * t}>(${square(t, (i, j) => `v${i}_${j}`).join(", ")});
      var at = wg.y * p.groups + group;
      for (var i = 0u; i < p.t * p.t; i++) {
        tiles[at] = all[i];
        at += p.C * p.groups;
      }`,
  });
}

/** `Y = Aᵀ M A` for four neighbouring tiles of one channel, then what is added to the sum. */
function transformOutput(
  dispatch: Dispatching,
  { x, output, scale, bias, embedding, residual, activation }: WinogradConvolution,
  { m, t, groupsX, tilesY }: Tiling,
  sums: Tensor,
  first: number,
): void {
  const [, O, outH] = output.shape;
  const { A } = TRANSFORMS[m];
  const groups = sums.shape[2] / 4;
  const flags = (bias ? FLAGS.biasRow : 0) | (embedding ? FLAGS.embedding : 0) |
    (residual ? FLAGS.residual : 0) | (activation === "silu" ? FLAGS.silu : 0);
  // Rows of outputs: from vectors over the tiles to vectors over the pixels.
  const pixels = square(m, (u, i) =>
    four((n) => {
      const pixel = 4 * i + n;
      return `y${u}_${pixel % m}.${"xyzw"[Math.floor(pixel / m)]}`;
    }));
  dispatch({
    variant: `winograd output ${m} ${scale !== null}`,
    read: {
      sums: vectors(sums),
      ...(scale ? { scale: scalars(scale) } : {}),
      // A tensor that is absent is stood in for by one that is there; the flags keep it unread.
      bias: scalars(bias ?? x),
      embedding: scalars(embedding ?? x),
      residual: vectors(residual ?? x),
    },
    write: { out: vectors(output) },
    params: {
      first: u32(first),
      groups: u32(groups),
      t: u32(t),
      m: u32(m),
      groupsX: u32(groupsX),
      tilesY: u32(tilesY),
      O: u32(O),
      outH: u32(outH),
      flags: u32(flags),
    },
    workgroup: [LANES, 1, 1],
    workgroups: [Math.ceil(groups / LANES), O, 1],
    declarations: () => HAS_FLAG,
    main: () => `
      let group = wg.x * ${LANES}u + lane;
      if (group >= p.groups) { return; }
      let g = p.first + group;
      let row = g / p.groupsX;
      let b = row / p.tilesY;
      let o = wg.y;
      let step = p.O * p.groups;
      ${square(m, (u, v) => `var y${u}_${v} = vec4f();`).join("\n")}
      for (var j = 0u; j < p.t; j++) {
        let at = o * p.groups + group + j * step;
        ${each(t, (i) => `let m${i} = sums[at + ${i * t}u * step];`)}
        ${each(m, (u) => `let c${u} = ${combination(A[u], "m")};`)}
        ${each(m, (v) => `let a${v} = ${chosen(A[v], "j")};`)}
        ${square(m, (u, v) => `y${u}_${v} = fma(vec4f(a${v}), c${u}, y${u}_${v});`).join("\n")}
      }
      let gain = ${scale ? "f32(scale[o])" : "1.0"};
      var base = 0.0;
      if (has(${FLAGS.biasRow}u)) { base += f32(bias[o]); }
      if (has(${FLAGS.embedding}u)) { base += f32(embedding[b * p.O + o]); }
      let y = row % p.tilesY * ${m}u;
      let to = ((b * p.O + o) * p.outH + y) * p.groupsX * ${m}u + g % p.groupsX * ${m}u;
      var pixels = array<vec4f, ${m * m}>(${pixels.join(", ")});
      for (var i = 0u; i < p.m * p.m; i++) {
        if (y + i / ${m}u >= p.outH) { break; }
        let at = to + i / ${m}u * p.groupsX * ${m}u + i % ${m}u;
        var v = base + gain * pixels[i];
        if (has(${FLAGS.residual}u)) { v += vec4f(residual[at]); }
        if (has(${FLAGS.silu}u)) { v = v / (1.0 + exp(-v)); }
        out[at] = out_t(v);
      }`,
  });
}
