/** Control on the command line: flags, files of maps, settings that make a clip again. */

import assert from "node:assert/strict";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { mapsOfKind } from "../video/cli/control_maps.ts";
import { type ControlRequest, controlsRequest } from "../video/cli/controls.ts";
import { readPicture } from "../video/picture.ts";
import { readSettings, writeVideo } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { CONTROLNET, stripes } from "./control_files.ts";
import { TINY } from "./tiny_single_file.ts";

const root = await mkdtemp(join(tmpdir(), "framezero-controls-"));
after(() => rm(root, { recursive: true, force: true }));

const maps = join(root, "maps");
await writeVideo([0, 1].map((n) => stripes(n)), `${maps}/`, { fps: 4 });
const lone = join(root, "lone.png");
await writeVideo([stripes(2)], lone, { fps: 4 });

const MODEL = ["a horse", "--model", TINY, "--dtype", "f32", "--steps", "1"];
const CONTROL = ["--control", `canny:${maps}`, "--controlnet", CONTROLNET];
const READY = [...CONTROL, "--control-source", "maps"];

test("flags are put together, those of a stored clip under them", () => {
  const control: ControlRequest = {
    ...{ kind: "pose", file: "a/", model: "net", scale: 0.7, start: 0.1, end: 0.9 },
    guessMode: true,
  };
  assert.equal(controlsRequest({}, {}), undefined);
  assert.deepEqual(controlsRequest({}, { controls: [control] }), {
    controls: [control],
    maps: {},
  });
  assert.deepEqual(
    controlsRequest({
      control: [{ kind: "depth", file: "b/" }],
      end: 3,
      controlScale: [2],
      controlEnd: 0.5,
      guessMode: false,
      transferFrom: "base",
      controlAttention: "unet",
    }, { controls: [control], maps: { start: 1, end: 2 } }),
    {
      maps: { start: 1, end: 3 },
      controls: [{
        ...control,
        ...{ kind: "depth", file: "b/", scale: 2, end: 0.5, guessMode: false },
      }],
      controlAttention: "unet",
      transferFrom: "base",
    },
  );
  const two = controlsRequest({
    control: [{ kind: "pose", file: "a/" }, { kind: "depth", file: "b/" }],
    controlnet: ["one", "two"],
    controlScale: [0.5],
  }, {})!;
  assert.deepEqual(two.controls.map(({ model, scale }) => [model, scale]), [["one", 0.5], [
    "two",
    1,
  ]]);
});

test("kinds stand before a colon, which a drive has too", () => {
  assert.deepEqual(mapsOfKind("Canny:C:\\maps"), { kind: "canny", file: "C:\\maps" });
  for (const wrong of ["maps", "C:\\maps", "canny:", ":maps"]) {
    assert.throws(() => mapsOfKind(wrong), /a kind of map and a file, such as canny:dance/);
  }
});

test("what does not go together is refused with exit code 2", async () => {
  const target = ["-o", join(root, "no.gif")];
  const cases: [string[], RegExp][] = [
    [["--control", maps], /a kind of map and a file/],
    [["--control", `edges:${maps}`], /the kinds are canny, depth/],
    [[...CONTROL, "--controlnet", "b"], /go in pairs: there are maps for 1, and 2 of the nets/],
    [["--control-short", "loop"], /--control-short is about a ControlNet/],
    [["--controlnet", CONTROLNET], /maps for 0, and 1 of the nets/],
    [["--guess-mode"], /--guess-mode is about a ControlNet; name one with --controlnet/],
    [["--transfer-from", TINY], /--transfer-from is about a ControlNet/],
    [[...CONTROL, "--control-scale", "1", "--control-scale", "2"], /given 2 times, for 1/],
    [[...CONTROL, "--control-end", "2"], /at least 0 and of at most 1/],
    [[...CONTROL, "--control-attention", "all"], /Allowed choices are unet\+controlnet, unet/],
  ];
  for (const [flags, message] of cases) await refused(["a horse", ...flags, ...target], 2, message);
});

/** Controls as settings hold them, after a look at the sha256 of their maps. */
function withoutSum(controls: unknown): unknown[] {
  assert.ok(Array.isArray(controls));
  return controls.map(({ sha256, ...control }) => {
    assert.match(sha256, /^[0-9a-f]{64}$/);
    return control;
  });
}

test("a controlled clip follows its maps, and is made again from itself", async () => {
  const clip = join(root, "clip.gif");
  const options = ["--control-scale", "0.8", "--control-end", "0.9", "--control-attention", "unet"];
  const made = await run([...MODEL, ...READY, ...options, "-o", clip, "--json"]);
  assert.equal(made.code, 0, made.stderr);
  assert.match(made.stderr, /loading ControlNet .*controlnet \(f32\)/);
  const { frames, width, height } = JSON.parse(made.stdout);
  assert.deepEqual([frames, width, height], [2, 96, 96], "as many and as large as the maps");
  const settings = await readSettings(clip);
  const said = { kind: "canny", file: maps, model: CONTROLNET, scale: 0.8, start: 0, end: 0.9 };
  assert.deepEqual(withoutSum(settings?.controls), [{ ...said, guessMode: false }]);
  assert.equal(settings?.controlSource, "maps");
  assert.deepEqual([settings?.controlAttention, settings?.motion], ["unet", false]);
  const again = join(root, "again.gif");
  const copied = await run(["--from", clip, "-o", again, "--quiet"]);
  assert.equal(copied.code, 0, copied.stderr);
  assert.deepEqual(await readFile(again), await readFile(clip));
});

test("a lone picture is the map of every frame; weights are moved; pictures are controlled", async () => {
  const flags = ["--control", `pose:${lone}`, "--controlnet", CONTROLNET];
  const picture = async (name: string, ...more: string[]) => {
    const path = join(root, name);
    const made = await run(["image", ...MODEL, ...flags, ...more, "-o", path]);
    assert.equal(made.code, 0, made.stderr);
    return await readFile(path);
  };
  const plain = await picture("a.png");
  assert.notDeepEqual(await picture("b.png", "--control-scale", "0"), plain);
  assert.deepEqual(
    withoutSum((await readSettings(join(root, "a.png")))?.controls),
    [{
      ...{ kind: "pose", file: lone, model: CONTROLNET, scale: 1, start: 0, end: 1 },
      guessMode: false,
    }],
  );
  await picture("c.png", "--transfer-from", TINY);
  const { transferFrom } = await readSettings(join(root, "c.png")) ?? {};
  assert.equal(transferFrom, TINY);
  const video = await run([
    ...MODEL,
    ...flags,
    "--frames",
    "3",
    "-o",
    join(root, "v.gif"),
    "--json",
  ]);
  assert.equal(video.code, 0, video.stderr);
  assert.equal(JSON.parse(video.stdout).frames, 3);
});

test("maps that are not there, or are others than they were, are refused", async () => {
  const empty = join(root, "empty");
  await mkdir(empty);
  const target = ["-o", join(root, "no.gif")];
  const nets = ["--controlnet", CONTROLNET, "--quiet"];
  const cases: [string, RegExp][] = [
    [`canny:${join(root, "nowhere")}`, /nowhere.*(no such file|cannot be opened)/i],
    [`canny:${empty}`, /a folder must hold pictures/],
    [`depth:${lone} --control-source video`, /depth is not made of ordinary videos here/],
    [`pose:${join(root, "poses.json")}`, /a keypoint file is JSON/],
  ];
  await writeFile(join(root, "poses.json"), "[1, 2]");
  for (const [control, message] of cases) {
    const { code, stderr } = await run([
      ...MODEL,
      "--control",
      ...control.split(" "),
      ...nets,
      ...target,
    ]);
    assert.match(stderr, message);
    assert.equal(code, 1, stderr);
  }
  const clip = join(root, "changed.gif");
  const moving = join(root, "moving");
  await writeVideo([stripes(0)], `${moving}/`, { fps: 4 });
  const made = await run([...MODEL, "--control", `pose:${moving}`, ...nets, "-o", clip]);
  assert.equal(made.code, 0, made.stderr);
  await writeVideo([stripes(5)], `${moving}/`, { fps: 4, overwrite: true });
  const again = await run(["--from", clip, ...target, "--quiet"]);
  assert.equal(again.code, 1);
  assert.match(again.stderr, /the settings were made with a clip of sha256/);
});

test("a clip that is too short is held, looped, or decides the length, as is said", async () => {
  const frames = async (...more: string[]) => {
    const made = await run([
      ...MODEL,
      ...READY,
      ...more,
      "--frames",
      "3",
      "-o",
      join(root, `short${more.length}${more.at(-1)}.gif`),
      "--json",
    ]);
    assert.equal(made.code, 0, made.stderr);
    return [JSON.parse(made.stdout).frames, made.stderr] as const;
  };
  const [held, remark] = await frames();
  assert.equal(held, 3);
  assert.match(remark, /has 2 frames, fewer than the 3 of the clip; its last one is held/);
  const [looped, other] = await frames("--control-short", "loop");
  assert.equal(looped, 3);
  assert.match(other, /it begins again/);
  assert.equal((await frames("--control-short", "stop"))[0], 2);
});

test("condition writes what a ControlNet would be shown", async () => {
  const edges = join(root, "edges.png");
  const made = await run([
    "condition",
    `canny:${lone}`,
    "--width",
    "96",
    "--height",
    "96",
    "-o",
    edges,
  ]);
  assert.equal(made.code, 0, made.stderr);
  const { data } = await readPicture(edges);
  const levels = new Set(data);
  assert.deepEqual([...levels].sort((a, b) => a - b), [0, 255], "edges and nothing else");
  await refused(["condition", `canny:${lone}`], 2, /say where the maps go with -o/);
  await refused(["condition", `canny:${lone}`, "--width", "8", "-o", edges], 2, /go together/);
});

test("too little memory names what suffices, nets included", async () => {
  const small = ["-o", join(root, "small.gif"), "--memory"];
  const short = await run([...MODEL, ...READY, ...small, "9MB"]);
  assert.equal(short.code, 1, short.stderr);
  const [, fits] = /With --memory (\d+MB) it would fit/.exec(short.stderr) ?? [];
  assert.ok(fits, short.stderr);
  const enough = await run([...MODEL, ...READY, ...small, fits]);
  assert.equal(enough.code, 0, enough.stderr);
  const none = await run([...MODEL, ...READY, "--overwrite", ...small, "6MB"]);
  assert.match(none.stderr, /controlnet: its weights take 1\.3 MiB in f32/);
});

test("models: a ControlNet is listed, and inspected by its own extents", async () => {
  const folder = join(root, "models");
  await cp(CONTROLNET, join(folder, "control"), { recursive: true });
  await mkdir(join(folder, "other"));
  await writeFile(join(folder, "other", "config.json"), "{");
  const list = await run(["models", "list", folder]);
  assert.match(list.stdout, /control +ControlNet folder/);
  assert.ok(!/other/.test(list.stdout));
  const inspected = await run(["models", "inspect", join(folder, "control")]);
  assert.match(inspected.stdout, /^class +ControlNetModel\nmodel +ControlNet\n/);
  assert.match(inspected.stdout, /\ncontrolnet +338 tensors, [\d,]+ parameters\n/);
  assert.match(inspected.stdout, /\ncomplete +every tensor/);
});
