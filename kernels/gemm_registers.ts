/**
 * Matrix products for software adapters, both operands from storage: a workgroup is one SIMD vector of
 * 8 lanes, every lane holds a block of sums in registers, and nothing is shared, because workgroup
 * memory costs as much as storage there. The form `registers`; also what `texels` leaves to it, products
 * of few rows, for which packing would cost more than it saves.
 *
 * @module
 */

import { u32 } from "../core/kernel.ts";
import {
  epilogue,
  type Gemm,
  type GemmLaunch,
  matricesOf,
  type Operand,
  type Panels,
  reader,
  readsVectors,
} from "./gemm.ts";
import { LANES } from "./shared_rows.ts";
import { each } from "./wgsl.ts";

/**
 * WGSL: stores a block by a loop whose length is a parameter (`sums`). Drivers inline calls and
 * unroll loops of known length, and 64 stores take seconds to compile.
 */
export function storeBlock(rows: number, vectorsWide: number): string {
  const sums = Array.from(
    { length: rows * vectorsWide },
    (_, i) => `c${Math.floor(i / vectorsWide)}_${i % vectorsWide}`,
  );
  return `
        var sums = array<vec4f, ${sums.length}>(${sums.join(", ")});
        for (var i = 0u; i < p.sums; i++) {
          store(z, m0 + i / ${vectorsWide}u, n0 + i % ${vectorsWide}u * 4u, sums[i]);
        }`;
}

/** Enqueues a product. */
export function registerBlocks({ dispatch }: GemmLaunch, product: Gemm): void {
  const { M, N, K } = product;
  const a = reader("a", product);
  const b = reader("b", product);
  const shared = epilogue(product);
  const vector = (operand: Operand | Panels) => "panels" in operand || readsVectors(operand);
  // Gathered loads make long loop bodies, which are slow to compile and to run: small blocks.
  const rows = vector(product.a) && vector(product.b) && M >= 8 ? 8 : 4;
  const columns = rows;
  const wide = columns / 4;
  dispatch({
    family: "gemm",
    variant: `registers ${rows}x${columns} ${a.variant} ${b.variant} ${shared.variant}`,
    read: { a: a.binding, b: b.binding, ...shared.read },
    write: shared.write,
    params: { K: u32(K), sums: u32(rows * wide), ...a.params, ...b.params, ...shared.params },
    workgroup: [LANES, 1, 1],
    workgroups: [
      Math.ceil(N / (columns * LANES)),
      Math.ceil(M / rows),
      matricesOf(product),
    ],
    declarations: () => `${a.declarations} ${b.declarations} ${shared.declarations}`,
    main: () => `
      let z = wg.z;
      ${a.begin}
      ${b.begin}
      let m0 = wg.y * ${rows}u;
      let n0 = (wg.x * ${LANES}u + lid.x) * ${columns}u;
      var at_a = ${a.at("m0", "0u")};
      var at_b = ${b.at("n0", "0u")};
      ${each(rows, (m) => each(wide, (j) => `var c${m}_${j} = vec4f();`))}
      for (var k = 0u; k < p.K; k++) {
        ${each(rows / 4, (i) => `let a${i} = load_a(${a.next("at_a", i)});`)}
        ${each(wide, (j) => `let b${j} = load_b(${b.next("at_b", j)});`)}
        ${
      each(
        rows,
        (m) =>
          each(
            wide,
            (j) => `c${m}_${j} = fma(vec4f(a${m >> 2}.${"xyzw"[m & 3]}), b${j}, c${m}_${j});`,
          ),
      )
    }
        at_a += ${a.step};
        at_b += ${b.step};
      }
      ${storeBlock(rows, wide)}`,
  });
}
