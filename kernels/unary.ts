/**
 * Functions of one number, applied to every element: activations and elementary functions, a row
 * of a table each.
 *
 * Where WGSL has no such function (`erf`) or promises too little of it (`sin`, `cos` and `tanh` may
 * be off by 5e-4, or overflow), the row brings its own formula.
 *
 * Source: `torch.nn.functional` and `torch`; GELU is Hendrycks & Gimpel 2016, SiLU (swish)
 * Ramachandran et al. 2017.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, u32, vectors } from "../core/kernel.ts";
import { roundToEven } from "../core/rounding.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { ERF, FLAT_INDEX, flatGrid, flatPieces, floatType, laneTypes, SINE } from "./wgsl.ts";

/** Names of the kernels in this file. */
export type UnaryName =
  | "silu"
  | "gelu_erf"
  | "gelu_tanh"
  | "quick_gelu"
  | "sigmoid"
  | "tanh"
  | "relu"
  | "exp"
  | "softplus"
  | "erf"
  | "sin"
  | "cos"
  | "abs"
  | "neg"
  | "square"
  | "sqrt"
  | "rsqrt"
  | "log"
  | "reciprocal"
  | "round"
  | "floor";

interface Row {
  /** The value at `x`, a vec4f. */
  readonly wgsl: string;
  /** WGSL functions that it calls. */
  readonly functions?: string;
  readonly reference: (x: number) => number;
  /** Where the tests draw `x` from. */
  readonly domain: readonly [number, number];
  /** Operations per element, a built-in function counting as one. */
  readonly flops: number;
}

/** e^88 is the last power that f32 holds; 1 / (1 + e^87) is 0 for every purpose. */
const LOGISTIC = `
fn logistic(x: F) -> F { return 1.0 / (1.0 + exp(select(-x, F(87.0), x < F(-87.0)))); }`;

/** Near 0 the quotient of exponentials cancels: there, Taylor's sum. */
const TANH = `
fn hyperbolicTangent(x: F) -> F {
  let e = exp(-2.0 * abs(x));
  let z = x * x;
  let small = x * (1.0 + z * (-3.3333333e-1 + z * (1.3333333e-1
    + z * (-5.3968254e-2 + z * 2.1869489e-2))));
  return select(sign(x) * (1.0 - e) / (1.0 + e), small, abs(x) < F(0.3));
}`;

/** log(1 + e) loses the digits of a small e: there, Taylor's sum. */
const SOFTPLUS = `
fn softplus(x: F) -> F {
  let e = exp(-abs(x));
  let rest = select(log(1.0 + e), e * (1.0 - e * (0.5 - e * 3.3333333e-1)), e < F(0.01));
  return select(x, F(0.0), x < F(0.0)) + rest;
}`;

const sigmoidAt = (x: number): number => 1 / (1 + Math.exp(-x));

/** The error function, 2/√π · e^(−x²) · Σₙ 2ⁿ x^(2n+1) / (2n+1)!!, to the precision of float64. */
export function erfReference(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= 2 * x * x / (2 * n + 1);
    sum += term;
  }
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

/** GELU in float64, x/2 · (1 + erf(x/√2)). */
export function geluReference(x: number): number {
  return 0.5 * x * (1 + erfReference(x * Math.SQRT1_2));
}

const TABLE: Readonly<Record<UnaryName, Row>> = {
  silu: {
    wgsl: "x * logistic(x)",
    functions: LOGISTIC,
    reference: (x) => x * sigmoidAt(x),
    domain: [-100, 100],
    flops: 4,
  },
  gelu_erf: {
    wgsl: "0.5 * x * (1.0 + erf(x * 0.70710678))",
    functions: ERF,
    reference: geluReference,
    domain: [-100, 100],
    flops: 26,
  },
  gelu_tanh: {
    wgsl: "x * logistic(1.5957691 * (x + 0.044715 * x * x * x))",
    functions: LOGISTIC,
    reference: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
    domain: [-100, 100],
    flops: 9,
  },
  quick_gelu: {
    wgsl: "x * logistic(1.702 * x)",
    functions: LOGISTIC,
    reference: (x) => x * sigmoidAt(1.702 * x),
    domain: [-100, 100],
    flops: 5,
  },
  sigmoid: {
    wgsl: "logistic(x)",
    functions: LOGISTIC,
    reference: sigmoidAt,
    domain: [-100, 100],
    flops: 3,
  },
  tanh: {
    wgsl: "hyperbolicTangent(x)",
    functions: TANH,
    reference: Math.tanh,
    domain: [-100, 100],
    flops: 5,
  },
  relu: {
    wgsl: "select(x, F(0.0), x < F(0.0))",
    reference: (x) => Math.max(x, 0),
    domain: [-100, 100],
    flops: 1,
  },
  exp: { wgsl: "exp(x)", reference: Math.exp, domain: [-12, 10], flops: 1 },
  softplus: {
    wgsl: "softplus(x)",
    functions: SOFTPLUS,
    reference: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))),
    domain: [-100, 100],
    flops: 5,
  },
  erf: { wgsl: "erf(x)", functions: ERF, reference: erfReference, domain: [-8, 8], flops: 23 },
  sin: { wgsl: "sine(x)", functions: SINE, reference: Math.sin, domain: [-1000, 1000], flops: 25 },
  cos: {
    wgsl: "cosine(x)",
    functions: SINE,
    reference: Math.cos,
    domain: [-1000, 1000],
    flops: 25,
  },
  abs: { wgsl: "abs(x)", reference: Math.abs, domain: [-100, 100], flops: 1 },
  neg: { wgsl: "-x", reference: (x) => -x, domain: [-100, 100], flops: 1 },
  square: { wgsl: "x * x", reference: (x) => x * x, domain: [-100, 100], flops: 1 },
  sqrt: { wgsl: "sqrt(x)", reference: Math.sqrt, domain: [0.01, 100], flops: 1 },
  rsqrt: {
    wgsl: "inverseSqrt(x)",
    reference: (x) => 1 / Math.sqrt(x),
    domain: [0.01, 100],
    flops: 1,
  },
  log: { wgsl: "log(x)", reference: Math.log, domain: [0.01, 100], flops: 1 },
  reciprocal: { wgsl: "1.0 / x", reference: (x) => 1 / x, domain: [0.01, 100], flops: 1 },
  round: { wgsl: "round(x)", reference: roundToEven, domain: [-8, 8], flops: 1 },
  floor: { wgsl: "floor(x)", reference: Math.floor, domain: [-8, 8], flops: 1 },
};

type NoAttributes = Readonly<Record<string, never>>;

function unaryKernel(name: UnaryName): Kernel<NoAttributes> {
  const { wgsl, functions = "", reference, domain: [low, high], flops } = TABLE[name];
  const spread = (count: number, scale: number) =>
    Array.from(
      { length: count },
      (_, i) => scale * (low + (high - low) * (count > 1 ? i / (count - 1) : 0.25)),
    );
  return defineKernel<NoAttributes>({
    name,
    inputs: ["x"],
    output([x]) {
      if (!x) throw new ShapeError(`${name}: needs a tensor`);
      return { shape: x.shape, dtype: floatType(x) };
    },
    launch({ inputs, output, dispatch }) {
      const x = inputs[0] as Tensor;
      for (const { count, range } of flatPieces([x, output])) {
        const groups = Math.ceil(count / 4);
        dispatch({
          variant: "",
          read: { x: { ...vectors(x), range: range(x) } },
          write: { out: { ...vectors(output), range: range(output) } },
          params: { groups: u32(groups) },
          ...flatGrid(groups),
          declarations: () =>
            `${laneTypes(4)} ${functions}
            fn apply(x: F) -> F { return ${wgsl}; }`,
          main: () => `
            ${FLAT_INDEX}
            if (i < p.groups) { out[i] = out_t(apply(vec4f(x[i]))); }`,
        });
      }
    },
    flops: (_inputs, output) => flops * sizeOf(output.shape),
    reference: ([x]) => x!.map(reference),
    cases: [
      { shapes: [[1]], attributes: {}, values: [spread(1, 1)] },
      { shapes: [[127]], attributes: {}, values: [spread(127, 1)] },
      { shapes: [[33]], attributes: {}, values: [spread(33, 1)] },
      { shapes: [[3, 5, 7]], attributes: {}, values: [spread(105, 1 / 32)] },
      { shapes: [[2, 8, 4, 4]], attributes: {}, values: [spread(256, 1 / 4)] },
    ],
    tolerance: { atol: 2e-6, rtol: 1e-5 },
  });
}

/** The kernels behind the functions of this file, by name. */
export const unaryKernels: Readonly<Record<UnaryName, Kernel<NoAttributes>>> = Object.fromEntries(
  Object.keys(TABLE).map((name) => [name, unaryKernel(name as UnaryName)]),
) as Record<UnaryName, Kernel<NoAttributes>>;

const apply = (name: UnaryName, x: Tensor): Tensor => run(unaryKernels[name], [x], {});

/** `x · sigmoid(x)`, also called swish. */
export function silu(x: Tensor): Tensor {
  return apply("silu", x);
}

/**
 * `x · Φ(x)` with the normal distribution's Φ: exact by the error function, or with
 * `approximate: "tanh"` `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
 */
export function gelu(
  x: Tensor,
  { approximate = "none" }: { approximate?: "none" | "tanh" } = {},
): Tensor {
  return apply(approximate === "tanh" ? "gelu_tanh" : "gelu_erf", x);
}

/** `x · sigmoid(1.702 x)`, the GELU of CLIP. */
export function quickGelu(x: Tensor): Tensor {
  return apply("quick_gelu", x);
}

/** `1 / (1 + e^−x)`. */
export function sigmoid(x: Tensor): Tensor {
  return apply("sigmoid", x);
}

/** The hyperbolic tangent. */
export function tanh(x: Tensor): Tensor {
  return apply("tanh", x);
}

/** `max(x, 0)`; NaN stays NaN. */
export function relu(x: Tensor): Tensor {
  return apply("relu", x);
}

/** `e^x`. */
export function exp(x: Tensor): Tensor {
  return apply("exp", x);
}

/** `log(1 + e^x)`. */
export function softplus(x: Tensor): Tensor {
  return apply("softplus", x);
}

/** The error function, `2/√π · ∫₀ˣ e^(−t²) dt`. */
export function erf(x: Tensor): Tensor {
  return apply("erf", x);
}

/** The sine; precise to about 1e-7 for |x| ≤ 10⁴. */
export function sin(x: Tensor): Tensor {
  return apply("sin", x);
}

/** The cosine; precise to about 1e-7 for |x| ≤ 10⁴. */
export function cos(x: Tensor): Tensor {
  return apply("cos", x);
}

/** `|x|`. */
export function abs(x: Tensor): Tensor {
  return apply("abs", x);
}

/** `−x`. */
export function neg(x: Tensor): Tensor {
  return apply("neg", x);
}

/** `x²`. */
export function square(x: Tensor): Tensor {
  return apply("square", x);
}

/** `√x`. */
export function sqrt(x: Tensor): Tensor {
  return apply("sqrt", x);
}

/** `1 / √x`. */
export function rsqrt(x: Tensor): Tensor {
  return apply("rsqrt", x);
}

/** The natural logarithm. */
export function log(x: Tensor): Tensor {
  return apply("log", x);
}

/** `1 / x`. */
export function reciprocal(x: Tensor): Tensor {
  return apply("reciprocal", x);
}

/** The nearest whole number; halves go to the even one. */
export function round(x: Tensor): Tensor {
  return apply("round", x);
}

/** The largest whole number that is not above `x`. */
export function floor(x: Tensor): Tensor {
  return apply("floor", x);
}
