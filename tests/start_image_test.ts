/**
 * Start images on the built-in model: image to image, and videos that begin at a picture.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { mul } from "../kernels/mod.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { alphasCumprod, createScheduler } from "../schedulers/mod.ts";
import { decodeFrame, toFrame } from "../video/clip.ts";
import { invertPicture } from "../video/inversion.ts";
import { denoise, schedulerFor, settle } from "../video/generation.ts";
import { GuidedUNet } from "../video/guided_unet.ts";
import { noisePerFrame } from "../video/noise.ts";
import { timestepsFrom } from "../video/start_image.ts";
import { textToImage, type TextToImageOptions } from "../video/text_to_image.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import {
  encodedPicture,
  framesOf,
  largest,
  MASK,
  PICTURE,
  psnr,
  resultOf,
  SMALL,
  SMALL_PICTURE,
} from "./start_image_setup.ts";
import { latentsOf } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

const PROMPT = "a red circle on a white background";
const VIDEO = { steps: 6, t0: 2, t1: 3, frames: 3, seed: 5 } as const;

const image = (options: TextToImageOptions = {}) =>
  latentsOf(textToImage(sd, PROMPT, { steps: 4, seed: 5, ...options }));
const video = (options: TextToVideoOptions = {}) =>
  latentsOf(textToVideo(sd, PROMPT, { ...VIDEO, image: PICTURE, ...options }));

describe("image to image", () => {
  it("makes the last ⌊strength · steps⌋ steps of every scheduler", () => {
    const left = (name: string, steps: number, strength: number) => {
      const scheduler = createScheduler(name, { steps_offset: 1, skip_prk_steps: true });
      scheduler.setTimesteps(steps);
      return timestepsFrom(scheduler, steps, strength);
    };
    assert.deepEqual(left("ddim", 5, 1), [801, 601, 401, 201, 1]);
    assert.deepEqual(left("ddim", 5, 0.99), [601, 401, 201, 1]);
    assert.deepEqual(left("ddim", 5, 0.4), [201, 1]);
    assert.deepEqual(left("ddim", 5, 0.19), []);
    assert.equal(left("ddim", 50, 0.8).length, 40);
    assert.deepEqual(left("pndm", 5, 1), [801, 601, 601, 401, 201, 1]);
    assert.deepEqual(left("pndm", 5, 0.8), [601, 401, 201, 1]);
    assert.deepEqual(left("pndm", 5, 0), []);
    const heun = left("heun", 5, 0.6);
    assert.equal(heun.length, 5);
    assert.deepEqual([heun[1], heun[3]], [heun[2], heun[4]]);
  });

  it("at strength 0 gives the picture back, as the autoencoder has it", async () => {
    assert.deepEqual(await image({ image: PICTURE, strength: 0 }), await encodedPicture(sd));
    const [frame] = await framesOf(textToImage(sd, PROMPT, { image: PICTURE, strength: 0 }));
    assert.ok(psnr(PICTURE, frame) > 27, `${psnr(PICTURE, frame)} dB`);
  });

  it("at strength 1 is text to image", async () => {
    assert.deepEqual(
      await image({ ...SMALL, image: SMALL_PICTURE, strength: 1 }),
      await image(SMALL),
    );
  });

  it("begins at the picture with the noise of its first step", async () => {
    const clip = textToImage(sd, PROMPT, { steps: 4, seed: 5, image: PICTURE, strength: 0.5 });
    const [clean, alphas] = [await encodedPicture(sd), alphasCumprod(sd.schedulerConfig)];
    const noise = new Generator(5).randn([1, 4, 16, 16]);
    const scheduler = createScheduler("ddim", sd.schedulerConfig);
    scheduler.setTimesteps(4);
    const timesteps: number[] = [];
    for await (const { timestep, step, total, noisePrediction, latents } of clip.steps) {
      timesteps.push(timestep);
      assert.deepEqual([step, total], [timesteps.length, 2]);
      if (step > 1) continue;
      const alpha = alphas[timestep];
      const start = clean.map((z, i) => Math.sqrt(alpha) * z + Math.sqrt(1 - alpha) * noise[i]);
      const next = device.scope(() => {
        const x = device.tensor(start, [1, 4, 16, 16]);
        return scheduler.step(noisePrediction, timestep, x).prevSample;
      });
      assert.ok(largest(await latents.data(), await next.data()) < 1e-5);
      next.dispose();
    }
    assert.deepEqual(timesteps, [251, 1]);
    assert.equal(clip.settings.strength, 0.5);
    clip.dispose();
  });

  it("stays nearer to the picture the less it is left behind", async () => {
    const far = async (strength: number) => {
      const options = { image: PICTURE, strength, steps: 10, seed: 1 };
      const [frame] = await framesOf(textToImage(sd, "a blue star on a white background", options));
      return psnr(PICTURE, frame);
    };
    const [little, much] = [await far(0.1), await far(0.9)];
    assert.ok(little > 25 && little > much + 3, `${little} dB, ${much} dB`);
  });

  it("works with every scheduler, and says what it cuts off", async () => {
    for (const scheduler of ["pndm", "euler-a", "heun", "dpm++", "unipc", "lcm"]) {
      const latents = await image({ ...SMALL, image: SMALL_PICTURE, strength: 0.6, scheduler });
      assert.ok(latents.every(Number.isFinite), scheduler);
    }
    const clip = textToImage(sd, PROMPT, { steps: 1, width: 64, height: 128, image: PICTURE });
    assert.match(
      clip.warnings[0],
      /128x128 has another aspect than 64x128: only the middle 64x128/,
    );
    clip.dispose();
  });

  it("refuses what makes no sense", () => {
    const wide = { ...PICTURE, width: 256, height: 64 };
    const wrong: [TextToImageOptions, RegExp][] = [
      [{ strength: 0.5 }, /strength is about a start image; give one/],
      [{ mask: MASK }, /mask is about a start image/],
      [{ image: PICTURE, strength: 1.5 }, /strength must be a number of at least 0 and at most 1/],
      [{ image: PICTURE, strength: NaN }, /strength.*NaN/],
      [{ image: { ...PICTURE, width: 100 } }, /must hold 38400 bytes of RGB/],
      [{ image: PICTURE, mask: wide }, /size of its picture, 128x128; this one is 256x64/],
    ];
    for (const [options, message] of wrong) {
      assert.throws(
        () => textToImage(sd, PROMPT, options),
        (error: unknown) => error instanceof InputError && message.test(error.message),
      );
    }
  });
});

describe("a video from a start image", () => {
  it("inverts the picture, and DDIM without guidance makes it again", async () => {
    const settled = settle(sd, PROMPT, { steps: 25, guidanceScale: 1 });
    const { hiddenStates } = sd.encodePrompt([PROMPT]);
    const path = await resultOf(
      invertPicture(sd, PICTURE, hiddenStates, settled, { steps: 16, total: 16 }),
    );
    const scheduler = schedulerFor(sd, settled);
    const timesteps = scheduler.timesteps.slice(-16);
    const options = { guidanceScale: 1, crossFrame: false };
    const unet = new GuidedUNet(sd.unet, hiddenStates, [16, 16], options);
    hiddenStates.dispose();
    const start = device.scope(() => mul(path.at(timesteps[0]), 1)).keep();
    const sampler = { unet, scheduler, noise: noisePerFrame(0, [0]), eta: 0 };
    const again = await resultOf(
      denoise(sampler, start, timesteps, { phase: "frames", before: 0, total: 16 }),
    );
    const decode = async (latents: Tensor) =>
      toFrame(await decodeFrame(sd, latents, 0, []), 128, 128);
    const near = psnr(await decode(path.at()), await decode(again));
    assert.ok(near > 30, `${near} dB`);
    assert.throws(() => path.at(timesteps[0] + 40), /not inverted to timestep 641/);
    again.dispose();
    unet.dispose();
    path[Symbol.dispose]();
  });

  it("begins with the picture, and the other frames follow it", async () => {
    const still = { image: PICTURE, ...VIDEO, motionFieldStrengthX: 0, motionFieldStrengthY: 0 };
    const frames = await framesOf(textToVideo(sd, PROMPT, still));
    const none = { ...still, image: undefined, frames: 1 };
    const [plain] = await framesOf(textToVideo(sd, PROMPT, none));
    const [first, ...others] = frames.map((frame) => psnr(PICTURE, frame));
    assert.ok(first > 27, `${first} dB`);
    for (const other of others) {
      assert.ok(
        other > psnr(PICTURE, plain) + 3,
        `${others} dB, without it ${psnr(PICTURE, plain)}`,
      );
    }
    const encoded = await encodedPicture(sd, SMALL_PICTURE);
    const small = { ...SMALL, image: SMALL_PICTURE };
    assert.deepEqual((await video(small)).slice(0, 256), encoded);
    assert.deepEqual(await video({ ...small, frames: 1 }), encoded);
  });

  it("counts the steps of the inversion, and gives all memory back", async () => {
    const before = device.memory().live;
    const clip = textToVideo(sd, PROMPT, { ...VIDEO, ...SMALL, image: SMALL_PICTURE });
    const seen: string[] = [];
    for await (const { phase, step, total, timestep } of clip.steps) {
      seen.push(`${phase} ${step}/${total} ${timestep}`);
    }
    assert.deepEqual(seen, [
      ...["inversion 1/8 1", "inversion 2/8 167", "inversion 3/8 333", "inversion 4/8 499"],
      ...["frames 5/8 499", "frames 6/8 333", "frames 7/8 167", "frames 8/8 1"],
    ]);
    clip.dispose();
    assert.equal(device.memory().live, before);
    for (const stop of [2, 6]) {
      const dropped = textToVideo(sd, PROMPT, { ...VIDEO, ...SMALL, image: SMALL_PICTURE });
      for await (const { step } of dropped.steps) if (step === stop) break;
      dropped.dispose();
      await new Promise((resolve) => setTimeout(resolve, 20));
      assert.equal(device.memory().live, before, `stopped at ${stop}`);
    }
  });

  it("needs DDIM, and one first frame", () => {
    assert.throws(
      () => textToVideo(sd, PROMPT, { image: PICTURE, scheduler: "euler" }),
      /needs the scheduler ddim.*got euler/,
    );
    const latents = device.tensor(new Float32Array(1024), [1, 4, 16, 16]);
    assert.throws(
      () => textToVideo(sd, PROMPT, { image: PICTURE, latents }),
      /both are the first frame/,
    );
    latents.dispose();
  });
});
