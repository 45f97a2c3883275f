/**
 * Text2Video-Zero on the built-in model: what must hold whatever the weights, and bad settings.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { gridSample, interpolate, mul } from "../kernels/mod.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { createScheduler, forwardAlphaProduct } from "../schedulers/mod.ts";
import { mirroredIndexes, shiftInCells, warpLatents } from "../video/motion_field.ts";
import { textToImage } from "../video/text_to_image.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { latentsOf } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

const PROMPT = "a red heart in a green meadow";
const SMALL = { width: 64, height: 64 } as const;
/** A camera that moves by a cell and more from frame to frame. */
const MOVING = { motionFieldStrengthX: 70, motionFieldStrengthY: 140 } as const;
const QUICK = { steps: 4, t0: 1, t1: 2, frames: 3, seed: 5, ...SMALL, ...MOVING } as const;
const SD15 = {
  beta_schedule: "scaled_linear",
  beta_start: 0.00085,
  beta_end: 0.012,
  steps_offset: 1,
  set_alpha_to_one: false,
  clip_sample: false,
} as const;

function video(options: TextToVideoOptions = {}): Promise<Float32Array> {
  return latentsOf(textToVideo(sd, PROMPT, { ...QUICK, ...options }));
}

const CELLS = 8 * 8;

function frame(latents: Float32Array, k: number): Float32Array {
  const size = 4 * CELLS;
  return latents.slice(k * size, (k + 1) * size);
}

const plain = await video();

describe("motion field", () => {
  it("shifts by the published table", () => {
    const shifts = (w: number, strength: number) =>
      [0, 1, 2, 3, 4, 5, 6, 7, 8].map((k) => k && shiftInCells(strength * k, w));
    assert.deepEqual(shifts(64, 12), [0, 1, 3, 4, 6, 7, 9, 10, 12]);
    assert.deepEqual(shifts(64, -12), [0, -2, -3, -5, -6, -8, -9, -11, -12]);
    assert.deepEqual(shifts(64, 4), [0, 0, 1, 1, 2, 2, 3, 3, 4]);
    assert.deepEqual(shifts(96, 12), [0, 2, 4, 7, 9, 11, 13, 16, 18]);
    assert.deepEqual(shifts(128, 12), [0, 3, 6, 9, 12, 15, 18, 21, 24]);
  });

  it("mirrors the border with its edge repeated", () => {
    assert.deepEqual([...mirroredIndexes(4, 0)], [0, 1, 2, 3]);
    assert.deepEqual([...mirroredIndexes(4, 2)], [2, 3, 3, 2]);
    assert.deepEqual([...mirroredIndexes(4, -3)], [2, 1, 0, 0]);
    assert.deepEqual([...mirroredIndexes(4, 9)], [1, 2, 3, 3]);
  });

  it("equals the reference's four steps: flow, resize, normalise, sample", async () => {
    const random = new Generator(1);
    for (
      const [h, w, x, y, k] of [[16, 24, 40, -24, 1], [32, 16, -12, 5, 4], [8, 8, 200, 300, 2]]
    ) {
      const latents = device.tensor(random.randn([1, 2, h, w]), [1, 2, h, w]);
      const grid = new Float32Array(2 * 512 * 512);
      for (let v = 0; v < 512; v++) {
        for (let u = 0; u < 512; u++) {
          grid[v * 512 + u] = 2 * Math.fround((u + x * k) / 512) - 1;
          grid[512 * 512 + v * 512 + u] = 2 * Math.fround((v + y * k) / 512) - 1;
        }
      }
      const literal = device.scope(() => {
        const full = device.tensor(grid, [1, 2, 512, 512]);
        const small = interpolate(full, { size: [h, w], mode: "bilinear" });
        return { small, latents };
      });
      const flat = await literal.small.data();
      const last = new Float32Array(2 * h * w);
      for (let i = 0; i < h * w; i++) last.set([flat[i], flat[h * w + i]], 2 * i);
      const want = device.scope(() =>
        gridSample(latents, device.tensor(last, [1, h, w, 2]), {
          mode: "nearest",
          paddingMode: "reflection",
          alignCorners: false,
        })
      );
      const got = warpLatents(latents, k, { x, y });
      assert.deepEqual(await got.data(), await want.data(), `${h}×${w} by ${x}, ${y} at ${k}`);
      for (const t of [latents, literal.small, want, got]) t.dispose();
    }
  });
});

describe("the noise schedule", () => {
  it("has the published jump from 881 to 941", () => {
    assert.ok(Math.abs(forwardAlphaProduct(SD15, 881, 941) - 0.5310644) < 1e-6);
    const ddim = createScheduler("ddim", SD15);
    ddim.setTimesteps(50);
    assert.deepEqual([ddim.timesteps[0], ddim.timesteps[2], ddim.timesteps[49]], [981, 941, 1]);
  });
});

describe("text to video", () => {
  it("with one frame is text to image", async () => {
    const image = await latentsOf(textToImage(sd, PROMPT, { steps: 4, seed: 5, ...SMALL }));
    assert.deepEqual(await video({ frames: 1 }), image);
    const named = await latentsOf(
      textToVideo(sd, PROMPT, { steps: 4, seed: 5, frames: 1, ...SMALL }),
    );
    assert.deepEqual(named, image);
  });

  it("does not depend on how many frames are made, nor on their grouping", async () => {
    const three = await video({ rows: 2 });
    const five = await video({ frames: 5, rows: 6 });
    for (let k = 0; k < 3; k++) assert.deepEqual(frame(five, k), frame(three, k));
    // Guidance rows one by one may take other kernels, and so round otherwise.
    const single = await video({ rows: 1 });
    single.forEach((v, i) => assert.ok(Math.abs(v - three[i]) < 1e-3, `${i}: ${v}, ${three[i]}`));
    const chosen = await video({ frames: undefined, frameIds: [0, 4, 2] });
    assert.deepEqual(frame(chosen, 1), frame(five, 4));
    assert.deepEqual(frame(chosen, 2), frame(five, 2));
  });

  it("gives the same numbers for the same seed, and others for another", async () => {
    assert.deepEqual(await video(), plain);
    assert.notDeepEqual(await video({ seed: 6 }), plain);
  });

  it("without motion and noise repeats the first frame's past", async () => {
    // With nothing moved and no noise added, all other frames begin, and stay, equal.
    const noise = device.tensor(new Float32Array(2 * 4 * CELLS), [2, 4, 8, 8]);
    const still = await video({ motion: false, noise });
    assert.deepEqual(frame(still, 1), frame(still, 2));
    noise.dispose();
  });

  it("runs without guidance, with one row a frame", async () => {
    const one = await video({ guidanceScale: 1 });
    const zero = await video({ guidanceScale: 0 });
    assert.deepEqual(one, zero);
    assert.ok(one.every(Number.isFinite));
    assert.notDeepEqual(one, plain);
  });

  it("changes the other frames, not the first, when cross-frame attention is off", async () => {
    const off = await video({ crossFrame: false });
    const far = (a: Float32Array, b: Float32Array) =>
      Math.max(...a.map((value, i) => Math.abs(value - b[i])));
    assert.ok(far(frame(plain, 0), frame(off, 0)) < 1e-4);
    assert.ok(far(frame(plain, 1), frame(off, 1)) > 1e-2);
  });

  it("draws as diffusers does when asked", async () => {
    const generator = new Generator(9);
    const xT = generator.randn([1, 4, 8, 8]);
    const e = generator.randn([2, 4, 8, 8]);
    const latents = device.tensor(xT, [1, 4, 8, 8]);
    const noise = device.tensor(e, [2, 4, 8, 8]);
    const given = await video({ latents, noise, compat: "diffusers" });
    assert.deepEqual(await video({ seed: 9, compat: "diffusers" }), given);
    latents.dispose();
    noise.dispose();
  });

  it("works with every scheduler", async () => {
    const names = ["ddpm", "pndm", "euler", "euler-a", "lms", "dpm++", "unipc", "lcm"];
    for (const scheduler of names) {
      const latents = await video({ scheduler, frames: 2 });
      assert.ok(latents.every(Number.isFinite), scheduler);
    }
  });

  it("needs the same memory for many frames as for few", async () => {
    const peak = async (frames: number) => {
      device.trim();
      device.resetPeak();
      const clip = textToVideo(sd, PROMPT, { ...QUICK, steps: 2, t0: 0, t1: 1, frames, rows: 4 });
      for await (const { width } of clip) assert.equal(width, 64);
      clip.dispose();
      return device.memory().peak;
    };
    const few = await peak(3);
    const many = await peak(9);
    assert.ok(many <= 1.02 * few, `${many} bytes for 9 frames, ${few} for 3`);
  });

  it("gives all memory back, also when it is stopped half-way", async () => {
    const before = device.memory().live;
    await video();
    assert.equal(device.memory().live, before);

    const dropped = textToVideo(sd, PROMPT, QUICK);
    for await (const { step } of dropped.steps) if (step === 3) break;
    dropped.dispose();
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(device.memory().live, before);

    const controller = new AbortController();
    const aborted = textToVideo(sd, PROMPT, { ...QUICK, signal: controller.signal });
    await assert.rejects(async () => {
      for await (const { step } of aborted.steps) if (step === 3) controller.abort();
    }, { name: "AbortError" });
    aborted.dispose();
    assert.equal(device.memory().live, before);
  });

  it("reports its steps in order, and its settings", async () => {
    const clip = textToVideo(sd, PROMPT, QUICK);
    const seen: string[] = [];
    for await (const { phase, step, total, latents } of clip.steps) {
      seen.push(`${phase} ${step}/${total} ${latents.shape[0]}`);
    }
    assert.deepEqual(seen, [
      "anchor 1/5 1",
      "anchor 2/5 1",
      "frames 3/5 3",
      "frames 4/5 3",
      "frames 5/5 3",
    ]);
    assert.equal(clip.settings.prompt, PROMPT);
    assert.deepEqual(clip.settings.frameIds, [0, 1, 2]);
    assert.deepEqual([clip.width, clip.height], [64, 64]);
    clip.dispose();
  });

  it("warns of words that the text encoder cannot take", async () => {
    const clip = textToImage(sd, `${"red ".repeat(90)}circle`, { steps: 1, ...SMALL });
    await clip.latents();
    assert.match(clip.warnings[0], /longer than 75 tokens; left out: ".*circle"/);
    clip.dispose();
  });

  it("takes other sizes, and refuses what is no whole cell", async () => {
    const clip = textToVideo(sd, PROMPT, { ...QUICK, frames: 2, width: 104, height: 72 });
    assert.deepEqual((await clip.latents()).shape, [2, 4, 9, 13]);
    for await (const { width, height } of clip) assert.deepEqual([width, height], [104, 72]);
    clip.dispose();
    assert.throws(() => textToVideo(sd, PROMPT, { width: 100 }), /multiple of 8.*got 100; try 104/);
  });

  const wrong: [TextToVideoOptions & { prompt?: string }, RegExp][] = [
    [{ prompt: "  " }, /prompt is empty/],
    [{ frames: 0 }, /frames must be a whole number of at least 1, got 0/],
    [{ frames: 2.5 }, /frames/],
    [{ frames: NaN }, /frames.*NaN/],
    [{ frames: -3 }, /frames/],
    [{ steps: 0 }, /steps/],
    [{ steps: Infinity }, /steps/],
    [{ width: -8 }, /width/],
    [{ height: 0 }, /height/],
    [{ guidanceScale: NaN }, /guidanceScale/],
    [{ guidanceScale: -1 }, /guidanceScale must be a number of at least 0, got -1/],
    [{ eta: 2 }, /eta/],
    [{ t0: 30, t1: 20, steps: 50 }, /t0 < t1 < 50.*t0 = 30 and t1 = 20/],
    [{ t0: 20, t1: 20 }, /t0 < t1/],
    [{ t1: 50, steps: 50 }, /t0 < t1 < 50/],
    [{ t0: -1 }, /t0/],
    [{ motionFieldStrengthX: Infinity }, /motionFieldStrengthX/],
    [{ frameIds: [] }, /frameIds/],
    [{ frameIds: [0, -1] }, /frameIds/],
    [{ frameIds: [0, 1], frames: 3 }, /frames is 3, but frameIds lists 2/],
    [{ scheduler: "magic" }, /magic/],
    [{ rows: 0 }, /rows/],
    [{ seed: 0.5 }, /seed/],
  ];
  for (const [{ prompt = PROMPT, ...options }, message] of wrong) {
    it(`refuses ${JSON.stringify({ prompt, ...options })}`, () => {
      assert.throws(
        () => textToVideo(sd, prompt, options),
        (error: unknown) => error instanceof InputError && message.test(error.message),
      );
    });
  }

  it("refuses latents and noise of another shape", () => {
    const one = mul(device.tensor([1], [1]), 1);
    assert.throws(() => textToVideo(sd, PROMPT, { latents: one }), /latents must have shape/);
    assert.throws(() => textToVideo(sd, PROMPT, { noise: one }), /noise must have shape/);
    one.dispose();
  });
});
