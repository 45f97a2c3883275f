/**
 * A camera over a canvas: how windows lie, what they are averaged to, what frames see of it, and
 * that nothing else of a video changes.
 */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { linearCombination, narrow } from "../kernels/mod.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { createScheduler } from "../schedulers/mod.ts";
import {
  averageWindows,
  type CanvasExtent,
  canvasOf,
  cutWindows,
  drawAround,
  middleOf,
  overCanvas,
  windowCells,
} from "../video/canvas.ts";
import type { ControlOptions } from "../video/controlled_video.ts";
import { inWindows } from "../video/long_video.ts";
import { parseMotion } from "../video/motion.ts";
import {
  type Affine,
  drawSubCellNoise,
  mirroredIndexes,
  warpBetweenCells,
  warpByCells,
} from "../video/motion_field.ts";
import { MOST_ZOOM, motionAt, motionRemark, REACH } from "../video/motion_path.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { checkTogether } from "../video/video_options.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { latentsOf } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
const root = await mkdtemp(join(tmpdir(), "framezero-canvas-"));
after(async () => {
  sd.dispose();
  await device.close();
  await rm(root, { recursive: true });
});

const EXTENTS = fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 4 }))
  .filter(([columns, rows]) => columns * rows > 1);
const SIDES = fc.tuple(fc.integer({ min: 1, max: 13 }), fc.integer({ min: 1, max: 13 }));

/** What `make` makes on the device, read back; what it is made of is freed. */
async function valuesOf(make: () => Tensor): Promise<Float32Array<ArrayBuffer>> {
  const tensor = device.scope(make);
  try {
    return new Float32Array(await tensor.data());
  } finally {
    tensor.dispose();
  }
}

function near(got: ArrayLike<number>, want: ArrayLike<number>, tolerance: number): void {
  assert.equal(got.length, want.length);
  for (let i = 0; i < got.length; i++) {
    assert.ok(Math.abs(got[i] - want[i]) <= tolerance, `${i}: ${got[i]} ≠ ${want[i]}`);
  }
}

describe("windows", () => {
  it("begin in the middle, reach every cell and end at the canvas' border", () => {
    fc.assert(fc.property(EXTENTS, SIDES, (extent, [h, w]) => {
      const canvas = canvasOf(extent, [h, w]);
      const [columns, rows] = extent;
      assert.deepEqual(canvas.cells, [rows * h, columns * w]);
      const [[top, left]] = canvas.windows;
      assert.deepEqual(canvas.middle, [top, left]);
      assert.ok(Math.abs(2 * top - (rows - 1) * h) <= 1);
      assert.ok(Math.abs(2 * left - (columns - 1) * w) <= 1);
      const cells = windowCells(canvas);
      assert.equal(new Set(cells).size, rows * h * columns * w);
      [[h, rows], [w, columns]].forEach(([side, frames], axis) => {
        const starts = [...new Set(canvas.windows.map((window) => window[axis]))];
        starts.sort((a, b) => a - b);
        assert.equal(starts[0], 0);
        assert.equal(starts.at(-1), (frames - 1) * side);
        const stride = Math.max(1, Math.floor(side / 2));
        starts.slice(1).forEach((start, i) => assert.ok(start - starts[i] <= stride));
        if (side % 2 === 0) assert.equal(starts.length, 2 * frames - 1);
      });
    }));
  });

  it("hold the canvas' cells, row by row", () => {
    const canvas = canvasOf([2, 1], [2, 4]);
    assert.deepEqual(canvas.windows, [[0, 2], [0, 0], [0, 4]]);
    assert.deepEqual([...windowCells(canvas)], [
      ...[2, 3, 4, 5, 10, 11, 12, 13],
      ...[0, 1, 2, 3, 8, 9, 10, 11],
      ...[4, 5, 6, 7, 12, 13, 14, 15],
    ]);
  });

  it("are refused for canvases that there are not", () => {
    const wrong = [[1, 1], [0, 2], [2, 5], [1.5, 1], [2], [2, 1, 1], ["2", 1], 2, "2x1", null];
    for (const extent of wrong) {
      assert.throws(
        () => canvasOf(extent as unknown as CanvasExtent, [8, 8]),
        (error: unknown) =>
          error instanceof InputError &&
          /^canvas must be columns and rows .*, got /.test(error.message),
      );
    }
  });
});

describe("a canvas on the device", () => {
  const random = new Generator(3);
  const cases: [CanvasExtent, [number, number]][] = [[[2, 1], [4, 6]], [[3, 2], [5, 4]], [
    [1, 4],
    [3, 7],
  ]];

  it("is cut to windows and averaged as in float64", async () => {
    for (const [extent, frame] of cases) {
      const canvas = canvasOf(extent, frame);
      const { cells: [H, W], windows } = canvas;
      const [h, w] = frame;
      const x = random.randn([1, 3, H, W]);
      const whole = () => device.tensor(x, [1, 3, H, W]);
      const cut = await valuesOf(() => cutWindows(whole(), canvas));
      const want = windows.flatMap(([top, left]) =>
        Array.from({ length: 3 * h * w }, (_, i) => {
          const [c, v, u] = [Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w];
          return x[(c * H + top + v) * W + left + u];
        })
      );
      assert.deepEqual([...cut], want);
      near(await valuesOf(() => averageWindows(cutWindows(whole(), canvas), canvas)), x, 1e-6);

      const shape = [windows.length, 3, h, w];
      const parts = random.randn(shape);
      const sums = new Float64Array(3 * H * W), counts = new Float64Array(3 * H * W);
      windows.forEach(([top, left], k) => {
        for (let i = 0; i < 3 * h * w; i++) {
          const [c, v, u] = [Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w];
          const at = (c * H + top + v) * W + left + u;
          sums[at] += parts[k * 3 * h * w + i];
          counts[at]++;
        }
      });
      const mean = sums.map((sum, i) => sum / counts[i]);
      near(await valuesOf(() => averageWindows(device.tensor(parts, shape), canvas)), mean, 1e-6);
    }
  });

  it("is predicted as a whole where windows do not change what a cell gets", async () => {
    const canvas = canvasOf([2, 2], [4, 6]);
    const shape = [1, 2, ...canvas.cells];
    const x = device.tensor(random.randn(shape), shape);
    const before = device.memory().live;
    const seen: unknown[] = [];
    const pointwise = overCanvas({
      device,
      subjectMap: undefined,
      predict(x, timestep, step, _, place, frameOf) {
        seen.push(x.shape, timestep, step, place, frameOf?.(7));
        return Promise.resolve(linearCombination([-3], [x]).keep());
      },
    }, canvas);
    const noise = await pointwise.predict(x, 501, 2, () => Promise.resolve(), 5);
    assert.deepEqual(seen, [[9, 2, 4, 6], 501, 2, 5, 0]);
    near(await noise.data(), (await x.data()).map((value) => -3 * value), 1e-5);
    noise.dispose();
    assert.equal(device.memory().live, before);
    const failing = overCanvas({
      device,
      subjectMap: undefined,
      predict: () => Promise.reject(new Error("no")),
    }, canvas);
    await assert.rejects(failing.predict(x, 501, 0, () => Promise.resolve()), /no/);
    assert.equal(device.memory().live, before);
    x.dispose();
  });

  it("begins with the first frame's noise, and other noise around", async () => {
    const canvas = canvasOf([3, 2], [16, 16]);
    const first = random.randn([1, 4, 16, 16]);
    const draw = (seed: number) =>
      valuesOf(() => drawAround(device.tensor(first, [1, 4, 16, 16]), canvas, seed));
    const drawn = await draw(5);
    const middle = await valuesOf(() => {
      return middleOf(device.tensor(drawn, [1, 4, ...canvas.cells]), canvas);
    });
    assert.deepEqual(middle, first);
    const mean = drawn.reduce((sum, value) => sum + value, 0) / drawn.length;
    const square = drawn.reduce((sum, value) => sum + value * value, 0) / drawn.length;
    assert.ok(Math.abs(mean) < 0.05 && Math.abs(square - 1) < 0.1, `${mean}, ${square}`);
    assert.equal(new Set(drawn).size, drawn.length, "no number is there twice");
    assert.deepEqual(await draw(5), drawn);
    assert.notDeepEqual(await draw(6), drawn);
  });
});

describe("the camera on a canvas", () => {
  const canvas = canvasOf([3, 2], [8, 12]);
  const { frame: [h, w], middle: [top, left], cells: [H, W] } = canvas;
  const shape = [1, 4, H, W];
  const values = new Generator(4).randn(shape);
  const fine = drawSubCellNoise(3, shape);
  const latents = () => device.tensor(values, shape);

  /** The same map in parts of the canvas, about the first frame's place on it. */
  const over = ([a, b, c, d, e, f]: Affine): Affine => {
    const [x, y] = [(left + w / 2) / W, (top + h / 2) / H];
    const [cx, cy] = [a / 2 + b / 2 + c - 1 / 2, d / 2 + e / 2 + f - 1 / 2];
    const [across, down] = [b * w * H / (W * h), d * h * W / (H * w)];
    return [
      ...[a, across, x - a * x - across * y + cx * w / W] as const,
      ...[down, e, y - down * x - e * y + cy * h / H] as const,
    ];
  };

  it("sees what a camera of the whole canvas sees in its middle", async () => {
    const maps: Affine[] = [
      [1, 0, 5 / w, 0, 1, -3 / h],
      [1, 0, 0.3, 0, 1, 0.21],
      motionAt(parseMotion("rotate 7; zoom 0.9; pan 90 0"), 3, 8, w / h, [3, 2]),
    ];
    for (const affine of maps) {
      const got = await valuesOf(() => warpBetweenCells(latents(), affine, fine, 0.7, canvas));
      const want = await valuesOf(() =>
        middleOf(warpBetweenCells(latents(), over(affine), fine, 0.7), canvas)
      );
      near(got, want, 2e-4);
    }
  });

  it("copies whole cells, and meets a mirror at the canvas' border alone", async () => {
    for (const [x, y] of [[0, 0], [7, -2], [-12, 4], [17, -9]]) {
      // Half a grid pixel is less than a cell.
      const affine: Affine = [1, 0, (x + 0.1) / w, 0, 1, (y + 0.1) / h];
      const got = await valuesOf(() => warpByCells(latents(), affine, canvas));
      const rows = mirroredIndexes(H, top + y, h), columns = mirroredIndexes(W, left + x, w);
      const want = Float32Array.from({ length: 4 * h * w }, (_, i) => {
        const [c, v, u] = [Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w];
        return values[(c * H + rows[v]) * W + columns[u]];
      });
      assert.deepEqual(got, want, `${x}, ${y}`);
      const inside = x >= -left && x <= left && y >= -top && y <= top;
      assert.equal(new Set(got).size, inside ? got.length : new Set(want).size);
      assert.equal(new Set(got).size === got.length, inside, `${x}, ${y}`);
    }
  });

  it("goes as far as the canvas and a quarter of the picture", () => {
    const at = (text: string, k: number, extent: CanvasExtent) => {
      const [a, b, c, d, e, f] = motionAt(parseMotion(text), k, 200, 1.5, extent);
      return { x: (a + b - 1) / 2 + c, y: (d + e - 1) / 2 + f, zoom: 1 / Math.sqrt(a * e - b * d) };
    };
    const sentence = fc.constantFrom("pan 31 -17", "pan -5 90 ping-pong", "zoom 0.93; pan 9 9");
    fc.assert(fc.property(EXTENTS, sentence, fc.nat(398), (extent, text, half) => {
      const { x, y, zoom } = at(text, half / 2, extent);
      const [most, least] = [MOST_ZOOM, 1 / (MOST_ZOOM + Math.min(...extent) - 1)];
      assert.ok(Math.abs(x) <= REACH + (extent[0] - 1) / 2 + 1e-9, `${x}`);
      assert.ok(Math.abs(y) <= REACH + (extent[1] - 1) / 2 + 1e-9, `${y}`);
      assert.ok(zoom <= most + 1e-9 && zoom >= least - 1e-9, `${zoom}`);
    }));
    near([at("pan 16 0", 32, [3, 1]).x], [1], 1e-12);
    near([at("pan 16 0 once", 199, [3, 1]).x], [7 / 8 * 1.25], 1e-12);
    near([at("zoom 0.9 once", 199, [3, 3]).zoom], [3.5 ** (-7 / 8)], 1e-12);
    near([at("zoom 1.1 once", 199, [3, 3]).zoom], [1.5 ** (7 / 8)], 1e-12);
    for (let k = 0; k < 199; k += 0.5) {
      const [here, next] = [at("zoom 0.93", k, [4, 4]), at("zoom 0.93", k + 0.5, [4, 4])];
      assert.ok(Math.abs(Math.log(next.zoom / here.zoom)) <= -Math.log(0.93) / 2 + 1e-12);
    }
    const path = parseMotion("pan 31 0");
    assert.match(motionRemark(path, 20, 1, [2, 1]) ?? "", /beyond the canvas.*frame 11 on/);
    assert.equal(motionRemark(path, 11, 1, [2, 1]), undefined);
  });
});

describe("videos over a canvas", () => {
  const PROMPT = "a red heart in a green meadow";
  const QUICK = { width: 64, height: 64, steps: 3, t0: 0, t1: 1, frames: 3, seed: 5 } as const;
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
    const motion = { motionFieldStrengthX: 130, motionFieldStrengthY: 0 };
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
      const want = await valuesOf(() => {
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
  });

  it("is refused before anything is opened", async () => {
    for (const extent of ["1x1", "5x1", "2", "2x", "two", "2x1x1"]) {
      await refused(["a heart", "--canvas", extent], 2, /columns and rows of 1 to 4 frames/);
    }
  });
});
