/**
 * The header of a safetensors file: its checks on the way in, its bytes on the way out. No input or
 * output happens here. Format: https://github.com/huggingface/safetensors#format
 *
 * @module
 */

import { reasonOf } from "./byte_source.ts";
import { InputError, WeightError } from "./errors.ts";

/** Element types of the format that framezero knows. */
export type SafetensorsDType =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "F8_E4M3"
  | "F8_E5M2"
  | "I64"
  | "I32"
  | "I16"
  | "I8"
  | "U64"
  | "U32"
  | "U16"
  | "U8"
  | "BOOL";

/** What a header says of one tensor. */
export type TensorInfo = {
  /** Element type as stored. */
  readonly dtype: SafetensorsDType;
  /** Extents, outermost first; `[]` is a scalar, an extent of 0 is legal. */
  readonly shape: readonly number[];
  /** File offset of the first byte. */
  readonly begin: number;
  /** File offset after the last byte. */
  readonly end: number;
};

/** A tensor to be written: `data` holds its little-endian elements, row-major. */
export type TensorData = {
  /** Unique in its file; `__metadata__` is reserved. */
  readonly name: string;
  /** Element type of `data`. */
  readonly dtype: SafetensorsDType;
  /** Extents, outermost first. */
  readonly shape: readonly number[];
  /** Exactly the bytes that dtype and shape ask for. */
  readonly data: ArrayBufferView;
};

/** A tensor to be written piece by piece, so that it never has to be in memory as a whole. */
export type TensorStream = Omit<TensorData, "data"> & {
  /** Begins the data: the pieces, in order, have together exactly the bytes of dtype and shape. */
  readonly pieces: () => Iterable<ArrayBufferView>;
};

const elementBytes: Readonly<Record<SafetensorsDType, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
};

/** What to do about a file that breaks the format. */
export const AGAIN = "the file is damaged, download or export it again";

/**
 * Checks everything that a header says.
 *
 * @param file What messages call the file.
 * @param json The header's text.
 * @param dataStart File offset of the first data byte.
 * @param fileSize Bytes of the whole file.
 * @returns The metadata (without a prototype), and the tensors in the order of their data.
 * @throws {WeightError} if the header breaks the format or does not fit the file.
 */
export function parseHeader(
  file: string,
  json: string,
  dataStart: number,
  fileSize: number,
): { metadata: Record<string, string>; tensors: Map<string, TensorInfo> } {
  if (json[0] !== "{") {
    throw new WeightError(
      `${file}: the header must begin with "{", got ${describe(json[0])}; ${AGAIN}`,
    );
  }
  let header: Record<string, unknown>;
  try {
    header = JSON.parse(json);
  } catch (cause) {
    throw new WeightError(
      `${file}: the header must be JSON (${reasonOf(cause).slice(0, 100)}); ${AGAIN}`,
      { cause },
    );
  }
  const repeated = repeatedKey(json);
  if (repeated !== undefined) {
    throw new WeightError(
      `${file}: names in the header must be unique, got ${describe(repeated)} twice; ${AGAIN}`,
    );
  }
  const metadata: Record<string, string> = Object.create(null);
  const found: [string, TensorInfo][] = [];
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") Object.assign(metadata, checkMetadata(file, value));
    else found.push([name, checkTensor(`${file}: tensor ${describe(name)}`, value, dataStart)]);
  }
  found.sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  checkLayout(file, found, dataStart, fileSize);
  return { metadata, tensors: new Map(found) };
}

/**
 * The first key that one object of `json` has twice. `JSON.parse` keeps the last of them silently,
 * so that two readers could see different tensors. `json` must be valid.
 */
function repeatedKey(json: string): string | undefined {
  const open: Set<string>[] = [];
  for (let i = 0; i < json.length; i++) {
    const char = json[i];
    if (char === "{") open.push(new Set());
    else if (char === "}") open.pop();
    else if (char === '"') {
      const start = i++;
      while (json[i] !== '"') i += json[i] === "\\" ? 2 : 1;
      let next = i + 1;
      while (json.charCodeAt(next) <= 32) next++;
      if (json[next] !== ":") continue;
      const key: string = JSON.parse(json.slice(start, i + 1));
      const keys = open[open.length - 1];
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
}

function checkMetadata(file: string, value: unknown): Record<string, unknown> {
  if (!isObject(value)) {
    throw new WeightError(
      `${file}: __metadata__ must be an object of strings, got ${describe(value)}; ${AGAIN}`,
    );
  }
  for (const [key, entry] of Object.entries(value)) {
    if (typeof entry === "string") continue;
    throw new WeightError(
      `${file}: __metadata__ must hold strings, got ${describe(entry)} for ${describe(key)}; ` +
        "write numbers and objects as JSON strings",
    );
  }
  return value;
}

/** `where` names file and tensor. */
function checkTensor(where: string, value: unknown, dataStart: number): TensorInfo {
  const bad = (rule: string, got: unknown): WeightError =>
    new WeightError(`${where}: ${rule}, got ${describe(got)}; ${AGAIN}`);
  if (!isObject(value)) throw bad("an entry must be an object", value);
  const extra = Object.keys(value).find((key) => !tensorFields.includes(key));
  if (extra !== undefined) throw bad(`an entry has the fields ${tensorFields.join(", ")}`, extra);
  for (const field of tensorFields) {
    if (!Object.hasOwn(value, field)) throw bad(`the field ${field} is needed`, undefined);
  }
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isDType(dtype)) {
    throw new WeightError(
      `${where}: dtype must be one of ${Object.keys(elementBytes).join(", ")}, ` +
        `got ${describe(dtype)}; convert the checkpoint to one of these`,
    );
  }
  if (!isCounts(shape)) throw bad("shape must be a list of whole numbers from 0 on", shape);
  if (!isCounts(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]) {
    throw bad("data_offsets must be two whole numbers, begin <= end", offsets);
  }
  const [begin, end] = offsets;
  const needed = byteLength(dtype, shape);
  if (needed !== end - begin) {
    const product = Number.isSafeInteger(needed) ? needed : "more than 2^53";
    throw bad(
      `data_offsets must span the ${product} bytes of ${dtype} ${describe(shape)}`,
      offsets,
    );
  }
  return { dtype, shape, begin: dataStart + begin, end: dataStart + end };
}

const tensorFields = ["dtype", "shape", "data_offsets"];

/** The data must be filled without holes or overlaps: bytes of nobody could hide anything. */
function checkLayout(
  file: string,
  sorted: readonly (readonly [string, TensorInfo])[],
  dataStart: number,
  fileSize: number,
): void {
  let end = dataStart;
  let before = "the header";
  let cut: string | undefined;
  for (const [name, info] of sorted) {
    if (info.end > fileSize) cut ??= describe(name);
    if (info.begin !== end) {
      throw new WeightError(
        `${file}: tensor ${
          describe(name)
        }: data must begin where ${before} ends, at byte ${end}, ` +
          `got ${info.begin} (${info.begin < end ? "an overlap" : "a hole"}); ${AGAIN}`,
      );
    }
    end = info.end;
    before = `tensor ${describe(name)}`;
  }
  if (end !== fileSize) {
    throw new WeightError(
      `${file}: the file must end where ${before} ends, at byte ${end}, it has ${fileSize} bytes ` +
        `(${cut ? `cut short in tensor ${cut}` : "bytes that belong to no tensor"}); ${AGAIN}`,
    );
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isDType(value: unknown): value is SafetensorsDType {
  return typeof value === "string" && Object.hasOwn(elementBytes, value);
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0);
}

/** Bytes of a tensor; not a safe integer if the product overflows. */
export function byteLength(dtype: SafetensorsDType, shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, elementBytes[dtype]);
}

/** Any value for a message: short, and never walked into, since hostile files choose it. */
export function describe(value: unknown): string {
  if (value === undefined) return "nothing";
  if (Array.isArray(value)) {
    const some = value.slice(0, 8).map((item) => Array.isArray(item) ? "a list" : describe(item));
    return `[${some.join(", ")}${value.length > 8 ? ", …" : ""}]`;
  }
  if (isObject(value)) return "an object";
  if (typeof value !== "string") return String(value);
  return JSON.stringify(value.slice(0, 120)) + (value.length > 120 ? "…" : "");
}

/**
 * What stands before the data: length, JSON, and spaces up to a multiple of 8, so that the data
 * begins aligned.
 *
 * @throws {InputError} if a name comes twice or is reserved, a dtype is unknown, or `data` has not
 * the bytes that dtype and shape ask for.
 */
export function encodeHeader(
  tensors: readonly (TensorData | TensorStream)[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  // Put together by hand: an object would move names like "7" to the front.
  const names = new Set(["__metadata__"]);
  const entries: string[] = [];
  if (Object.keys(metadata).length > 0) {
    entries.push(`"__metadata__":${JSON.stringify(metadata)}`);
  }
  let offset = 0;
  for (const tensor of tensors) {
    const { name, dtype, shape } = tensor;
    const where = `safetensors: tensor ${describe(name)}`;
    if (names.has(name)) {
      throw new InputError(`${where}: names must be unique and not "__metadata__"; rename it`);
    }
    names.add(name);
    const needed = isDType(dtype) && isCounts(shape) ? byteLength(dtype, shape) : null;
    const bytes = "data" in tensor ? tensor.data.byteLength : needed;
    if (needed === null || bytes !== needed) {
      throw new InputError(
        `${where}: data must have the bytes of its dtype and shape, got ${bytes} bytes ` +
          `for ${describe(dtype)} ${describe(shape)}; correct one of them`,
      );
    }
    const end = offset + bytes;
    entries.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [offset, end] })}`,
    );
    offset = end;
  }
  const json = new TextEncoder().encode(`{${entries.join(",")}}`);
  const out = new Uint8Array(8 + Math.ceil(json.length / 8) * 8).fill(32);
  new DataView(out.buffer).setBigUint64(0, BigInt(out.length - 8), true);
  out.set(json, 8);
  return out;
}
