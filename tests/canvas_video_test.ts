/**
 * Videos whose camera moves over a canvas: what their frames see, and that nothing else changes.
 */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { linearCombination, narrow } from "../kernels/mod.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { createScheduler } from "../schedulers/mod.ts";
import { type CanvasExtent, canvasOf, middleOf } from "../video/canvas.ts";
import type { ControlOptions } from "../video/controlled_video.ts";
import { inWindows } from "../video/long_video.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { checkTogether } from "../video/video_options.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { latentsOf } from "./clips.ts";
import { near, valuesOf } from "./values.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
const root = await mkdtemp(join(tmpdir(), "framezero-canvas-"));
after(async () => {
  sd.dispose();
  await device.close();
  await rm(root, { recursive: true });
});

describe("videos over a canvas", () => {
  const PROMPT = "a red heart in a green meadow";
  const QUICK = {
    ...{ width: 64, height: 64, frames: 3, seed: 5 },
    ...{ steps: 3, t0: 0, t1: 1, guidanceScale: 1 },
  } as const;
  const [h, w, W] = [8, 8, 16];
  const wide = { ...QUICK, canvas: [2, 1] } as const;

  /** The clip's latents and what the parts of the method produced. */
  async function watched(options: TextToVideoOptions) {
    const seen = new Map<string, { shape: readonly number[]; copy: Tensor }>();
    const latents = await latentsOf(textToVideo(sd, PROMPT, {
      ...options,
      onIntermediate(name, value) {
        if (!("shape" in value)) return;
        seen.set(name, { shape: value.shape, copy: linearCombination([1], [value]).keep() });
      },
    }));
    const read = async (name: string): Promise<Float32Array> => {
      const { copy } = seen.get(name) ?? assert.fail(name);
      const values = await copy.data();
      copy.dispose();
      return values;
    };
    return {
      latents,
      atT1: await read("x_1_t1"),
      atT0: await read("x_1_t0"),
      moved: await read("x_2k_t0_warped"),
    };
  }

  /** Likeness, −1 … 1, of what columns of cells hold besides the mean of their rows. */
  function correlation(a: readonly number[][], b: readonly number[][]): number {
    const varying = (columns: readonly number[][]) =>
      columns.flatMap((column) =>
        column.map((value, i) => value - columns.reduce((sum, x) => sum + x[i], 0) / columns.length)
      );
    const [x, y] = [varying(a), varying(b)];
    const product = (p: number[], q: number[]) => p.reduce((sum, v, i) => sum + v * q[i], 0);
    return product(x, y) / Math.sqrt(product(x, x) * product(y, y));
  }

  it("show what is beyond the first frame instead of its mirror image", async () => {
    // Two cells a frame; the second frame behind the first sees half a frame of what is new.
    const motion = { motionFieldStrengthX: 130, motionFieldStrengthY: 0, guidanceScale: 5 };
    const { atT0, moved } = await watched({ ...wide, ...motion });
    assert.equal(atT0.length, 4 * h * W);
    const column = (values: Float32Array, width: number, x: number, from = 0) =>
      Array.from({ length: 4 * h }, (_, i) => values[from + i * width + x]);
    const middle = 4, shift = 4, size = 4 * h * w;
    const fresh: number[][] = [], mirrored: number[][] = [];
    for (let x = 0; x < w; x++) {
      const got = column(moved, w, x, size);
      assert.deepEqual(got, column(atT0, W, middle + shift + x), `column ${x} of the last frame`);
      if (x < w - shift) continue;
      fresh.push(got);
      mirrored.push(column(atT0, W, middle + 2 * w - 1 - shift - x));
    }
    const likeness = correlation(fresh, mirrored);
    assert.ok(Math.abs(likeness) < 0.5, `${likeness}`);
    const plain = await watched({ ...QUICK, ...motion });
    const edge = (x: number) => column(plain.moved, w, x, size);
    assert.deepEqual(edge(4), edge(3), "without a canvas it is a mirror");
  });

  it("begin with the middle of the canvas", async () => {
    const atT1: Tensor[] = [];
    const clip = textToVideo(sd, PROMPT, {
      ...wide,
      onIntermediate(name, value) {
        if (name !== "x_1_t1" || !("shape" in value)) return;
        atT1.push(linearCombination([1], [value]).keep());
      },
    });
    const seen: string[] = [];
    for await (const { phase, latents, noisePrediction, timestep } of clip.steps) {
      seen.push(`${phase} ${latents.shape}`);
      if (phase !== "frames" || seen.length > 3) continue;
      const scheduler = createScheduler("ddim", sd.schedulerConfig);
      scheduler.setTimesteps(QUICK.steps);
      const want = await valuesOf(device, () => {
        const x = middleOf(atT1[0], canvasOf([2, 1], [h, w]));
        return scheduler.step(narrow(noisePrediction, 0, 0, 1), timestep, x).prevSample;
      });
      near((await latents.data()).subarray(0, want.length), want, 1e-5);
    }
    assert.deepEqual(seen, [
      ...["anchor 1,4,8,16", "anchor 1,4,8,16"],
      ...["frames 3,4,8,8", "frames 3,4,8,8"],
    ]);
    atT1[0].dispose();
    clip.dispose();
  });

  it("are the same in windows of frames, whatever changes over the clip", async () => {
    const options = {
      ...QUICK,
      canvas: [1, 2],
      motion: "pan 0 60; rotate 2",
      scheduler: "dpm++",
      prompts: { 2: "a blue star" },
      guidanceScales: { 2: 3 },
      frames: 4,
    } as const;
    const whole = await latentsOf(textToVideo(sd, PROMPT, options));
    const { frames, ...rest } = options;
    const parts = inWindows(
      frames,
      2,
      (frameIds) => textToVideo(sd, PROMPT, { ...rest, frameIds, clipFrames: frames }),
    );
    assert.deepEqual(await latentsOf(parts), whole);
  });

  it("go with samplers that remember or draw, and with frames between others", async () => {
    const samplers: TextToVideoOptions[] = [
      { scheduler: "heun" },
      { scheduler: "euler-a", double: true },
      { scheduler: "unipc", attention: "window", motion: "zoom 0.8" },
    ];
    for (const options of samplers) {
      const latents = await latentsOf(textToVideo(sd, PROMPT, { ...wide, frames: 2, ...options }));
      assert.equal(latents.length, (options.double ? 3 : 2) * 4 * h * w);
      assert.ok(latents.every(Number.isFinite), `${options.scheduler}`);
    }
  });

  it("take the first frame's noise from outside", async () => {
    const given = device.tensor(new Generator(QUICK.seed).randn([1, 4, h, w]), [1, 4, h, w]);
    const latents = await latentsOf(textToVideo(sd, PROMPT, { ...wide, latents: given }));
    given.dispose();
    assert.deepEqual(latents, await latentsOf(textToVideo(sd, PROMPT, wide)));
  });

  it("take the memory of a few frames, however large the canvas, and give it back", async () => {
    const before = device.memory().live;
    const peak = async (canvas?: CanvasExtent) => {
      device.resetPeak();
      await latentsOf(textToVideo(sd, PROMPT, { ...QUICK, canvas, steps: 2, rows: 2 }));
      assert.equal(device.memory().live, before);
      return device.memory().peak - before;
    };
    const [frames, small, large] = [await peak(), await peak([2, 1]), await peak([4, 2])];
    assert.ok(small - frames < 2 ** 18, `${small - frames} bytes more than without`);
    assert.ok(large - frames < 2 ** 20, `${large - frames} bytes more than without`);
  });

  it("say so in their settings, and contradict what needs the first frame alone", () => {
    const clip = textToVideo(sd, PROMPT, wide);
    clip.dispose();
    assert.deepEqual(clip.settings.canvas, [2, 1]);
    const plain = textToVideo(sd, PROMPT, QUICK);
    plain.dispose();
    assert.ok(!("canvas" in plain.settings));
    const image = { width: 64, height: 64, data: new Uint8Array(3 * 64 * 64) };
    const all = device.tensor(new Float32Array(3 * 4 * h * w), [3, 4, h, w]);
    const cases: [TextToVideoOptions, RegExp][] = [
      [{ canvas: [5, 1], motion: "pan 9 9" }, /canvas must be columns and rows/],
      [{ canvas: [1, 1] }, /canvas must be columns and rows .* got \[1,1\]; leave it out/],
      [{ frames: 1, t0: undefined, t1: undefined }, /one frame does not move; ask for more frames/],
      [{ motion: false }, /motion: false lets nothing move; leave one of them out/],
      [{ image }, /a start image has nothing around it/],
      [{ latents: all }, /give latents of that one alone, or leave canvas out/],
      [{ smoothing: { masks: { subject: "heart" } } }, /whose background smoothing takes/],
      [{ compat: "diffusers" }, /the code that compat "diffusers" follows; leave one/],
    ];
    for (const [options, message] of cases) {
      assert.throws(
        () => textToVideo(sd, PROMPT, { ...wide, ...options }),
        (error: unknown) => error instanceof InputError && message.test(error.message),
        String(message),
      );
    }
    all.dispose();
    const controlled = { ...wide, motion: true, controls: [{} as ControlOptions] };
    assert.throws(() => checkTogether(controlled, 3), /parts that controls have no maps for/);
  });
});

describe("--canvas", () => {
  it("is stored, and a clip is made again with it", async () => {
    const [made, again] = [join(root, "made"), join(root, "again")];
    const size = ["--width", "64", "--height", "64", "--frames", "2", "--guidance", "1"];
    const motion = ["--steps", "2", "--t0", "0", "--t1", "1", "--motion", "pan 99 0"];
    const first = await run([
      "a red heart",
      ...size,
      ...motion,
      "--canvas",
      "3x1",
      "-o",
      `${made}/`,
    ]);
    assert.equal(first.code, 0, first.stderr);
    const settings = await readSettings(made);
    assert.deepEqual(settings?.canvas, [3, 1]);
    const second = await run(["--from", made, "-o", `${again}/`]);
    assert.equal(second.code, 0, second.stderr);
    assert.deepEqual(await readSettings(again), settings);
    for (const [i, flag] of ["--no-canvas", "--no-motion"].entries()) {
      const without = join(root, `without-${i}`);
      const third = await run(["--from", made, flag, "-o", `${without}/`]);
      assert.equal(third.code, 0, third.stderr);
      assert.equal((await readSettings(without))?.canvas, undefined, flag);
    }
  });

  it("is refused before anything is opened", async () => {
    for (const extent of ["1x1", "5x1", "2", "2x", "two", "2x1x1"]) {
      await refused(["a heart", "--canvas", extent], 2, /columns and rows of 1 to 4 frames/);
    }
  });
});
