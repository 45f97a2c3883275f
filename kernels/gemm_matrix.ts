/**
 * Matrix products for GPUs with matrix units, which Dawn offers as subgroup matrices: tiles are
 * staged as in `gemm_tiles.ts`, and from there a subgroup loads whole matrices and multiplies them
 * by one instruction. The factors are `f16`, the sums `f32`; tensors of `f32` are multiplied so
 * only where the adapter takes factors of `f32`.
 *
 * @module
 */

import type { DeviceInfo } from "../core/adapter.ts";
import type { DType } from "../core/dtype.ts";
import {
  loadMatrix,
  MATRIX_DIRECTIVES,
  type MatrixConfig,
  storeMatrix,
  type SubgroupMatrix,
} from "../core/subgroup_matrix.ts";
import { type Gemm, type GemmLaunch, type Reader, reader } from "./gemm.ts";
import { chooseTile, staged, threadsOf } from "./gemm_staging.ts";
import { workgroupTiles } from "./gemm_tiles.ts";
import { type Tile, variantsOf } from "./variants.ts";
import { each } from "./wgsl.ts";

/** Matrix units for factors of certain types. */
export interface MatrixUnits {
  /** Names what the text depends on. */
  readonly variant: string;
  readonly config: MatrixConfig;
  /** Invocations of a subgroup. */
  readonly size: number;
  /** What the factors are converted to. */
  readonly type: "f16" | "f32";
  /** Elements of padding that keep rows of a tile aligned, and in different banks. */
  readonly pad: number;
  readonly directives: string;
  /** `team`, the subgroup's number in its workgroup; `mate`, the invocation's in its subgroup. */
  readonly builtins: string;
  /** Types `left`, `right` and `sums`. */
  readonly declarations: string;
  readonly syntax: SubgroupMatrix["syntax"];
}

/** The matrix units for tensors of such types; `null` if there are none that keep the precision. */
export function matrixUnits(
  { subgroupMatrix }: Pick<DeviceInfo, "subgroupMatrix">,
  dtypes: readonly DType[],
): MatrixUnits | null {
  if (!subgroupMatrix) return null;
  const { configs, size, syntax } = subgroupMatrix;
  // Weights of 8 bits, in u32, are whole numbers that f16 holds.
  const factors = dtypes.every((dtype) => dtype !== "f32")
    ? ["f16", "f32"] as const
    : ["f32"] as const;
  for (const type of factors) {
    const fit = configs
      .filter(({ componentType, resultComponentType, M, N, K }) =>
        componentType === type && resultComponentType === "f32" &&
        [M, N, K].every((n) => n % 4 === 0 && 32 % n === 0)
      )
      .sort((a, b) => b.M * b.N * b.K - a.M * a.N * a.K);
    if (fit.length === 0) continue;
    const [config] = fit;
    const { M, N, K } = config;
    return {
      variant: `${type} ${M}x${N}x${K} ${size} ${syntax}`,
      config,
      size,
      type,
      pad: type === "f16" ? 8 : 4,
      directives: MATRIX_DIRECTIVES,
      builtins: `
  @builtin(subgroup_id) team: u32, @builtin(subgroup_invocation_id) mate: u32`,
      declarations: `
      alias left = subgroup_matrix_left<${type}, ${K}, ${M}>;
      alias right = subgroup_matrix_right<${type}, ${N}, ${K}>;
      alias sums = subgroup_matrix_result<f32, ${N}, ${M}>;`,
      syntax,
    };
  }
  return null;
}

/** Whether a tile consists of whole matrices and fits the adapter. */
function fits(
  { rows, columns, depth, own }: Tile,
  { config: { M, N, K }, size, type, pad }: MatrixUnits,
  limits: GPUSupportedLimits,
): boolean {
  const teams = rows / own[0] * (columns / own[1]);
  const threads = teams * size;
  const bytes = (rows + columns + 2 * pad) * depth * (type === "f16" ? 2 : 4) +
    teams * M * own[1] * 4;
  return own[0] % M === 0 && own[1] % N === 0 && depth % K === 0 &&
    rows / 4 * depth % threads === 0 && columns / 4 * depth % threads === 0 &&
    threads <= limits.maxComputeInvocationsPerWorkgroup &&
    bytes <= limits.maxComputeWorkgroupStorageSize;
}

/** WGSL: four elements of a tile of scalars. */
export function writeFour(array: string, type: string, at: string, v: string): string {
  return `{ let at = ${at}; let v = vec4<${type}>(${v});
          ${array}[at] = v.x; ${array}[at + 1u] = v.y;
          ${array}[at + 2u] = v.z; ${array}[at + 3u] = v.w; }`;
}

/**
 * Enqueues a product by matrix units, or by `workgroupTiles` where there are none for it.
 *
 * @param b Reads the right operand, where it is not what `product.b` says.
 */
export function matrixTiles(
  launch: GemmLaunch,
  product: Gemm,
  b: Reader = reader("b", product),
): void {
  const { device, dispatch } = launch;
  const dtypes = [product.a, product.b].map((operand) =>
    ("panels" in operand ? operand.panels : operand.tensor).dtype
  );
  const units = matrixUnits(device.info, dtypes);
  const tiles = units
    ? variantsOf(device).matrices.filter((tile) => fits(tile, units, device.gpu.limits))
    : [];
  if (!units || tiles.length === 0) return workgroupTiles(launch, product, b);
  const tile = chooseTile(tiles, product);
  const { rows, columns, depth, own } = tile;
  const { config: { M, N, K }, size, type, syntax } = units;
  const teams = threadsOf(tile);
  const { variant, dispatch: shared, declarations, strides, begin, loop } = staged(
    product,
    tile,
    b,
    {
      threads: teams * size,
      pad: () => units.pad,
      array: (elements) => `array<${type}, ${elements}>`,
      write: (array, at, v) => writeFour(array, type, at, v),
    },
  );
  const across = columns / own[1];
  const high = own[0] / M;
  const wide = own[1] / N;
  const load = (name: "a" | "b", k: number, offset: string) =>
    loadMatrix(syntax, name === "a" ? "left" : "right", name === "a" ? "col" : "row", {
      array: `tile_${name}`,
      at: `${k * K * strides[name]}u + ${offset}`,
      stride: strides[name],
    });
  dispatch({
    ...shared,
    family: "gemm",
    variant: `matrix ${rows}x${columns}x${depth} ${own} ${units.variant} ${variant}`,
    directives: units.directives,
    builtins: units.builtins,
    declarations: () => `
      ${units.declarations}
      ${declarations}
      var<workgroup> results: array<f32, ${teams * M * own[1]}>;`,
    main: () => `
      ${begin}
      let own_m = team / ${across}u * ${own[0]}u;
      let own_n = team % ${across}u * ${own[1]}u;
      ${each(high, (i) => each(wide, (j) => `var c${i}_${j} = sums();`))}
      ${
      loop(each(depth / K, (k) => `
        {
        ${each(wide, (j) => `let b${j} = ${load("b", k, `own_n + ${j * N}u`)};`)}
        ${
        each(high, (i) => `
        let a${i} = ${load("a", k, `own_m + ${i * M}u`)};
        ${
          each(
            wide,
            (j) => `c${i}_${j} = subgroupMatrixMultiplyAccumulate(a${i}, b${j}, c${i}_${j});`,
          )
        }`)
      }
        }`))
    }
      // The invocations of a subgroup do not know which elements of a matrix they hold.
      let result = team * ${M * own[1]}u;
      ${
      each(high, (i) => `
      ${
        each(wide, (j) =>
          storeMatrix(syntax, `c${i}_${j}`, "row", {
            array: "results",
            at: `result + ${j * N}u`,
            stride: own[1],
          }))
      }
      workgroupBarrier();
      for (var e = mate * 4u; e < ${M * own[1]}u; e += ${4 * size}u) {
        let at = result + e;
        store(z, m0 + own_m + ${i * M}u + e / ${own[1]}u, n0 + own_n + e % ${own[1]}u,
          vec4f(results[at], results[at + 1u], results[at + 2u], results[at + 3u]));
      }
      workgroupBarrier();`)
    }`,
  });
}
