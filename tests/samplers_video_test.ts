/**
 * Samplers within pictures and videos: histories, the jump to T1, spacing, guidance rescale, and
 * what is warned of.
 *
 * @module
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { InputError } from "../core/errors.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { createScheduler } from "../schedulers/mod.ts";
import { textToImage } from "../video/text_to_image.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { assertClose, type Config, device } from "./schedulers_setup.ts";
import { latentsOf } from "./clips.ts";

const sd = await StableDiffusion.load(undefined, { device });
after(() => sd.dispose());

const PROMPT = "a red heart in a green meadow";

const SMALL = { width: 64, height: 64 } as const;
const QUICK = { steps: 5, t0: 1, t1: 2, seed: 5, ...SMALL } as const;
const FRAME = 4 * 8 * 8;

test("the first frame of a video is the picture, with every kind of history", async () => {
  for (const scheduler of ["pndm", "lms", "heun", "dpm++ karras", "unipc"]) {
    const { steps, seed } = QUICK;
    const image = await latentsOf(textToImage(sd, PROMPT, { steps, seed, scheduler, ...SMALL }));
    const video = await latentsOf(textToVideo(sd, PROMPT, { ...QUICK, scheduler, frames: 2 }));
    assertClose(video.slice(0, FRAME), image, { atol: 2e-4, rtol: 2e-4 }, scheduler);
  }
});

test("other frames begin a history of their own", async () => {
  let atT1 = new Float32Array();
  const copies: Promise<void>[] = [];
  const clip = textToVideo(sd, PROMPT, {
    ...QUICK,
    frames: 2,
    scheduler: "dpm++",
    onIntermediate(name, value) {
      if (!("data" in value) || (name !== "x_1_t1" && name !== "x_2k_t1")) return;
      copies.push(value.data().then((data) => void (atT1 = Float32Array.of(...atT1, ...data))));
    },
  });
  for await (const { phase, timestep, noisePrediction, latents } of clip.steps) {
    if (phase === "anchor") continue;
    await Promise.all(copies);
    const fresh = createScheduler("dpm++", sd.schedulerConfig as Config);
    fresh.setTimesteps(QUICK.steps);
    const x = device.tensor(atT1, latents.shape);
    const first = fresh.step(noisePrediction, timestep, x).prevSample;
    const [want, got] = [await first.data(), await latents.data()];
    for (const tensor of [x, first]) tensor.dispose();
    fresh.reset();
    assertClose(got.slice(FRAME), want.slice(FRAME), { atol: 1e-5, rtol: 1e-5 }, "frame 1");
    const apart = want.slice(0, FRAME).map((value, i) => Math.abs(value - got[i]));
    assert.ok(Math.max(...apart) > 1e-2, "the first frame remembers");
    break;
  }
  clip.dispose();
});

/** What the second frame is at T1, and at which timesteps T0 and T1 lie. */
async function jump(options: TextToVideoOptions): Promise<{ t: number[]; noisy: Float32Array }> {
  const ones = device.tensor(new Float32Array(FRAME).fill(1), [1, 4, 8, 8]);
  let t: number[] = [];
  let copies: Promise<Float32Array>[] = [];
  const clip = textToVideo(sd, PROMPT, {
    ...QUICK,
    frames: 2,
    noise: ones,
    onIntermediate(name, value) {
      if (name === "t0_t1" && Array.isArray(value)) t = [...value];
      if ((name === "x_2k_t0_warped" || name === "x_2k_t1") && "data" in value) {
        copies = [...copies, value.data()];
      }
    },
    ...options,
  });
  for await (const { phase } of clip.steps) if (phase === "frames") break;
  clip.dispose();
  ones.dispose();
  const [warped, noised] = await Promise.all(copies);
  assert.equal(warped.length, noised.length);
  return { t, noisy: noised.map((value, i) => value - warped[i]) };
}

test("the forward noise in σ-space is √(σ₁² − σ₀²), at the sampler's own levels", async () => {
  for (const scheduler of ["euler", "euler karras", "heun"]) {
    const { t: [T0, T1], noisy } = await jump({ scheduler });
    const own = createScheduler(scheduler, sd.schedulerConfig as Config);
    own.setTimesteps(QUICK.steps);
    const sigma = (t: number) => (own.sigmas ?? [])[own.timesteps.indexOf(t)];
    const want = Math.sqrt(sigma(T1) ** 2 - sigma(T0) ** 2);
    assertClose(noisy, new Float32Array(FRAME).fill(want), { atol: 1e-4, rtol: 1e-4 }, scheduler);
  }
});

test("t0 and t1 count whole steps where a step calls the model twice", async () => {
  const timesteps = async (scheduler: string) => (await jump({ scheduler })).t;
  assert.deepEqual(await timesteps("heun"), await timesteps("euler"));
});

test("the timestep spacing is heeded", async () => {
  const first = async (timestepSpacing?: "leading" | "trailing" | "linspace") => {
    const clip = textToImage(sd, PROMPT, { steps: 2, timestepSpacing, ...SMALL });
    for await (const { timestep } of clip.steps) {
      clip.dispose();
      return timestep;
    }
  };
  assert.equal(await first(), 501);
  assert.equal(await first("trailing"), 999);
  assert.equal(await first("linspace"), 999);
});

test("the guidance rescale changes the picture, and its bounds are kept", async () => {
  const image = (guidanceRescale: number) =>
    latentsOf(textToImage(sd, PROMPT, { steps: 2, guidanceRescale, ...SMALL }));
  const [plain, rescaled] = [await image(0), await image(0.7)];
  assert.ok(rescaled.every(Number.isFinite));
  assert.notDeepEqual(plain, rescaled);
  assert.throws(() => textToImage(sd, PROMPT, { guidanceRescale: 1.5 }), /guidanceRescale must be/);
});

test("choices that are known to break a method are warned of", () => {
  const warned = (options: TextToVideoOptions) => {
    const clip = textToVideo(sd, PROMPT, { frames: 2, steps: 50, ...options });
    clip.dispose();
    return clip.warnings;
  };
  const cases: readonly (readonly [TextToVideoOptions, RegExp])[] = [
    [{ scheduler: "euler", eta: 0.5 }, /eta is heeded by ddim alone; euler ignores it/],
    [{ guidanceRescale: 0.7, guidanceScale: 1 }, /rescale does nothing without guidance/],
    [{ scheduler: "lms", steps: 20 }, /lms with guidance may miss .* fewer than 40 steps/],
    [{ scheduler: "pndm", steps: 20 }, /pndm with guidance/],
    [{ scheduler: "lcm", steps: 4 }, /made for models distilled for it/],
    [{ scheduler: "lcm", steps: 4, timestepSpacing: "trailing" }, /spacing is ignored/],
    [{ scheduler: "Euler a" }, /Euler a draws fresh noise for each frame.*ddim keeps/],
    [{ eta: 1 }, /ddim draws fresh noise .* set eta to 0/],
    [{ scheduler: "heun", compat: "diffusers" }, /the numbers differ/],
  ];
  for (const [options, message] of cases) {
    const warnings = warned(options);
    assert.ok(warnings.some((text) => message.test(text)), `${message}: ${warnings.join("; ")}`);
  }
  for (const scheduler of ["ddim", "pndm", "euler", "lms", "heun", "dpm++", "unipc"]) {
    assert.deepEqual(warned({ scheduler }), [], scheduler);
  }
  assert.deepEqual(warned({ scheduler: "euler-a", frames: 1 }), []);
});

test("samplers and spacings that cannot make pictures are refused", () => {
  const refuse = (options: TextToVideoOptions, message: RegExp) =>
    assert.throws(
      () => textToVideo(sd, PROMPT, options),
      (error: unknown) => error instanceof InputError && message.test(error.message),
    );
  refuse({ scheduler: "magic" }, /no scheduler "magic"; choose one of ddim, /);
  refuse({ scheduler: "DDIMInverse" }, /leads back; choose ddim/);
  refuse({ scheduler: "lcm", steps: 51 }, /from 1 to 50, got 51/);
  refuse({ scheduler: "heun", steps: 10, t0: 8, t1: 10 }, /t0 < t1 < 10/);
  const wrong: TextToVideoOptions = Object.fromEntries([["timestepSpacing", "uniform"]]);
  refuse(wrong, /timestepSpacing must be one of leading, trailing, linspace, got uniform/);
});
