/**
 * The command line: what it makes, what it refuses and with which exit code, how it stops.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { encodeSafetensors } from "../core/safetensors.ts";
import { chooseDtype } from "../video/cli/generate.ts";
import { Interrupted } from "../video/cli/io.ts";
import { slug } from "../video/cli/output_name.ts";
import { formatBytes, formatDuration, formatRate, startProgress } from "../video/progress.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { setVariables } from "./environment.ts";

const root = await mkdtemp(join(tmpdir(), "framezero-cli-"));
const restore = setVariables({ HF_HUB_CACHE: join(root, "hub"), HF_HUB_OFFLINE: "1" });
after(async () => {
  restore();
  await rm(root, { recursive: true, force: true });
});

const entry = fileURLToPath(new URL("../mod.ts", import.meta.url));

let folders = 0;
/** A new empty folder. */
async function emptyFolder(): Promise<string> {
  const path = join(root, String(folders++));
  await mkdir(path);
  return path;
}

const PROMPT = "a red heart in a green meadow";
const SMALL = ["--width", "64", "--height", "64"];

test("bad usage is refused in one line with exit code 2, before anything is opened", async () => {
  const target = join(await emptyFolder(), "a.gif");
  const cases: [string[], RegExp][] = [
    [[], /the prompt is missing; say what to show/],
    [["", "-o", target], /the prompt is empty/],
    [["  ", "-o", target], /the prompt is empty/],
    [["image", " ", "-o", target], /the prompt is empty/],
    [["a", "red", "heart"], /too many arguments for 'video'.*put the prompt in quotes/],
    [[PROMPT, "--nonsense"], /unknown option '--nonsense'/],
    [[PROMPT, "--step", "4"], /unknown option '--step' \(Did you mean --steps\?\)/],
    [[PROMPT, "--steps"], /'--steps <n>' argument missing/],
    ...["0", "-1", "NaN", "1.5", "x", "", "0x10", "1e3000"].flatMap((bad): [string[], RegExp][] =>
      ["--frames", "--steps", "--width", "--height", "--rows"].map((option) => [
        [PROMPT, option, bad, "-o", target],
        /must be a whole number of at least 1/,
      ])
    ),
    [[PROMPT, "--steps", "1001"], /at most 1000/],
    [[PROMPT, "--seed", "-2"], /at least -1/],
    [[PROMPT, "--fps", "0"], /above 0 and of at most 240/],
    [[PROMPT, "--fps", "241"], /above 0 and of at most 240/],
    [[PROMPT, "--guidance", "-0.5"], /must be a number of at least 0/],
    [[PROMPT, "--eta", "1.5"], /at least 0 and of at most 1/],
    [[PROMPT, "--motion-x", "left"], /must be a number/],
    [[PROMPT, "--frame-ids", "0,3-1"], /frame numbers and ranges/],
    [[PROMPT, "--frame-ids", "0,,1"], /frame numbers and ranges/],
    [[PROMPT, "--frame-ids", "0-999999999"], /frame numbers and ranges/],
    [[PROMPT, "--scheduler", "magic"], /must be one of ddim ddpm/],
    [[PROMPT, "--sampler", "ddim karras"], /must be one of ddim ddpm/],
    [[PROMPT, "--timestep-spacing", "even"], /Allowed choices are leading, trailing, linspace/],
    [[PROMPT, "--guidance-rescale", "2"], /at least 0 and of at most 1/],
    [[PROMPT, "--dtype", "f8"], /Allowed choices are auto, f16, f32/],
    [[PROMPT, "--gpu", "cuda"], /Allowed choices are auto, native, dawn, software/],
    [[PROMPT, "-o", `${target}.avi`], /written as \.mp4, \.webm, \.gif/],
    [[PROMPT, "-o", "sheet:a.jpg"], /a contact sheet is a PNG picture/],
    [["image", PROMPT, "--frames", "2"], /unknown option '--frames'/],
    [["--gpu", "dawn", "info"], /"info" is a command and must come first/],
    [["models", "paint"], /unknown command 'paint'/],
    [[PROMPT, "--variant", "fp16", "-o", target], /--variant is about .* name it with --model/],
  ];
  for (const [args, message] of cases) await refused(args, 2, message);
});

test("what the disk or the model refuses is one line with exit code 1", async () => {
  const folder = await emptyFolder();
  const there = join(folder, "there.gif");
  await writeFile(there, "something");
  const target = join(folder, "a.gif");
  const pickle = join(folder, "model.ckpt");
  await writeFile(pickle, "PK");
  const empty = await emptyFolder();
  const model = (path: string) => [PROMPT, "-o", target, "--model", path];
  await refused([PROMPT, "-o", join(folder, "no", "a.gif")], 1, /must exist: create/);
  await refused([PROMPT, "-o", there], 1, /exists already/);
  assert.equal(await readFile(there, "utf8"), "something");
  await refused([PROMPT, "-o", target, "--from", there], 1, /none of these, or is damaged/);
  await refused([PROMPT, "-o", target, "--from", `${target}x`], 1, /no such file/);
  await refused(["models", "inspect", pickle], 1, /Python pickle.*Convert/);
  await refused(["models", "inspect", join(folder, "nothing")], 1, /is none of them/);
  await refused(["models", "inspect", empty], 1, /no model_index\.json/);
  await refused(
    model("stable-diffusion-v1-5/stable-diffusion-v1-5"),
    1,
    /the network must not be used \(HF_HUB_OFFLINE\).*fetch the model once/,
  );
  await refused(model(join(folder, "nothing")), 1, /is none of them/);
  await refused(model(empty), 1, /no model_index\.json/);
  await refused(model(pickle), 1, /a Python pickle, .* not loaded\. Convert/);
});

test("settings that only the model can judge are refused with exit code 2", async () => {
  const folder = await emptyFolder();
  const target = join(folder, "a.gif");
  const judge = async (options: string[], message: RegExp) => {
    const { code, stderr } = await run([PROMPT, "--quiet", "-o", target, ...options]);
    assert.match(stderr, message);
    assert.match(stderr, /^framezero: [^\n]+\n$/);
    assert.equal(code, 2);
  };
  await judge(["--width", "100"], /width must be a multiple of 8 .* got 100; try 104/);
  await judge(["--steps", "4", "--t0", "2", "--t1", "2"], /must satisfy t0 < t1 < 4/);
  await judge(["--steps", "4", "--t0", "1", "--t1", "4"], /must satisfy t0 < t1 < 4/);
  await judge(["--frames", "3", "--frame-ids", "0,1"], /frames is 3, but frameIds lists 2/);
  assert.deepEqual(await readdir(folder), []);
});

test("help goes to stdout with exit code 0", async () => {
  for (const args of [["--help"], ["video", "--help"], ["help", "image"]]) {
    const { code, stdout, stderr } = await run(args);
    assert.equal(code, 0);
    assert.equal(stderr, "");
    assert.match(stdout, /--negative <prompt>/);
  }
});

test("inspect tells what models and files hold; list tells what there is", async () => {
  const builtIn = await run(["models", "inspect"]);
  assert.equal(builtIn.code, 0, builtIn.stderr);
  assert.match(
    builtIn.stdout,
    /unet +Stable Diffusion 1\.x, .*parameters 2,529,924, dtype F16, size 5\.06 MB/,
  );
  assert.doesNotMatch(builtIn.stdout, /missing|superfluous|not loadable/);
  const folder = await emptyFolder();
  const data = new Float32Array(6);
  await writeFile(
    join(folder, "x.safetensors"),
    encodeSafetensors([{ name: "w", dtype: "F32", shape: [2, 3], data }], { format: "pt" }),
  );
  const file = await run(["models", "inspect", join(folder, "x.safetensors")]);
  assert.match(file.stdout, /^model +nothing known\n/);
  assert.match(
    file.stdout,
    /tensors +1\nparameters +6\ndtype +F32\nsize +24 bytes\nmetadata format +pt/,
  );
  await mkdir(join(folder, "sd"));
  await writeFile(join(folder, "sd", "model_index.json"), "{}");
  const list = await run(["models", "list", folder]);
  assert.match(list.stdout, /^built-in .*tiny-shapes/);
  assert.match(list.stdout, /sd +diffusers folder/);
  assert.match(list.stdout, /x\.safetensors +single file/);
});

test("inspect tells what a folder lacks, and why it cannot be loaded", async () => {
  const folder = join(await emptyFolder(), "model");
  const builtInFolder = fileURLToPath(new URL("../models/tiny-shapes", import.meta.url));
  await cp(builtInFolder, folder, { recursive: true });
  await rm(join(folder, "vae", "diffusion_pytorch_model.safetensors"));
  const lacking = await run(["models", "inspect", folder]);
  assert.equal(lacking.code, 0, lacking.stderr);
  assert.match(lacking.stdout, /\nvae +\S+vae: no weights found/);
  assert.match(lacking.stdout, /\nunet +Stable Diffusion 1\.x/);
  await writeFile(join(folder, "unet", "config.json"), '{"cross_attention_dim": 2048}');
  const foreign = await run(["models", "inspect", folder]);
  assert.match(foreign.stdout, /\nnot loadable +\S+config\.json: this is SDXL/);
  const part = await run(["models", "inspect", join(builtInFolder, "unet")]);
  assert.match(part.stdout, /^class +UNet2DConditionModel\nmodel +Stable Diffusion 1\.x, the UNet/);
  assert.match(part.stdout, /\ncomplete +every tensor/);
  for (const name of ["vae/diffusion_pytorch_model", "text_encoder/model"]) {
    const file = await run(["models", "inspect", join(builtInFolder, `${name}.safetensors`)]);
    assert.match(file.stdout, /\ncomplete +every tensor/, name);
  }
  assert.match(part.stdout, /\nparameters +2,529,924\n/);
});

test("info tells runtime, adapter, limits and the form of the kernels", async () => {
  const { code, stdout } = await run(["info", "--json"]);
  assert.equal(code, 0);
  const facts = JSON.parse(stdout);
  assert.match(facts.runtime, /^(Deno|Bun|Node) /);
  assert.equal(
    facts.variants.choices?.gemm ?? facts.variants.gemm,
    facts.software ? "texels" : "tiles",
  );
  assert.ok(facts.limits.maxBufferSize >= 2 ** 27);
});

test("a video in several formats, with its settings, made again from itself", async () => {
  const folder = await emptyFolder();
  const [mp4, gif, sheet] = ["v.mp4", "v.gif", "v.png"].map((name) => join(folder, name));
  const preview = join(folder, "preview.png");
  const made = await run([
    ...[PROMPT, "--frames", "2", "--steps", "4", "--seed", "3", "--motion-x", "-32", "--fps", "6"],
    ...["--negative", "a blue circle", "-o", mp4, "-o", gif, "-o", `sheet:${sheet}`],
    ...["--frames-dir", join(folder, "frames"), "--preview", preview, "--json"],
  ]);
  assert.equal(made.code, 0, made.stderr);
  assert.match(made.stderr, /built-in tiny-shapes model: it draws circles/);
  assert.match(made.stderr, /denoising 5\/5/);
  assert.match(made.stderr, /decoding +2\/2/);
  const result = JSON.parse(made.stdout);
  assert.deepEqual(
    result.outputs.map(({ path, frames }: { path: string; frames: number }) => [path, frames]),
    [[mp4, 2], [gif, 2], [sheet, 2], [join(folder, "frames"), 2]],
  );
  for (const { path, bytes } of result.outputs.slice(0, 3)) {
    assert.equal((await stat(path)).size, bytes);
  }
  assert.ok(result.seconds > 0 && result.memory.peak > 1e6);
  const { steps, frames, width, height, seed, warnings } = result;
  assert.deepEqual(
    { steps, frames, width, height, seed, warnings },
    { steps: 4, frames: 2, width: 128, height: 128, seed: 3, warnings: [] },
  );
  for (const path of [mp4, gif, sheet, join(folder, "frames")]) {
    const settings = await readSettings(path);
    assert.deepEqual(settings, result.settings);
    assert.equal(settings?.motionFieldStrengthX, -32);
    assert.equal(settings?.fps, 6);
  }
  const names = ["frames", "preview.png", "v.gif", "v.mp4", "v.png"];
  assert.deepEqual((await readdir(folder)).sort(), names);

  const copy = join(folder, "again.png");
  const again = await run(["--from", mp4, "-o", `sheet:${copy}`, "--quiet"]);
  assert.deepEqual(again, { code: 0, stdout: "", stderr: "" });
  assert.deepEqual(await readFile(copy), await readFile(sheet));
});

test("an image has the same bytes for the same seed; -1 picks a seed and tells it", async () => {
  const folder = await emptyFolder();
  const picture = async (name: string, seed: string) => {
    const path = join(folder, name);
    const made = await run([
      "image",
      PROMPT,
      ...SMALL,
      "--steps",
      "2",
      "--seed",
      seed,
      "-o",
      path,
      "--json",
    ]);
    assert.equal(made.code, 0, made.stderr);
    return { bytes: await readFile(path), result: JSON.parse(made.stdout) };
  };
  const first = await picture("a.png", "1");
  assert.deepEqual((await picture("b.png", "1")).bytes, first.bytes);
  const any = await picture("c.png", "-1");
  assert.notDeepEqual(any.bytes, first.bytes);
  assert.ok(any.result.seed >= 0);
  assert.equal(any.result.settings.seed, any.result.seed);
});

test("words that do not fit into the prompt are named in a warning", async () => {
  const target = join(await emptyFolder(), "a.png");
  const long = `${"red circle ".repeat(50)}and a green star`;
  const { code, stderr } = await run(["image", long, ...SMALL, "--steps", "1", "-o", target]);
  assert.equal(code, 0, stderr);
  assert.match(stderr, /warning: the prompt is longer than 75 tokens; left out: ".*green star"/);
});

test("an interrupt stops within a step, leaves nothing, and gives 130", async () => {
  const folder = await emptyFolder();
  const { code, stderr, stdout } = await run(
    [PROMPT, "--frames", "4", "--steps", "50", "-o", join(folder, "a.mp4")],
    (text, abort) => {
      if (text.startsWith("denoising")) abort.abort(new Interrupted());
    },
  );
  assert.equal(code, 130, stderr);
  assert.match(stderr, /framezero: interrupted; no output was written\n$/);
  assert.equal(stderr.match(/denoising/g)?.length, 1);
  assert.equal(stdout, "");
  assert.deepEqual(await readdir(folder), []);
});

test("Ctrl-C ends the process with 130 and leaves nothing behind", async () => {
  const folder = await emptyFolder();
  const start = process.versions.bun ? [entry] : ["run", "-A", entry];
  const child = spawn(
    process.execPath,
    [...start, PROMPT, "--steps", "50", "-o", join(folder, "a.mp4")],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  let stderr = "";
  let sent = false;
  child.stderr.on("data", (chunk) => {
    stderr += chunk;
    if (sent || !/denoising/.test(stderr) || !child.pid) return;
    // Not `child.kill`: Deno then reports the signal instead of the exit code.
    sent = process.kill(child.pid, "SIGINT");
  });
  const code = await new Promise((resolve) => child.on("close", resolve));
  assert.equal(code, 130, stderr);
  assert.deepEqual(await readdir(folder), []);
});

test("f16 falls back to f32 where the adapter lacks it, and says so", () => {
  const description = "Some GPU";
  const choose = (asked: "auto" | "f16" | "f32", builtIn: boolean, f16: boolean) => {
    const remarks: string[] = [];
    return [chooseDtype(asked, builtIn, { f16, description }, remarks), ...remarks];
  };
  assert.deepEqual(choose("auto", true, true), ["f32"]);
  assert.deepEqual(choose("auto", false, true), ["f16"]);
  assert.deepEqual(choose("auto", false, false), ["f32"]);
  assert.deepEqual(choose("f32", false, true), ["f32"]);
  assert.deepEqual(choose("f16", true, true), ["f16"]);
  const remark = "Some GPU has no half precision; computing in f32";
  assert.deepEqual(choose("f16", false, false), ["f32", remark]);
});

test("file names are made of the prompt's words", () => {
  assert.equal(slug("A red heart, in a (green) meadow!"), "a-red-heart-in-a-green-meadow");
  assert.equal(slug("../../etc/passwd"), "etc-passwd");
  assert.equal(slug("☃ ☃"), "clip");
  assert.equal(slug("馬が走る"), "馬が走る");
  assert.ok(slug("word ".repeat(100)).length <= 48);
  assert.ok(slug("w".repeat(1000)).length <= 48);
});

/** What progress writes when each of `total` parts takes `milliseconds`. */
function shown(isTTY: boolean, total: number, milliseconds: number, columns = 80): string[] {
  const texts: string[] = [];
  let time = 0;
  const progress = startProgress("work", "it", {
    write: (text) => texts.push(text),
    isTTY,
    columns,
    now: () => time,
  });
  for (let done = 1; done <= total; done++) {
    time += milliseconds;
    progress.update(done, total);
  }
  progress.end();
  return texts;
}

test("progress: about ten lines in a file, one redrawn line on a terminal", () => {
  const lines = shown(false, 50, 500);
  assert.equal(lines.length, 10);
  assert.equal(lines[0], "work 5/50  2.0 it/s  0:23 left\n");
  assert.equal(lines[9], "work 50/50  2.0 it/s  0:25\n");
  const bar = shown(true, 50, 500);
  assert.equal(bar.at(-1), "\n");
  assert.equal(bar.at(-2), `\r\x1b[Kwork [${"█".repeat(24)}] 50/50  2.0 it/s  0:25`);
  assert.ok(bar.slice(0, -1).every((text) => text.startsWith("\r\x1b[K")));
  assert.ok(shown(true, 1000, 1).length <= 12);
  assert.ok(shown(true, 9, 500, 20).every((text) => text.length <= 4 + 19));
});

test("progress: the time left counts other work, too", () => {
  const texts: string[] = [];
  let time = 0;
  const target = { write: (text: string) => texts.push(text), isTTY: false, columns: 80 };
  const progress = startProgress("work", "it", { ...target, now: () => time });
  assert.equal(progress.left, 0);
  for (const done of [1, 2]) {
    time += 4000;
    progress.update(done, 10, 60);
  }
  assert.deepEqual(texts, ["work 1/10  4.0 s/it  1:36 left\n", "work 2/10  4.0 s/it  1:32 left\n"]);
  assert.equal(progress.left, 32);
});

test("rates, durations and sizes in readable units", () => {
  assert.equal(formatRate(2.51, "it"), "2.5 it/s");
  assert.equal(formatRate(0.25, "it"), "4.0 s/it");
  assert.equal(formatDuration(75.4), "1:15");
  assert.equal(formatDuration(3600 + 62), "1:01:02");
  assert.equal(formatDuration(Infinity), "?");
  assert.equal(formatBytes(999), "999 B");
  assert.equal(formatBytes(48_300), "48.3 kB");
  assert.equal(formatBytes(4_270_000_000), "4.3 GB");
});
