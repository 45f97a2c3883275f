/**
 * U²-Net against PyTorch, whose outputs for weights made by a formula are stored by
 * `golden/u2netp/make.py`.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { openDevice } from "../core/device.ts";
import { WeightError } from "../core/errors.ts";
import { encodeSafetensors, openSafetensors, type TensorData } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import { interpolate, mul, sub } from "../kernels/mod.ts";
import { U2Net } from "../models/u2net.ts";
import { salientObjects } from "../video/foreground.ts";
import { largest } from "./start_image_setup.ts";

const device = await openDevice();
const path = fileURLToPath(new URL("./golden/u2netp/outputs.safetensors", import.meta.url));
const golden = await openSafetensors(path);
after(async () => {
  await golden.close();
  await device.close();
});

/** The generator of `make.py`: linear congruential, seeded with FNV-1a of the name. */
function uniform(name: string, count: number): Float64Array {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(name)) {
    state = Math.imul(state ^ byte, 16777619);
  }
  return Float64Array.from({ length: count }, () => {
    state = Math.imul(state, 1664525) + 1013904223 | 0;
    return (state >>> 8) / 2 ** 24;
  });
}

function weight(name: string, shape: number[]): TensorData {
  const inputs = sizeOf(shape.slice(1));
  const around1 = /running_var$|bn_s1\.weight$/.test(name);
  const gain = name.startsWith("side") ? 0.1 : 1;
  const scale = shape.length === 4 ? gain * Math.sqrt(6 / inputs) : around1 ? 0.4 : 0.2;
  const centre = around1 ? 1 : 0;
  const data = Float32Array.from(
    uniform(name, sizeOf(shape)),
    (u) => scale * (2 * u - 1) + centre,
  );
  return { name, dtype: "F32", shape, data };
}

/** A checkpoint with the published names; all stages have the same widths. */
function checkpoint(mid: number, out: number): TensorData[] {
  const tensors: TensorData[] = [];
  const conv = (path: string, inputs: number, outputs: number, size: number) =>
    tensors.push(
      weight(`${path}.weight`, [outputs, inputs, size, size]),
      weight(`${path}.bias`, [outputs]),
    );
  const block = (path: string, inputs: number, outputs: number) => {
    conv(`${path}.conv_s1`, inputs, outputs, 3);
    for (const part of ["weight", "bias", "running_mean", "running_var"]) {
      tensors.push(weight(`${path}.bn_s1.${part}`, [outputs]));
    }
    tensors.push({
      name: `${path}.bn_s1.num_batches_tracked`,
      dtype: "I64",
      shape: [],
      data: BigInt64Array.of(0n),
    });
  };
  const stage = (path: string, height: number, inputs: number) => {
    block(`${path}.rebnconvin`, inputs, out);
    for (let i = 1; i <= height; i++) block(`${path}.rebnconv${i}`, i > 1 ? mid : out, mid);
    for (let i = 1; i < height; i++) block(`${path}.rebnconv${i}d`, 2 * mid, i > 1 ? mid : out);
  };
  [7, 6, 5, 4, 4, 4].forEach((height, i) => {
    stage(`stage${i + 1}`, height, i ? out : 3);
    if (i < 5) stage(`stage${i + 1}d`, height, 2 * out);
    conv(`side${i + 1}`, out, 1, 3);
  });
  conv("outconv", 6, 1, 1);
  return tensors;
}

const open = (tensors: TensorData[]) => U2Net.open(encodeSafetensors(tensors), { device });

const picture = (shape: readonly number[]) =>
  device.tensor(Float32Array.from(uniform("picture", sizeOf(shape))), shape);

test("U²-Net-p is PyTorch's", async () => {
  const net = await open(checkpoint(16, 64));
  const map = device.scope(() => net.forward(sub(mul(picture([1, 3, 64, 96]), 2), 1)));
  assert.deepEqual(map.shape, [1, 1, 64, 96]);
  assert.ok(largest(await map.data(), await golden.readF32("full")) < 1e-4);
  map.dispose();
  net.dispose();
});

test("from a picture to its mask, with the widths of the checkpoint", async () => {
  const before = device.memory().live;
  const net = await open(checkpoint(4, 8));
  const want = await golden.readF32("narrow");
  const map = device.scope(() =>
    net.detect(interpolate(picture([1, 3, 6, 9]), { size: [80, 120], mode: "nearest" }))
  );
  assert.ok(largest(await map.data(), want) < 1e-3);
  map.dispose();

  const values = uniform("picture", 3 * 6 * 9);
  const data = Uint8Array.from({ length: 3 * 80 * 120 }, (_, i) => {
    const [x, y] = [Math.floor(i / 3) % 120, Math.floor(i / 360)];
    const [row, column] = [Math.floor(y * 6 / 80), Math.floor(x * 9 / 120)];
    return Math.round(255 * values[(i % 3 * 6 + row) * 9 + column]);
  });
  const mask = await salientObjects(net).detect({ width: 120, height: 80, data });
  assert.deepEqual([mask.width, mask.height], [120, 80]);
  const sum = mask.values.reduce((total, value, i) => total + Math.abs(value - want[i]), 0);
  assert.ok(sum / want.length < 0.02, "8-bit colours change it little");
  net.dispose();
  assert.equal(device.memory().live, before);
});

test("other files and pictures are refused", async () => {
  const refused = (tensors: TensorData[], message: RegExp) =>
    assert.rejects(open(tensors), (error: unknown) => {
      assert.ok(error instanceof WeightError);
      assert.match(error.message, message);
      return true;
    });
  const whole = checkpoint(2, 4);
  await refused([weight("side1.weight", [1, 4, 3, 3])], /give a checkpoint of U²-Net/);
  await refused(
    whole.filter(({ name }) => name !== "stage3d.rebnconv2.conv_s1.bias"),
    /stage3d\.rebnconv2\.conv_s1\.bias of shape \[2\] is missing/,
  );
  await refused([...whole, weight("refine.weight", [4])], /belong to no part.*refine\.weight/);
  const net = await open(whole);
  device.scope(() => {
    assert.throws(() => net.forward(picture([1, 3, 64, 40])), /multiples of 32/);
    assert.throws(() => net.forward(picture([1, 1, 32, 32])), /\[B, 3, H, W\]/);
  });
  net.dispose();
});
