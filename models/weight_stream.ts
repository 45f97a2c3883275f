/**
 * From files to the GPU: tensors are read, converted and uploaded in pieces of a few megabytes, the
 * next piece being read while the last one is worked on. The host never holds a model, nor even a
 * whole large tensor.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import {
  allFinite,
  bf16ArrayToF32,
  bytesPerElement,
  type DType,
  e4m3ArrayToF32,
  e5m2ArrayToF32,
  f16ArrayToF32,
  f32ArrayToF16,
} from "../core/dtype.ts";
import { WeightError } from "../core/errors.ts";
import type { SafetensorsDType, SafetensorsFile, TensorInfo } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { pack, PANEL } from "../kernels/panels.ts";
import { packedSize, packRows } from "./host_panels.ts";

/** A tensor on the device, and where its values lie. */
export interface Filling {
  /** What is filled. */
  readonly tensor: Tensor;
  /** Inputs of each output, if it is stored `[O, K…]` and kept in panels. */
  readonly inputs: number | null;
  /** Where the values lie. */
  readonly file: SafetensorsFile;
  /** Their name there. */
  readonly key: string;
}

/** Bytes read at once: enough to hide the cost of a call, few enough to stay near the caches. */
const PIECE_BYTES = 4 * 2 ** 20;

/** Bytes uploaded between two waits: uploads that nobody waits for pile up in host memory. */
const WAVE_BYTES = 32 * 2 ** 20;

type Floats = Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>;

/** Rows `[from, from + rows)` of a tensor of `[…, columns]`. */
interface Piece {
  readonly filling: Filling;
  readonly info: TensorInfo;
  readonly from: number;
  readonly rows: number;
  readonly columns: number;
}

function* piecesOf(fillings: readonly Filling[]): Iterable<Piece> {
  for (const filling of fillings) {
    const { inputs, file, key } = filling;
    const info = file.tensors.get(key) as TensorInfo;
    const columns = inputs ?? 1;
    const all = sizeOf(info.shape) / columns;
    const bytes = (info.end - info.begin) / all;
    // Whole panels; also every piece is then aligned for uploads and for 4-vectors.
    const rows = Math.max(PANEL, Math.floor(PIECE_BYTES / bytes / PANEL) * PANEL);
    for (let from = 0; from < all; from += rows) {
      yield { filling, info, from, rows: Math.min(rows, all - from), columns };
    }
  }
}

function read({ filling: { file, key }, info, from, rows, columns }: Piece): Promise<Uint8Array> {
  const element = (info.end - info.begin) / sizeOf(info.shape);
  return file.readPart(key, from * columns * element, rows * columns * element);
}

/**
 * Fills tensors, in the order of their files.
 *
 * @param onTensor Called after each tensor.
 * @param packOnHost Whether the host packs weights, rather than a shader.
 * @throws {WeightError} if values are no floating-point numbers, or not finite.
 */
export async function fill(
  device: Device,
  fillings: readonly Filling[],
  onTensor: (tensor: Tensor) => void = () => {},
  packOnHost: boolean = device.info.software,
): Promise<void> {
  const place = ({ file, key }: Filling) => file.tensors.get(key)?.begin ?? 0;
  const files = [...new Set(fillings.map(({ file }) => file))];
  const sorted = fillings.toSorted((a, b) =>
    files.indexOf(a.file) - files.indexOf(b.file) || place(a) - place(b)
  );
  const converter = new Converter();
  let wave: Promise<void> = Promise.resolve();
  let bytes = 0;
  const upload = async (piece: Piece, raw: Uint8Array) => {
    const { filling: { tensor }, info, from, rows, columns } = piece;
    const values = converter.convert(piece, raw);
    if (piece.filling.inputs === null) put(device, piece, values);
    else if (packOnHost) put(device, piece, converter.pack(piece, values));
    else packOnDevice(device, piece, values);
    if (from + rows === sizeOf(info.shape) / columns) onTensor(tensor);
    bytes += rows * columns * bytesPerElement(tensor.dtype);
    if (bytes < WAVE_BYTES) return;
    bytes = 0;
    await wave;
    wave = submitted(device);
    wave.catch(() => {/* told when it is waited for */});
  };
  let before: { piece: Piece; raw: Promise<Uint8Array> } | null = null;
  try {
    for (const piece of piecesOf(sorted)) {
      const raw: Promise<Uint8Array> = read(piece);
      raw.catch(() => {/* told when its turn comes */});
      if (before) await upload(before.piece, await before.raw);
      before = { piece, raw };
    }
    if (before) await upload(before.piece, await before.raw);
  } finally {
    await before?.raw.catch(() => {/* told above, or a second failure */});
    await wave;
  }
  await submitted(device);
}

/** Waits for uploads too: some implementations keep them back until something is submitted. */
function submitted(device: Device): Promise<void> {
  device.flush();
  device.gpu.queue.submit([]);
  return device.sync();
}

/** Elements of the tensor before and in a piece. */
function extent({ filling: { tensor, inputs }, from, rows }: Piece): { at: number; size: number } {
  if (inputs === null) return { at: from, size: rows };
  const [, depth] = tensor.shape;
  return { at: from * depth, size: Math.ceil(rows / PANEL) * PANEL * depth };
}

function put(device: Device, piece: Piece, values: Floats): void {
  const { tensor } = piece.filling;
  const { at, size } = extent(piece);
  const offset = tensor.offset + at * bytesPerElement(tensor.dtype);
  device.scope(() => device.write(device.view(tensor, [size], offset), values));
}

function packOnDevice(device: Device, piece: Piece, values: Floats): void {
  const { filling: { tensor }, rows, columns } = piece;
  const { at, size } = extent(piece);
  const [, depth] = tensor.shape;
  device.scope(() => {
    const staging = device.tensor(values, [rows, columns], tensor.dtype);
    const panels = device.view(
      tensor,
      [1, size / PANEL / depth, depth, PANEL],
      tensor.offset + at * bytesPerElement(tensor.dtype),
    );
    pack(
      (dispatch) => device.dispatch("pack_panels", dispatch),
      { tensor: staging, offset: 0, major: columns, step: 1, batch: [] },
      { extent: rows, K: columns, batch: [] },
      panels,
    );
  });
}

type ToF32 = (bytes: Uint8Array, out: Float32Array<ArrayBuffer>) => Float32Array<ArrayBuffer>;

const words = (bytes: Uint8Array) =>
  new Uint16Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength / 2);

const TO_F32: Partial<Record<SafetensorsDType, ToF32>> = {
  F64: (bytes, out) => {
    out.set(new Float64Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 8));
    return out;
  },
  F32: (bytes) =>
    new Float32Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength / 4),
  F16: (bytes, out) => f16ArrayToF32(words(bytes), out),
  BF16: (bytes, out) => bf16ArrayToF32(words(bytes), out),
  F8_E4M3: e4m3ArrayToF32,
  F8_E5M2: e5m2ArrayToF32,
};

/**
 * Converts pieces, one after the other: what it returns holds until the next call, because fresh
 * buffers for every piece would cost more than the conversion.
 */
class Converter {
  #f32 = new Float32Array(0);
  #f16 = new Uint16Array(0);
  #panelsF32 = new Float32Array(0);
  #panelsF16 = new Uint16Array(0);

  /** Packs what {@link convert} returned. */
  pack({ rows, columns }: Piece, values: Floats): Floats {
    const size = packedSize(rows, columns);
    if (values instanceof Uint16Array) {
      if (this.#panelsF16.length < size) this.#panelsF16 = new Uint16Array(size);
      return packRows(values, columns, this.#panelsF16.subarray(0, size));
    }
    if (this.#panelsF32.length < size) this.#panelsF32 = new Float32Array(size);
    return packRows(values, columns, this.#panelsF32.subarray(0, size));
  }

  convert(piece: Piece, bytes: Uint8Array): Floats {
    const { filling: { tensor, file, key }, info } = piece;
    const values = this.#convert(piece, tensor.dtype, bytes);
    if (allFinite(values)) return values;
    throw new WeightError(
      `${file.name}: the tensor ${key} must hold finite numbers, but it has NaN or infinity ` +
        `(stored as ${info.dtype}, loaded as ${tensor.dtype}); the file is damaged, or was saved ` +
        `in a type too small for its numbers: fetch it again, or another version of it`,
    );
  }

  #convert(piece: Piece, wanted: DType, bytes: Uint8Array): Floats {
    const { filling: { file, key }, info: { dtype }, rows, columns } = piece;
    if (dtype === "F16" && wanted === "f16") return words(bytes);
    const decode = TO_F32[dtype];
    if (!decode) {
      throw new WeightError(
        `${file.name}: the tensor ${key} must hold floating-point numbers, it holds ${dtype}; ` +
          `the file belongs to another model, or is quantized in a way that is not supported`,
      );
    }
    const count = rows * columns;
    if (this.#f32.length < count) this.#f32 = new Float32Array(count);
    const values = decode(bytes, this.#f32.subarray(0, count));
    if (wanted !== "f16") return values;
    if (this.#f16.length < count) this.#f16 = new Uint16Array(count);
    return f32ArrayToF16(values, this.#f16.subarray(0, count));
  }
}
