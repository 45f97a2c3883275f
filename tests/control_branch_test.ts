/**
 * ControlNets inside the guided UNet: whose rows get their residuals, deep features that are used
 * again, and nets that begin or end.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { narrow } from "../kernels/mod.ts";
import type { ControlSettings, FrameControl } from "../video/control_branch.ts";
import type { Frame } from "../video/frame.ts";
import { GuidedUNet } from "../video/guided_unet.ts";
import { distance, taken } from "./clips.ts";
import { controlled, MAPS, PROMPT } from "./controlled_setup.ts";

const { device, sd, model } = await controlled();

const CELLS = [12, 12] as const;
const rest = () => Promise.resolve();

/** Runs `body` with a guided UNet of two guidance rows, its ControlNets and random latents. */
async function guided<T>(
  nets: readonly Partial<FrameControl>[],
  options: { rows?: number; reuse?: number },
  body: (unet: GuidedUNet, x: Tensor, y: Tensor) => Promise<T>,
): Promise<T> {
  const before = device.memory().live;
  const { hiddenStates } = sd.encodePrompt(["low quality", PROMPT]);
  const full = { model, maps: MAPS, scale: 1, start: 0, end: 1, guessMode: false };
  const control: ControlSettings = {
    nets: nets.map((net) => ({ ...full, ...net })),
    steps: 4,
    crossFrame: true,
    intoMiddle: false,
  };
  const unet = new GuidedUNet(sd.unet, hiddenStates, CELLS, {
    guidanceScale: 5,
    crossFrame: true,
    control,
    ...options,
  });
  hiddenStates.dispose();
  const shape = [2, 4, ...CELLS];
  const [x, y] = [1, 2].map((seed) => device.tensor(new Generator(seed).randn(shape), shape));
  try {
    return await body(unet, x, y);
  } finally {
    unet.dispose();
    [x, y].forEach((tensor) => tensor.dispose());
    assert.equal(device.memory().live, before);
  }
}

/** The guided noise of a frame by itself, put together here. */
function byHand(x: Tensor, map: Frame, guessMode: boolean): Promise<Float32Array> {
  const [low, high] = device.scope(() => {
    const { hiddenStates } = sd.encodePrompt(["low quality", PROMPT]);
    const { width, height, data } = map;
    const planes = Float32Array.from(
      { length: data.length },
      (_, i) => data[3 * (i % (width * height)) + Math.floor(i / width / height)] / 255,
    );
    const embedded = model.embed(device.tensor(planes, [1, 3, height, width]));
    return [0, 1].map((row) => {
      const text = narrow(hiddenStates, 0, row, 1);
      const control = guessMode && row === 0
        ? null
        : model.forward(x, 501, text, embedded, { guessMode });
      return sd.unet.forward(x, 501, text, { control });
    });
  });
  return Promise.all([taken(low), taken(high)])
    .then(([low, high]) => low.map((value, i) => value + 5 * (high[i] - value)));
}

describe("the guided UNet", () => {
  for (const guessMode of [false, true]) {
    it(`adds the residuals to ${guessMode ? "the prompt's rows" : "all rows"}`, async () => {
      for (const rows of [undefined, 1]) {
        await guided([{ guessMode }], { rows }, async (unet, x) => {
          const one = device.scope(() => narrow(x, 0, 0, 1)).keep();
          const want = await byHand(one, MAPS[0], guessMode);
          one.dispose();
          const got = await taken(await unet.predict(x, 501, 0, rest));
          assert.ok(distance(got.subarray(0, want.length), want) < 1e-4, `rows ${rows}`);
        });
      }
    });
  }

  for (const rows of [undefined, 1]) {
    it(`uses deep features again, with the outermost residual (rows: ${rows})`, async () => {
      await guided([{}, { guessMode: true }], { rows, reuse: 3 }, async (unet, x, y) => {
        const predict = async (latents: Tensor, step: number) =>
          await taken(await unet.predict(latents, 501, step, rest));
        const whole = await predict(x, 0);
        assert.deepEqual(await predict(x, 1), whole, "with the features of the same latents");
        const mixed = await predict(y, 2);
        assert.ok(distance(mixed, whole) > 0.1);
        assert.ok(distance(await predict(y, 3), mixed) > 1e-3);
      });
    });
  }

  it("makes a whole step when a net begins or ends", async () => {
    await guided([{ end: 0.5 }], { reuse: 4 }, async (unet, x) => {
      const predict = async (step: number) => await taken(await unet.predict(x, 501, step, rest));
      const acting = await predict(0);
      assert.deepEqual(await predict(1), acting);
      const free = await predict(2);
      assert.ok(distance(free, acting) > 1e-3);
      assert.deepEqual(await predict(3), free, "with features of the step without control");
      assert.deepEqual(await predict(0), acting, "and again from the beginning");
    });
  });
});
