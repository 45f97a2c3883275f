/**
 * Matrix products for GPUs: a workgroup stages tiles of both operands in workgroup memory, and each
 * thread owns a block of the sums. While a tile is multiplied, the next one is already on its way
 * from storage into registers.
 *
 * A product adds its terms in the same order whatever the tiles are: which of them is taken may
 * depend on how many images come together, the result does not.
 *
 * @module
 */

import { u32 } from "../core/kernel.ts";
import { epilogue, type Gemm, type GemmLaunch, matricesOf, type Reader, reader } from "./gemm.ts";
import { type Tile, variantsOf } from "./variants.ts";

const repeat = (n: number, line: (i: number) => string): string =>
  Array.from({ length: n }, (_, i) => line(i)).join("\n");

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

/** WGSL that brings an operand, tile by tile, from storage into workgroup memory. */
export interface Stage {
  /** Names what the text depends on. */
  readonly variant: string;
  /** Elements between rows of the tile, which lie along the summed axis. */
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
  readonly threads: number;
  /** Elements of padding behind each row. */
  readonly pad: number;
  /** Statement that writes the 4-vector `v` at element `at`. */
  write(at: string, v: string): string;
}

/** Stages operand `name`; the number of 4-vectors must be a multiple of the threads. */
export function stage(
  name: "a" | "b",
  operand: Gemm["a"],
  source: Reader,
  { extent, first, width, depth, threads, pad, write }: Layout,
): Stage {
  const wide = width / 4;
  const count = wide * depth / threads;
  // Neighbouring threads read neighbouring elements.
  const along = "panels" in operand || operand.major <= operand.step ? "major" : "step";
  const place = (i: number) => {
    const flat = `(lane + ${i * threads}u)`;
    return along === "major"
      ? { vector: `${flat} % ${wide}u`, k: `${flat} / ${wide}u` }
      : { vector: `${flat} / ${depth}u`, k: `${flat} % ${depth}u` };
  };
  const stride = width + pad;
  return {
    variant: `${source.variant} ${along}`,
    stride,
    registers: repeat(count, (i) => `var next_${name}${i} = vec4f();`),
    fetch: (k0) =>
      repeat(count, (i) => {
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
    keep: repeat(count, (i) => {
      const { vector, k } = place(i);
      return write(`${k} * ${stride}u + ${vector} * 4u`, `next_${name}${i}`);
    }),
  };
}

/**
 * Enqueues a product of any operands.
 *
 * @param b Reads the right operand, where it is not what `product.b` says.
 */
export function workgroupTiles(
  { device, dispatch }: GemmLaunch,
  product: Gemm,
  b: Reader = reader("b", product),
): void {
  const { M, N, K } = product;
  const tile = chooseTile(variantsOf(device).tiles, product);
  const { rows, columns, depth, own } = tile;
  const threads = threadsOf(tile);
  const shared = epilogue(product);
  const a = reader("a", product);
  const layout = (name: "a" | "b", operand: Gemm["a"], width: number) => ({
    width,
    depth,
    threads,
    // Threads that go down the summed axis would write to the same bank.
    pad: "panels" in operand || operand.major <= operand.step ? 0 : 4,
    write: (at: string, v: string) => `tile_${name}[(${at}) / 4u] = ${v};`,
  });
  const stages = {
    a: stage("a", product.a, a, {
      ...layout("a", product.a, rows),
      extent: "M",
      first: "m0",
    }),
    b: stage("b", product.b, b, {
      ...layout("b", product.b, columns),
      extent: "N",
      first: "n0",
    }),
  };
  // A thread owns a few blocks of 4×4, spread so that neighbours read neighbouring vectors.
  const across = columns / own[1];
  const down = rows / own[0];
  const wide = own[1] / 4;
  const high = own[0] / 4;
  const sums = Array.from(
    { length: own[0] * wide },
    (_, i) => `c${Math.floor(i / wide)}_${i % wide}`,
  );
  dispatch({
    family: "gemm",
    variant: `tiles ${rows}x${columns}x${depth} ${own} ${stages.a.variant} ${stages.b.variant} ` +
      shared.variant,
    read: { a: a.binding, b: b.binding, ...shared.read },
    write: shared.write,
    params: {
      K: u32(K),
      sums: u32(sums.length),
      ...a.params,
      ...b.params,
      ...shared.params,
    },
    workgroup: [threads, 1, 1],
    workgroups: [Math.ceil(N / columns), Math.ceil(M / rows), matricesOf(product)],
    declarations: () => `
      ${a.declarations} ${b.declarations} ${shared.declarations}
      var<workgroup> tile_a: array<vec4f, ${stages.a.stride * depth / 4}>;
      var<workgroup> tile_b: array<vec4f, ${stages.b.stride * depth / 4}>;`,
    main: () => `
      let z = wg.z;
      ${a.begin}
      ${b.begin}
      let m0 = wg.y * ${rows}u;
      let n0 = wg.x * ${columns}u;
      let tx = lane % ${across}u;
      let ty = lane / ${across}u;
      ${repeat(own[0], (m) => repeat(wide, (j) => `var c${m}_${j} = vec4f();`))}
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
        for (var k = 0u; k < ${depth}u; k++) {
          let at_a = k * ${stages.a.stride / 4}u + ty;
          let at_b = k * ${stages.b.stride / 4}u + tx;
          ${repeat(high, (i) => `let a${i} = tile_a[at_a + ${i * down}u];`)}
          ${repeat(wide, (j) => `let b${j} = tile_b[at_b + ${j * across}u];`)}
          ${
      repeat(own[0], (m) =>
        repeat(
          wide,
          (j) => `c${m}_${j} = fma(vec4f(a${m >> 2}.${"xyzw"[m & 3]}), b${j}, c${m}_${j});`,
        ))
    }
        }
      }
      // Each call would be inlined: a loop keeps the text that drivers compile short.
      var sums = array<vec4f, ${own[0] * wide}>(${sums.join(", ")});
      for (var i = 0u; i < p.sums; i++) {
        let m = i / ${wide}u;
        store(z, m0 + (m / 4u * ${down}u + ty) * 4u + m % 4u,
          n0 + (i % ${wide}u * ${across}u + tx) * 4u, sums[i]);
      }`,
  });
}
