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

/** Half-precision bits to numbers, by a table of all 65,536 values (built once, 256 KiB). */
export function f16ArrayToF32(bits: Uint16Array): Float32Array<ArrayBuffer> {
  f16Table ??= Float32Array.from({ length: 65536 }, (_, i) => f16BitsToF32(i));
  const out = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = f16Table[bits[i]];
  return out;
}

/** Numbers to half-precision bits. */
export function f32ArrayToF16(values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = f32ToF16Bits(values[i]);
  return out;
}

/** bfloat16 bits (the upper half of an f32) to numbers. */
export function bf16ArrayToF32(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = bits[i] << 16;
  return new Float32Array(out.buffer);
}
