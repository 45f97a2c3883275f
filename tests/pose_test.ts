/**
 * Keypoint files, and drawings of skeletons against OpenCV's, which `golden/pose/make.py` stored.
 */

import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import fc from "fast-check";
import { InputError } from "../core/errors.ts";
import { parsePoses, type Pose, readPoses } from "../video/conditions/keypoints.ts";
import { drawPose, poseFrames } from "../video/conditions/pose.ts";
import type { Frame } from "../video/frame.ts";
import { readPicture } from "../video/picture.ts";

const FOLDER = new URL("golden/pose/", import.meta.url);
const DRAWINGS = ["standing", "jumping", "crowd", "outside", "scattered", "one-point", "nobody"];

/** The numbers of a person whose joints lie on a circle. */
function circle(joints: number, confidence = 0.8): number[] {
  return Array.from({ length: joints }, (_, k) => [
    50 + 40 * Math.cos(k),
    50 + 40 * Math.sin(k),
    confidence,
  ]).flat();
}

function fileOf(numbers: unknown, more: Record<string, unknown> = {}): string {
  const people = [{ pose_keypoints_2d: numbers, hand_left_keypoints_2d: [] }];
  return JSON.stringify({ version: 1.3, people, ...more });
}

function colours({ data }: Frame): Set<string> {
  const found = new Set<string>();
  for (let at = 0; at < data.length; at += 3) found.add(data.subarray(at, at + 3).join());
  return found;
}

for (const name of DRAWINGS) {
  test(`the drawing "${name}": every pixel as OpenCV has it`, async () => {
    const want = await readPicture(new URL(`${name}.png`, FOLDER));
    const { poses, warnings } = await readPoses(new URL(`${name}.json`, FOLDER));
    assert.deepEqual(warnings, []);
    assert.equal(poses.length, 1);
    const got = drawPose(poses[0], want);
    const different = got.data.filter((value, i) => value !== want.data[i]).length;
    assert.equal(different, 0, `${different} values differ`);
  });
}

test("the palette: 18 hues, 20 degrees apart", () => {
  const apart = Array.from({ length: 18 }, (_, k) => [20 * k + 10, 10] as const);
  const joints = (k: number) => apart.map((joint, i) => i === k ? joint : null);
  const pose: Pose = {
    canvas: { width: 360, height: 20 },
    people: apart.map((_, k) => joints(k)),
  };
  assert.deepEqual(
    colours(drawPose(pose, { width: 360, height: 20 })),
    new Set([
      ...["0,0,0", "255,0,0", "255,85,0", "255,170,0", "255,255,0", "170,255,0", "85,255,0"],
      ...["0,255,0", "0,255,85", "0,255,170", "0,255,255", "0,170,255", "0,85,255", "0,0,255"],
      ...["85,0,255", "170,0,255", "255,0,255", "255,0,170", "255,0,85"],
    ]),
  );
});

test("BODY_25 is drawn as its 18 joints of COCO", () => {
  const coco = circle(18);
  const at = (k: number) => coco.slice(3 * k, 3 * k + 3);
  const range = (from: number, to: number) =>
    Array.from({ length: to - from }, (_, k) => at(from + k)).flat();
  const middleHip = [7, 8, 0.9];
  const feet = Array.from({ length: 18 }, () => 3);
  const body25 = [...range(0, 8), ...middleHip, ...range(8, 18), ...feet];
  assert.equal(body25.length, 75);
  const [{ people }] = parsePoses(fileOf(body25), "a.json").poses;
  assert.deepEqual(people, parsePoses(fileOf(coco), "b.json").poses[0].people);
});

test("joints that are not seen are left out, with their limbs", () => {
  const numbers = circle(18);
  numbers.splice(3 * 4, 3, 0, 0, 0);
  const [pose] = parsePoses(fileOf(numbers), "a.json").poses;
  assert.equal(pose.people[0][4], null);
  const frame = drawPose(pose, { width: 100, height: 100 }, { width: 100, height: 100 });
  assert.equal(colours(frame).has("170,255,0"), false, "the colour of the wrist");
  assert.deepEqual([...frame.data.subarray(0, 3)], [0, 0, 0]);
});

test("joints follow the picture to another size, and are cropped with it", () => {
  const point = (x: number, y: number): Pose["people"] => [[[x, y], ...Array(17).fill(null)]];
  const canvas = { width: 640, height: 360 };
  const spot = (pose: Pose, size: { width: number; height: number }) => {
    const frame = drawPose(pose, size);
    const lit = [...frame.data.keys()].filter((i) => frame.data[i] === 255).map((i) => i / 3);
    const mean = (of: (i: number) => number) => lit.reduce((sum, i) => sum + of(i), 0) / lit.length;
    return [mean((i) => i % size.width), mean((i) => Math.floor(i / size.width))];
  };
  const pose = { canvas, people: point(320, 180) };
  assert.deepEqual(spot(pose, { width: 64, height: 36 }), [32, 18]);
  assert.deepEqual(spot(pose, { width: 512, height: 512 }), [256, 256]);
  // A square shows the middle 360 columns.
  assert.deepEqual(spot({ canvas, people: point(140 + 90, 90) }, { width: 128, height: 128 }), [
    32,
    32,
  ]);
});

test("a clip: one file, a list, or a folder in the order of its numbers", async () => {
  const folder = await mkdtemp(join(tmpdir(), "framezero-pose-"));
  try {
    const frame = (x: number) =>
      fileOf(circle(18).map((value, i) => i === 0 ? x : value), {
        canvas_width: 100,
        canvas_height: 100,
      });
    const noses = async (source: Parameters<typeof readPoses>[0]) =>
      (await readPoses(source)).poses.map(({ people }) => people[0][0]?.[0]);
    for (const [name, x] of [["walk_2", 2], ["walk_10", 10], ["walk_1", 1]] as const) {
      await writeFile(join(folder, `${name}_keypoints.json`), frame(x));
    }
    await writeFile(join(folder, "notes.txt"), "not a pose");
    assert.deepEqual(await noses(folder), [1, 2, 10]);
    assert.deepEqual(await noses(pathToFileURL(folder)), [1, 2, 10]);
    const list = new TextEncoder().encode(`[${frame(5)}, ${frame(4)}]`);
    assert.deepEqual(await noses(list), [5, 4]);
    assert.deepEqual(await noses(new Blob([list])), [5, 4]);
    const { poses } = await readPoses(list);
    const sizes = [...poseFrames(poses, { width: 64, height: 48 })].map(({ data }) => data.length);
    assert.deepEqual(sizes, [3 * 64 * 48, 3 * 64 * 48]);
    const empty = join(folder, "empty");
    await mkdir(empty);
    await assert.rejects(readPoses(empty), /must hold \.json files/);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("hands and faces are left out with a remark, once", () => {
  const person = { pose_keypoints_2d: circle(18), face_keypoints_2d: circle(70) };
  const frame = { people: [person], canvas_width: 100, canvas_height: 100 };
  const { warnings, poses } = parsePoses(JSON.stringify([frame, frame]), "a.json");
  assert.deepEqual(warnings, ["joints of hands and faces are not drawn; bodies are"]);
  assert.equal(poses.length, 2);
  assert.deepEqual(parsePoses(fileOf(circle(18)), "a.json").warnings, []);
});

test("what is no keypoint file is refused, and the message says what is expected", () => {
  const wrong: [string, RegExp][] = [
    ["", /clip\.json: a keypoint file is JSON.*this is no JSON/],
    ['{"people": [{"pose_keypoints_2d": [NaN]}]}', /this is no JSON/],
    ["[]", /this list is empty/],
    ["7", /"people" is missing/],
    ['{"people": {}}', /"people" is missing, or no list/],
    ['[{"people": []}, {"persons": []}]', /clip\.json, frame 1: .*"people" is missing/],
    ['{"people": [7]}', /person 0: .*"pose_keypoints_2d" is missing/],
    [fileOf("none"), /"pose_keypoints_2d" is missing, or no list/],
    [fileOf([]), /18 joints \(COCO\) or 25 \(BODY_25\), got 0/],
    [fileOf(circle(17)), /got 51/],
    [fileOf(circle(18).with(5, NaN)), /number 5 is null .*not seen has 0, 0, 0/],
    [fileOf(circle(18)).replace("0.8", "1e999"), /number 2 is null/],
    [fileOf([...circle(17), "1", 2, 3]), /number 51 is "1"/],
    [fileOf(circle(18), { canvas_width: 640 }), /canvas_width .* got 640 and undefined/],
    [fileOf(circle(18), { canvas_width: 640, canvas_height: 0.5 }), /got 640 and 0\.5/],
  ];
  for (const [text, message] of wrong) {
    assert.throws(() => parsePoses(text, "clip.json"), (error) => {
      assert.ok(error instanceof InputError, String(error));
      assert.match(error.message, message);
      return true;
    });
  }
});

test("drawings without a canvas, of fractions, far off or of no size are refused", () => {
  const size = { width: 64, height: 64 };
  const [pose] = parsePoses(fileOf(circle(18)), "a.json").poses;
  assert.throws(() => drawPose(pose, size), /does not say how large .* give the size/);
  assert.throws(() => drawPose(pose, size, { width: 0, height: 9 }), /canvas .* got 0x9/);
  assert.throws(() => drawPose(pose, { width: 1.5, height: 2 }, size), /drawing .* got 1\.5x2/);
  const numbers = circle(18).map((value, i) => i % 3 < 2 ? value / 100 : value);
  const { poses } = parsePoses(fileOf(numbers), "a.json");
  assert.throws(
    () => [...poseFrames(poses, size, size)],
    /^InputError: pose 0: .*--keypoint_scale/,
  );
  const far = parsePoses(fileOf(circle(18).with(4, 1e300)), "a.json").poses[0];
  assert.throws(() => drawPose(far, size, size), /64x64 canvas or near it, one is at .*1e\+300/);
});

test("whatever is in a file, it is a clip or an InputError", () => {
  const value = fc.oneof(
    fc.constantFrom<unknown>(54, 75, "x", null, 0, [0, 0, 0], circle(18), circle(25)),
    fc.jsonValue(),
  );
  const frame = fc.record(
    { people: fc.array(fc.record({ pose_keypoints_2d: value })), canvas_width: value },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(fc.oneof(frame, fc.array(frame), value), (content) => {
      try {
        const { poses } = parsePoses(JSON.stringify(content), "a.json");
        return poses.length > 0 &&
          poses.every(({ people }) => people.every((p) => p.length === 18));
      } catch (error) {
        return error instanceof InputError;
      }
    }),
    { numRuns: 300, seed: 2 },
  );
});
