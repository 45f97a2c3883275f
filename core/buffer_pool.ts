/**
 * Storage buffers and textures of texels, pooled by size: what is released waits for the next request
 * of its size class.
 *
 * Reuse is safe without fences because all work runs in order on one queue.
 *
 * @module
 */

import { GpuError, MemoryError } from "./errors.ts";
import { createTexture, texelBytes, type TexelFormat } from "./texels.ts";

/** What the pool holds. */
export type Block = GPUBuffer | GPUTexture;

/** What blocks must have in common to stand in for each other, besides their size. */
export function kindOf(block: Block): "buffer" | TexelFormat {
  return "format" in block ? block.format as TexelFormat : "buffer";
}

/** Bytes of a block. */
export function bytesOf(block: Block): number {
  return "format" in block ? texelBytes(block.format as TexelFormat, block.height) : block.size;
}

/** Bytes in use and held, as `device.memory()` reports them. */
export interface MemoryUse {
  /** Bytes of buffers and textures that tensors and plans own. */
  live: number;
  /** Largest value of `live + pooled` so far: what the GPU had to hold. */
  peak: number;
  /** Bytes that wait for reuse. */
  pooled: number;
  /** Number of buffers and textures, live and pooled. */
  buffers: number;
}

/** What the pool needs from its device. */
export interface PoolHost {
  readonly gpu: GPUDevice;
  /** Submits pending work: a block may only be destroyed when no open encoder refers to it. */
  flush(): void;
  /** Called before blocks are destroyed. */
  forget(): void;
  /** Takes an asynchronous allocation failure. */
  fail(error: GpuError): void;
}

const MiB = 2 ** 20;

/** Rounds up so that sizes repeat: multiples of 256 B, from 4 KiB on eighths of a power of two. */
export function sizeClass(bytes: number): number {
  const step = bytes <= 4096 ? 256 : 2 ** (Math.floor(Math.log2(bytes)) - 3);
  return Math.ceil(bytes / step) * step;
}

/** A pool of blocks with a cap on idle bytes and an optional budget for all bytes. */
export class BufferPool {
  readonly #host: PoolHost;
  readonly #idle = new Map<string, Block[]>();
  readonly #limit: number;
  readonly #cap: number;
  readonly #budget: number;
  #live = 0;
  #pooled = 0;
  #peak = 0;
  #buffers = 0;

  /** `cap`: idle bytes kept at most. `budget`: bytes that may be allocated in all. */
  constructor(host: PoolHost, cap: number, budget: number) {
    this.#host = host;
    this.#cap = cap;
    this.#budget = budget;
    this.#limit = host.gpu.limits.maxBufferSize;
  }

  /**
   * A buffer of at least `bytes`, with undefined content.
   *
   * @throws {GpuError} if it exceeds the adapter's buffer limit.
   * @throws {MemoryError} if it exceeds the memory budget.
   */
  acquire(bytes: number, what: string): GPUBuffer {
    const size = Math.min(sizeClass(bytes), Math.max(bytes, this.#limit));
    if (size > this.#limit) {
      throw new GpuError(
        `${what} needs a buffer of ${megabytes(bytes)}, and this adapter allows ` +
          `${megabytes(this.#limit)} a buffer: use a smaller size, fewer rows at once, or f16`,
      );
    }
    return this.#take("buffer", size, what, (gpu) =>
      gpu.createBuffer({
        size,
        usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
      }));
  }

  /**
   * A texture of at least `rows` rows of texels, with undefined content.
   *
   * @throws {GpuError} if it exceeds the adapter's limit.
   * @throws {MemoryError} if it exceeds the memory budget.
   */
  acquireTexels(format: TexelFormat, rows: number, what: string): GPUTexture {
    const { maxTextureDimension2D: limit } = this.#host.gpu.limits;
    const row = texelBytes(format, 1);
    const height = Math.min(Math.ceil(sizeClass(rows * row) / row), Math.max(rows, limit));
    if (height > limit) {
      throw new GpuError(
        `${what} needs a texture of ${rows} rows, and this adapter allows ${limit}: use a smaller ` +
          `size, or fewer rows at once`,
      );
    }
    return this.#take(format, height * row, what, (gpu) => createTexture(gpu, format, height));
  }

  #take<B extends Block>(
    kind: string,
    size: number,
    what: string,
    create: (gpu: GPUDevice) => B,
  ): B {
    const found = this.#idle.get(`${kind} ${size}`)?.pop() as B | undefined;
    if (found) {
      this.#pooled -= size;
      this.#live += size;
      return found;
    }
    if (this.#live + this.#pooled + size > this.#budget) this.trim();
    if (this.#live + size > this.#budget) {
      throw new MemoryError(
        `${what} needs ${megabytes(size)}, but ${megabytes(this.#live)} of the budget of ` +
          `${megabytes(this.#budget)} are in use: use a smaller size, f16, or a larger budget`,
      );
    }
    const block = this.#watched(size, what, create);
    this.#live += size;
    this.#buffers++;
    this.#peak = Math.max(this.#peak, this.#live + this.#pooled);
    return block;
  }

  #watched<B extends Block>(size: number, what: string, create: (gpu: GPUDevice) => B): B {
    const { gpu } = this.#host;
    // Small requests are not watched: a scope costs more than the block.
    const watched = size >= MiB;
    if (watched) gpu.pushErrorScope("out-of-memory");
    const block = create(gpu);
    if (watched) {
      gpu.popErrorScope().then((error) => {
        if (!error) return;
        this.#host.fail(
          new GpuError(
            `the GPU ran out of memory at ${what} (${megabytes(size)}, with ` +
              `${megabytes(this.#live)} in use): use a smaller size, fewer rows, or f16`,
          ),
        );
      }, () => {/* a lost device is reported by its own promise */});
    }
    return block;
  }

  /** Gives a block back; beyond the cap, idle ones are destroyed. */
  release(block: Block): void {
    const size = bytesOf(block);
    this.#live -= size;
    this.#pooled += size;
    const key = `${kindOf(block)} ${size}`;
    const idle = this.#idle.get(key);
    if (idle) idle.push(block);
    else this.#idle.set(key, [block]);
    if (this.#pooled > this.#cap) this.trim();
  }

  /** Destroys all idle blocks. */
  trim(): void {
    if (this.#pooled === 0) return;
    this.#host.flush();
    this.#host.forget();
    for (const idle of this.#idle.values()) {
      for (const block of idle) {
        block.destroy();
        this.#buffers--;
      }
    }
    this.#idle.clear();
    this.#pooled = 0;
  }

  /** Bytes in use and held. */
  memory(): MemoryUse {
    return { live: this.#live, peak: this.#peak, pooled: this.#pooled, buffers: this.#buffers };
  }

  /** Starts a new measurement of `peak`. */
  resetPeak(): void {
    this.#peak = this.#live + this.#pooled;
  }
}

/** `12.3 MiB`: how sizes are written in messages. */
export function megabytes(bytes: number): string {
  return bytes < MiB ? `${bytes} bytes` : `${(bytes / MiB).toFixed(1)} MiB`;
}
