/**
 * Functions of two numbers, element by element with NumPy's broadcasting: arithmetic, extremes and
 * comparison, a row of a table each. The second operand may be a plain number.
 *
 * Source: `torch`, NumPy's broadcasting rules; powers as C's `pow`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, type KernelCase, run } from "../core/kernel.ts";
import { broadcastShapes, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { broadcastDispatches, broadcastReference } from "./broadcast.ts";
import { floatType, IS_NAN } from "./wgsl.ts";

/** Names of the kernels in this file. */
export type BinaryName =
  | "add"
  | "sub"
  | "mul"
  | "div"
  | "pow"
  | "maximum"
  | "minimum"
  | "greater";

/** Settings of a binary kernel. */
export interface BinaryAttributes {
  /** The second operand where it is no tensor. */
  readonly number: number | null;
}

interface Row {
  /** The value at `a` and `b`, both of type `F`. */
  readonly wgsl: string;
  readonly reference: (a: number, b: number) => number;
  /** Operations per element, a built-in function counting as one. */
  readonly flops: number;
  /** Whether the tests keep the second operand away from 0, where f16 overflows. */
  readonly divides?: boolean;
}

/**
 * The magnitude by logarithms, the sign by parity; NaN for a negative base with a broken exponent.
 * NaN and infinity are parameters: WGSL has no literals for them.
 */
const POWER = `
fn power(x: F, y: F) -> F {
  let magnitude = exp2(y * log2(abs(x)));
  let whole = y == floor(y);
  let odd = whole & (y - 2.0 * floor(0.5 * y) == F(1.0));
  let signed = select(magnitude, -magnitude, (x < F(0.0)) & odd);
  let atZero = select(F(0.0), F(p.infinity), y < F(0.0));
  let finite = select(signed, atZero, x == F(0.0));
  let value = select(finite, F(p.nan), (x < F(0.0)) & !whole);
  return select(value, F(1.0), (y == F(0.0)) | (x == F(1.0)));
}`;

const TABLE: Readonly<Record<BinaryName, Row>> = {
  add: { wgsl: "a + b", reference: (a, b) => a + b, flops: 1 },
  sub: { wgsl: "a - b", reference: (a, b) => a - b, flops: 1 },
  mul: { wgsl: "a * b", reference: (a, b) => a * b, flops: 1 },
  div: { wgsl: "a / b", reference: (a, b) => a / b, flops: 1, divides: true },
  pow: { wgsl: "power(a, b)", reference: (a, b) => a ** b, flops: 4, divides: true },
  maximum: {
    wgsl: "select(a, b, (b > a) | isNan(b))",
    reference: Math.max,
    flops: 1,
  },
  minimum: {
    wgsl: "select(a, b, (b < a) | isNan(b))",
    reference: Math.min,
    flops: 1,
  },
  greater: { wgsl: "select(F(0.0), F(1.0), a > b)", reference: (a, b) => +(a > b), flops: 1 },
};

const CASES: readonly KernelCase<BinaryAttributes>[] = [
  { shapes: [[1], [1]], attributes: { number: null } },
  { shapes: [[3, 5], [3, 5]], attributes: { number: null } },
  { shapes: [[2, 3, 8], [2, 3, 8]], attributes: { number: null } },
  { shapes: [[7], null], attributes: { number: 3 } },
  { shapes: [[2, 4, 6], null], attributes: { number: -2 } },
  { shapes: [[2, 5, 4, 4], [5, 1, 1]], attributes: { number: null } },
  { shapes: [[2, 5, 3, 3], [5, 1, 1]], attributes: { number: null } },
  { shapes: [[2, 3, 8], [8]], attributes: { number: null } },
  { shapes: [[2, 3, 5], [5]], attributes: { number: null } },
  { shapes: [[], [3, 2]], attributes: { number: null } },
  { shapes: [[2, 1, 3, 1], [1, 5, 1, 4]], attributes: { number: null } },
  { shapes: [[2, 1, 3, 1, 2, 1], [1, 2, 1, 5, 1, 3]], attributes: { number: null } },
];

/** Whole and broken numbers of both signs, from 0.5 to 3 in magnitude. */
function divisors(count: number): number[] {
  return Array.from({ length: count }, (_, i) => (i % 6 + 1) / 2 * (i % 4 < 2 ? 1 : -1));
}

function binaryKernel(name: BinaryName): Kernel<BinaryAttributes> {
  const { wgsl, reference, flops, divides } = TABLE[name];
  return defineKernel<BinaryAttributes>({
    name,
    inputs: ["a", "b"],
    output([a, b], { number }) {
      if (!a || !b === (number === null)) {
        throw new ShapeError(`${name}: needs a tensor, and a second one or a number`);
      }
      return {
        shape: broadcastShapes(name, a.shape, b?.shape ?? []),
        dtype: name === "greater" ? "f32" : floatType(a, b),
      };
    },
    launch({ inputs, output, attributes: { number }, dispatch }) {
      const [a, b] = inputs as [Tensor, Tensor | null];
      const elementwise = {
        expression: b ? wgsl : `applied(a, F(p.number))`,
        declarations: IS_NAN + (name === "pow" ? POWER : "") +
          (b ? "" : `fn applied(a: F, b: F) -> F { return ${wgsl}; }`),
        params: {
          ...(number === null ? {} : { number: f32(number) }),
          ...(name === "pow" ? { nan: f32(NaN), infinity: f32(Infinity) } : {}),
        },
      };
      for (const item of broadcastDispatches(b ? { a, b } : { a }, output, elementwise)) {
        dispatch(item);
      }
    },
    flops: (_inputs, output) => flops * sizeOf(output.shape),
    reference: ([a, b], [shapeA, shapeB], { number }, output) =>
      broadcastReference(
        [a, b],
        [shapeA, shapeB],
        output,
        (x, y) => reference(x, number ?? y),
      ),
    cases: CASES.map((item) => {
      const [a, b] = item.shapes;
      if (!divides) return item;
      // Bases stay away from 0 as well: their negative powers overflow.
      return { ...item, values: [divisors(sizeOf(a!)).reverse(), b && divisors(sizeOf(b))] };
    }),
    tolerance: { atol: 1e-6, rtol: 1e-5 },
  });
}

/** The kernels behind the functions of this file, by name. */
export const binaryKernels: Readonly<Record<BinaryName, Kernel<BinaryAttributes>>> = Object
  .fromEntries(
    Object.keys(TABLE).map((name) => [name, binaryKernel(name as BinaryName)]),
  ) as Record<BinaryName, Kernel<BinaryAttributes>>;

function apply(name: BinaryName, a: Tensor, b: Tensor | number): Tensor {
  const plain = typeof b === "number";
  return run(binaryKernels[name], [a, plain ? null : b], { number: plain ? b : null });
}

/**
 * `a + b`.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function add(a: Tensor, b: Tensor | number): Tensor {
  return apply("add", a, b);
}

/**
 * `a − b`.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function sub(a: Tensor, b: Tensor | number): Tensor {
  return apply("sub", a, b);
}

/**
 * `a · b`.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function mul(a: Tensor, b: Tensor | number): Tensor {
  return apply("mul", a, b);
}

/**
 * `a / b`.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function div(a: Tensor, b: Tensor | number): Tensor {
  return apply("div", a, b);
}

/**
 * `a` to the power of `b`. A negative base takes whole exponents only, others give NaN; anything to
 * the power of 0 is 1.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function pow(a: Tensor, b: Tensor | number): Tensor {
  return apply("pow", a, b);
}

/**
 * The larger of `a` and `b`; NaN if one of them is.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function maximum(a: Tensor, b: Tensor | number): Tensor {
  return apply("maximum", a, b);
}

/**
 * The smaller of `a` and `b`; NaN if one of them is.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function minimum(a: Tensor, b: Tensor | number): Tensor {
  return apply("minimum", a, b);
}

/**
 * 1 where `a > b`, else 0; always f32.
 *
 * @throws {ShapeError} if the shapes do not broadcast.
 */
export function greater(a: Tensor, b: Tensor | number): Tensor {
  return apply("greater", a, b);
}
