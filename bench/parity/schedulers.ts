/**
 * Reference files of schedulers: whole trajectories with a model that is a formula, and single
 * conversions.
 *
 * @module
 */

import {
  createScheduler,
  DDIMScheduler,
  type Device,
  forwardAlphaProduct,
  InputError,
  ops,
  type Scheduler,
  type SchedulerConfig,
  type StepOptions,
  type Tensor,
} from "../../mod.ts";
import type { Outputs, Values } from "./case.ts";
import { flag, number, numbers, type Params, record, table, text } from "./params.ts";
import { readInput, type StoredCase } from "./stored_case.ts";

/** Runs one case of schedulers on a device. */
export type SchedulerOp = (test: StoredCase, device: Device) => Promise<Outputs>;

/** The cases of schedulers, by operation. */
export const SCHEDULER_OPS: ReadonlyMap<string, SchedulerOp> = new Map(
  [
    ["scheduler_trajectory", trajectory],
    ["add_noise", noising("addNoise")],
    ["get_velocity", noising("getVelocity")],
    ["t2v_forward", forwardSegments],
    ["ddim_next_step", inversion],
  ] satisfies [string, SchedulerOp][],
);

/** The settings of a scheduler, as far as they are checked here: it checks them itself. */
function configOf(params: Params): Partial<SchedulerConfig> {
  return record(params, "config") as Partial<SchedulerConfig>;
}

/** `ε = 0.1·x + sin t`, the model of all trajectories. */
function fakeModel(x: Tensor, t: number): Tensor {
  const ones = x.device.tensor(new Float32Array(x.size).fill(1), x.shape);
  return ops.linearCombination([0.1, Math.sin(t)], [x, ones]);
}

/** Gives the rows of a table one after the other, as draws of a generator. */
function drawsFrom({ data, shape }: { data: Float32Array; shape: readonly number[] }) {
  const size = data.length / (shape[0] || 1);
  let drawn = 0;
  return {
    randn(): Float32Array<ArrayBuffer> {
      if (drawn >= shape[0]) {
        throw new InputError(`the run draws noise more often than the ${shape[0]} times stored`);
      }
      const row = data.slice(drawn * size, ++drawn * size);
      return Float32Array.from(row);
    },
  };
}

/** One step; what it makes besides its results is freed. */
function step(
  scheduler: Scheduler,
  x: Tensor,
  t: number,
  options: StepOptions,
): { previous: Tensor; original: Tensor | null } {
  const { device } = x;
  const made = device.scope(() => {
    const output = fakeModel(scheduler.scaleModelInput(x, t), t);
    const { prevSample, predOriginalSample } = scheduler.step(output, t, x, options);
    return { previous: prevSample, original: predOriginalSample ?? null };
  });
  made.previous.keep();
  made.original?.keep();
  return made;
}

async function take(x: Tensor): Promise<Values> {
  const data = await x.data();
  x.dispose();
  return { data, shape: x.shape };
}

/** The states of `places`, in order, as one output. */
function picked(states: ReadonlyMap<number, Values>, places: readonly number[]): Values {
  const found = places.flatMap((place) => states.get(place) ?? []);
  const shape = [found.length, ...(found[0]?.shape ?? [])];
  return { data: found.flatMap(({ data }) => Array.from(data)), shape };
}

async function trajectory(test: StoredCase, device: Device): Promise<Outputs> {
  const { params: p } = test;
  const scheduler = createScheduler(text(p, "cls"), configOf(p));
  scheduler.setTimesteps(number(p, "num_inference_steps"));
  const start = await readInput(test, "start");
  const noises = await readInput(test, "noises");
  const settings = record(p, "step_kwargs");
  const options = {
    eta: number(settings, "eta", 0),
    useClippedModelOutput: flag(settings, "use_clipped_model_output", false),
    generator: drawsFrom({ data: Float32Array.from(noises.data), shape: noises.shape }),
  };
  const sigma = scheduler.initNoiseSigma;
  let x = device.tensor(Array.from(start.data, (value) => value * sigma), start.shape);
  const places = numbers(p, "trajectory_indices");
  const states = new Map<number, Values>();
  let first: Values | null = null;
  for (const [i, t] of scheduler.timesteps.entries()) {
    const { previous, original } = step(scheduler, x, t, options);
    if (places.includes(i)) states.set(i, { data: await previous.data(), shape: previous.shape });
    if (i === 0 && original) first = { data: await original.data(), shape: original.shape };
    if (original !== previous) original?.dispose();
    x.dispose();
    x = previous;
  }
  const final = await take(x);
  scheduler.reset();
  return {
    timesteps: scheduler.timesteps,
    ...("sigmas" in scheduler ? { sigmas: scheduler.sigmas as readonly number[] } : {}),
    trajectory: picked(states, places),
    final,
    ...(first ? { pred_x0_first: first } : {}),
  };
}

/** Every row of these cases has a timestep of its own, so rows go one by one. */
function noising(method: "addNoise" | "getVelocity"): SchedulerOp {
  return async (test, device) => {
    const scheduler = new DDIMScheduler(configOf(test.params));
    const [x, noise, timesteps] = await Promise.all(
      ["x", "noise", "timesteps"].map((role) => readInput(test, role)),
    );
    const one = [1, ...x.shape.slice(1)];
    const size = x.data.length / x.shape[0];
    const y = new Float32Array(x.data.length);
    for (const [i, t] of timesteps.data.entries()) {
      const row = (all: Float32Array | Int32Array) =>
        device.tensor(Float32Array.from(all.subarray(i * size, (i + 1) * size)), one);
      const result = device.scope(() => scheduler[method](row(x.data), row(noise.data), t));
      y.set((await take(result)).data, i * size);
    }
    return { y: { data: y, shape: x.shape } };
  };
}

/** `Π α_t` over segments of the training timesteps. */
function forwardSegments({ params: p }: StoredCase): Promise<Outputs> {
  const config = configOf(p);
  const products = table(p, "segments").map(([t0, t1]) => forwardAlphaProduct(config, t0, t1));
  return Promise.resolve({ alpha_prod: products });
}

/** Steps of the inversion that the reference keeps, if it does not say which. */
const INVERSION_PLACES = [0, 1, 10, 25, 49];

async function inversion(test: StoredCase, device: Device): Promise<Outputs> {
  const { params: p } = test;
  const scheduler = new DDIMScheduler(configOf(p));
  scheduler.setTimesteps(number(p, "num_inference_steps"));
  const start = await readInput(test, "start");
  let x = device.tensor(start.data, start.shape);
  const places = p.trajectory_indices ? numbers(p, "trajectory_indices") : INVERSION_PLACES;
  const states = new Map<number, Values>();
  for (const [i, t] of scheduler.timesteps.toReversed().entries()) {
    const next = device.scope(() => scheduler.invertStep(fakeModel(x, t), t, x).prevSample);
    if (places.includes(i)) states.set(i, { data: await next.data(), shape: next.shape });
    x.dispose();
    x = next;
  }
  x.dispose();
  return { trajectory: picked(states, places) };
}
