/** All measures in one pass: which there are, memory, the chart, and the command `measure`. */

import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import type { Frame } from "../video/frame.ts";
import { measure } from "../video/metrics/measure.ts";
import { plotMeasures } from "../video/metrics/plot.ts";
import { writeVideo } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { flat, greyFrame, noiseFrame, texture } from "./metrics_setup.ts";

const device = await openDevice();
const root = await mkdtemp(join(tmpdir(), "framezero-measure-"));
after(async () => {
  await device.close();
  await rm(root, { recursive: true });
});

const ground = texture("ground");

/** A texture that moves by a pixel a frame. */
const moving = (count: number, side = 32) =>
  Array.from({ length: count }, (_, t) => greyFrame(side, side, (x, y) => ground(x - t, y)));

test("a clip has the measures that it is long enough for, and remarks for the others", async () => {
  const present = async (count: number) => {
    const { remarks, frames: _f, width: _w, height: _h, ...measures } = await measure(
      moving(count),
      count < 9 ? {} : { device },
    );
    const there = Object.entries(measures).filter(([, value]) => value !== undefined);
    return { there: there.map(([name]) => name), remarks };
  };
  assert.deepEqual(await present(2), {
    there: ["similarity"],
    remarks: [
      "the number of scene cuts needs at least 16 frames, the clip has 2",
      "the flicker spectrum needs at least 8 frames, the clip has 2",
    ],
  });
  assert.deepEqual((await present(8)).there, ["similarity", "flicker"]);
  const whole = await present(16);
  assert.deepEqual(whole.there, ["motion", "similarity", "sceneCuts", "flicker"]);
  assert.deepEqual(whole.remarks, []);
});

test("one frame, and none, say what more would be needed", async () => {
  await assert.rejects(() => measure(moving(1), { device }), (error: unknown) => {
    assert.ok(error instanceof InputError);
    assert.match(error.message, /^there is nothing to measure: .*PSNR, SSIM\) needs at least 2/);
    assert.match(error.message, /scene cuts needs at least 16.*flicker.*8.*motion.*2 frames/);
    return true;
  });
  await assert.rejects(() => measure([]), /at least one frame: got none/);
  await assert.rejects(
    () => measure([flat(20, 20, [0, 0, 0]), flat(20, 21, [0, 0, 0])]),
    /all frames of a video must have one size: frame 1 is 20x21, the first is 20x20/,
  );
});

/** Frames that all lie in the same bytes. */
function* overwritten(count: number): Generator<Frame> {
  const { width, height, data } = noiseFrame(16, 16, "moving");
  for (let t = 0; t < count; t++) {
    data.copyWithin(0, 3);
    yield { width, height, data };
  }
}

test("none of 500 frames is kept", async () => {
  const copied = Array.from(overwritten(500), (frame) => ({ ...frame, data: frame.data.slice() }));
  const measures = await measure(overwritten(500));
  assert.equal(measures.frames, 500);
  assert.deepEqual(measures, await measure(copied));
});

test("GPU memory does not grow with the length of a clip", async () => {
  const { live } = device.memory();
  const peakOf = async (count: number) => {
    device.resetPeak();
    await measure(overwritten(count), { device });
    return device.memory().peak;
  };
  await peakOf(5); // fills the pool
  assert.equal(await peakOf(60), await peakOf(10));
  assert.equal(device.memory().live, live);
});

test("what the frames throw ends the measuring, and frees what it held", async () => {
  const before = device.memory().live;
  function* broken(): Generator<Frame> {
    yield* moving(2);
    throw new Error("the disk broke");
  }
  await assert.rejects(() => measure(broken(), { device }), /the disk broke/);
  assert.equal(device.memory().live, before);
});

test("the chart has a curve for each measure, and gaps where there is no value", async () => {
  const frames = [
    ...moving(20),
    ...moving(20).map(({ data, ...size }) => ({
      ...size,
      data: data.map((value) => 255 - value >> 1),
    })),
  ];
  frames[4] = frames[3]; // of infinite PSNR
  const measures = await measure(frames, { device });
  assert.equal(measures.sceneCuts?.count, 1);
  const chart = plotMeasures(measures, { title: "a <clip>", fps: 8 });
  assert.match(chart, /^<svg [^]*<\/svg>\n$/);
  assert.match(chart, /a &lt;clip&gt;/);
  for (const title of ["motion, pixels", "warp error", "SSIM", "PSNR", "scene change", "luma"]) {
    assert.ok(chart.includes(title), title);
  }
  // 6 curves over time, one of them in two pieces, and the spectrum.
  assert.equal(chart.match(/<polyline/g)?.length, 8);
  assert.equal(chart.match(/class="cut"/g)?.length, 6);
  assert.match(chart, />4\.88</); // the last of 40 frames, in seconds
  assert.doesNotMatch(chart, /NaN|Infinity/);
  assert.match(plotMeasures(measures, { title: "clip" }), />frame<[^]*>cycles a frame</);
});

/** A folder of frames. */
async function folderOf(name: string, frames: Frame[], settings = {}): Promise<string> {
  const path = join(root, name);
  await writeVideo(frames, `${path}/`, { fps: 8, settings: { fps: 8, ...settings } });
  return path;
}

test("the command prints a table, JSON and a chart", async () => {
  const clip = await folderOf("clip", moving(16));
  const chart = join(root, "chart.svg");
  const shown = await run(["measure", clip, "--plot", chart]);
  assert.equal(shown.code, 0, shown.stderr);
  assert.match(shown.stdout, /^frames +16 of 32x32, 8 a second\nOFS ↑ +\S+ pixels a frame/);
  assert.match(shown.stdout, /\nMAWE ↓ +\S+\n[^]*\nscene cuts ↓ +0\nflicker ↓ +\S+ 8-bit levels/);
  assert.match(await readFile(chart, "utf8"), /<svg /);
  const again = await run(["measure", clip, "--plot", chart, "--overwrite", "--json", "--quiet"]);
  assert.equal(again.stderr, "");
  const { source, fps, frames, motion } = JSON.parse(again.stdout);
  assert.deepEqual([source, fps, frames, motion.lengths.length], [clip, 8, 16, 15]);
  assert.ok(Math.abs(motion.opticalFlowScore - 1) < 0.1, again.stdout);
  await refused(["measure", clip, "--plot", chart], 1, /chart\.svg exists already/);
});

test("the command compares two clips", async () => {
  const [one, same] = [await folderOf("one", moving(3)), await folderOf("same", moving(3))];
  const other = await folderOf("other", moving(4).slice(1));
  const equal = await run(["measure", one, "--against", same, "--quiet"]);
  assert.equal(equal.stdout, "PSNR ↑  the same pictures\nSSIM ↑  1.00 of 1\n");
  const unequal = await run(["measure", one, "--against", other, "--json"]);
  const { frames, psnr, ssims } = JSON.parse(unequal.stdout);
  assert.deepEqual([frames, ssims.length], [3, 3]);
  assert.ok(psnr > 5 && psnr < 40);
});

test("the command refuses what it cannot measure", async () => {
  const clip = await folderOf("short", moving(1), { prompt: "waves" });
  const empty = join(root, "empty");
  await mkdir(empty);
  await refused(["measure", clip, "--quiet"], 1, /there is nothing to measure/);
  await refused(["measure", join(root, "nothing")], 1, /nothing/);
  await refused(["measure", empty], 1, /a folder must hold pictures/);
  await refused(["measure", clip, "--prompt", "a cat"], 2, /name a model with --clip/);
  await refused(["measure", clip, "--against", clip, "--plot", "x.svg"], 2, /only compares/);
  await refused(["measure", clip, "--against", clip, "--side", "64"], 2, /only compares/);
  await refused(["measure", clip, "--side", "3"], 2, /whole number of at least 15/);
  await refused(["measure", clip, "--clip", join(root, "none")], 1, /none/);
  const untold = await folderOf("untold", moving(1));
  await refused(["measure", untold, "--clip", "none"], 2, /say which with --prompt/);
});
