/**
 * What background smoothing does to clips of the built-in model: how far the background is from the
 * first frame's, moved along with the camera, with and without smoothing; and how much the
 * foreground, found by `--subject`, changes. Differences are means of colours, of 255.
 *
 * ```sh
 * deno run -A bench/smoothing.ts --seeds 3
 * deno run -A bench/smoothing.ts --prompts 1 --seed 4 --seeds 1 --picture out/smoothing.png
 * ```
 *
 * @module
 */

import process from "node:process";
import { openDevice } from "../core/device.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import type { SmoothingBlend } from "../video/background_smoothing.ts";
import type { Frame } from "../video/frame.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { writeVideo } from "../video/writer.ts";
import { backgroundError, type CellMasks, foregroundDifference } from "./background.ts";
import { type Command, command, count, gpuChoice, path, writeResults } from "./command.ts";
import { describeSetting, settingOf } from "./setting.ts";
import { type Column, markdownTable, textTable } from "./table.ts";

const HELP = `usage: smoothing [options]
  --prompts N      prompts, at most 3 (default 3)
  --seed N         first seed (default 1)
  --seeds N        clips of each prompt (default 3)
  --frames N       frames of a clip (default 4)
  --gpu KIND       which WebGPU to use
  --picture FILE   contact sheet of the first clip: without smoothing, with it, and the masks
  --json FILE      write the results
  --markdown FILE  write the table
  --help           this text`;

/** Prompts and their subjects. */
const PROMPTS = [
  ["a blue circle in the sky", "circle"],
  ["a red heart in a green meadow", "heart"],
  ["a yellow star on a beach", "star"],
] as const;

/** One latent cell a frame, and a long way from T0 to T1, which sets backgrounds in motion. */
const CLIP = {
  width: 192,
  height: 128,
  steps: 12,
  t0: 4,
  t1: 7,
  motionFieldStrengthX: 21.5,
  motionFieldStrengthY: 0,
} as const;

const COLUMNS: readonly Column[] = [
  { title: "prompt", width: 32, align: "left" },
  { title: "seed", width: 5, align: "right" },
  { title: "without", width: 8, align: "right" },
  { title: "code", width: 8, align: "right" },
  { title: "paper", width: 8, align: "right" },
  { title: "foreground", width: 11, align: "right" },
];

interface Row {
  readonly prompt: string;
  readonly seed: number;
  /** Background errors. */
  readonly without: number;
  readonly code: number;
  readonly paper: number;
  /** What smoothing by the authors' code changes in the foreground. */
  readonly foreground: number;
}

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: {
    prompts: count,
    seed: count,
    seeds: count,
    frames: count,
    gpu: gpuChoice,
    picture: path,
    json: path,
    markdown: path,
  },
}, async ({ seed: first = 1, seeds = 3, frames = 4, gpu, picture, ...rest }) => {
  const { prompts = PROMPTS.length, ...files } = rest;
  const device = await openDevice({ gpu });
  try {
    const sd = await StableDiffusion.load(undefined, { device });
    const rows: Row[] = [];
    for (const [prompt, subject] of PROMPTS.slice(0, prompts)) {
      for (let seed = first; seed < first + seeds; seed++) {
        const shown = rows.length ? undefined : picture;
        rows.push(await measure(sd, prompt, subject, { ...CLIP, frames, seed }, shown));
      }
    }
    sd.dispose();
    const about = `${describeSetting(settingOf(device))}, ${frames} frames of ` +
      `${CLIP.width}x${CLIP.height}, ${CLIP.steps} steps`;
    const cells = rows.map(cellsOf);
    console.log(`${about}\n${textTable(COLUMNS, cells)}`);
    const results = { ...settingOf(device), ...CLIP, frames, rows };
    await writeResults(files, results, `${about}\n\n${markdownTable(COLUMNS, cells)}\n`);
    return 0;
  } finally {
    await device.close();
  }
});

async function measure(
  sd: StableDiffusion,
  prompt: string,
  subject: string,
  clip: TextToVideoOptions & typeof CLIP & { readonly seed: number },
  picture: string | undefined,
): Promise<Row> {
  const without = await framesOf(sd, prompt, clip);
  let values = Promise.resolve(new Float32Array());
  const smoothed = (blend: SmoothingBlend) =>
    framesOf(sd, prompt, {
      ...clip,
      smoothing: { masks: { subject }, blend },
      onIntermediate(name, value) {
        if (name === "foreground" && "device" in value) values = value.data();
      },
    });
  const paper = await smoothed("paper");
  const code = await smoothed("code");
  const { factor } = sd;
  const cells = [clip.height / factor, clip.width / factor] as const;
  const masks = { values: await values, cells, factor };
  if (picture !== undefined) {
    const shown = without.map((_, k) => maskFrame(masks, k));
    await writeVideo([...without, ...code, ...shown], `sheet:${picture}`, {
      fps: 1,
      overwrite: true,
      sheet: { columns: without.length },
      settings: { prompt, ...clip, subject },
    });
  }
  const motion = { x: clip.motionFieldStrengthX, y: clip.motionFieldStrengthY };
  return {
    prompt,
    seed: clip.seed,
    without: backgroundError(without, masks, motion),
    code: backgroundError(code, masks, motion),
    paper: backgroundError(paper, masks, motion),
    foreground: foregroundDifference(code, without, masks),
  };
}

async function framesOf(
  sd: StableDiffusion,
  prompt: string,
  options: TextToVideoOptions,
): Promise<Frame[]> {
  const clip = textToVideo(sd, prompt, options);
  const frames: Frame[] = [];
  for await (const frame of clip) frames.push(frame);
  clip.dispose();
  return frames;
}

/** The mask of a frame as a picture. */
function maskFrame({ values, cells: [h, w], factor }: CellMasks, k: number): Frame {
  const [width, height] = [w * factor, h * factor];
  const data = Uint8Array.from({ length: 3 * width * height }, (_, i) => {
    const [x, y] = [Math.floor(i / 3) % width, Math.floor(i / 3 / width)];
    return 255 * values[(k * h + Math.floor(y / factor)) * w + Math.floor(x / factor)];
  });
  return { width, height, data };
}

function cellsOf({ prompt, seed, without, code, paper, foreground }: Row): string[] {
  const numbers = [without, code, paper, foreground].map((value) => value.toFixed(2));
  return [prompt, `${seed}`, ...numbers];
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
