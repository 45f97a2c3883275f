/**
 * Video Instruct-Pix2Pix on a tiny model: the reference run, noise, frames, models, refusals.
 */

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { formatResult, runPaths } from "../bench/parity/runner.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { encodeSafetensors } from "../core/safetensors.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Frame } from "../video/frame.ts";
import {
  encodeVideo,
  videoInstructPix2Pix,
  type VideoInstructPix2PixOptions,
} from "../video/instruct_pix2pix.ts";
import { memoryNeeded, outlineOf } from "../video/memory.ts";
import { textToImage } from "../video/text_to_image.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { run } from "./cli_run.ts";
import { latentsOf } from "./clips.ts";
import { framesOf, largest } from "./start_image_setup.ts";
import { barClip, editor, INSTRUCTION } from "./tiny_edit_model.ts";
import { TINY, tinySingleFile } from "./tiny_single_file.ts";

const { device, sd, folder, root } = await editor();

const QUICK = { steps: 2, seed: 3 } as const;
const BARS = barClip(3);

function edit(options: Partial<VideoInstructPix2PixOptions> = {}): Promise<Float32Array> {
  return latentsOf(videoInstructPix2Pix(sd, INSTRUCTION, { video: BARS, ...QUICK, ...options }));
}

function frame(latents: Float32Array, k: number): Float32Array {
  const size = 4 * 8 * 8;
  return latents.slice(k * size, (k + 1) * size);
}

async function* oneByOne(frames: readonly Frame[], seen: (id: number) => void = () => {}) {
  for (const [id, picture] of frames.entries()) {
    await Promise.resolve();
    seen(id);
    yield picture;
  }
}

describe("video instruct-pix2pix", () => {
  it("agrees with the authors' code", async () => {
    const golden = fileURLToPath(new URL("./golden", import.meta.url));
    const filter = /^t2v_zero_tiny.*:orig_instruct_pix2pix$/;
    const results: string[] = [];
    for await (const result of runPaths([golden], { device, dtype: "f32", filter })) {
      results.push(result.status === "ok" ? "ok" : formatResult(result));
    }
    assert.deepEqual(results, ["ok"]);
  });

  it("keeps still what is still, unless every frame has its own noise", async () => {
    const video = [BARS[0], BARS[0], BARS[0]];
    const shared = await edit({ video });
    for (const k of [1, 2]) assert.deepEqual(frame(shared, k), frame(shared, 0));
    const own = await edit({ video: video.slice(1), sharedNoise: false });
    assert.ok(largest(frame(own, 1), frame(own, 0)) > 0.1);
    const apart = await edit();
    assert.ok(largest(frame(apart, 1), frame(apart, 0)) > 0.01, "the video differs");
  });

  it("does not depend on how frames are grouped, nor on which others are made", async () => {
    const options = { sharedNoise: false, imageGuidanceScale: 1.5 };
    const all = await edit({ ...options, rows: 6 });
    const two = await edit({ ...options, frameIds: [0, 2], rows: 3 });
    assert.deepEqual(frame(two, 0), frame(all, 0));
    assert.deepEqual(frame(two, 1), frame(all, 2));
    // Rows one by one may take other kernels, and so round otherwise.
    const single = await edit({ ...options, frameIds: [0, 2], rows: 1 });
    assert.ok(largest(single, two) < 1e-2);
  });

  it("reads frames one at a time, and no further than asked", async () => {
    const seen: number[] = [];
    const video = oneByOne(barClip(6), (id) => seen.push(id));
    const size = { width: 64, height: 64 };
    const want = await edit();
    assert.deepEqual(await edit({ video, frames: 3, ...size }), want);
    assert.deepEqual(seen, [0, 1, 2]);
    const latents = await encodeVideo(sd, BARS, size, { frameIds: [0, 1, 2] });
    const last = await edit({ video: latents, frameIds: [0, 2] });
    assert.deepEqual(frame(last, 1), frame(want, 2));
    latents.dispose();
    await assert.rejects(
      edit({ video: oneByOne(BARS), frames: 5, ...size }),
      /frame 4 of the video was asked for, counted from 0, but it has 3/,
    );
  });

  it("of one frame draws as diffusers does for a picture", async () => {
    const one = await edit({ video: [BARS[1]] });
    assert.deepEqual(await edit({ video: [BARS[1]], compat: "original" }), one);
    const generator = new Generator(QUICK.seed);
    const latents = device.tensor(generator.randn([1, 4, 8, 8]), [1, 4, 8, 8]);
    const given = { video: [BARS[1]], latents, compat: "original", generator } as const;
    assert.deepEqual(await edit(given), one);
    latents.dispose();
  });

  it("has the size of the video, or another, which its frames cover", async () => {
    const clip = videoInstructPix2Pix(sd, INSTRUCTION, {
      ...{ video: barClip(2, 80, 56), ...QUICK, steps: 1 },
    });
    assert.deepEqual([clip.width, clip.height, clip.frameIds], [80, 56, [0, 1]]);
    const pictures = await framesOf(clip);
    assert.deepEqual(pictures.map(({ width, height }) => [width, height]), [[80, 56], [80, 56]]);
    assert.deepEqual(clip.warnings, []);
    const square = videoInstructPix2Pix(sd, INSTRUCTION, {
      ...{ video: barClip(2, 80, 56), width: 64, height: 64, ...QUICK, steps: 1 },
    });
    await square.latents();
    assert.match(square.warnings[0], /the video of 80x56 has another aspect.*middle 56x56/);
    square.dispose();
  });

  it("tells its settings and steps", async () => {
    const clip = videoInstructPix2Pix(sd, INSTRUCTION, { video: BARS, ...QUICK });
    const seen: string[] = [];
    for await (const { phase, step, total, latents } of clip.steps) {
      seen.push(`${phase} ${step}/${total} ${latents.shape}`);
    }
    assert.deepEqual(seen, ["frames 1/2 3,4,8,8", "frames 2/2 3,4,8,8"]);
    const { prompt, scheduler, imageGuidanceScale, sharedNoise, frameIds } = clip.settings;
    assert.deepEqual(
      { prompt, scheduler, imageGuidanceScale, sharedNoise, frameIds },
      {
        prompt: INSTRUCTION,
        scheduler: "euler-a",
        imageGuidanceScale: 1,
        sharedNoise: true,
        frameIds: [0, 1, 2],
      },
    );
    clip.dispose();
  });

  it("works with other schedulers, and without guidance", async () => {
    const plain = { guidanceScale: 1, video: [BARS[0]] };
    const results = new Set<string>();
    for (const scheduler of ["euler-a", "ddim", "pndm"]) {
      const latents = await edit({ ...plain, scheduler });
      assert.ok(latents.every(Number.isFinite), scheduler);
      results.add(String(latents));
    }
    assert.equal(results.size, 3);
  });

  it("gives all memory back, also when it is stopped while frames are read", async () => {
    const before = device.memory().live;
    await edit();
    assert.equal(device.memory().live, before);
    const controller = new AbortController();
    const video = oneByOne(BARS, (id) => id === 1 && controller.abort());
    const clip = videoInstructPix2Pix(sd, INSTRUCTION, {
      ...{ video, frames: 3, width: 64, height: 64, ...QUICK, signal: controller.signal },
    });
    await assert.rejects(clip.latents(), { name: "AbortError" });
    clip.dispose();
    assert.equal(device.memory().live, before);
  });

  it("is foreseen by the memory that it needs", async () => {
    const options = { ...QUICK, steps: 1, video: BARS };
    const need = await memoryNeeded(
      outlineOf(sd),
      device,
      (zeros) => videoInstructPix2Pix(zeros, INSTRUCTION, options),
    );
    assert.ok(need > 1e6 && need < 1e9, `${need}`);
  });

  const size = { width: 64, height: 64 };
  const wrong: [Partial<VideoInstructPix2PixOptions>, RegExp][] = [
    [{ imageGuidanceScale: -1 }, /imageGuidanceScale must be a number of at least 0, got -1/],
    [{ imageGuidanceScale: NaN }, /imageGuidanceScale/],
    [{ guidanceScale: -1 }, /guidanceScale/],
    [{ frames: 4 }, /frame 3 of the video was asked for, counted from 0, but it has 3/],
    [{ frameIds: [0, 7] }, /frame 7/],
    [{ frameIds: [] }, /at least one frame/],
    [{ video: oneByOne(BARS), ...size }, /how many frames.*not known.*give their number in frames/],
    [{ video: oneByOne(BARS), frames: 2 }, /how large.*give width and height/],
    [{ video: [] }, /frames must be a whole number of at least 1, got 0/],
    [{ width: 60 }, /width must be a multiple of 8.*try 64/],
    [{ rows: 0 }, /rows/],
    [{ sharedNoise: true, compat: "original" }, /leave one out/],
    [{ scheduler: "magic" }, /magic/],
  ];
  for (const [options, message] of wrong) {
    it(`refuses ${message.source}`, () => {
      assert.throws(
        () => videoInstructPix2Pix(sd, INSTRUCTION, { video: BARS, ...options }),
        (error: unknown) => error instanceof InputError && message.test(error.message),
      );
    });
  }

  it("refuses an empty instruction, and latents of another shape", () => {
    const video = BARS;
    assert.throws(() => videoInstructPix2Pix(sd, " ", { video }), /instruction is empty; say what/);
    const one = device.tensor(new Float32Array(256), [1, 4, 8, 8]);
    assert.throws(
      () => videoInstructPix2Pix(sd, INSTRUCTION, { video, latents: one }),
      /latents must have shape \[3,4,8,8\], got \[1,4,8,8\]/,
    );
    assert.throws(
      () => videoInstructPix2Pix(sd, INSTRUCTION, { video: one, width: 80, height: 64 }),
      /latents of a video must have shape \[frames, 4,8,10\]/,
    );
    one.dispose();
  });
});

describe("models", () => {
  it("of another kind are sent to where they belong, and the other way round", async () => {
    const plain = await StableDiffusion.load(TINY, { device });
    assert.throws(
      () => videoInstructPix2Pix(plain, INSTRUCTION, { video: BARS }),
      /a text-to-image model.*\(video, image\).*such as timbrooks\/instruct-pix2pix/,
    );
    plain.dispose();
    assert.throws(() => textToVideo(sd, INSTRUCTION), /an InstructPix2Pix model.*edit INSTRUCTION/);
    assert.throws(() => textToImage(sd, INSTRUCTION), /an InstructPix2Pix model/);
  });

  it("in a single file are loaded with their eight channels", async () => {
    const path = join(root, "edit.safetensors");
    await writeFile(path, encodeSafetensors(await tinySingleFile(folder)));
    const model = await StableDiffusion.load(path, { device, config: TINY });
    assert.equal(model.unet.config.inChannels, 8);
    const one = { video: [BARS[0]], ...QUICK, guidanceScale: 1 };
    const latents = await latentsOf(videoInstructPix2Pix(model, INSTRUCTION, one));
    assert.deepEqual(latents, await edit(one));
    model.dispose();
    const told = await run(["models", "inspect", folder]);
    assert.match(told.stdout, /\nunet +InstructPix2Pix, the UNet alone/);
  });
});
