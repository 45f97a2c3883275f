/**
 * Samplers as they are offered: names, spacings, Heun and UniPC against double precision; and the
 * arithmetic of the guidance rescale.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { InputError } from "../core/errors.ts";
import { add, linearCombination, mul, sin } from "../kernels/mod.ts";
import {
  createScheduler,
  drawsNoise,
  HeunDiscreteScheduler,
  PNDMScheduler,
  samplers,
} from "../schedulers/mod.ts";
import { rescaleGuidance } from "../video/guidance.ts";
import {
  assertClose,
  type Config,
  noises,
  SD15,
  SIZE,
  start,
  upload,
  withoutLeak,
} from "./schedulers_setup.ts";

test("samplers are found by the names that people use", () => {
  const same: readonly (readonly [spelling: string, name: string])[] = [
    ["DPM++ 2M Karras", "dpm++-karras"],
    ["dpmpp_2m", "dpm++"],
    ["dpmpp_2m_sde", "dpm++-2m-sde"],
    ["DPM++ 2M SDE", "dpm++-2m-sde"],
    ["Euler a", "euler-a"],
    ["euler_ancestral", "euler-a"],
    ["PLMS", "pndm"],
    ["uni_pc", "unipc"],
    ["UniPCMultistepScheduler", "unipc"],
    ["DPMSolverMultistep", "dpm++"],
  ];
  for (const [spelling, name] of same) {
    const [got, want] = [createScheduler(spelling, SD15), createScheduler(name, SD15)];
    assert.equal(got.constructor, want.constructor, spelling);
    assert.deepEqual(got.config, want.config, spelling);
  }
  for (const { name, aliases } of samplers) {
    for (const alias of aliases) {
      assert.deepEqual(createScheduler(alias, SD15).config, createScheduler(name, SD15).config);
    }
  }
  const heun = createScheduler("heun beta", { ...SD15, use_karras_sigmas: true }).config;
  assert.deepEqual([heun.use_beta_sigmas, heun.use_karras_sigmas], [true, false]);
  assert.throws(() => createScheduler("ddim karras", SD15), /leave "karras" out, or choose euler/);
  assert.throws(() => createScheduler("dpm++ sde", SD15), /choose one of ddim, /);
  assert.throws(() => createScheduler("karras", SD15), InputError);
});

test("free noise levels are spaced as their formulas say", () => {
  const shares = (name: string, share: (max: number, min: number, sigma: number) => number) => {
    const scheduler = createScheduler(name, SD15);
    scheduler.setTimesteps(5);
    const levels = (scheduler.sigmas ?? []).slice(0, 5);
    assert.deepEqual(scheduler.timesteps.length, 5);
    return levels.map((sigma) => share(levels[0], levels[4], sigma));
  };
  const tol = { atol: 2e-6, rtol: 0 };
  for (const method of ["euler", "lms", "dpm++", "unipc"]) {
    const log = shares(`${method} exponential`, (a, b, s) => Math.log(s / b) / Math.log(a / b));
    assertClose(log, [1, 0.75, 0.5, 0.25, 0], tol, `${method} exponential`);
    const root = (s: number) => s ** (1 / 7);
    const karras = shares(
      `${method} karras`,
      (a, b, s) => (root(s) - root(b)) / (root(a) - root(b)),
    );
    assertClose(karras, [1, 0.75, 0.5, 0.25, 0], tol, `${method} karras`);
    // Quantiles of Beta(0.6, 0.6) at 1, ¾, ½, ¼ and 0, from tables.
    const beta = shares(`${method} beta`, (a, b, s) => (s - b) / (a - b));
    const low = 0.17568037865269498;
    assertClose(beta, [1, 1 - low, 0.5, low, 0], tol, `${method} beta`);
  }
});

/** √((1−ᾱ)/ᾱ) of SD 1.5 at whole timesteps, in double precision. */
const RATIOS: readonly number[] = (() => {
  let product = 1;
  return Array.from({ length: 1000 }, (_, t) => {
    const [first, last] = [Math.sqrt(0.00085), Math.sqrt(0.012)];
    product *= 1 - (first + (last - first) * t / 999) ** 2;
    return Math.sqrt((1 - product) / product);
  });
})();

/** What stands for a model: no multiple of the sample, and different at each timestep. */
function noiseOf(x: number, t: number): number {
  return Math.sin(0.7 * x) + t / 2000;
}

/** The same steps on the device. */
async function sample(name: string, config: Config, steps: number): Promise<Float32Array> {
  const scheduler = createScheduler(name, { ...SD15, ...config });
  scheduler.setTimesteps(steps);
  let x = linearCombination([scheduler.initNoiseSigma], [upload(start)]);
  for (const t of scheduler.timesteps) {
    const input = scheduler.scaleModelInput(x, t);
    x = scheduler.step(add(sin(mul(input, 0.7)), t / 2000), t, x).prevSample;
  }
  scheduler.reset();
  return await x.data();
}

test("Heun agrees with its formula in double precision", () =>
  withoutLeak(async () => {
    const STEPS = 8;
    const timesteps = Array.from({ length: STEPS }, (_, i) => 999 * (1 - i / (STEPS - 1)));
    const at = (t: number) => {
      const low = Math.min(Math.floor(t), 998);
      return RATIOS[low] + (t - low) * (RATIOS[low + 1] - RATIOS[low]);
    };
    const slope = (x: number, t: number) => noiseOf(x / Math.sqrt(at(t) ** 2 + 1), t);
    const want = Array.from(start, (value) => {
      let x = value * at(999);
      for (let i = 0; i < STEPS - 1; i++) {
        const [t, next] = [timesteps[i], timesteps[i + 1]];
        const width = at(next) - at(t);
        const first = slope(x, t);
        x += width * (first + slope(x + width * first, next)) / 2;
      }
      return x - at(0) * slope(x, 0);
    });
    assertClose(await sample("heun", {}, STEPS), want, { atol: 2e-4, rtol: 2e-4 }, "heun");
  }));

/** A point of the multistep history: half the log of the signal-to-noise ratio, and x₀ there. */
type Point = readonly [lambda: number, x0: number];

/** e^−to·∫ e^λ P(λ) dλ from `from` to `to`, P through the points (arXiv:2302.04867, equation 2). */
function integral(points: readonly Point[], from: number, to: number): number {
  const polynomial = (lambda: number) =>
    points.reduce(
      (total, [node, value], j) =>
        total + points.reduce((product, [other], k) =>
          k === j ? product : product * (lambda - other) / (node - other), value),
      0,
    );
  const PARTS = 200;
  let total = 0;
  for (let i = 0; i <= PARTS; i++) {
    const lambda = from + (to - from) * i / PARTS;
    const weight = i === 0 || i === PARTS ? 1 : i % 2 ? 4 : 2;
    total += weight * Math.exp(lambda - to) * polynomial(lambda);
  }
  return total * (to - from) / PARTS / 3;
}

test("UniPC agrees with its integrals in double precision", () =>
  withoutLeak(async () => {
    const STEPS = 8;
    const timesteps = Array.from(
      { length: STEPS },
      (_, i) => Math.round(999 * (STEPS - i) / STEPS),
    );
    const level = (t: number) => {
      const alpha = 1 / Math.sqrt(RATIOS[t] ** 2 + 1);
      return { alpha, sigma: RATIOS[t] * alpha, lambda: -Math.log(RATIOS[t]) };
    };
    const want = Array.from(start, (value) => {
      let x = value;
      let before = 0;
      const history: Point[] = [];
      for (const [i, t] of timesteps.entries()) {
        const here = level(t);
        const x0 = (x - here.sigma * noiseOf(x, t)) / here.alpha;
        if (i > 0) {
          const from = level(timesteps[i - 1]);
          const [last] = history;
          // One point: the mean of both ends. Two: the parabola through them and the new one.
          const part = i === 1
            ? here.alpha * -Math.expm1(from.lambda - here.lambda) * (last[1] + x0) / 2
            : here.alpha *
              integral([...history.slice(0, 2), [here.lambda, x0]], from.lambda, here.lambda);
          x = here.sigma / from.sigma * before + part;
        }
        history.unshift([here.lambda, x0]);
        before = x;
        if (i === STEPS - 1) return x0;
        const to = level(timesteps[i + 1]);
        const weight = -to.alpha * Math.expm1(here.lambda - to.lambda);
        const trend = i === 0 ? 0 : (x0 - history[1][1]) / (here.lambda - history[1][0]);
        x = to.sigma / here.sigma * x + weight * (x0 + trend * (to.lambda - here.lambda) / 2);
      }
      return x;
    });
    assertClose(await sample("unipc", {}, STEPS), want, { atol: 2e-4, rtol: 2e-4 }, "unipc");
  }));

test("steps begin where a method has finished the one before", () => {
  const heun = new HeunDiscreteScheduler(SD15);
  heun.setTimesteps(4);
  assert.deepEqual(heun.stepStarts, [0, 2, 4, 6]);
  const plms = new PNDMScheduler(SD15);
  plms.setTimesteps(4);
  assert.deepEqual(plms.stepStarts, [0, 2, 3, 4]);
  const prk = new PNDMScheduler({ ...SD15, skip_prk_steps: false });
  prk.setTimesteps(5);
  assert.deepEqual(prk.stepStarts, [0, 4, 8, 12, 13]);
});

test("which samplers draw noise is known", () => {
  const drawing = samplers.map(({ name }) => name)
    .filter((name) => drawsNoise(createScheduler(name, SD15), 0));
  assert.deepEqual(drawing, ["ddpm", "euler-a", "dpm++-2m-sde", "lcm"]);
  assert.ok(drawsNoise(createScheduler("ddim", SD15), 0.5));
});

test("rescaled guidance has the spread that was asked for", () =>
  withoutLeak(async () => {
    const guided = upload(noises.subarray(0, 2 * SIZE), [2, 4, 4, 5]);
    const positive = upload(noises.subarray(2 * SIZE, 4 * SIZE).map((v) => 3 * v), [2, 4, 4, 5]);
    const spread = (values: Float32Array) => {
      const mean = values.reduce((sum, v) => sum + v, 0) / SIZE;
      return Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / SIZE);
    };
    const got = await rescaleGuidance(guided, positive, 0.7).data();
    for (const frame of [0, 1]) {
      const part = (values: Float32Array) => values.slice(frame * SIZE, (frame + 1) * SIZE);
      const before = part(noises);
      const ratio = 3 * spread(part(noises.slice(2 * SIZE))) / spread(before);
      const want = before.map((v) => v * (0.7 * ratio + 0.3));
      assertClose(part(got), want, { atol: 1e-5, rtol: 1e-5 }, `frame ${frame}`);
    }
  }));
