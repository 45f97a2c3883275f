/**
 * Reading a file from its beginning to its end, a piece of it at a time.
 *
 * @module
 */

import type { ByteSource } from "../core/byte_source.ts";

/** The file ended inside something that it announced. */
export class CutOff extends Error {
  /** Always `"CutOff"`. */
  override readonly name = "CutOff";
}

/** Bytes read at a time. */
const PIECE = 1 << 16;

/** A place in a file that moves on while it is read. */
export interface ByteCursor {
  /** Whether all bytes were read. */
  atEnd(): boolean;
  /** The next byte. */
  byte(): Promise<number>;
  /** The next `length` bytes. */
  bytes(length: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Passes over `length` bytes. */
  skip(length: number): void;
}

/**
 * Begins to read a file.
 *
 * Its methods throw {@link CutOff} where the file has fewer bytes than are asked for.
 */
export function byteCursor(source: ByteSource): ByteCursor {
  let at = 0;
  let start = 0;
  let piece: Uint8Array = new Uint8Array(0);

  const demand = (length: number): void => {
    if (at + length > source.size) throw new CutOff(`the file ends at byte ${source.size}`);
  };
  const cursor: ByteCursor = {
    atEnd: () => at >= source.size,
    async byte() {
      if (at >= start + piece.length) {
        demand(1);
        piece = await source.read(at, Math.min(PIECE, source.size - at));
        start = at;
      }
      return piece[at++ - start];
    },
    async bytes(length) {
      demand(length);
      const bytes = new Uint8Array(length);
      const held = piece.subarray(Math.min(at - start, piece.length)).subarray(0, length);
      bytes.set(held);
      if (held.length < length) {
        bytes.set(await source.read(at + held.length, length - held.length), held.length);
      }
      at += length;
      return bytes;
    },
    skip(length) {
      demand(length);
      at += length;
    },
  };
  return cursor;
}
