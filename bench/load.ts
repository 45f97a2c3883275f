/**
 * How fast a checkpoint gets from the disk to the device, against plainly reading the same files,
 * and how much host memory that takes.
 *
 * ```sh
 * deno run -A bench/load.ts /tmp/fullsize --dtype f16
 * ```
 *
 * Both are measured in turns in one process; the first reading of each file is not counted, so that
 * all others find it in the system's cache. On a software adapter the device's buffers lie in the
 * process's own memory. They are told apart by what has been loaded: host memory at a moment is the
 * growth of the resident set since before loading, less the bytes of the tensors that have arrived
 * by then. What is resident after loading beyond all tensors is the driver's and the engine's.
 *
 * @module
 */

import { open, readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { openDevice } from "../core/device.ts";
import type { Device } from "../core/device.ts";
import type { DType } from "../core/dtype.ts";
import { InputError } from "../core/errors.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { type Command, command, count, floatType, path, writeResults } from "./command.ts";
import { describeSetting, settingOf } from "./setting.ts";

const HELP = `usage: load <folder or .safetensors file> [options]
  --dtype f32|f16     type on the device (default f16)
  --tokenizer FOLDER  vocabulary, if the checkpoint brings none
  --runs N            loads that are measured (default 3)
  --json FILE         write the results
  --help              this text`;

interface Settings {
  readonly model: string;
  readonly dtype: DType;
  readonly tokenizer?: string;
  readonly runs: number;
  readonly json?: string;
}

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { dtype: floatType, tokenizer: path, runs: count, json: path },
  positionals: true,
}, async ({ dtype = "f16", runs = 3, ...files }, models) => {
  if (models.length !== 1) throw new InputError("name one checkpoint");
  const device = await openDevice();
  try {
    await measure({ model: models[0], dtype, runs, ...files }, device);
    return 0;
  } finally {
    await device.close();
  }
});

/** The weights that loading reads. */
async function filesOf(model: string): Promise<string[]> {
  if ((await stat(model)).isFile()) return [model];
  const parts = ["text_encoder", "unet", "vae"].map(async (part) => {
    const names = await readdir(join(model, part));
    return names.filter((name) => name.endsWith(".safetensors")).map((n) => join(model, part, n));
  });
  return (await Promise.all(parts)).flat();
}

const READ_BYTES = 8 * 2 ** 20;

/** Reads files from beginning to end into one buffer; returns bytes. */
async function readPlainly(files: readonly string[]): Promise<number> {
  const buffer = new Uint8Array(READ_BYTES);
  let bytes = 0;
  for (const file of files) {
    const handle = await open(file);
    for (let at = 0;;) {
      const { bytesRead } = await handle.read(buffer, 0, READ_BYTES, at);
      if (bytesRead === 0) break;
      at += bytesRead;
      bytes += bytesRead;
    }
    await handle.close();
  }
  return bytes;
}

async function seconds(body: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await body();
  return (performance.now() - start) / 1000;
}

/** Bytes of host memory during and after one load. */
interface HostMemory {
  /** Most at any moment, beyond the tensors that had arrived. */
  readonly peak: number;
  /** When everything had arrived, beyond all tensors. */
  readonly after: number;
}

/** Milliseconds between two looks at the resident set: reading it costs about 0.1 ms. */
const SAMPLE_MS = 10;

async function load(
  { model, dtype, tokenizer }: Settings,
  device: Device,
): Promise<HostMemory> {
  const before = process.memoryUsage().rss;
  let parts = 0;
  let current = 0;
  let peak = 0;
  let sampled = 0;
  const host = () => process.memoryUsage().rss - before - parts - current;
  const sd = await StableDiffusion.load(model, {
    device,
    dtype,
    tokenizer,
    onProgress(_part, bytes, total) {
      current = bytes;
      if (bytes === total) {
        parts += total;
        current = 0;
      }
      const now = performance.now();
      if (now < sampled + SAMPLE_MS && bytes < total) return;
      sampled = now;
      peak = Math.max(peak, host());
    },
  });
  const after = host();
  sd.dispose();
  device.trim();
  return { peak, after };
}

const median = (values: readonly number[]) =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

const MiB = 2 ** 20;

async function measure(settings: Settings, device: Device): Promise<void> {
  const { model, dtype, runs, json } = settings;
  const setting = settingOf(device);
  console.log(describeSetting(setting));
  const files = await filesOf(model);
  const bytes = await readPlainly(files);
  const reading: number[] = [];
  const loading: number[] = [];
  let memory: HostMemory | null = null;
  for (let run = 0; run < runs; run++) {
    reading.push(await seconds(() => readPlainly(files)));
    loading.push(
      await seconds(async () => {
        const found = await load(settings, device);
        // Later loads find the memory that the first one left to the process.
        memory ??= found;
      }),
    );
  }
  const rate = (times: readonly number[]) => bytes / 1e9 / median(times);
  const { peak, after } = memory!;
  console.log(`${model}, ${dtype}: ${(bytes / 1e9).toFixed(2)} GB, median of ${runs}`);
  console.log(`read plainly  ${median(reading).toFixed(2)} s  ${rate(reading).toFixed(2)} GB/s`);
  console.log(`loaded        ${median(loading).toFixed(2)} s  ${rate(loading).toFixed(2)} GB/s`);
  console.log(
    `share         ${(100 * rate(loading) / rate(reading)).toFixed(0)} % of plain reading`,
  );
  console.log(
    `host memory   ${(peak / MiB).toFixed(0)} MiB at most, ${(after / MiB).toFixed(0)} MiB after`,
  );
  const result = { setting, model, dtype, bytes, reading, loading, hostMemory: { peak, after } };
  await writeResults({ json }, result);
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
