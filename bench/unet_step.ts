/**
 * One evaluation of the UNet, the work of which all denoising consists: what it takes, what the
 * host adds to it, where its time goes, and how near it comes to the best of its kernels alone.
 *
 * ```sh
 * deno run -A bench/unet_step.ts --tiny
 * bun bench/unet_step.ts --size 512 --dtype f16 --json unet_step.json
 * ```
 *
 * Stable Diffusion 1.5 runs with random weights: the time does not depend on their values.
 *
 * @module
 */

import process from "node:process";
import { type Device, openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import { inside, openWeights, readConfigs } from "../models/checkpoint.ts";
import type { UNetConfig } from "../models/config.ts";
import { SD15 } from "../models/sd15.ts";
import { BUILT_IN } from "../models/stable_diffusion.ts";
import { UNet2DConditionModel } from "../models/unet.ts";
import type { WeightSource } from "../models/weights.ts";
import {
  type Command,
  command,
  count,
  flag,
  floatType,
  gpuChoice,
  oneOf,
  path,
  writeResults,
} from "./command.ts";
import { describeSetting, settingOf } from "./setting.ts";
import { unetWorkloads } from "./shapes.ts";
import { probe } from "./timing.ts";
import { alone, evaluate } from "./unet_step/evaluation.ts";
import { byKind } from "./unet_step/kinds.ts";
import { randomUNet } from "./unet_step/random_unet.ts";
import { markdown, plainText, type Results } from "./unet_step/report.ts";

const HELP = `Times one evaluation of the UNet. deno run -A bench/unet_step.ts [options]

  --size SIZE      Stable Diffusion 1.5 at 256 (default) or 512 pixels, with random weights
  --tiny           the built-in model instead, at its own size
  --rows N         rows of the batch: frames times guidance rows (default 2)
  --dtype TYPE     f32 (default) or f16
  --runs N         measurements that medians are taken of (default 3)
  --gpu CHOICE     auto (default), native, dawn or software
  --json FILE      write the results as JSON
  --markdown FILE  write the report as Markdown
  --help           this text`;

/** A UNet to be measured. */
interface Subject {
  readonly model: string;
  readonly config: UNetConfig;
  readonly size: number;
  /** Side of the latents. */
  readonly side: number;
  readonly open: () => Promise<WeightSource>;
}

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: {
    size: oneOf(["256", "512"]),
    tiny: flag,
    rows: count,
    dtype: floatType,
    runs: count,
    gpu: gpuChoice,
    json: path,
    markdown: path,
  },
}, async ({ size, tiny, rows = 2, dtype = "f32", runs = 3, gpu, ...files }) => {
  if (tiny && size) {
    throw new InputError("--size is for Stable Diffusion 1.5; leave it out with --tiny");
  }
  const subject = tiny ? await builtIn() : stableDiffusion(Number(size ?? 256));
  const device = await openDevice({ gpu });
  try {
    const results = await measure(device, subject, { rows, dtype, runs });
    await writeResults(files, results, markdown(results));
    return 0;
  } finally {
    await device.close();
  }
});

async function builtIn(): Promise<Subject> {
  const { unet: config, vae } = await readConfigs(BUILT_IN);
  const side = config.sampleSize;
  const size = side * 2 ** (vae.blockOutChannels.length - 1);
  const open = () => openWeights(inside(BUILT_IN, "unet"), "diffusion_pytorch_model");
  return { model: "built-in model", config, size, side, open };
}

function stableDiffusion(size: number): Subject {
  const model = "Stable Diffusion 1.5, random weights";
  const { unet: config, vae } = SD15;
  const side = size / 2 ** (vae.blockOutChannels.length - 1);
  return { model, config, size, side, open: () => Promise.resolve(randomUNet(config, model)) };
}

async function measure(
  device: Device,
  { model, config, size, side, open }: Subject,
  { rows, dtype, runs }: Pick<Results, "rows" | "dtype" | "runs">,
): Promise<Results> {
  const setting = settingOf(device);
  console.log(`${describeSetting(setting)}, ${dtype}`);
  const peaks = await probe(device);
  const begin = performance.now();
  const source = await open();
  const shapes = [...source.tensors.values()].map(({ file, key }) => file.tensors.get(key)?.shape);
  const parameters = shapes.reduce((sum, shape) => sum + sizeOf(shape ?? []), 0);
  const unet = await UNet2DConditionModel.load(source, config, { device, dtype });
  await source.close();
  const load = performance.now() - begin;
  // The guidance rows of a frame have a text each.
  const extent = { rows, textRows: rows % 2 ? 1 : 2, side };
  const measuring = { ...extent, method: peaks.method, runs };
  const { evaluation, profile } = await evaluate(unet, measuring);
  unet.dispose();
  device.trim();
  const calls = await alone(device, unetWorkloads(config, extent), { ...measuring, dtype });
  const kinds = byKind(calls, profile);
  const results: Results = {
    ...setting,
    model,
    size,
    rows,
    dtype,
    runs,
    parameters,
    load,
    peaks,
    evaluation,
    kinds,
    calls,
  };
  console.log(plainText(results));
  return results;
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
