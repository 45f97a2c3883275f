/** Guidance rows that see the same latents: computed once until the text tells them apart. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import type { TapeEntry } from "../core/kernel.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { concat } from "../kernels/mod.ts";
import { SELF } from "../models/attention.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import type { UNetOptions } from "../models/unet.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
const F = 2;
const x = device.tensor(new Generator(4).randn([F, 4, 16, 16]), [F, 4, 16, 16]);
const { hiddenStates } = sd.encodePrompt(["low quality", "a blue star on a beach"]);
after(async () => {
  for (const owned of [x, hiddenStates, sd]) owned.dispose();
  await device.close();
});

function noiseOf(latents: Tensor, options: UNetOptions): Tensor {
  return sd.unet.forward(latents, 700, hiddenStates, options);
}

async function taken(tensor: Tensor): Promise<Float32Array> {
  const data = await tensor.data();
  tensor.dispose();
  return data as Float32Array;
}

for (const frames of [SELF, { mode: "first", frames: F }] as const) {
  test(`copies are the rows themselves, bit for bit (${frames.mode})`, async () => {
    const all = device.scope(() => noiseOf(concat([x, x], 0), { frames }));
    const shared = noiseOf(x, { frames, copies: 2 });
    assert.deepEqual(shared.shape, [2 * F, 4, 16, 16]);
    assert.deepEqual(await taken(shared), await taken(all));
  });
}

test("deep features are used again by copies, too", async () => {
  const [width] = sd.unet.config.blockOutChannels;
  const features = [1, 2].map(() => device.empty([2 * F, width, 16, 16]));
  const twice = (latents: Tensor, feature: Tensor, copies: number) =>
    [false, true].map((known) => taken(noiseOf(latents, { copies, deep: { feature, known } })));
  const both = concat([x, x], 0);
  const all = await Promise.all(twice(both, features[0], 1));
  assert.deepEqual(await Promise.all(twice(x, features[1], 2)), all);
  for (const tensor of [both, ...features]) tensor.dispose();
});

test("what comes before the first text is computed for one of them", () => {
  const rowsOf = (latents: Tensor, copies: number) => {
    const entries: TapeEntry[] = [];
    device.tape = (entry) => entries.push(entry);
    device.record(() => noiseOf(latents, { copies })).dispose();
    device.tape = null;
    return entries.filter(({ kernel: { name } }) => name === "conv2d" || name === "attention")
      .map(({ inputs: [input] }) => input?.shape[0]);
  };
  const both = concat([x, x], 0);
  const all = rowsOf(both, 1);
  assert.ok(all.every((rows) => rows === 2 * F));
  // The first convolution, two of the first block, and its self-attention.
  assert.deepEqual(rowsOf(x, 2), all.map((rows, i) => i < 4 ? F : rows));
  both.dispose();
});

test("copies that cannot be are refused by name", () => {
  const times = device.tensor([700, 600]);
  assert.throws(
    () => noiseOf(x, { copies: 0 }),
    /UNet: copies must be a whole number from 1.*got 0/,
  );
  assert.throws(
    () => sd.unet.forward(x, times, hiddenStates, { copies: 2 }),
    /UNet: copies must .* have one timestep; got 2 and timesteps of shape 2/,
  );
  assert.throws(
    () => noiseOf(x, { copies: 2, frames: { mode: "first", frames: 4 } }),
    /UNet: 2 rows are not a multiple of 4 frames/,
  );
  times.dispose();
});
