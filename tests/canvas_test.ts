/**
 * A canvas of latents: how windows lie, what they are averaged to, and what a camera sees of it.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { linearCombination } from "../kernels/mod.ts";
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
import { parseMotion } from "../video/motion.ts";
import {
  type Affine,
  drawSubCellNoise,
  mirroredIndexes,
  warpBetweenCells,
  warpByCells,
} from "../video/motion_field.ts";
import { MOST_ZOOM, motionAt, motionRemark, REACH } from "../video/motion_path.ts";
import { near, valuesOf } from "./values.ts";

const device = await openDevice();
after(() => device.close());

const EXTENTS = fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 4 }))
  .filter(([columns, rows]) => columns * rows > 1);
const SIDES = fc.tuple(fc.integer({ min: 1, max: 13 }), fc.integer({ min: 1, max: 13 }));

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
      const cut = await valuesOf(device, () => cutWindows(whole(), canvas));
      const want = windows.flatMap(([top, left]) =>
        Array.from({ length: 3 * h * w }, (_, i) => {
          const [c, v, u] = [Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w];
          return x[(c * H + top + v) * W + left + u];
        })
      );
      assert.deepEqual([...cut], want);
      near(
        await valuesOf(device, () => averageWindows(cutWindows(whole(), canvas), canvas)),
        x,
        1e-6,
      );

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
      near(
        await valuesOf(device, () => averageWindows(device.tensor(parts, shape), canvas)),
        mean,
        1e-6,
      );
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
      valuesOf(device, () => drawAround(device.tensor(first, [1, 4, 16, 16]), canvas, seed));
    const drawn = await draw(5);
    const middle = await valuesOf(device, () => {
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
      const got = await valuesOf(
        device,
        () => warpBetweenCells(latents(), affine, fine, 0.7, canvas),
      );
      const want = await valuesOf(
        device,
        () => middleOf(warpBetweenCells(latents(), over(affine), fine, 0.7), canvas),
      );
      near(got, want, 2e-4);
    }
  });

  it("copies whole cells, and meets a mirror at the canvas' border alone", async () => {
    for (const [x, y] of [[0, 0], [7, -2], [-12, 4], [17, -9]]) {
      // Half a grid pixel is less than a cell.
      const affine: Affine = [1, 0, (x + 0.1) / w, 0, 1, (y + 0.1) / h];
      const got = await valuesOf(device, () => warpByCells(latents(), affine, canvas));
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
