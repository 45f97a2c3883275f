/**
 * The command `info`.
 *
 * @module
 */

import { openDevice } from "../../core/device.ts";
import { describeRuntime, type GpuChoice } from "../../core/runtime.ts";
import { describeChoice, loadTunedVariants } from "../../kernels/tuned_variants.ts";
import { variantsOf, type VariantSource, variantSources } from "../../kernels/variants.ts";
import { formatBytes } from "../progress.ts";
import type { CommandIo } from "./io.ts";
import { table } from "./table.ts";

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
