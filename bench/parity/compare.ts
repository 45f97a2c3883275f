/**
 * Comparing what was computed with what a reference says.
 *
 * @module
 */

import { f16BitsToF32, f32ToF16Bits } from "../../core/dtype.ts";
import type { Family, FloatType, Values, Wanted } from "./case.ts";

/**
 * The `tol` of a case. Elements must satisfy |got − want| ≤ atol + rtol·|want|, unless `rel_l2`
 * (‖got − want‖ / ‖want‖) or `mae` (mean |got − want|) limit the output as a whole.
 */
export interface Tolerance {
  /** Absolute error of an element. */
  readonly atol?: number;
  /** Error of an element, as a share of it. */
  readonly rtol?: number;
  /** Error of the output, as a share of it. */
  readonly rel_l2?: number;
  /** Takes the place of `rel_l2` where activations are half precision. */
  readonly rel_l2_f16?: number;
  /** Mean absolute error. */
  readonly mae?: number;
  /** Tolerances of single outputs, by role. */
  readonly per_output?: Readonly<Record<string, Tolerance>>;
}

/**
 * What half precision may cost; the reference stays as it is. A number has 11 bits: one rounding
 * moves it by 2⁻¹² ≈ 2.4e-4 of itself at most. In all references here the worst op uses 0.7 of
 * its limits, the worst model has rel_l2 1.4e-2, the worst pipeline 1.9e-2 and mae 5e-3.
 *
 * - `op`: inputs, weights and output are rounded, and sums cancel, so that errors go with the
 *   largest elements: `scale` of max|want| and `rtol` of the element itself. A case whose own rtol
 *   is n times the usual one amplifies errors n times. Where an operation only moves data
 *   (tolerance 0), the reference is rounded instead and must be met exactly.
 * - `model`: some hundred roundings between input and output.
 * - `pipeline`: the same in every step of a sampling loop, whose guidance multiplies them; latents
 *   are f32.
 */
export const HALF = {
  op: { scale: 2e-3, rtol: 2e-3, usual: 2e-4 },
  model: { rel_l2: 2e-2 },
  pipeline: { rel_l2: 4e-2, mae: 1e-2 },
} as const;

const LARGEST_HALF = 65504;

/** How an output compares with its reference. */
export interface Comparison {
  /** Name of the output. */
  readonly role: string;
  /** Whether it is within its limits. */
  readonly passed: boolean;
  /** Largest |got − want|. */
  readonly maxAbs: number;
  /** Largest |got − want| / |want| where want is not 0. */
  readonly maxRel: number;
  /** ‖got − want‖ / ‖want‖. */
  readonly relL2: number;
  /** Mean |got − want|. */
  readonly mae: number;
  /** The element that is farthest out, relative to its limit. */
  readonly worst: {
    readonly index: readonly number[];
    readonly got: number;
    readonly want: number;
  } | null;
  /** Share of the tolerance that was used up: above 1 the output fails. */
  readonly used: number;
  /** What went wrong with the output as a whole. */
  readonly problem: string | null;
}

/** Largest values allowed; `Infinity` where there is no limit. */
interface Limits {
  readonly atol: number;
  readonly rtol: number;
  readonly rel_l2: number;
  readonly mae: number;
}

const NONE: Limits = { atol: Infinity, rtol: 0, rel_l2: Infinity, mae: Infinity };

/** What a case's tolerance says of one output. */
function stated(tolerance: Tolerance, role: string): Tolerance {
  const own = tolerance.per_output?.[role];
  if (!own) return tolerance;
  const whole = own.rel_l2 !== undefined || own.mae !== undefined;
  return whole ? own : { atol: tolerance.atol, rtol: tolerance.rtol, ...own };
}

function limitsFor(
  role: string,
  tolerance: Tolerance,
  want: Wanted,
  family: Family,
  dtype: FloatType,
): Limits {
  const { atol = 0, rtol = 0, rel_l2, rel_l2_f16, mae } = stated(tolerance, role);
  if (want.integer) return { ...NONE, atol };
  const half = dtype === "f16" && family !== "host";
  if (rel_l2 !== undefined || mae !== undefined) {
    if (!half) return { ...NONE, rel_l2: rel_l2 ?? Infinity, mae: mae ?? Infinity };
    const loose = { mae: 0, ...HALF.model, ...(family === "pipeline" ? HALF.pipeline : {}) };
    return {
      ...NONE,
      rel_l2: rel_l2_f16 ?? Math.max(rel_l2 ?? Infinity, loose.rel_l2),
      mae: Math.max(mae ?? Infinity, loose.mae),
    };
  }
  if (half && family !== "op") return { ...NONE, rel_l2: HALF[family].rel_l2 };
  if (!half || (atol === 0 && rtol === 0)) return { ...NONE, atol, rtol };
  const { scale, rtol: loose, usual } = HALF.op;
  const amplified = Math.max(1, rtol / usual);
  const sizes = Array.from(want.data, Math.abs).filter((size) => size <= LARGEST_HALF);
  const largest = sizes.reduce((most, size) => Math.max(most, size), 0);
  return {
    ...NONE,
    atol: atol + amplified * scale * largest,
    rtol: rtol + amplified * loose,
  };
}

/**
 * The reference as half precision can hold it: rounded where data is only moved, infinite where it
 * is out of range.
 */
function inHalf(want: Wanted, { atol, rtol }: Limits): Wanted {
  const exact = atol === 0 && rtol === 0;
  const data = Array.from(want.data, (x) => {
    const half = f16BitsToF32(f32ToF16Bits(x));
    return exact || !Number.isFinite(half) ? half : x;
  });
  return { ...want, data };
}

function distance(got: number, want: number): number {
  if (got === want || (Number.isNaN(got) && Number.isNaN(want))) return 0;
  const error = Math.abs(got - want);
  return Number.isNaN(error) ? Infinity : error;
}

/** `part / whole`, where nothing of nothing is nothing, and no limit leaves room for anything. */
function share(part: number, whole: number): number {
  return part === 0 || whole === Infinity ? 0 : part / whole;
}

/** Indexes along each axis of the flat index `i`. */
function unravel(i: number, shape: readonly number[]): number[] {
  const index: number[] = [];
  let rest = i;
  for (const extent of shape.toReversed()) {
    index.unshift(rest % extent);
    rest = Math.floor(rest / extent);
  }
  return index;
}

/** Compares one output. */
export function compare(
  role: string,
  got: Values,
  reference: Wanted,
  tolerance: Tolerance,
  { family, dtype }: { family: Family; dtype: FloatType },
): Comparison {
  const shape = reference.shape ?? [reference.data.length];
  if (got.data.length !== reference.data.length || !sameExtents(got.shape, reference.shape)) {
    return failure(
      role,
      `has shape [${got.shape ?? got.data.length}], the reference [${shape}]`,
    );
  }
  const limits = limitsFor(role, tolerance, reference, family, dtype);
  const half = dtype === "f16" && family === "op" && !reference.integer;
  const want = half ? inHalf(reference, limits) : reference;
  let [maxAbs, maxRel, used, worst] = [0, 0, 0, 0];
  let [squares, wantSquares, sum] = [0, 0, 0];
  for (let i = 0; i < want.data.length; i++) {
    const size = Math.abs(want.data[i]);
    const error = distance(got.data[i], want.data[i]);
    // NaN and infinities that the reference does not have break any limit.
    const part = error === Infinity
      ? Infinity
      : share(error, limits.atol + (limits.rtol && limits.rtol * size));
    if (part > used || (part === used && error > maxAbs)) worst = i;
    used = Math.max(used, part);
    maxAbs = Math.max(maxAbs, error);
    if (size > 0) maxRel = Math.max(maxRel, share(error, size));
    squares += error * error;
    wantSquares += Number.isFinite(size) ? size * size : 0;
    sum += error;
  }
  const relL2 = share(Math.sqrt(squares), Math.sqrt(wantSquares));
  const mae = share(sum, want.data.length);
  const wholes = [
    { name: "rel_l2", value: relL2, limit: limits.rel_l2 },
    { name: "mae", value: mae, limit: limits.mae },
  ];
  const broken = wholes.find(({ value, limit }) => share(value, limit) > 1);
  for (const { value, limit } of wholes) used = Math.max(used, share(value, limit));
  return {
    role,
    passed: used <= 1,
    maxAbs,
    maxRel,
    relL2,
    mae,
    worst: want.data.length
      ? { index: unravel(worst, shape), got: got.data[worst], want: want.data[worst] }
      : null,
    used,
    problem: broken
      ? `${broken.name} is ${broken.value.toExponential(2)}, the limit ${broken.limit}`
      : null,
  };
}

function sameExtents(got?: readonly number[], want?: readonly number[]): boolean {
  return !got || !want || (got.length === want.length && got.every((n, i) => n === want[i]));
}

/** An output that could not be compared at all. */
export function failure(role: string, problem: string): Comparison {
  return {
    role,
    passed: false,
    maxAbs: Infinity,
    maxRel: Infinity,
    relL2: Infinity,
    mae: Infinity,
    worst: null,
    used: Infinity,
    problem,
  };
}
