/**
 * From the bytes of a file to the numbers that a tensor is filled with, by the kernels of the host.
 *
 * @module
 */

import { bytesPerElement, type DType, e4m3ArrayToF32, e5m2ArrayToF32 } from "../core/dtype.ts";
import type { SafetensorsDType } from "../core/safetensors.ts";
import { PANEL } from "../kernels/panels.ts";
import { type HostKernels, packedSize, scalarKernels } from "./host_kernels.ts";
import { PACK_COLUMNS, vectorKernels } from "./host_simd.ts";

/** Rows that are converted together. */
export interface Rows {
  /** Type that they are stored in. */
  readonly stored: SafetensorsDType;
  /** Type that they are wanted in. */
  readonly wanted: DType;
  /** How many. */
  readonly rows: number;
  /** Numbers in each. */
  readonly columns: number;
}

/** Converted numbers: they hold until the next call. */
export type Floats = Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>;

/** Bytes of a number in the types that can be converted. */
const STORED: Partial<Record<SafetensorsDType, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
};

/** Whether numbers stored like this can be converted. */
export function isConvertible(stored: SafetensorsDType): boolean {
  return stored in STORED;
}

/** Numbers that there is room for: whole panels. */
function room({ rows, columns }: Rows): number {
  return Math.ceil(rows / PANEL) * PANEL * columns;
}

/** Places to read into: one is read while another is worked on. */
const SLOTS = 2;

/** Converts rows, in one piece of memory that is made once. */
export class Converter {
  readonly #kernels: HostKernels;
  readonly #scalar: HostKernels;
  readonly #slots: readonly number[];
  readonly #wide: number;
  readonly #half: number;
  readonly #panels: number;
  #turn = 0;

  private constructor(kernels: HostKernels, places: readonly number[]) {
    this.#kernels = kernels;
    this.#scalar = scalarKernels(kernels.memory);
    [this.#wide, this.#half, this.#panels, ...this.#slots] = places;
  }

  /** A converter with room for the largest of `all`. */
  static async of(all: readonly Rows[], vectors = true): Promise<Converter> {
    const most = (bytes: (rows: Rows) => number) =>
      all.reduce((sum, rows) => Math.max(sum, bytes(rows)), 0);
    const raw = most((rows) => room(rows) * (STORED[rows.stored] ?? 0));
    const sizes = [
      most((rows) => room(rows) * 4),
      most((rows) => room(rows) * 2),
      most(({ rows, columns, wanted }) => packedSize(rows, columns) * bytesPerElement(wanted)),
      ...Array.from({ length: SLOTS }, () => raw),
    ];
    const places: number[] = [];
    let bytes = 0;
    for (const size of sizes) {
      places.push(bytes);
      bytes += Math.ceil(size / 64) * 64;
    }
    const kernels = vectors ? await vectorKernels(bytes) : null;
    return new Converter(kernels ?? scalarKernels(new ArrayBuffer(bytes)), places);
  }

  /** Where `length` bytes can be read to; the place holds until the next but one is asked for. */
  slot(length: number): Uint8Array<ArrayBuffer> {
    this.#turn = (this.#turn + 1) % SLOTS;
    return new Uint8Array(this.#kernels.memory, this.#slots[this.#turn], length);
  }

  /**
   * Converts what lies in a slot.
   *
   * @param bytes The slot, filled with the rows.
   * @param packed Whether panels are wanted, as `kernels/panels.ts` defines them.
   * @returns The numbers, or `null` if one of them is not finite.
   */
  convert(of: Rows, { byteOffset, length }: Uint8Array, packed: boolean): Floats | null {
    const { rows, columns, wanted } = of;
    const end = byteOffset + room(of) * STORED[of.stored]!;
    // What lies behind the rows is converted and packed as well.
    new Uint8Array(this.#kernels.memory).fill(0, byteOffset + length, end);
    const at = this.#convert(of, byteOffset, end);
    if (at === null) return null;
    if (!packed) return this.#view(wanted, at, rows * columns);
    this.#pack(of, at);
    return this.#view(wanted, this.#panels, packedSize(rows, columns));
  }

  #view(type: DType, at: number, count: number): Floats {
    const { memory } = this.#kernels;
    return type === "f16"
      ? new Uint16Array(memory, at, count)
      : new Float32Array(memory, at, count);
  }

  /** Where the converted numbers lie; `null` if one is not finite. */
  #convert(of: Rows, from: number, end: number): number | null {
    const { stored, wanted } = of;
    const kernels = this.#kernels;
    if (stored === "F16") {
      if (kernels.infinite16(from, end)) return null;
      if (wanted === "f16") return from;
      kernels.widenF16(from, end, this.#wide);
      return this.#wide;
    }
    const numbers = room(of);
    const wide = stored === "F32" ? from : this.#wide;
    if (stored === "BF16") kernels.widenBf16(from, end, wide);
    else DECODERS[stored]?.(kernels.memory, from, new Float32Array(kernels.memory, wide, numbers));
    if (wanted !== "f16") return kernels.infinite32(wide, wide + 4 * numbers) ? null : wide;
    kernels.narrow(wide, wide + 4 * numbers, this.#half);
    return kernels.infinite16(this.#half, this.#half + 2 * numbers) ? null : this.#half;
  }

  #pack({ rows, columns, wanted }: Rows, at: number): void {
    const kernels = columns % PACK_COLUMNS === 0 ? this.#kernels : this.#scalar;
    const pack = wanted === "f16" ? kernels.pack16 : kernels.pack32;
    const read = PANEL * columns * bytesPerElement(wanted);
    const written = packedSize(PANEL, columns) * bytesPerElement(wanted);
    for (let panel = 0; panel < Math.ceil(rows / PANEL); panel++) {
      pack(at + panel * read, this.#panels + panel * written, columns);
    }
  }
}

type Decoder = (memory: ArrayBuffer, from: number, out: Float32Array<ArrayBuffer>) => void;

/** Types that few checkpoints use. */
const DECODERS: Partial<Record<SafetensorsDType, Decoder>> = {
  F64: (memory, from, out) => out.set(new Float64Array(memory, from, out.length)),
  F8_E4M3: (memory, from, out) => e4m3ArrayToF32(new Uint8Array(memory, from, out.length), out),
  F8_E5M2: (memory, from, out) => e5m2ArrayToF32(new Uint8Array(memory, from, out.length), out),
};
