/**
 * Writing safetensors: what is refused, the header's form, and files that are replaced or kept.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, it } from "node:test";
import { InputError } from "../core/errors.ts";
import {
  encodeSafetensors,
  openSafetensors,
  type TensorData,
  writeSafetensors,
} from "../core/safetensors.ts";
import { assertHolds, inFolder, sample } from "./safetensors_setup.ts";

describe("safetensors: writing", () => {
  const x: TensorData = { name: "x", dtype: "F32", shape: [2], data: new Float32Array(2) };

  it("the header is padded to 8 bytes and keeps the order given", async () => {
    const bytes = encodeSafetensors(sample);
    const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    assert.equal(length % 8, 0);
    const header = new TextDecoder().decode(bytes.subarray(8, 8 + length));
    assert.match(header, /^\{"7":.*"a\.weight":.*"empty":.*"1":.*\} *$/);
    const file = await openSafetensors(bytes);
    assert.deepEqual([...file.tensors.keys()], ["7", "a.weight", "empty", "1"]);
  });

  it("refuses what would be no sound file", () => {
    const wrong: [TensorData[], RegExp][] = [
      [[x, x], /tensor "x": names must be unique/],
      [[{ ...x, name: "__metadata__" }], /not "__metadata__"/],
      [[{ ...x, shape: [3] }], /got 8 bytes for "F32" \[3\]/],
      [[{ ...x, shape: [-2] }], /got 8 bytes for "F32" \[-2\]/],
      [[{ ...x, dtype: "F16" }], /got 8 bytes for "F16" \[2\]/],
    ];
    for (const [tensors, message] of wrong) {
      assert.throws(() => encodeSafetensors(tensors), (error) => {
        assert.ok(error instanceof InputError);
        assert.match(error.message, message);
        return true;
      });
    }
  });

  it("writes the part of a buffer that a view shows", async () => {
    const data = new Float32Array([9, 1, 2, 9]).subarray(1, 3);
    const file = await openSafetensors(encodeSafetensors([{ ...x, data }]));
    assert.deepEqual(await file.readF32("x"), new Float32Array([1, 2]));
  });

  it("replaces a file, and leaves nothing behind when it fails", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.safetensors");
      await writeFile(path, "old");
      await assert.rejects(writeSafetensors(path, [x, x]), InputError);
      assert.equal(await readFile(path, "utf8"), "old");
      await writeSafetensors(path, [x]);
      await assertHolds(path, [x], {});

      const target = join(folder, "folder");
      await mkdir(join(target, "inside"), { recursive: true });
      for (const bad of [target, join(folder, "none", "x"), join(path, "x")]) {
        await assert.rejects(writeSafetensors(bad, [x]), (error) => {
          assert.ok(error instanceof InputError, `${error}`);
          assert.match(error.message, /cannot be written .*check the folder/);
          return true;
        });
      }
      assert.deepEqual((await readdir(folder)).sort(), ["folder", "x.safetensors"]);
    });
  });
});
