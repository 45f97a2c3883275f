/**
 * The study: how settings of Text2Video-Zero change the measures of its clips, with the built-in
 * model, over prompts and seeds. What is there already is not made again, so that a study can be
 * stopped and continued.
 *
 * ```sh
 * deno run -A bench/study.ts --json bench/results/study.json --markdown study.md
 * ```
 *
 * @module
 */

import { readFile } from "node:fs/promises";
import process from "node:process";
import { openDevice } from "../core/device.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Clip } from "../video/clip.ts";
import { deflicker } from "../video/deflicker.ts";
import { measure } from "../video/metrics/measure.ts";
import { writeText } from "../video/output_file.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { type Command, command, count, gpuChoice, path, pattern } from "./command.ts";
import { describeSetting, settingOf } from "./setting.ts";
import { type Prompt, PROMPTS, type Variant, VARIANTS } from "./study/variants.ts";
import { type Column, markdownTable, significant, textHead, textRow } from "./table.ts";

const HELP = `usage: study [options]
  --prompts N      how many of the twenty (default 20)
  --seeds N        seeds a prompt (default 3)
  --frames N       frames of a clip (default 8)
  --steps N        denoising steps (default 12)
  --filter RE      only variants whose names match, and the reference
  --gpu KIND       which WebGPU to use
  --json FILE      results; those in it are kept and not made again
  --markdown FILE  write the table
  --help           this text`;

/** The measures of one clip. */
interface Result {
  readonly variant: string;
  readonly prompt: string;
  readonly seed: number;
  readonly frames: number;
  readonly steps: number;
  /** Pixels a frame. */
  readonly ofs: number;
  /** Squared 8-bit levels. */
  readonly warpError: number | null;
  readonly mawe: number | null;
  readonly ssim: number;
  /** 8-bit levels, of blocks. */
  readonly flicker: number;
}

type Figure = "mawe" | "warpError" | "flicker" | "ofs" | "ssim";

const FIGURES: readonly (readonly [Figure, string])[] = [
  ["mawe", "MAWE ↓"],
  ["warpError", "warp error ↓"],
  ["flicker", "flicker ↓"],
  ["ofs", "OFS"],
  ["ssim", "SSIM"],
];

const COLUMNS: readonly Column[] = [
  { title: "settings", width: 34, align: "left" },
  { title: "clips", width: 5, align: "right" },
  ...FIGURES.map(([, title]) => ({ title, width: 22, align: "right" as const })),
];

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: {
    ...{ prompts: count, seeds: count, frames: count, steps: count },
    ...{ filter: pattern, gpu: gpuChoice, json: path, markdown: path },
  },
}, async ({ prompts = 20, seeds = 3, frames = 8, steps = 12, filter, gpu, json, markdown }) => {
  const results: Result[] = json === undefined ? [] : await stored(json);
  const device = await openDevice({ gpu });
  const setting = settingOf(device);
  try {
    const sd = await StableDiffusion.load(undefined, { device });
    for (
      const variant of VARIANTS.filter(({ name }, i) => i === 0 || !filter || filter.test(name))
    ) {
      for (const prompt of PROMPTS.slice(0, prompts)) {
        for (let seed = 0; seed < seeds; seed++) {
          const what = { variant: variant.name, prompt: prompt.text, seed, frames, steps };
          if (results.some((result) => isOf(result, what))) continue;
          results.push({ ...what, ...await measured(sd, variant, prompt, what) });
          const text = `${JSON.stringify({ ...setting, results }, null, 1)}\n`;
          if (json !== undefined) await writeText(json, text, true);
        }
      }
      console.error(`${variant.name}: ${results.length} clips`);
    }
    sd.dispose();
  } finally {
    await device.close();
  }
  const shown = results.filter((result) => result.frames === frames && result.steps === steps);
  const rows = tableOf(shown);
  console.log(`${describeSetting(setting)}, ${frames} frames, ${steps} steps`);
  console.log(textHead(COLUMNS));
  for (const row of rows) console.log(textRow(COLUMNS, row));
  if (markdown !== undefined) {
    await writeText(markdown, `${markdownTable(COLUMNS, rows)}\n`, true);
  }
  return 0;
});

/** Results of an earlier run; none if there is no such file. */
async function stored(file: string): Promise<Result[]> {
  const text = await readFile(file, "utf8").catch(() => null);
  return text === null ? [] : (JSON.parse(text) as { results: Result[] }).results;
}

type What = Pick<Result, "variant" | "prompt" | "seed" | "frames" | "steps">;

function isOf(result: Result, what: What): boolean {
  return (Object.keys(what) as (keyof What)[]).every((key) => result[key] === what[key]);
}

async function measured(
  sd: StableDiffusion,
  { options, smooths, steadies }: Variant,
  { text, subject }: Prompt,
  { seed, frames, steps }: What,
): Promise<Pick<Result, Figure>> {
  const clip: Clip = textToVideo(sd, text, {
    ...options,
    ...{ seed, frames, steps },
    ...(smooths && { smoothing: { masks: { subject } } }),
  });
  try {
    const shown = steadies ? deflicker(clip) : clip;
    const { motion, similarity, flicker } = await measure(shown, { device: sd.device });
    return {
      ofs: motion?.opticalFlowScore ?? NaN,
      warpError: motion?.warpError ?? null,
      mawe: motion?.mawe ?? null,
      ssim: similarity?.ssim ?? NaN,
      flicker: flicker?.blocks.level ?? NaN,
    };
  } finally {
    clip.dispose();
  }
}

/** A row a variant: means over prompts and seeds, and the change against the reference. */
function tableOf(results: readonly Result[]): string[][] {
  const [{ name: reference }] = VARIANTS;
  const base = results.filter(({ variant }) => variant === reference);
  return VARIANTS.flatMap(({ name }) => {
    const own = results.filter(({ variant }) => variant === name);
    if (!own.length) return [];
    return [[
      name,
      String(own.length),
      ...FIGURES.map(([figure]) => cell(own, name === reference ? [] : base, figure)),
    ]];
  });
}

/** `12.3 (−8 ± 3 %)`: the mean, the change of its mean and how far that differs between seeds. */
function cell(own: readonly Result[], base: readonly Result[], figure: Figure): string {
  const mean = meanOf(own, figure);
  if (!base.length) return significant(mean);
  const seeds = [...new Set(own.map(({ seed }) => seed))];
  const changes = seeds.map((seed) => {
    const of = (results: readonly Result[]) =>
      meanOf(results.filter((result) => result.seed === seed), figure);
    return 100 * (of(own) / of(base) - 1);
  });
  const change = average(changes);
  const spread = Math.sqrt(average(changes.map((value) => (value - change) ** 2)));
  const signed = `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(0)}`;
  return `${significant(mean)} (${signed} ± ${spread.toFixed(0)} %)`;
}

const average = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

function meanOf(results: readonly Result[], figure: Figure): number {
  return average(results.map((result) => result[figure]).filter((value) => value !== null));
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
