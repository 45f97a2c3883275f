/**
 * Trials of ways to compute: whether a way compiles and is right, and how long it takes.
 *
 * @module
 */

import type { Device } from "../../core/device.ts";
import { GpuError } from "../../core/errors.ts";
import { run } from "../../core/kernel.ts";
import { shaderKey } from "../../core/shader.ts";
import { overrideVariants, type VariantChoices } from "../../kernels/variants.ts";
import { formatShapes } from "../table.ts";
import { type Method, time } from "../timing.ts";
import { findError, upload, type Workload } from "../workload.ts";
import type { Decision, Way } from "./decisions.ts";

/** A device that can be replaced: a shader that is refused leaves it unusable. */
export interface Bench {
  /** The present one. */
  device: Device;
  /** Opens another of the same kind. */
  readonly open: () => Promise<Device>;
}

/** How trials are made. */
export interface TrialOptions {
  /** Choices that are made already. */
  readonly base: Partial<VariantChoices>;
  /** Type of the tensors. */
  readonly dtype: "f32" | "f16";
}

/** Root-mean-square error accepted against the first way, as a share of what it gives. */
const TOLERANCE = { f32: 1e-3, f16: 1e-2 };

/** A way that takes so many times as long as the first is not tried further. */
const TOO_SLOW = 2.5;

/** Runs of which the shortest tells whether a way is too slow: other work delays some of them. */
const REHEARSALS = 3;

/** Why ways are left out. */
export type Failures = ReadonlyMap<Way, string>;

/**
 * Runs every way on the calls to be timed and on the cases. A way is left out if a shader is
 * refused, if its values disagree with the float64 references or with the first way's, if it is far
 * slower, or if it comes down to the same shaders as another.
 */
export async function qualify(
  bench: Bench,
  { ways, cases, workloads, values }: Decision,
  { base, dtype }: TrialOptions,
): Promise<Failures> {
  // Where values mix ways, one that is slow at a call may be the best at another.
  const slowest = values.every((value) => new Set(value.ways).size === 1) ? TOO_SLOW : Infinity;
  const failures = new Map<Way, string>();
  const known = new Map<string, Way>();
  let first: readonly Rehearsal[] = [];
  for (const way of ways) {
    const outcome = await survive(bench, async (device) => {
      overrideVariants(device, { ...base, ...way.choices });
      const shaders = workloads.map((call) => shadersOf(device, call, dtype)).join();
      const same = known.get(shaders);
      if (same) return `does the same as ${same.name}`;
      known.set(shaders, way);
      // Compiling takes longest: what is hopeless shows at the first call.
      const rehearsals: Rehearsal[] = [];
      for (const [i, call] of workloads.entries()) {
        const rehearsal = await rehearse(device, call, dtype);
        const failure = first.length
          ? compare(rehearsal, first[i], TOLERANCE[dtype], slowest)
          : null;
        if (failure) return `${describeCall(call)}: ${failure}`;
        rehearsals.push(rehearsal);
      }
      for (const call of cases) {
        const error = await findError(device, call.kernel, call.input, dtype);
        if (error) return `${describeCall(call)}: ${error}`;
      }
      return rehearsals;
    });
    if (typeof outcome === "string") failures.set(way, outcome);
    else if (!first.length) first = outcome;
  }
  return failures;
}

/**
 * All that tells the shader runs of a call, as the device's variants now have it, from those of
 * another way: keys of texts, workgroups and parameters, a line a run.
 */
export function shadersOf(
  device: Device,
  { kernel, input: { shapes, attributes, dtypes } }: Workload,
  dtype: "f32" | "f16",
): string {
  const runs: string[] = [];
  device.scope(() => {
    const inputs = shapes.map((shape, i) => shape && device.empty(shape, dtypes?.[i] ?? dtype));
    const spec = kernel.output(inputs, attributes);
    kernel.launch({
      device,
      inputs,
      output: device.empty(spec.shape, spec.dtype),
      attributes,
      temporary: (shape, dtype) => device.empty(shape, dtype),
      texels(tensor) {
        const { texels, dispose } = device.texels(tensor);
        dispose();
        return texels;
      },
      dispatch(dispatch) {
        const { params, workgroups } = dispatch;
        const values = Object.values(params).map(({ value }) => value);
        runs.push(`${shaderKey(kernel.name, dispatch)} ${workgroups} ${values}`);
      },
    });
  });
  return runs.join("\n");
}

/** What a call gave, and the milliseconds that it took at best once compiled. */
interface Rehearsal {
  readonly output: ArrayLike<number>;
  readonly milliseconds: number;
}

async function rehearse(
  device: Device,
  { kernel, input }: Workload,
  dtype: "f32" | "f16",
): Promise<Rehearsal> {
  const scope = device.scope();
  try {
    const inputs = upload(device, input, dtype);
    const call = () => run(kernel, inputs, input.attributes);
    const output = await call().data();
    let milliseconds = Infinity;
    for (let i = 0; i < REHEARSALS; i++) {
      const start = performance.now();
      call();
      await device.sync();
      milliseconds = Math.min(milliseconds, performance.now() - start);
    }
    return { output, milliseconds };
  } finally {
    scope[Symbol.dispose]();
  }
}

function compare(
  got: Rehearsal,
  want: Rehearsal,
  tolerance: number,
  slowest: number,
): string | null {
  const error = relativeError(got.output, want.output);
  // A NaN is no error that can be accepted.
  if (!(error <= tolerance)) return `differs by ${error.toExponential(1)} from the first way`;
  const times = got.milliseconds / want.milliseconds;
  return times > slowest ? `takes ${times.toFixed(1)} times as long as the first way` : null;
}

/** ‖got − want‖ / ‖want‖. */
function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let [difference, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    difference += (got[i] - want[i]) ** 2;
    size += want[i] ** 2;
  }
  return Math.sqrt(difference / Math.max(size, Number.MIN_VALUE));
}

/** Runs `body`; if the GPU refuses something, replaces the device and returns what it said. */
async function survive<T>(
  bench: Bench,
  body: (device: Device) => Promise<T>,
): Promise<T | string> {
  try {
    return await body(bench.device);
  } catch (error) {
    if (!(error instanceof GpuError)) throw error;
    await bench.device.close();
    bench.device = await bench.open();
    return error.message.split("\n", 1)[0];
  }
}

/** Milliseconds of a call in each round, for each way that a call is timed in. */
export type Times = ReadonlyMap<Way, readonly number[]>;

/**
 * Times the ways, call by call; in every round each way has its turn, so that what slows the
 * machine down slows all of them down.
 *
 * @returns For each call, the ways that some value takes for it.
 */
export async function timeWays(
  { device }: Bench,
  { workloads, values }: Decision,
  failures: Failures,
  { base, dtype, method, rounds }: TrialOptions & { method: Method; rounds: number },
): Promise<Times[]> {
  const all: Times[] = [];
  for (const [i, { kernel, input }] of workloads.entries()) {
    const ways = new Set(values.map((value) => value.ways[i]).filter((way) => !failures.has(way)));
    const times = new Map([...ways].map((way): [Way, number[]] => [way, []]));
    const scope = device.scope();
    try {
      const inputs = upload(device, input, dtype);
      const call = () => device.scope(() => void run(kernel, inputs, input.attributes));
      for (let round = 0; round < rounds; round++) {
        for (const [way, rounds] of times) {
          overrideVariants(device, { ...base, ...way.choices });
          rounds.push((await time(device, method, call, 1)).milliseconds);
        }
      }
    } finally {
      scope[Symbol.dispose]();
    }
    all.push(times);
  }
  return all;
}

/** `conv2d [1, 320, 16, 16]`. */
export function describeCall({ kernel, input: { shapes } }: Workload): string {
  return `${kernel.name} ${formatShapes(shapes.slice(0, 2))}`;
}
