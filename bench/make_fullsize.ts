/**
 * Writes a checkpoint of Stable Diffusion 1.5's exact architecture and size, its weights made by the
 * recipe in `recipe.ts`: what load times and full-size numbers are measured with.
 *
 * ```sh
 * deno run -A bench/make_fullsize.ts /tmp/fullsize
 * ```
 *
 * @module
 */

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { crc32 } from "node:zlib";
import { f16ArrayToF32 } from "../core/dtype.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { type TensorStream, writeSafetensors } from "../core/safetensors.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import { type Part, PARTS, SD15, SD15_JSON, SD15_SCHEDULER } from "../models/sd15.ts";
import { stateDicts } from "../models/state_dict.ts";
import { type Command, command, flag, oneOf } from "./command.ts";
import { diffusersToLdm } from "./ldm_layout.ts";
import { fillF16 } from "./recipe.ts";

const HELP = `usage: make_fullsize <folder> [options]
  --single           one file with the names of LDM, not a diffusers folder
  --dtype f16|bf16   type of the weights (default f16)
  --shards           parts of 512 MiB at most, with an index
  --help             this text`;

/** CRC-32 of the little-endian half-precision bytes of every tensor. */
const CHECKSUMS = new URL("../tests/golden/fullsize/weights_crc32.json", import.meta.url);

/** Elements made at once: bounds the memory, and a piece stays in the cache. */
const PIECE = 2 ** 18;
const SHARD_BYTES = 512 * 2 ** 20;

interface Settings {
  readonly folder: string;
  readonly dtype: "f16" | "bf16";
  readonly shards: boolean;
}

/** A tensor of a part, under its name in the file to be written. */
interface Entry {
  readonly part: Part;
  readonly name: string;
  readonly shape: Shape;
  readonly stored: { readonly name: string; readonly shape: Shape };
}

const STATE_DICTS = stateDicts(SD15);

type Checksums = Readonly<Record<Part, Readonly<Record<string, number>>>>;

/** A tensor, made piece by piece and checked when it is complete. */
function streamOf(entry: Entry, dtype: Settings["dtype"], checksums: Checksums): TensorStream {
  return {
    ...entry.stored,
    dtype: dtype === "f16" ? "F16" : "BF16",
    pieces: () => piecesOf(entry, dtype, checksums[entry.part][entry.name]),
  };
}

function* piecesOf(
  { part, name, shape }: Entry,
  dtype: Settings["dtype"],
  wanted: number,
): Iterable<Uint16Array> {
  const size = sizeOf(shape);
  const buffer = new Uint16Array(Math.min(PIECE, size));
  let checksum = 0;
  for (let from = 0; from < size; from += PIECE) {
    const piece = buffer.subarray(0, Math.min(PIECE, size - from));
    fillF16(piece, part, name, shape, from);
    checksum = crc32(new Uint8Array(piece.buffer, 0, piece.byteLength), checksum);
    yield dtype === "f16" ? piece : toBf16(piece);
  }
  if (checksum === wanted) return;
  throw new WeightError(
    `${part}/${name}: the CRC-32 must be ${wanted}, it is ${checksum}; ` +
      `bench/recipe.ts does not follow the recipe`,
  );
}

/** Rounds to the nearest bfloat16, ties to even. */
function toBf16(halves: Uint16Array): Uint16Array {
  const words = new Uint32Array(f16ArrayToF32(halves).buffer);
  return Uint16Array.from(words, (word) => (word + 0x7fff + ((word >>> 16) & 1)) >>> 16);
}

function entriesOf(part: Part, single: boolean): Entry[] {
  return Array.from(STATE_DICTS[part], ([name, shape]) => {
    const stored = single ? diffusersToLdm(part, name, shape) : { name, shape };
    return { part, name, shape, stored };
  });
}

/** Cuts a list of tensors where the next one would make a file too large. */
function inShards(entries: readonly Entry[]): Entry[][] {
  const shards: Entry[][] = [[]];
  let bytes = 0;
  for (const entry of entries) {
    const size = 2 * sizeOf(entry.shape);
    if (bytes + size > SHARD_BYTES && bytes > 0) {
      shards.push([]);
      bytes = 0;
    }
    shards[shards.length - 1].push(entry);
    bytes += size;
  }
  return shards;
}

async function writeJson(file: string, content: object): Promise<void> {
  await writeFile(file, `${JSON.stringify(content, null, 2)}\n`);
}

async function writeFolder(settings: Settings, checksums: Checksums): Promise<void> {
  const { folder } = settings;
  await mkdir(join(folder, "scheduler"), { recursive: true });
  await writeJson(join(folder, "scheduler", "scheduler_config.json"), SD15_SCHEDULER);
  await writeJson(join(folder, "model_index.json"), {
    _class_name: "StableDiffusionPipeline",
    scheduler: ["diffusers", "PNDMScheduler"],
    text_encoder: ["transformers", "CLIPTextModel"],
    unet: ["diffusers", "UNet2DConditionModel"],
    vae: ["diffusers", "AutoencoderKL"],
  });
  for (const part of PARTS) await writePart(part, settings, checksums);
}

async function writePart(part: Part, settings: Settings, checksums: Checksums): Promise<void> {
  const { folder, shards, dtype } = settings;
  const place = join(folder, part);
  const stem = part === "text_encoder" ? "model" : "diffusion_pytorch_model";
  await mkdir(place, { recursive: true });
  await writeJson(join(place, "config.json"), SD15_JSON[part]);
  const entries = entriesOf(part, false);
  const files = shards ? inShards(entries) : [entries];
  const weight_map: Record<string, string> = {};
  for (const [i, list] of files.entries()) {
    const count = (n: number) => String(n).padStart(5, "0");
    const suffix = shards ? `-${count(i + 1)}-of-${count(files.length)}` : "";
    const name = `${stem}${suffix}.safetensors`;
    for (const entry of list) weight_map[entry.name] = name;
    const streams = list.map((entry) => streamOf(entry, dtype, checksums));
    await writeSafetensors(join(place, name), streams, FORMAT);
  }
  if (!shards) return;
  const total_size = entries.reduce((sum, { shape }) => sum + 2 * sizeOf(shape), 0);
  await writeJson(join(place, `${stem}.safetensors.index.json`), {
    metadata: { total_size },
    weight_map,
  });
}

const FORMAT = { format: "pt" };

/** The name of the single file, inside the folder. */
const SINGLE = "sd15-recipe.safetensors";

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { single: flag, dtype: oneOf(["f16", "bf16"]), shards: flag },
  positionals: true,
}, async ({ single, dtype = "f16", shards }, folders) => {
  if (folders.length !== 1) throw new InputError("name the folder to write to");
  if (single && shards) throw new InputError("--single and --shards exclude each other");
  const [folder] = folders;
  const start = performance.now();
  const checksums: Checksums = JSON.parse(await readFile(CHECKSUMS, "utf8"));
  await mkdir(folder, { recursive: true });
  if (single) {
    const entries = PARTS.flatMap((part) => entriesOf(part, true));
    const streams = entries.map((entry) => streamOf(entry, dtype, checksums));
    await writeSafetensors(join(folder, SINGLE), streams, FORMAT);
  } else {
    await writeFolder({ folder, dtype, shards }, checksums);
  }
  const seconds = (performance.now() - start) / 1000;
  console.error(
    `${single ? join(folder, SINGLE) : folder}: ${seconds.toFixed(1)} s, all checksums right`,
  );
  return 0;
});

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
