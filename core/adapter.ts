/**
 * The adapter under a device: what is requested of it, and what it is like.
 *
 * @module
 */

import { findGpu, type GpuChoice } from "./runtime.ts";
import { findSubgroupMatrix, SUBGROUP_MATRIX, type SubgroupMatrix } from "./subgroup_matrix.ts";
import { hasTexels } from "./texels.ts";

/** What kind of device was opened. */
export interface DeviceInfo {
  /** `"native"`: the runtime's own WebGPU. `"dawn"`: npm `webgpu`. */
  readonly implementation: "native" | "dawn";
  /** Whether the adapter computes on the CPU. */
  readonly software: boolean;
  /** Adapter and driver. */
  readonly description: string;
  /** Who made the adapter: a name in lower case, or a PCI number; may be empty. */
  readonly vendor: string;
  /** Its family, such as `"ampere"`; may be empty. */
  readonly architecture: string;
  /** Half precision in shaders and storage. */
  readonly f16: boolean;
  /** Timestamps for the profiler. */
  readonly timestamps: boolean;
  /** Subgroup operations in shaders. */
  readonly subgroups: boolean;
  /** Invocations of a subgroup, where these operations exist and all subgroups are alike; else `null`. */
  readonly subgroupSize: number | null;
  /** Textures that shaders can read as they read storage. */
  readonly texels: boolean;
  /** Matrix units; `null` unless asked for by `experimental` and usable. */
  readonly subgroupMatrix: SubgroupMatrix | null;
}

/** What of it the adapter tells; the rest are features of the device. */
export type AdapterInfo = Omit<DeviceInfo, "f16" | "timestamps" | "subgroups">;

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxTextureDimension2D",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupsPerDimension",
] as const;

/**
 * Finds an adapter and requests a device with all of its limits.
 *
 * @param experimental Whether to ask for what is no standard yet.
 * @throws {GpuError} if there is no adapter; the message says what was looked for and what helps.
 */
export async function requestDevice(
  choice: GpuChoice,
  experimental: boolean,
): Promise<{ gpu: GPUDevice; info: AdapterInfo }> {
  const { gpu: entry, adapter, ...found } = await findGpu(choice, { experimental });
  const { vendor, architecture } = adapter.info;
  const wanted: GPUFeatureName[] = ["shader-f16", "timestamp-query", "subgroups"];
  if (experimental) wanted.push(SUBGROUP_MATRIX);
  const gpu = await adapter.requestDevice({
    requiredFeatures: wanted.filter((feature) => adapter.features.has(feature)),
    requiredLimits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
  });
  const subgroupMatrix = await findSubgroupMatrix(gpu, adapter.info);
  const { subgroupMinSize, subgroupMaxSize } = adapter.info as Partial<GPUAdapterInfo>;
  const alike = gpu.features.has("subgroups") && subgroupMinSize === subgroupMaxSize;
  const info = {
    ...found,
    vendor,
    architecture,
    subgroupSize: alike ? subgroupMinSize ?? null : null,
    texels: hasTexels(entry),
    subgroupMatrix,
  };
  return { gpu, info };
}
