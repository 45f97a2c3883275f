/**
 * General matrix product, the engine under `matmul`, `linear`, `channelLinear` and `conv2d`:
 * `out[z][m][n] = act(Σₖ a[z](m, k) · b[z](k, n) + bias[m or n] + embedding[z][m] + residual[z][m][n])`.
 *
 * What is added behind the sum is decided by flags at run time, so that one pipeline serves all
 * layers: a register block takes a software adapter up to a second to compile. The forms stand in
 * `gemm_texels.ts`, `gemm_registers.ts`, `gemm_tiles.ts` and `gemm_matrix.ts`; the variant table says
 * which one an adapter gets.
 *
 * @module
 */

import { type Binding, type Launch, type Param, scalars, u32, vectors } from "../core/kernel.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { fitsTexels, texelLoader, type Texels } from "../core/texels.ts";
import { registerBlocks } from "./gemm_registers.ts";
import { columnBlocks, texelBlocks } from "./gemm_texels.ts";
import { matrixTiles } from "./gemm_matrix.ts";
import { workgroupTiles } from "./gemm_tiles.ts";
import { PANEL, panelsOf } from "./panels.ts";
import { UNPACK } from "./quantized.ts";
import { LANES } from "./shared_rows.ts";
import { type GemmForm, type Variants, variantsOf } from "./variants.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

export type { GemmForm } from "./variants.ts";

/** What happens to a sum before it is stored. */
export type Activation = "none" | "silu";

/** A matrix in a tensor: element `(i, k)` lies at `offset + i·major + k·step`. */
export interface Operand {
  readonly tensor: Tensor;
  readonly offset: number;
  /** Distance between rows of `a`, between columns of `b`. */
  readonly major: number;
  /** Distance between neighbours along the summed axis. */
  readonly step: number;
  /** Distance between matrices, for each batch axis. */
  readonly batch: readonly number[];
}

/** A left operand in panels (`panels.ts`), `[matrices, ⌈M/32⌉, K4, 32]`. One matrix serves every batch. */
export interface Panels {
  readonly panels: Tensor;
  readonly matrices: number;
  /** Of 8 bits (`quantized.ts`): `[M]`, what its rows are multiplied by. */
  readonly scale?: Tensor | null;
}

/** A product to enqueue. */
export interface Gemm {
  readonly a: Operand | Panels;
  readonly b: Operand;
  /** Rows are `major` apart, columns adjacent, matrices `batch` apart. */
  readonly out: {
    readonly tensor: Tensor;
    readonly offset: number;
    readonly major: number;
    readonly batch: number;
  };
  readonly M: number;
  readonly N: number;
  readonly K: number;
  /** Extents of the batch axes, at most four; their product is the number of matrices. */
  readonly batch: readonly number[];
  /** Added to each row or column. */
  readonly bias: Tensor | null;
  readonly biasAxis: "row" | "column";
  /** `[matrices, M]`, added to each row; `firstMatrix` is its row for matrix 0. */
  readonly embedding: Tensor | null;
  readonly firstMatrix: number;
  /** Laid out as the output, added. */
  readonly residual: Tensor | null;
  readonly activation: Activation;
  /** Default: what suits the adapter. */
  readonly form?: GemmForm;
}

/** What a product needs of its kernel's launch. */
export type GemmLaunch = Pick<Launch<unknown>, "device" | "dispatch" | "temporary" | "texels">;

/** Products with fewer columns than fill a vector of lanes have their lanes on the rows. */
const FEW_COLUMNS = 64;

/** With fewer multiply-adds than these, too, it does not matter, and one shader does for all. */
const LEAST_IN_COLUMNS = 2 ** 22;

/** Products with fewer rows, unless these are in panels, are not worth the packing of operands. */
const FEW_ROWS = 16;

/**
 * Products of fewer multiply-adds take smaller blocks, whose shader is ready in half the time or less:
 * a model of small ones never needs the other. So do those whose columns leave lanes of the larger
 * idle.
 */
const SMALL_PRODUCT = 2 ** 26;
const SMALL_BLOCK = [16, 8] as const;

/** Enqueues a product. */
export function gemm(launch: GemmLaunch, product: Gemm): void {
  const variants = variantsOf(launch.device);
  const form = product.form ?? variants.gemm;
  const inTexels = form === "texels" && fits(product);
  if (form === "tiles") return workgroupTiles(launch, product);
  if (form === "matrix") return matrixTiles(launch, product);
  const { M, N, K } = product;
  const work = M * N * K;
  if (inTexels && N < FEW_COLUMNS && work >= LEAST_IN_COLUMNS) {
    columnBlocks(launch, inPanels(launch, product));
  } else if (inTexels && (M >= FEW_ROWS || "panels" in product.a)) {
    const block = blockFor(variants.block, product);
    inWholeVectors(
      launch,
      { ...product, b: inTexelRows(launch, product.b, product) },
      (product) => texelBlocks(launch, inPanels(launch, product), block),
    );
  } else {
    registerBlocks(launch, product);
  }
}

/** The adapter's block, or a smaller one for small products and where lanes would be idle. */
function blockFor(
  [rows, columns]: Variants["block"],
  { M, N, K }: Pick<Gemm, "M" | "N" | "K">,
): Variants["block"] {
  const small = [Math.min(rows, SMALL_BLOCK[0]), Math.min(columns, SMALL_BLOCK[1])] as const;
  const covered = (own: number) => Math.ceil(N / (own * LANES)) * own;
  // The larger block is up to a tenth faster where no lane is idle.
  const idle = covered(columns) > 1.2 * covered(small[1]);
  return idle || M * N * K < SMALL_PRODUCT ? small : [rows, columns];
}

/** Whether the adapter has textures of the size of both operands. */
function fits({ a, b }: Gemm): boolean {
  return fitsTexels("panels" in a ? a.panels : a.tensor) && fitsTexels(b.tensor);
}

/**
 * Lets a product store whole vectors where its rows are none: with their ends in a temporary, of which
 * the rest is copied. A short shader more, where a long one would be needed a second time.
 */
function inWholeVectors(
  { dispatch, temporary }: GemmLaunch,
  product: Gemm,
  enqueue: (product: Gemm) => void,
): void {
  const { out, M, N, bias, biasAxis, residual } = product;
  if (storesVectors(product) || residual || (bias && biasAxis === "column")) {
    return enqueue(product);
  }
  const whole = Math.ceil(N / 4) * 4;
  const matrices = matricesOf(product);
  const tensor = temporary([matrices, M, whole], out.tensor.dtype);
  enqueue({
    ...product,
    N: whole,
    out: { tensor, offset: 0, major: whole, batch: M * whole },
  });
  dispatch({
    family: "gemm",
    variant: "whole vectors",
    read: { padded: scalars(tensor) },
    write: { out: scalars(out.tensor) },
    params: {
      N: u32(N),
      M: u32(M),
      rows: u32(matrices * M),
      major: u32(whole),
      outOffset: u32(out.offset),
      outMajor: u32(out.major),
      outBatch: u32(out.batch),
    },
    ...flatGrid(matrices * M * N),
    main: () => `
      ${FLAT_INDEX}
      let row = i / p.N;
      if (row >= p.rows) { return; }
      let at = p.outOffset + row / p.M * p.outBatch + row % p.M * p.outMajor;
      out[at + i % p.N] = padded[row * p.major + i % p.N];`,
  });
}

/** A right operand whose rows consist of texels: the operand itself, or a copy with rows filled up. */
export function inTexelRows(
  launch: Pick<GemmLaunch, "dispatch" | "temporary">,
  b: Operand,
  { N, K, batch }: Pick<Gemm, "N" | "K" | "batch">,
): Operand {
  if (readsVectors(b)) return b;
  const width = Math.ceil(N / 4) * 4;
  const tensor = panelsOf(launch, b, { extent: N, K, batch }, width);
  const [, , depth] = tensor.shape;
  const strides = batch.map((_, i) => depth * width * sizeOf(batch.slice(i + 1)));
  return { tensor, offset: 0, major: 1, step: width, batch: strides };
}

/** The product with its left operand in panels. */
function inPanels(launch: GemmLaunch, product: Gemm): Gemm & { readonly a: Panels } {
  const { a, M, K, batch } = product;
  if ("panels" in a) return { ...product, a };
  const shared = a.batch.every((stride, i) => stride === 0 || batch[i] === 1);
  const source = shared ? { ...a, batch: [] } : a;
  const panels = panelsOf(launch, source, { extent: M, K, batch: shared ? [] : batch }, PANEL);
  return { ...product, a: { panels, matrices: shared ? 1 : matricesOf(product) } };
}

/** Whether four neighbours along the major axis can be read as a vector. */
export function readsVectors(operand: Operand): boolean {
  return operand.major === 1 &&
    [operand.step, operand.offset, ...operand.batch].every((n) => n % 4 === 0);
}

/** Whether four neighbours of a row can be stored as a vector. */
export function storesVectors({ N, out }: Gemm): boolean {
  return [N, out.offset, out.major, out.batch].every((n) => n % 4 === 0);
}

/** Number of matrices of a product. */
export function matricesOf({ batch }: Gemm): number {
  return batch.reduce((count, extent) => count * extent, 1);
}

/** Bits of the parameter `flags`, which says what comes behind a sum. */
export const FLAGS = { biasRow: 1, biasColumn: 2, embedding: 4, residual: 8, silu: 16 };

/** WGSL: `has(flag)`. */
export const HAS_FLAG = "fn has(flag: u32) -> bool { return (p.flags & flag) != 0u; }";

/** Bindings, parameters and WGSL that all forms share. */
export interface Shared {
  /** Names what the text depends on. */
  readonly variant: string;
  readonly read: Readonly<Record<string, Binding>>;
  readonly write: Readonly<Record<string, Binding>>;
  readonly params: Readonly<Record<string, Param>>;
  /** `store(z, m, n, sum)` of four columns of a row. */
  readonly declarations: string;
}

/** What comes behind the sum. */
export function epilogue(product: Gemm): Shared {
  const { out, M, N, bias, biasAxis, embedding, residual, activation } = product;
  const vector = storesVectors(product);
  const bindOut = vector ? vectors : scalars;
  const flags = (bias ? (biasAxis === "row" ? FLAGS.biasRow : FLAGS.biasColumn) : 0) |
    (embedding ? FLAGS.embedding : 0) | (residual ? FLAGS.residual : 0) |
    (activation === "silu" ? FLAGS.silu : 0);
  // A tensor that is absent is stood in for by one that is there; the flags keep it unread.
  const any = product.b.tensor;
  const scale = "panels" in product.a && product.a.scale;
  return {
    variant: `${vector}${scale ? " scaled" : ""}`,
    read: {
      ...(scale ? { scale: scalars(scale) } : {}),
      bias: scalars(bias ?? any),
      embedding: scalars(embedding ?? any),
      residual: bindOut(residual ?? any),
    },
    write: { out: bindOut(out.tensor) },
    params: {
      M: u32(M),
      N: u32(N),
      outOffset: u32(out.offset),
      outMajor: u32(out.major),
      outBatch: u32(out.batch),
      firstMatrix: u32(product.firstMatrix),
      flags: u32(flags),
    },
    declarations: `
    ${HAS_FLAG}
    fn store(z: u32, m: u32, n: u32, sum: vec4f) {
      if (m >= p.M || n >= p.N) { return; }
      var v = sum${scale ? " * f32(scale[m])" : ""};
      if (has(${FLAGS.biasRow}u)) { v += f32(bias[m]); }
      if (has(${FLAGS.biasColumn}u)) {
        v += vec4f(f32(bias[n]), f32(bias[min(n + 1u, p.N - 1u)]),
          f32(bias[min(n + 2u, p.N - 1u)]), f32(bias[min(n + 3u, p.N - 1u)]));
      }
      if (has(${FLAGS.embedding}u)) { v += f32(embedding[(z + p.firstMatrix) * p.M + m]); }
      let at = p.outOffset + z * p.outBatch + m * p.outMajor + n;
      ${
      vector
        ? `
      if (has(${FLAGS.residual}u)) { v += vec4f(residual[at / 4u]); }
      if (has(${FLAGS.silu}u)) { v = v / (1.0 + exp(-v)); }
      out[at / 4u] = out_t(v);`
        : `
      for (var i = 0u; i < 4u; i++) {
        if (n + i < p.N) {
          var s = v[i];
          if (has(${FLAGS.residual}u)) { s += f32(residual[at + i]); }
          if (has(${FLAGS.silu}u)) { s = s / (1.0 + exp(-s)); }
          out[at + i] = out_t(s);
        }
      }`
    }
    }`,
  };
}

/** An operand as a form reads it: binding, parameters, and WGSL for it. */
export interface Reader {
  readonly variant: string;
  readonly binding: Binding | Texels;
  readonly params: Readonly<Record<string, Param>>;
  /** `load_a(at)`: four neighbours along the major axis. */
  readonly declarations: string;
  /** Statements that declare `offset_a`, the begin of matrix `z`, in elements. */
  readonly begin: string;
  /** Address, for `load_a`, of element `major` (a multiple of 4) of row `step`. */
  at(major: string, step: string): string;
  /** Address of the `i`-th next four neighbours. */
  next(at: string, i: number): string;
  /** Distance of addresses between neighbouring rows. */
  readonly step: string;
}

/**
 * Makes an operand of a product readable.
 *
 * @param texels Texels of the operand, which then must be in panels or readable as vectors; without,
 *   it is read from storage.
 */
export function reader(name: "a" | "b", product: Gemm, texels?: Texels): Reader {
  const operand = product[name];
  const rest = `rest_${name}`;
  if ("panels" in operand) {
    const { panels, matrices } = operand;
    const quantized = panels.dtype === "u32";
    const [depth, elements] = panels.shape.slice(-2);
    const width = quantized ? 4 * elements : elements;
    return {
      variant: `panels ${width}`,
      binding: texels ?? (quantized ? scalars(panels) : vectors(panels)),
      params: {
        [`${name}Depth`]: u32(depth),
        [`${name}Batch`]: u32(matrices > 1 ? panels.size / matrices * width / elements : 0),
      },
      declarations: texels ? texelLoader(name) : quantized
        ? `${UNPACK}
        fn load_${name}(at: u32) -> vec4f { return unpack(${name}[at]); }`
        : `fn load_${name}(at: u32) -> vec4f { return vec4f(${name}[at]); }`,
      begin: `let offset_${name} = z * p.${name}Batch;`,
      at: (major, step) =>
        `(offset_${name} + (${major} / ${width}u * p.${name}Depth + ${step}) * ${width}u
          + ${major} % ${width}u) / 4u`,
      next: (at, i) => `${at} + ${i}u`,
      step: `${width / 4}u`,
    };
  }
  // One axis at least, so that products without a batch need no shader of their own.
  const batch = product.batch.length ? product.batch : [1];
  const strides = product.batch.length ? operand.batch : [0];
  const vector = readsVectors(operand);
  const params: Record<string, Param> = {
    [`${name}Offset`]: u32(operand.offset),
    [`${name}Major`]: u32(operand.major),
    [`${name}Step`]: u32(operand.step),
  };
  let begin = `var offset_${name} = p.${name}Offset; var ${rest} = z;`;
  for (let i = batch.length - 1; i >= 0; i--) {
    params[`${name}Extent${i}`] = u32(batch[i]);
    params[`${name}Batch${i}`] = u32(strides[i]);
    begin += i === 0
      ? `offset_${name} += ${rest} * p.${name}Batch0;`
      : `offset_${name} += ${rest} % p.${name}Extent${i} * p.${name}Batch${i};
         ${rest} /= p.${name}Extent${i};`;
  }
  return {
    variant: `${vector},${batch.length}`,
    binding: texels ?? (vector ? vectors(operand.tensor) : scalars(operand.tensor)),
    params,
    declarations: texels
      ? texelLoader(name)
      : vector
      ? `fn load_${name}(at: u32) -> vec4f { return vec4f(${name}[at]); }`
      : `fn load_${name}(at: u32) -> vec4f {
          let d = p.${name}Major;
          return vec4f(f32(${name}[at]), f32(${name}[at + d]), f32(${name}[at + 2u * d]),
            f32(${name}[at + 3u * d]));
        }`,
    begin,
    at: (major, step) =>
      vector
        ? `(offset_${name} + ${step} * p.${name}Step + ${major}) / 4u`
        : `offset_${name} + ${step} * p.${name}Step + ${major} * p.${name}Major`,
    next: (at, i) => vector ? `${at} + ${i}u` : `${at} + ${4 * i}u * p.${name}Major`,
    step: vector ? `p.${name}Step / 4u` : `p.${name}Step`,
  };
}
