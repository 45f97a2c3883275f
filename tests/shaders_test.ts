/**
 * The text of every variant of every kernel is taken by the compilers of both families of runtimes:
 * Dawn's (Bun, Node, Chrome) and, in Deno, naga. Nothing is run, and no driver sees it: whether a
 * GPU's driver takes the matrices of a subgroup is more than this can tell.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import type { Device } from "../core/device.ts";
import type { DType } from "../core/dtype.ts";
import { type Kernel, type KernelCase, registeredKernels, run } from "../core/kernel.ts";
import { findGpu, runtime } from "../core/runtime.ts";
import { sizeOf } from "../core/shape.ts";
import { findSubgroupMatrix } from "../core/subgroup_matrix.ts";
import "../kernels/mod.ts";
import { overrideVariants, VARIANT_TABLE } from "../kernels/variants.ts";
import { intercepted, madeUpUnits, openNull } from "./shader_tools.ts";

const gpu = await openNull();
after(() => gpu.destroy());

/** One adapter for each row of the variant table; none of them has to be here. */
const ADAPTERS = [
  { software: true, description: "llvmpipe", subgroupSize: 8 },
  { software: true, description: "llvmpipe" },
  { software: true, texels: false },
  { subgroupMatrix: madeUpUnits(32, [16, 16, 16], ["f16"]) },
  { vendor: "nvidia" },
  { vendor: "4098" },
  { vendor: "intel" },
  { vendor: "apple" },
  {},
];

/** Matrix units of different shapes, types and syntaxes. */
const UNITS = [
  madeUpUnits(32, [16, 16, 16], ["f16"]),
  madeUpUnits(32, [16, 16, 16], ["f16"], "argument"),
  madeUpUnits(32, [8, 8, 8], ["f32", "f16"]),
  madeUpUnits(32, [8, 16, 16], ["f16"]),
];

/** Texts, and what first asked for each. */
const texts = new Map<string, string>();
let asking = "";
const remember = (code: string) => {
  if (!texts.has(code)) texts.set(code, asking);
  return code;
};

/** Records a case, which makes the texts that it needs. */
function record(
  device: Device,
  kernel: Kernel<unknown>,
  { shapes, attributes, dtypes, values }: KernelCase<unknown>,
  dtype: DType,
): void {
  asking = `${kernel.name} of ${JSON.stringify(shapes)} ${JSON.stringify(attributes)}`;
  const inputs = shapes.map((shape, i) =>
    shape &&
    device.tensor(values?.[i] ?? new Array(sizeOf(shape)).fill(0), shape, dtypes?.[i] ?? dtype)
  );
  device.record(() => run(kernel, inputs, attributes)).dispose();
  for (const input of inputs) input?.dispose();
}

/** Records the cases that name a form, in another one. */
function recordForm(device: Device, form: "tiles" | "matrix", most: number): void {
  for (const kernel of registeredKernels()) {
    const cases = kernel.cases.filter(({ attributes }) =>
      (attributes as { form?: string }).form === "tiles"
    );
    for (const { attributes, ...inputs } of cases.slice(0, most)) {
      const forced = { ...inputs, attributes: { ...attributes as Record<string, unknown>, form } };
      for (const dtype of ["f32", "f16"] as const) record(device, kernel, forced, dtype);
    }
  }
}

test("every kernel makes texts for every row of the variant table", () => {
  const rows = new Set();
  for (const adapter of ADAPTERS) {
    const device = intercepted(gpu, adapter, remember, false);
    rows.add(VARIANT_TABLE.find(({ matches }) => matches(device.info)));
    for (const kernel of registeredKernels()) {
      for (const kernelCase of kernel.cases) {
        for (const dtype of ["f32", "f16"] as const) record(device, kernel, kernelCase, dtype);
      }
    }
  }
  assert.equal(rows.size, VARIANT_TABLE.length, "an adapter for each row");
  assert.ok(texts.size > 300, `${texts.size} texts`);
});

test("products make texts for every tile and every kind of matrix units", () => {
  for (const tile of new Set(VARIANT_TABLE.flatMap(({ variants }) => variants.tiles))) {
    const device = intercepted(gpu, {}, remember, false);
    overrideVariants(device, { tiles: [tile] });
    recordForm(device, "tiles", Infinity);
  }
  for (const subgroupMatrix of UNITS) {
    for (const tile of VARIANT_TABLE[0].variants.matrices) {
      const device = intercepted(gpu, { subgroupMatrix }, remember, false);
      overrideVariants(device, { matrices: [tile] });
      // Dawn warns of the older syntax at each use.
      recordForm(device, "matrix", subgroupMatrix.syntax === "argument" ? 1 : Infinity);
    }
  }
  const matrix = [...texts.keys()].filter((code) => usesMatrices(code));
  assert.ok(matrix.length > 50, `${matrix.length} texts use matrix units`);
});

test("Dawn takes all of them, within the limits that every adapter grants", async () => {
  assert.deepEqual(await refusals(gpu, [...texts], makePipeline), []);
});

test("Dawn refuses wrong matrices, and too much workgroup memory", async () => {
  const [right] = [...texts.keys()].filter((code) => usesMatrices(code));
  const wrong: [string, string][] = [
    [right.replace("subgroup_matrix_right<", "subgroup_matrix_left<"), "two left factors"],
    [right.replace(/tile_a: array<f16, \d+>/, "tile_a: array<f16, 9000>"), "18 kB of a"],
  ];
  assert.ok(wrong.every(([code]) => code !== right));
  assert.equal((await refusals(gpu, wrong, makePipeline)).length, wrong.length);
});

test("matrix units are offered where they are usable, in the syntax that compiles", async () => {
  const [config] = UNITS[0].configs;
  const info = (subgroupMinSize: number, subgroupMatrixConfigs: unknown[]) =>
    ({
      subgroupMinSize,
      subgroupMaxSize: 128,
      subgroupMatrixConfigs,
    }) as unknown as GPUAdapterInfo;
  const offered = { configs: [config], size: 128 };
  assert.deepEqual(await findSubgroupMatrix(gpu, info(128, [config])), {
    ...offered,
    syntax: "template",
  });
  const older = intercepted(gpu, {}, (code) => /_major/.test(code) ? "unknown" : code);
  assert.deepEqual(await findSubgroupMatrix(older.gpu, info(128, [config])), {
    ...offered,
    syntax: "argument",
  });
  const integers = { ...config, componentType: "i8", resultComponentType: "i32" };
  for (const useless of [info(64, [config]), info(128, []), info(128, [integers])]) {
    assert.equal(await findSubgroupMatrix(gpu, useless), null);
  }
});

if (runtime === "deno") {
  test("naga takes all of them that use neither subgroups nor immediate data", async () => {
    const { adapter } = await findGpu("native");
    const half = adapter.features.has("shader-f16");
    const native = await adapter.requestDevice({ requiredFeatures: half ? ["shader-f16"] : [] });
    const some = [...texts].filter(([code]) =>
      !code.includes("enable subgroups;") && !code.includes("requires immediate_address_space;") &&
      (half || !code.includes("enable f16;"))
    );
    assert.ok(some.length > 150, `${some.length} texts`);
    assert.deepEqual(await refusals(native, some, makeModule), []);
    native.destroy();
    // Mesa still writes its shader cache.
    await new Promise((resolve) => setTimeout(resolve, 100));
  });
}

function usesMatrices(code: string): boolean {
  return code.includes("subgroupMatrixMultiplyAccumulate(");
}

/** Lets the compiler check a text. */
function makeModule(gpu: GPUDevice, code: string): GPUShaderModule {
  return gpu.createShaderModule({ code });
}

/** Lets the limits be checked as well, which costs nothing without a driver. */
function makePipeline(gpu: GPUDevice, code: string): void {
  const module = makeModule(gpu, code);
  gpu.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
}

/** What a device says against texts. */
async function refusals(
  gpu: GPUDevice,
  some: readonly [string, string][],
  make: (gpu: GPUDevice, code: string) => unknown,
): Promise<string[]> {
  const found: string[] = [];
  for (const [code, what] of some) {
    gpu.pushErrorScope("validation");
    make(gpu, code);
    const error = await gpu.popErrorScope();
    if (error) found.push(`${what}: ${error.message}`);
  }
  return found;
}
