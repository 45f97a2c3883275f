/**
 * What the tests of the schedulers share: a device, the reference file, and comparisons.
 *
 * @module
 */

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { openDevice } from "../core/device.ts";
import { openSafetensors } from "../core/safetensors.ts";
import type { Tensor } from "../core/tensor.ts";
import type { SchedulerConfig } from "../schedulers/mod.ts";

/** Settings as tests give them. */
export type Config = Partial<SchedulerConfig>;

/** Largest error accepted. */
export interface Tolerance {
  atol: number;
  rtol: number;
}

/** A file of reference values. */
export function goldenPath(name: string): string {
  return fileURLToPath(new URL(`./golden/${name}`, import.meta.url));
}

/** Stays open: Bun gives one instance of this module to all test files. */
export const device = await openDevice();
export const golden = await openSafetensors(goldenPath("schedulers.safetensors"));
export const SHAPE = [1, 4, 4, 5];
export const SIZE = 80;
export const start = await golden.readF32("start");
export const noises = await golden.readF32("noises");

/** Stable Diffusion 1.5's own settings. */
export const SD15: Config = {
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  num_train_timesteps: 1000,
  set_alpha_to_one: false,
  skip_prk_steps: true,
  steps_offset: 1,
  trained_betas: null,
  clip_sample: false,
};

export function upload(values: ArrayLike<number>, shape: readonly number[] = SHAPE): Tensor {
  return device.tensor(Float32Array.from(values), shape);
}

export function assertClose(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  tol: Tolerance,
  what: string,
) {
  assert.equal(got.length, want.length, what);
  const far = Array.from(want).findIndex((value, i) =>
    !(Math.abs(got[i] - value) <= tol.atol + tol.rtol * Math.abs(value))
  );
  assert.ok(far < 0, `${what}[${far}]: got ${got[far]}, want ${want[far]}`);
}

/** Runs `body` and checks that it left nothing on the device. */
export async function withoutLeak(body: () => Promise<void>): Promise<void> {
  const before = device.memory().live;
  const scope = device.scope();
  try {
    await body();
  } finally {
    scope[Symbol.dispose]();
  }
  assert.equal(device.memory().live, before, "bytes left on the device");
}
