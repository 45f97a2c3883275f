/**
 * What token merging (`--merge`) and feature reuse (`--reuse`) save, and what they change: time of
 * the denoising steps of a clip, and its difference from the clip that is made without them.
 *
 * ```sh
 * deno run -A bench/reuse.ts
 * deno run -A bench/reuse.ts /tmp/fullsize --dtype f16 --size 512 --frames 2 --steps 6
 * ```
 *
 * Times are the least of the rounds, for one clip of each prompt; differences are those of all
 * pixels. With random weights only the times mean something.
 *
 * @module
 */

import process from "node:process";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import {
  type Command,
  command,
  count,
  floatType,
  gpuChoice,
  path,
  writeResults,
} from "./command.ts";
import { psnrOf } from "./psnr.ts";
import { describeSetting, settingOf } from "./setting.ts";
import { type Column, markdownTable, textTable } from "./table.ts";

const HELP = `usage: reuse [model] [options]
  --dtype f32|f16     type of weights and activations (default f32)
  --size PX           side of the pictures (default: the model's)
  --frames N          frames of a clip (default 4)
  --steps N           denoising steps (default: the model's)
  --prompts N         clips, at most 3 (default 3)
  --rounds N          times that each clip is made (default 2)
  --gpu KIND          which WebGPU to use
  --tokenizer FOLDER  vocabulary, if the model brings none
  --json FILE         write the results
  --markdown FILE     write the table
  --help              this text`;

const PROMPTS = [
  "a red heart in a green meadow",
  "a blue circle on a white background",
  "a yellow star in the sky",
];

type Saving = Pick<TextToVideoOptions, "merge" | "reuse">;

const KINDS: readonly Saving[] = [
  {},
  { merge: 0.1 },
  { merge: 0.3 },
  { merge: 0.5 },
  { reuse: 2 },
  { reuse: 3 },
  { merge: 0.3, reuse: 2 },
];

const COLUMNS: readonly Column[] = [
  { title: "options", width: 24, align: "left" },
  { title: "s/clip", width: 8, align: "right" },
  { title: "faster", width: 8, align: "right" },
  { title: "mean PSNR", width: 10, align: "right" },
  { title: "worst", width: 8, align: "right" },
];

interface Row {
  readonly options: Saving;
  /** Of the denoising steps of a clip. */
  readonly seconds: number;
  /** In decibels, for each prompt; none without any saving. */
  readonly psnr: readonly number[];
}

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: {
    dtype: floatType,
    size: count,
    frames: count,
    steps: count,
    prompts: count,
    rounds: count,
    gpu: gpuChoice,
    tokenizer: path,
    json: path,
    markdown: path,
  },
  positionals: true,
}, async (options, models) => {
  if (models.length > 1) throw new InputError("name one model, or none for the built-in one");
  const { dtype = "f32", size, frames = 4, steps, rounds = 2, gpu, tokenizer, ...rest } = options;
  const { prompts = PROMPTS.length, ...files } = rest;
  const device = await openDevice({ gpu });
  try {
    const sd = await StableDiffusion.load(models[0], { device, dtype, tokenizer });
    const clips = { frames, width: size, height: size, steps, seed: 1 };
    const rows = await measure(sd, PROMPTS.slice(0, prompts), clips, rounds);
    sd.dispose();
    const about = `${describeSetting(settingOf(device))}, ${dtype}, ${frames} frames of ` +
      `${size ?? sd.defaultSize}², ${steps ?? sd.defaults.steps} steps`;
    const cells = rows.map((row) => cellsOf(row, rows[0]));
    console.log(`${about}\n${textTable(COLUMNS, cells)}`);
    const results = { ...settingOf(device), dtype, model: models[0], ...clips, rows };
    await writeResults(files, results, `${about}\n\n${markdownTable(COLUMNS, cells)}\n`);
    return 0;
  } finally {
    await device.close();
  }
});

async function measure(
  sd: StableDiffusion,
  prompts: readonly string[],
  clips: TextToVideoOptions,
  rounds: number,
): Promise<Row[]> {
  const pictures: Uint8Array[][] = KINDS.map(() => []);
  const seconds = KINDS.map(() => prompts.map(() => Infinity));
  for (let round = 0; round < rounds; round++) {
    for (const [p, prompt] of prompts.entries()) {
      for (const [k, saving] of KINDS.entries()) {
        const clip = textToVideo(sd, prompt, { ...clips, ...saving });
        const start = performance.now();
        for await (const _ of clip.steps);
        seconds[k][p] = Math.min(seconds[k][p], (performance.now() - start) / 1000);
        if (round === 0) pictures[k].push(await pixelsOf(clip));
        clip.dispose();
      }
    }
  }
  return KINDS.map((options, k) => ({
    options,
    seconds: seconds[k].reduce((a, b) => a + b) / prompts.length,
    psnr: k ? pictures[k].map((picture, p) => psnrOf(picture, pictures[0][p])) : [],
  }));
}

async function pixelsOf(clip: ReturnType<typeof textToVideo>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const { data } of clip) all.push(data);
  return Uint8Array.from(all.flatMap((data) => [...data]));
}

function cellsOf({ options, seconds, psnr }: Row, plain: Row): string[] {
  const words = Object.entries(options).map(([name, value]) => `--${name} ${value}`);
  const decibels = (value: number) => `${value.toFixed(1)} dB`;
  const mean = psnr.reduce((a, b) => a + b, 0) / psnr.length;
  return [
    words.join(" ") || "none",
    seconds.toFixed(2),
    `${(plain.seconds / seconds).toFixed(2)} ×`,
    ...(psnr.length ? [decibels(mean), decibels(Math.min(...psnr))] : ["", ""]),
  ];
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
