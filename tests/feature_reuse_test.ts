/** Steps that use the deep features of an earlier step: what they compute, and clips made so. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { GuidedUNet } from "../video/guided_unet.ts";
import { textToImage } from "../video/text_to_image.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { distance, latentsOf, taken } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

const PROMPT = "a red heart in a green meadow";
const QUICK = { steps: 4, t0: 1, t1: 2, frames: 3, seed: 5, width: 64, height: 64 } as const;
const CELLS = [8, 8] as const;
const rest = () => Promise.resolve();

function video(options: TextToVideoOptions): Promise<Float32Array> {
  return latentsOf(textToVideo(sd, PROMPT, { ...QUICK, ...options }));
}

test("the UNet: outer layers and the deep feature of the same input give the whole", async () => {
  const random = new Generator(7);
  const { config } = sd.unet;
  const scope = device.scope();
  const shape = [2, 4, ...CELLS];
  const [x, other] = [0, 1].map(() => device.tensor(random.randn(shape), shape));
  const { hiddenStates } = sd.encodePrompt([PROMPT]);
  const text = sd.unet.encodeText(hiddenStates);
  const feature = device.empty([2, config.blockOutChannels[0], ...CELLS]);
  const predict = (latents: Tensor, timestep: number, known?: boolean) => {
    const before = device.counts().dispatches;
    const deep = known === undefined ? undefined : { feature, known };
    const noise = sd.unet.forward(latents, timestep, text, { deep }).data();
    return { noise, dispatches: device.counts().dispatches - before };
  };
  const plain = predict(x, 501);
  const filling = predict(x, 501, false);
  const outer = predict(x, 501, true);
  const later = predict(other, 301, true);
  const whole = await plain.noise;
  assert.deepEqual(await filling.noise, whole);
  assert.deepEqual(await outer.noise, whole);
  assert.ok(4 * outer.dispatches < plain.dispatches, "most of the work is left out");
  assert.equal(later.dispatches, outer.dispatches);
  assert.ok(distance(await later.noise, whole) > 0.1, "the outer layers see the new latents");
  for (const { key, value } of text.values()) [key, value].forEach((tensor) => tensor.dispose());
  scope[Symbol.dispose]();
});

for (const rows of [undefined, 4, 1]) {
  test(`guidance rows, anchor and groups keep their own features (rows: ${rows})`, async () => {
    const before = device.memory().live;
    const { hiddenStates } = sd.encodePrompt(["a blue circle", PROMPT]);
    const options = { guidanceScale: 5, crossFrame: true, rows };
    const guided = new GuidedUNet(sd.unet, hiddenStates, CELLS, { ...options, reuse: 3 });
    hiddenStates.dispose();
    const shape = [4, 4, ...CELLS];
    const [x, y] = [1, 2].map((seed) => device.tensor(new Generator(seed).randn(shape), shape));
    const predict = async (latents: Tensor, step: number) =>
      await taken(await guided.predict(latents, 501, step, rest));
    const whole = await predict(x, 0);
    assert.deepEqual(await predict(x, 1), whole, "with the features of the same latents");
    const mixed = await predict(y, 2);
    assert.ok(distance(mixed, whole) > 0.1);
    const fresh = await predict(y, 3);
    assert.ok(distance(fresh, mixed) > 1e-3, "every third step computes everything");
    assert.deepEqual(await predict(y, 4), fresh);
    guided.dispose();
    [x, y].forEach((tensor) => tensor.dispose());
    assert.equal(device.memory().live, before);
  });
}

test("clips: rare whole steps change the result more than frequent ones", async () => {
  const plain = await video({});
  assert.deepEqual(await video({ reuse: 1 }), plain);
  const [two, all] = [await video({ reuse: 2 }), await video({ reuse: 100 })];
  const [near, far] = [distance(two, plain), distance(all, plain)];
  assert.ok(near > 1e-5 && near <= far && far < 1, `${near} and ${far}`);
  assert.ok(distance(await video({ reuse: 2, rows: 1 }), two) < 1e-4);
  assert.ok((await video({ reuse: 2, merge: 0.3 })).every(Number.isFinite), "with merging");
});

test("a tight memory budget makes groups smaller, not other pictures", async () => {
  const options = { ...QUICK, reuse: 2, frames: 5 } as const;
  const want = await video(options);
  const peak = async (memoryBudget?: number) => {
    const other = await openDevice({ memoryBudget, poolBytes: 0 });
    const model = await StableDiffusion.load(undefined, { device: other });
    other.resetPeak();
    const latents = await latentsOf(textToVideo(model, PROMPT, options));
    const most = other.memory().peak;
    model.dispose();
    await other.close();
    return { latents, most };
  };
  const { most } = await peak();
  const tight = await peak(Math.floor(0.9 * most));
  assert.ok(tight.most < 0.9 * most);
  assert.ok(distance(tight.latents, want) < 1e-4);
});

test("pictures say so in their settings, and refuse what is no number of steps", () => {
  const clip = textToImage(sd, PROMPT, { steps: 2, reuse: 2 });
  assert.equal(clip.settings.reuse, 2);
  clip.dispose();
  for (const reuse of [0, 1.5, -2]) {
    assert.throws(
      () => textToImage(sd, PROMPT, { reuse }),
      (error) => error instanceof InputError && /reuse must be a whole number/.test(error.message),
    );
  }
});
