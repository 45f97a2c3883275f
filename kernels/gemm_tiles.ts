/**
 * Matrix products for GPUs: each thread owns a block of the sums and multiplies the tiles that its
 * workgroup staged (`gemm_staging.ts`).
 *
 * A product adds its terms in the same order whatever the tiles are: which of them is taken may
 * depend on how many images come together, the result does not.
 *
 * @module
 */

import { u32 } from "../core/kernel.ts";
import { type Gemm, type GemmLaunch, type Reader, reader } from "./gemm.ts";
import { chooseTile, goesAlong, staged, threadsOf } from "./gemm_staging.ts";
import { variantsOf } from "./variants.ts";
import { each } from "./wgsl.ts";

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
  const tile = chooseTile(variantsOf(device).tiles, product);
  const { rows, columns, depth, own } = tile;
  const { variant, dispatch: shared, declarations, strides, begin, loop } = staged(
    product,
    tile,
    b,
    {
      threads: threadsOf(tile),
      // Threads that go down the summed axis would write to the same bank.
      pad: (operand) => goesAlong(operand) ? 0 : 4,
      array: (elements) => `array<vec4f, ${elements / 4}>`,
      write: (array, at, v) => `${array}[(${at}) / 4u] = ${v};`,
    },
  );
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
    ...shared,
    family: "gemm",
    variant: `tiles ${rows}x${columns}x${depth} ${own} ${variant}`,
    params: { sums: u32(sums.length), ...shared.params },
    declarations: () => declarations,
    main: () => `
      ${begin}
      let tx = lane % ${across}u;
      let ty = lane / ${across}u;
      ${sums.map((sum) => `var ${sum} = vec4f();`).join("\n")}
      ${
      loop(`
        for (var k = 0u; k < ${depth}u; k++) {
          let at_a = k * ${strides.a / 4}u + ty;
          let at_b = k * ${strides.b / 4}u + tx;
          ${each(high, (i) => `let a${i} = tile_a[at_a + ${i * down}u];`)}
          ${each(wide, (j) => `let b${j} = tile_b[at_b + ${j * across}u];`)}
          ${
        each(own[0], (m) =>
          each(
            wide,
            (j) => `c${m}_${j} = fma(vec4f(a${m >> 2}.${"xyzw"[m & 3]}), b${j}, c${m}_${j});`,
          ))
      }
        }`)
    }
      // Each call would be inlined: a loop keeps the text that drivers compile short.
      var sums = array<vec4f, ${sums.length}>(${sums.join(", ")});
      for (var i = 0u; i < p.sums; i++) {
        let m = i / ${wide}u;
        store(z, m0 + (m / 4u * ${down}u + ty) * 4u + m % 4u,
          n0 + (i % ${wide}u * ${across}u + tx) * 4u, sums[i]);
      }`,
  });
}
