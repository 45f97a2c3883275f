/**
 * Matrix units: what Dawn's experimental feature `chromium-experimental-subgroup-matrix` offers on
 * an adapter, and which of its two published syntaxes the compiler at hand takes.
 *
 * @module
 */

/** Name of the feature; not part of the standard's list. */
export const SUBGROUP_MATRIX = "chromium-experimental-subgroup-matrix" as GPUFeatureName;

/** Directives of shaders that multiply matrices by subgroups. */
export const MATRIX_DIRECTIVES = `enable subgroups;
enable chromium_experimental_subgroup_matrix;
// Subgroups work on different tiles, which an analysis of whole workgroups takes for an error.
diagnostic(off, chromium.subgroup_matrix_uniformity);
`;

/** A product that an adapter has an instruction for: M×K times K×N. */
export interface MatrixConfig {
  /** Type of both factors. */
  readonly componentType: string;
  /** Type of the sums. */
  readonly resultComponentType: string;
  /** Rows of the left factor. */
  readonly M: number;
  /** Columns of the right factor. */
  readonly N: number;
  /** Terms of a sum. */
  readonly K: number;
}

/**
 * How the order of a matrix in memory is given: as a template parameter (`row_major`), or as an
 * argument (`false`), which came first.
 */
export type MatrixSyntax = "template" | "argument";

/** The matrix units of an adapter. */
export interface SubgroupMatrix {
  /** The products that it can do. */
  readonly configs: readonly MatrixConfig[];
  /** Invocations of a subgroup, the same in all shaders. */
  readonly size: number;
  /** What its compiler takes. */
  readonly syntax: MatrixSyntax;
}

/** The properties of an adapter's description that are no standard yet. */
interface MatrixInfo {
  readonly subgroupMinSize?: number;
  readonly subgroupMaxSize?: number;
  readonly subgroupMatrixConfigs?: Iterable<MatrixConfig>;
}

/** WGSL: loads a matrix of type `type` from `array`; `at` and `stride` count elements. */
export function loadMatrix(
  syntax: MatrixSyntax,
  type: string,
  order: "row" | "col",
  { array, at, stride }: { array: string; at: string; stride: number },
): string {
  return syntax === "template"
    ? `subgroupMatrixLoad<${type}, ${order}_major>(&${array}, ${at}, ${stride}u)`
    : `subgroupMatrixLoad<${type}>(&${array}, ${at}, ${order === "col"}, ${stride}u)`;
}

/** WGSL: stores a matrix; the counterpart of {@link loadMatrix}. */
export function storeMatrix(
  syntax: MatrixSyntax,
  value: string,
  order: "row" | "col",
  { array, at, stride }: { array: string; at: string; stride: number },
): string {
  return syntax === "template"
    ? `subgroupMatrixStore<${order}_major>(&${array}, ${at}, ${value}, ${stride}u);`
    : `subgroupMatrixStore(&${array}, ${at}, ${value}, ${order === "col"}, ${stride}u);`;
}

/**
 * The matrix units of a device, or `null` where they cannot be relied upon: the feature is absent,
 * subgroups vary in size, no product has floating-point factors, or neither syntax compiles.
 */
export async function findSubgroupMatrix(
  gpu: GPUDevice,
  adapter: GPUAdapterInfo,
): Promise<SubgroupMatrix | null> {
  if (!gpu.features.has(SUBGROUP_MATRIX)) return null;
  const info: MatrixInfo = adapter;
  const size = info.subgroupMinSize ?? 0;
  if (size === 0 || size !== info.subgroupMaxSize) return null;
  const configs = [...info.subgroupMatrixConfigs ?? []]
    .map(({ componentType, resultComponentType, M, N, K }) => ({
      componentType,
      resultComponentType,
      M,
      N,
      K,
    }))
    .filter(({ componentType }) => /^f(16|32)$/.test(componentType));
  if (configs.length === 0) return null;
  for (const syntax of ["template", "argument"] as const) {
    if (await compiles(gpu, probe(syntax, configs[0], size))) return { configs, size, syntax };
  }
  return null;
}

/** A shader that uses everything that the kernels use. */
function probe(
  syntax: MatrixSyntax,
  { componentType, resultComponentType, M, N, K }: MatrixConfig,
  size: number,
): string {
  const factors = { array: "factors", at: "team", stride: Math.max(M, N, K) };
  const half = [componentType, resultComponentType].includes("f16");
  return `${half ? "enable f16;\n" : ""}${MATRIX_DIRECTIVES}
    alias left = subgroup_matrix_left<${componentType}, ${K}, ${M}>;
    alias right = subgroup_matrix_right<${componentType}, ${N}, ${K}>;
    alias sums = subgroup_matrix_result<${resultComponentType}, ${N}, ${M}>;
    var<workgroup> factors: array<${componentType}, 1024>;
    var<workgroup> results: array<${resultComponentType}, 1024>;
    @compute @workgroup_size(${size})
    fn main(@builtin(subgroup_id) team: u32) {
      let a = ${loadMatrix(syntax, "left", "col", factors)};
      let b = ${loadMatrix(syntax, "right", "row", factors)};
      let c = subgroupMatrixMultiplyAccumulate(a, b, sums());
      ${storeMatrix(syntax, "c", "row", { array: "results", at: "team", stride: N })}
    }`;
}

async function compiles(gpu: GPUDevice, code: string): Promise<boolean> {
  gpu.pushErrorScope("validation");
  const module = gpu.createShaderModule({ label: "probe of subgroup matrices", code });
  gpu.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
  return await gpu.popErrorScope() === null;
}
