/**
 * A workload is a call of a kernel: what it costs, its inputs on a device, whether a device gets it
 * right. Every registered kernel has one.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { bytesPerElement, type DType, f16BitsToF32, f32ToF16Bits } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import {
  type Kernel,
  type KernelCase,
  registeredKernels,
  run,
  type TensorSpec,
} from "../core/kernel.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";

/** A call of a kernel, and how often a model makes it. */
export interface Workload {
  /** What is called. */
  readonly kernel: Kernel<unknown>;
  /** Shapes and settings. */
  readonly input: KernelCase<unknown>;
  /** Calls in an evaluation of the model; 1 where there is none. */
  readonly calls: number;
}

/** One call of a kernel. */
export function callOf<A>(
  kernel: Kernel<A>,
  shapes: readonly (Shape | null)[],
  attributes: A,
): Workload {
  return { kernel, input: { shapes, attributes }, calls: 1 };
}

/** Floating-point operations of one call, and the bytes that must move at least. */
export function costOf(
  { kernel, input: { shapes, attributes, dtypes } }: Workload,
  floating: DType,
): { flops: number; bytes: number } {
  const specs = shapes.map((shape, i): TensorSpec | null =>
    shape && { shape, dtype: dtypes?.[i] ?? floating }
  );
  const output = kernel.output(specs, attributes);
  const bytesOf = (spec: TensorSpec | null) =>
    spec ? sizeOf(spec.shape) * bytesPerElement(spec.dtype) : 0;
  const once = specs.reduce((sum, spec) => sum + bytesOf(spec), bytesOf(output));
  return {
    flops: kernel.flops(specs, output, attributes),
    bytes: kernel.bytes?.(specs, output, attributes) ?? once,
  };
}

/**
 * One call of every registered kernel: the costliest of `known`, else one of its own cases,
 * lengthened to about `elements` as far as its shape rule allows it.
 */
export function everyKernel(known: readonly Workload[], elements: number): Workload[] {
  return registeredKernels().map((kernel) => {
    const calls = known.filter((workload) => workload.kernel.name === kernel.name);
    if (!calls.length) return enlarged(kernel, elements);
    const costs = calls.map((workload) => {
      const { flops, bytes } = costOf(workload, "f32");
      return flops + bytes;
    });
    return { ...calls[costs.indexOf(Math.max(...costs))], calls: 1 };
  });
}

/** The largest workload among a kernel's cases with longer leading axes. */
function enlarged(kernel: Kernel<unknown>, elements: number): Workload {
  let best = kernel.cases[0];
  for (const input of kernel.cases) {
    const times = Math.ceil(elements / elementsOf(input));
    for (const inputs of [input.shapes.length, 1]) {
      const isLonger = (i: number) => i < inputs && input.shapes[i]?.length;
      const shapes = input.shapes.map((shape, i) =>
        shape && isLonger(i) ? shape.with(0, shape[0] * times) : shape
      );
      const longer = { ...input, shapes };
      if (elementsOf(longer) > elementsOf(best) && isAllowed(kernel, longer)) best = longer;
    }
  }
  const values = best.values?.map((values, i) => {
    const times = sizeOf(best.shapes[i] ?? []) / (values?.length ?? 1);
    return values && Array<readonly number[]>(times).fill(values).flat();
  });
  return { kernel, input: { ...best, values }, calls: 1 };
}

/** Elements of the largest input. */
function elementsOf({ shapes }: KernelCase<unknown>): number {
  return Math.max(...shapes.map((shape) => shape ? sizeOf(shape) : 0));
}

function isAllowed(kernel: Kernel<unknown>, input: KernelCase<unknown>): boolean {
  try {
    costOf({ kernel, input, calls: 1 }, "f32");
    return true;
  } catch (error) {
    if (error instanceof ShapeError) return false;
    throw error;
  }
}

/** Numbers that are drawn; longer tensors repeat them. */
const NOISE = 2 ** 16;

/** Values from −2 to 2, the same on every run. */
function noise(count: number): Float32Array<ArrayBuffer> {
  let state = 20230323;
  const drawn = Float32Array.from({ length: Math.min(count, NOISE) }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 30 - 2;
  });
  const values = new Float32Array(count);
  for (let at = 0; at < count; at += NOISE) values.set(drawn.subarray(0, count - at), at);
  return values;
}

function valuesOf({ shapes, values }: KernelCase<unknown>): (Float32Array<ArrayBuffer> | null)[] {
  return shapes.map((shape, i) => {
    const given = values?.[i];
    return shape && (given ? Float32Array.from(given) : noise(sizeOf(shape)));
  });
}

/** The inputs of a case on a device, drawn at random where it gives no values. */
export function upload(
  device: Device,
  input: KernelCase<unknown>,
  floating: DType,
): (Tensor | null)[] {
  const { shapes, dtypes } = input;
  return valuesOf(input).map((data, i) =>
    data && device.tensor(data, shapes[i] ?? [], dtypes?.[i] ?? floating)
  );
}

/** Numbers as they are after a tensor of this type has held them, in float64. */
function rounded(data: Float32Array, dtype: DType): Float64Array {
  const values = Float64Array.from(data);
  return dtype === "f16" ? values.map((value) => f16BitsToF32(f32ToF16Bits(value))) : values;
}

/** Errors accepted where a kernel names none, and in half precision. */
const TOLERANCE = { f32: { atol: 2e-5, rtol: 2e-4 }, f16: { atol: 4e-3, rtol: 4e-3 } };

/**
 * Runs a case and compares it with the kernel's float64 reference.
 *
 * @returns What is wrong, or `null`.
 */
export async function findError(
  device: Device,
  kernel: Kernel<unknown>,
  input: KernelCase<unknown>,
  floating: "f32" | "f16",
): Promise<string | null> {
  const { shapes, attributes, dtypes } = input;
  const scope = device.scope();
  try {
    const output = run(kernel, upload(device, input, floating), attributes);
    const got = await output.data();
    const values = valuesOf(input).map((data, i) => data && rounded(data, dtypes?.[i] ?? floating));
    const want = kernel.reference(values, shapes, attributes, output.shape);
    const tolerance = floating === "f32" ? kernel.tolerance : undefined;
    const { atol, rtol } = tolerance ?? TOLERANCE[floating];
    const wrong = want.findIndex((value, i) =>
      !Object.is(value, got[i]) && !(Math.abs(got[i] - value) <= atol + rtol * Math.abs(value))
    );
    return wrong < 0 ? null : `element ${wrong} is ${got[wrong]} instead of ${want[wrong]}`;
  } finally {
    scope[Symbol.dispose]();
  }
}
