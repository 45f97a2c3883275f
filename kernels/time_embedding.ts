/**
 * Sinusoidal embedding of timesteps: `sin(t · fᵢ)` and `cos(t · fᵢ)` with frequencies
 * `fᵢ = maxPeriod^(−i / (half − shift))`, i = 0 … half − 1.
 *
 * Frequencies and arguments are rounded to f32 where diffusers rounds them. Near t = 1000 an error
 * of one unit in the last place of fᵢ moves the result by 1e-4, hence the careful exponential.
 *
 * Source: `get_timestep_embedding` of diffusers; Vaswani et al. 2017.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { formatShape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid, laneTypes, SINE } from "./wgsl.ts";

interface Attributes {
  readonly dim: number;
  readonly flipSinToCos: boolean;
  readonly downscaleFreqShift: number;
  readonly maxPeriod: number;
}

/** Settings of {@link timestepEmbedding}. */
export interface TimestepEmbeddingOptions {
  /** Cosines before sines, as in Stable Diffusion. Default false. */
  flipSinToCos?: boolean;
  /** Taken off the number of frequencies in the exponent. Default 1; Stable Diffusion has 0. */
  downscaleFreqShift?: number;
  /** The longest period, divided by 2π. Default 10,000. */
  maxPeriod?: number;
}

/** e^x with its argument reduced by a multiple of log 2 in two exact parts, then Taylor's sum. */
const EXPONENTIAL = `
fn exponential(x: f32) -> f32 {
  let k = round(x * 1.44269504);
  let r = (x - k * 0.6923828125) - k * 0.00076436804;
  let tail = 1.6666667e-1 + r * (4.1666667e-2 + r * (8.3333333e-3 + r * 1.3888889e-3));
  return ldexp(1.0 + (r + r * r * (0.5 + r * tail)), i32(k));
}`;

/** The kernel behind {@link timestepEmbedding}. */
export const timestepEmbeddingKernel: Kernel<Attributes> = defineKernel<Attributes>({
  name: "timestep_embedding",
  inputs: ["t"],
  output([t], { dim, downscaleFreqShift }) {
    if (t?.shape.length !== 1) {
      throw new ShapeError(
        `timestep_embedding: t must have one axis, got ${t ? formatShape(t.shape) : "none"}`,
      );
    }
    if (!Number.isInteger(dim) || dim < 2 || Math.floor(dim / 2) <= downscaleFreqShift) {
      throw new ShapeError(
        `timestep_embedding: dim must be a whole number of at least 2, and its half greater than ` +
          `downscaleFreqShift, got ${dim} and ${downscaleFreqShift}`,
      );
    }
    return { shape: [t.shape[0], dim], dtype: "f32" };
  },
  launch({ inputs, output, attributes, dispatch }) {
    const t = inputs[0] as Tensor;
    const { dim, flipSinToCos, downscaleFreqShift, maxPeriod } = attributes;
    const half = Math.floor(dim / 2);
    const count = t.size * half;
    dispatch({
      variant: "",
      read: { t: scalars(t) },
      write: { out: scalars(output) },
      params: {
        count: u32(count),
        dim: u32(dim),
        half: u32(half),
        sines: u32(flipSinToCos ? half : 0),
        cosines: u32(flipSinToCos ? 0 : half),
        slope: f32(-Math.log(maxPeriod)),
        steps: f32(half - downscaleFreqShift),
      },
      ...flatGrid(count),
      declarations: () => laneTypes(1) + SINE + EXPONENTIAL,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let row = i / p.half;
        let k = i % p.half;
        let angle = f32(t[row]) * exponential(p.slope * f32(k) / p.steps);
        let at = row * p.dim + k;
        out[at + p.sines] = sine(angle);
        out[at + p.cosines] = cosine(angle);
        if (k == 0u && p.dim > 2u * p.half) { out[at + p.dim - 1u] = 0.0; }`,
    });
  },
  flops: (_inputs, output) => 40 * sizeOf(output.shape),
  reference([t], _shapes, { dim, flipSinToCos, downscaleFreqShift, maxPeriod }, output) {
    const half = Math.floor(dim / 2);
    return Float64Array.from({ length: sizeOf(output) }, (_, i) => {
      const column = i % dim;
      if (column >= 2 * half) return 0;
      const k = column % half;
      const angle = t![Math.floor(i / dim)] * maxPeriod ** (-k / (half - downscaleFreqShift));
      return column < half === flipSinToCos ? Math.cos(angle) : Math.sin(angle);
    });
  },
  cases: [
    [2, true, 0, 100],
    [32, true, 0, 10000],
    [33, false, 1, 10000],
    [320, true, 0, 10000],
  ].map(([dim, flip, shift, maxPeriod]) => ({
    shapes: [[6]],
    attributes: {
      dim: Number(dim),
      flipSinToCos: flip === true,
      downscaleFreqShift: Number(shift),
      maxPeriod: Number(maxPeriod),
    },
    dtypes: ["i32" as const],
    values: [[0, 1, 21, 500, 981, 999]],
  })),
  tolerance: { atol: 3e-4, rtol: 0 },
});

/**
 * The embedding of timesteps `t` (`[n]`, of any dtype) as f32 `[n, dim]`: sines, then cosines, then
 * a column of zeros if `dim` is odd.
 *
 * @throws {ShapeError} if `t` has not one axis, or `dim` is too small.
 */
export function timestepEmbedding(
  t: Tensor,
  dim: number,
  { flipSinToCos = false, downscaleFreqShift = 1, maxPeriod = 10000 }: TimestepEmbeddingOptions =
    {},
): Tensor {
  const attributes = { dim, flipSinToCos, downscaleFreqShift, maxPeriod };
  return run(timestepEmbeddingKernel, [t], attributes);
}
