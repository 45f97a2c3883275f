/**
 * Warps of latents: whole cells as the method has them, and between cells with the noise's
 * statistics kept; and both in videos.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { parseMotion } from "../video/motion.ts";
import {
  type Affine,
  drawSubCellNoise,
  warpBetweenCells,
  warpByCells,
  warpLatents,
} from "../video/motion_field.ts";
import { motionAt } from "../video/motion_path.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { latentsOf } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

/** The latents, warped; frees what it is given. */
async function warped(values: Float32Array<ArrayBuffer>, shape: readonly number[], by: Warp) {
  const latents = device.tensor(values, shape);
  const out = by(latents);
  try {
    assert.deepEqual(out.shape, shape);
    return await out.data();
  } finally {
    latents.dispose();
    out.dispose();
  }
}

type Warp = (latents: Tensor) => Tensor;

/** Camera moved by so many cells of an axis of `size`. */
const moved = (x: number, y: number, size: number): Affine => [1, 0, x / size, 0, 1, y / size];

describe("whole cells", () => {
  const shape = [1, 4, 16, 24];
  const values = new Generator(1).randn(shape);

  it("are those of the method for every translation, bit for bit", async () => {
    for (const [x, y] of [[12, 0], [32, -5], [-7.25, 20.5], [0.3, 0]]) {
      for (const k of [1, 2, 3]) {
        const want = await warped(values, shape, (z) => warpLatents(z, k, { x, y }));
        const path = parseMotion(`pan ${x} ${y}`);
        const got = await warped(values, shape, (z) => warpByCells(z, motionAt(path, k, 8, 1.5)));
        assert.deepEqual(got, want, `${x} ${y} at ${k}`);
      }
    }
  });

  it("copy values where the picture turns and grows", async () => {
    const path = parseMotion("rotate 9; zoom 1.1");
    const got = await warped(values, shape, (z) => warpByCells(z, motionAt(path, 3, 8, 1.5)));
    const known = new Set(values);
    assert.ok(got.every((value) => known.has(value)));
    assert.notDeepEqual(got, values);
  });
});

describe("between cells", () => {
  const SIDE = 128;
  const shape = [1, 4, SIDE, SIDE];
  const plane = SIDE * SIDE;
  const values = new Generator(2).randn(shape);
  const fine = drawSubCellNoise(3, shape);
  const between = (affine: Affine, level = 1) =>
    warped(values, shape, (z) => warpBetweenCells(z, affine, fine, level));

  /** Mean product of values and their neighbours `dx`, `dy` away, away from the border. */
  function product(x: Float32Array, y: Float32Array, dx = 0, dy = 0): number {
    const margin = 40;
    let sum = 0, count = 0;
    for (let c = 0; c < 4; c++) {
      for (let v = margin; v < SIDE - margin; v++) {
        for (let u = margin; u < SIDE - margin; u++, count++) {
          const at = c * plane + v * SIDE + u;
          sum += x[at] * y[at + dy * SIDE + dx];
        }
      }
    }
    return sum / count;
  }

  const mean = (x: Float32Array) => x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = (x: Float32Array) => mean(x.map((value) => value * value)) - mean(x) ** 2;

  it("noise keeps variance 1 within 2 %, and neighbours stay strangers", async () => {
    for (const offset of [0, 0.125, 0.25, 0.5, 0.75, 0.9, 1]) {
      for (const affine of [moved(offset, 0, SIDE), moved(0.5, offset, SIDE)]) {
        const out = await between(affine);
        assert.ok(Math.abs(variance(out) - 1) < 0.02, `${offset}: ${variance(out)}`);
        for (const [dx, dy] of [[1, 0], [0, 1], [1, 1], [2, 0]]) {
          const likeness = product(out, out, dx, dy);
          assert.ok(Math.abs(likeness) < 0.05, `${offset}: ${likeness} to ${dx}, ${dy}`);
        }
      }
    }
    // What interpolation alone would leave: a quarter, half a cell away on both axes.
    const plain = await between(moved(0.5, 0.5, SIDE), 0);
    assert.ok(Math.abs(variance(plain) - 0.25) < 0.02, `${variance(plain)}`);
  });

  it("noise keeps its variance under turns and zooms", async () => {
    const path = parseMotion("rotate 4; zoom 1.03; pan 3 2");
    for (const k of [1, 4, 9]) {
      const out = await between(motionAt(path, k, 16, 1));
      assert.ok(Math.abs(variance(out) - 1) < 0.02, `${k}: ${variance(out)}`);
      const likeness = [product(out, out, 1, 0), product(out, out, 0, 1)];
      assert.ok(likeness.every((value) => Math.abs(value) < 0.25), `${k}: ${likeness}`);
    }
  });

  it("frames see the same noise, as far as their cells overlap", async () => {
    const quarter = await between(moved(0.25, 0, SIDE));
    const onward = await between(moved(1.25, 0, SIDE));
    for (let u = 1; u < SIDE - 3; u++) {
      assert.ok(Math.abs(quarter[u + 1] - onward[u]) < 1e-3, `${u}`);
    }
    const still = await between(moved(0, 0, SIDE));
    assert.ok(still.every((value, i) => Math.abs(value - values[i]) < 0.02));
    const half = product(still, await between(moved(0.5, 0, SIDE)));
    assert.ok(Math.abs(half - 0.5) < 0.05, `${half}`);
  });

  it("what is no noise moves by parts of a cell", async () => {
    const ramp = Float32Array.from({ length: 4 * plane }, (_, i) => i % SIDE);
    for (const offset of [0.3, 2.75]) {
      const affine = moved(offset, 0.4, SIDE);
      const out = await warped(ramp, shape, (z) => warpBetweenCells(z, affine, fine, 0));
      for (let u = 0; u < SIDE - 4; u++) {
        assert.ok(Math.abs(out[5 * SIDE + u] - u - offset) < 1e-3, `${u}: ${out[5 * SIDE + u]}`);
      }
    }
  });

  it("the border is mirrored", async () => {
    const ramp = Float32Array.from({ length: 4 * plane }, (_, i) => i % SIDE);
    const affine = moved(-4, 0, SIDE);
    const out = await warped(ramp, shape, (z) => warpBetweenCells(z, affine, fine, 0));
    [3, 2, 1, 0, 0, 1, 2].forEach((want, u) => assert.ok(Math.abs(out[u] - want) < 1e-3, `${u}`));
  });
});

describe("videos", () => {
  const PROMPT = "a red heart in a green meadow";
  const QUICK = { width: 64, height: 64, steps: 3, t0: 0, t1: 1, frames: 3, seed: 5 } as const;
  const SIZE = 4 * 8 * 8;
  const video = (options: TextToVideoOptions = {}) =>
    latentsOf(textToVideo(sd, PROMPT, { ...QUICK, ...options }));

  it("with a pan by whole cells are those with its strengths", async () => {
    const strengths = { motionFieldStrengthX: 24, motionFieldStrengthY: -40 };
    const want = await video(strengths);
    assert.deepEqual(await video({ motion: "pan 24 -40", subCell: false }), want);
    const path = [{ frame: 0, moves: [{ kind: "pan", amounts: [24, -40] }] }] as const;
    assert.deepEqual(await video({ motion: path, subCell: false }), want);
    const fine = await video({ motion: "pan 24 -40" });
    assert.deepEqual(await video({ ...strengths, subCell: true }), fine);
    assert.notDeepEqual(fine, want);
    assert.deepEqual(fine.slice(0, SIZE), want.slice(0, SIZE), "the first frame stays");
  });

  it("take sentences with every kind of scheduler, frame by frame", async () => {
    for (const scheduler of ["euler", "dpm++", "pndm"]) {
      const latents = await video({ motion: "zoom 1.05; rotate 3", scheduler, frames: 2 });
      assert.ok(latents.every(Number.isFinite), scheduler);
    }
    const motion = "0: pan 9 4; 2: still";
    const [few, chosen] = [
      await video({ motion }),
      await video({
        motion,
        frames: undefined,
        frameIds: [0, 2],
      }),
    ];
    assert.deepEqual(chosen.slice(SIZE), few.slice(2 * SIZE));
  });

  it("say what moves them in their settings", () => {
    const settings = (options: TextToVideoOptions) => {
      const clip = textToVideo(sd, PROMPT, { ...QUICK, ...options });
      clip.dispose();
      const { motion, subCell, motionFieldStrengthX: x } = clip.settings;
      return [motion, subCell, x, clip.warnings.length];
    };
    assert.deepEqual(settings({}), [true, false, 32, 0]);
    assert.deepEqual(settings({ motion: false }), [false, false, 32, 0]);
    assert.deepEqual(settings({ motion: " orbit  12.0" }), ["orbit 12", true, undefined, 0]);
    const far = settings({ motion: "pan 99 0", subCell: false });
    assert.deepEqual(far, ["pan 99 0", false, undefined, 1]);
  });

  it("refuse motion that contradicts itself or does not fit", () => {
    const cases: [TextToVideoOptions, RegExp][] = [
      [{ motion: "pan 1 0", motionFieldStrengthY: 3 }, /give one/],
      [{ motion: "walk" }, /motion "walk": at character 1/],
      [{ motion: "0: pan 1 0; 3: still" }, /key frame 3 lies outside the clip/],
    ];
    for (const [options, message] of cases) {
      assert.throws(() => textToVideo(sd, PROMPT, { ...QUICK, ...options }), message);
    }
  });
});
