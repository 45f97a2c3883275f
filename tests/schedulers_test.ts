/**
 * Schedulers against trajectories of the reference implementation, and against values printed in
 * its own tests.
 *
 * @module
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { linearCombination } from "../kernels/mod.ts";
import {
  alphasCumprod,
  betas,
  createScheduler,
  DDIMScheduler,
  DDPMScheduler,
  forwardAlphaProduct,
} from "../schedulers/mod.ts";
import {
  assertClose,
  type Config,
  device,
  golden,
  goldenPath,
  noises,
  SD15,
  SIZE,
  start,
  type Tolerance,
  upload,
  withoutLeak,
} from "./schedulers_setup.ts";

interface Case {
  name: string;
  op: string;
  params: {
    cls: string;
    config: Config;
    step_kwargs: { eta?: number; use_clipped_model_output?: boolean };
    num_inference_steps: number;
    init_noise_sigma: number;
    trajectory_indices: number[];
    segments: [number, number][];
  };
  outputs: string[];
  tol: Tolerance;
}

interface Loop {
  source: string;
  scheduler: string;
  config: Config;
  num_inference_steps: number;
  mode: string;
  expected_abs_sum: number | null;
  expected_abs_mean: number;
  tolerance_sum: number;
  tolerance_mean: number;
}

const cases: Case[] = JSON.parse(golden.metadata.cases);
const published: {
  full_loops: Loop[];
  closed_forms: { scheduler?: string; config?: Config; values: number[][] }[];
} = JSON.parse(await readFile(goldenPath("published.json"), "utf8"));

async function checkTrajectory({ name, params, outputs, tol }: Case): Promise<void> {
  const scheduler = createScheduler(params.cls, params.config);
  scheduler.setTimesteps(params.num_inference_steps);
  const role = async (key: string) => {
    const integers = golden.tensors.get(`${name}/${key}`)?.dtype === "I64";
    return integers
      ? await golden.readInts(`${name}/${key}`)
      : await golden.readF32(`${name}/${key}`);
  };
  assertClose(
    scheduler.timesteps,
    await role("timesteps"),
    { atol: 1e-3, rtol: 1e-6 },
    "timesteps",
  );
  if (outputs.includes("sigmas")) {
    assert.ok("sigmas" in scheduler && Array.isArray(scheduler.sigmas));
    assertClose(scheduler.sigmas, await role("sigmas"), { atol: 1e-6, rtol: 1e-5 }, "sigmas");
  }
  assertClose(
    [scheduler.initNoiseSigma],
    [params.init_noise_sigma],
    { atol: 0, rtol: 1e-5 },
    "init_noise_sigma",
  );
  const want = await role("trajectory");
  const { eta, use_clipped_model_output: useClippedModelOutput } = params.step_kwargs;
  const ones = upload(new Float32Array(SIZE).fill(1));
  let x = linearCombination([scheduler.initNoiseSigma], [upload(start)]);
  for (const [i, t] of scheduler.timesteps.entries()) {
    const input = scheduler.scaleModelInput(x, t);
    const output = linearCombination([0.1, Math.sin(t)], [input, ones]);
    const noise = upload(noises.subarray(i % 60 * SIZE, (i % 60 + 1) * SIZE));
    const step = scheduler.step(output, t, x, { eta, useClippedModelOutput, noise });
    x = step.prevSample;
    if (i === 0 && outputs.includes("pred_x0_first")) {
      assert.ok(step.predOriginalSample);
      assertClose(await step.predOriginalSample.data(), await role("pred_x0_first"), tol, "x0");
    }
    const place = params.trajectory_indices.indexOf(i);
    if (place < 0) continue;
    const part = want.subarray(place * SIZE, (place + 1) * SIZE);
    assertClose(await x.data(), part, tol, `step ${i}`);
  }
  assertClose(await x.data(), await role("final"), tol, "final");
  scheduler.reset();
}

for (const golden of cases.filter(({ op }) => op === "scheduler_trajectory")) {
  test(`trajectory ${golden.name}`, () => withoutLeak(() => checkTrajectory(golden)));
}

test("all cases of the reference file are known", () => {
  const ops = new Set(cases.map(({ op }) => op));
  const known = [
    "scheduler_trajectory",
    "add_noise",
    "get_velocity",
    "t2v_forward",
    "ddim_next_step",
  ];
  assert.deepEqual([...ops].sort(), known.sort());
});

/** Tests one sample after the other, because every sample of these cases has its own timestep. */
async function checkNoising(op: "addNoise" | "getVelocity", name: string): Promise<void> {
  const found = cases.find((one) => one.name === name);
  assert.ok(found);
  const scheduler = new DDIMScheduler(found.params.config);
  const [x, noise, want] = await Promise.all(
    ["x", "noise", "y"].map((role) => golden.readF32(`${name}/${role}`)),
  );
  const timesteps = await golden.readInts(`${name}/timesteps`);
  for (const [i, t] of timesteps.entries()) {
    const part = (all: Float32Array) => all.subarray(i * SIZE, (i + 1) * SIZE);
    const got = scheduler[op](upload(part(x)), upload(part(noise)), t);
    assertClose(await got.data(), part(want), found.tol, `${name} at ${t}`);
  }
}

test("add_noise", () => withoutLeak(() => checkNoising("addNoise", "add_noise")));
test("get_velocity", () => withoutLeak(() => checkNoising("getVelocity", "get_velocity")));

test("products of alphas for Text2Video-Zero's forward jump", async () => {
  const found = cases.find(({ op }) => op === "t2v_forward");
  assert.ok(found);
  const { config, segments } = found.params;
  const got = segments.map(([t0, t1]) => forwardAlphaProduct(config, t0, t1));
  assertClose(got, await golden.readF32("forward_segment/alpha_prod"), found.tol, "alpha_prod");
  assert.equal(forwardAlphaProduct(config, 7, 7), 1);
  assert.throws(() => forwardAlphaProduct(config, 9, 7), InputError);
  assert.throws(() => forwardAlphaProduct(config, 0, 1001), InputError);
});

test("inversion as in Tune-A-Video", () =>
  withoutLeak(async () => {
    const found = cases.find(({ op }) => op === "ddim_next_step");
    assert.ok(found);
    const scheduler = new DDIMScheduler(found.params.config);
    scheduler.setTimesteps(found.params.num_inference_steps);
    const want = await golden.readF32("tav_next_step/trajectory");
    const ones = upload(new Float32Array(SIZE).fill(1));
    let x = upload(start);
    for (const [i, t] of [...scheduler.timesteps].reverse().entries()) {
      const output = linearCombination([0.1, Math.sin(t)], [x, ones]);
      x = scheduler.invertStep(output, t, x).prevSample;
      const place = [0, 1, 10, 25, 49].indexOf(i);
      if (place < 0) continue;
      const part = want.subarray(place * SIZE, (place + 1) * SIZE);
      assertClose(await x.data(), part, found.tol, `step ${i}`);
    }
  }));

test("betas and cumulative alphas are the reference's, bit by bit", async () => {
  assert.deepEqual(Float32Array.from(betas(SD15)), await golden.readF32("sd15_betas"));
  assert.deepEqual(
    Float32Array.from(alphasCumprod(SD15)),
    await golden.readF32("sd15_alphas_cumprod"),
  );
});

test("rescaling to zero terminal signal", async () => {
  const got = alphasCumprod({ ...SD15, rescale_betas_zero_snr: true });
  const want = await golden.readF32("zero_snr_alphas_cumprod");
  assertClose(got, want, { atol: 1e-9, rtol: 1e-5 }, "alphas_cumprod");
  assert.equal(got[999], 0);
});

const IMAGE = [4, 3, 8, 8];
const PIXELS = 768;

/** The sample (or, counted backwards, the noise) that the reference's own tests use. */
function ramp(backwards: boolean): Tensor {
  const values = Float32Array.from({ length: PIXELS }, (_, i) => {
    const at = (i % 192) * 4 + Math.floor(i / 192);
    return (backwards ? PIXELS - 1 - at : at) / PIXELS;
  });
  return upload(values, IMAGE);
}

async function checkLoop(loop: Loop): Promise<void> {
  const scheduler = createScheduler(loop.scheduler, loop.config);
  scheduler.setTimesteps(loop.num_inference_steps);
  const generator = new Generator(0);
  const scaled = loop.mode.startsWith("scaled");
  const skip = Number(/:(\d+)/.exec(loop.mode)?.[1] ?? 0) * scheduler.order;
  const timesteps = scheduler.timesteps.slice(skip);
  const begin = device.scope();
  let x = ramp(false);
  if (scaled) x = linearCombination([scheduler.initNoiseSigma], [x]);
  if (skip) x = scheduler.addNoise(x, ramp(true), timesteps[0]);
  x.keep();
  begin[Symbol.dispose]();
  for (const t of timesteps) {
    const previous = x;
    x = device.scope(() => {
      const input = scaled ? scheduler.scaleModelInput(previous, t) : previous;
      const output = linearCombination([t / (t + 1)], [input]);
      return scheduler.step(output, t, input, { generator }).prevSample.keep();
    });
    previous.dispose();
  }
  const values = (await x.data()).map(Math.abs);
  x.dispose();
  scheduler.reset();
  const total = values.reduce((sum, value) => sum + value, 0);
  if (loop.expected_abs_sum !== null) {
    const error = Math.abs(total - loop.expected_abs_sum);
    assert.ok(error < loop.tolerance_sum, `sum: got ${total}, want ${loop.expected_abs_sum}`);
  }
  const error = Math.abs(total / PIXELS - loop.expected_abs_mean);
  assert.ok(error < loop.tolerance_mean, `mean: ${total / PIXELS}, ${loop.expected_abs_mean}`);
}

for (const loop of published.full_loops) {
  const name = loop.source.split("/").at(-1);
  test(`published ${name}`, () => withoutLeak(() => checkLoop(loop)));
}

test("published variances and timesteps", () => {
  const [ddim, ddpm, offset] = published.closed_forms;
  const alphas = alphasCumprod(ddim.config ?? {});
  for (const [t, before, want] of ddim.values) {
    const got = (1 - alphas[before]) / (1 - alphas[t]) * (1 - alphas[t] / alphas[before]);
    assert.ok(Math.abs(got - want) < 1e-5);
  }
  const scheduler = new DDPMScheduler(ddpm.config);
  for (const [t, want] of ddpm.values) assert.ok(Math.abs(scheduler.variance(t) - want) < 1e-5);
  const leading = new DDIMScheduler({ steps_offset: 1 });
  leading.setTimesteps(5);
  assert.deepEqual(leading.timesteps, offset.values);
});
