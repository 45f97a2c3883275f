/**
 * What the tests of safetensors share: tensors, and how a file is compared with them.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openSafetensors, type SafetensorsDType, type TensorData } from "../core/safetensors.ts";

/** Runs `use` with a folder that is removed after it. */
export async function inFolder(use: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "framezero-"));
  try {
    await use(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Bytes of an element. */
export const sizes: Record<SafetensorsDType, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
};

/** Tensors whose names, shapes and types are unusual. */
export const sample: TensorData[] = [
  { name: "7", dtype: "U8", shape: [3], data: new Uint8Array([1, 2, 3]) },
  { name: "a.weight", dtype: "F32", shape: [2, 2], data: new Float32Array([1, -2, 3.5, 0]) },
  { name: "empty", dtype: "F16", shape: [4, 0], data: new Uint16Array(0) },
  { name: "1", dtype: "I64", shape: [], data: new BigInt64Array([-5n]) },
];

/** Checks that a file has exactly these tensors. */
export async function assertHolds(
  source: Parameters<typeof openSafetensors>[0],
  tensors: readonly TensorData[],
  metadata: Record<string, string>,
): Promise<void> {
  const file = await openSafetensors(source);
  try {
    assert.deepEqual({ ...file.metadata }, metadata);
    assert.deepEqual([...file.tensors.keys()].sort(), tensors.map(({ name }) => name).sort());
    for (const { name, dtype, shape, data } of tensors) {
      const info = file.tensors.get(name);
      assert.equal(info?.dtype, dtype);
      assert.deepEqual(info?.shape, shape);
      const bytes = await file.read(name);
      assert.equal(bytes.byteOffset % 8, 0);
      assert.equal(bytes.buffer.byteLength, bytes.byteLength);
      assert.deepEqual(bytes, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    }
  } finally {
    await file.close();
  }
}
