/** Background smoothing on the command line: its sources of masks, `--from`, and bad input. */

import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { encodeSafetensors } from "../core/safetensors.ts";
import type { Frame } from "../video/frame.ts";
import { encodePng } from "../video/png.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";

const root = await mkdtemp(join(tmpdir(), "framezero-smoothing-"));
after(() => rm(root, { recursive: true, force: true }));

const PROMPT = "a red heart in a green meadow";
const QUICK = ["--frames", "2", "--steps", "3", "--t0", "1", "--t1", "2"]
  .concat("--width", "64", "--height", "64", "--quiet");

/** A picture that is light on its left half. */
function leftHalf(width: number, height: number): Frame {
  const data = new Uint8Array(3 * width * height)
    .map((_, i) => 2 * (Math.floor(i / 3) % width) < width ? 255 : 0);
  return { width, height, data };
}

const mask = join(root, "mask.png");
await writeFile(mask, await encodePng(leftHalf(32, 32)));
const wide = join(root, "wide.png");
await writeFile(wide, await encodePng(leftHalf(32, 16)));
const masks = join(root, "masks");
await mkdir(masks);
await writeFile(join(masks, "frame_9.png"), await encodePng(leftHalf(64, 64)));
await writeFile(join(masks, "frame_10.png"), await encodePng(leftHalf(64, 64)));
await writeFile(join(masks, "settings.json"), "{}");
const nothing = join(root, "nothing");
await mkdir(nothing);

test("a subject, and the same again from the file's settings", async () => {
  const file = join(root, "subject.png");
  const subject = ["--subject", "red heart", "--smooth", "0.2", "--smooth-blend", "paper"];
  const first = await run([PROMPT, ...QUICK, ...subject, "-o", file, "--json"]);
  assert.equal(first.code, 0, first.stderr);
  const settings = await readSettings(file);
  assert.deepEqual(
    [settings?.subject, settings?.smooth, settings?.smoothBlend],
    ["red heart", 0.2, "paper"],
  );
  const again = join(root, "again.png");
  const second = await run(["--from", file, "--quiet", "-o", again]);
  assert.equal(second.code, 0, second.stderr);
  assert.deepEqual(await readSettings(again), settings);
  // Masks that a flag names replace the subject, and what else was stored stays.
  const other = join(root, "other.png");
  const third = await run(["--from", file, "--mask-video", masks, "--quiet", "-o", other]);
  assert.equal(third.code, 0, third.stderr);
  const changed = await readSettings(other);
  assert.deepEqual(
    [changed?.subject, changed?.maskVideo, changed?.smooth],
    [undefined, masks, 0.2],
  );
  // A picture has no background to smooth towards another frame's.
  const picture = await run(["image", "--from", file, "--quiet", "-o", join(root, "image.png")]);
  assert.equal(picture.code, 0, picture.stderr);
});

test("one mask for all frames, and bad input", async () => {
  const target = ["-o", join(root, "bad.png")];
  const one = await run([PROMPT, ...QUICK, "--mask-video", mask, "-o", join(root, "one.png")]);
  assert.equal(one.code, 0, one.stderr);
  const usage = (args: string[], message: RegExp) =>
    refused([PROMPT, ...QUICK, ...args, ...target], 2, message);
  await usage(["--smooth", "0.3"], /know where the foreground is: give --subject, --mask-video/);
  await usage(["--smooth", "2", "--subject", "heart"], /at most 1/);
  await usage(["--smooth-blend", "both", "--subject", "heart"], /code, paper/);
  await usage(["--subject", "heart", "--mask-video", mask], /one source: give one of --subject/);
  await usage(["--subject", "star"], /no word "star"; its words are a, red, heart, in, green/);
  await usage(["--subject", "heart", "--frames", "1"], /needs two at least, got 1/);
  await refused(["image", PROMPT, "--subject", "heart"], 2, /unknown option '--subject'/);
  const failure = (args: string[], message: RegExp) =>
    refused([PROMPT, ...QUICK, ...args, ...target], 1, message);
  await failure(["--mask-video", join(root, "none.png")], /none\.png.*no such file/);
  await failure(["--mask-video", nothing], /a folder must hold pictures/);
  await failure(["--mask-video", wide], /aspect of the clip, 64x64; mask 0 is 32x16/);
  await failure(["--mask-video", masks, "--frames", "3"], /3 frames needs 3 masks, got 2/);
  await failure(["--saliency", join(root, "none.safetensors")], /no such file/);
  await failure(["--saliency", mask], /mask\.png/);
  const empty = join(root, "empty.safetensors");
  await writeFile(empty, encodeSafetensors([]));
  await failure(["--saliency", empty], /give a checkpoint of U²-Net/);
});
