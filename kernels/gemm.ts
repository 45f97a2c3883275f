/**
 * General matrix product on strided operands, the engine under `matmul`, `linear` and `conv2d`:
 * `out[z][m][n] = act(Σₖ a[z](m, k) · b[z](k, n) + bias[m or n] + embedding[z][m] + residual[z][m][n])`.
 *
 * Two forms. Software adapters (one SIMD vector of 8 lanes a workgroup): every lane holds a block of
 * the output in registers and nothing is shared, because workgroup memory costs as much as storage
 * there. Other adapters: 16×16 threads stage 64×64 tiles in workgroup memory. Both read 4-vectors
 * where an operand's strides allow, which channel-major tensors always do.
 *
 * @module
 */

import { type Binding, type Launch, type Param, scalars, u32, vectors } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";

/** How a product is computed; which one an adapter gets is decided here, tests may force either. */
export type GemmForm = "registers" | "tiles";

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

/** A product to enqueue. */
export interface Gemm {
  readonly a: Operand;
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

/** Shape of the register block of one lane, and what the 8 lanes are spread over. */
interface Block {
  readonly rows: number;
  readonly columns: number;
  readonly lanes: "rows" | "columns";
}

/** The block that measured best on 8-lane software adapters for a product's extents. */
function blockFor(M: number, N: number, vectors: boolean): Block {
  // Gathered loads make long loop bodies, which are slow to compile and to run: small blocks.
  if (!vectors) return { rows: 4, columns: 4, lanes: "columns" };
  if (N <= 16 && M >= 32) return { rows: 8, columns: N <= 4 ? 4 : N <= 8 ? 8 : 16, lanes: "rows" };
  const rows = M >= 16 ? 16 : M > 4 ? 8 : 4;
  return { rows, columns: N >= 64 ? 8 : 4, lanes: "columns" };
}

/** Enqueues a product. */
export function gemm(launch: Pick<Launch<unknown>, "device" | "dispatch">, product: Gemm): void {
  const { a, b, out, M, N, K, batch } = product;
  const fits = (operand: Operand) =>
    operand.major === 1 &&
    [operand.step, operand.offset, ...operand.batch].every((n) => n % 4 === 0);
  const vectorA = fits(a);
  const vectorB = fits(b);
  const vectorOut = [N, out.offset, out.major, out.batch].every((n) => n % 4 === 0);
  const matrices = batch.reduce((count, extent) => count * extent, 1);

  const read: Record<string, Binding> = {
    a: vectorA ? vectors(a.tensor) : scalars(a.tensor),
    b: vectorB ? vectors(b.tensor) : scalars(b.tensor),
  };
  if (product.bias) read.bias = scalars(product.bias);
  if (product.embedding) read.embedding = scalars(product.embedding);
  const bindOut = vectorOut ? vectors : scalars;
  if (product.residual) read.residual = bindOut(product.residual);
  const params: Record<string, Param> = {
    M: u32(M),
    N: u32(N),
    K: u32(K),
    aOffset: u32(a.offset),
    aMajor: u32(a.major),
    aStep: u32(a.step),
    bOffset: u32(b.offset),
    bMajor: u32(b.major),
    bStep: u32(b.step),
    outOffset: u32(out.offset),
    outMajor: u32(out.major),
    outBatch: u32(out.batch),
    firstMatrix: u32(product.firstMatrix),
  };
  batch.forEach((extent, i) => {
    params[`extent${i}`] = u32(extent);
    params[`aBatch${i}`] = u32(a.batch[i]);
    params[`bBatch${i}`] = u32(b.batch[i]);
  });

  const text: Text = {
    vectorA,
    vectorB,
    vectorOut,
    batchAxes: batch.length,
    bias: product.bias ? product.biasAxis : null,
    embedding: product.embedding !== null,
    residual: product.residual !== null,
    activation: product.activation,
  };
  const shared = { read, write: { out: bindOut(out.tensor) }, params };
  const name = Object.values(text).join(",");
  const form = product.form ?? (launch.device.info.software ? "registers" : "tiles");
  if (form === "registers") {
    const block = blockFor(M, N, vectorA && vectorB);
    const byRows = block.lanes === "rows";
    launch.dispatch({
      ...shared,
      variant: `registers ${block.rows}x${block.columns} ${block.lanes} ${name}`,
      workgroup: [8, 1, 1],
      workgroups: [
        Math.ceil(N / (block.columns * (byRows ? 1 : 8))),
        Math.ceil(M / (block.rows * (byRows ? 8 : 1))),
        matrices,
      ],
      declarations: () => declarations(text),
      main: () => registerBlock(text, block),
    });
  } else {
    launch.dispatch({
      ...shared,
      variant: `tiles ${name}`,
      workgroup: [16, 16, 1],
      workgroups: [Math.ceil(N / TILE), Math.ceil(M / TILE), matrices],
      declarations: () => declarations(text) + TILE_MEMORY,
      main: () => workgroupTiles(text),
    });
  }
}

/** What the text of the shader depends on. */
interface Text {
  readonly vectorA: boolean;
  readonly vectorB: boolean;
  readonly vectorOut: boolean;
  readonly batchAxes: number;
  readonly bias: "row" | "column" | null;
  readonly embedding: boolean;
  readonly residual: boolean;
  readonly activation: Activation;
}

/** `load_a(at)`, `load_b(at)`: four neighbours along the major axis; `store(m, n, sum)`. */
function declarations(text: Text): string {
  const load = (name: string, vector: boolean) =>
    vector
      ? `fn load_${name}(at: u32) -> vec4f { return vec4f(${name}[at]); }`
      : `fn load_${name}(at: u32) -> vec4f {
          let d = p.${name}Major;
          return vec4f(f32(${name}[at]), f32(${name}[at + d]), f32(${name}[at + 2u * d]),
            f32(${name}[at + 3u * d]));
        }`;
  const bias = text.bias === "row"
    ? `v += f32(bias[m]);`
    : text.bias === "column"
    ? `v += vec4f(f32(bias[n]), f32(bias[min(n + 1u, p.N - 1u)]),
        f32(bias[min(n + 2u, p.N - 1u)]), f32(bias[min(n + 3u, p.N - 1u)]));`
    : "";
  const embedding = text.embedding ? `v += f32(embedding[(z + p.firstMatrix) * p.M + m]);` : "";
  const activation = text.activation === "silu" ? `v = v / (1.0 + exp(-v));` : "";
  const store = text.vectorOut
    ? `${text.residual ? `v += vec4f(residual[at / 4u]);` : ""}
       ${activation}
       out[at / 4u] = out_t(v);`
    : `for (var i = 0u; i < 4u; i++) {
         if (n + i < p.N) {
           ${text.residual ? `v[i] += f32(residual[at + i]);` : ""}
         }
       }
       ${activation}
       for (var i = 0u; i < 4u; i++) {
         if (n + i < p.N) { out[at + i] = out_t(v[i]); }
       }`;
  return `
    ${load("a", text.vectorA)}
    ${load("b", text.vectorB)}
    fn store(z: u32, m: u32, n: u32, sum: vec4f) {
      if (m >= p.M || n >= p.N) { return; }
      var v = sum;
      ${bias}
      ${embedding}
      let at = p.outOffset + z * p.outBatch + m * p.outMajor + n;
      ${store}
    }`;
}

/** WGSL: `offset_a` and `offset_b`, where the operands of matrix `z` begin. */
function batchOffsets(axes: number): string {
  let text = `let z = wg.z;
    var offset_a = p.aOffset;
    var offset_b = p.bOffset;`;
  if (axes === 1) return `${text} offset_a += z * p.aBatch0; offset_b += z * p.bBatch0;`;
  if (axes > 1) text += `var rest = z;`;
  for (let i = axes - 1; i >= 0; i--) {
    text += `{ let i = rest % p.extent${i}; rest = rest / p.extent${i};
      offset_a += i * p.aBatch${i}; offset_b += i * p.bBatch${i}; }`;
  }
  return text;
}

/**
 * WGSL: an address for `load_…`. Vectors count in 4-vectors, with constant offsets between
 * neighbours: drivers fold those into the load.
 */
function address(name: "a" | "b", vector: boolean, at: string, vectors: number): string {
  return vector ? `${at} + ${vectors}u` : `${at} + ${4 * vectors}u * p.${name}Major`;
}

/** WGSL: position of element `major` of row `step` of an operand, for `load_…`. */
function start(name: "a" | "b", vector: boolean, major: string, step: string): string {
  return vector
    ? `(offset_${name} + ${step} * p.${name}Step + ${major}) / 4u`
    : `offset_${name} + ${step} * p.${name}Step + ${major} * p.${name}Major`;
}

function registerBlock(text: Text, { rows, columns, lanes }: Block): string {
  const { batchAxes, vectorA, vectorB } = text;
  const each = (n: number, line: (i: number) => string) =>
    Array.from({ length: n }, (_, i) => line(i)).join("\n");
  const as = rows / 4;
  const bs = columns / 4;
  return `
    ${batchOffsets(batchAxes)}
    let m0 = ${lanes === "rows" ? `(wg.y * 8u + lid.x)` : `wg.y`} * ${rows}u;
    let n0 = ${lanes === "rows" ? `wg.x` : `(wg.x * 8u + lid.x)`} * ${columns}u;
    var at_a = ${start("a", vectorA, "m0", "0u")};
    var at_b = ${start("b", vectorB, "n0", "0u")};
    let step_a = p.aStep${vectorA ? " / 4u" : ""};
    let step_b = p.bStep${vectorB ? " / 4u" : ""};
    ${each(rows, (m) => each(bs, (j) => `var c${m}_${j} = vec4f();`))}
    for (var k = 0u; k < p.K; k++) {
      ${each(as, (i) => `let a${i} = load_a(${address("a", vectorA, "at_a", i)});`)}
      ${each(bs, (j) => `let b${j} = load_b(${address("b", vectorB, "at_b", j)});`)}
      ${
    each(rows, (m) =>
      each(bs, (j) =>
        `c${m}_${j} = fma(vec4f(a${m >> 2}.${"xyzw"[m & 3]}), b${j}, c${m}_${j});`))
  }
      at_a += step_a;
      at_b += step_b;
    }
    // Stored by a loop: drivers inline what is called, and 32 inlined stores take seconds to compile.
    var sums = array<vec4f, ${rows * bs}>(${
    Array.from({ length: rows * bs }, (_, i) => `c${Math.floor(i / bs)}_${i % bs}`).join(", ")
  });
    for (var i = 0u; i < ${rows * bs}u; i++) {
      store(z, m0 + i / ${bs}u, n0 + i % ${bs}u * 4u, sums[i]);
    }`;
}

const TILE = 64;
const DEPTH = 16;

/** Tiles are stored along the summed axis first, as rows of 4-vectors along the major axis. */
const TILE_MEMORY = `
  var<workgroup> tile_a: array<vec4f, ${DEPTH * TILE / 4}>;
  var<workgroup> tile_b: array<vec4f, ${DEPTH * TILE / 4}>;`;

function workgroupTiles({ batchAxes, vectorA, vectorB }: Text): string {
  // 256 threads fill 16 × 16 vectors of each tile, one a thread; each thread then owns 4 × 4 sums.
  const stage = (name: "a" | "b", extent: string, first: string, vector: boolean) => `
      {
        let i = ${first} + lane % 16u * 4u;
        let k = k0 + lane / 16u;
        var v = vec4f();
        if (k < p.K && i < p.${extent}) {
          v = load_${name}(${start(name, vector, "i", "k")});
        }
        tile_${name}[lane] = v;
      }`;
  return `
    ${batchOffsets(batchAxes)}
    let m0 = wg.y * ${TILE}u;
    let n0 = wg.x * ${TILE}u;
    var c0 = vec4f(); var c1 = vec4f(); var c2 = vec4f(); var c3 = vec4f();
    for (var k0 = 0u; k0 < p.K; k0 += ${DEPTH}u) {
      ${stage("a", "M", "m0", vectorA)}
      ${stage("b", "N", "n0", vectorB)}
      workgroupBarrier();
      for (var k = 0u; k < ${DEPTH}u; k++) {
        let a = tile_a[k * 16u + lid.y];
        let b = tile_b[k * 16u + lid.x];
        c0 = fma(vec4f(a.x), b, c0);
        c1 = fma(vec4f(a.y), b, c1);
        c2 = fma(vec4f(a.z), b, c2);
        c3 = fma(vec4f(a.w), b, c3);
      }
      workgroupBarrier();
    }
    let m = m0 + lid.y * 4u;
    let n = n0 + lid.x * 4u;
    store(z, m, n, c0);
    store(z, m + 1u, n, c1);
    store(z, m + 2u, n, c2);
    store(z, m + 3u, n, c3);`;
}
