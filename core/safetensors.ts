/**
 * The safetensors format: eight bytes of little-endian header length, a JSON header that names each
 * tensor's dtype, shape and place, then the raw little-endian data. The reader loads the header and
 * then one tensor at a time; it trusts nothing in the file. Format:
 * https://github.com/huggingface/safetensors#format
 *
 * @module
 */

import { type ByteSource, openByteSource } from "./byte_source.ts";
import { bf16ArrayToF32, e4m3ArrayToF32, e5m2ArrayToF32, f16ArrayToF32 } from "./dtype.ts";
import { WeightError } from "./errors.ts";
import {
  AGAIN,
  describe,
  parseHeader,
  type SafetensorsDType,
  type TensorInfo,
} from "./safetensors_header.ts";

export type {
  SafetensorsDType,
  TensorData,
  TensorInfo,
  TensorStream,
} from "./safetensors_header.ts";
export { encodeSafetensors, writeSafetensors } from "./safetensors_writer.ts";

/** An open file: the header in memory, the data behind it read on demand. */
export type SafetensorsFile = {
  /** What messages call the file. */
  readonly name: string;
  /** The `__metadata__` of the header, without a prototype; empty if there was none. */
  readonly metadata: Record<string, string>;
  /** All tensors, in the order in which they lie in the file. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /**
   * The raw little-endian bytes of a tensor, alone in a fresh buffer (so any typed array fits).
   *
   * @throws {WeightError} if the file has no such tensor.
   */
  read(name: string): Promise<Uint8Array>;
  /**
   * `length` raw bytes of a tensor from its byte `offset` on: for tensors that are worked through
   * in pieces. They come at the beginning of `out` where the source can do that, and otherwise, or
   * without it, alone in a fresh buffer.
   *
   * @throws {WeightError} if there is no such tensor, or it does not have these bytes.
   */
  readPart(
    name: string,
    offset: number,
    length: number,
    out?: Uint8Array<ArrayBuffer>,
  ): Promise<Uint8Array>;
  /**
   * A floating-point tensor's values as f32; f64 is rounded.
   *
   * @throws {WeightError} if there is no such tensor, or it holds integers.
   */
  readF32(name: string): Promise<Float32Array>;
  /**
   * An integer or boolean tensor's values as i32.
   *
   * @throws {WeightError} if there is no such tensor, it holds floating-point numbers, or a value
   * does not fit.
   */
  readInts(name: string): Promise<Int32Array>;
  /** Closes the file. */
  close(): Promise<void>;
};

type Decoder<T> = Partial<Record<SafetensorsDType, (buffer: ArrayBufferLike) => T>>;

const floatDecoders: Decoder<Float32Array> = {
  F64: (buffer) => new Float32Array(new Float64Array(buffer)),
  F32: (buffer) => new Float32Array(buffer),
  F16: (buffer) => f16ArrayToF32(new Uint16Array(buffer)),
  BF16: (buffer) => bf16ArrayToF32(new Uint16Array(buffer)),
  F8_E4M3: (buffer) => e4m3ArrayToF32(new Uint8Array(buffer)),
  F8_E5M2: (buffer) => e5m2ArrayToF32(new Uint8Array(buffer)),
};

const intDecoders: Decoder<ArrayLike<number | bigint>> = {
  I64: (buffer) => new BigInt64Array(buffer),
  I32: (buffer) => new Int32Array(buffer),
  I16: (buffer) => new Int16Array(buffer),
  I8: (buffer) => new Int8Array(buffer),
  U64: (buffer) => new BigUint64Array(buffer),
  U32: (buffer) => new Uint32Array(buffer),
  U16: (buffer) => new Uint16Array(buffer),
  U8: (buffer) => new Uint8Array(buffer),
  BOOL: (buffer) => new Uint8Array(buffer),
};

/** The bound of the reference implementation; a real header is about 0.1 MB. */
const MAX_HEADER = 100_000_000;

/**
 * Opens a safetensors file and checks its whole header; no tensor is read yet. The source is closed
 * with the file, and also if opening fails.
 *
 * @param source A path, a `file:` or `http(s):` URL (read by range requests), a `Blob`, bytes, or
 * any object that reads by position.
 * @throws {WeightError} if the content is not a sound safetensors file.
 * @throws {InputError} if the source cannot be opened or read.
 *
 * @example
 * ```ts
 * import { openSafetensors } from "framezero";
 *
 * const file = await openSafetensors("model.safetensors");
 * for (const [name, { dtype, shape }] of file.tensors) console.log(name, dtype, shape);
 * await file.close();
 * ```
 */
export async function openSafetensors(
  source: string | URL | Blob | Uint8Array | ByteSource,
): Promise<SafetensorsFile> {
  const bytes = await openByteSource(source);
  try {
    const text = await readHeader(bytes);
    const { metadata, tensors } = parseHeader(bytes.name, text.json, text.dataStart, bytes.size);
    return fileOf(bytes, metadata, tensors);
  } catch (error) {
    await bytes.close();
    throw error;
  }
}

function fileOf(
  source: ByteSource,
  metadata: Record<string, string>,
  tensors: ReadonlyMap<string, TensorInfo>,
): SafetensorsFile {
  const find = (name: string): TensorInfo => {
    const info = tensors.get(name);
    if (info) return info;
    const some = [...tensors.keys()].slice(0, 3).map(describe).join(", ");
    throw new WeightError(
      `${source.name}: there is no tensor ${describe(name)} among its ${tensors.size} ` +
        `(${some}${tensors.size > 3 ? ", …" : ""}); check that this is the right checkpoint`,
    );
  };
  const read = (name: string): Promise<Uint8Array> => {
    const { begin, end } = find(name);
    return readAlone(source, begin, end - begin);
  };
  return {
    name: source.name,
    metadata,
    tensors,
    read: async (name) => await read(name),
    async readPart(name, offset, length, out) {
      const { begin, end } = find(name);
      if (offset < 0 || length < 0 || offset + length > end - begin) {
        throw new WeightError(
          `${source.name}: tensor ${describe(name)} has ${end - begin} bytes, but ${length} from ` +
            `byte ${offset} on were asked for; ask for a part of it`,
        );
      }
      return await readAlone(source, begin + offset, length, out);
    },
    async readF32(name) {
      const { dtype } = find(name);
      const decode = floatDecoders[dtype];
      if (!decode) {
        throw new WeightError(
          `${source.name}: tensor ${describe(name)}: readF32 needs a floating-point dtype, ` +
            `got ${dtype}; use readInts`,
        );
      }
      return decode((await read(name)).buffer);
    },
    async readInts(name) {
      const { dtype } = find(name);
      const decode = intDecoders[dtype];
      if (!decode) {
        throw new WeightError(
          `${source.name}: tensor ${describe(name)}: readInts needs an integer dtype, ` +
            `got ${dtype}; use readF32`,
        );
      }
      const values = decode((await read(name)).buffer);
      return Int32Array.from(values, (value, i) => {
        const number = Number(value);
        if (number === (number | 0)) return number;
        throw new WeightError(
          `${source.name}: tensor ${describe(name)}: values must fit into 32 bits, ` +
            `got ${value} at ${i}; read the bytes and convert them yourself`,
        );
      });
    },
    close: () => source.close(),
  };
}

/** Bytes in `out` or in a buffer of their own, whatever kind of view a source returns. */
async function readAlone(
  source: ByteSource,
  offset: number,
  length: number,
  out?: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array> {
  const bytes = await source.read(offset, length, out);
  if (bytes.byteLength !== length) {
    throw new WeightError(
      `${source.name}: ${length} bytes at ${offset} are needed, the source gave ` +
        `${bytes.byteLength}; it is cut short, open it again`,
    );
  }
  const kept = bytes.buffer === out?.buffer || bytes.buffer.byteLength === length;
  return kept ? bytes : new Uint8Array(bytes);
}

async function readHeader(source: ByteSource): Promise<{ json: string; dataStart: number }> {
  const { name, size } = source;
  if (size < 8) {
    throw new WeightError(
      `${name}: a safetensors file begins with 8 bytes of header length, got ` +
        `${size === 0 ? "an empty file" : `${size} bytes`}; ${AGAIN}`,
    );
  }
  const start = await readAlone(source, 0, Math.min(size, 64));
  const length = new DataView(start.buffer).getBigUint64(0, true);
  if (length === 0n || length > BigInt(Math.min(MAX_HEADER, size - 8))) {
    throw new WeightError(`${name}: ${foreignFormat(start) ?? badLength(length, size)}`);
  }
  const bytes = await readAlone(source, 8, Number(length));
  let json: string;
  try {
    json = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new WeightError(`${name}: the header must be UTF-8 text, it is not; ${AGAIN}`, { cause });
  }
  return { json, dataStart: 8 + Number(length) };
}

function badLength(length: bigint, size: number): string {
  const rule = length > BigInt(MAX_HEADER) || length === 0n
    ? `the header length must be between 1 and ${MAX_HEADER} bytes`
    : `the header must end inside the file, which has ${size} bytes`;
  return `${rule}, got a header length of ${length}; this is no safetensors file, or ${AGAIN}`;
}

/** What a file with an impossible header length is instead, if its first bytes tell. */
function foreignFormat(start: Uint8Array): string | undefined {
  const zip = start[0] === 0x50 && start[1] === 0x4b;
  const pickle = start[0] === 0x80 && start[1] >= 2 && start[1] <= 5;
  if (zip || pickle) {
    return "this is a pickle (.ckpt, .bin or .pt), which can run code when loaded and " +
      "is therefore refused; convert it to safetensors: " +
      'python -c "import torch, safetensors.torch as s; d = ' +
      "torch.load('model.ckpt', map_location='cpu', weights_only=True); s.save_file({k: " +
      "v.clone().contiguous() for k, v in d.get('state_dict', d).items() if torch.is_tensor(v)}, " +
      "'model.safetensors')\"";
  }
  if (new TextDecoder().decode(start).startsWith("version https://git-lfs")) {
    return "this is a Git LFS pointer, a note that stands for the real file; run `git lfs pull` " +
      "or download the file itself";
  }
}
