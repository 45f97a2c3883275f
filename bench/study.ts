/**
 * The study: how settings of Text2Video-Zero change the measures of its clips, with the built-in
 * model, over prompts and seeds. What is there already is not made again, so that a study can be
 * stopped and continued.
 *
 * ```sh
 * deno run -A bench/study.ts --json bench/results/study.json --markdown bench/results/study.md \
 *   --plot docs/study.svg
 * ```
 *
 * @module
 */

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import process from "node:process";
import { type Device, openDevice } from "../core/device.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { deflicker } from "../video/deflicker.ts";
import type { Frame } from "../video/frame.ts";
import { measure } from "../video/metrics/measure.ts";
import { writeText } from "../video/output_file.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import type { Frames } from "../video/writer.ts";
import { type Command, command, count, gpuChoice, path, pattern } from "./command.ts";
import { describeSetting, type Setting, settingOf } from "./setting.ts";
import { studyPlot } from "./study/plot.ts";
import { COLUMNS, type Figure, type Result, summarize, tableOf } from "./study/report.ts";
import { type Prompt, PROMPTS, STEPS, type Variant, VARIANTS } from "./study/variants.ts";
import { markdownTable, textTable } from "./table.ts";

const HELP = `usage: study [options]
  --prompts N      how many of the twenty (default 20)
  --seeds N        seeds a prompt (default 3)
  --frames N       frames of a clip (default 8)
  --steps N        denoising steps (default 8, which the jumps are meant for)
  --filter RE      only variants whose names match, and the reference
  --gpu KIND       which WebGPU to use
  --json FILE      results; those in it are kept and not made again
  --markdown FILE  write the table
  --plot FILE      draw it, as SVG
  --help           this text`;

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: {
    ...{ prompts: count, seeds: count, frames: count, steps: count },
    ...{ filter: pattern, gpu: gpuChoice, json: path, markdown: path, plot: path },
  },
}, async (options) => {
  const { prompts = 20, seeds = 3, frames = 8, steps = STEPS } = options;
  const { filter, gpu, json, markdown, plot } = options;
  const results = json === undefined ? [] : await stored(json);
  const device = await openDevice({ gpu });
  const setting = settingOf(device);
  const variants = VARIANTS.filter(({ name }, i) => i === 0 || !filter || filter.test(name));
  try {
    const sd = await StableDiffusion.load(undefined, { device });
    for (const [variant, prompt, seed] of combinations(variants, prompts, seeds)) {
      const what = { variant: variant.name, prompt: prompt.text, seed, frames, steps };
      if (results.some((result) => isOf(result, what))) continue;
      results.push(...await measured(sd, variant, prompt, what));
      if (json !== undefined) await writeText(json, written(setting, results), true);
      console.error(`${variant.name}, ${prompt.text}, seed ${seed}`);
    }
    sd.dispose();
  } finally {
    await device.close();
  }
  const rows = summarize(
    results.filter((result) => result.frames === frames && result.steps === steps),
  );
  const cells = tableOf(rows);
  const heading = `${describeSetting(setting)}, ${frames} frames, ${steps} steps`;
  console.log(heading);
  console.log(textTable(COLUMNS, cells));
  const table = `${markdownTable(COLUMNS, cells)}\n`;
  if (markdown !== undefined) await writeText(markdown, table, true);
  if (plot !== undefined) await writeText(plot, studyPlot(rows, heading), true);
  return 0;
});

/** Results of an earlier run; none if there is no such file. */
async function stored(file: string): Promise<Result[]> {
  if (!existsSync(file)) return [];
  return (JSON.parse(await readFile(file, "utf8")) as { results: Result[] }).results;
}

/** JSON with a line a clip. */
function written(setting: Setting, results: readonly Result[]): string {
  const head = JSON.stringify({ ...setting, results: [] }, null, 1);
  const lines = results.map((result) => `\n  ${JSON.stringify(result)}`);
  return `${head.replace("[]", () => `[${lines.join(",")}\n ]`)}\n`;
}

/** The clips of the study. */
function combinations(
  variants: readonly Variant[],
  prompts: number,
  seeds: number,
): (readonly [Variant, Prompt, number])[] {
  return variants.flatMap((variant) =>
    PROMPTS.slice(0, prompts).flatMap((prompt) =>
      Array.from({ length: seeds }, (_, seed) => [variant, prompt, seed] as const)
    )
  );
}

type What = Pick<Result, "variant" | "prompt" | "seed" | "frames" | "steps">;

function isOf(result: Result, what: What): boolean {
  return (Object.keys(what) as (keyof What)[]).every((key) => result[key] === what[key]);
}

/** A clip's figures, and those of its steadied frames if they are listed. */
async function measured(
  sd: StableDiffusion,
  { options, smooths, steadied }: Variant,
  { text, subject }: Prompt,
  what: What,
): Promise<Result[]> {
  const { seed, frames, steps } = what;
  const clip = textToVideo(sd, text, {
    ...options,
    ...{ seed, frames, steps },
    ...(smooths && { smoothing: { masks: { subject } } }),
  });
  const shown: Frame[] = [];
  try {
    for await (const frame of clip) shown.push(frame);
  } finally {
    clip.dispose();
  }
  const result = { ...what, ...await figuresOf(shown, sd.device) };
  if (steadied === undefined) return [result];
  const figures = await figuresOf(deflicker(shown), sd.device);
  return [result, { ...what, variant: steadied, ...figures }];
}

async function figuresOf(frames: Frames, device: Device): Promise<Pick<Result, Figure>> {
  const { motion, similarity, flicker } = await measure(frames, { device });
  return {
    ofs: motion?.opticalFlowScore ?? NaN,
    warpError: motion?.warpError ?? null,
    mawe: motion?.mawe ?? null,
    ssim: similarity?.ssim ?? NaN,
    flicker: flicker?.blocks.level ?? NaN,
  };
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
