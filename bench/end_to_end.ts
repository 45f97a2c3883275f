/**
 * What a user waits for, with the built-in model: loading, the first step with its shaders to
 * compile, the steps after it, decoding, and what a frame of a video costs and holds in memory.
 *
 * ```sh
 * deno run -A bench/end_to_end.ts
 * bun bench/end_to_end.ts --json end_to_end.json
 * deno run -A bench/end_to_end.ts --long 240
 * deno run -A bench/end_to_end.ts --cold
 * ```
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { type Device, openDevice } from "../core/device.ts";
import { collectGarbage, runtime } from "../core/runtime.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Clip } from "../video/clip.ts";
import { inWindows } from "../video/long_video.ts";
import { textToImage } from "../video/text_to_image.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import {
  type Command,
  command,
  count,
  flag,
  floatType,
  gpuChoice,
  path,
  writeResults,
} from "./command.ts";
import { describeSetting, type Setting, settingOf } from "./setting.ts";
import { type Column, significant, textHead, textRow } from "./table.ts";
import { median } from "./timing.ts";

const HELP = `Times the built-in model from end to end. deno run -A bench/end_to_end.ts [options]

  --steps N      denoising steps of each clip (default 8)
  --long N       also a clip of N frames, in windows of 24 as the command line makes it
  --cold         also whole processes that make a picture, the first with an empty cache of the driver's
  --dtype TYPE   f32 (default) or f16
  --gpu CHOICE   auto (default), native, dawn or software
  --json FILE    write the results as JSON
  --help         this text`;

/** Frames of a part of a long clip. */
const WINDOW = 24;

const PROMPT = "a red circle on a blue background";

/** What one clip took. Times in milliseconds of the wall clock. */
export interface ClipCost {
  /** What tables call it. */
  readonly what: string;
  /** Frames of the clip. */
  readonly frames: number;
  /** Text, first noise, and the first step. */
  readonly firstStep: number;
  /** Median of the later steps that compute all frames. */
  readonly step: number;
  /** Shader runs of such a step. */
  readonly dispatches: number;
  /** Submissions of such a step. */
  readonly submissions: number;
  /** Pipelines compiled for this clip. */
  readonly pipelines: number;
  /** Decoding of the first frame. */
  readonly firstDecode: number;
  /** Median of the other frames, `null` where there are none. */
  readonly decode: number | null;
  /** From the prompt until its first frame is finished. */
  readonly firstFrame: number;
  /** From the prompt to the last frame. */
  readonly total: number;
  /** Largest number of bytes on the GPU, weights included. */
  readonly peakBytes: number;
  /** Milliseconds from the prompt until every {@link WINDOW}th frame, and the last. */
  readonly reached: readonly number[];
  /** Resident set of the process there, garbage collected, in bytes. */
  readonly hostBytes: readonly number[];
}

/** What is written with `--json`. */
export interface Results extends Setting {
  /** Type of weights and activations. */
  readonly dtype: "f32" | "f16";
  /** Denoising steps of each clip. */
  readonly steps: number;
  /** Milliseconds to find an adapter and open a device. */
  readonly open: number;
  /** Milliseconds to load the model. */
  readonly load: number;
  /** What was made, in order. */
  readonly clips: readonly ClipCost[];
  /** Milliseconds of whole processes, or `null` if they were not asked for. */
  readonly processes: Processes | null;
}

/** Milliseconds of processes that make one picture each, as the command line does by default. */
export interface Processes {
  /** The driver has compiled nothing yet. */
  readonly empty: number;
  /** It has kept what the one before compiled. */
  readonly filled: number;
}

const COLUMNS: readonly Column[] = [
  { title: "clip", width: 18, align: "left" },
  { title: "first step", width: 10, align: "right" },
  { title: "step", width: 7, align: "right" },
  { title: "dispatches", width: 10, align: "right" },
  { title: "submits", width: 7, align: "right" },
  { title: "compiled", width: 8, align: "right" },
  { title: "1st decode", width: 10, align: "right" },
  { title: "decode", width: 7, align: "right" },
  { title: "1st frame s", width: 11, align: "right" },
  { title: "total s", width: 7, align: "right" },
  { title: "ms a frame", width: 10, align: "right" },
  { title: "GPU MiB", width: 7, align: "right" },
  { title: "host MiB", width: 8, align: "right" },
];

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { steps: count, long: count, cold: flag, dtype: floatType, gpu: gpuChoice, json: path },
}, async ({ steps = 8, long, cold, dtype = "f32", gpu, json }) => {
  const processes = cold
    ? await wholeProcesses(["--dtype", dtype, ...(gpu ? ["--gpu", gpu] : [])])
    : null;
  const begin = performance.now();
  const device = await openDevice({ gpu });
  try {
    const opened = performance.now();
    const sd = await StableDiffusion.load(undefined, { device, dtype });
    const loaded = performance.now();
    const [open, load] = [opened - begin, loaded - opened];
    const setting = settingOf(device);
    console.log(`${describeSetting(setting)}, ${dtype}`);
    console.log(
      `device opened in ${significant(open)} ms, model loaded in ${significant(load)} ms`,
    );
    console.log(`${steps} steps at ${sd.defaultSize}²; times in ms unless said otherwise\n`);
    console.log(textHead(COLUMNS));
    const clips: ClipCost[] = [];
    const add = async (what: string, clip: Clip) => {
      const cost = await watch(device, what, clip);
      clips.push(cost);
      console.log(textRow(COLUMNS, cellsOf(cost)));
    };
    await add("picture, cold", textToImage(sd, PROMPT, { steps }));
    await add("picture", textToImage(sd, PROMPT, { steps }));
    for (const frames of [8, 16, 32]) {
      await add(`${frames} frames`, textToVideo(sd, PROMPT, { steps, frames }));
    }
    if (long !== undefined) {
      const part = (frameIds: readonly number[]) =>
        textToVideo(sd, PROMPT, { steps, frameIds, clipFrames: long });
      await add(`${long} frames`, inWindows(long, WINDOW, part));
      const { reached, hostBytes } = clips[clips.length - 1];
      console.log(`every ${WINDOW} of them, and the end`);
      console.log(`  after s   ${reached.map((time) => significant(time / 1000)).join(" ")}`);
      console.log(`  host MiB  ${hostBytes.map(mebibytes).join(" ")}`);
    }
    sd.dispose();
    if (processes) {
      const [empty, filled] = [processes.empty, processes.filled].map((t) => significant(t / 1000));
      console.log(
        `a picture by a process of its own: ${empty} s, with the driver's cache filled ${filled} s`,
      );
    }
    const results: Results = { ...setting, dtype, steps, open, load, clips, processes };
    await writeResults({ json }, results);
    return 0;
  } finally {
    await device.close();
  }
});

/** Runs the command line twice, with a cache for shaders that is empty first. */
async function wholeProcesses(options: readonly string[]): Promise<Processes> {
  const here = import.meta.dirname ?? dirname(fileURLToPath(import.meta.url));
  const folder = await mkdtemp(join(tmpdir(), "framezero-cold-"));
  // Where Mesa's drivers and NVIDIA's keep what they have compiled.
  const cache = join(folder, "shaders");
  const env = {
    ...process.env,
    MESA_SHADER_CACHE_DIR: cache,
    __GL_SHADER_DISK_CACHE_PATH: cache,
  };
  const make = (output: string) => {
    const begin = performance.now();
    const program = [...(runtime === "deno" ? ["run", "-A"] : []), join(here, "..", "mod.ts")];
    const args = [...program, "image", PROMPT, ...options, "-o", join(folder, output)];
    execFileSync(process.execPath, args, { env, stdio: "ignore" });
    return performance.now() - begin;
  };
  try {
    return { empty: make("first.png"), filled: make("second.png") };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Makes a clip and takes the time of its parts. */
async function watch(device: Device, what: string, clip: Clip): Promise<ClipCost> {
  device.resetPeak();
  const before = device.counts();
  const begin = performance.now();
  let last = begin;
  const lap = () => {
    const lasted = performance.now() - last;
    last += lasted;
    return lasted;
  };
  const laps: { all: boolean; lasted: number; dispatches: number; submissions: number }[] = [];
  const decodes: number[] = [];
  const frames = clip.frameIds.length;
  const reached: number[] = [];
  const hostBytes: number[] = [];
  let firstFrame = 0;
  const look = () => {
    reached.push(last - begin);
    collectGarbage();
    hostBytes.push(process.memoryUsage().rss);
    last = performance.now();
  };
  let seen = before;
  for await (const event of clip.events) {
    // Steps are announced before the device has made them.
    if (event.kind === "step") await device.sync();
    const lasted = lap();
    if (event.kind === "frame") {
      if (!decodes.length) firstFrame = last - begin;
      decodes.push(lasted);
      if (decodes.length % WINDOW === 0 && decodes.length < frames) look();
      continue;
    }
    const now = device.counts();
    const dispatches = now.dispatches - seen.dispatches;
    const submissions = now.submissions - seen.submissions;
    laps.push({ all: event.step.phase === "frames", lasted, dispatches, submissions });
    seen = now;
  }
  const total = last - begin;
  look();
  clip.dispose();
  // The first step of all frames records and may compile: the ones after it are the rule.
  const warm = laps.filter(({ all }) => all).slice(1);
  const steady = warm.length ? warm : laps.slice(-1);
  const [firstDecode, ...others] = decodes;
  return {
    what,
    frames,
    firstStep: laps[0].lasted,
    step: median(steady.map(({ lasted }) => lasted)),
    dispatches: median(steady.map(({ dispatches }) => dispatches)),
    submissions: median(steady.map(({ submissions }) => submissions)),
    pipelines: device.counts().pipelines - before.pipelines,
    firstDecode,
    decode: others.length ? median(others) : null,
    firstFrame,
    total,
    reached,
    peakBytes: device.memory().peak,
    hostBytes,
  };
}

function mebibytes(bytes: number): string {
  return significant(bytes / 2 ** 20);
}

function cellsOf(cost: ClipCost): string[] {
  return [
    cost.what,
    significant(cost.firstStep),
    significant(cost.step),
    String(cost.dispatches),
    String(cost.submissions),
    String(cost.pipelines),
    significant(cost.firstDecode),
    cost.decode === null ? "–" : significant(cost.decode),
    significant(cost.firstFrame / 1000),
    significant(cost.total / 1000),
    significant(cost.total / cost.frames),
    mebibytes(cost.peakBytes),
    mebibytes(Math.max(...cost.hostBytes)),
  ];
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
