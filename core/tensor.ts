/**
 * Tensors: a shape and a dtype over a row-major piece of a GPU buffer.
 *
 * A tensor is plain data. Operations live in `kernels/`; they enqueue work and return at once. Only
 * reading a tensor back waits for the GPU.
 *
 * @module
 */

import type { Device } from "./device.ts";
import { bytesPerElement, type DType, f16ArrayToF32, type HostArray } from "./dtype.ts";
import { GpuError } from "./errors.ts";
import { inferShape, type Shape, sizeOf } from "./shape.ts";

/** A GPU buffer that one or more tensors look into. */
export interface Storage {
  /** Where it lies. */
  readonly buffer: GPUBuffer;
  /** Bytes that hold elements; the buffer may be larger. */
  readonly bytes: number;
  /** Tensors and plans that hold it. At zero the buffer goes back to where it came from. */
  references: number;
  /** Takes the buffer after the last holder. */
  readonly release: (buffer: GPUBuffer) => void;
}

/** Counts one holder less, and gives the buffer back after the last one. */
export function releaseStorage(storage: Storage): void {
  if (--storage.references === 0) storage.release(storage.buffer);
}

/**
 * An n-dimensional array on the GPU, row-major and contiguous.
 *
 * Made by {@link Device.tensor}, {@link Device.empty} and the operations. Freed by the scope that it
 * was made in, by {@link Tensor.dispose}, or by `using`.
 */
export class Tensor implements Disposable {
  /** Device that holds it. */
  readonly device: Device;
  /** Extent of each axis. */
  readonly shape: Shape;
  /** Element type. */
  readonly dtype: DType;
  /** Buffer behind it. */
  readonly storage: Storage;
  /** First byte in the buffer. */
  readonly offset: number;
  #disposed = false;

  /** Made by a {@link Device}; takes one reference of `storage` that the caller already counted. */
  constructor(device: Device, shape: Shape, dtype: DType, storage: Storage, offset: number) {
    this.device = device;
    this.shape = shape;
    this.dtype = dtype;
    this.storage = storage;
    this.offset = offset;
  }

  /** Number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  /** Bytes of its elements. */
  get bytes(): number {
    return this.size * bytesPerElement(this.dtype);
  }

  /** Whether it was disposed of. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * The same elements under another shape, without a copy; one extent may be −1.
   *
   * @throws {ShapeError} if the number of elements differs.
   */
  reshape(shape: Shape): Tensor {
    return this.device.view(this, inferShape(shape, this.size), this.offset);
  }

  /** The elements as numbers (`f16` is converted). Waits for the GPU. */
  async data(): Promise<Float32Array<ArrayBuffer>> {
    const raw = await this.device.read(this);
    if (raw instanceof Float32Array) return raw;
    return raw instanceof Uint16Array ? f16ArrayToF32(raw) : Float32Array.from(raw);
  }

  /** The elements in their own type (`f16` as bits). Waits for the GPU. */
  raw(): Promise<HostArray> {
    return this.device.read(this);
  }

  /** Takes the tensor out of its scope: it lives until it is disposed of. */
  keep(): this {
    this.device.release(this);
    return this;
  }

  /** Gives its memory back. Work already enqueued still sees the old content. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.device.release(this);
    releaseStorage(this.storage);
  }

  /** Same as {@link Tensor.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /**
   * Checks that the tensor can still be used by `op`.
   *
   * @throws {GpuError} if it was disposed of.
   */
  checkAlive(op: string): void {
    if (!this.#disposed) return;
    throw new GpuError(
      `${op}: this ${this.dtype} tensor of shape [${this.shape}] was disposed of; ` +
        `return it from its scope, or call keep() on it`,
    );
  }
}
