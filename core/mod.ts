/**
 * Devices, tensors, random numbers, safetensors.
 *
 * @module
 */

export type { Block, MemoryUse } from "./buffer_pool.ts";
export type { ByteSource } from "./byte_source.ts";
export { Arena } from "./arena.ts";
export type { AdapterInfo, DeviceInfo } from "./adapter.ts";
export { Device, type DeviceOptions, openDevice } from "./device.ts";
export type { DType, HostArray } from "./dtype.ts";
export { GpuError, InputError, MemoryError, ShapeError, WeightError } from "./errors.ts";
export {
  type Binding,
  type Dispatch,
  type Kernel,
  type KernelCase,
  type Launch,
  type Param,
  registeredKernels,
  type TapeEntry,
  type TensorSpec,
} from "./kernel.ts";
export { type Likeness, openNullDevice } from "./null_gpu.ts";
export { Plan } from "./plan.ts";
export type { OpCost, ProfileRow } from "./profiler.ts";
export { Generator, generatorForFrame, type GeneratorKind } from "./random.ts";
export { describeRuntime, GPU_CHOICES, type GpuChoice, type Runtime, runtime } from "./runtime.ts";
export {
  encodeSafetensors,
  openSafetensors,
  type SafetensorsDType,
  type SafetensorsFile,
  type TensorData,
  type TensorInfo,
  type TensorStream,
  writeSafetensors,
} from "./safetensors.ts";
export type { Scope } from "./scope.ts";
export type { Shape } from "./shape.ts";
export type { MatrixConfig, MatrixSyntax, SubgroupMatrix } from "./subgroup_matrix.ts";
export { type Storage, Tensor } from "./tensor.ts";
export { type TexelFormat, texelLoader, type Texels } from "./texels.ts";
