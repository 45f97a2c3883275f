/** Convolutions that are done in several pieces agree with each other. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { run } from "../core/kernel.ts";
import { Generator } from "../core/random.ts";
import { conv2d, narrow } from "../kernels/mod.ts";
import { conv2dKernel } from "../kernels/conv2d.ts";

const device = await openDevice();
after(() => device.close());

test("pieces of a large image agree with the whole, and with the other method", async () => {
  const random = new Generator(2);
  // Both the gathered patches (83 MB) and Winograd's tiles (34 MB) exceed what is held at once.
  const shape = [2, 32, 136, 256];
  const x = device.tensor(random.randn(shape), shape);
  const weight = device.tensor(random.randn([16, 32, 3, 3]).map((v) => v / 17), [16, 32, 3, 3]);
  const bias = device.tensor(random.randn([16]), [16]);
  const padding = { top: 1, bottom: 1, left: 1, right: 1 };
  const attributes = {
    kernel: [3, 3],
    stride: [1, 1],
    dilation: [1, 1],
    padding,
    groups: 1,
    activation: "none",
  } as const;
  const product = { ...attributes, form: "registers" } as const;
  const inputs = [x, weight, bias, null, null];
  const outputs = [
    run(conv2dKernel, inputs, product),
    conv2d(x, weight, bias, { padding }),
  ];
  const [gathered, winograd] = await Promise.all(outputs.map((y) => y.data()));
  let worst = 0;
  gathered.forEach((value, i) => worst = Math.max(worst, Math.abs(value - winograd[i])));
  // F(4×4) rounds more coarsely than the plain sum.
  assert.ok(worst < 1e-4, `largest difference ${worst}`);
  // One image alone is done in other pieces.
  const second = conv2d(narrow(x, 0, 1, 1), weight, bias, { padding });
  const alone = await second.data();
  assert.deepEqual(alone, winograd.slice(alone.length));
  for (const t of [x, weight, bias, second, ...outputs]) t.dispose();
});
