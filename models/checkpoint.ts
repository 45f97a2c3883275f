/**
 * Finding the parts of a checkpoint in a folder of diffusers' layout, wherever it lies: on disk, on
 * a web server, or inside this package.
 *
 * @module
 */

import { fileSystem, openByteSource } from "../core/byte_source.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { openSafetensors, type SafetensorsFile } from "../core/safetensors.ts";
import {
  clipTextConfig,
  type Json,
  type ModelDefaults,
  modelDefaults,
  unetConfig,
  vaeConfig,
} from "./config.ts";
import { CONVERT_PICKLES, isPickle, weightNames } from "./hub/selection.ts";
import type { Part, PartConfigs } from "./sd15.ts";
import type { WeightSource } from "./weights.ts";

/** A folder on disk (path) or anywhere (URL). */
export type Location = string | URL;

/** The file or folder `name` inside `folder`. */
export function inside(folder: Location, name: string): Location {
  if (folder instanceof URL) {
    return new URL(name, folder.href.endsWith("/") ? folder : `${folder.href}/`);
  }
  return `${folder.replace(/[/\\]+$/, "")}/${name}`;
}

/** Whether there is a file. */
export async function exists(file: Location): Promise<boolean> {
  try {
    await (await openByteSource(file)).close();
    return true;
  } catch (error) {
    if (error instanceof InputError) return false;
    throw error;
  }
}

/**
 * Reads a JSON object.
 *
 * @throws {InputError} if the file cannot be read.
 * @throws {WeightError} if it holds no JSON object.
 */
export async function readJson(file: Location): Promise<Json> {
  const source = await openByteSource(file);
  try {
    const text = new TextDecoder().decode(await source.read(0, source.size));
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Json;
    throw new SyntaxError("it holds no object");
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause;
    throw new WeightError(
      `${source.name}: not a JSON configuration (${cause.message}); fetch the file again`,
      { cause },
    );
  } finally {
    await source.close();
  }
}

/** What the weights of a part are called, before their ending. */
export type WeightStem = "diffusion_pytorch_model" | "model";

/** What the weights of a part are called in diffusers' layout. */
export function stemOf(part: Part): WeightStem {
  return part === "text_encoder" ? "model" : "diffusion_pytorch_model";
}

/**
 * Opens the weights of one part of a diffusers folder: `stem.safetensors`, a variant of it
 * (`stem.fp16.safetensors`), or shards listed in `stem.safetensors.index.json` (for a variant
 * `stem.safetensors.index.fp16.json` or `stem.fp16.safetensors.index.json`). Of several the
 * variant that is asked for comes first, then the one without a name, then fp16, then bf16.
 *
 * @throws {WeightError} if there are only pickles, or none of these.
 */
export async function openWeights(
  folder: Location,
  stem: WeightStem,
  variant?: string,
): Promise<WeightSource> {
  const names = weightNames(stem, variant);
  for (const { whole, indexes } of names) {
    const file = inside(folder, whole);
    if (await exists(file)) return merged([await openSafetensors(file)], String(file));
    for (const name of indexes) {
      const index = inside(folder, name);
      if (await exists(index)) return openShards(folder, index);
    }
  }
  for (const pickle of ["pytorch_model.bin", `${stem}.bin`, `${stem}.ckpt`]) {
    if (!await exists(inside(folder, pickle))) continue;
    throw new WeightError(
      `${folder}: there is only ${pickle}, a Python pickle, ${CONVERT_PICKLES}`,
    );
  }
  throw new WeightError(
    `${folder}: no weights found, looked for ${names.map(({ whole }) => whole).join(", ")} and ` +
      `their indexes; fetch the missing file`,
  );
}

async function openShards(folder: Location, index: Location): Promise<WeightSource> {
  const map = (await readJson(index)).weight_map;
  const listed = typeof map === "object" && map !== null ? Object.entries(map) : [];
  if (!listed.length || !listed.every(([, file]) => typeof file === "string")) {
    throw new WeightError(`${index}: "weight_map" must list a file for each tensor`);
  }
  const names = [...new Set(listed.map(([, file]) => file as string))];
  const outside = names.find((name) => /[/\\]|^\.\.?$/.test(name));
  if (outside !== undefined) {
    throw new WeightError(`${index}: shards must lie in the same folder, "${outside}" does not`);
  }
  const files: SafetensorsFile[] = [];
  try {
    for (const name of names) files.push(await openSafetensors(inside(folder, name)));
    const source = merged(files, String(index));
    const missing = listed.find(([name]) => !source.tensors.has(name));
    if (missing) {
      throw new WeightError(`${index}: lists ${missing[0]} in ${missing[1]}, which lacks it`);
    }
    return source;
  } catch (error) {
    for (const file of files) await file.close();
    throw error;
  }
}

/** The tensors of several files as one model. */
export function merged(files: readonly SafetensorsFile[], name: string): WeightSource {
  const tensors = new Map<string, { file: SafetensorsFile; key: string }>();
  for (const file of files) {
    for (const key of file.tensors.keys()) {
      const other = tensors.get(key);
      if (other) {
        throw new WeightError(`${name}: ${key} is in both ${other.file.name} and ${file.name}`);
      }
      tensors.set(key, { file, key });
    }
  }
  return {
    name,
    tensors,
    async close() {
      for (const file of files) await file.close();
    },
  };
}

/**
 * Checks that a location is a diffusers folder of Stable Diffusion and returns its index.
 *
 * @throws {InputError} if there is nothing, or something else; the message says what.
 */
export async function readModelIndex(folder: Location): Promise<Json> {
  const index = inside(folder, "model_index.json");
  if (await exists(index)) return await readJson(index);
  const path = String(folder);
  if (isPickle(path)) throw new InputError(`${path}: a Python pickle, ${CONVERT_PICKLES}`);
  if (await exists(folder)) {
    throw new InputError(
      `${path}: a model is a folder in diffusers' layout (with model_index.json, unet/, vae/, ` +
        `text_encoder/, tokenizer/, scheduler/) or a single .safetensors file; this is another file`,
    );
  }
  const parts = await folderNames(path);
  throw new InputError(
    parts
      ? `${path}: there is no model_index.json in this folder (found ${
        parts.join(", ") || "nothing"
      }); give the folder that holds unet/, vae/, text_encoder/, tokenizer/ and scheduler/`
      : `${path}: no such model folder; give the path of a diffusers folder, ` +
        `or leave --model out to use the built-in model`,
  );
}

/** A checkpoint, found and described; its weights are not read yet. */
export interface Checkpoint {
  /** What messages call it. */
  readonly name: string;
  /** What its parts are. */
  readonly configs: PartConfigs;
  /** The content of `scheduler_config.json`. */
  readonly schedulerConfig: Json;
  /** Settings that suit it. */
  readonly defaults: ModelDefaults;
  /** Folder with `vocab.json` and `merges.txt`. */
  readonly tokenizer: Location;
  /** Opens the weights of a part. */
  open(part: Part): Promise<WeightSource>;
  /** Closes what is open for all parts. */
  close(): Promise<void>;
}

/**
 * Opens a diffusers folder.
 *
 * @param variant Precision to prefer where the folder has several, as {@link openWeights} does.
 * @throws {InputError} if there is no such folder.
 * @throws {WeightError} if a configuration is damaged or of another architecture.
 */
export async function openFolder(
  folder: Location,
  { tokenizer = inside(folder, "tokenizer"), variant }: {
    /** Folder with `vocab.json` and `merges.txt`, if not the checkpoint's own. */
    readonly tokenizer?: Location;
    readonly variant?: string;
  } = {},
): Promise<Checkpoint> {
  await readModelIndex(folder);
  const configs = await readConfigs(folder);
  const config = inside(inside(folder, "scheduler"), "scheduler_config.json");
  return {
    name: String(folder),
    configs,
    schedulerConfig: await exists(config) ? await readJson(config) : {},
    defaults: await readDefaults(folder),
    tokenizer,
    open: (part) => openWeights(inside(folder, part), stemOf(part), variant),
    close: () => Promise.resolve(),
  };
}

/**
 * Reads the configurations of a diffusers folder's parts.
 *
 * @throws {InputError} if one is missing.
 * @throws {WeightError} if one is damaged or of another architecture.
 */
export async function readConfigs(folder: Location): Promise<PartConfigs> {
  const read = async <T>(part: Part, check: (json: Json, file: string) => T): Promise<T> => {
    const file = inside(inside(folder, part), "config.json");
    return check(await readJson(file), String(file));
  };
  return {
    text_encoder: await read("text_encoder", clipTextConfig),
    unet: await read("unet", unetConfig),
    vae: await read("vae", vaeConfig),
  };
}

/** Settings that suit a model: those of `framezero.json` in its folder, else the paper's. */
export async function readDefaults(folder: Location | null): Promise<ModelDefaults> {
  const file = folder === null ? null : inside(folder, "framezero.json");
  const json = file !== null && await exists(file) ? await readJson(file) : {};
  return modelDefaults(json, String(file));
}

/**
 * Checks that the parts of a checkpoint were made for each other.
 *
 * @throws {WeightError} saying which two do not fit.
 */
export function checkTogether({ name, configs }: Pick<Checkpoint, "name" | "configs">): void {
  const { unet, text_encoder: text, vae } = configs;
  const apart = (what: string) =>
    new WeightError(`${name}: ${what}; these parts do not belong together`);
  if (unet.crossAttentionDim !== text.hiddenSize) {
    throw apart(
      `the UNet wants a text of width ${unet.crossAttentionDim}, the text encoder makes ` +
        `${text.hiddenSize}`,
    );
  }
  if (unet.outChannels !== vae.latentChannels) {
    throw apart(
      `the UNet makes latents of ${unet.outChannels} channels, the VAE has ${vae.latentChannels}`,
    );
  }
}

/** Names in a folder on disk, or `null` if there is none. */
async function folderNames(path: string): Promise<string[] | null> {
  try {
    const fs = await fileSystem();
    return (await fs.readdir(path)).slice(0, 8);
  } catch {
    return null; // no folder, or no file system: both mean that there is nothing to list
  }
}
