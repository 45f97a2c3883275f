/**
 * What matrix products for GPUs have in common: a workgroup stages tiles of both operands in
 * workgroup memory. While a tile is multiplied, the next one is already on its way from storage
 * into registers.
 *
 * @module
 */

import { type Dispatch, u32 } from "../core/kernel.ts";
import { epilogue, type Gemm, matricesOf, type Reader, reader } from "./gemm.ts";
import type { Tile } from "./variants.ts";
import { each } from "./wgsl.ts";

/**
 * The first tile that gives the adapter enough to do and is not idle for the most part; else the
 * last one.
 */
export function chooseTile(tiles: readonly Tile[], product: Gemm): Tile {
  const { M, N } = product;
  const chosen = tiles.find(({ rows, columns, least }) => {
    const workgroups = Math.ceil(M / rows) * Math.ceil(N / columns) * matricesOf(product);
    return workgroups >= least && 2 * M > rows && 2 * N > columns;
  });
  return chosen ?? tiles[tiles.length - 1];
}

/** Threads of a workgroup that multiplies such tiles. */
export function threadsOf({ rows, columns, own }: Tile): number {
  return rows / own[0] * (columns / own[1]);
}

/** Whether neighbouring threads go along the rows and columns of sums, as neighbours lie there. */
export function goesAlong(operand: Gemm["a"]): boolean {
  return "panels" in operand || operand.major <= operand.step;
}

/** How a form keeps its tiles. */
export interface TileMemory {
  /** Invocations of a workgroup. */
  readonly threads: number;
  /** Elements of padding behind each row of an operand's tile; a multiple of 4. */
  pad(operand: Gemm["a"]): number;
  /** WGSL type of an array of that many elements, a multiple of 4. */
  array(elements: number): string;
  /** Statement that writes the 4-vector `v` at element `at`. */
  write(array: string, at: string, v: string): string;
}

/** The parts of a product that do not depend on how a tile is multiplied. */
export interface Staged {
  /** Names what the text depends on. */
  readonly variant: string;
  /** Bindings, parameters and grid. */
  readonly dispatch: Pick<Dispatch, "read" | "write" | "params" | "workgroup" | "workgroups">;
  /** `store`, and the arrays `tile_a` and `tile_b`, whose rows lie along the summed axis. */
  readonly declarations: string;
  /** Elements between rows of the tiles. */
  readonly strides: { readonly a: number; readonly b: number };
  /** Statements that declare `z`, `m0` and `n0`: matrix, first row and first column of sums. */
  readonly begin: string;
  /** The loop over the summed axis around statements that multiply the tiles at hand. */
  loop(multiply: string): string;
}

/** Stages both operands; the 4-vectors of each tile must be a multiple of the threads. */
export function staged(
  product: Gemm,
  { rows, columns, depth }: Tile,
  b: Reader,
  memory: TileMemory,
): Staged {
  const a = reader("a", product);
  const shared = epilogue(product);
  const stages = {
    a: stage("a", product.a, a, { extent: "M", first: "m0", width: rows, depth, memory }),
    b: stage("b", product.b, b, { extent: "N", first: "n0", width: columns, depth, memory }),
  };
  return {
    variant: `${stages.a.variant} ${stages.b.variant} ${shared.variant}`,
    dispatch: {
      read: { a: a.binding, b: b.binding, ...shared.read },
      write: shared.write,
      params: { K: u32(product.K), ...a.params, ...b.params, ...shared.params },
      workgroup: [memory.threads, 1, 1],
      workgroups: [
        Math.ceil(product.N / columns),
        Math.ceil(product.M / rows),
        matricesOf(product),
      ],
    },
    declarations: `
      ${a.declarations} ${b.declarations} ${shared.declarations}
      var<workgroup> tile_a: ${memory.array(stages.a.stride * depth)};
      var<workgroup> tile_b: ${memory.array(stages.b.stride * depth)};`,
    strides: { a: stages.a.stride, b: stages.b.stride },
    begin: `
      let z = wg.z;
      ${a.begin}
      ${b.begin}
      let m0 = wg.y * ${rows}u;
      let n0 = wg.x * ${columns}u;`,
    loop: (multiply) => `
      ${stages.a.registers}
      ${stages.b.registers}
      ${stages.a.fetch("0u")}
      ${stages.b.fetch("0u")}
      for (var k0 = 0u; k0 < p.K; k0 += ${depth}u) {
        workgroupBarrier();
        ${stages.a.keep}
        ${stages.b.keep}
        workgroupBarrier();
        ${stages.a.fetch(`k0 + ${depth}u`)}
        ${stages.b.fetch(`k0 + ${depth}u`)}
        ${multiply}
      }`,
  };
}

/** WGSL that brings an operand, tile by tile, from storage into workgroup memory. */
interface Stage {
  /** Names what the text depends on. */
  readonly variant: string;
  /** Elements between rows of the tile. */
  readonly stride: number;
  /** Statements that declare the registers. */
  readonly registers: string;
  /** Statements that read the tile at `k0` into the registers: zeros behind the end. */
  fetch(k0: string): string;
  /** Statements that write the registers to the tile. */
  readonly keep: string;
}

/** How {@link stage} lays out a tile. */
interface Layout {
  readonly extent: "M" | "N";
  /** Name of the first row of `a` or column of `b` that the tile holds. */
  readonly first: string;
  /** Elements of a row of the tile; a multiple of 4. */
  readonly width: number;
  readonly depth: number;
  readonly memory: TileMemory;
}

function stage(
  name: "a" | "b",
  operand: Gemm["a"],
  source: Reader,
  { extent, first, width, depth, memory }: Layout,
): Stage {
  const { threads } = memory;
  const wide = width / 4;
  const count = wide * depth / threads;
  const along = goesAlong(operand);
  const place = (i: number) => {
    const flat = `(lane + ${i * threads}u)`;
    return along
      ? { vector: `${flat} % ${wide}u`, k: `${flat} / ${wide}u` }
      : { vector: `${flat} / ${depth}u`, k: `${flat} % ${depth}u` };
  };
  const stride = width + memory.pad(operand);
  return {
    variant: `${source.variant} ${along ? "major" : "step"}`,
    stride,
    registers: each(count, (i) => `var next_${name}${i} = vec4f();`),
    fetch: (k0) =>
      each(count, (i) => {
        const { vector, k } = place(i);
        return `
        {
          let i = ${first} + ${vector} * 4u;
          let k = ${k0} + ${k};
          next_${name}${i} = vec4f();
          if (k < p.K && i < p.${extent}) { next_${name}${i} = load_${name}(${
          source.at("i", "k")
        }); }
        }`;
      }),
    keep: each(count, (i) => {
      const { vector, k } = place(i);
      return memory.write(`tile_${name}`, `${k} * ${stride}u + ${vector} * 4u`, `next_${name}${i}`);
    }),
  };
}
