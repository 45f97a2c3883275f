/**
 * Pieces of WGSL and of launch arithmetic that several kernels share.
 *
 * @module
 */

import { bytesPerElement, type DType } from "../core/dtype.ts";
import type { Binding, Param, TensorSpec } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";

/** WGSL: `count` pieces of text, a line each. */
export function each(count: number, text: (i: number) => string): string {
  return Array.from({ length: count }, (_, i) => text(i)).join("\n");
}

const FLAT = 64;

/** WGSL: `i`, the flat index of the invocation in a grid made by {@link flatGrid}. */
export const FLAT_INDEX = `let i = (wg.y * grid.x + wg.x) * ${FLAT}u + lane;`;

/** A grid with at least `count` invocations, folded into two dimensions where it is long. */
export function flatGrid(count: number): {
  workgroup: [number, number, number];
  workgroups: [number, number, number];
  foldable: boolean;
} {
  const groups = Math.ceil(count / FLAT);
  return { workgroup: [FLAT, 1, 1], workgroups: foldGroups(groups), foldable: true };
}

/** `groups` workgroups over two dimensions, each below the limit of 65,535. */
export function foldGroups(groups: number): [number, number, number] {
  const rows = Math.ceil(groups / 65535);
  return [Math.ceil(groups / rows), rows, 1];
}

/** WGSL: `i0`, `i1`, …, the place of flat index `i` on each of `rank` axes of extents `p.e0`, …. */
export function unravel(rank: number): string {
  const lines = ["var rest = i;"];
  for (let axis = rank - 1; axis > 0; axis--) {
    lines.push(`let i${axis} = rest % p.e${axis}; rest /= p.e${axis};`);
  }
  return rank ? [...lines, "let i0 = rest;"].join("\n") : "";
}

/** WGSL: `p.<start> + i0 * p.<prefix>0 + …`, the element that strides lead to. */
export function stridedIndex(rank: number, start: string, prefix: string): string {
  const terms = Array.from({ length: rank }, (_, axis) => `i${axis} * p.${prefix}${axis}`);
  return [`p.${start}`, ...terms].join(" + ");
}

/** Parameters `<prefix>0`, `<prefix>1`, …; a negative `u32` wraps, and so do sums in the shader. */
export function listParams(
  prefix: string,
  values: readonly number[],
  type: "u32" | "i32" = "u32",
): Record<string, Param> {
  return Object.fromEntries(values.map((value, axis) => [`${prefix}${axis}`, { type, value }]));
}

/** Every device grants this alignment of a binding's first byte, and of a tensor in a buffer. */
export const BINDING_ALIGNMENT = 256;

/** The elements that one binding holds at least, wherever it begins. */
export function elementsPerBinding(tensor: Tensor): number {
  const { maxStorageBufferBindingSize } = tensor.device.gpu.limits;
  return Math.floor(
    (maxStorageBufferBindingSize - 2 * BINDING_ALIGNMENT) / bytesPerElement(tensor.dtype),
  );
}

/**
 * The part of a tensor that a shader needs in order to reach elements `first` to `end - 1`: all of
 * it where it can be bound, else the aligned piece around them, which begins at element `base`.
 */
export function pieceOf(
  tensor: Tensor,
  first: number,
  end: number,
): { base: number; range?: Binding["range"] } {
  if (tensor.size <= elementsPerBinding(tensor)) return { base: 0 };
  const bytes = bytesPerElement(tensor.dtype);
  const offset = Math.floor(first * bytes / BINDING_ALIGNMENT) * BINDING_ALIGNMENT;
  return { base: offset / bytes, range: { offset, size: end * bytes - offset } };
}

/** The dtype that arithmetic on these inputs gives: that of the first floating one, else `f32`. */
export function floatType(...inputs: readonly (TensorSpec | null)[]): DType {
  const found = inputs.find((input) => input?.dtype === "f32" || input?.dtype === "f16");
  return found?.dtype ?? "f32";
}

/** WGSL: aliases that let one text serve 1 or 4 numbers a lane: `F` float, `U` bits, `B` bool. */
export function laneTypes(width: 1 | 4): string {
  const [f, u, b] = width === 4 ? ["vec4f", "vec4u", "vec4<bool>"] : ["f32", "u32", "bool"];
  return `alias F = ${f}; alias U = ${u}; alias B = ${b};`;
}

/** WGSL: `isNan`. It looks at bits: compilers may assume that `x != x` is never true. */
export const IS_NAN = `
fn isNan(x: F) -> B { return (bitcast<U>(x) & U(0x7fffffffu)) > U(0x7f800000u); }`;

/**
 * WGSL: the error function as x·P(x²)/Q(x²), the least relative error on |x| ≤ 3.92, beyond which
 * f32 rounds it to ±1. Absolute error below 4e-7; no exponential, whose precision adapters vary in.
 */
export const ERF = `
fn erf(x: F) -> F {
  let y = select(x, sign(x) * 3.92, abs(x) > F(3.92));
  let z = y * y;
  let p = ((((2.0501038e-6 * z + 2.8488261e-4) * z + 3.7655791e-3) * z + 5.2748606e-2) * z
    + 1.9040549e-1) * z + 1.1283791;
  let q = ((((3.8091883e-5 * z + 1.1625278e-3) * z + 1.4969139e-2) * z + 1.1410872e-1) * z
    + 5.0207520e-1) * z + 1.0;
  let value = y * p / q;
  return select(value, sign(x), abs(value) > F(1.0));
}`;

/**
 * WGSL: `sine` and `cosine` to about 1e-7 for |x| ≤ 10⁴; the built-in ones may err by 2⁻¹¹. They
 * take off a multiple of π/2, split so that the products are exact, then sum Taylor's series.
 */
export const SINE = `
fn quarterTurns(x: F, shift: f32) -> F {
  let k = round(x * 0.63661977);
  let r = ((x - k * 1.5703125) - k * 0.00048375129699707031) - k * 7.5497901e-8;
  let z = r * r;
  let s = r + r * z * (-1.6666667e-1 + z * (8.3333333e-3 + z * (-1.9841270e-4 + z * 2.7557319e-6)));
  let c = 1.0 + z * (-0.5 + z * (4.1666667e-2 + z * (-1.3888889e-3 + z * 2.4801587e-5)));
  let turn = k + shift;
  let pairs = floor(turn * 0.5);
  let value = select(s, c, turn - 2.0 * pairs > F(0.5));
  return select(value, -value, pairs - 2.0 * floor(pairs * 0.5) > F(0.5));
}
fn sine(x: F) -> F { return quarterTurns(x, 0.0); }
fn cosine(x: F) -> F { return quarterTurns(x, 1.0); }`;

/** WGSL: folds a workgroup array of 64 values into its first by a tree. In uniform flow only. */
export function treeFold(
  array: string,
  combine: (a: string, b: string) => string,
  lanes: number = FLAT,
): string {
  return `
  workgroupBarrier();
  for (var apart = ${lanes / 2}u; apart > 0u; apart /= 2u) {
    if (lane < apart) { ${array}[lane] = ${combine(`${array}[lane]`, `${array}[lane + apart]`)}; }
    workgroupBarrier();
  }`;
}

/**
 * Cuts a flat run over tensors of one size into stretches that can be bound: usually one, all of
 * them. `range` goes into the binding of each tensor.
 */
export function flatPieces(
  tensors: readonly Tensor[],
): { count: number; range: (tensor: Tensor) => Binding["range"] }[] {
  const { size } = tensors[0];
  const most = Math.min(...tensors.map(elementsPerBinding));
  if (size <= most) return [{ count: size, range: () => undefined }];
  const step = Math.floor(most / BINDING_ALIGNMENT) * BINDING_ALIGNMENT;
  return Array.from({ length: Math.ceil(size / step) }, (_, k) => {
    const count = Math.min(step, size - k * step);
    const range = (tensor: Tensor) => {
      const bytes = bytesPerElement(tensor.dtype);
      return { offset: k * step * bytes, size: count * bytes };
    };
    return { count, range };
  });
}

/** The cubic convolution filter of Keys (1981) at distance `x`; `a` is its slope at 1. */
export function cubic(x: number, a: number): number {
  const d = Math.abs(x);
  if (d >= 2) return 0;
  return d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : a * (((d - 5) * d + 8) * d - 4);
}

/** WGSL: `cubic(x)`, the same as {@link cubic} with a constant `a`. */
export function cubicWgsl(a: number): string {
  return `
    fn cubic(x: f32) -> f32 {
      let d = abs(x);
      if (d >= 2.0) { return 0.0; }
      if (d <= 1.0) { return (${(a + 2).toFixed(2)} * d - ${(a + 3).toFixed(2)}) * d * d + 1.0; }
      return ${a.toFixed(2)} * (((d - 5.0) * d + 8.0) * d - 4.0);
    }`;
}

/** Elements that a lane of `moments` takes at once. */
const BLOCK = 4;

/**
 * WGSL: `moments(lane, first, end)`, the mean of the elements `x[first] … x[end - 1]` and the sum
 * of squared distances from it, by a workgroup of `lanes`; elements of `width` numbers are read by
 * `load_x` (`elements.ts`). Elements are read once: blocks of them, whose moments are taken in two passes
 * over registers, are combined with those before, then the lanes with each other (Chan, Golub and
 * LeVeque 1979).
 */
export function momentsOf(lanes: number, width: 1 | 4): string {
  const sum = (term: (k: number) => string) =>
    Array.from({ length: BLOCK }, (_, k) => term(k)).join(" + ");
  const components = width === 4
    ? `let mean = dot(means, V(0.25));
    let off = means - mean;
    partial[lane] = vec3f(4.0 * n, mean, dot(squares + n * off * off, V(1.0)));`
    : "partial[lane] = vec3f(n, means, squares);";
  // A barrier is what takes compilers for the CPU longest.
  const fold = lanes > 8
    ? `${treeFold("partial", (a, b) => `joined(${a}, ${b})`, lanes)}
    return partial[0].yz;`
    : `workgroupBarrier();
    var all = partial[0];
    for (var k = 1u; k < ${lanes}u; k++) { all = joined(all, partial[k]); }
    return all.yz;`;
  return `
  var<workgroup> partial: array<vec3f, ${lanes}>;
  fn joined(a: vec3f, b: vec3f) -> vec3f {
    let n = a.x + b.x;
    let d = b.y - a.y;
    let share = b.x / max(n, 1.0);
    return vec3f(n, a.y + d * share, a.z + b.z + d * d * a.x * share);
  }
  fn moments(lane: u32, first: u32, end: u32) -> vec2f {
    var n = 0.0;
    var means = V();
    var squares = V();
    var i = first;
    for (; i + ${BLOCK * lanes}u <= end; i += ${BLOCK * lanes}u) {
      ${each(BLOCK, (k) => `let v${k} = load_x(i + lane + ${k * lanes}u);`)}
      let mean = (${sum((k) => `v${k}`)}) * ${1 / BLOCK};
      ${each(BLOCK, (k) => `let d${k} = v${k} - mean;`)}
      let d = mean - means;
      let share = ${BLOCK}.0 / (n + ${BLOCK}.0);
      means += d * share;
      squares += ${sum((k) => `d${k} * d${k}`)} + d * d * (n * share);
      n += ${BLOCK}.0;
    }
    for (i += lane; i < end; i += ${lanes}u) {
      let d = load_x(i) - means;
      n += 1.0;
      means += d / n;
      squares += d * d * ((n - 1.0) / n);
    }
    ${components}
    ${fold}
  }`;
}
