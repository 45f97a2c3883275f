/**
 * Single-file checkpoints of Stable Diffusion 1.x: UNet, autoencoder and text encoder in one
 * safetensors file, with the names of the original code (LDM, CompVis).
 *
 * @module
 */

import { openByteSource } from "../core/byte_source.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { openSafetensors, type SafetensorsFile } from "../core/safetensors.ts";
import {
  type Checkpoint,
  exists,
  inside,
  type Location,
  readConfigs,
  readDefaults,
  readJson,
} from "./checkpoint.ts";
import type { Json } from "./config.ts";
import type { HubOptions } from "./hub.ts";
import { CONVERT_PICKLES } from "./hub/selection.ts";
import { type InspectedPart, type Inspection, inspectTensors, placeLdmKey } from "./inspect.ts";
import { SD15, SD15_SCHEDULER } from "./sd15.ts";
import { findTokenizer, folderAround } from "./tokenizer_place.ts";
import type { WeightSource } from "./weights.ts";

/** What a single file does not hold. */
export interface SingleFileOptions {
  /**
   * Folder with `vocab.json` and `merges.txt`. Default: beside the file, then the Hub's cache, then
   * the Hub.
   */
  readonly tokenizer?: Location;
  /** Folder in diffusers' layout whose configurations describe the file. Default: SD 1.5's. */
  readonly config?: Location;
  /** How to fetch what is not on disk; its `onProgress` tells bytes, speed and time left. */
  readonly hub?: HubOptions;
}

/** Whether a location names a safetensors file rather than a folder. */
export function isSingleFile(location: Location): boolean {
  const path = location instanceof URL
    ? location.pathname
    : location.replace(/^(https?:[^?#]*).*/i, "$1");
  return /\.safetensors$/i.test(path);
}

/**
 * Opens a single-file checkpoint and checks by its header that it is complete.
 *
 * @throws {InputError} if there is no such file, or it holds only a part of a checkpoint.
 * @throws {WeightError} if it is damaged, incomplete or of another architecture, which is named.
 */
export async function openSingleFile(
  location: Location,
  { tokenizer, config, hub }: SingleFileOptions = {},
): Promise<Checkpoint> {
  const file = await openSafetensors(location).catch(async (error: unknown) => {
    if (await holdsPickle(location)) {
      throw new WeightError(
        `${location}: by its content a Python pickle, whatever its name says, ${CONVERT_PICKLES}`,
        { cause: error },
      );
    }
    throw error;
  });
  try {
    const described = config === undefined ? SD15 : await readConfigs(config);
    const found = inspectTensors(file.tensors, described);
    refuse(file.name, found);
    const { inChannels } = found;
    const configs = { ...described, unet: { ...described.unet, inChannels } };
    const folders = tokenizer === undefined
      ? [folderAround(location), ...(config === undefined ? [] : [config])]
      : [tokenizer];
    return {
      name: file.name,
      configs,
      schedulerConfig: config === undefined ? SD15_SCHEDULER : await readScheduler(config),
      defaults: await readDefaults(config ?? null),
      tokenizer: await findTokenizer(file.name, folders, hub),
      // The file stays open for the other parts.
      open: (part) => Promise.resolve({ ...sourceOf(file, part), close: () => Promise.resolve() }),
      close: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Pickles begin with protocol 2 or later, those of PyTorch ≥ 1.6 lie in a zip archive. */
async function holdsPickle(location: Location): Promise<boolean> {
  const source = await openByteSource(location);
  const [first, second] = await source.read(0, Math.min(2, source.size));
  await source.close();
  return (first === 0x80 && second >= 2 && second <= 5) || (first === 0x50 && second === 0x4b);
}

async function readScheduler(folder: Location): Promise<Json> {
  const file = inside(inside(folder, "scheduler"), "scheduler_config.json");
  return await exists(file) ? await readJson(file) : SD15_SCHEDULER;
}

/** Throws unless a file is a complete checkpoint of SD 1.x. */
function refuse(name: string, found: Inspection): void {
  const { kind, title, layout } = found;
  if (
    layout !== "ldm" ||
    !["sd1", "vae", "inpainting", "instruct-pix2pix", "sd2", "sdxl"].includes(kind)
  ) {
    throw new InputError(
      `${name}: this is a single file that holds ${title}; a single-file model holds UNet, VAE and ` +
        `text encoder under the names of the original code (model.diffusion_model.…). If it is a ` +
        `part of a diffusers folder, give the folder that has model_index.json`,
    );
  }
  if (kind !== "sd1" && kind !== "inpainting" && kind !== "instruct-pix2pix") {
    throw new WeightError(
      `${name}: this is ${title}; framezero loads Stable Diffusion 1.x checkpoints for text to ` +
        `image, inpainting and InstructPix2Pix, complete with VAE and text encoder`,
    );
  }
  checkWhole(name, found);
}

/**
 * Refuses a file that lacks tensors, or has some of another shape or of no part.
 *
 * @throws {WeightError} naming some of them.
 */
export function checkWhole(
  name: string,
  { missing, superfluous, misshapen }: Inspection,
): void {
  const faults = [
    ["lacks", missing, "the file is incomplete: get the full version of it"],
    ["has tensors of another shape", misshapen, "it is no Stable Diffusion 1.x"],
    ["has tensors that belong to no part", superfluous, "it is no plain Stable Diffusion 1.x"],
  ] as const;
  for (const [what, names, advice] of faults) {
    if (!names.length) continue;
    const list = names.slice(0, 5).join(", ") + (names.length > 5 ? ", …" : "");
    throw new WeightError(`${name}: it ${what} (${names.length}): ${list}; ${advice}`);
  }
}

/** One part of a file that has the names of the original code. */
export function sourceOf(
  file: SafetensorsFile,
  part: InspectedPart,
  place: typeof placeLdmKey = placeLdmKey,
): WeightSource {
  const tensors = new Map<string, { file: SafetensorsFile; key: string }>();
  for (const key of file.tensors.keys()) {
    const placed = place(key);
    if (typeof placed !== "string" && placed.part === part) tensors.set(placed.name, { file, key });
  }
  return { name: `${file.name}, ${part}`, tensors, close: () => file.close() };
}
