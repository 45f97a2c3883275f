/**
 * Writes ONNX models of a few operations: the protobuf messages of `onnx.proto`, no more of them
 * than the benchmarks need.
 *
 * @module
 */

/** A tensor that a model reads or returns, f32. */
export interface Value {
  /** Its name in the graph. */
  readonly name: string;
  /** Its extents. */
  readonly shape: readonly number[];
}

/** A tensor that is part of a model. */
export interface Constant extends Value {
  /** Its elements: f32, or 64-bit integers such as shapes. */
  readonly data: Float32Array | BigInt64Array;
}

/** An operation. */
export interface Node {
  /** Name of the operator. */
  readonly op: string;
  /** Where the operator is defined; default is ONNX itself. */
  readonly domain?: string;
  /** Names of what it reads. */
  readonly inputs: readonly string[];
  /** Names of what it computes. */
  readonly outputs: readonly string[];
  /** Numbers are floats, big integers are integers. */
  readonly attributes?: Readonly<
    Record<string, number | bigint | readonly bigint[]>
  >;
}

/** A model. */
export interface Model {
  /** What it is fed. */
  readonly inputs: readonly Value[];
  /** What it returns. */
  readonly outputs: readonly Value[];
  /** What it contains. */
  readonly constants?: readonly Constant[];
  /** Operations, each after those whose results it reads. */
  readonly nodes: readonly Node[];
}

const FLOAT = 1, INT64 = 7;
const ATTRIBUTE = { float: 1, int: 2, ints: 7 };

/** Operator sets: 17 is the last that has no reduced-precision types to declare. */
const OPSETS = [["", 17], ["com.microsoft", 1]] as const;

/** The bytes of a model, as `InferenceSession.create` takes them. */
export function encodeModel({ inputs, outputs, constants = [], nodes }: Model): Uint8Array {
  const graph = message(
    ...nodes.map((node) => field(1, encodeNode(node))),
    field(2, "bench"),
    ...constants.map((constant) => field(5, encodeConstant(constant))),
    ...inputs.map((value) => field(11, encodeValue(value))),
    ...outputs.map((value) => field(12, encodeValue(value))),
  );
  return message(
    field(1, 8n),
    field(7, graph),
    ...OPSETS.map(([domain, version]) =>
      field(8, message(field(1, domain), field(2, BigInt(version))))
    ),
  );
}

function encodeNode({ op, domain = "", inputs, outputs, attributes = {} }: Node): Uint8Array {
  return message(
    ...inputs.map((name) => field(1, name)),
    ...outputs.map((name) => field(2, name)),
    field(4, op),
    ...Object.entries(attributes).map(([name, value]) => field(5, encodeAttribute(name, value))),
    field(7, domain),
  );
}

function encodeAttribute(name: string, value: number | bigint | readonly bigint[]): Uint8Array {
  if (typeof value === "number") {
    return message(field(1, name), field(2, value), field(20, BigInt(ATTRIBUTE.float)));
  }
  if (typeof value === "bigint") {
    return message(field(1, name), field(3, value), field(20, BigInt(ATTRIBUTE.int)));
  }
  const items = value.map((item) => field(8, item));
  return message(field(1, name), ...items, field(20, BigInt(ATTRIBUTE.ints)));
}

function encodeConstant({ name, shape, data }: Constant): Uint8Array {
  return message(
    ...shape.map((extent) => field(1, BigInt(extent))),
    field(2, BigInt(data instanceof Float32Array ? FLOAT : INT64)),
    field(8, name),
    field(9, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)),
  );
}

function encodeValue({ name, shape }: Value): Uint8Array {
  const extents = message(...shape.map((extent) => field(1, message(field(1, BigInt(extent))))));
  const tensor = message(field(1, BigInt(FLOAT)), field(2, extents));
  return message(field(1, name), field(2, message(field(1, tensor))));
}

function message(...fields: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(fields.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of fields) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** A field: integers as varints, numbers as 32-bit floats, the rest with its length before it. */
function field(number: number, value: bigint | number | string | Uint8Array): Uint8Array {
  const key = (wireType: number) => varint(BigInt(number << 3 | wireType));
  if (typeof value === "bigint") return message(key(0), varint(value));
  if (typeof value === "number") {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setFloat32(0, value, true);
    return message(key(5), bytes);
  }
  const bytes = typeof value === "string" ? new TextEncoder().encode(value) : value;
  return message(key(2), varint(BigInt(bytes.length)), bytes);
}

function varint(value: bigint): Uint8Array {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, value);
  do {
    const low = Number(rest & 127n);
    rest >>= 7n;
    bytes.push(rest ? low | 128 : low);
  } while (rest);
  return Uint8Array.from(bytes);
}
