/**
 * The commands that tell about things: `info`, `models list`, `models inspect`.
 *
 * @module
 */

import { openDevice } from "../../core/device.ts";
import { openSafetensors, type TensorInfo } from "../../core/safetensors.ts";
import { sizeOf } from "../../core/shape.ts";
import { describeRuntime, type GpuChoice } from "../../core/runtime.ts";
import { describeChoice, loadTunedVariants } from "../../kernels/tuned_variants.ts";
import { variantsOf, type VariantSource, variantSources } from "../../kernels/variants.ts";
import {
  inside,
  type Location,
  openWeights,
  readJson,
  readModelIndex,
} from "../../models/checkpoint.ts";
import { clipTextConfig, type Json, unetConfig, vaeConfig } from "../../models/config.ts";
import { ldmToDiffusers } from "../../models/ldm_names.ts";
import { BUILT_IN } from "../../models/stable_diffusion.ts";
import { disk } from "../output_file.ts";
import { formatBytes } from "../progress.ts";
import type { CommandIo } from "./io.ts";

/** Limits that decide what fits. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupsPerDimension",
] as const;

/** Prints runtime, adapter, features, limits, and how kernels are computed there. */
export async function info(
  { gpu, experimental, json }: { gpu: GpuChoice; experimental?: boolean; json?: boolean },
  io: CommandIo,
): Promise<void> {
  const device = await openDevice({ gpu, experimental });
  try {
    await loadTunedVariants(device, (line) => io.stderr(`${line}\n`));
    const { implementation, software, description } = device.info;
    const { name, ...choices } = variantsOf(device);
    const facts = {
      runtime: describeRuntime(),
      adapter: description,
      implementation,
      reason: whyImplementation(gpu, implementation),
      software,
      features: [...device.gpu.features].sort(),
      limits: Object.fromEntries(LIMITS.map((name) => [name, device.gpu.limits[name]])),
      variants: { row: name, choices, sources: variantSources(device) },
    };
    if (json) return io.stdout(`${JSON.stringify(facts)}\n`);
    const sources: Readonly<Record<string, VariantSource>> = facts.variants.sources;
    io.stdout(table([
      ["runtime", facts.runtime],
      ["adapter", `${description}${software ? " (computes on the CPU)" : ""}`],
      [
        "WebGPU",
        `${implementation === "native" ? "the runtime's own" : "Dawn (npm webgpu)"}: ` +
        facts.reason,
      ],
      ["features", facts.features.join(", ") || "none"],
      ...Object.entries(facts.limits).map(([name, value]): [string, string] => [
        name,
        /Size$/.test(name) ? `${value} (${formatBytes(value)})` : String(value),
      ]),
      ["variants", name],
      ...Object.entries(choices).map(([choice, value]): [string, string] => [
        `  ${choice}`,
        `${describeChoice(value)} (${FROM[sources[choice]]})`,
      ]),
    ]));
  } finally {
    await device.close();
  }
}

/** Who decided a choice, in words. */
const FROM: Readonly<Record<VariantSource, string>> = {
  table: "from the table",
  tuned: "tuned",
  overridden: "overridden",
};

/**
 * Why an adapter belongs to this implementation: what `findGpu` looks for, and in which order.
 *
 * @param hasNative Whether the runtime has a `navigator.gpu`.
 */
export function whyImplementation(
  choice: GpuChoice,
  implementation: "native" | "dawn",
  hasNative: boolean = globalThis.navigator?.gpu !== undefined,
): string {
  if (choice === implementation) return `asked for by --gpu ${choice}`;
  const wanted = choice === "software" ? "adapter that computes on the CPU" : "adapter";
  if (implementation === "native") return `it comes first, and has an ${wanted}`;
  return hasNative ? `the runtime's own has no ${wanted}` : "this runtime has no WebGPU of its own";
}

/** Prints the built-in model and the models in `folders`. */
export async function listModels(folders: string[], io: CommandIo): Promise<void> {
  const rows: [string, string][] = [["built-in", "tiny-shapes: simple shapes, 128x128"]];
  const { fs } = await disk();
  for (const folder of folders) {
    if (await isModel(folder)) rows.push([folder, "diffusers folder"]);
    const names = await fs.readdir(folder).catch(() => []);
    for (const name of names.sort()) {
      const path = `${folder.replace(/[/\\]+$/, "")}/${name}`;
      if (await isModel(path)) rows.push([path, "diffusers folder"]);
    }
  }
  io.stdout(table(rows));
}

async function isModel(folder: string): Promise<boolean> {
  const { fs } = await disk();
  return await fs.stat(`${folder}/model_index.json`).then(() => true, () => false);
}

/** The parts of a checkpoint: their folder, their weights' stem, and who reads the configuration. */
const PARTS = [
  { name: "text_encoder", stem: "model", check: clipTextConfig },
  { name: "unet", stem: "diffusion_pytorch_model", check: unetConfig },
  { name: "vae", stem: "diffusion_pytorch_model", check: vaeConfig },
] as const;

/**
 * Prints what a folder or a safetensors file holds, from headers and configurations alone.
 *
 * @throws {InputError | WeightError} as loading it would.
 */
export async function inspect(path: string | undefined, io: CommandIo): Promise<void> {
  const { fs } = await disk();
  const isFile = path !== undefined && await fs.stat(path).then((s) => s.isFile(), () => false);
  io.stdout(table(isFile ? await inspectFile(path) : await inspectFolder(path ?? BUILT_IN)));
}

async function inspectFile(path: string): Promise<[string, string][]> {
  const file = await openSafetensors(path);
  try {
    const parts = Map.groupBy(file.tensors.keys(), (key) => ldmToDiffusers(key)?.part ?? "other");
    const names = [...parts].map(([part, keys]) => `${part} ${keys.length}`).join(", ");
    return [
      ...(parts.size > 1 ? [["single-file checkpoint", names] as [string, string]] : []),
      ["tensors", String(file.tensors.size)],
      ...summary([...file.tensors.values()]),
      ...Object.entries(file.metadata).map(([key, value]): [string, string] => [
        `metadata ${key}`,
        value.length > 200 ? `${value.slice(0, 200)}… (${value.length} characters)` : value,
      ]),
    ];
  } finally {
    await file.close();
  }
}

async function inspectFolder(folder: Location): Promise<[string, string][]> {
  const index = await readModelIndex(folder);
  const rows: [string, string][] = [["pipeline", String(index._class_name ?? "unknown")]];
  for (const { name, stem, check } of PARTS) {
    const part = inside(folder, name);
    const config = inside(part, "config.json");
    const json = await readJson(config);
    check(json, String(config));
    const source = await openWeights(part, stem);
    try {
      const tensors = [...source.tensors.values()].flatMap(({ file, key }) =>
        file.tensors.get(key) ?? []
      );
      const facts = summary(tensors).map((row) => row.join(" ")).join(", ");
      rows.push([name, `${className(json)}, tensors ${tensors.length}, ${facts}`]);
    } finally {
      await source.close();
    }
  }
  return rows;
}

function className(json: Json): string {
  const architectures = Array.isArray(json.architectures) ? json.architectures : [];
  return String(json._class_name ?? architectures[0] ?? "unknown class");
}

function summary(tensors: readonly TensorInfo[]): [string, string][] {
  const parameters = tensors.reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  const bytes = tensors.reduce((sum, { begin, end }) => sum + end - begin, 0);
  const dtypes = [...new Set(tensors.map(({ dtype }) => dtype))].sort();
  return [
    ["parameters", parameters.toLocaleString("en")],
    ["dtype", dtypes.join(" ") || "none"],
    ["size", formatBytes(bytes)],
  ];
}

function table(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}\n`).join("");
}
