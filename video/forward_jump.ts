/**
 * T0 and T1 of Text2Video-Zero in a schedule of timesteps, and the jump of the forward process
 * between them (arXiv:2303.13439, §3.2: "Δt DDPM forward steps").
 *
 * @module
 */

import {
  alphasCumprod,
  forwardAlphaProduct,
  type Scheduler,
  type SchedulerConfig,
} from "../schedulers/mod.ts";

/** Where in the timesteps the frames part: the first frame's way to T1, T1 to T0, and T1 to 0. */
export interface Segments {
  /** From x_T to T1. */
  readonly toT1: readonly number[];
  /** From T1 to T0. */
  readonly t1ToT0: readonly number[];
  /** From T1 to the end. */
  readonly fromT1: readonly number[];
}

/** What is left of the latents at T0, and how much noise comes to them; A where there is one. */
export interface Jump {
  /** Factor of the latents. */
  readonly signal: number;
  /** Factor of new noise. */
  readonly noise: number;
  /** A; `null` where latents are kept as x_0 + σ·ε. */
  readonly alphaProduct: number | null;
}

/**
 * The forward process from T0 to T1 in one step: `x_T1 = √A·x_T0 + √(1−A)·e` with
 * `A = Π α_t, t = T0 … T1−1`, as the original code has it.
 */
export function forwardJump({ config }: Scheduler, T0: number, T1: number): Jump {
  const A = forwardAlphaProduct(config as Partial<SchedulerConfig>, T0, T1);
  return { signal: Math.sqrt(A), noise: Math.sqrt(1 - A), alphaProduct: A };
}

/**
 * The same between levels σ = √((1−ᾱ)/ᾱ): `A = ᾱ_T1 / ᾱ_T0`; for latents kept as `x_0 + σ·ε`,
 * `x_T1 = x_T0 + √(σ_T1² − σ_T0²)·e`.
 */
export function jumpBetween(space: Scheduler["space"], atT0: number, atT1: number): Jump {
  if (space === "sigma") {
    return { signal: 1, noise: Math.sqrt(atT1 ** 2 - atT0 ** 2), alphaProduct: null };
  }
  const A = (1 + atT0 ** 2) / (1 + atT1 ** 2);
  return { signal: Math.sqrt(A), noise: Math.sqrt(1 - A), alphaProduct: A };
}

/** Standard deviation of the noise in latents that are at a timestep: √(1−ᾱ), or σ. */
export function noiseLevel(
  { config, sigmas, space }: Scheduler,
  timestep: number,
  place: number,
): number {
  if (!sigmas) return Math.sqrt(1 - alphasCumprod(config as Partial<SchedulerConfig>)[timestep]);
  const sigma = sigmas[place];
  return space === "sigma" ? sigma : sigma / Math.sqrt(1 + sigma ** 2);
}

/** Places in the timesteps where a step begins. */
export function stepStarts({ timesteps, stepStarts }: Scheduler): readonly number[] {
  return stepStarts ?? [...timesteps.keys()];
}

/** t0 and t1 count steps from the end, as in diffusers, which has one timestep a step. */
export function segments(scheduler: Scheduler, t0: number, t1: number): Segments {
  const { timesteps } = scheduler;
  const starts = stepStarts(scheduler);
  const atT1 = starts[starts.length - t1 - 1];
  const atT0 = starts[starts.length - t0 - 1];
  return {
    toT1: timesteps.slice(0, atT1),
    t1ToT0: timesteps.slice(atT1, atT0),
    fromT1: timesteps.slice(atT1),
  };
}
