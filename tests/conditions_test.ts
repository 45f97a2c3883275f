/**
 * From clips to conditions: what each kind makes of ordinary videos and of ready maps.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { canny } from "../video/conditions/canny.ts";
import { conditionFrames, type ConditionOptions } from "../video/conditions/condition_frames.ts";
import { type ConditionKind, CONDITIONS } from "../video/conditions/kinds.ts";
import { depthBounds, normaliseDepth } from "../video/conditions/maps.ts";
import type { Frame } from "../video/frame.ts";
import type { Frames } from "../video/writer.ts";

const device = await openDevice();
after(() => device.close());

/** A frame of 2×2 grey pixels. */
function grey(...levels: number[]): Frame {
  return { width: 2, height: 2, data: Uint8Array.from(levels.flatMap((x) => [x, x, x])) };
}

/** A frame with a bright square on the ground of a level. */
function square(left: number, ground = 20, paint = 230): Frame {
  const [width, height] = [40, 30];
  const data = new Uint8Array(3 * width * height).fill(ground);
  for (let y = 10; y < 20; y++) {
    data.fill(paint, 3 * (y * width + left), 3 * (y * width + left + 10));
  }
  return { width, height, data };
}

async function made(
  kind: ConditionKind,
  frames: Frames,
  options?: ConditionOptions,
): Promise<{ frames: Frame[]; remarks: string[] }> {
  const remarks: string[] = [];
  const onRemark = (remark: string) => void remarks.push(remark);
  const all = await Array.fromAsync(
    conditionFrames(device, kind, frames, { ...options, onRemark }),
  );
  return { frames: all, remarks };
}

const levels = ({ data }: Frame) => [...data].filter((_, i) => i % 3 === 0);

test("canny: an ordinary video becomes its edges, with the settings given", async () => {
  const clip = [square(3), square(5)];
  const { frames, remarks } = await made("canny", clip);
  assert.deepEqual(frames, [await canny(device, clip[0]), await canny(device, clip[1])]);
  assert.notDeepEqual(frames[0], frames[1]);
  assert.deepEqual(remarks, []);
  const strict = await made("canny", clip, { lowThreshold: 1300, highThreshold: 1300 });
  assert.ok(strict.frames[0].data.every((level) => level === 0));
  assert.deepEqual((await made("scribble", clip, { source: "video" })).frames, frames);
  const edges = await made("canny", frames, { source: "maps" });
  assert.deepEqual(edges.frames, frames, "ready edges pass through");
});

test("one frame is asked for at a time, and a clip that is left is closed", async () => {
  let [asked, closed] = [0, false];
  function* clip(): Generator<Frame> {
    try {
      for (;; asked++) yield square(asked % 30);
    } finally {
      closed = true;
    }
  }
  let got = 0;
  for await (const frame of conditionFrames(device, "canny", clip())) {
    assert.equal(frame.width, 40);
    assert.equal(asked, got);
    if (++got === 3) break;
  }
  assert.equal(closed, true);
});

test("maps of other kinds pass through untouched", async () => {
  const clip = [square(3, 5, 200), square(9, 5, 200)];
  for (const kind of ["pose", "segmentation", "normals", "lineart", "scribble"] as const) {
    const { frames, remarks } = await made(kind, clip);
    assert.deepEqual(frames, clip, kind);
    assert.deepEqual(remarks, [], kind);
  }
});

test("depth: one scale for the whole clip, its own or a given one, or none", async () => {
  const clip = [grey(50, 60, 70, 80), grey(100, 110, 120, 150)];
  assert.deepEqual(await depthBounds(clip), { least: 50, greatest: 150 });
  const scaled = (await made("depth", clip)).frames.map(levels);
  assert.deepEqual(scaled, [[0, 26, 51, 77], [128, 153, 179, 255]]);
  const kept = await made("depth", clip, { depth: "keep" });
  assert.deepEqual(kept.frames, clip);
  const once = function* () {
    yield* clip;
  };
  const given = await made("depth", once(), { depth: { least: 60, greatest: 110 } });
  assert.deepEqual(given.frames.map(levels), [[0, 0, 51, 102], [204, 255, 255, 255]]);
  const far = await made("depth", clip, { invert: true });
  assert.deepEqual(far.frames.map(levels), scaled.map((row) => row.map((level) => 255 - level)));
  const again = {
    [Symbol.asyncIterator]: async function* () {
      yield* clip;
    },
  };
  assert.deepEqual((await Array.fromAsync(normaliseDepth(again))).map(levels), scaled);
});

test("depth that cannot be scaled is refused, and the message says what helps", async () => {
  const once = function* () {
    yield grey(1, 2, 3, 4);
  };
  const red = {
    ...grey(0, 0, 0, 0),
    data: Uint8Array.from({ length: 12 }, (_, i) => i % 3 ? 0 : 200),
  };
  const refused: [Frames, ConditionOptions, RegExp][] = [
    [once(), {}, /a generator, which can be read once; give the frames as a list/],
    [[grey(7, 7, 7, 7)], {}, /got 7 and 7, all depths of the clip are equal/],
    [[grey(7, 7, 7, 9)], { depth: { least: 9, greatest: 3 } }, /got 9 and 3$/],
    [[grey(1, 2, 3, 4), red], {}, /must be grey.* frame 1 is coloured/],
    [[], {}, /must have a frame/],
  ];
  for (const [clip, options, message] of refused) {
    await assert.rejects(made("depth", clip, options), (error) => {
      assert.ok(error instanceof InputError);
      assert.match(error.message, message);
      return true;
    });
  }
});

test("dark lines on white are inverted, all frames alike, with a remark", async () => {
  const light = [square(3, 255, 0), square(9, 20, 0)];
  const dark = light.map((frame) => ({ ...frame, data: frame.data.map((x) => 255 - x) }));
  const found = await made("scribble", light);
  assert.deepEqual(found.frames, dark);
  assert.equal(found.remarks.length, 1);
  assert.match(
    found.remarks[0],
    /light ground; they are inverted, as scribble wants strokes in white/,
  );
  const kept = await made("scribble", light, { invert: false });
  assert.deepEqual([kept.frames, kept.remarks], [light, []]);
  const asked = await made("segmentation", light, { invert: true });
  assert.deepEqual([asked.frames, asked.remarks], [dark, []]);
});

test("a clip of poses that is none is remarked on", async () => {
  const { frames, remarks } = await made("pose", [square(3, 90)]);
  assert.equal(frames.length, 1);
  assert.match(remarks[0], /skeletons in OpenPose's colours on black; this one does not look like/);
});

test("what cannot become conditions is refused", async () => {
  const clip = [square(3)];
  const refused: [ConditionKind, Frames, ConditionOptions, RegExp][] = [
    ["depth", clip, { source: "video" }, /depth is not made of ordinary videos here.*MiDaS/],
    ["pose", clip, { source: "video" }, /OpenPose or DWPose, whose keypoint files can be drawn/],
    ["sketch" as ConditionKind, clip, {}, /one of canny, depth, .*: got "sketch"/],
    ["canny", clip, { lowThreshold: 300 }, /0 ≤ low ≤ high/],
    ["pose", [square(3), grey(1, 2, 3, 4)], {}, /frame 1 is 2x2, the first is 40x30/],
    ["normals", [{ ...square(3), width: 9 }], {}, /frame 0 holds 3600/],
  ];
  for (const [kind, frames, options, message] of refused) {
    await assert.rejects(made(kind, frames, options), (error) => {
      assert.ok(error instanceof InputError);
      assert.match(error.message, message);
      return true;
    });
  }
});

test("the table: a model and prompts for every kind, the original's where it has them", () => {
  for (const [kind, info] of Object.entries(CONDITIONS)) {
    assert.match(info.model, /^lllyasviel\/(sd-controlnet-|control_v11)/, kind);
    assert.ok(info.promptSuffix.startsWith("best quality, extremely detailed"), kind);
    assert.ok(info.negativePrompt.startsWith("longbody, lowres, bad anatomy"), kind);
    assert.ok(info.source === "maps" || info.maker === null, kind);
  }
  assert.match(CONDITIONS.pose.promptSuffix, /trending on artstation, art, smooth$/);
  assert.match(
    CONDITIONS.pose.negativePrompt,
    /fewer difits, cropped.*bloated, ugly, unrealistic$/,
  );
  assert.match(
    CONDITIONS.canny.negativePrompt,
    /fewer digits, cropped, worst quality, low quality$/,
  );
});
