/**
 * Element types of tensors, and the conversions between them that the host does itself.
 *
 * Half-precision values are held in `Uint16Array` (their bits), because `Float16Array` is not in
 * every runtime that framezero supports.
 *
 * @module
 */

/** Element type of a tensor on the device. */
export type DType = "f32" | "f16" | "i32" | "u32";

/** Host array that holds values of a tensor: bits (`Uint16Array`) for `f16`. */
export type HostArray =
  | Float32Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>;

/** Bytes of one element. */
export function bytesPerElement(dtype: DType): 2 | 4 {
  return dtype === "f16" ? 2 : 4;
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** The bits of the half-precision number nearest to `value` (ties to even; overflow to infinity). */
export function f32ToF16Bits(value: number): number {
  f32[0] = value;
  const bits = u32[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) { // 65536 and above, infinities, NaN
    return magnitude > 0x7f800000 ? sign | 0x7e00 : sign | 0x7c00;
  }
  if (magnitude < 0x38800000) { // below 2^-14: subnormal or zero
    if (magnitude < 0x33000000) return sign; // below 2^-25 (2^-25 itself ties to even: zero)
    const shift = 126 - (magnitude >>> 23); // 14 … 24
    const mantissa = (magnitude & 0x7fffff) | 0x800000;
    const half = mantissa >>> shift;
    const rest = mantissa & ((1 << shift) - 1);
    const tie = 1 << (shift - 1);
    return sign | (half + (rest > tie || (rest === tie && (half & 1)) ? 1 : 0));
  }
  // Rounding may carry into the exponent, and from 65520 on into infinity: both are right.
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

/** The number that half-precision `bits` stand for. */
export function f16BitsToF32(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const mantissa = bits & 0x3ff;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

let f16Table: Float32Array | undefined;

/**
 * Half-precision bits to numbers, by a table of all 65,536 values (built once, 256 KiB).
 *
 * @param out Where the numbers go; a buffer that is used again saves most of the time.
 */
export function f16ArrayToF32(
  bits: Uint16Array,
  out: Float32Array<ArrayBuffer> = new Float32Array(bits.length),
): Float32Array<ArrayBuffer> {
  f16Table ??= Float32Array.from({ length: 65536 }, (_, i) => f16BitsToF32(i));
  const table = f16Table;
  for (let i = 0; i < bits.length; i++) out[i] = table[bits[i]];
  return out;
}

/** Numbers to half-precision bits; `out` as in {@linkcode f16ArrayToF32}. */
export function f32ArrayToF16(
  values: ArrayLike<number>,
  out: Uint16Array<ArrayBuffer> = new Uint16Array(values.length),
): Uint16Array<ArrayBuffer> {
  const floats = values instanceof Float32Array ? values : Float32Array.from(values);
  const words = new Uint32Array(floats.buffer, floats.byteOffset, floats.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    const magnitude = word & 0x7fffffff;
    // Nearly all numbers are normal in half precision; a call each would triple the time.
    out[i] = magnitude >= 0x38800000 && magnitude < 0x47800000
      ? ((word >>> 16) & 0x8000) |
        ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
      : f32ToF16Bits(floats[i]);
  }
  return out;
}

/** bfloat16 bits (the upper half of an f32) to numbers; `out` as in {@linkcode f16ArrayToF32}. */
export function bf16ArrayToF32(
  bits: Uint16Array,
  out: Float32Array<ArrayBuffer> = new Float32Array(bits.length),
): Float32Array<ArrayBuffer> {
  const words = new Uint32Array(out.buffer, out.byteOffset, bits.length);
  for (let i = 0; i < bits.length; i++) words[i] = bits[i] << 16;
  return out;
}

let e4m3Table: Float32Array | undefined;

/**
 * 8-bit floating-point numbers E4M3 to f32: the "fn" variant, with exponent bias 7, no infinities,
 * and NaN where all bits below the sign are ones (Micikevicius et al., "FP8 Formats for Deep
 * Learning", 2022). `out` as in {@linkcode f16ArrayToF32}.
 */
export function e4m3ArrayToF32(
  bits: Uint8Array,
  out: Float32Array<ArrayBuffer> = new Float32Array(bits.length),
): Float32Array<ArrayBuffer> {
  e4m3Table ??= Float32Array.from({ length: 256 }, (_, i) => e4m3BitsToF32(i));
  const table = e4m3Table;
  for (let i = 0; i < bits.length; i++) out[i] = table[bits[i]];
  return out;
}

function e4m3BitsToF32(bits: number): number {
  const sign = bits & 0x80 ? -1 : 1;
  const exponent = (bits >>> 3) & 15;
  const mantissa = bits & 7;
  if (exponent === 15 && mantissa === 7) return NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10));
}

/**
 * 8-bit floating-point numbers E5M2, the upper halves of half-precision numbers, to f32; `out` as in
 * {@linkcode f16ArrayToF32}.
 */
export function e5m2ArrayToF32(
  bits: Uint8Array,
  out: Float32Array<ArrayBuffer> = new Float32Array(bits.length),
): Float32Array<ArrayBuffer> {
  return f16ArrayToF32(Uint16Array.from(bits, (byte) => byte << 8), out);
}

/** Whether all numbers are finite: half-precision bits, or f32. */
export function allFinite(values: Float32Array | Uint16Array): boolean {
  // An exponent of all ones carries into the sign's place when one is added to it; two halves share
  // a word.
  const half = values instanceof Uint16Array;
  const [mask, one, carry] = half
    ? [0x7c007c00, 0x04000400, 0x80008000]
    : [0x7f800000, 0x00800000, 0x80000000];
  const { buffer, byteOffset, byteLength } = values;
  if (byteOffset % 4 !== 0) return allFinite(values.slice());
  const words = new Uint32Array(buffer, byteOffset, byteLength >>> 2);
  let seen = 0;
  for (let i = 0; i < words.length; i++) seen |= (words[i] & mask) + one;
  if (half && values.length % 2) seen |= (values[values.length - 1] & 0x7c00) + 0x0400;
  return (seen & carry) === 0;
}

/** The array that holds elements of a type on the host. */
export const HOST_ARRAYS = {
  f32: Float32Array,
  f16: Uint16Array,
  i32: Int32Array,
  u32: Uint32Array,
};

/** The type that an array stands for where none is named. */
export function dtypeOf(data: HostArray | readonly number[]): DType {
  if (data instanceof Uint16Array) return "f16";
  if (data instanceof Int32Array) return "i32";
  return data instanceof Uint32Array ? "u32" : "f32";
}

/** The elements as an array of a type: the array itself if it is one. */
export function hostArray(data: HostArray | readonly number[], dtype: DType): HostArray {
  if (data instanceof HOST_ARRAYS[dtype]) return data;
  if (dtype === "f16") return f32ArrayToF16(data);
  return HOST_ARRAYS[dtype].from(data);
}
