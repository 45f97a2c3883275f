/**
 * Timing: medians of repeated runs, by timestamps or by the wall clock, and what an adapter can
 * reach at most, measured by two probes.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { f32, scalars, u32, vectors } from "../core/kernel.ts";

/** How time is taken. */
export type Method = "timestamps" | "wall clock";

/** Times of equal work. */
export interface Timing {
  /** Median time of one call. */
  readonly milliseconds: number;
  /** Shortest time of one call. */
  readonly shortest: number;
  /** (longest − shortest) / median of the runs. */
  readonly spread: number;
  /** Calls of a run. */
  readonly calls: number;
}

/** A copy of so many bytes. */
export interface CopyProbe {
  /** Bytes read plus bytes written. */
  readonly bytes: number;
  /** 10⁹ bytes a second. */
  readonly gigabytesPerSecond: number;
}

/** What an adapter was measured to reach. */
export interface Peaks {
  /** How time is taken on this adapter. */
  readonly method: Method;
  /** Multiply-adds in registers, two operations each, f32. */
  readonly gigaflops: number;
  /** Copies, the smallest first: small ones stay in a cache, as small tensors do. */
  readonly copies: readonly CopyProbe[];
}

/**
 * Milliseconds that a run shall last at least. A wait for the queue can cost more than 10 ms, and
 * counts where the wall clock is read.
 */
const RUN: Readonly<Record<Method, number>> = { "timestamps": 5, "wall clock": 100 };

/** Calls of a run at most. */
const MOST_CALLS = 4096;

/** Milliseconds that `calls` times the work takes. */
async function measure(
  device: Device,
  method: Method,
  calls: number,
  enqueue: () => void,
): Promise<number> {
  const all = () => {
    for (let i = 0; i < calls; i++) enqueue();
  };
  if (method === "timestamps") {
    const rows = await device.profile(all);
    return rows.reduce((sum, { milliseconds }) => sum + (milliseconds ?? 0), 0);
  }
  await device.sync();
  const start = performance.now();
  all();
  await device.sync();
  return performance.now() - start;
}

/**
 * The number of calls that last for `least` milliseconds together, or `most`. More and more of them
 * are timed: what a short call takes by itself is mostly the wait for it.
 */
export async function enoughCalls(
  least: number,
  most: number,
  timed: (calls: number) => Promise<number>,
): Promise<number> {
  for (let calls = 1;;) {
    const lasted = await timed(calls);
    if (lasted >= least || calls === most) return calls;
    const factor = Math.min(16, 1.2 * least / Math.max(lasted, 1e-3));
    calls = Math.min(most, Math.ceil(calls * Math.max(1.5, factor)));
  }
}

/**
 * Times work after warming up.
 *
 * @param enqueue Enqueues the work once, by operations.
 * @param runs Number of measurements that the median is taken of.
 */
export async function time(
  device: Device,
  method: Method,
  enqueue: () => void,
  runs: number,
): Promise<Timing> {
  const timed = (calls: number) => measure(device, method, calls, enqueue);
  await timed(1);
  const calls = await enoughCalls(RUN[method], MOST_CALLS, timed);
  const times: number[] = [];
  for (let i = 0; i < runs; i++) times.push(await timed(calls) / calls);
  const milliseconds = median(times);
  const shortest = Math.min(...times);
  const spread = (Math.max(...times) - shortest) / milliseconds;
  return { milliseconds, shortest, spread, calls };
}

/** The middle value, or the mean of the two middle ones. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length / 2;
  return (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2;
}

/**
 * The time that an adapter with these peaks needs at least, in milliseconds: for the operations or
 * for the bytes, whichever takes longer (roofline model: Williams, Waterman and Patterson 2009).
 */
export function leastTime(
  { gigaflops, copies }: Peaks,
  { flops, bytes }: { flops: number; bytes: number },
): number {
  const copy = copies.find((probe) => probe.bytes >= bytes) ?? copies[copies.length - 1];
  return Math.max(flops / gigaflops, bytes / copy.gigabytesPerSecond) / 1e6;
}

/**
 * Runs the probes, of which the best run counts; also decides how time is taken: by timestamps
 * where the adapter has them and they do not contradict the wall clock.
 */
export async function probe(device: Device): Promise<Peaks> {
  const runs = 12;
  const adds = multiplyAddProbe(device);
  const wall = await time(device, "wall clock", adds.enqueue, runs);
  let method: Method = "wall clock";
  let { shortest } = wall;
  if (device.info.timestamps) {
    const stamped = await time(device, "timestamps", adds.enqueue, runs);
    const ratio = stamped.shortest / wall.shortest;
    // Other work on the machine can delay either of the two, but not by more than this.
    if (ratio > 0.2 && ratio < 2) {
      method = "timestamps";
      shortest = Math.min(shortest, stamped.shortest);
    }
  }
  adds.free();
  const copies: CopyProbe[] = [];
  for (const mebibytes of [0.5, 4, 32]) {
    const copy = copyProbe(device, mebibytes * 2 ** 20);
    const { shortest } = await time(device, method, copy.enqueue, runs);
    copies.push({ bytes: copy.bytes, gigabytesPerSecond: copy.bytes / shortest / 1e6 });
    copy.free();
  }
  return { method, gigaflops: adds.flops / shortest / 1e6, copies };
}

/**
 * Dispatches of a shader that does nothing but multiply and add in registers. Two 4-vectors are
 * as many independent chains as hide the latency, and few enough for 16 registers.
 */
function multiplyAddProbe(device: Device) {
  const { software } = device.info;
  const lanes = software ? 8 : 256;
  const groups = software ? 1024 : 4096;
  const rounds = software ? 64 : 512;
  const unrolled = 16;
  const out = device.empty([groups * lanes]).keep();
  const flops = 2 * 8 * unrolled * rounds * groups * lanes;
  const enqueue = () => {
    device.beginOp({ name: "probe_multiply_add", flops: () => flops, bytes: () => out.bytes });
    device.dispatch("probe_multiply_add", {
      variant: "",
      read: {},
      write: { out: scalars(out) },
      params: { rounds: u32(rounds), factor: f32(0.999), term: f32(0.001) },
      workgroup: [lanes, 1, 1],
      workgroups: [groups, 1, 1],
      main: () => `
        let factor = vec4f(p.factor);
        let term = vec4f(p.term);
        var a = vec4f(f32(gid.x), 1.0, 2.0, 3.0);
        var b = a + 4.0;
        for (var i = 0u; i < p.rounds; i++) {
          ${"a = fma(a, factor, term); b = fma(b, factor, term);".repeat(unrolled)}
        }
        out[gid.x] = dot(a, b);`,
    });
  };
  return { enqueue, flops, free: () => out.dispose() };
}

/** Dispatches of a shader that copies `size` bytes, a stretch of them in each workgroup. */
function copyProbe(device: Device, size: number) {
  const [lanes, rounds] = device.info.software ? [8, 64] : [256, 4];
  const stretch = lanes * rounds;
  const source = device.tensor(new Float32Array(size / 4)).keep();
  const target = device.empty(source.shape).keep();
  const bytes = 2 * size;
  const enqueue = () => {
    device.beginOp({ name: "probe_copy", flops: () => 0, bytes: () => bytes });
    device.dispatch("probe_copy", {
      variant: "",
      read: { x: vectors(source) },
      write: { out: vectors(target) },
      params: {},
      workgroup: [lanes, 1, 1],
      workgroups: [size / 16 / stretch, 1, 1],
      main: () => `
        let first = wg.x * ${stretch}u + lane;
        for (var i = first; i < first + ${stretch}u; i += ${lanes}u) { out[i] = x[i]; }`,
    });
  };
  const free = () => {
    source.dispose();
    target.dispose();
  };
  return { enqueue, bytes, free };
}
