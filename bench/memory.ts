/**
 * How much memory clips of Stable Diffusion 1.5 take: on the GPU, and on the host.
 *
 * ```sh
 * deno run -A bench/memory.ts
 * deno run -A bench/memory.ts --model /tmp/fullsize
 * ```
 *
 * Nothing is computed: the program runs on a device that only accounts (`core/null_gpu.ts`), whose
 * peak is that of a real one to the byte (tests/memory_test.ts), here one that binds 2 GiB and uses
 * the kernels of plain GPUs. So what the process itself grows by is the host's need alone: with
 * `--model`, files are loaded, and a clip is made, and the resident set is watched.
 *
 * @module
 */

import process from "node:process";
import { InputError } from "../core/errors.ts";
import { type Likeness, openNullDevice } from "../core/null_gpu.ts";
import { modelDefaults } from "../models/config.ts";
import { ClipTokenizer } from "../models/clip_tokenizer.ts";
import { SD15, SD15_SCHEDULER } from "../models/sd15.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { openOutline, type Outline, peakOf } from "../video/memory.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { type Command, command, count, path, writeResults } from "./command.ts";
import { type Column, markdownTable, textTable } from "./table.ts";

const HELP = `usage: memory [options]
  --size PX           side of the pictures (default 512)
  --model MODEL       also: host memory while loading it and making a clip of 8 frames
  --tokenizer FOLDER  vocabulary, if the model brings none
  --json FILE         write the results
  --markdown FILE     write the table
  --help              this text`;

/** A GPU with what most have. */
export const PLAIN_GPU: Likeness = {
  gpu: {
    limits: {
      maxBufferSize: 2 ** 31,
      maxStorageBufferBindingSize: 2 ** 31 - 4,
      maxStorageBuffersPerShaderStage: 8,
      maxTextureDimension2D: 8192,
      maxComputeWorkgroupStorageSize: 32768,
      maxComputeInvocationsPerWorkgroup: 256,
      maxComputeWorkgroupSizeX: 256,
      maxComputeWorkgroupsPerDimension: 65535,
    } as GPUSupportedLimits,
    features: new Set(["shader-f16", "subgroups"]) as GPUSupportedFeatures,
  },
  info: {
    implementation: "native",
    software: false,
    description: "a plain GPU",
    vendor: "",
    architecture: "",
    f16: true,
    timestamps: false,
    subgroups: true,
    subgroupSize: 32,
    texels: true,
    subgroupMatrix: null,
  },
};

const FRAMES = [1, 8, 64];

/** UNet rows at once: the least, one frame with guidance, what is usual on a GPU. */
const ROWS = [1, 2, 8];

const KINDS = [
  { name: "f32", dtype: "f32", quantize: false },
  { name: "f16", dtype: "f16", quantize: false },
  { name: "q8 + f16", dtype: "f16", quantize: true },
] as const;

/** Denoising steps of the clips: more take no more memory. */
const STEPS = 4;

const PROMPT = "a horse galloping on a street";

interface Use {
  readonly kind: string;
  readonly frames: number;
  readonly rows: number;
  /** Bytes on the GPU at most. */
  readonly bytes: number;
}

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { size: count, model: path, tokenizer: path, json: path, markdown: path },
}, async ({ size = 512, model, tokenizer, ...files }) => {
  if (size % 8) throw new InputError(`--size must be a multiple of 8, got ${size}`);
  const host = model === undefined ? undefined : await hostMemory(model, size, tokenizer);
  if (host) {
    console.log(`host, while loading ${model}: ${mebibytes(host.loading)} above an empty process`);
    console.log(`host, while making 8 frames: ${mebibytes(host.running)} above an empty process`);
  }
  const uses: Use[] = [];
  for (const kind of KINDS) uses.push(...await usesOf(kind, size));
  const table = tableOf(uses, size);
  console.log(table.text);
  await writeResults(files, { size, uses, host }, table.markdown);
  return 0;
});

async function usesOf(
  { name, dtype, quantize }: (typeof KINDS)[number],
  size: number,
): Promise<Use[]> {
  const outline: Outline = {
    configs: SD15,
    dtype,
    quantize,
    tokenizer: ClipTokenizer.from({
      vocab: { "<|startoftext|>": 0, "<|endoftext|>": 1 },
      merges: "",
    }),
    schedulerConfig: SD15_SCHEDULER,
    defaults: modelDefaults({}, "defaults"),
  };
  const sd = await openOutline(outline, PLAIN_GPU);
  const uses: Use[] = [];
  for (const frames of FRAMES) {
    for (const rows of ROWS) {
      sd.device.resetPeak();
      const options = { frames, rows, width: size, height: size, steps: STEPS };
      const bytes = await peakOf(textToVideo(sd, PROMPT, options), sd);
      uses.push({ kind: name, frames, rows, bytes });
    }
  }
  return uses;
}

/** Growth of the resident set while a model is loaded, and while a clip is made. */
async function hostMemory(
  model: string,
  size: number,
  tokenizer?: string,
): Promise<{ loading: number; running: number }> {
  const empty = process.memoryUsage.rss();
  let peak = 0;
  const look = () => peak = Math.max(peak, process.memoryUsage.rss() - empty);
  const timer = setInterval(look, 10);
  try {
    const device = openNullDevice(PLAIN_GPU);
    const sd = await StableDiffusion.load(model, {
      device,
      dtype: "f16",
      tokenizer,
      onProgress: look,
    });
    const loading = peak;
    peak = 0;
    look();
    const clip = textToVideo(sd, PROMPT, { frames: 8, width: size, height: size, steps: STEPS });
    for await (const _ of clip.steps) look();
    for await (const _ of clip) look();
    return { loading, running: peak };
  } finally {
    clearInterval(timer);
  }
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}

function tableOf(uses: readonly Use[], size: number): { text: string; markdown: string } {
  const right = (title: string): Column => ({ title, width: 10, align: "right" });
  const columns = [
    right(`${size}²`),
    right("UNet rows"),
    ...KINDS.map(({ name }) => right(name)),
  ];
  const rows = FRAMES.flatMap((frames) =>
    ROWS.map((rows) => [
      frames === 1 ? "1 frame" : `${frames} frames`,
      String(rows),
      ...KINDS.map(({ name }) => {
        const use = uses.find((use) =>
          use.kind === name && use.frames === frames && use.rows === rows
        );
        return mebibytes(use!.bytes);
      }),
    ])
  );
  return { text: textTable(columns, rows), markdown: `${markdownTable(columns, rows)}\n` };
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
