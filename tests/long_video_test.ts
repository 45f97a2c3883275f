/**
 * Videos in chunks: which frames come together, what is freed when, and that chunks change nothing
 * but what the original code changes.
 */

import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { openSafetensors } from "../core/safetensors.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { type Clip, type ClipStep, eventsOf } from "../video/clip.ts";
import { videoInstructPix2Pix } from "../video/instruct_pix2pix.ts";
import { chunkFrameIds, inChunks, inWindows, windowFrameIds } from "../video/long_video.ts";
import { noiseOfOriginal } from "../video/noise.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { latentsOf } from "./clips.ts";
import { largest } from "./start_image_setup.ts";
import { barClip, writeEditModel } from "./tiny_edit_model.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
const root = await mkdtemp(join(tmpdir(), "framezero-chunks-"));
after(async () => {
  sd.dispose();
  await device.close();
  await rm(root, { recursive: true });
});

const PROMPT = "a red heart in a green meadow";
const TINY = { steps: 3, t0: 0, t1: 1, seed: 5, width: 64, height: 64, guidanceScale: 1 } as const;

const video = (options: TextToVideoOptions) => textToVideo(sd, PROMPT, { ...TINY, ...options });
const SIZE = 4 * 8 * 8;
const frame = (latents: Float32Array, k: number) => latents.slice(k * SIZE, (k + 1) * SIZE);

/** A clip of pictures whose only pixel is their frame number, made in as many steps as frames. */
function fakeClip(frameIds: readonly number[], log: string[], chunk: number): Clip {
  log.push(`make ${frameIds}`);
  const total = 2;
  const clip: Clip = {
    width: 1,
    height: 1,
    frameIds,
    settings: { prompt: PROMPT, frameIds },
    warnings: chunk ? ["again", `chunk ${chunk}`] : ["again"],
    steps: {
      async *[Symbol.asyncIterator]() {
        for (let step = 1; step <= total; step++) {
          await Promise.resolve();
          yield { phase: "frames", step, total, timestep: 9 } as ClipStep;
        }
      },
    },
    events: { [Symbol.asyncIterator]: () => eventsOf(clip.steps[Symbol.asyncIterator](), clip) },
    latents: () => Promise.reject(new Error("not made")),
    async *[Symbol.asyncIterator]() {
      for (const id of frameIds) {
        await Promise.resolve();
        yield { width: 1, height: 1, data: Uint8Array.of(id, id, id) };
      }
    },
    dispose: () => log.push(`free ${frameIds}`),
    [Symbol.dispose]() {
      this.dispose();
    },
  };
  return clip;
}

describe("windows", () => {
  it("hold every frame once, with the anchor before the later ones", () => {
    assert.deepEqual(windowFrameIds(5, 3), [[0, 1, 2], [0, 3, 4]]);
    assert.deepEqual(windowFrameIds(6, 3), [[0, 1, 2], [0, 3, 4], [0, 5]]);
    assert.deepEqual(windowFrameIds(2, 8), [[0, 1]]);
    assert.deepEqual(windowFrameIds(1, 2), [[0]]);
    fc.assert(fc.property(fc.nat({ max: 60 }), fc.nat({ max: 9 }), (n, size) => {
      const shown = windowFrameIds(n + 1, size + 2).flatMap((ids, i) => ids.slice(i ? 1 : 0));
      assert.deepEqual(shown, [...Array(n + 1).keys()]);
    }));
    assert.throws(() => windowFrameIds(3, 1), /windowSize must be a whole number of at least 2/);
  });

  it("are finished one after the other, and freed", async () => {
    const log: string[] = [];
    const clip = inWindows(5, 3, (ids, i) => fakeClip(ids, log, i));
    assert.deepEqual(clip.frameIds, [0, 1, 2, 3, 4]);
    for await (const event of clip.events) {
      log.push(
        event.kind === "step"
          ? `step ${event.step.step} of ${event.step.total}`
          : `frame ${event.frame.data[0]}`,
      );
    }
    assert.deepEqual(log, [
      ...["make 0,1,2", "step 1 of 4", "step 2 of 4", "frame 0", "frame 1", "frame 2"],
      ...["free 0,1,2", "make 0,3,4", "step 3 of 4", "step 4 of 4", "frame 3", "frame 4"],
      "free 0,3,4",
    ]);
  });

  it("give the frames of the whole clip, bit by bit, motion and prompts included", async () => {
    const options = {
      ...{ motion: "orbit 24", prompts: { 3: "a blue heart in a green meadow" }, frames: 5 },
      guidanceScale: 3,
    };
    const whole = await latentsOf(video(options));
    const { frames: _, ...rest } = options;
    const parts = inWindows(5, 3, (frameIds) => video({ ...rest, frameIds, clipFrames: 5 }));
    assert.deepEqual(await latentsOf(parts), whole);
  });

  it("are how the command makes long clips", async () => {
    const make = async (name: string, ...more: string[]) => {
      const file = join(root, `${name}.png`);
      const flags = ["--frames", "3", "--steps", "2", "--width", "64", "--height", "64"];
      const { code, stderr } = await run([PROMPT, ...flags, ...more, "-o", file]);
      assert.equal(code, 0, stderr);
      return { bytes: await readFile(file), stderr };
    };
    const whole = await make("whole");
    const parts = await make("parts", "--window", "2");
    assert.deepEqual(parts.bytes, whole.bytes);
    const order = [...parts.stderr.matchAll(/^(denoising|decoding)/gm)].map(([, what]) => what);
    assert.ok(order.indexOf("decoding") < order.lastIndexOf("denoising"), parts.stderr);
    const wrong = ["--window", "2", "--frames", "3", "--attention", "previous", "--quiet"];
    const { code, stderr } = await run([PROMPT, ...wrong, "-o", join(root, "n.gif")]);
    assert.equal(code, 2);
    assert.match(stderr, /--window makes frames apart from each other/);
  });
});

describe("the frames of chunks", () => {
  it("are those of the original code", () => {
    assert.deepEqual(chunkFrameIds(5, 3), [[0, 0, 1], [0, 2, 3], [0, 4]]);
    assert.deepEqual(chunkFrameIds(8, 8), [[0, 0, 1, 2, 3, 4, 5, 6], [0, 7]]);
    assert.deepEqual(chunkFrameIds(1, 8), [[0, 0]]);
    assert.deepEqual(chunkFrameIds(3, 100), [[0, 0, 1, 2]]);
    assert.deepEqual(chunkFrameIds(3, 2), [[0, 0], [0, 1], [0, 2]]);
  });

  it("behind the anchor are all frames, once and in order", () => {
    const whole = fc.integer({ min: 1, max: 60 });
    fc.assert(fc.property(whole, fc.integer({ min: 2, max: 70 }), (count, size) => {
      const chunks = chunkFrameIds(count, size);
      assert.deepEqual(chunks.flatMap((ids) => ids.slice(1)), [...Array(count).keys()]);
      assert.ok(chunks.every((ids) => ids[0] === 0 && ids.length >= 2 && ids.length <= size));
      assert.ok(chunks.slice(0, -1).every((ids) => ids.length === size));
    }));
  });

  it("need a frame, and a place for it", () => {
    assert.throws(() => chunkFrameIds(0, 8), /count must be a whole number of at least 1, got 0/);
    assert.throws(() => inChunks(4, 1, () => assert.fail()), /chunkSize.*at least 2, got 1/);
    assert.throws(() => chunkFrameIds(4, 2.5), InputError);
  });
});

describe("a clip in chunks", () => {
  const make = (log: string[]) =>
    inChunks(5, 3, (frameIds, chunk) => fakeClip(frameIds, log, chunk));

  it("gives frames in order, and frees a chunk before it makes the next", async () => {
    const log: string[] = [];
    const clip = make(log);
    assert.deepEqual([clip.width, clip.height, clip.frameIds], [1, 1, [0, 1, 2, 3, 4]]);
    assert.deepEqual(log, ["make 0,0,1"]);
    const ids: number[] = [];
    for await (const { data } of clip) ids.push(data[0]);
    assert.deepEqual(ids, [0, 1, 2, 3, 4]);
    assert.deepEqual(log, [
      "make 0,0,1",
      "free 0,0,1",
      "make 0,2,3",
      "free 0,2,3",
      "make 0,4",
      "free 0,4",
    ]);
    assert.deepEqual(clip.warnings, ["again", "chunk 1", "chunk 2"]);
    await assert.rejects(async () => {
      for await (const _ of clip) assert.fail();
    }, /can be done once/);
    await assert.rejects(clip.latents(), /can be done once/);
  });

  it("counts the steps of all chunks", async () => {
    const log: string[] = [];
    const clip = make(log);
    const seen: string[] = [];
    for await (const { step, total } of clip.steps) seen.push(`${step}/${total}`);
    assert.deepEqual(seen, ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]);
    assert.deepEqual(log, ["make 0,0,1", "make 0,2,3", "make 0,4"]);
    clip[Symbol.dispose]();
    assert.equal(log.length, 6);
  });

  it("has the settings of its parts, with all frames", () => {
    assert.deepEqual(make([]).settings, {
      prompt: PROMPT,
      frameIds: [0, 1, 2, 3, 4],
      chunkSize: 3,
    });
  });

  it("passes on what stops a chunk", async () => {
    const log: string[] = [];
    const clip = inChunks(5, 3, (frameIds, chunk) => {
      if (chunk === 1) throw new InputError("no more");
      return fakeClip(frameIds, log, chunk);
    });
    const ids: number[] = [];
    await assert.rejects(async () => {
      for await (const { data } of clip) ids.push(data[0]);
    }, /no more/);
    assert.deepEqual(ids, [0, 1]);
    clip.dispose();
  });
});

describe("text to video in chunks", () => {
  it("is the same whatever the size of chunks, but for a frame 0 of its own", async () => {
    const free = await latentsOf(video({ frames: 4 }));
    const chunked = (size: number) =>
      latentsOf(inChunks(4, size, (frameIds) => video({ frameIds })));
    const three = await chunked(3);
    assert.deepEqual(await chunked(9), three);
    for (const k of [1, 2, 3]) assert.deepEqual(frame(three, k), frame(free, k));
    assert.ok(largest(frame(three, 0), frame(free, 0)) > 1e-3, "it is the anchor no longer");
  });

  it("as the original code repeats the noise of a place", async () => {
    const original = { compat: "original", motion: false } as const;
    const clip = inChunks(5, 3, (frameIds) => video({ frameIds, ...original }));
    const latents = await latentsOf(clip);
    // Without motion frames differ by their noise alone.
    assert.deepEqual(frame(latents, 2), frame(latents, 0));
    assert.deepEqual(frame(latents, 3), frame(latents, 1));
    assert.ok(largest(frame(latents, 1), frame(latents, 0)) > 1e-3);
    assert.ok(largest(frame(latents, 4), frame(latents, 2)) > 1e-3, "a shorter chunk draws less");
  });

  it("draws the numbers that the original code drew", async () => {
    const path = fileURLToPath(
      new URL("./golden/t2v_zero_tiny/original_runs.safetensors", import.meta.url),
    );
    const file = await openSafetensors(path);
    const noise = noiseOfOriginal(new Generator(5));
    const xT = noise.initial([1, 4, 16, 16]);
    assert.ok(largest(xT, await file.readF32("orig_chunked/chunk0_x_T")) < 1e-5);
    const drawn = noise.frames([1, 2], [2, 4, 16, 16]);
    const want = await file.readF32("orig_chunked/chunk0_ddpm_noise"); // [1, 4, 2, 16, 16]
    const size = 256;
    for (let k = 0; k < 2; k++) {
      for (let c = 0; c < 4; c++) {
        const plane = (values: Float32Array, at: number) =>
          values.slice(at * size, (at + 1) * size);
        assert.ok(largest(plane(drawn, k * 4 + c), plane(want, c * 2 + k)) < 1e-5);
      }
    }
    await file.close();
  });

  it("refuses another sampler than the original code has", () => {
    const compat = "original";
    assert.throws(() => video({ compat, scheduler: "euler" }), /needs the scheduler ddim.*euler/);
    assert.throws(() => video({ compat, eta: 0.5 }), /with eta 0.*got ddim with eta 0\.5/);
  });

  it("gives all memory back, also when it is stopped in a chunk", async () => {
    const before = device.memory().live;
    const controller = new AbortController();
    const clip = inChunks(3, 2, (frameIds) => video({ frameIds, signal: controller.signal }));
    let frames = 0;
    await assert.rejects(async () => {
      for await (const { width } of clip) {
        frames++;
        assert.equal(width, 64);
        controller.abort();
      }
    }, { name: "AbortError" });
    clip.dispose();
    assert.equal(frames, 1);
    assert.equal(device.memory().live, before);
  });
});

describe("instruct-pix2pix in chunks", () => {
  it("is the same whatever the size of chunks, unless noise is drawn as originally", async () => {
    const folder = join(root, "model");
    await writeEditModel(folder);
    const model = await StableDiffusion.load(folder, { device });
    const bars = barClip(3);
    const edit = (frameIds: readonly number[], compat?: "original") =>
      videoInstructPix2Pix(model, PROMPT, {
        ...{ video: bars, frameIds, compat, sharedNoise: false, steps: 2, guidanceScale: 1 },
      });
    const free = await latentsOf(edit([0, 1, 2]));
    assert.deepEqual(await latentsOf(inChunks(3, 3, (ids) => edit(ids))), free);
    const original = await latentsOf(inChunks(3, 3, (ids) => edit(ids, "original")));
    // The anchor, whose noise is first, has another place in the noise than frame 0 behind it.
    const first = await latentsOf(edit([0, 0, 1], "original"));
    assert.deepEqual(frame(original, 1), frame(first, 2));
    assert.ok(largest(frame(first, 1), frame(first, 0)) > 1e-2);
    model.dispose();
  });
});

describe("--chunk-size", () => {
  it("makes a video as the original code does, and makes it again", async () => {
    const [made, again] = [join(root, "made"), join(root, "again")];
    const sizes = ["--width", "64", "--height", "64", "--guidance", "1"];
    const steps = ["--steps", "3", "--t0", "0", "--t1", "1", "--frames", "3", "--seed", "5"];
    const first = await run([PROMPT, ...sizes, ...steps, "--chunk-size", "3", "-o", `${made}/`]);
    assert.equal(first.code, 0, first.stderr);
    assert.match(first.stderr, /denoising 8\/8/);
    const settings = await readSettings(made);
    const { chunkSize, compat, frameIds } = settings ?? {};
    assert.deepEqual({ chunkSize, compat, frameIds }, {
      chunkSize: 3,
      compat: "original",
      frameIds: [0, 1, 2],
    });
    const second = await run(["--from", made, "-o", `${again}/`]);
    assert.equal(second.code, 0, second.stderr);
    assert.deepEqual(await readSettings(again), settings);
    assert.equal((await readdir(again)).length, (await readdir(made)).length);
  });

  it("refuses frames in another order, and chunks without room", async () => {
    const target = ["-o", join(root, "x.gif")];
    await refused([PROMPT, "--chunk-size", "1", ...target], 2, /at least 2/);
    const listed = await run([PROMPT, "--chunk-size", "3", "--frame-ids", "0,4", ...target]);
    assert.match(listed.stderr, /leave out --frame-ids, or --chunk-size\n$/);
    assert.equal(listed.code, 2);
  });
});
