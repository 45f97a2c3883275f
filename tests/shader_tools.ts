/** What tests of shaders share: devices that keep the texts, matrix units made of plain WGSL. */

import { create, globals } from "webgpu";
import { Device } from "../core/device.ts";
import { findGpu } from "../core/runtime.ts";
import { SUBGROUP_MATRIX, type SubgroupMatrix } from "../core/subgroup_matrix.ts";

type MadeUp = Partial<ConstructorParameters<typeof Device>[1]>;

/** Dawn's backend without a GPU: it has all features, checks everything, and computes nothing. */
export async function openNull(): Promise<GPUDevice> {
  for (const [name, value] of Object.entries(globals)) {
    if (!(name in globalThis)) Object.defineProperty(globalThis, name, { value });
  }
  const gpu = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
  // Dawn's objects die with it.
  (globalThis as unknown as Record<symbol, GPU>)[Symbol.for("framezero.null")] = gpu;
  const adapter = await gpu.requestAdapter();
  return await adapter!.requestDevice({
    requiredFeatures: ["shader-f16", "subgroups", SUBGROUP_MATRIX],
  });
}

/** The device of an adapter of this machine, with the limits that every adapter grants. */
export async function openReal(): Promise<{ gpu: GPUDevice; software: boolean }> {
  const { adapter, software } = await findGpu();
  const features = ["shader-f16"] as const;
  const gpu = await adapter.requestDevice({
    requiredFeatures: features.filter((feature) => adapter.features.has(feature)),
  });
  return { gpu, software };
}

/**
 * A device that passes every shader's text through `rewrite`.
 *
 * @param pipelines Whether to make pipelines; without, nothing can be run.
 */
export function intercepted(
  gpu: GPUDevice,
  found: MadeUp,
  rewrite: (code: string) => string,
  pipelines = true,
): Device {
  const replaced: Record<string, unknown> = {
    createShaderModule: (descriptor: GPUShaderModuleDescriptor) => {
      const code = rewrite(descriptor.code as string);
      return pipelines ? gpu.createShaderModule({ ...descriptor, code }) : {};
    },
    ...(pipelines ? {} : { createComputePipeline: () => ({}) }),
  };
  const proxy = new Proxy(gpu, {
    get(target, name) {
      if (typeof name === "string" && name in replaced) return replaced[name];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  return new Device(proxy, {
    implementation: "dawn",
    software: false,
    description: "an adapter made up for a test",
    vendor: "",
    architecture: "",
    subgroupSize: null,
    texels: true,
    subgroupMatrix: null,
    ...found,
  }, {});
}

/** Matrix units that an adapter might have: factors of `types`, edges M, N, K, and sums in f32. */
export function madeUpUnits(
  size: number,
  [M, N, K]: readonly [number, number, number],
  types: readonly string[],
  syntax: SubgroupMatrix["syntax"] = "template",
): SubgroupMatrix {
  const configs = types.map((componentType) => ({
    componentType,
    resultComponentType: "f32",
    M,
    N,
    K,
  }));
  return { configs, size, syntax };
}

/**
 * Replaces subgroup matrices by plain WGSL that any adapter can run: the sums of a matrix are
 * spread over the invocations of a subgroup, its factors are read where they lie in workgroup
 * memory.
 */
export function emulateMatrices(code: string, size: number): string {
  const edges = /subgroup_matrix_left<\w+, (\d+), (\d+)>;[^]*?subgroup_matrix_right<\w+, (\d+)/;
  const found = edges.exec(code);
  if (!found) return code;
  const [K, M, N] = found.slice(1).map(Number);
  const own = M * N / size;
  const arrays: string[] = [];
  const idOf = (array: string) =>
    arrays.includes(array) ? arrays.indexOf(array) : arrays.push(array) - 1;
  const stores = new Set<string>();
  let kept = 0;
  const steps = (order: string, stride: string) =>
    order === "col" ? `1u, ${stride}u` : `${stride}u, 1u`;
  const body = code
    .replace(/enable subgroups;|enable chromium\w+;|diagnostic\(off, [\w.]+\);/g, "")
    .replace(/\s*@builtin\(subgroup_id\) team: u32, @builtin\(\w+\) mate: u32/, "")
    .replace(/\bfn main\(([^{]*)\{/, (whole) =>
      `${whole}
      let team = lane / ${size}u; mate = lane % ${size}u;`)
    .replace(/alias (left|right) = subgroup_matrix[^;]*;/g, "alias $1 = vec4u;")
    .replace(/alias sums = subgroup_matrix[^;]*;/, `alias sums = array<f32, ${own}>;`)
    .replace(
      /subgroupMatrixLoad<(\w+), (row|col)_major>\(&(\w+), (.*?), (\d+)u\)/g,
      (_, kind: string, order: string, array: string, at: string, stride: string) => {
        const place = `vec4u(${idOf(array)}u, ${at}, ${steps(order, stride)})`;
        // Queries stay while what they were loaded from is overwritten.
        return kind === "left" && array === "stage" ? `keep(${place}, ${kept++ * M * K}u)` : place;
      },
    )
    .replace(
      /subgroupMatrixStore<(row|col)_major>\(&(\w+), (.*?), (\w+), (\d+)u\);/g,
      (_, order: string, array: string, at: string, value: string, stride: string) => {
        stores.add(array);
        return `put_${array}(vec3u(${at}, ${steps(order, stride)}), ${value});`;
      },
    )
    .replaceAll("subgroupMatrixMultiplyAccumulate(", "multiply(");
  const some = /var<storage, read> (\w+)/.exec(code)![1];
  const helpers = `
    var<private> mate: u32;
    var<private> kept: array<f32, ${Math.max(1, kept * M * K)}>;
    // Loops of known length would be unrolled, and compile for minutes.
    fn upTo(n: u32) -> u32 { return min(n, n * arrayLength(&${some})); }
    fn element(from_array: u32, i: u32) -> f32 {
      switch from_array {
        ${arrays.map((array, id) => `case ${id}u: { return f32(${array}[i]); }`).join("\n")}
        default: { return kept[i]; }
      }
    }
    fn keep(place: vec4u, first: u32) -> vec4u {
      for (var i = 0u; i < upTo(${M * K}u); i++) {
        kept[first + i] = element(place.x, place.y + i / ${K}u * place.z + i % ${K}u * place.w);
      }
      return vec4u(${arrays.length}u, first, ${K}u, 1u);
    }
    fn multiply(a: vec4u, b: vec4u, c: sums) -> sums {
      var m = c;
      for (var i = 0u; i < upTo(${own}u); i++) {
        let r = (mate + i * ${size}u) / ${N}u;
        let n = (mate + i * ${size}u) % ${N}u;
        for (var k = 0u; k < upTo(${K}u); k++) {
          m[i] += element(a.x, a.y + r * a.z + k * a.w) * element(b.x, b.y + k * b.z + n * b.w);
        }
      }
      return m;
    }
    ${
    [...stores].map((array) => `
    fn put_${array}(place: vec3u, x: sums) {
      var m = x;
      for (var i = 0u; i < upTo(${own}u); i++) {
        let r = (mate + i * ${size}u) / ${N}u;
        let n = (mate + i * ${size}u) % ${N}u;
        ${array}[place.x + r * place.y + n * place.z] = m[i];
      }
    }`).join("\n")
  }`;
  // Directives must come first.
  return body.replace(/^(enable f16;)?/, (first) => `${first}\n${helpers}\n`);
}
