/**
 * Arenas: the buffers that recorded plans use between their inputs and outputs.
 *
 * @module
 */

import type { BufferPool } from "./buffer_pool.ts";

/** Where tensors get their buffers from. */
export interface Allocator {
  /** A buffer of at least `bytes`; `what` names it in errors. */
  acquire(bytes: number, what: string): GPUBuffer;
  /** Takes a buffer back. */
  release(buffer: GPUBuffer): void;
}

/** Buffers of plans: reused among them, given back to the pool when the last plan ends. */
export class Arena {
  readonly #pool: BufferPool;
  readonly #idle: GPUBuffer[] = [];
  #plans = 0;

  /** Use {@link Device.arena}. */
  constructor(pool: BufferPool) {
    this.#pool = pool;
  }

  /** The smallest idle buffer that is large enough, or a new one. */
  acquire(bytes: number, what: string): GPUBuffer {
    let best = -1;
    this.#idle.forEach(({ size }, i) => {
      // A much larger buffer is left for those who need it.
      const fits = size >= bytes && size <= 2 * Math.max(bytes, 4096);
      if (fits && (best < 0 || size < this.#idle[best].size)) best = i;
    });
    return best < 0 ? this.#pool.acquire(bytes, what) : this.#idle.splice(best, 1)[0];
  }

  /** Makes a buffer idle. */
  release(buffer: GPUBuffer): void {
    if (this.#plans === 0) this.#pool.release(buffer);
    else this.#idle.push(buffer);
  }

  /** Counts a plan more. */
  open(): void {
    this.#plans++;
  }

  /** Counts a plan less; the last one gives all idle buffers back. */
  close(): void {
    if (--this.#plans > 0) return;
    for (const buffer of this.#idle.splice(0)) this.#pool.release(buffer);
  }
}
