/**
 * Storage buffers, pooled by size: a released buffer waits for the next request of its size class.
 *
 * Reuse is safe without fences because all work runs in order on one queue.
 *
 * @module
 */

import { GpuError, MemoryError } from "./errors.ts";

/** Bytes in use and held, as `device.memory()` reports them. */
export interface MemoryUse {
  /** Bytes of buffers that tensors and plans own. */
  live: number;
  /** Largest value of `live + pooled` so far: what the GPU had to hold. */
  peak: number;
  /** Bytes of buffers that wait for reuse. */
  pooled: number;
  /** Number of buffers, live and pooled. */
  buffers: number;
}

/** What the pool needs from its device. */
export interface PoolHost {
  readonly gpu: GPUDevice;
  /** Submits pending work: a buffer may only be destroyed when no open encoder refers to it. */
  flush(): void;
  /** Called before a buffer is destroyed. */
  forget(buffer: GPUBuffer): void;
  /** Takes an asynchronous allocation failure. */
  fail(error: GpuError): void;
}

const MiB = 2 ** 20;

/** Rounds up so that sizes repeat: multiples of 256 B, from 4 KiB on eighths of a power of two. */
export function sizeClass(bytes: number): number {
  const step = bytes <= 4096 ? 256 : 2 ** (Math.floor(Math.log2(bytes)) - 3);
  return Math.ceil(bytes / step) * step;
}

/** A pool of storage buffers with a cap on idle bytes and an optional budget for all bytes. */
export class BufferPool {
  readonly #host: PoolHost;
  readonly #idle = new Map<number, GPUBuffer[]>();
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
    const found = this.#idle.get(size)?.pop();
    if (found) {
      this.#pooled -= size;
      this.#live += size;
      return found;
    }
    if (size > this.#limit) {
      throw new GpuError(
        `${what} needs a buffer of ${megabytes(bytes)}, and this adapter allows ` +
          `${megabytes(this.#limit)} a buffer: use a smaller size, fewer rows at once, or f16`,
      );
    }
    if (this.#live + this.#pooled + size > this.#budget) this.trim();
    if (this.#live + size > this.#budget) {
      throw new MemoryError(
        `${what} needs ${megabytes(size)}, but ${megabytes(this.#live)} of the budget of ` +
          `${megabytes(this.#budget)} are in use: use a smaller size, f16, or a larger budget`,
      );
    }
    const buffer = this.#create(size, what);
    this.#live += size;
    this.#buffers++;
    this.#peak = Math.max(this.#peak, this.#live + this.#pooled);
    return buffer;
  }

  #create(size: number, what: string): GPUBuffer {
    const { gpu } = this.#host;
    // Small requests are not watched: a scope costs more than the buffer.
    const watched = size >= MiB;
    if (watched) gpu.pushErrorScope("out-of-memory");
    const buffer = gpu.createBuffer({
      size,
      usage: GPUBufferUsage.STORAGE | GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_SRC |
        GPUBufferUsage.COPY_DST,
    });
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
    return buffer;
  }

  /** Gives a buffer back; beyond the cap, idle buffers are destroyed. */
  release(buffer: GPUBuffer): void {
    this.#live -= buffer.size;
    this.#pooled += buffer.size;
    const idle = this.#idle.get(buffer.size);
    if (idle) idle.push(buffer);
    else this.#idle.set(buffer.size, [buffer]);
    if (this.#pooled > this.#cap) this.trim();
  }

  /** Destroys all idle buffers. */
  trim(): void {
    if (this.#pooled === 0) return;
    this.#host.flush();
    for (const idle of this.#idle.values()) {
      for (const buffer of idle) {
        this.#host.forget(buffer);
        buffer.destroy();
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
