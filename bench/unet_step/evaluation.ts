/**
 * Measures one evaluation of a UNet: recorded once and replayed, as a denoising step is, and each
 * of its calls alone.
 *
 * @module
 */

import type { Device } from "../../core/device.ts";
import { run } from "../../core/kernel.ts";
import type { ProfileRow } from "../../core/profiler.ts";
import { type Shape, sizeOf } from "../../core/shape.ts";
import { disposeCache } from "../../models/attention.ts";
import type { UNet2DConditionModel } from "../../models/unet.ts";
import type { Extent } from "../shapes.ts";
import { median, type Method, time } from "../timing.ts";
import { costOf, upload, type Workload } from "../workload.ts";
import type { CallTime } from "./kinds.ts";

/** Tokens of a text. */
const TOKENS = 77;

/** What one evaluation took. Times in milliseconds. */
export interface Evaluation {
  /** Shader runs. */
  readonly dispatches: number;
  /** Submissions to the GPU's queue. */
  readonly submissions: number;
  /** Times that the host waited for the GPU, the end included. */
  readonly syncs: number;
  /** Pipelines compiled for it and for its text. */
  readonly pipelines: number;
  /** Passing through the operations once, which records the plan. */
  readonly record: number;
  /** First replay, from its beginning until the GPU is done; drivers compile during it. */
  readonly first: number;
  /** What JavaScript does for a replay, its submissions taken out; median. */
  readonly encode: number;
  /** The submissions of a replay, median. Software adapters compute while they are called. */
  readonly submit: number;
  /** A replay, from its beginning until the GPU is done; median. */
  readonly wall: number;
  /** (longest − shortest) / median of these. */
  readonly spread: number;
  /** Sum of the shaders' times by timestamps, median; `null` without timestamps. */
  readonly busy: number | null;
  /** The part of `wall` in which no shader ran; below 0 where the profiled runs were slower. */
  readonly hostShare: number | null;
  /** Largest number of bytes on the GPU, weights included. */
  readonly peakBytes: number;
}

/** How to measure. */
export interface Measuring extends Extent {
  /** How time is taken on the adapter. */
  readonly method: Method;
  /** Measurements that medians are taken of. */
  readonly runs: number;
}

/**
 * Measures whole evaluations, each replay beside a profiled run.
 *
 * @returns Also the profile of the run whose sum is the median, without times where the adapter's
 * timestamps are not to be trusted.
 */
export async function evaluate(
  unet: UNet2DConditionModel,
  { rows, textRows, side, method, runs }: Measuring,
): Promise<{ evaluation: Evaluation; profile: ProfileRow[] }> {
  const { device, config } = unet;
  const stamped = method === "timestamps";
  const scope = device.scope();
  const waves = (shape: Shape) =>
    device.tensor(Float32Array.from({ length: sizeOf(shape) }, (_, i) => Math.sin(i)), shape);
  const sample = waves([rows, config.inChannels, side, side]);
  const hidden = waves([textRows, TOKENS, config.crossAttentionDim]);
  const timestep = device.tensor([981]);
  await device.sync();
  device.resetPeak();

  const start = device.counts();
  const text = unet.encodeText(hidden);
  await device.sync();
  const forward = () => unet.forward(sample, timestep, text);
  const recording = performance.now();
  const plan = device.record(forward);
  const record = performance.now() - recording;
  const replay = async () => {
    const begin = performance.now();
    const { enqueue, submit } = watchSubmissions(device, () => {
      plan.run();
      device.flush();
    });
    await device.sync();
    return { encode: enqueue - submit, submit, wall: performance.now() - begin };
  };
  const { wall: first } = await replay();

  const before = device.counts();
  const replays = [await replay()];
  const after = device.counts();
  const { peak } = device.memory();
  const profiles: ProfileRow[][] = [];
  for (let i = 0; i < runs; i++) {
    if (i > 0) replays.push(await replay());
    const rows = await device.profile(() => device.scope(() => void forward()));
    profiles.push(stamped ? rows : rows.map((row) => ({ ...row, milliseconds: null })));
  }
  profiles.sort((a, b) => busyTime(a) - busyTime(b));
  plan.dispose();
  disposeCache(text);
  scope[Symbol.dispose]();

  const walls = replays.map(({ wall }) => wall);
  const wall = median(walls);
  const busy = stamped ? median(profiles.map(busyTime)) : null;
  const evaluation = {
    dispatches: after.dispatches - before.dispatches,
    submissions: after.submissions - before.submissions,
    syncs: after.syncs - before.syncs,
    pipelines: after.pipelines - start.pipelines,
    record,
    first,
    encode: median(replays.map(({ encode }) => encode)),
    submit: median(replays.map(({ submit }) => submit)),
    wall,
    spread: (Math.max(...walls) - Math.min(...walls)) / wall,
    busy,
    hostShare: busy === null ? null : 1 - busy / wall,
    peakBytes: peak,
  };
  return { evaluation, profile: profiles[Math.floor((runs - 1) / 2)] };
}

/** Milliseconds that `body` takes in all, and within the calls that submit work. */
function watchSubmissions(
  device: Device,
  body: () => void,
): { enqueue: number; submit: number } {
  const { queue } = device.gpu;
  const begin = performance.now();
  let submit = 0;
  // For the moment, an own method hides that of the prototype.
  queue.submit = (buffers) => {
    const before = performance.now();
    GPUQueue.prototype.submit.call(queue, buffers);
    submit += performance.now() - before;
  };
  try {
    body();
  } finally {
    Reflect.deleteProperty(queue, "submit");
  }
  return { enqueue: performance.now() - begin, submit };
}

function busyTime(rows: readonly ProfileRow[]): number {
  return rows.reduce((sum, { milliseconds }) => sum + (milliseconds ?? 0), 0);
}

/** Passes over all calls; far apart, so that a disturbance does not hit a call in each of them. */
const PASSES = 2;

/** Measures every call alone: repeated launches, the least of the medians of several passes. */
export async function alone(
  device: Device,
  workloads: readonly Workload[],
  { method, runs, dtype }: Pick<Measuring, "method" | "runs"> & { dtype: "f32" | "f16" },
): Promise<CallTime[]> {
  const best = workloads.map(() => Infinity);
  for (let pass = 0; pass < PASSES; pass++) {
    for (const [i, { kernel, input }] of workloads.entries()) {
      const scope = device.scope();
      const inputs = upload(device, input, dtype);
      const call = () => device.scope(() => void run(kernel, inputs, input.attributes));
      const { milliseconds } = await time(device, method, call, runs);
      best[i] = Math.min(best[i], milliseconds);
      scope[Symbol.dispose]();
    }
  }
  return workloads.map((workload, i) => ({
    kernel: workload.kernel.name,
    shapes: workload.input.shapes,
    attributes: workload.input.attributes,
    calls: workload.calls,
    ...costOf(workload, dtype),
    best: best[i],
  }));
}
