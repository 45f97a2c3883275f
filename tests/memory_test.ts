/**
 * Small memory: what is done to stay within a budget, and that it does not change the picture.
 */

import assert from "node:assert/strict";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { type Device, openDevice } from "../core/device.ts";
import { MemoryError } from "../core/errors.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { memoryNeeded, outlineOf } from "../video/memory.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { run } from "./cli_run.ts";
import { latentsOf } from "./clips.ts";

const PROMPT = "a red heart in a green meadow";
const QUICK = { steps: 2, t0: 0, t1: 1, frames: 4, seed: 5, width: 64, height: 64 } as const;
const MiB = 2 ** 20;

const opened: Device[] = [];
after(async () => {
  for (const device of opened) await device.close();
});

async function openTiny(memoryBudget?: number): Promise<StableDiffusion> {
  const device = await openDevice({ memoryBudget, poolBytes: 0 });
  opened.push(device);
  return await StableDiffusion.load(undefined, { device });
}

function latents(sd: StableDiffusion, options: TextToVideoOptions): Promise<Float32Array> {
  return latentsOf(textToVideo(sd, PROMPT, { ...QUICK, ...options }));
}

function largest(a: Float32Array, b: Float32Array): number {
  return a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i])), 0);
}

describe("a memory budget", () => {
  it("makes groups smaller until they fit, with the same result", async () => {
    const free = await openTiny();
    const loaded = free.device.memory().live;
    const want = await latents(free, {});
    const wide = free.device.memory().peak;
    free.device.resetPeak();
    await latents(free, { rows: 1 });
    const narrow = free.device.memory().peak;
    assert.ok(narrow < wide, `rows 1: ${narrow} bytes, default: ${wide}`);
    for (const budget of [Math.ceil(narrow * 1.02), Math.ceil((narrow + wide) / 2)]) {
      const tight = await openTiny(budget);
      const got = await latents(tight, {});
      const { peak } = tight.device.memory();
      assert.ok(peak <= budget, `${peak} of ${budget} bytes`);
      await tight.restoreTextEncoder();
      assert.equal(tight.device.memory().live, loaded);
      assert.ok(largest(got, want) < 1e-3, `${largest(got, want)}`);
    }
  });

  it("releases the text encoder when memory is short, and loads it for the next prompt", async () => {
    // Large enough that the peak is the UNet's, with the text encoder still there.
    const size = { width: 128, height: 128, frames: 2 };
    const free = await openTiny();
    const { device } = free;
    const want = await latents(free, { ...size, rows: 1 });
    const { peak, live } = device.memory();
    assert.equal(free.releaseTextEncoder(), true);
    const encoder = live - device.memory().live;
    assert.equal(free.releaseTextEncoder(), false);
    assert.throws(() => free.encodePrompt(["a heart"]), /restoreTextEncoder/);
    const tight = await openTiny(peak - Math.floor(encoder / 2));
    for (const _ of [1, 2]) {
      const got = await latents(tight, size);
      assert.ok(largest(got, want) < 1e-3, `${largest(got, want)}`);
      assert.equal(tight.device.memory().live, live - encoder);
    }
  });

  it("is found in advance, to the byte", async () => {
    const like = await openTiny();
    const outline = outlineOf(like);
    for (const options of [{ rows: 8 }, { rows: 1, frames: 3, width: 192 }]) {
      const make = (sd: StableDiffusion) => textToVideo(sd, PROMPT, { ...QUICK, ...options });
      const needed = await memoryNeeded(outline, like.device, make);
      const real = await openTiny(needed);
      const clip = make(real);
      for await (const _ of clip) break;
      clip.dispose();
      assert.equal(real.device.memory().peak, needed);
    }
  });

  it("that no group fits is an error, and leaves nothing behind", async () => {
    const free = await openTiny();
    const { live } = free.device.memory();
    const tight = await openTiny(live + MiB);
    await assert.rejects(latents(tight, {}), MemoryError);
    assert.equal(tight.device.memory().live, live);
    await assert.rejects(latents(tight, { rows: 2 }), MemoryError);
    assert.equal(tight.device.memory().live, live);
  });
});

describe("--memory", () => {
  it("too small names the budget that fits, and that one does", async () => {
    const folder = await mkdtemp(join(tmpdir(), "framezero-memory-"));
    const video = ["a red heart", "--steps", "2", "--frames", "2", "-o", join(folder, "a.png")];
    try {
      const short = await run([...video, "--memory", "24MB"]);
      assert.equal(short.code, 1, short.stderr);
      const [, fits] = /With --memory (\d+MB) it would fit/.exec(short.stderr) ?? [];
      assert.ok(fits, short.stderr);
      assert.deepEqual(await readdir(folder), []);
      const enough = await run([...video, "--memory", fits]);
      assert.equal(enough.code, 0, enough.stderr);
      assert.match(enough.stderr, /of GPU memory at most, of [\d.]+ MB allowed/);
      const none = await run([...video, "--overwrite", "--memory", "10MB"]);
      assert.match(none.stderr, /its weights take 15\.1 MiB in f32, 7\.6 MiB in f16/);
      const wrong = await run([...video, "--memory", "six"]);
      assert.equal(wrong.code, 2);
      assert.match(wrong.stderr, /It must be a size, such as 6GB/);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe("the autoencoder in bands", () => {
  const [h, w] = [12, 20];
  const wave = (size: number) => Float32Array.from({ length: size }, (_, i) => Math.sin(i * i));

  it("gives the whole picture, in less memory", async () => {
    const { device, vae } = await openTiny();
    const latents = device.tensor(wave(4 * h * w), [1, 4, h, w]);
    const image = device.tensor(wave(3 * 64 * h * w), [1, 3, 8 * h, 8 * w]);
    const peakOf = async (bandBytes: number) => {
      device.resetPeak();
      const decoded = vae.decode(latents, { bandBytes });
      const moments = device.scope(() => vae.encode(image, { bandBytes }).moments);
      const values = [await decoded.data(), await moments.data()];
      decoded.dispose();
      moments.dispose();
      return { peak: device.memory().peak, values };
    };
    const whole = await peakOf(Infinity);
    const live = device.memory().live;
    for (const rows of [64, 24, 8]) {
      const bands = await peakOf(rows * 8 * w * 4 * vae.config.blockOutChannels[0]);
      bands.values.forEach((values, i) => {
        assert.ok(largest(values, whole.values[i]) < 1e-4, `${largest(values, whole.values[i])}`);
      });
      assert.ok(bands.peak < whole.peak, `${bands.peak} of ${whole.peak} bytes`);
      assert.equal(device.memory().live, live);
    }
  });
});
