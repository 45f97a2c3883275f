/**
 * Video Instruct-Pix2Pix on a tiny model: guidance over three rows, noise, frames, refusals, the
 * reference run, and the command line.
 */

import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { formatResult, runPaths } from "../bench/parity/runner.ts";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { encodeSafetensors } from "../core/safetensors.ts";
import type { Tensor } from "../core/tensor.ts";
import { concat, linearCombination, narrow, std } from "../kernels/mod.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Frame } from "../video/frame.ts";
import { guidanceRows, type GuidanceScales } from "../video/guidance.ts";
import { GuidedUNet, type GuidedUNetOptions } from "../video/guided_unet.ts";
import {
  encodeVideo,
  videoInstructPix2Pix,
  type VideoInstructPix2PixOptions,
} from "../video/instruct_pix2pix.ts";
import { memoryNeeded, outlineOf } from "../video/memory.ts";
import { readPicture } from "../video/picture.ts";
import { encodePng } from "../video/png.ts";
import { textToImage } from "../video/text_to_image.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { latentsOf } from "./clips.ts";
import { framesOf, largest } from "./start_image_setup.ts";
import { barClip, barFrame, writeEditModel } from "./tiny_edit_model.ts";
import { TINY, tinySingleFile } from "./tiny_single_file.ts";

const device = await openDevice();
const root = await mkdtemp(join(tmpdir(), "framezero-edit-"));
const folder = join(root, "model");
await writeEditModel(folder);
const sd = await StableDiffusion.load(folder, { device });
const offline = process.env.HF_HUB_OFFLINE;
process.env.HF_HUB_OFFLINE = "1";
after(async () => {
  if (offline === undefined) delete process.env.HF_HUB_OFFLINE;
  else process.env.HF_HUB_OFFLINE = offline;
  sd.dispose();
  await device.close();
  await rm(root, { recursive: true });
});

const INSTRUCTION = "a horse on a street";
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

describe("guidance rows", () => {
  const scale = fc.double({ min: 0, max: 20, noNaN: true });

  it("are the formula of InstructPix2Pix, without those that do not count", () => {
    fc.assert(fc.property(scale, fc.oneof(scale, fc.constant(1)), (s, sI) => {
      const rows = guidanceRows({ guidanceScale: s, imageGuidanceScale: sI });
      const [none, image, both] = [3, 5, 11];
      const noise = (row: typeof rows[number]) =>
        row.text === "prompt" ? both : row.image ? image : none;
      const sum = rows.reduce((total, row) => total + row.weight * noise(row), 0);
      const want = none + s * (both - image) + sI * (image - none);
      assert.ok(Math.abs(sum - want) < 1e-9, `${sum}, ${want}`);
      assert.equal(rows.at(-1)?.text, "prompt");
      assert.ok(rows.slice(0, -1).every(({ weight }) => weight !== 0));
    }));
  });

  it("are those of classifier-free guidance without an image", () => {
    fc.assert(fc.property(scale, (s) => {
      const rows = guidanceRows({ guidanceScale: s });
      assert.deepEqual(rows.map(({ weight }) => weight), s > 1 ? [1 - s, s] : [1]);
      assert.ok(rows.every(({ image }) => image));
    }));
  });

  it("are as many as the scales need", () => {
    const count = (guidanceScale: number, imageGuidanceScale: number) =>
      guidanceRows({ guidanceScale, imageGuidanceScale }).length;
    assert.deepEqual([count(7.5, 1.5), count(7.5, 1), count(1.5, 1.5), count(1, 1)], [3, 2, 2, 1]);
  });
});

describe("the guided noise", () => {
  const cells = [8, 8] as const;
  const shape = [2, 8, ...cells];
  const x = device.tensor(new Generator(1).randn(shape), shape);
  const { hiddenStates: texts } = sd.encodePrompt(["blurry", INSTRUCTION]);
  after(() => [x, texts].forEach((tensor) => tensor.dispose()));

  /** What the model predicts of all frames at once under one condition. */
  function row(text: "prompt" | "negative", image: boolean): Tensor {
    const words = narrow(texts, 0, text === "prompt" ? 1 : 0, 1);
    const shown = linearCombination([image ? 1 : 0], [narrow(x, 1, 4, 4)]);
    const sample = concat([narrow(x, 1, 0, 4), shown], 1);
    return sd.unet.forward(sample, 501, words, { frames: { mode: "first", frames: 2 } });
  }

  async function guided(options: Omit<GuidedUNetOptions, "crossFrame">): Promise<Float32Array> {
    const text = device.scope(() =>
      concat(
        guidanceRows(options).map(({ text }) => narrow(texts, 0, text === "prompt" ? 1 : 0, 1)),
        0,
      )
    );
    const unet = new GuidedUNet(sd.unet, text, cells, { crossFrame: true, ...options });
    text.dispose();
    const noise = await unet.predict(x, 501, 0, () => Promise.resolve());
    try {
      return await noise.data();
    } finally {
      noise.dispose();
      unet.dispose();
    }
  }

  async function formula({ guidanceScale: s, imageGuidanceScale: sI = 1 }: GuidanceScales) {
    const noise = device.scope(() =>
      linearCombination(
        [1 - sI, sI - s, s],
        [row("negative", false), row("negative", true), row("prompt", true)],
      )
    );
    const values = await noise.data();
    noise.dispose();
    return values;
  }

  it("is that of three rows, however they are grouped", async () => {
    for (const [imageGuidanceScale, rows] of [[1.5, undefined], [1.5, 1], [0.5, 6], [1, 3]]) {
      const scales = { guidanceScale: 7.5, imageGuidanceScale };
      const far = largest(await guided({ ...scales, rows }), await formula(scales));
      assert.ok(far < 2e-3, `image guidance ${imageGuidanceScale}, rows ${rows}: ${far}`);
    }
  });

  it("weighs as told where a scale is below one", async () => {
    const scales = { guidanceScale: 0.5, imageGuidanceScale: 0.25 };
    assert.ok(largest(await guided(scales), await formula(scales)) < 2e-3);
  });

  it("with both scales 1 is exactly what the model predicts with text and image", async () => {
    const want = device.scope(() => row("prompt", true));
    const one = await guided({ guidanceScale: 1, imageGuidanceScale: 1 });
    assert.ok(largest(one, await want.data()) < 1e-4);
    const alone = await guided({ guidanceScale: 1 });
    assert.deepEqual(one, alone);
    want.dispose();
  });

  it("gets the spread of the row with text and image when it is rescaled", async () => {
    const scales = { guidanceScale: 7.5, imageGuidanceScale: 1.5, guidanceRescale: 1 };
    const spread = async (values: Float32Array) => {
      const result = device.scope(() =>
        std(device.tensor(Float32Array.from(values), [2, 4, ...cells]), [1, 2, 3])
      );
      try {
        return await result.data();
      } finally {
        result.dispose();
      }
    };
    const positive = device.scope(() => row("prompt", true));
    const want = await spread(await positive.data());
    assert.ok(largest(await spread(await guided(scales)), want) < 1e-3);
    positive.dispose();
  });

  it("needs the text of every row", () => {
    assert.throws(
      () =>
        new GuidedUNet(sd.unet, texts, cells, {
          guidanceScale: 7.5,
          imageGuidanceScale: 1.5,
          crossFrame: true,
        }),
      /texts of 3 rows, got 2/,
    );
  });
});

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

describe("the command edit", () => {
  it("changes a folder of pictures, and makes the same again", async () => {
    const frames = join(root, "frames");
    await mkdir(frames);
    for (const id of [9, 10]) {
      await writeFile(join(frames, `${id}.png`), await encodePng(barFrame(id - 9)));
    }
    const [made, again] = [join(root, "made"), join(root, "again")];
    const first = await run([
      ...["edit", INSTRUCTION, "--video", frames, "--model", folder, "--dtype", "f32"],
      ...["--resolution", "64", "--steps", "1", "--seed", "3", "--image-guidance", "1.5"],
      ...["-o", `${made}/`, "--json"],
    ]);
    assert.equal(first.code, 0, first.stderr);
    const { settings } = JSON.parse(first.stdout);
    assert.deepEqual(await readSettings(made), settings);
    const { video, resolution, imageGuidanceScale, fps } = settings;
    assert.deepEqual(
      { video, resolution, imageGuidanceScale, fps },
      { video: frames, resolution: 64, imageGuidanceScale: 1.5, fps: 25 },
    );
    assert.match(settings.videoSha256, /^[0-9a-f]{64}$/);
    const want = await framesOf(videoInstructPix2Pix(sd, INSTRUCTION, {
      ...{ ...QUICK, steps: 1, video: [barFrame(0), barFrame(1)], imageGuidanceScale: 1.5 },
    }));
    const picture = (folder: string, id: number) => readPicture(join(folder, `frame_000${id}.png`));
    for (const id of [0, 1]) assert.deepEqual(await picture(made, id), want[id]);
    const second = await run(["edit", "--from", made, "-o", `${again}/`]);
    assert.equal(second.code, 0, second.stderr);
    for (const id of [0, 1]) assert.deepEqual(await picture(again, id), want[id]);
    await writeFile(join(frames, "10.png"), await encodePng(barFrame(5)));
    const other = ["edit", "--from", made, "-o", join(root, "c.gif")];
    await refused([...other, "--gpu", "auto"], 1, /settings were made with a clip of sha256/);
  });

  it("changes a picture into a picture", async () => {
    const [start, target] = [join(root, "start.png"), join(root, "changed.png")];
    await writeFile(start, await encodePng(barFrame(1, 96, 64)));
    const options = ["--resolution", "96", "--steps", "1", "--guidance", "1", "--model", folder];
    const made = await run(["edit", INSTRUCTION, "--video", start, ...options, "-o", target]);
    assert.equal(made.code, 0, made.stderr);
    assert.match(made.stderr, /1 frame of 128x64/);
    const { width, height } = await readPicture(target);
    assert.deepEqual([width, height], [128, 64]);
  });

  it("refuses what it cannot use", async () => {
    const target = ["-o", join(root, "x.gif")];
    const start = join(root, "bar.png");
    await writeFile(start, await encodePng(barFrame(0)));
    await mkdir(join(root, "empty"));
    await refused(["edit"], 2, /the instruction is missing; say what to change/);
    await refused(["edit", INSTRUCTION, ...target], 2, /no video to change; name it with --video/);
    await refused(["edit", INSTRUCTION, "--init", start], 2, /unknown option '--init'/);
    const from = (
      video: string,
      ...more: string[]
    ) => ["edit", INSTRUCTION, "--video", video, ...more, ...target];
    await refused(from(join(root, "none.png")), 1, /none\.png/);
    await refused(from(join(root, "empty")), 1, /a folder must hold pictures/);
    await refused(from(start, "--start", "2"), 1, /the start must lie within the clip/);
    await refused(from(start, "--image-guidance", "-1"), 2, /at least 0/);
  });
});
