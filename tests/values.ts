/** Values that operations make, and whether they are what was wanted. */

import assert from "node:assert/strict";
import type { Device } from "../core/device.ts";
import type { Tensor } from "../core/tensor.ts";

/** What `make` makes on the device, read back; what it is made of is freed. */
export async function valuesOf(
  device: Device,
  make: () => Tensor,
): Promise<Float32Array<ArrayBuffer>> {
  const tensor = device.scope(make);
  try {
    return new Float32Array(await tensor.data());
  } finally {
    tensor.dispose();
  }
}

/** Asserts that no value is further off than `tolerance`. */
export function near(got: ArrayLike<number>, want: ArrayLike<number>, tolerance: number): void {
  assert.equal(got.length, want.length);
  for (let i = 0; i < got.length; i++) {
    assert.ok(Math.abs(got[i] - want[i]) <= tolerance, `${i}: ${got[i]} ≠ ${want[i]}`);
  }
}
