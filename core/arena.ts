/**
 * Arenas: the buffers and textures that recorded plans use between their inputs and outputs.
 *
 * @module
 */

import { type Block, type BufferPool, bytesOf, kindOf } from "./buffer_pool.ts";
import { texelBytes, type TexelFormat } from "./texels.ts";

/** Where tensors get their buffers from, and texels their textures. */
export interface Allocator {
  /** A buffer of at least `bytes`; `what` names it in errors. */
  acquire(bytes: number, what: string): GPUBuffer;
  /** A texture of at least `rows` rows. */
  acquireTexels(format: TexelFormat, rows: number, what: string): GPUTexture;
  /** Takes a buffer or a texture back. */
  release(block: Block): void;
}

/** Buffers and textures of plans: reused among them, given back to the pool when the last plan ends. */
export class Arena {
  readonly #pool: BufferPool;
  readonly #idle: Block[] = [];
  #plans = 0;

  /** Use {@link Device.arena}. */
  constructor(pool: BufferPool) {
    this.#pool = pool;
  }

  /** The smallest idle buffer that is large enough, or a new one. */
  acquire(bytes: number, what: string): GPUBuffer {
    return this.#idleOf<GPUBuffer>("buffer", bytes) ?? this.#pool.acquire(bytes, what);
  }

  /** The same for textures. */
  acquireTexels(format: TexelFormat, rows: number, what: string): GPUTexture {
    return this.#idleOf<GPUTexture>(format, texelBytes(format, rows)) ??
      this.#pool.acquireTexels(format, rows, what);
  }

  #idleOf<B extends Block>(kind: string, bytes: number): B | null {
    let best = -1;
    this.#idle.forEach((block, i) => {
      if (kindOf(block) !== kind) return;
      const size = bytesOf(block);
      // A much larger one is left for those who need it.
      const fits = size >= bytes && size <= 2 * Math.max(bytes, 4096);
      if (fits && (best < 0 || size < bytesOf(this.#idle[best]))) best = i;
    });
    return best < 0 ? null : this.#idle.splice(best, 1)[0] as B;
  }

  /** Makes a block idle. */
  release(block: Block): void {
    if (this.#plans === 0) this.#pool.release(block);
    else this.#idle.push(block);
  }

  /** Counts a plan more. */
  open(): void {
    this.#plans++;
  }

  /** Counts a plan less; the last one gives all that is idle back. */
  close(): void {
    if (--this.#plans > 0) return;
    for (const block of this.#idle.splice(0)) this.#pool.release(block);
  }
}
