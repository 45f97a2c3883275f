/**
 * A GPU that computes nothing: all work on it passes through the same operations, pools and plans,
 * so that memory can be accounted for in advance, and for settings that no GPU at hand could run.
 *
 * @module
 */

import type { DeviceInfo } from "./adapter.ts";
import { Device, type DeviceOptions } from "./device.ts";

/** What a device without a GPU pretends to be: an open device, or parts of one. */
export interface Likeness {
  /** Limits and features. */
  readonly gpu: Pick<GPUDevice, "limits" | "features">;
  /** What kernels choose their forms by. */
  readonly info: DeviceInfo;
}

/** Numbers of WebGPU that runtimes without it lack. */
const CONSTANTS = {
  GPUBufferUsage: { MAP_READ: 1, COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 },
  GPUTextureUsage: { COPY_DST: 2, STORAGE_BINDING: 8 },
  GPUMapMode: { READ: 1 },
  GPUShaderStage: { COMPUTE: 4 },
};

/** A device like another, whose tensors read as zeros. */
export function openNullDevice(like: Likeness, options: DeviceOptions = {}): Device {
  for (const [name, value] of Object.entries(CONSTANTS)) {
    if (name in globalThis) continue;
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }
  return new Device(nullGpu(like.gpu), like.info, options);
}

function nullGpu({ limits, features }: Likeness["gpu"]): GPUDevice {
  const nothing = () => {};
  const object = () => ({});
  const pass = {
    setPipeline: nothing,
    setBindGroup: nothing,
    dispatchWorkgroups: nothing,
    end: nothing,
  };
  const encoder = {
    beginComputePass: () => pass,
    copyBufferToBuffer: nothing,
    copyBufferToTexture: nothing,
    finish: object,
  };
  const gpu = {
    limits,
    features,
    lost: new Promise<GPUDeviceLostInfo>(nothing),
    queue: {
      writeBuffer: nothing,
      submit: nothing,
      onSubmittedWorkDone: () => Promise.resolve(),
    },
    createBuffer: ({ size }: GPUBufferDescriptor) => ({
      size,
      destroy: nothing,
      mapAsync: () => Promise.resolve(),
      getMappedRange: () => new ArrayBuffer(size),
      unmap: nothing,
    }),
    createTexture: ({ size, format }: GPUTextureDescriptor) => {
      const [width, height] = size as Iterable<number>;
      return { width, height, format, destroy: nothing, createView: object };
    },
    createBindGroupLayout: object,
    createPipelineLayout: object,
    createBindGroup: object,
    createShaderModule: object,
    createComputePipeline: object,
    createCommandEncoder: () => encoder,
    pushErrorScope: nothing,
    popErrorScope: () => Promise.resolve(null),
    addEventListener: nothing,
    destroy: nothing,
  };
  // The rest of WebGPU's interface is never called by a device.
  return gpu as unknown as GPUDevice;
}
