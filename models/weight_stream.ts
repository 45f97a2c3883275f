/**
 * From files to the GPU: tensors are read, converted and uploaded in pieces of a few megabytes, the
 * next piece being read while the last one is worked on. The host never holds a model, nor even a
 * whole large tensor.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { bytesPerElement, type HostArray } from "../core/dtype.ts";
import { WeightError } from "../core/errors.ts";
import type { SafetensorsFile } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { pack, PANEL } from "../kernels/panels.ts";
import { quantize } from "../kernels/quantized.ts";
import { Converter, type Floats, isConvertible, type Rows } from "./weight_converter.ts";

/** A tensor on the device, and where its values lie. */
export interface Filling {
  /** What is filled. */
  readonly tensor: Tensor;
  /** Inputs of each output, if it is stored `[O, K…]` and kept in panels. */
  readonly inputs: number | null;
  /** Scales of the outputs, if the panels are of 8 bits. */
  readonly scale?: Tensor | null;
  /** Where the values lie. */
  readonly file: SafetensorsFile;
  /** Their name there. */
  readonly key: string;
}

/** Bytes read at once: enough to hide the cost of a call, few enough to stay in the caches. */
const PIECE_BYTES = 2 ** 20;

/** Bytes uploaded between two submissions, which set the device to work while the host goes on. */
const SUBMIT_BYTES = 8 * 2 ** 20;

/**
 * Bytes uploaded between two waits: uploads that nobody waits for pile up in host memory. Waits are
 * few because some runtimes hold up their only thread in them.
 */
const WAVE_BYTES = 64 * 2 ** 20;

/** Rows `[from, from + rows)` of a tensor of `[…, columns]`. */
interface Piece extends Rows {
  readonly filling: Filling;
  readonly from: number;
  /** Bytes of a row in the file. */
  readonly pitch: number;
  /** Whether the tensor is filled after it. */
  readonly last: boolean;
}

function piecesOf(filling: Filling): Piece[] {
  const { inputs, file, key, scale, tensor: { dtype } } = filling;
  const wanted = scale ? "f32" : dtype;
  const { dtype: stored, shape, begin, end } = file.tensors.get(key)!;
  if (!isConvertible(stored)) {
    throw new WeightError(
      `${file.name}: the tensor ${key} must hold floating-point numbers, it holds ${stored}; ` +
        `the file belongs to another model, or is quantized in a way that is not supported`,
    );
  }
  const columns = inputs ?? 1;
  const all = sizeOf(shape) / columns;
  const pitch = (end - begin) / all;
  // Whole panels; also every piece is then aligned for uploads and for 4-vectors.
  const most = Math.max(PANEL, Math.floor(PIECE_BYTES / pitch / PANEL) * PANEL);
  return Array.from({ length: Math.ceil(all / most) }, (_, i): Piece => {
    const from = i * most;
    const rows = Math.min(most, all - from);
    return { filling, stored, wanted, from, rows, columns, pitch, last: from + rows === all };
  });
}

async function read(piece: Piece, slot: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  const { filling: { file, key }, from, pitch } = piece;
  const bytes = await file.readPart(key, from * pitch, slot.length, slot);
  if (bytes.buffer !== slot.buffer) slot.set(bytes);
  return slot;
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
  const pieces = sorted.flatMap(piecesOf);
  const converter = await Converter.of(pieces);
  let wave: Promise<void> = Promise.resolve();
  let bytes = 0;
  let submitted = 0;
  const upload = async (piece: Piece, raw: Uint8Array) => {
    const { filling: { tensor, inputs, scale }, rows, columns, last } = piece;
    const onHost = inputs === null || packOnHost;
    const values = converter.convert(piece, raw, inputs !== null && packOnHost && !scale);
    if (!values) throw notFinite(piece);
    if (scale) putQuantized(device, piece, scale, values);
    else if (onHost) put(device, piece, values);
    else packOnDevice(device, piece, values);
    if (last) onTensor(tensor);
    bytes += rows * columns * bytesPerElement(tensor.dtype);
    if (bytes < submitted + SUBMIT_BYTES) return;
    device.flush();
    submitted = bytes;
    if (bytes < WAVE_BYTES) return;
    bytes = submitted = 0;
    await wave;
    wave = device.sync();
    wave.catch(() => {/* told when it is waited for */});
  };
  const start = (piece: Piece) => {
    const raw = read(piece, converter.slot(piece.rows * piece.pitch));
    raw.catch(() => {/* told when its turn comes */});
    return raw;
  };
  let ahead: Promise<Uint8Array> | null = null;
  try {
    for (let i = 0; i < pieces.length; i++) {
      const raw: Uint8Array = await (ahead ?? start(pieces[i]));
      ahead = i + 1 < pieces.length ? start(pieces[i + 1]) : null;
      await upload(pieces[i], raw);
    }
  } finally {
    await ahead?.catch(() => {/* told above, or a second failure */});
    await wave;
  }
  await device.sync();
}

function notFinite({ filling: { file, key }, stored, wanted }: Piece): WeightError {
  return new WeightError(
    `${file.name}: the tensor ${key} must hold finite numbers, but it has NaN or infinity ` +
      `(stored as ${stored}, loaded as ${wanted}); the file is damaged, or was saved ` +
      `in a type too small for its numbers: fetch it again, or another version of it`,
  );
}

/** Elements of the tensor before and in a piece. */
function extent({ filling: { tensor, inputs }, from, rows }: Piece): { at: number; size: number } {
  if (inputs === null) return { at: from, size: rows };
  const [, depth] = tensor.shape;
  return { at: from * depth, size: Math.ceil(rows / PANEL) * PANEL * depth };
}

function put(device: Device, piece: Piece, values: Floats): void {
  const { at, size } = extent(piece);
  writeAt(device, piece.filling.tensor, at, size, values);
}

function putQuantized(device: Device, piece: Piece, scale: Tensor, values: Floats): void {
  const { filling: { tensor }, from, rows, columns } = piece;
  const [, depth, width] = tensor.shape;
  const quantized = quantize(values, columns);
  const { length } = quantized.panels;
  writeAt(device, tensor, from / PANEL * depth * width, length, quantized.panels);
  writeAt(device, scale, from, rows, quantized.scale);
}

/** Writes elements `[at, at + size)` of a tensor. */
function writeAt(
  device: Device,
  tensor: Tensor,
  at: number,
  size: number,
  values: HostArray,
): void {
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
