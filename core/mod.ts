/**
 * Devices, tensors, random numbers, safetensors.
 *
 * @module
 */

export {
  type Arena,
  type Device,
  type DeviceInfo,
  type DeviceOptions,
  openDevice,
} from "./device.ts";
export type { DType, HostArray } from "./dtype.ts";
export { GpuError, InputError, ShapeError, WeightError } from "./errors.ts";
export { Generator, generatorForFrame, type GeneratorKind } from "./random.ts";
export { type GpuChoice, type Runtime, runtime } from "./runtime.ts";
export {
  encodeSafetensors,
  openSafetensors,
  type SafetensorsDType,
  type SafetensorsFile,
  type TensorData,
  type TensorInfo,
  writeSafetensors,
} from "./safetensors.ts";
export type { Shape } from "./shape.ts";
export { Tensor } from "./tensor.ts";
