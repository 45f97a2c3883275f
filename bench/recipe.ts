/**
 * Weights of Stable Diffusion 1.5's full size from a recipe: pseudo-random numbers that depend on
 * the tensor's name and the element's place alone, scaled so that activations stay of order one.
 * They stand in for a real checkpoint where sizes, times and numbers matter and pictures do not.
 *
 * @module
 */

import { f32ToF16Bits } from "../core/dtype.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import type { Part } from "../models/sd15.ts";

/** FNV-1a of the UTF-8 bytes, 32 bits (http://www.isthe.com/chongo/tech/comp/fnv/). */
export function fnv1a(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/** What a tensor's values are scaled by, and what they are added to. */
export interface Scale {
  /** Factor, a float32. */
  readonly gain: number;
  /** 1 for the weights of norms, else 0. */
  readonly offset: 0 | 1;
}

/** Last layers of residual branches: halved, so that the sum of many branches stays small. */
const BRANCH_ENDS = /\.(conv2|ff\.net\.2|proj_out|to_out\.0|out_proj|fc2)\.weight$/;
/** Sharper attention than random projections would give. */
const QUERIES_AND_KEYS = /\.(to_q|to_k|q_proj|k_proj)\.weight$/;

/** The scale of a tensor: `g·√(3 / fan-in)` for matrices, fixed numbers for the rest. */
export function scaleOf(name: string, shape: Shape): Scale {
  const matrix = () => {
    const gain = BRANCH_ENDS.test(name) ? 0.5 : QUERIES_AND_KEYS.test(name) ? 1.5 : 1;
    return gain * Math.sqrt(3 / sizeOf(shape.slice(1)));
  };
  if (name.endsWith("token_embedding.weight")) return { gain: 0.5, offset: 0 };
  if (name.endsWith("position_embedding.weight")) return { gain: Math.fround(0.1), offset: 0 };
  if (shape.length > 1) return { gain: Math.fround(matrix()), offset: 0 };
  if (name.endsWith(".weight")) return { gain: Math.fround(0.1), offset: 1 };
  return { gain: Math.fround(0.05), offset: 0 };
}

/** The uniform number in [−1, 1) at place `i` of the sequence that begins with `seed`. */
export function uniform(seed: number, i: number): number {
  let x = (seed + Math.imul(i, 0x9e3779b9)) | 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return ((x ^ (x >>> 16)) >>> 8) * 2 ** -23 - 1;
}

const f32 = new Float32Array(1);
const bits = new Uint32Array(f32.buffer);

/**
 * Fills `out` with the half-precision bits of elements `from`, `from + 1`, … of a tensor.
 *
 * @param part Model that the tensor belongs to.
 * @param name Its name there, by diffusers.
 */
export function fillF16(
  out: Uint16Array,
  part: Part,
  name: string,
  shape: Shape,
  from: number,
): void {
  const seed = fnv1a(`${part}/${name}`);
  const { gain, offset } = scaleOf(name, shape);
  for (let k = 0; k < out.length; k++) {
    const scaled = uniform(seed, from + k) * gain;
    f32[0] = offset ? offset + Math.fround(scaled) : scaled;
    const word = bits[0];
    const magnitude = word & 0x7fffffff;
    // All values lie below 2; what is no normal half-precision number takes the general way.
    out[k] = magnitude < 0x38800000 ? f32ToF16Bits(f32[0]) : ((word >>> 16) & 0x8000) |
      ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  }
}
