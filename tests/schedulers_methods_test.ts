/**
 * Schedulers against an equation whose solution is known, and what holds for all of them: history,
 * noise, timesteps, names, settings.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { linearCombination } from "../kernels/mod.ts";
import {
  alphasCumprod,
  createScheduler,
  DDIMScheduler,
  HeunDiscreteScheduler,
  PNDMScheduler,
  type PredictionType,
  type Scheduler,
  type SchedulerConfig,
  schedulerNames,
} from "../schedulers/mod.ts";
import {
  assertClose,
  type Config,
  noises,
  SD15,
  SHAPE,
  SIZE,
  start,
  upload,
  withoutLeak,
} from "./schedulers_setup.ts";

/** Methods that follow the probability flow without noise, as for {@link createScheduler}. */
const DETERMINISTIC: readonly (readonly [name: string, config: Config])[] = [
  ["ddim", {}],
  ["pndm", { skip_prk_steps: true }],
  ["pndm", { skip_prk_steps: false }],
  ["euler", {}],
  ["euler", { use_karras_sigmas: true, timestep_spacing: "leading" }],
  ["lms", {}],
  ["lms", { use_karras_sigmas: true }],
  ["heun", {}],
  ["dpm++", { solver_order: 1 }],
  ["dpm++", { solver_type: "heun" }],
  ["dpm++", { solver_order: 3 }],
  ["dpm++-karras", {}],
  ["dpm++", { algorithm_type: "dpmsolver", final_sigmas_type: "sigma_min" }],
  ["dpm++", { algorithm_type: "dpmsolver", final_sigmas_type: "sigma_min", solver_type: "heun" }],
  ["dpm++", { algorithm_type: "dpmsolver", final_sigmas_type: "sigma_min", solver_order: 3 }],
  ["unipc", {}],
  ["unipc", { solver_type: "bh1" }],
  ["unipc", { solver_order: 3, disable_corrector: [0] }],
  ["unipc", { predict_x0: false, solver_order: 3, final_sigmas_type: "sigma_min" }],
];

/** Methods that need noise. */
const STOCHASTIC: typeof DETERMINISTIC = [
  ["ddpm", {}],
  ["ddpm", { variance_type: "fixed_large" }],
  ["euler-a", {}],
  ["dpm++", { algorithm_type: "sde-dpmsolver++" }],
  ["dpm++", { algorithm_type: "sde-dpmsolver++", solver_type: "heun" }],
  ["dpm++", { algorithm_type: "sde-dpmsolver", final_sigmas_type: "sigma_min" }],
  ["lcm", {}],
];

function describeMethod([name, config]: (typeof DETERMINISTIC)[number]): string {
  return `${name} ${JSON.stringify(config)}`;
}

/** Spread of the data in the test equation. */
const SPREAD = 0.5;

/**
 * What a model predicts that knows its data to be normal with mean 0 and standard deviation
 * `SPREAD`: every prediction is a multiple of the sample.
 */
function gaussianModel(scheduler: Scheduler, timestep: number, type: PredictionType): number {
  const alphas = alphasCumprod(scheduler.config);
  const low = Math.floor(timestep);
  const ratio = (t: number) => Math.sqrt((1 - alphas[t]) / alphas[t]);
  const between = timestep === low
    ? ratio(low)
    : ratio(low) + (timestep - low) * (ratio(low + 1) - ratio(low));
  const at = levels(scheduler).get(timestep) ?? between;
  // In VP scale x = αx₀ + σε with α² + σ² = 1; there E[x₀|x] = α·s²/(α²s² + σ²)·x.
  const alpha = 1 / Math.sqrt(at * at + 1);
  const sigma = at * alpha;
  const total = alpha * alpha * SPREAD * SPREAD + sigma * sigma;
  const x0 = alpha * SPREAD * SPREAD / total;
  const epsilon = sigma / total;
  return { sample: x0, epsilon, v_prediction: alpha * epsilon - sigma * x0 }[type];
}

/** σ by timestep where the scheduler has its own. */
function levels(scheduler: Scheduler): Map<number, number> {
  const sigmas = "sigmas" in scheduler ? scheduler.sigmas as readonly number[] : [];
  return new Map(sigmas.slice(0, -1).map((sigma, i) => [scheduler.timesteps[i], sigma]));
}

async function solveGaussian(name: string, config: Config, steps: number): Promise<number> {
  const scheduler = createScheduler(name, { ...SD15, ...config });
  scheduler.setTimesteps(steps);
  let value = scheduler.initNoiseSigma;
  let x = upload([value], [1]);
  for (const t of scheduler.timesteps) {
    const input = scheduler.scaleModelInput(x, t);
    const output = linearCombination([gaussianModel(scheduler, t, "epsilon")], [input]);
    x = scheduler.step(output, t, x).prevSample;
  }
  [value] = await x.data();
  scheduler.reset();
  const alphas = alphasCumprod(scheduler.config);
  const sigma = (t: number) => Math.sqrt((1 - alphas[t]) / alphas[t]);
  const first = levels(scheduler).get(scheduler.timesteps[0]) ?? sigma(scheduler.timesteps[0]);
  const toSigmaSpace = scheduler.space === "vp" ? Math.sqrt(first * first + 1) : 1;
  const begin = scheduler.initNoiseSigma * toSigmaSpace;
  const end = (name === "ddim" || name === "pndm" || config.final_sigmas_type === "sigma_min")
    ? sigma(0)
    : 0;
  const spread = (s: number) => Math.sqrt(SPREAD * SPREAD + s * s);
  const exact = begin * spread(end) / spread(first) / (end ? Math.sqrt(end * end + 1) : 1);
  return Math.abs(value / exact - 1);
}

for (const method of DETERMINISTIC) {
  test(`more steps come nearer to the exact solution: ${describeMethod(method)}`, () =>
    withoutLeak(async () => {
      const coarse = await solveGaussian(...method, 10);
      const fine = await solveGaussian(...method, 100);
      assert.ok(fine < 0.05, `error ${fine} with 100 steps`);
      assert.ok(fine < coarse / 4, `error ${coarse} with 10 steps, ${fine} with 100`);
    }));
}

for (const method of [...DETERMINISTIC, ...STOCHASTIC].filter(([name]) => name !== "pndm")) {
  test(`ε, x₀ and v predictions give the same steps: ${describeMethod(method)}`, () =>
    withoutLeak(async () => {
      const [name, config] = method;
      const noise = upload(noises.subarray(0, SIZE));
      const results: Float32Array[] = [];
      for (const prediction_type of ["epsilon", "sample", "v_prediction"] as const) {
        const scheduler = createScheduler(name, { ...SD15, ...config, prediction_type });
        scheduler.setTimesteps(6);
        let x = upload(start.map((value) => value * scheduler.initNoiseSigma));
        for (const t of scheduler.timesteps.slice(0, 8)) {
          const input = scheduler.scaleModelInput(x, t);
          const factor = gaussianModel(scheduler, t, prediction_type);
          x = scheduler.step(linearCombination([factor], [input]), t, x, { noise }).prevSample;
        }
        results.push(await x.data());
        scheduler.reset();
      }
      assertClose(results[1], results[0], { atol: 1e-3, rtol: 2e-3 }, "x₀");
      assertClose(results[2], results[0], { atol: 1e-3, rtol: 2e-3 }, "v");
    }));
}

/** `values` three times. */
function thrice(values: Float32Array): Float32Array {
  return Float32Array.from({ length: 3 * values.length }, (_, i) => values[i % values.length]);
}

for (const method of [...DETERMINISTIC, ...STOCHASTIC]) {
  test(`a snapshot continues the run, for any batch: ${describeMethod(method)}`, () =>
    withoutLeak(async () => {
      const [name, config] = method;
      const scheduler = createScheduler(name, { ...SD15, ...config });
      scheduler.setTimesteps(8);
      const model = (x: Tensor, t: number) =>
        linearCombination([0.5 + t / 2000], [scheduler.scaleModelInput(x, t)]);
      const advance = (x: Tensor, from: number, to: number, noise: Tensor) => {
        for (const t of scheduler.timesteps.slice(from, to)) {
          x = scheduler.step(model(x, t), t, x, { noise }).prevSample;
        }
        return x;
      };
      const draw = noises.subarray(0, SIZE);
      for (const pause of [1, 2, 5]) {
        scheduler.reset();
        const middle = advance(upload(start), 0, pause, upload(draw));
        const state = scheduler.snapshot();
        const want = await advance(middle, pause, 8, upload(draw)).data();
        scheduler.restore(state);
        const wide = [3, ...SHAPE.slice(1)];
        const rows = upload(thrice(await middle.data()), wide);
        const got = await advance(rows, pause, 8, upload(thrice(draw), wide)).data();
        state.dispose();
        assertClose(got, thrice(want), { atol: 1e-5, rtol: 1e-5 }, `from step ${pause}`);
      }
      scheduler.reset();
    }));
}

test("a timestep out of turn begins a new run", () =>
  withoutLeak(async () => {
    for (const [name, config] of DETERMINISTIC) {
      const used = createScheduler(name, { ...SD15, ...config });
      const fresh = createScheduler(name, { ...SD15, ...config });
      const finish = async (scheduler: Scheduler, timesteps: readonly number[]) => {
        let x = upload(start);
        for (const t of timesteps) {
          const output = linearCombination([0.7], [scheduler.scaleModelInput(x, t)]);
          x = scheduler.step(output, t, x).prevSample;
        }
        return await x.data();
      };
      used.setTimesteps(12);
      fresh.setTimesteps(12);
      await finish(used, used.timesteps.slice(0, 5));
      assert.deepEqual(await finish(used, used.timesteps), await finish(fresh, fresh.timesteps));
      used.reset();
      fresh.reset();
    }
  }));

test("a run may begin in the middle of Heun's and PNDM's doubled timesteps", () =>
  withoutLeak(async () => {
    const heun = new HeunDiscreteScheduler(SD15);
    heun.setTimesteps(10);
    const pndm = new PNDMScheduler(SD15);
    pndm.setTimesteps(10);
    for (const scheduler of [heun, pndm]) {
      const [, t] = scheduler.timesteps;
      const x = upload(start);
      const first = scheduler.step(linearCombination([0.3], [x]), t, x).prevSample;
      assert.ok((await first.data()).every(Number.isFinite));
      assert.throws(() => scheduler.step(x, 0.5, x), InputError);
      scheduler.reset();
    }
    const prk = new PNDMScheduler({ ...SD15, skip_prk_steps: false });
    prk.setTimesteps(10);
    const x = upload(start);
    assert.throws(() => prk.step(x, prk.timesteps[1], x), /inside a Runge–Kutta step/);
    assert.throws(() => prk.setTimesteps(3), InputError);
  }));

test("an inverted DDIM step undoes the step", () =>
  withoutLeak(async () => {
    const scheduler = new DDIMScheduler(SD15);
    scheduler.setTimesteps(20);
    const output = upload(noises.subarray(0, SIZE));
    for (const t of scheduler.timesteps) {
      const x = upload(start);
      const up = scheduler.invertStep(output, t, x).prevSample;
      const back = scheduler.step(output, t, up).prevSample;
      assertClose(await back.data(), start, { atol: 1e-5, rtol: 1e-5 }, `timestep ${t}`);
    }
  }));

test("a generator draws what would be passed as noise; without either the step fails", () =>
  withoutLeak(async () => {
    for (const [name, config] of [...STOCHASTIC, ["ddim", {}] as const]) {
      const scheduler = createScheduler(name, { ...SD15, ...config });
      scheduler.setTimesteps(4);
      const [t] = scheduler.timesteps;
      const x = upload(start);
      const noise = upload(new Generator(7).randn(SHAPE));
      const one = scheduler.step(x, t, x, { noise, eta: 1 }).prevSample;
      scheduler.reset();
      const two = scheduler.step(x, t, x, { generator: new Generator(7), eta: 1 }).prevSample;
      scheduler.reset();
      assert.deepEqual(await one.data(), await two.data());
      assert.throws(() => scheduler.step(x, t, x, { eta: 1 }), /pass step options/);
      scheduler.reset();
    }
  }));

test("noise is added at the level of the timestep, in the scheduler's own scale", () =>
  withoutLeak(async () => {
    const [x, noise] = [upload(start), upload(noises.subarray(0, SIZE))];
    const alphas = alphasCumprod(SD15);
    for (const name of schedulerNames) {
      const scheduler = createScheduler(name, { ...SD15, timestep_spacing: "leading" });
      scheduler.setTimesteps(10);
      const t = scheduler.timesteps[3];
      const own = levels(scheduler).get(t);
      const alpha = own === undefined ? alphas[t] : 1 / (own * own + 1);
      const scale = scheduler.space === "vp" ? 1 : 1 / Math.sqrt(alpha);
      const want = start.map((value, i) =>
        scale * (Math.sqrt(alpha) * value + Math.sqrt(1 - alpha) * noises[i])
      );
      const got = await scheduler.addNoise(x, noise, t).data();
      assertClose(got, want, { atol: 1e-5, rtol: 1e-5 }, name);
    }
  }));

test("timesteps lie within the training timesteps, in order", () => {
  const spacing = fc.constantFrom("leading", "trailing", "linspace");
  const name = fc.constantFrom(
    ...schedulerNames.filter((one) => !/pndm|heun|lcm|inverse/i.test(one)),
  );
  fc.assert(fc.property(name, spacing, fc.integer({ min: 2, max: 200 }), (name, spacing, steps) => {
    const scheduler = createScheduler(name, {
      ...SD15,
      steps_offset: 0,
      timestep_spacing: spacing as SchedulerConfig["timestep_spacing"],
    });
    scheduler.setTimesteps(steps);
    const { timesteps } = scheduler;
    assert.equal(timesteps.length, steps);
    assert.ok(timesteps.every((t) => t >= 0 && t <= 999));
    assert.ok(timesteps.every((t, i) => i === 0 || t <= timesteps[i - 1]));
  }));
});

test("numbers of steps that cannot be used are refused", () => {
  for (const name of schedulerNames) {
    for (const steps of [0, -1, 2.5, NaN, 1001]) {
      const scheduler = createScheduler(name, SD15);
      assert.throws(() => scheduler.setTimesteps(steps), InputError, `${name} ${steps}`);
    }
  }
});

test("schedulers are found by short and by class name", () => {
  for (const name of schedulerNames) {
    const scheduler = createScheduler(name, SD15);
    assert.equal(scheduler.config.beta_end, 0.012);
    const short = name.replace(/Scheduler$/, "");
    assert.equal(createScheduler(short, SD15).constructor, scheduler.constructor);
  }
  assert.throws(() => createScheduler("magic", SD15), /choose one of ddim, /);
  assert.throws(() => createScheduler("constructor", SD15), InputError);
});

/** A value as a damaged file might hold it. */
function damaged(key: string, value: unknown): Config {
  return Object.fromEntries([[key, value]]);
}

test("settings that cannot be used are refused by name", () => {
  const refused: readonly (readonly [scheduler: string, key: string, value: unknown])[] = [
    ["ddim", "beta_schedule", "sigmoid"],
    ["ddim", "beta_start", "0.1"],
    ["ddim", "beta_end", 2],
    ["ddim", "trained_betas", []],
    ["ddim", "num_train_timesteps", 0],
    ["ddim", "prediction_type", "flow"],
    ["ddim", "timestep_spacing", "uniform"],
    ["ddim", "steps_offset", -1],
    ["ddim", "clip_sample", "yes"],
    ["ddpm", "variance_type", "learned"],
    ["pndm", "prediction_type", "sample"],
    ["euler", "use_exponential_sigmas", 1],
    ["euler", "interpolation_type", "log_linear"],
    ["euler", "timestep_type", "continuous"],
    ["dpm++", "use_lu_lambdas", true],
    ["dpm++", "algorithm_type", "deis"],
    ["dpm++", "solver_order", 4],
    ["dpm++", "final_sigmas_type", "none"],
    ["unipc", "solver_p", {}],
    ["unipc", "disable_corrector", [0.5]],
    ["lcm", "original_inference_steps", 0],
  ];
  for (const [name, key, value] of refused) {
    assert.throws(
      () => createScheduler(name, damaged(key, value)),
      (error: unknown) => error instanceof InputError && error.message.includes(`${key} must be`),
      `${name} ${key}`,
    );
  }
  const thresholding = { thresholding: true, sample_max_value: 2 };
  assert.throws(() => createScheduler("ddim", thresholding), /sample_max_value must be at most 1/);
  assert.throws(() => createScheduler("ddim", { rescale_betas_zero_snr: true }), /v_prediction/);
  const both: Config = { use_karras_sigmas: true, use_beta_sigmas: true };
  assert.throws(() => createScheduler("heun", both), /beta_sigmas must be false where use_karras/);
  const sde: Config = { algorithm_type: "sde-dpmsolver++", solver_order: 3 };
  assert.throws(() => createScheduler("dpm++", sde), /solver_order must be at most 2/);
  const ode: Config = { algorithm_type: "dpmsolver" };
  assert.throws(() => createScheduler("dpm++", ode), /final_sigmas_type must be "sigma_min"/);
});

test("keys of other schedulers, and nulls, are ignored", () => {
  const config = { ...damaged("use_lu_lambdas", true), ...damaged("prediction_type", null) };
  const scheduler = createScheduler("ddim", { ...config, ...damaged("_class_name", "Other") });
  assert.equal(scheduler.config.prediction_type, "epsilon");
  assert.equal(scheduler.config.clip_sample, true);
});

test("betas may be given, and timesteps below a signal-to-noise ratio left out", () => {
  const table = [0.1, 0.2, 0.3, 0.4];
  const got = alphasCumprod({ trained_betas: table });
  assertClose(got, [0.9, 0.72, 0.504, 0.3024], { atol: 1e-6, rtol: 0 }, "alphas_cumprod");
  const cosine: Config = { beta_schedule: "squaredcos_cap_v2" };
  const all = createScheduler("dpm++", cosine);
  const clipped = createScheduler("dpm++", { ...cosine, lambda_min_clipped: -3 });
  all.setTimesteps(10);
  clipped.setTimesteps(10);
  assert.equal(all.timesteps[0], 999);
  const alphas = alphasCumprod(cosine);
  const lambda = (t: number) => Math.log(alphas[t] / (1 - alphas[t])) / 2;
  assert.ok(lambda(clipped.timesteps[0]) >= -3 && lambda(clipped.timesteps[0] + 1) < -3);
});
