/**
 * Background smoothing: its formulas, how the foreground is found, and what becomes of clips made
 * by the built-in model.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { backgroundError, foregroundDifference } from "../bench/background.ts";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { openSafetensors } from "../core/safetensors.ts";
import { concat, permute } from "../kernels/mod.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { fillTokenMap, mapStrides } from "../models/token_map.ts";
import { findWords } from "../models/prompt.ts";
import {
  foregroundOf,
  maskOfCells,
  smoothBackground,
  type SmoothingBlend,
} from "../video/background_smoothing.ts";
import { decodeFrame, toFrame } from "../video/clip.ts";
import { foregroundCells, maskOfFrame, otsuThreshold } from "../video/foreground.ts";
import type { Frame } from "../video/frame.ts";
import { mirroredIndexes, shiftInCells } from "../video/motion_field.ts";
import { cameraOf } from "../video/camera.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { latentsOf } from "./clips.ts";
import { framesOf, largest } from "./start_image_setup.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

const ORIGINAL = new URL("./golden/t2v_zero_tiny/original_runs.safetensors", import.meta.url);
const PROMPT = "a blue circle in the sky";
const QUICK = {
  ...{ steps: 4, t0: 1, t1: 2, frames: 3, seed: 5, width: 64, height: 64, guidanceScale: 1 },
} as const;

/** A mask that is light in a square. */
function square(left: number, top: number, side: number, light = 255, size = 64): Frame {
  const data = new Uint8Array(3 * size * size).map((_, i) => {
    const [x, y] = [Math.floor(i / 3) % size, Math.floor(i / 3 / size)];
    return x >= left && x < left + side && y >= top && y < top + side ? light : 0;
  });
  return { width: size, height: size, data };
}

const MASKS = [square(24, 24, 24), square(16, 24, 24), square(16, 24, 16)];

/** A camera that moves by whole cells, by those strengths a frame. */
const steady = (motion: { x: number; y: number } | null, latentShape: readonly number[]) =>
  cameraOf(
    { motion: motion !== null, motionFieldStrengthX: motion?.x, motionFieldStrengthY: motion?.y },
    { motionX: 0, motionY: 0 },
    { clipFrames: 8, seed: 0, latentShape },
  );

describe("the formulas", () => {
  const [F, C, H, W] = [3, 2, 16, 12];
  const CELLS = H * W;
  const frameIds = [0, 3, 7];
  const motion = { x: 40, y: -24 };
  const random = new Generator(3);
  const x = random.randn([F, C, H, W]);
  const binary = random.rand([F, 1, H, W]).map((v) => v > 0.6 ? 1 : 0);
  const soft = random.rand([F, 1, H, W]);

  const camera = (moves: boolean) => steady(moves ? motion : null, [1, C, H, W]);

  /** The paper and the authors' code, cell by cell. */
  function literally(masks: Float32Array, a: number, blend: SmoothingBlend, moves: boolean) {
    return x.map((value, i) => {
      const [k, c] = [Math.floor(i / C / CELLS), Math.floor(i / CELLS) % C];
      const cell = i % CELLS;
      const axis = (length: number, strength: number, at: number) =>
        moves && k > 0 // the first frame is never moved
          ? mirroredIndexes(length, shiftInCells(strength * frameIds[k], length))[at]
          : at;
      const from = axis(H, motion.y, Math.floor(cell / W)) * W + axis(W, motion.x, cell % W);
      const M = masks[k * CELLS + cell];
      const [x1, M1] = [x[c * CELLS + from], masks[from]];
      if (blend === "paper") return M * value + (1 - M) * ((1 - a) * x1 + a * value);
      const B = (1 - M) * (1 - M1);
      return (1 - B) * value + B * (a * value + (1 - a) * x1 * (1 - M1));
    });
  }

  for (const blend of ["code", "paper"] as const) {
    it(`of the ${blend}`, async () => {
      for (const [masks, a, moves] of [[binary, 0.4, true], [soft, 0.25, false]] as const) {
        const settings = { strength: a, blend, camera: camera(moves), level: 1, frameIds };
        const got = await device.scope(() =>
          smoothBackground(
            device.tensor(x, [F, C, H, W]),
            device.tensor(masks, [F, 1, H, W]),
            settings,
          )
        ).data();
        assert.ok(largest(got, literally(masks, a, blend, moves)) < 1e-6);
      }
    });

    it(`of the ${blend} leaves the first frame, and at strength 1 all, bit by bit`, async () => {
      const smooth = (strength: number) =>
        device.scope(() =>
          smoothBackground(
            device.tensor(x, [F, C, H, W]),
            device.tensor(binary, [F, 1, H, W]),
            { strength, blend, camera: camera(true), level: 1, frameIds },
          )
        ).data();
      const some = await smooth(0.4);
      assert.deepEqual(some.subarray(0, C * CELLS), x.subarray(0, C * CELLS));
      assert.notDeepEqual(some, x);
      assert.deepEqual(await smooth(1), x);
    });
  }

  // Tensors of the original code are (b c f h w), b = 1.
  for (const [name, moves] of [["orig_smooth_bg", true], ["orig_smooth_bg_no_motion", false]]) {
    it(`that the authors' code has, in its own run ${name}`, async () => {
      const file = await openSafetensors(fileURLToPath(ORIGINAL));
      const read = (role: string) => file.readF32(`${name}/${role}`);
      const frames = async (role: string) => {
        const [, C, F, h, w] = file.tensors.get(`${name}/${role}`)!.shape;
        const values = device.tensor(Float32Array.from(await read(role)), [C, F, h, w]);
        return permute(values, [1, 0, 2, 3]);
      };
      const cells = [16, 16] as const;
      const pixels = 128 * 128;
      const masks = await read("masks");
      const all = [0, 1, 2].map((k) =>
        maskOfCells({ width: 128, height: 128, values: masks.slice(k * pixels) }, cells)
      );
      const settings = moves
        ? { strength: 0.4, camera: steady({ x: 60, y: -40 }, [1, 4, 16, 16]) }
        : { strength: 0.3, camera: steady(null, [1, 4, 16, 16]) };
      const scope = device.scope();
      const first = await frames("x_t1_1");
      const x = moves ? concat([first, await frames("x_t1_k")], 0) : first;
      const got = smoothBackground(x, foregroundOf(device, all, cells), {
        ...settings,
        level: 1,
        blend: "code",
        frameIds: [0, 1, 2],
      });
      const want = await frames("smooth_latents_t1");
      assert.ok(largest(await got.data(), await want.data()) < 1e-5);
      assert.ok(largest(await x.data(), await want.data()) > 0.1);
      scope[Symbol.dispose]();
      await file.close();
    });
  }

  it("masks are read at the first pixel of each cell, and dilated by 5×5", async () => {
    const frame = square(24, 40, 16); // 2×2 cells from column 3, row 5 on
    const cells = maskOfCells(maskOfFrame(frame), [8, 8]);
    const got = await foregroundOf(device, [cells], [8, 8]).data();
    got.forEach((value, i) => {
      const [column, row] = [i % 8, Math.floor(i / 8)];
      assert.equal(value, Number(column >= 1 && column <= 6 && row >= 3), `${i}`);
    });
    // Another size, and grey: partial foreground.
    const grey = maskOfCells(maskOfFrame(square(0, 0, 24, 51, 24)), [4, 4]);
    assert.ok(grey.every((value) => Math.abs(value - 0.2) < 1e-6));
  });
});

describe("finding the foreground", () => {
  it("by Otsu's threshold", () => {
    const values = Float32Array.from({ length: 200 }, (_, i) => i < 150 ? 0.1 + i / 2000 : 0.7);
    const threshold = otsuThreshold(values);
    assert.ok(threshold > 0.17 && threshold < 0.7, `${threshold}`);
    const cells = foregroundCells(values);
    assert.ok(cells.every((value, i) => value === Number(i >= 150)));
    assert.ok(foregroundCells(new Float32Array(9).fill(0.5)).every((value) => value === 0));
  });

  it("by where words stand in the prompt", () => {
    const find = (prompt: string, words: string, options = {}) =>
      findWords(sd, prompt, words, options);
    assert.deepEqual(find(PROMPT, "circle"), [3]);
    assert.deepEqual(find(PROMPT, "Blue  circle"), [2, 3]);
    assert.deepEqual(find("a circle, a red circle", "circle").length, 2);
    // What the vocabulary has no word for is several tokens.
    const pieces = sd.tokenizer.encode("zeppelin").length;
    assert.ok(pieces > 1);
    assert.equal(find("a blue zeppelin", "zeppelin").length, pieces);
    assert.deepEqual(find("a (blue:1.3) circle", "circle", { promptWeights: true }), [3]);
    const long = `${"red ".repeat(74)}circle star`;
    assert.deepEqual(find(long, "circle"), [75]);
    assert.deepEqual(find(long, "star", { longPrompts: true }), [78]);
    for (const [prompt, words] of [[PROMPT, "heart"], [PROMPT, "circ"], [PROMPT, "blue sky"]]) {
      assert.throws(
        () => find(prompt, words),
        (error: unknown) =>
          error instanceof InputError &&
          error.message ===
            `the prompt has no word "${words}"; its words are a, blue, circle, in, the, sky`,
      );
    }
    assert.throws(() => find(long, "star"), /no word "star"/);
    assert.throws(() => find(PROMPT, " "), /no word/);
  });

  it("by cross-attention, whose weights of all tokens sum to 1", async () => {
    assert.deepEqual(mapStrides(64), [2, 4]);
    assert.deepEqual(mapStrides(96), [4]);
    assert.deepEqual(mapStrides(16), [1]);
    assert.deepEqual(mapStrides(8), [1]);
    const [rows, frames, heads, d, tokens] = [4, 2, 2, 4, 5];
    const random = new Generator(2);
    const keys = random.randn([2, heads * d, tokens]);
    const layers = [[8, 6], [4, 3]].map(([h, w]) => ({ h, w, q: random.randn([rows, 8, h * w]) }));
    const maps = async (chosen: number[]) => {
      const map = device.empty([frames, 1, 8, 6]);
      device.scope(() => {
        const see = fillTokenMap({ chosen: device.tensor(chosen, [1, 1, tokens]), map }, [1, 2]);
        for (const { h, w, q } of layers) {
          see(device.tensor(q, [rows, 8, h * w]), device.tensor(keys, [2, 8, tokens]), heads);
        }
      });
      return await map.data().finally(() => map.dispose());
    };
    // The share of token 1 at a corner, which resizing leaves as it is.
    const share = (q: Float32Array, n: number, frame: number) => {
      let sum = 0;
      for (let head = 0; head < heads; head++) {
        const weights = Array.from({ length: tokens }, (_, t) => {
          let score = 0;
          for (let c = head * d; c < (head + 1) * d; c++) {
            score += q[((2 + frame) * 8 + c) * n] * keys[(8 + c) * tokens + t];
          }
          return Math.exp(score / Math.sqrt(d));
        });
        sum += weights[1] / weights.reduce((a, b) => a + b) / heads;
      }
      return sum;
    };
    const one = await maps([0, 1, 0, 0, 0]);
    for (const frame of [0, 1]) {
      const [fine, coarse] = layers.map(({ h, w, q }) => share(q, h * w, frame));
      assert.ok(Math.abs(one[frame * 48] - (fine + coarse) / 2) < 1e-5);
    }
    const rest = await maps([1, 0, 1, 1, 1]);
    rest.forEach((value, i) => assert.ok(Math.abs(value + one[i] - 1) < 1e-5));
  });
});

/** The clip's latents, and what was seen of the way there. */
async function made(options: TextToVideoOptions, prompt = PROMPT) {
  const seen = new Map<string, Promise<Float32Array>>();
  const phases: string[] = [];
  const clip = textToVideo(sd, prompt, {
    ...QUICK,
    ...options,
    onIntermediate(name, value) {
      if ("device" in value) seen.set(name, value.data());
    },
  });
  try {
    for await (const { phase, step, total } of clip.steps) phases.push(`${phase} ${step}/${total}`);
    const latents = await (await clip.latents()).data();
    const x = await seen.get("x_t1_smoothed") ?? new Float32Array();
    const foreground = await seen.get("foreground") ?? new Float32Array();
    return { latents, phases, x, foreground, settings: clip.settings };
  } finally {
    clip.dispose();
  }
}

describe("clips", () => {
  /** Numbers in the latents of a frame. */
  const FRAME = 4 * 8 * 8;
  const detector = () => {
    let k = 0;
    return { detect: () => Promise.resolve(maskOfFrame(MASKS[k++])) };
  };

  it("with masks are made once, and as if they had been made twice", async () => {
    const before = device.memory().live;
    // Fresh noise in every step: the second pass draws that of the first again.
    const once = await made({ eta: 1, smoothing: { masks: MASKS } });
    const phases = (from: number) => once.phases.slice(from).map((text) => text.split(" ")[0]);
    assert.deepEqual(phases(0), ["anchor", "anchor", "frames", "frames", "frames"]);
    const twice = await made({ eta: 1, smoothing: { masks: detector() } });
    assert.deepEqual(twice.phases.slice(4), [
      "frames 5/8",
      "smoothing 6/8",
      "smoothing 7/8",
      "smoothing 8/8",
    ]);
    assert.deepEqual(twice.foreground, once.foreground);
    assert.deepEqual(twice.latents, once.latents);
    const none = await made({ eta: 1 });
    assert.deepEqual(once.latents.subarray(0, FRAME), none.latents.subarray(0, FRAME));
    assert.notDeepEqual(once.latents, none.latents);
    assert.equal(device.memory().live, before);
  });

  it("with multistep samplers begin the second pass with the history of the first", async () => {
    for (const compat of ["framezero", "diffusers"] as const) {
      const settings = { scheduler: "dpm++", compat } as const;
      const once = await made({ ...settings, smoothing: { masks: MASKS } });
      const twice = await made({ ...settings, smoothing: { masks: detector() } });
      assert.deepEqual(twice.latents, once.latents, compat);
    }
  });

  it("take one mask for all frames, from any iterable, and store settings", async () => {
    async function* masks() {
      yield await Promise.resolve(MASKS[0]);
    }
    const one = await made({ smoothing: { masks: masks(), strength: 0.2, blend: "paper" } });
    const all = await made({
      smoothing: { masks: [MASKS[0], MASKS[0], MASKS[0]], strength: 0.2, blend: "paper" },
    });
    assert.deepEqual(one.latents, all.latents);
    assert.deepEqual([one.settings.smooth, one.settings.smoothBlend], [0.2, "paper"]);
  });

  it("from a start image keep it as their first frame", async () => {
    const image = square(16, 16, 32);
    const plain = await made({ image });
    const smooth = await made({ image, smoothing: { masks: MASKS } });
    assert.deepEqual(smooth.latents.subarray(0, FRAME), plain.latents.subarray(0, FRAME));
    assert.notDeepEqual(smooth.latents, plain.latents);
  });

  it("from noise of their own are not moved, and smoothed in place", async () => {
    const shape = [3, 4, 8, 8];
    const random = new Generator(8);
    const latents = device.tensor(random.randn(shape), shape);
    try {
      const plain = await made({ latents });
      assert.deepEqual(plain.phases, [1, 2, 3, 4].map((step) => `frames ${step}/4`));
      assert.equal(plain.settings.motion, false);
      assert.deepEqual(plain.latents, (await made({ latents, motionFieldStrengthX: 90 })).latents);
      const alone = device.tensor((await latents.data()).slice(0, FRAME), [1, 4, 8, 8]);
      const first = await made({ latents: alone, frames: 1 });
      assert.ok(largest(first.latents, plain.latents.slice(0, FRAME)) < 1e-4);
      alone.dispose();
      const smooth = await made({ latents, smoothing: { masks: [square(0, 0, 0)], strength: 0 } });
      for (const k of [1, 2]) {
        const x = smooth.x.slice(FRAME * k, FRAME * (k + 1));
        assert.ok(largest(x, smooth.x.slice(0, FRAME)) < 1e-6);
      }
      const noise = device.tensor(random.randn([2, 4, 8, 8]), [2, 4, 8, 8]);
      assert.throws(
        () => textToVideo(sd, PROMPT, { ...QUICK, latents, noise }),
        /noise is for frames that begin at the first one's latents/,
      );
      noise.dispose();
    } finally {
      latents.dispose();
    }
  });

  it("group by group, and with deep features reused, find the same subject", async () => {
    const { guidanceScale } = sd.defaults;
    const options = { guidanceScale, smoothing: { masks: { subject: "circle" } } };
    const all = await made(options);
    const grouped = await made({ ...options, rows: 1 });
    assert.deepEqual(grouped.foreground, all.foreground);
    const reused = await made({ ...options, reuse: 2 });
    const same = reused.foreground.filter((value, i) => value === all.foreground[i]).length;
    assert.ok(same > 0.9 * all.foreground.length, `${same} of ${all.foreground.length}`);
    assert.equal(all.settings.subject, "circle");
  });
});

describe("the built-in model", () => {
  const SHOWN = { frames: 3, steps: 8, t0: 3, t1: 5, motionFieldStrengthX: 32 } as const;

  for (const seed of [1, 2, 3]) {
    it(`has a calmer background, and the same foreground (seed ${seed})`, async () => {
      const options = { ...SHOWN, seed };
      let foreground = Promise.resolve(new Float32Array());
      const clip = textToVideo(sd, PROMPT, {
        ...options,
        smoothing: { masks: { subject: "circle" } },
        onIntermediate(name, value) {
          if (name === "foreground" && "device" in value) foreground = value.data();
        },
      });
      // The first pass is the clip without smoothing.
      const plain: Frame[] = [];
      for await (const { phase, step, total, latents } of clip.steps) {
        if (phase !== "frames" || step !== total - SHOWN.t1 - 1) continue;
        for (let k = 0; k < SHOWN.frames; k++) {
          plain.push(toFrame(await decodeFrame(sd, latents, k, []), 128, 128));
        }
      }
      const smooth = await framesOf(clip);
      const masks = { values: await foreground, cells: [16, 16], factor: 8 } as const;
      const share = masks.values.reduce((a, b) => a + b, 0) / masks.values.length;
      assert.ok(share > 0.05 && share < 0.6, `foreground is ${share} of the picture`);
      const motion = { x: options.motionFieldStrengthX, y: 0 };
      const [before, behind] = [plain, smooth].map((f) => backgroundError(f, masks, motion));
      assert.ok(behind < before, `background: ${behind} with smoothing, ${before} without`);
      const change = foregroundDifference(smooth, plain, masks);
      assert.ok(change < 4, `foreground differs by ${change} of 255`);
    });
  }
});

describe("what is refused", () => {
  const refuses = (
    smoothing: TextToVideoOptions["smoothing"],
    message: RegExp,
    options: TextToVideoOptions = {},
  ) =>
    assert.rejects(
      async () => await latentsOf(textToVideo(sd, PROMPT, { ...QUICK, ...options, smoothing })),
      (error: unknown) => error instanceof InputError && message.test(error.message),
    );

  it("names the rule", async () => {
    await refuses({ masks: MASKS }, /needs two at least, got 1/, { frames: 1 });
    await refuses({ masks: MASKS.slice(1) }, /3 frames needs 3 masks, got 2/);
    await refuses({ masks: [] }, /needs 3 masks, got 0/);
    await refuses({ masks: [...MASKS, ...MASKS] }, /needs 3 masks, got more than 3/);
    const wide = { width: 2, height: 1, data: new Uint8Array(6) };
    await refuses({ masks: [wide] }, /aspect of the clip, 64x64; mask 0 is 2x1/);
    await refuses({ masks: [{ ...wide, data: new Uint8Array(5) }] }, /must hold 6 bytes/);
    await refuses({ masks: { subject: "heart" } }, /no word "heart"; its words are a, blue, /);
    await refuses(
      { masks: MASKS, strength: 1.5 },
      /strength must be a number .* at most 1, got 1.5/,
    );
    await refuses({ masks: MASKS, strength: NaN }, /strength .*NaN/);
    const blend = "both" as SmoothingBlend;
    await refuses({ masks: MASKS, blend }, /one of code, paper, got both/);
    const narrow = () => Promise.resolve({ width: 8, height: 4, values: new Float32Array(32) });
    await refuses({ masks: { detect: narrow } }, /mask 0 is 8x4/);
  });
});
