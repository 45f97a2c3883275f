/** Weights of 8 bits: how they are rounded and packed, and what layers do with them. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { f32ArrayToF16 } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { channelLinear, conv2d, quantize, type QuantizedWeights } from "../kernels/mod.ts";
import { panelShape } from "../kernels/panels.ts";
import { weightReader } from "../kernels/quantized.ts";
import { generatedWeights } from "../models/generated_weights.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { Weights } from "../models/weights.ts";
import { textToImage } from "../video/text_to_image.ts";

const device = await openDevice();
after(() => device.close());

/** Scale and weights that panels stand for, row after row. */
function restored({ panels, scale }: ReturnType<typeof quantize>, columns: number): number[] {
  const [, depth] = panelShape(scale.length, columns);
  const weight = weightReader(Float64Array.from(panels), depth, Float64Array.from(scale));
  return Array.from(
    { length: scale.length * columns },
    (_, i) => weight(Math.floor(i / columns), i % columns),
  );
}

/** Finite numbers of f32, of all sizes. */
const float = fc.oneof(
  fc.float({ noNaN: true, noDefaultInfinity: true }),
  fc.float({ noNaN: true, min: -1, max: 1 }),
  fc.constant(0),
);

test("weights are rounded to the nearest multiple of their row's scale", () => {
  fc.assert(
    fc.property(fc.nat(39), fc.nat(8), fc.infiniteStream(float), (rows, columns, floats) => {
      const values = Float32Array.from(floats.take((rows + 1) * (columns + 1)));
      const quantized = quantize(values, columns + 1);
      restored(quantized, columns + 1).forEach((weight, i) => {
        const scale = quantized.scale[Math.floor(i / (columns + 1))];
        const wrong = Math.abs(values[i] - weight);
        // Rows below the normal numbers of f32 count as zeros.
        assert.ok(wrong <= Math.max(scale / 2 * (1 + 1e-12), 127 * 2 ** -126), `${values[i]}`);
      });
    }),
    { seed: 8, numRuns: 200 },
  );
});

test("the largest weight of a row becomes 127, halves are rounded to even, zeros stay", () => {
  const rows = [[-254, 1, 3, 5, -1, 254], [0, 0, -0, 0, 0, 0], [1e-40, 0, 0, 0, 0, 0]];
  const { panels, scale } = quantize(Float32Array.from(rows.flat()), 6);
  assert.deepEqual([...scale], [2, 0, 0]);
  const bytes = new Int8Array(panels.buffer);
  assert.deepEqual(Array.from({ length: 6 }, (_, k) => bytes[32 * k]), [-127, 0, 2, 2, 0, 127]);
  assert.equal(bytes.filter((byte) => byte !== 0).length, 4, "all else is zero");
  assert.equal(panels.length, 8 * 8);
});

test("pieces of whole panels, and half-precision numbers, give the same words", () => {
  const values = new Generator(3).randn([70, 9]);
  const bits = f32ArrayToF16(values);
  const whole = quantize(bits, 9);
  const pieces = [quantize(bits.subarray(0, 32 * 9), 9), quantize(bits.subarray(32 * 9), 9)];
  assert.deepEqual(pieces.flatMap(({ panels }) => [...panels]), [...whole.panels]);
  assert.deepEqual(pieces.flatMap(({ scale }) => [...scale]), [...whole.scale]);
});

/** Weights on the device. */
function upload(values: Float32Array, outputs: number): QuantizedWeights {
  const inputs = values.length / outputs;
  const { panels, scale } = quantize(values, inputs);
  const shape = panelShape(outputs, inputs, "u32");
  const tensor = device.empty(shape, "u32");
  device.write(tensor, panels);
  return { panels: tensor, scale: device.tensor(scale) };
}

test("layers take them where they take other weights, within the error of rounding", async () => {
  const random = new Generator(4);
  const scope = device.scope();
  const x = device.tensor(random.randn([1, 40, 8, 8]), [1, 40, 8, 8]);
  const values = random.randn([24, 40, 3, 3]);
  const weight = upload(values, 24);
  const options = { padding: 1, kernel: [3, 3], outputs: 24 } as const;
  const [exact, rounded] = await Promise.all([
    conv2d(x, device.tensor(values, [24, 40, 3, 3]), null, { padding: 1 }).data(),
    conv2d(x, weight, null, options).data(),
  ]);
  const off = rounded.map((value, i) => Math.abs(value - exact[i]));
  // 360 errors of at most half a scale, about 4/127, with either sign.
  assert.ok(Math.max(...off) < 360 ** 0.5 * 4 / 127, `largest difference ${Math.max(...off)}`);
  assert.ok(Math.max(...off) > 0.01, "they are rounded");

  const tokens = device.tensor(random.randn([1, 360, 5]), [1, 360, 5]);
  assert.deepEqual(channelLinear(tokens, weight, null, { outputs: 24 }).shape, [1, 24, 5]);
  const all = { ...weight, scale: device.empty([32]) };
  assert.deepEqual(channelLinear(tokens, all).shape, [1, 32, 5]);
  scope[Symbol.dispose]();
});

test("a weight that is streamed in pieces is rounded as a whole", async () => {
  const shape = [96, 9000];
  const [bits, columns] = [f32ArrayToF16(new Generator(6).randn(shape)), shape[1]];
  const source = generatedWeights(
    "noise",
    new Map([["weight", shape]]),
    (values, _name, _shape, from) => values.set(bits.subarray(from, from + values.length)),
  );
  const weights = Weights.of(device, source, "f16", true);
  const { panels, scale } = weights.packed("weight", shape) as QuantizedWeights;
  await weights.load();
  const want = quantize(bits, columns);
  assert.deepEqual(await panels.raw(), want.panels);
  assert.deepEqual(await scale.raw(), want.scale);
  weights.dispose();
});

test("the UNet in 8 bits takes less memory and predicts nearly the same", async () => {
  const results: { bytes: number; noise: Float32Array; kept: unknown }[] = [];
  for (const weights of [undefined, "q8"] as const) {
    const before = device.memory().live;
    const sd = await StableDiffusion.load(undefined, { device, weights });
    const bytes = device.memory().live - before;
    const { hiddenStates } = sd.encodePrompt(["a red heart in a green meadow"]);
    const shape = [1, 4, 16, 16];
    const noise = device.scope(() =>
      sd.unet.forward(device.tensor(new Generator(0).randn(shape), shape), 501, hiddenStates)
    );
    const clip = textToImage(sd, "a heart");
    results.push({ bytes, noise: await noise.data(), kept: clip.settings.weights });
    clip.dispose();
    for (const tensor of [noise, hiddenStates]) tensor.dispose();
    sd.dispose();
    assert.equal(device.memory().live, before);
  }
  const [plain, rounded] = results;
  assert.deepEqual([plain.kept, rounded.kept], [undefined, "q8"]);
  // Not a quarter: each of the small weights here takes a window of 64 KiB at least.
  assert.ok(rounded.bytes < 0.8 * plain.bytes, `${rounded.bytes} of ${plain.bytes} bytes`);
  const norm = (values: Float32Array) => Math.hypot(...values);
  const error = norm(plain.noise.map((v, i) => rounded.noise[i] - v)) / norm(plain.noise);
  assert.ok(error > 1e-4 && error < 2e-2, `relative error ${error}`);
});

test("what does not belong together is refused", () => {
  const scope = device.scope();
  const { panels, scale } = upload(new Generator(5).randn([32, 8]), 32);
  const x = device.empty([1, 8, 4]);
  const image = device.empty([1, 8, 4, 4]);
  const refused = (call: () => unknown) =>
    assert.throws(
      call,
      (error) => error instanceof ShapeError && /8 bits|in panels|the weight/.test(error.message),
    );
  refused(() => channelLinear(x, panels));
  refused(() => channelLinear(x, { panels, scale }, null, { outputs: 31 }));
  refused(() => channelLinear(x, { panels: device.empty([1, 8, 32]), scale }));
  refused(() => conv2d(image, panels, null, { kernel: [1, 1] }));
  refused(() => conv2d(image, { panels, scale }, null, { kernel: [1, 1], groups: 2 }));
  refused(() => conv2d(image, { panels: device.empty([32, 8, 1, 1], "u32"), scale }));
  scope[Symbol.dispose]();
});
