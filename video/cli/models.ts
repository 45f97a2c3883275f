/**
 * The commands `models list`, `models pull` and `models inspect`.
 *
 * @module
 */

import { InputError, WeightError } from "../../core/errors.ts";
import { openSafetensors } from "../../core/safetensors.ts";
import {
  exists,
  inside,
  type Location,
  openWeights,
  readConfigs,
  readJson,
  readModelIndex,
  stemOf,
} from "../../models/checkpoint.ts";
import {
  clipTextConfig,
  type ControlNetConfig,
  controlNetConfig,
  type Json,
  unetConfig,
  vaeConfig,
} from "../../models/config.ts";
import { browseModel, downloadModel, parseModelReference } from "../../models/hub.ts";
import { cachedModels } from "../../models/hub/cache.ts";
import { hubSettings } from "../../models/hub/environment.ts";
import { isPickle } from "../../models/hub/selection.ts";
import { locateModel } from "../../models/hub/locate.ts";
import { type Header, type Inspection, inspectTensors } from "../../models/inspect.ts";
import {
  describeInspection,
  describeParts,
  type InspectionRow,
} from "../../models/inspect_text.ts";
import { type PartConfigs, PARTS, SD15, SD15_CONTROLNET } from "../../models/sd15.ts";
import { BUILT_IN } from "../../models/stable_diffusion.ts";
import { folderAround } from "../../models/tokenizer_place.ts";
import type { WeightSource } from "../../models/weights.ts";
import { disk } from "../output_file.ts";
import { showDownload } from "./download.ts";
import type { CommandIo } from "./io.ts";
import { table } from "./table.ts";

/** Prints the built-in model, those in Hugging Face's cache, and those in `folders`. */
export async function listModels(folders: string[], io: CommandIo): Promise<void> {
  const rows: InspectionRow[] = [["built-in", "tiny-shapes: simple shapes, 128x128"]];
  const { cache } = await hubSettings({ token: null });
  for (const { id, revision, names, path } of await cachedModels(cache)) {
    const what = await kindOfFiles(path, names);
    if (what) rows.push([revision === "main" ? id : `${id}@${revision}`, `${what} in ${path}`]);
  }
  const { fs } = await disk();
  for (const folder of folders) {
    const below = (await fs.readdir(folder).catch(() => [])).sort();
    for (const path of [folder, ...below.map((name) => String(inside(folder, name)))]) {
      const what = await kindOfFiles(path, await fs.readdir(path).catch(() => [path]));
      if (what) rows.push([path, what]);
    }
  }
  io.stdout(table(rows));
}

/** What files make, if it can be run. */
async function kindOfFiles(
  folder: string,
  names: readonly string[],
): Promise<string | undefined> {
  if (names.includes("model_index.json")) return "diffusers folder";
  if (names.includes("config.json")) {
    // What is damaged is no model either.
    const config = await configIn(folder).catch(() => undefined);
    if (config && classOf(config) === "ControlNetModel") return "ControlNet folder";
  }
  return names.length === 1 && /\.safetensors$/i.test(names[0]) ? "single file" : undefined;
}

/**
 * Fetches a model into the cache and prints where it lies.
 *
 * @throws {InputError | WeightError} if it cannot be had.
 */
export async function pull(
  model: string,
  { variant }: { variant?: string },
  io: CommandIo,
): Promise<void> {
  const { hub, end } = showDownload(io);
  try {
    const { location } = await locateModel(model, { ...hub, variant });
    io.stdout(`${location}\n`);
  } finally {
    end();
  }
}

/**
 * Prints what a model holds, from headers and configurations alone. Nothing is fetched besides
 * these: a model of the Hub that is not in the cache, and a file at an address, are read in place.
 *
 * @param model Text as in {@link locateModel}; default: the built-in model.
 * @throws {InputError} if there is no such model.
 * @throws {WeightError} if a file of it is damaged.
 */
export async function inspect(
  model: string | undefined,
  { variant }: { variant?: string },
  io: CommandIo,
): Promise<void> {
  const place = model === undefined ? BUILT_IN : await findHeaders(model, variant, io);
  io.stdout(table(await describe(place, variant)));
}

async function findHeaders(
  model: string,
  variant: string | undefined,
  { signal }: CommandIo,
): Promise<Location> {
  const reference = await parseModelReference(model, { variant });
  if (reference.kind === "url") return new URL(reference.url);
  if (reference.kind !== "hub") return reference.path;
  const { folder, files } = await downloadModel({ ...reference, signal, offline: true })
    .catch(async (error: unknown) => {
      const { offline } = await hubSettings({});
      if (offline || !(error instanceof InputError)) throw error;
      const { url, files } = await browseModel({ ...reference, signal });
      return { folder: url, files };
    });
  return files.length === 1 ? inside(folder, files[0]) : folder;
}

async function describe(place: Location, variant: string | undefined): Promise<InspectionRow[]> {
  const isFile = place instanceof URL ? !place.pathname.endsWith("/") : await exists(place);
  if (isFile && !isPickle(String(place))) return await describeFile(place);
  const config = isFile || await exists(inside(place, "model_index.json"))
    ? undefined
    : await configIn(place);
  return config ? await describePart(place, config, variant) : await describeFolder(place, variant);
}

async function describeFile(path: Location): Promise<InspectionRow[]> {
  const file = await openSafetensors(path);
  await file.close();
  const config = await configIn(folderAround(path));
  return [
    ...describeInspection(inspectTensors(file.tensors, ...extentsOf(config ?? {}))),
    ...Object.entries(file.metadata).map(([key, value]): InspectionRow => [
      `metadata ${key}`,
      value.length > 200 ? `${value.slice(0, 200)}… (${value.length} characters)` : value,
    ]),
  ];
}

/** A folder with one part, such as a ControlNet. */
async function describePart(
  folder: Location,
  config: Json,
  variant: string | undefined,
): Promise<InspectionRow[]> {
  const stem = classOf(config).startsWith("CLIP") ? "model" : "diffusion_pytorch_model";
  const header = await headerOf(await openWeights(folder, stem, variant));
  return [
    ["class", classOf(config)],
    ...describeInspection(inspectTensors(header, ...extentsOf(config))),
  ];
}

async function configIn(folder: Location): Promise<Json | undefined> {
  const file = inside(folder, "config.json");
  return await exists(file) ? await readJson(file) : undefined;
}

function classOf({ _class_name, architectures }: Json): string {
  return String(_class_name ?? architectures ?? "unknown");
}

/** What a part is measured by: its own configuration if it is one of SD 1.x, else SD 1.5's. */
function extentsOf(config: Json): [PartConfigs, ControlNetConfig] {
  try {
    switch (classOf(config)) {
      case "UNet2DConditionModel":
        return [{ ...SD15, unet: unetConfig(config, "config.json") }, SD15_CONTROLNET];
      case "AutoencoderKL":
        return [{ ...SD15, vae: vaeConfig(config, "config.json") }, SD15_CONTROLNET];
      case "ControlNetModel":
        return [SD15, controlNetConfig(config, "config.json")];
      case "CLIPTextModel": {
        const text = clipTextConfig(config, "config.json");
        const unet = { ...SD15.unet, crossAttentionDim: text.hiddenSize };
        return [{ ...SD15, text_encoder: text, unet }, SD15_CONTROLNET];
      }
    }
  } catch (error) {
    sentence(error); // SDXL's, for example: the tensors will tell
  }
  return [SD15, SD15_CONTROLNET];
}

async function describeFolder(
  folder: Location,
  variant: string | undefined,
): Promise<InspectionRow[]> {
  const index = await readModelIndex(folder);
  const rows: InspectionRow[] = [["pipeline", String(index._class_name ?? "unknown")]];
  // What cannot be run is measured by SD 1.5, and said besides.
  const configs = await readConfigs(folder).catch((error: unknown) => {
    rows.push(["not loadable", sentence(error)]);
    return SD15;
  });
  const found = new Map<string, Inspection>();
  const absent: InspectionRow[] = [];
  for (const part of PARTS) {
    try {
      const source = await openWeights(inside(folder, part), stemOf(part), variant);
      found.set(part, inspectTensors(await headerOf(source), configs));
    } catch (error) {
      absent.push([part, sentence(error)]);
    }
  }
  return [...rows, ...describeParts(found), ...absent];
}

/** What an inspection reports instead of ending. */
function sentence(error: unknown): string {
  if (error instanceof InputError || error instanceof WeightError) return error.message;
  throw error;
}

async function headerOf(source: WeightSource): Promise<Header> {
  await source.close();
  const header = new Map<string, ReturnType<Header["get"]> & object>();
  for (const [name, { file, key }] of source.tensors) {
    const info = file.tensors.get(key);
    if (info) header.set(name, info);
  }
  return header;
}
