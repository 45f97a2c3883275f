/**
 * Matrix products for software adapters that fetch texels faster than they read storage: a workgroup
 * is one SIMD vector of 8 lanes, and every lane holds a block of sums in registers. What limits them
 * are loads, so both operands are copied into textures, the weights packed into panels.
 *
 * `bench/tune.ts` times this form, `texels`, beside the one that reads both operands from storage,
 * `registers`.
 *
 * @module
 */

import { u32 } from "../core/kernel.ts";
import { texelLoader } from "../core/texels.ts";
import { epilogue, type Gemm, type GemmLaunch, matricesOf, type Panels, reader } from "./gemm.ts";
import { storeBlock } from "./gemm_registers.ts";
import { PANEL, panelsOf } from "./panels.ts";
import { broadcastDirectives, LANES, loadRows } from "./shared_rows.ts";
import { variantsOf } from "./variants.ts";
import { each } from "./wgsl.ts";

/**
 * Steps of a sum in one round of the loop, because a loop-carried value costs as much as a
 * multiply-add each time round. The rows of panels are filled with zeros to multiples of it.
 */
const STEPS = 2;

/** Weights are what all lanes share; each has columns of its own. */
export function texelBlocks(
  launch: GemmLaunch,
  product: Gemm & { readonly a: Panels },
  [rows, columns]: readonly [number, number],
): void {
  const { M, N, K, a: { panels, matrices }, b: { tensor } } = product;
  const { broadcast } = variantsOf(launch.device);
  const b = reader("b", product, launch.texels(tensor));
  const shared = epilogue(product);
  const wide = columns / 4;
  const depth = panels.shape[panels.shape.length - 2];
  const a = loadRows(broadcast, {
    name: "a",
    at: "at_a",
    rows: STEPS,
    width: rows / 4,
    stride: PANEL / 4,
  });
  launch.dispatch({
    family: "gemm",
    variant: `texels ${rows}x${columns} ${broadcast} ${b.variant} ${shared.variant}`,
    directives: broadcastDirectives(broadcast),
    read: { a: launch.texels(panels), b: b.binding, ...shared.read },
    write: shared.write,
    params: {
      K: u32(K),
      aBatch: u32(matrices > 1 ? panels.size / matrices / (panels.dtype === "u32" ? 1 : 4) : 0),
      aDepth: u32(depth),
      sums: u32(rows * wide),
      ...b.params,
      ...shared.params,
    },
    workgroup: [LANES, 1, 1],
    // Neighbours share columns, which are far apart in memory: they stay in the caches.
    workgroups: [Math.ceil(M / rows), Math.ceil(N / (columns * LANES)), matricesOf(product)],
    declarations: () => `${texelLoader("a")} ${b.declarations} ${shared.declarations}`,
    main: () => `
      let z = wg.z;
      let m0 = wg.x * ${rows}u;
      let n0 = (wg.y * ${LANES}u + lane) * ${columns}u;
      ${b.begin}
      var at_a = z * p.aBatch + m0 / ${PANEL}u * p.aDepth * ${PANEL / 4}u + m0 % ${PANEL}u / 4u;
      let at_b = ${b.at("n0", "0u")};
      ${each(rows, (m) => each(wide, (j) => `var c${m}_${j} = vec4f();`))}
      for (var k = 0u; k < p.K; k += ${STEPS}u) {
        ${a.statements}
        // Behind the end the weights are zero; columns are read again, as any numbers do.
        ${
      each(STEPS, (u) => `
        let from${u} = at_b + min(k + ${u}u, p.K - 1u) * ${b.step};
        ${each(wide, (j) => `let b${u}_${j} = load_b(${b.next(`from${u}`, j)});`)}`)
    }
        ${
      each(rows, (m) => {
        const factors = Array.from({ length: STEPS }, (_, u) =>
          `let w${m}_${u} = vec4f(${a.number(u, m)});`);
        return factors.join("\n") + each(wide, (j) => {
          let sum = `c${m}_${j}`;
          for (let u = 0; u < STEPS; u++) {
            sum = `fma(w${m}_${u}, b${u}_${j}, ${sum})`;
          }
          return `c${m}_${j} = ${sum};`;
        });
      })
    }
        at_a += ${STEPS * PANEL / 4}u;
      }
      ${storeBlock(rows, wide)}`,
  });
}

/**
 * For products of few columns: these are what all lanes share; the lanes are on the rows and read the
 * weights from storage, each once.
 */
export function columnBlocks(launch: GemmLaunch, product: Gemm & { readonly a: Panels }): void {
  const { M, N, K, batch, b } = product;
  const width = N <= 4 ? 4 : N <= 8 ? 8 : 16;
  const perMatrix = Math.ceil(N / width);
  const panels = panelsOf(launch, b, { extent: N, K, batch }, width);
  const { broadcast } = variantsOf(launch.device);
  const a = reader("a", product);
  const shared = epilogue(product);
  const wide = width / 4;
  const steps = broadcast ? Math.min(LANES / wide, 4) : 1;
  const columns = loadRows(broadcast, {
    name: "b",
    at: "at_b",
    rows: steps,
    width: wide,
    stride: wide,
  });
  launch.dispatch({
    family: "gemm",
    variant: `columns ${width} ${broadcast} ${a.variant} ${shared.variant}`,
    directives: broadcastDirectives(broadcast),
    read: { a: a.binding, b: launch.texels(panels), ...shared.read },
    write: shared.write,
    params: {
      K4: u32(panels.shape[2]),
      perMatrix: u32(perMatrix),
      sums: u32(width),
      ...a.params,
      ...shared.params,
    },
    workgroup: [LANES, 1, 1],
    workgroups: [Math.ceil(M / PANEL), perMatrix * matricesOf(product), 1],
    declarations: () => `${a.declarations} ${texelLoader("b")} ${shared.declarations}`,
    main: () => `
      let z = wg.y / p.perMatrix;
      let m0 = wg.x * ${PANEL}u + lane * 4u;
      let n0 = wg.y % p.perMatrix * ${width}u;
      ${a.begin}
      var at_a = ${a.at("m0", "0u")};
      var at_b = wg.y * p.K4 * ${wide}u;
      ${each(width, (n) => `var r${n} = vec4f();`)}
      // Behind the end both operands are zero.
      for (var k = 0u; k < p.K4; k += ${steps}u) {
        ${columns.statements}
        ${
      each(steps, (u) => `
        let a${u} = load_a(at_a + ${u}u * ${a.step});
        ${each(width, (n) => `r${n} = fma(a${u}, vec4f(${columns.number(u, n)}), r${n});`)}`)
    }
        at_a += ${steps}u * ${a.step};
        at_b += ${steps * wide}u;
      }
      ${
      each(4, (m) =>
        each(wide, (j) => {
          const four = [0, 1, 2, 3].map((i) => `r${4 * j + i}.${"xyzw"[m]}`);
          return `let c${m}_${j} = vec4f(${four.join(", ")});`;
        }))
    }
      ${storeBlock(4, wide)}`,
  });
}
