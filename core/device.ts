/**
 * The device: queue, buffers, pipelines and scopes in one object.
 *
 * @module
 */

import { type AdapterInfo, type DeviceInfo, requestDevice } from "./adapter.ts";
import { type Allocator, Arena } from "./arena.ts";
import { BufferPool, type MemoryUse } from "./buffer_pool.ts";
import {
  bytesPerElement,
  type DType,
  dtypeOf,
  HOST_ARRAYS,
  type HostArray,
  hostArray,
} from "./dtype.ts";
import { GpuError, ShapeError } from "./errors.ts";
import type { Dispatch, TapeEntry } from "./kernel.ts";
import { napUntil } from "./nap.ts";
import { Plan } from "./plan.ts";
import { type OpCost, Profiler, type ProfileRow } from "./profiler.ts";
import { BATCH, CommandQueue } from "./queue.ts";
import { endedBy } from "./race.ts";
import type { GpuChoice } from "./runtime.ts";
import { type Scope, ScopeStack } from "./scope.ts";
import { checkShape, formatShape, type Shape, sizeOf } from "./shape.ts";
import { Tensor } from "./tensor.ts";
import { type Texels, texelsOf } from "./texels.ts";

/** How to open a device. */
export interface DeviceOptions {
  /** Which WebGPU to use. Default `"auto"`. */
  gpu?: GpuChoice;
  /** Bytes that tensors may occupy in all; beyond it an allocation fails. Default: no limit. */
  memoryBudget?: number;
  /** Bytes of idle buffers kept for reuse. Default 1 GiB. */
  poolBytes?: number;
  /** Use what is no standard yet, such as Dawn's subgroup matrices. Default false. */
  experimental?: boolean;
}

const GiB = 2 ** 30;

/**
 * Finds an adapter and opens a device on it.
 *
 * @throws {GpuError} if there is no adapter; the message says what was looked for and what helps.
 */
export async function openDevice(options: DeviceOptions = {}): Promise<Device> {
  const { gpu = "auto", experimental = false } = options;
  const requested = await requestDevice(gpu, experimental);
  return new Device(requested.gpu, requested.info, options);
}

/** An open GPU device. Made by {@link openDevice}. */
export class Device implements Disposable {
  /** The WebGPU device. */
  readonly gpu: GPUDevice;
  /** What was opened. */
  readonly info: DeviceInfo;
  /** Told every operation while set: the hook of automatic differentiation. */
  tape: ((entry: TapeEntry) => void) | null = null;
  readonly #queue: CommandQueue;
  #pool: BufferPool;
  readonly #scopes = new ScopeStack();
  readonly #unlessLost: <T>(promise: Promise<T>) => Promise<T>;
  #failure: GpuError | null = null;
  #closed = false;
  #syncs = 0;
  #allocator: Allocator;
  #made: Set<Tensor> | null = null;

  /** Use {@link openDevice}. */
  constructor(
    gpu: GPUDevice,
    found: AdapterInfo,
    options: DeviceOptions,
  ) {
    this.gpu = gpu;
    this.info = {
      ...found,
      f16: gpu.features.has("shader-f16"),
      timestamps: gpu.features.has("timestamp-query"),
      subgroups: gpu.features.has("subgroups"),
    };
    const fail = (error: GpuError) => {
      this.#failure ??= error;
    };
    // What the compiler says of a shader is worth more than the refusals that follow from it.
    this.#queue = new CommandQueue(gpu, found.software, (error) => {
      this.#failure = error;
    });
    const host = {
      gpu,
      fail,
      flush: () => this.#queue.flush(),
      forget: () => this.#queue.forget(),
    };
    this.#pool = new BufferPool(host, options.poolBytes ?? GiB, options.memoryBudget ?? Infinity);
    this.#allocator = this.#pool;
    this.#unlessLost = endedBy(gpu.lost.then((info) => {
      const error = new GpuError(
        this.#closed
          ? "the device was closed"
          : `the GPU device was lost (${info.reason}: ${info.message}); open a new one and load ` +
            `the model again. If it happens again, use a smaller size or fewer rows at once`,
      );
      fail(error);
      throw error;
    }));
    gpu.addEventListener("uncapturederror", (event) => {
      const { error } = event as GPUUncapturedErrorEvent;
      const memory = error.constructor.name === "GPUOutOfMemoryError";
      fail(
        new GpuError(
          memory
            ? `the GPU ran out of memory: use a smaller size, fewer rows, or f16 (${error.message})`
            : `WebGPU refused a command: ${error.message}`,
        ),
      );
    });
  }

  /**
   * A tensor with the given elements.
   *
   * Without `dtype` the array's type decides: `Float32Array` and plain numbers are `f32`. Numbers
   * given for `f16` are rounded; `Uint16Array` holds `f16` bits.
   *
   * @throws {ShapeError} if the shape does not hold the elements.
   */
  tensor(data: HostArray | readonly number[], shape?: Shape, dtype?: DType): Tensor {
    const extents = shape ?? [data.length];
    const type = dtype ?? dtypeOf(data);
    if (sizeOf(extents) !== data.length) {
      throw new ShapeError(
        `tensor: shape [${extents}] has ${sizeOf(extents)} elements, but ${data.length} came`,
      );
    }
    const tensor = this.empty(extents, type);
    this.write(tensor, data);
    return tensor;
  }

  /** A tensor with undefined content. */
  empty(shape: Shape, dtype: DType = "f32"): Tensor {
    this.check();
    if (dtype === "f16" && !this.info.f16) {
      throw new GpuError(
        `this adapter (${this.info.description}) has no half precision; use dtype "f32"`,
      );
    }
    checkShape(shape, "tensor");
    const what = `a ${dtype} tensor of shape ${formatShape(shape)}`;
    const allocator = this.#allocator;
    const bytes = sizeOf(shape) * bytesPerElement(dtype);
    const buffer = allocator.acquire(Math.max(16, bytes), what);
    const release = (buffer: GPUBuffer) => allocator.release(buffer);
    const storage = { buffer, bytes, references: 1, release };
    return this.#adopt(new Tensor(this, shape, dtype, storage, 0));
  }

  /**
   * Enqueues a copy of a tensor into texels, which live until they are disposed of. For the door.
   *
   * @throws {GpuError} if the tensor does not consist of texels.
   */
  texels(tensor: Tensor): { readonly texels: Texels; dispose(): void } {
    tensor.checkAlive("texels");
    const { format, rows } = texelsOf(tensor);
    const allocator = this.#allocator;
    const what = `a copy of a ${tensor.dtype} tensor of shape ${formatShape(tensor.shape)}`;
    const texture = allocator.acquireTexels(format, rows, what);
    const texels = { texture, format };
    this.#queue.copyTexels(tensor, texels);
    return { texels, dispose: () => allocator.release(texture) };
  }

  /** A tensor over a part of another's buffer. Used by `reshape` and leading-axis slices. */
  view(source: Tensor, shape: Shape, offset: number): Tensor {
    source.checkAlive("view");
    source.storage.references++;
    return this.#adopt(new Tensor(this, shape, source.dtype, source.storage, offset));
  }

  #adopt(tensor: Tensor): Tensor {
    this.#made?.add(tensor);
    this.#scopes.add(tensor);
    return tensor;
  }

  /** Takes a tensor out of its scope. */
  release(tensor: Tensor): void {
    this.#made?.delete(tensor);
    this.#scopes.remove(tensor);
  }

  /** Replaces the elements of a tensor, in order with the work enqueued so far. */
  write(tensor: Tensor, data: HostArray | readonly number[]): void {
    this.check();
    if (data.length !== tensor.size) {
      throw new ShapeError(
        `write: the tensor of shape [${tensor.shape}] takes ${tensor.size} elements, ` +
          `but ${data.length} came`,
      );
    }
    const { buffer } = tensor.storage;
    if (this.#queue.isPending(buffer)) this.#queue.flush();
    const array = hostArray(data, tensor.dtype);
    const { queue } = this.gpu;
    const odd = array.byteLength % 4 !== 0; // WebGPU writes multiples of 4 bytes
    if (odd && tensor.offset + tensor.bytes < tensor.storage.bytes) {
      throw new ShapeError(
        `write: a half-precision view of odd length (shape [${tensor.shape}]) cannot be written ` +
          `alone, its last element shares 4 bytes with the next; write the whole tensor`,
      );
    }
    const whole = odd ? array.length - 1 : array.length;
    if (whole) queue.writeBuffer(buffer, tensor.offset, array, 0, whole);
    if (odd) {
      const tail = new Uint16Array([array[whole], 0]);
      queue.writeBuffer(buffer, tensor.offset + 2 * whole, tail);
    }
  }

  /** The elements of a tensor. Waits for the GPU. */
  async read(tensor: Tensor): Promise<HostArray> {
    tensor.checkAlive("read");
    this.check();
    const bytes = Math.ceil(tensor.bytes / 4) * 4;
    const staging = this.gpu.createBuffer({
      size: bytes,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
    try {
      this.#queue.copy(tensor.storage.buffer, tensor.offset, staging, bytes);
      this.#queue.flush();
      this.#syncs++;
      await this.#orLost(staging.mapAsync(GPUMapMode.READ));
      await this.#queue.settle();
      this.check();
      const copy = staging.getMappedRange().slice(0, tensor.bytes);
      staging.unmap();
      return new HOST_ARRAYS[tensor.dtype](copy);
    } finally {
      staging.destroy();
    }
  }

  /**
   * Submits all work and waits for it.
   *
   * @throws {GpuError} if anything failed since the last wait, or the device was lost.
   */
  async sync(): Promise<void> {
    this.check();
    this.flush();
    this.#syncs++;
    await this.#orLost(this.gpu.queue.onSubmittedWorkDone());
    await this.#queue.settle();
    this.check();
  }

  async #orLost<T>(promise: Promise<T>): Promise<T> {
    try {
      const either = this.#unlessLost(promise);
      return await (this.info.implementation === "dawn" ? napUntil(either) : either);
    } catch (error) {
      this.check();
      throw error;
    }
  }

  /**
   * Throws what has gone wrong since the device was opened.
   *
   * @throws {GpuError} if the device has failed.
   */
  check(): void {
    if (this.#failure) throw this.#failure;
  }

  /** Submits the work enqueued so far, writes included: these alone begin with a submission too. */
  flush(): void {
    if (!this.#queue.flush()) this.gpu.queue.submit([]);
  }

  /** Enqueues a shader run. For kernels. */
  dispatch(kernel: string, dispatch: Dispatch): void {
    this.#queue.dispatch(kernel, dispatch);
  }

  /** Names the operation that the next dispatches belong to. For the door. */
  beginOp(op: OpCost): void {
    this.#queue.profiler?.begin(op);
  }

  /** Runs `body`, then frees the tensors made in it, except those in its result. */
  scope<T>(body: () => T): T;
  /** Opens a scope that ends with `using`. */
  scope(): Scope;
  scope<T>(body?: () => T): T | Scope {
    return body ? this.#scopes.run(body) : this.#scopes.open();
  }

  /** Bytes on the GPU. */
  memory(): MemoryUse {
    return this.#pool.memory();
  }

  /** Starts a new measurement of the peak. */
  resetPeak(): void {
    this.#pool.resetPeak();
  }

  /** Gives idle buffers back to the system. */
  trim(): void {
    this.#pool.trim();
  }

  /**
   * Since the device was opened: dispatches, submissions, times that the host waited for the GPU
   * (`read`, `sync`), and pipelines compiled.
   */
  counts(): { dispatches: number; submissions: number; syncs: number; pipelines: number } {
    return { ...this.#queue.counts, syncs: this.#syncs, pipelines: this.#queue.pipelines };
  }

  /** Buffers for plans that never run at the same time, and so may share what lies between. */
  arena(): Arena {
    return new Arena(this.#pool);
  }

  /**
   * Records what `body` enqueues, without running it.
   *
   * Tensors made in `body` belong to the plan; those in its result can be read after a run, and
   * until the next run of a plan with the same arena.
   */
  record<T>(body: () => T, arena: Arena = this.arena()): Plan<T> {
    if (this.#made) throw new GpuError("record: a plan is being recorded already");
    this.#queue.flush();
    arena.open();
    this.#allocator = arena;
    this.#made = new Set();
    this.#queue.recording = [];
    try {
      const result = this.scope(body);
      const made = [...this.#made];
      for (const tensor of made) this.#scopes.remove(tensor);
      return new Plan(this.gpu, this.#queue, this.#queue.recording, result, made, () => {
        arena.close();
      });
    } catch (error) {
      for (const tensor of [...this.#made]) tensor.dispose();
      arena.close();
      throw error;
    } finally {
      this.#allocator = this.#pool;
      this.#made = null;
      this.#queue.recording = null;
    }
  }

  /** Runs `body` and returns where its GPU time went, the costliest operation first. */
  async profile(body: () => void | Promise<void>): Promise<ProfileRow[]> {
    await this.sync();
    const profiler = new Profiler(this.gpu, BATCH);
    this.#queue.profiler = profiler;
    try {
      await body();
      await this.sync();
    } finally {
      this.#queue.profiler = null;
    }
    return profiler.finish();
  }

  /**
   * Closes the device, and gives the driver's threads the moment that they need to come to rest:
   * Mesa aborts now and then if the process ends while it still writes its shader cache.
   */
  async close(): Promise<void> {
    this.dispose();
    if (this.info.software) await new Promise((resolve) => setTimeout(resolve, 100));
  }

  /** Closes the device: all its tensors become invalid. */
  dispose(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.gpu.destroy();
  }

  /** Same as {@link Device.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
