/**
 * Weights of 8 bits: `w[m][k] ≈ scale[m] · q[m][k]`, q whole numbers from −127 to 127, a scale for
 * each output. They lie in panels (`panels.ts`) as others do, four neighbouring outputs in a word,
 * so every product reads them in the order of their addresses, a quarter of the bytes of f32. A
 * product sums `q · x` and scales the sum: all that is lost is lost in rounding the weights.
 *
 * @module
 */

import { f16ArrayToF32 } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import type { KernelCase, TensorSpec } from "../core/kernel.ts";
import { sameShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { PANEL, panelShape } from "./panels.ts";

/** Weights of 8 bits on the device. */
export interface QuantizedWeights {
  /** `u32 [⌈outputs/32⌉, ⌈inputs/4⌉·4, 8]`; the lowest byte of a word is its first output. */
  readonly panels: Tensor;
  /** `f32 [outputs]`. */
  readonly scale: Tensor;
}

/** The largest |q|. */
const MOST = 127;

/** The least normal f32: GPUs may take smaller scales for zero. */
const LEAST_SCALE = 2 ** -126;

/** Added to a small number and taken off again, it leaves the nearest whole one, ties to even. */
const ROUNDER = 1.5 * 2 ** 52;

/**
 * Rounds whole rows to 8 bits and packs them: `scale = max|w|/127` for each row, `q` the whole
 * number nearest to `w/scale`, so `|w − scale·q| ≤ scale/2`. Rows of zeros have the scale 0. Rows from a
 * multiple of 32 on give the panels and scales from there on: a tensor can come in pieces.
 *
 * @param values `rows × columns` finite numbers, or their half-precision bits.
 * @returns Words of the panels, `[⌈rows/32⌉, ⌈columns/4⌉·4, 8]`, and a scale for each row.
 */
export function quantize(
  values: Float32Array | Uint16Array,
  columns: number,
): { panels: Uint32Array<ArrayBuffer>; scale: Float32Array<ArrayBuffer> } {
  const floats = values instanceof Uint16Array ? f16ArrayToF32(values) : values;
  const rows = floats.length / columns;
  const [count, depth, width] = panelShape(rows, columns, "u32");
  const panels = new Uint32Array(count * depth * width);
  const bytes = new Int8Array(panels.buffer);
  const scale = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    const first = row * columns;
    let most = 0;
    for (let k = 0; k < columns; k++) most = Math.max(most, Math.abs(floats[first + k]));
    scale[row] = most / MOST;
    if (scale[row] < LEAST_SCALE) scale[row] = 0;
    const divisor = scale[row] || Infinity;
    let to = Math.floor(row / PANEL) * depth * PANEL + row % PANEL;
    for (let k = 0; k < columns; k++, to += PANEL) {
      bytes[to] = floats[first + k] / divisor + ROUNDER - ROUNDER;
    }
  }
  return { panels, scale };
}

/** What a layer was given as its weights. */
export function weightsOf(
  weight: Tensor | QuantizedWeights,
): { readonly panels: Tensor; readonly scale: Tensor | null } {
  return "panels" in weight ? weight : { panels: weight, scale: null };
}

/**
 * Checks what a kernel was given as a scale.
 *
 * @throws {ShapeError} if it does not belong to the weight.
 */
export function checkScale(
  kernel: string,
  { dtype }: TensorSpec,
  scale: TensorSpec | null,
  outputs: number,
): void {
  if (scale ? dtype === "u32" && sameShape(scale.shape, [outputs]) : dtype !== "u32") return;
  throw new ShapeError(
    `${kernel}: weights of 8 bits are u32 panels with a scale of shape [${outputs}], others have ` +
      `no scale; got ${dtype} with ${scale ? `a scale of shape [${scale.shape}]` : "none"}`,
  );
}

/** Weight `k` of output `m` in panels on the host, `depth` rows each, for references. */
export function weightReader(
  panels: Float64Array,
  depth: number,
  scale: Float64Array | null = null,
): (m: number, k: number) => number {
  const place = (m: number, k: number) => (Math.floor(m / PANEL) * depth + k) * PANEL + m % PANEL;
  if (!scale) return (m, k) => panels[place(m, k)];
  return (m, k) => {
    const at = place(m, k);
    return scale[m] * (panels[at >>> 2] << 24 - 8 * (at & 3) >> 24);
  };
}

/** A test case whose second input is panels, with weights of 8 bits instead. */
export function quantizedCase<Attributes>(
  { shapes, attributes }: KernelCase<Attributes>,
  outputs: number,
  inputs: number,
): KernelCase<Attributes> {
  const [x, , ...rest] = shapes;
  const noise = Float32Array.from(
    { length: outputs * inputs },
    (_, i) => (Math.imul(i + 1, 2654435761) >>> 0) / 2 ** 30 - 2,
  );
  const { panels, scale } = quantize(noise, inputs);
  const none = rest.map(() => null);
  return {
    shapes: [x, panelShape(outputs, inputs, "u32"), ...rest, [outputs]],
    attributes,
    dtypes: [null, "u32", ...none, "f32"],
    values: [null, [...panels], ...none, [...scale]],
  };
}

/** WGSL: `unpack(word)`, the four numbers of a word. */
export const UNPACK = `
    fn unpack(word: u32) -> vec4f {
      return vec4f(vec4i(vec4u(word) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
    }`;
