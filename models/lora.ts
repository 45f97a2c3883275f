/**
 * LoRA adapters: small changes to a model, added to its weights while these are loaded,
 * `W ← W + Σ weight · (α / r) · up · down`.
 *
 * The products are made on the GPU; sums are f32 and rounded once, to the type of the loaded model.
 * The files of the model stay as they are, so that loading again without adapters gives exactly the
 * weights of before.
 *
 * @module
 */

import { openByteSource } from "../core/byte_source.ts";
import type { Device } from "../core/device.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { openSafetensors, type SafetensorsFile, type TensorInfo } from "../core/safetensors.ts";
import { sha256Of } from "../core/sha256.ts";
import { matmul } from "../kernels/mod.ts";
import { changedWeights } from "./changed_weights.ts";
import type { Location } from "./checkpoint.ts";
import type { HubOptions } from "./hub.ts";
import { locateModel } from "./hub/locate.ts";
import {
  adaptedParts,
  type LoraFactors,
  type LoraLayer,
  type LoraLayers,
  readLoraFactors,
  readLoraLayers,
} from "./lora_file.ts";
import type { AdaptedPart } from "./lora_names.ts";
import type { PartConfigs } from "./sd15.ts";
import type { WeightSource } from "./weights.ts";

/** A LoRA to be merged into a model. */
export interface LoraChoice {
  /**
   * A safetensors file by kohya's scripts, diffusers or PEFT: its path, its `http(s)` address as
   * text (it is fetched into the cache), a URL to be read in place, or its content.
   */
  readonly file: Location | Blob | Uint8Array;
  /** How strongly; negative numbers turn its effect around. Default 1. */
  readonly weight?: number;
  /** What the sha256 of the file must be, 64 hexadecimal digits. */
  readonly sha256?: string;
}

/** A LoRA that is merged into a model: what settings of clips say about it. */
export interface AppliedLora {
  /** What names it again: as it was given; an address without its query. */
  readonly file: string;
  /** How strongly. */
  readonly weight: number;
  /** sha256 of the file, in hexadecimal digits. */
  readonly sha256: string;
}

/** An open LoRA. */
export interface Adapter {
  /** Its place and weight. */
  readonly applied: AppliedLora;
  /** Its file. */
  readonly file: SafetensorsFile;
  /** What it changes. */
  readonly layers: LoraLayers;
}

/**
 * Opens LoRA files and checks by their headers that they fit a model.
 *
 * @throws {InputError} if there is no such file, it is no LoRA, or a weight is no finite number.
 * @throws {WeightError} if one is damaged, not the file that `sha256` tells, of another kind or
 * made for another model.
 */
export async function openAdapters(
  choices: readonly LoraChoice[],
  configs: PartConfigs,
  hub: HubOptions = {},
): Promise<Adapter[]> {
  const opened: Adapter[] = [];
  try {
    for (const choice of choices) opened.push(await openAdapter(choice, configs, hub));
    return opened;
  } catch (error) {
    await closeAdapters(opened);
    throw error;
  }
}

/** Closes the files. */
export async function closeAdapters(adapters: readonly Adapter[]): Promise<void> {
  for (const { file } of adapters) await file.close();
}

async function openAdapter(
  { file: given, weight = 1, sha256 }: LoraChoice,
  configs: PartConfigs,
  hub: HubOptions,
): Promise<Adapter> {
  const fetched = typeof given === "string" && /^https?:/i.test(given)
    ? await locateModel(given, hub)
    : null;
  const bytes = await openByteSource(fetched?.location ?? given);
  const file = await openSafetensors(bytes);
  try {
    if (!Number.isFinite(weight)) {
      throw new InputError(`${file.name}: the weight of a LoRA must be a number, got ${weight}`);
    }
    const layers = readLoraLayers(file, configs);
    const found = await sha256Of(await bytes.read(0, bytes.size));
    if (sha256 !== undefined && sha256.toLowerCase() !== found) {
      throw new WeightError(
        `${file.name}: the sha256 of the LoRA must be ${sha256}, it is ${found}; this is another ` +
          "file than the one that was meant, or it is damaged",
      );
    }
    const name = fetched?.source ?? file.name;
    return { applied: { file: name, weight, sha256: found }, file, layers };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** The parts of a model that any of the adapters changes. */
export function partsOf(adapters: readonly Adapter[]): Set<AdaptedPart> {
  return new Set(
    adapters.filter(({ applied }) => applied.weight !== 0)
      .flatMap(({ layers }) => adaptedParts(layers)),
  );
}

/** The change of a weight by one adapter. */
interface Change {
  readonly adapter: Adapter;
  readonly layer: LoraLayer;
}

/**
 * The weights of a part with adapters merged in. Tensors that are changed are read as f32, so that
 * loading rounds them once; the rest is read as it is stored.
 *
 * @param device Where the products are made.
 */
export function mergedWeights(
  source: WeightSource,
  part: AdaptedPart,
  adapters: readonly Adapter[],
  device: Device,
): WeightSource {
  if (!partsOf(adapters).has(part)) return source;
  const changesOf = (name: string): Change[] =>
    adapters.flatMap((adapter) => {
      const layer = adapter.applied.weight === 0 ? undefined : adapter.layers[part].get(name);
      return layer ? [{ adapter, layer }] : [];
    });
  return changedWeights(source, (name) => changesOf(name).length > 0, (name) => {
    const { file, key } = source.tensors.get(name)!;
    return merge(file, key, changesOf(name), device);
  });
}

/** Elements of a product that are made at once: bounds what is bound, and read back. */
const BLOCK = 4 * 2 ** 20;

/** `W + Σ up · down` in f32. */
async function merge(
  file: SafetensorsFile,
  key: string,
  changes: readonly Change[],
  device: Device,
): Promise<Float32Array> {
  const { shape } = file.tensors.get(key) as TensorInfo;
  const values = await file.readF32(key);
  const [outputs] = shape;
  const columns = values.length / outputs;
  const factors: LoraFactors[] = [];
  for (const { adapter: { file, applied }, layer } of changes) {
    factors.push(await readLoraFactors(file, layer, applied.weight));
  }
  const { up, down, rank } = sideBySide(factors, outputs, columns);
  const right = device.tensor(down, [rank, columns]).keep();
  try {
    const most = Math.max(1, Math.floor(BLOCK / columns));
    for (let from = 0; from < outputs; from += most) {
      const rows = Math.min(most, outputs - from);
      const product = device.scope(() => {
        const left = up.slice(from * rank, (from + rows) * rank);
        return matmul(device.tensor(left, [rows, rank]), right);
      }).keep();
      const change = await product.data().finally(() => product.dispose());
      const start = from * columns;
      for (let i = 0; i < change.length; i++) values[start + i] += change[i];
    }
  } finally {
    right.dispose();
  }
  return values;
}

/** Several products as one: `Σ up_a · down_a = [up_1 up_2 …] · [down_1; down_2; …]`. */
function sideBySide(
  factors: readonly LoraFactors[],
  outputs: number,
  columns: number,
): { up: Float32Array<ArrayBuffer>; down: Float32Array<ArrayBuffer>; rank: number } {
  const all = factors.reduce((sum, { rank }) => sum + rank, 0);
  const up = new Float32Array(outputs * all);
  const down = new Float32Array(all * columns);
  let before = 0;
  for (const { up: left, down: right, rank } of factors) {
    for (let o = 0; o < outputs; o++) {
      up.set(left.subarray(o * rank, (o + 1) * rank), o * all + before);
    }
    down.set(right, before * columns);
    before += rank;
  }
  return { up, down, rank: all };
}
