/**
 * The forms of products and attention that are made for GPUs, on whatever adapter is here: every
 * shape of tile in the variant table, and matrix units, which plain WGSL stands in for.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import type { Device } from "../core/device.ts";
import type { DType } from "../core/dtype.ts";
import { type Kernel, type KernelCase, registeredKernels, run } from "../core/kernel.ts";
import { Generator } from "../core/random.ts";
import { sizeOf } from "../core/shape.ts";
import "../kernels/mod.ts";
import { overrideVariants, type Tile, VARIANT_TABLE } from "../kernels/variants.ts";
import { emulateMatrices, intercepted, madeUpUnits, openReal } from "./shader_tools.ts";

const { gpu, software } = await openReal();
after(async () => {
  gpu.destroy();
  // Mesa still writes its shader cache.
  if (software) await new Promise((resolve) => setTimeout(resolve, 100));
});
const half = gpu.features.has("shader-f16");

/** Some of the cases of a kernel that are forced into the form of GPUs. */
function casesOf(name: string, picks: readonly number[]): [Kernel<unknown>, KernelCase<unknown>[]] {
  const kernel = registeredKernels().find((kernel) => kernel.name === name)!;
  const cases = kernel.cases.filter(({ attributes }) =>
    (attributes as { form?: string }).form === "tiles"
  );
  return [kernel, picks.map((i) => cases[i])];
}

/** Every way to read an operand and to store a sum. */
const PRODUCTS = [["matmul", [2, 5, 6, 9, 10]], ["conv2d", [0, 1, 2]]] as const;
/** What the form of matrix units must do without them. */
const FALLBACKS = [["matmul", [10]], ["conv2d", [1]], ["attention", [14]]] as const;

/** Runs a case in a form, and compares it with the reference in float64. */
async function check(
  device: Device,
  kernel: Kernel<unknown>,
  { shapes, attributes, dtypes, values }: KernelCase<unknown>,
  form: "tiles" | "matrix",
  dtype: DType,
): Promise<void> {
  const random = new Generator(7);
  const tensors = shapes.map((shape, i) =>
    shape && device.tensor(values?.[i] ?? random.randn([...shape]), shape, dtypes?.[i] ?? dtype)
  );
  const settings = { ...attributes as Record<string, unknown>, form };
  const output = run(kernel, tensors, settings);
  const got = await output.data();
  const inputs = await Promise.all(
    tensors.map((tensor) => tensor?.dtype === "u32" ? tensor.raw() : tensor?.data()),
  );
  const want = kernel.reference(
    inputs.map((data) => data ? Float64Array.from(data) : null),
    shapes,
    settings,
    output.shape,
  );
  // Weights of attention are rounded to half precision before they meet the values.
  const tolerance = dtype === "f16" ? 1e-2 : 4e-4;
  want.forEach((value, i) =>
    assert.ok(
      Math.abs(got[i] - value) <= tolerance * (1 + Math.abs(value)),
      `${kernel.name} ${JSON.stringify(shapes)} ${dtype}, element ${i}: ${got[i]}, not ${value}`,
    )
  );
  assert.equal(got.length, sizeOf(output.shape));
  for (const tensor of [...tensors, output]) tensor?.dispose();
}

const tiles = new Map<string, Tile>(
  VARIANT_TABLE.flatMap(({ variants }) => variants.tiles)
    .map((tile) => [`${tile.rows}x${tile.columns}x${tile.depth}, ${tile.own} a thread`, tile]),
);

for (const [name, tile] of tiles) {
  test(`tiles of ${name}`, async () => {
    const device = intercepted(gpu, {}, (code) => code);
    overrideVariants(device, { tiles: [tile] });
    for (const [kernelName, picks] of PRODUCTS) {
      const [kernel, cases] = casesOf(kernelName, picks);
      for (const kernelCase of cases) await check(device, kernel, kernelCase, "tiles", "f32");
    }
  });
}

// The stand-ins are slow to compile: a few cases each, together all of the texts.
const units = [
  {
    name: "8×8×8 of f32 by subgroups of 32",
    size: 32,
    edges: [8, 8, 8],
    dtype: "f32",
    cases: [["matmul", [10]], ["channel_linear", [12]]],
  },
  {
    name: "16×16×16 of f16 by subgroups of 32",
    size: 32,
    edges: [16, 16, 16],
    dtype: "f16",
    cases: [["conv2d", [1, 2]], ["attention", [8, 14]]],
  },
  {
    name: "8×16×16 of f16 by subgroups of 16",
    size: 16,
    edges: [8, 16, 16],
    dtype: "f16",
    cases: [["matmul", [6]], ["attention", [14]]],
  },
] as const;

for (const { name, size, edges, dtype, cases } of units) {
  if (dtype === "f16" && !half) continue;
  test(`matrix units: ${name}`, async () => {
    let seen = 0;
    const subgroupMatrix = madeUpUnits(size, edges, [dtype]);
    const device = intercepted(gpu, { subgroupMatrix }, (code) => {
      if (code.includes("subgroupMatrixMultiplyAccumulate")) seen++;
      return emulateMatrices(code, size);
    });
    const matrices = [{ rows: 32, columns: 32, depth: 16, own: [16, 16] as const, least: 0 }];
    overrideVariants(device, { matrices });
    for (const [kernelName, picks] of cases) {
      const [kernel, chosen] = casesOf(kernelName, picks);
      seen = 0;
      for (const kernelCase of chosen) await check(device, kernel, kernelCase, "matrix", dtype);
      assert.ok(seen > 0, `${kernelName} uses matrix units`);
    }
  });
}

test("without matrix units their form is that of tiles", async () => {
  const device = intercepted(gpu, {}, (code) => {
    assert.doesNotMatch(code, /subgroup/);
    return code;
  });
  for (const [kernelName, picks] of FALLBACKS) {
    const [kernel, cases] = casesOf(kernelName, picks);
    for (const kernelCase of cases) await check(device, kernel, kernelCase, "matrix", "f32");
  }
});
