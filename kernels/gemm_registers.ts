/**
 * Matrix products for software adapters: a workgroup is one SIMD vector of 8 lanes, every lane
 * holds a block of sums in registers, and nothing is shared, because workgroup memory costs as much
 * as storage there.
 *
 * What limits them are loads. A driver without an analysis of divergence reads storage lane by
 * lane, behind a bounds check each, but the uniform address space without branches. So the operand
 * that all lanes share is packed into panels and shown through windows of 64 KiB, a dispatch each;
 * long sums are continued by the next window. `bench/tune.ts` times this form, `windows`, beside
 * the one that reads both operands from storage, `registers`.
 *
 * @module
 */

import { bytesPerElement } from "../core/dtype.ts";
import { GpuError } from "../core/errors.ts";
import { type Dispatch, u32, vectors, window, WINDOW_BYTES } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";
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
import { PANEL, panelsOf } from "./panels.ts";
import { variantsOf } from "./variants.ts";
import { each } from "./wgsl.ts";
import { walk, walkDeclarations, windowLoader } from "./windows.ts";

const LANES = 8;

/** Steps of a sum in one round of the loop. Panels are filled with zeros to multiples of it. */
const STEPS = 2;

/** A stretch of panels that a window shows: items are panels, matrix after matrix. */
interface Stretch {
  readonly firstItem: number;
  readonly items: number;
  readonly k0: number;
  readonly depth: number;
  readonly part: "first" | "middle" | "last" | "all";
}

/**
 * Cuts `items` panels into windows. A panel has K rows of `rowBytes` each, filled up to K4 rows.
 */
function stretches(items: number, K: number, K4: number, rowBytes: number): Stretch[] {
  const found: Stretch[] = [];
  // Where items do not begin at multiples of 256 bytes, a window begins up to that much earlier.
  const slack = K4 * rowBytes % 256 === 0 ? 0 : 256;
  const most = Math.floor((WINDOW_BYTES - slack) / rowBytes);
  if (K4 <= most) {
    const together = Math.floor(most / K4);
    for (let first = 0; first < items; first += together) {
      const count = Math.min(together, items - first);
      found.push({ firstItem: first, items: count, k0: 0, depth: K, part: "all" });
    }
    return found;
  }
  const chunks = Math.ceil(K4 / most);
  const depth = Math.ceil(K4 / chunks / 16) * 16;
  for (let item = 0; item < items; item++) {
    for (let k0 = 0; k0 < K; k0 += depth) {
      const end = k0 + depth >= K;
      const part = k0 === 0 ? "first" as const : end ? "last" as const : "middle" as const;
      found.push({ firstItem: item, items: 1, k0, depth: Math.min(depth, K - k0), part });
    }
  }
  return found;
}

/** Runs the dispatches of a product whose shared operand is `panels`, part by part. */
function inWindows(
  { device, dispatch, temporary }: GemmLaunch,
  product: Gemm & { readonly a: Panels },
  panels: Tensor,
  make: (
    stretch: Stretch,
    product: Gemm,
    immediates: boolean,
  ) => Omit<Dispatch, "read" | "write" | "params"> & {
    readonly read: Dispatch["read"];
    readonly params: Dispatch["params"];
  },
): void {
  const [K4, width] = panels.shape.slice(-2);
  const items = panels.size / (K4 * width);
  const rowBytes = width * bytesPerElement(panels.dtype);
  const vectorBytes = panels.dtype === "u32" ? 4 : 4 * bytesPerElement(panels.dtype);
  const parts = stretches(items, product.K, K4, rowBytes);
  const { out } = product;
  const { immediates } = variantsOf(device);
  // Parts of a sum are added up in f32, whatever the output is.
  const sums = parts[0].part !== "all" && out.tensor.dtype !== "f32"
    ? temporary(out.tensor.shape, "f32")
    : null;
  for (const stretch of parts) {
    const { firstItem, k0, depth, part } = stretch;
    const target = sums ? { ...product, out: { ...out, tensor: sums } } : product;
    const shared = epilogue(target, sums && part === "last" ? "middle" : part);
    const { binding, first } = window(panels, (firstItem * K4 + k0) * rowBytes);
    const made = make(stretch, target, immediates);
    dispatch({
      ...made,
      family: "gemm",
      variant: `${made.variant} ${panels.dtype} ${shared.variant}`,
      immediates,
      read: {
        // `window` knows panels of floats only.
        w: binding,
        ...made.read,
        ...shared.read,
      },
      write: shared.write,
      params: {
        first: u32(first * 16 / vectorBytes),
        firstItem: u32(firstItem),
        k0: u32(k0),
        depth: u32(depth),
        K4: u32(K4),
        ...made.params,
        ...shared.params,
      },
      declarations: () => `
        ${windowLoader("w", panels)}
        ${walkDeclarations(immediates)}
        ${made.declarations?.() ?? ""}
        ${shared.declarations}`,
    });
  }
  if (sums) finish({ dispatch }, { ...product, a: { ...product.a, scale: null } }, sums);
}

/** Stores finished sums, scaled already, with what comes behind them. */
function finish({ dispatch }: Pick<GemmLaunch, "dispatch">, product: Gemm, sums: Tensor): void {
  const shared = epilogue(product);
  const { M, N } = product;
  const vector = shared.write.out.type.startsWith("vec4");
  dispatch({
    family: "gemm",
    variant: `finish ${shared.variant}`,
    read: { sums: vector ? vectors(sums) : { tensor: sums, type: "f32" }, ...shared.read },
    write: shared.write,
    params: shared.params,
    workgroup: [LANES, 1, 1],
    workgroups: [Math.ceil(N / 4 / LANES), M, matricesOf(product)],
    declarations: () => shared.declarations,
    main: () => `
      let n = (wg.x * ${LANES}u + lane) * 4u;
      let at = p.outOffset + wg.z * p.outBatch + wg.y * p.outMajor + n;
      ${
      vector
        ? `store(wg.z, wg.y, n, sums[at / 4u]);`
        : `store(wg.z, wg.y, n, vec4f(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]));`
    }`,
  });
}

/**
 * Rows of weights through windows, columns on the lanes: `b` is read as vectors.
 *
 * Some steps of the sum are taken together, because a loop-carried value costs as much as a
 * multiply-add each time round.
 */
export function weightWindows(
  launch: GemmLaunch,
  product: Gemm & { readonly a: Panels },
  [rows, columns]: readonly [number, number],
): void {
  const { M, N } = product;
  const { panels, matrices } = product.a;
  const perMatrix = Math.ceil(M / PANEL);
  const sub = PANEL / rows;
  const vectorsA = rows / 4;
  const vectorsB = columns / 4;
  const batches = matrices > 1 ? 1 : matricesOf(product);
  inWindows(launch, product, panels, ({ items }, target, immediates) => {
    const b = reader("b", target);
    return {
      variant: `windows ${rows}x${columns} ${b.variant}`,
      read: { b: b.binding },
      params: { perMatrix: u32(perMatrix), sums: u32(rows * vectorsB), ...b.params },
      workgroup: [LANES, 1, 1],
      workgroups: [Math.ceil(N / (columns * LANES)), items * sub, batches],
      declarations: () => b.declarations,
      main: () => `
        let item = wg.y / ${sub}u;
        let z = wg.z + (p.firstItem + item) / p.perMatrix;
        let m0 = (p.firstItem + item) % p.perMatrix * ${PANEL}u + wg.y % ${sub}u * ${rows}u;
        if (m0 >= p.M) { return; }
        let n0 = (wg.x * ${LANES}u + lid.x) * ${columns}u;
        ${b.begin}
        let from_w = p.first + item * p.K4 * ${PANEL / 4}u + wg.y % ${sub}u * ${vectorsA}u;
        let at_b = ${b.at("n0", "p.k0")};
        let step_b = ${b.step};
        ${each(rows, (m) => each(vectorsB, (j) => `var c${m}_${j} = vec4f();`))}
        ${
        walk(
          {
            immediates,
            rows: "p.depth",
            step: STEPS,
            stride: PANEL / 4,
            address: "at_w",
            from: "from_w",
          },
          `
          // Behind the end the weights are zero; columns are read again, as any numbers do.
          ${
            each(STEPS, (u) => `
          let from${u} = at_b + min(k + ${u}u, p.depth - 1u) * step_b;
          ${each(vectorsB, (j) => `let b${u}_${j} = load_b(${b.next(`from${u}`, j)});`)}
          ${each(vectorsA, (i) => `let a${u}_${i} = load_w(at_w + ${PANEL / 4 * u + i}u);`)}`)
          }
          ${
            each(rows, (m) =>
              each(vectorsB, (j) => {
                let sum = `c${m}_${j}`;
                for (let u = 0; u < STEPS; u++) {
                  sum = `fma(vec4f(a${u}_${m >> 2}.${"xyzw"[m & 3]}), b${u}_${j}, ${sum})`;
                }
                return `c${m}_${j} = ${sum};`;
              }))
          }`,
        )
      }
        ${storeBlock(rows, vectorsB)}`,
    };
  });
}

/**
 * WGSL: stores a block by a loop whose length is a parameter (`sums`). Drivers inline calls and
 * unroll loops of known length, and 64 stores take seconds to compile.
 */
function storeBlock(rows: number, vectorsWide: number): string {
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

/**
 * For products of few columns: these are packed and shown through windows, the lanes are on the
 * rows and read the weights from storage, each once.
 */
export function columnBlocks(
  launch: GemmLaunch,
  product: Gemm & { readonly a: Panels },
): void {
  const { M, N, K, batch, b } = product;
  if ("panels" in b) throw new GpuError("gemm: products of few columns take them unpacked");
  const width = N <= 4 ? 4 : N <= 8 ? 8 : 16;
  const perMatrix = Math.ceil(N / width);
  const panels = panelsOf(launch, b, { extent: N, K, batch }, width);
  inWindows(launch, product, panels, ({ items }, target, immediates) => {
    const a = reader("a", target);
    const vectorsB = width / 4;
    return {
      variant: `columns ${width} ${a.variant}`,
      read: { a: a.binding },
      params: { perMatrix: u32(perMatrix), sums: u32(width), ...a.params },
      workgroup: [LANES, 1, 1],
      workgroups: [Math.ceil(M / PANEL), items, 1],
      declarations: () => a.declarations,
      main: () => `
        let z = (p.firstItem + wg.y) / p.perMatrix;
        let m0 = wg.x * ${PANEL}u + lid.x * 4u;
        let n0 = (p.firstItem + wg.y) % p.perMatrix * ${width}u;
        ${a.begin}
        var at_a = ${a.at("m0", "p.k0")};
        ${each(width, (n) => `var r${n} = vec4f();`)}
        ${
        walk(
          {
            immediates,
            rows: "p.depth",
            step: 1,
            stride: vectorsB,
            address: "at_w",
            from: `p.first + wg.y * p.K4 * ${vectorsB}u`,
          },
          `
          let a = load_a(at_a);
          ${each(vectorsB, (j) => `let b${j} = load_w(at_w + ${j}u);`)}
          ${each(width, (n) => `r${n} = fma(a, vec4f(b${n >> 2}.${"xyzw"[n & 3]}), r${n});`)}
          at_a += ${a.step};`,
        )
      }
        ${
        each(4, (m) =>
          each(vectorsB, (j) => {
            const four = [0, 1, 2, 3].map((i) => `r${4 * j + i}.${"xyzw"[m]}`);
            return `let c${m}_${j} = vec4f(${four.join(", ")});`;
          }))
      }
        ${storeBlock(4, vectorsB)}`,
    };
  });
}

/**
 * Both operands from storage: the form `registers`, and products of few rows, for which packing
 * would cost more than it saves.
 */
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
