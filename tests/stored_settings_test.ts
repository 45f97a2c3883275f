/** The settings in files that `--from` names. */

import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { InputError } from "../core/errors.ts";
import { BUILT_IN_NAME } from "../models/stable_diffusion.ts";
import { readStored } from "../video/cli/stored.ts";

const root = await mkdtemp(join(tmpdir(), "framezero-stored-"));
after(() => rm(root, { recursive: true }));

const EMPTY = {
  options: {},
  model: {},
  pictures: {},
  clip: {},
  controls: {},
  smoothing: {},
  request: {},
};

let folders = 0;

/** A folder of pictures with such settings. */
async function written(settings: object): Promise<string> {
  const folder = join(root, `${folders++}`);
  await mkdir(folder);
  await writeFile(join(folder, "settings.json"), JSON.stringify(settings));
  return folder;
}

test("settings go to the parts of a request that they belong to", async () => {
  const file = await written({
    prompt: "a heart",
    steps: 5,
    motion: "zoom 1.1",
    prompts: { 4: "a star" },
    model: "models/own",
    init: "a.png",
    video: "a.mp4",
    start: 1.5,
    controlShort: "loop",
    subject: "heart",
    loras: [{ file: "a.safetensors", weight: 0.5 }],
    fps: 8,
    condition: "canny",
  });
  assert.deepEqual(await readStored(file), {
    options: { steps: 5, motion: "zoom 1.1", prompts: { 4: "a star" } },
    model: { model: "models/own" },
    pictures: { init: "a.png" },
    clip: { video: "a.mp4", start: 1.5 },
    controls: { controlShort: "loop" },
    smoothing: { subject: "heart" },
    request: {
      prompt: "a heart",
      loras: [{ file: "a.safetensors", weight: 0.5 }],
      fps: 8,
    },
  });
});

test("without a file there are no settings, and the built-in model needs none", async () => {
  assert.deepEqual(await readStored(undefined), EMPTY);
  assert.deepEqual(await readStored(await written({ model: BUILT_IN_NAME })), EMPTY);
});

test("settings of a wrong type are refused by file, name, type and value", async () => {
  const wrong: readonly (readonly [settings: object, message: RegExp])[] = [
    [{ steps: "5" }, /"steps" must be a number, it is "5"/],
    [{ prompt: null }, /"prompt" must be a string, it is null/],
    [{ crossFrame: 1 }, /"crossFrame" must be a boolean, it is 1/],
    [{ motion: 1 }, /"motion" must be a boolean or string, it is 1/],
    [{ frameIds: {} }, /"frameIds" must be a list, it is \{\}/],
    [{ prompts: ["a star"] }, /"prompts" must be a map, it is \["a star"\]/],
    [{ guidanceScales: null }, /"guidanceScales" must be a map, it is null/],
    [
      { loras: [{ file: 1, weight: 1 }] },
      /"loras" must be a list of files and weights, it is \[\{"file":1/,
    ],
    [
      { controls: [{ kind: "cany" }] },
      /"controls" must be a list of nets with their maps, it is \[\{"kind":"cany"/,
    ],
  ];
  for (const [settings, message] of wrong) {
    const file = await written(settings);
    await assert.rejects(readStored(file), (error: Error) => {
      assert.ok(error instanceof InputError && error.message.startsWith(`--from: ${file}: `));
      assert.match(error.message, message);
      assert.match(error.message, /the file was changed, give the settings as options$/);
      return true;
    });
  }
});

test("a file without settings is refused", async () => {
  const folder = join(root, "none");
  await mkdir(folder);
  await assert.rejects(readStored(folder), /none holds no settings; name a file that framezero/);
});
