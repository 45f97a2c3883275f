/**
 * How fast a checkpoint gets from the disk to the device, against plainly reading the same files,
 * and against plainly writing as many bytes to the device; and how much host memory that takes.
 *
 * ```sh
 * deno run -A bench/load.ts /tmp/fullsize --dtype f16
 * ```
 *
 * All are measured in turns in one process; the first reading of each file is not counted, so that
 * all others find it in the system's cache. Loading is measured from its first part on: preparing
 * the tokenizer, and giving the memory back, do not count. On a software adapter the device's
 * buffers lie in the process's own memory. They are told apart by what has been loaded: host memory
 * at a moment is the growth of the resident set since before loading, less the bytes of the tensors
 * that have arrived by then. What is resident after loading beyond all tensors is the driver's and
 * the engine's.
 *
 * "Prepared" is the same load onto a device that keeps nothing: reading, converting and packing, all
 * that this project does, without what the driver makes of the uploads.
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
import { openNullDevice } from "../core/null_gpu.ts";
import type { Tensor } from "../core/tensor.ts";
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

/** Bytes of a buffer that is written, and of a single writing to it. */
const [BUFFER_BYTES, WRITE_BYTES] = [64 * 2 ** 20, 2 ** 20];

/** Writes so many bytes to fresh buffers of the device: loading does this too, and more. */
async function writePlainly(device: Device, bytes: number): Promise<void> {
  const values = new Float32Array(WRITE_BYTES / 4).fill(1);
  const buffers: Tensor[] = [];
  for (let done = 0; done < bytes; done += BUFFER_BYTES) {
    const buffer = device.empty([BUFFER_BYTES / 4]).keep();
    buffers.push(buffer);
    const end = Math.min(BUFFER_BYTES, bytes - done);
    device.scope(() => {
      for (let at = 0; at < end; at += WRITE_BYTES) {
        device.write(device.view(buffer, [values.length], at), values);
      }
    });
    await device.sync();
  }
  for (const buffer of buffers) buffer.dispose();
}

async function seconds(body: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await body();
  return (performance.now() - start) / 1000;
}

/** One load; memory is that of the host, in bytes. */
interface Load {
  readonly seconds: number;
  /** Bytes that arrived on the device. */
  readonly arrived: number;
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
): Promise<Load> {
  const before = process.memoryUsage().rss;
  let parts = 0;
  let current = 0;
  let peak = 0;
  let sampled = 0;
  let start = 0;
  const host = () => process.memoryUsage().rss - before - parts - current;
  const sd = await StableDiffusion.load(model, {
    device,
    dtype,
    tokenizer,
    onPart() {
      start ||= performance.now();
    },
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
  const seconds = (performance.now() - start) / 1000;
  const after = host();
  sd.dispose();
  device.trim();
  return { seconds, arrived: parts, peak, after };
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
  const writing: number[] = [];
  const loads: Load[] = [];
  const preparing: number[] = [];
  for (let run = 0; run < runs; run++) {
    reading.push(await seconds(() => readPlainly(files)));
    const found = await load(settings, device);
    loads.push(found);
    const nothing = openNullDevice(device);
    preparing.push((await load(settings, nothing)).seconds);
    nothing.dispose();
    writing.push(await seconds(() => writePlainly(device, found.arrived)));
    device.trim();
  }
  // Later loads find the memory that the first one left to the process.
  const [{ arrived, peak, after }] = loads;
  const loading = loads.map(({ seconds }) => seconds);
  const line = (what: string, times: readonly number[], count: number) => {
    const [time, rate] = [median(times), count / 1e9 / median(times)];
    console.log(`${what.padEnd(15)}${time.toFixed(2)} s  ${rate.toFixed(2)} GB/s`);
  };
  const share = (times: readonly number[], of: readonly number[]) =>
    `${(100 * median(times.map((time, run) => time / of[run]))).toFixed(0)} %`;
  console.log(`${model}, ${dtype}: ${(bytes / 1e9).toFixed(2)} GB, median of ${runs}`);
  line("read plainly", reading, bytes);
  line("wrote plainly", writing, arrived);
  line("prepared", preparing, bytes);
  line("loaded", loading, bytes);
  const both = reading.map((time, run) => time + writing[run]);
  console.log(`prepared at    ${share(reading, preparing)} of the rate of reading`);
  const shares = [share(reading, loading), share(both, loading)];
  console.log(`loaded at      ${shares[0]} of reading, ${shares[1]} of reading, then writing`);
  console.log(
    `host memory    ${(peak / MiB).toFixed(0)} MiB at most, ${(after / MiB).toFixed(0)} MiB after`,
  );
  const hostMemory = { peak, after };
  const times = { reading, writing, preparing, loading };
  const result = { setting, model, dtype, bytes, arrived, ...times, hostMemory };
  await writeResults({ json }, result);
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
