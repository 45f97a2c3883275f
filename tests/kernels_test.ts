/**
 * Every kernel against its own float64 reference, on every case of its file, in f32 and f16.
 */

import assert from "node:assert/strict";
import process from "node:process";
import { after, describe, it } from "node:test";
import type { Device } from "../core/device.ts";
import { openDevice } from "../core/device.ts";
import { f16BitsToF32, f32ToF16Bits } from "../core/dtype.ts";
import type { DType } from "../core/dtype.ts";
import type { Kernel, KernelCase } from "../core/kernel.ts";
import { registeredKernels, run } from "../core/kernel.ts";
import { sizeOf } from "../core/shape.ts";
import "../kernels/mod.ts";

const device = await openDevice();
after(() => device.close());
const only = process.env.KERNEL;

/** Largest errors accepted when inputs and output are half precision (2^-11 relative each). */
const F16 = { atol: 4e-3, rtol: 4e-3 };

for (const dtype of ["f32", "f16"] as const) {
  if (dtype === "f16" && !device.info.f16) continue;
  describe(`kernels in ${dtype}`, () => {
    for (const kernel of registeredKernels()) {
      if (only && kernel.name !== only) continue;
      kernel.cases.forEach((kernelCase, index) => {
        const shapes = kernelCase.shapes.map((shape) => shape?.join("×") ?? "–").join(", ");
        const settings = JSON.stringify(kernelCase.attributes);
        it(`${kernel.name} ${index}: ${shapes} ${settings}`, () =>
          check(device, kernel, kernelCase, dtype));
      });
    }
  });
}

async function check(
  device: Device,
  kernel: Kernel<unknown>,
  { shapes, attributes, dtypes, values }: KernelCase<unknown>,
  floating: DType,
): Promise<void> {
  const random = noise(kernel.name.length + 7);
  const types = shapes.map((_, i) => dtypes?.[i] ?? floating);
  const inputs = shapes.map((shape, i) => {
    if (!shape) return null;
    const given = values?.[i];
    const data = given ? [...given] : Array.from({ length: sizeOf(shape) }, random);
    return types[i] === "f16"
      ? data.map((x) => f16BitsToF32(f32ToF16Bits(x)))
      : data.map((x) => types[i] === "f32" ? Math.fround(x) : x);
  });
  const tensors = inputs.map((data, i) => data && device.tensor(data, shapes[i]!, types[i]));
  const before = device.memory().live;
  const output = run(kernel, tensors, attributes);
  const got = await output.data();
  const want = kernel.reference(
    inputs.map((data) => data && Float64Array.from(data)),
    shapes,
    attributes,
    output.shape,
  );
  assert.equal(got.length, want.length, "number of elements");
  const { atol, rtol } = floating === "f16" ? F16 : kernel.tolerance ?? { atol: 2e-5, rtol: 2e-4 };
  const far = want.findIndex((value, i) =>
    !Object.is(got[i], value) && !(Math.abs(got[i] - value) <= atol + rtol * Math.abs(value))
  );
  assert.ok(far < 0, `element ${far} of [${output.shape}]: got ${got[far]}, want ${want[far]}`);
  output.dispose();
  assert.equal(device.memory().live, before, "temporaries are freed");
  for (const tensor of tensors) tensor?.dispose();
}

/** Values from −2 to 2, the same on every run. */
function noise(seed: number): () => number {
  let state = seed * 2654435761 >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 30 - 2;
  };
}
