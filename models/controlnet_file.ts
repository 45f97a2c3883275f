/**
 * Where a ControlNet's weights come from: a folder of diffusers, a single file with the names of
 * diffusers or of the original code, and weights made for one model moved over to another.
 *
 * @module
 */

import { InputError, WeightError } from "../core/errors.ts";
import { openSafetensors } from "../core/safetensors.ts";
import { changedWeights } from "./changed_weights.ts";
import { exists, inside, type Location, merged, openWeights, readJson } from "./checkpoint.ts";
import { type ControlNetConfig, controlNetConfig } from "./config.ts";
import type { HubOptions } from "./hub.ts";
import { locateModel } from "./hub/locate.ts";
import { isPickle } from "./hub/selection.ts";
import { inspectTensors, placeLdmControlNet } from "./inspect.ts";
import { SD15, SD15_CONTROLNET } from "./sd15.ts";
import { checkWhole, isSingleFile, sourceOf } from "./single_file.ts";
import { sameWeights } from "./state_dict.ts";
import type { ModelOptions, WeightSource } from "./weights.ts";

/** The models between which a ControlNet is moved. */
export interface ControlTransfer {
  /** The model that the ControlNet was trained with, such as Stable Diffusion 1.5. */
  readonly base: Location;
  /** The model that it shall control: one that was trained further from the same base. */
  readonly style: Location;
}

/** How to load a ControlNet. */
export interface ControlNetOptions extends ModelOptions {
  /** Precision to prefer where there are several, such as `"fp16"`; as `StableDiffusion.load`. */
  readonly variant?: string;
  /** Folder whose `config.json` describes a single file. Default: ControlNets of SD 1.5. */
  readonly config?: Location;
  /** How to fetch what is not on disk. */
  readonly hub?: HubOptions;
  /** Moves the weights from one model to another: `w ← w + (style − base)`. */
  readonly transfer?: ControlTransfer;
}

/** A ControlNet, found and described; its weights are not read yet. */
export interface ControlNetFile {
  /** What names it again. */
  readonly name: string;
  /** Its extents. */
  readonly config: ControlNetConfig;
  /** Its weights, by diffusers' names. */
  readonly source: WeightSource;
}

/**
 * Finds a ControlNet and opens its weights.
 *
 * @throws {InputError} if there is none, or something else.
 * @throws {WeightError} if it is damaged, incomplete, or for another Stable Diffusion.
 */
export async function openControlNet(
  location: Location,
  options: Omit<ControlNetOptions, "device">,
): Promise<ControlNetFile> {
  const { variant = options.dtype === "f16" ? "fp16" : undefined, transfer, hub } = options;
  const found = await locateModel(location, { ...hub, variant });
  const own = isSingleFile(found.location)
    ? await openFile(found.location, options.config)
    : await openFolder(found.location, variant);
  if (!transfer) return { ...own, name: found.source };
  try {
    const source = await transferred(own.source, transfer, { ...hub, variant });
    return { ...own, source, name: found.source };
  } catch (error) {
    await own.source.close();
    throw error;
  }
}

type Described = Omit<ControlNetFile, "name">;

async function openFolder(folder: Location, variant: string | undefined): Promise<Described> {
  const file = inside(folder, "config.json");
  const refuse = (what: string) =>
    new InputError(
      `${folder}: a ControlNet is a folder with config.json and ` +
        `diffusion_pytorch_model.safetensors, or a .safetensors file; ${what}`,
    );
  if (isPickle(String(folder))) {
    throw refuse(
      "this is a Python pickle, which can run code when it is opened and is therefore not loaded. " +
        "Convert it with Python: from diffusers import ControlNetModel as C; " +
        'C.from_single_file("file.pth").save_pretrained("folder")',
    );
  }
  if (await exists(inside(folder, "model_index.json"))) throw refuse("this is a whole model");
  if (!await exists(file)) throw refuse("there is no config.json here");
  const config = controlNetConfig(await readJson(file), String(file));
  return { config, source: await openWeights(folder, "diffusion_pytorch_model", variant) };
}

async function openFile(location: Location, folder: Location | undefined): Promise<Described> {
  const described = folder === undefined ? undefined : inside(folder, "config.json");
  const config = described === undefined
    ? SD15_CONTROLNET
    : controlNetConfig(await readJson(described), String(described));
  const file = await openSafetensors(location);
  try {
    const found = inspectTensors(file.tensors, SD15, config);
    if (found.kind !== "controlnet") {
      throw new InputError(`${file.name}: a ControlNet is wanted, this is ${found.title}`);
    }
    if (!found.checked) {
      throw new WeightError(
        `${file.name}: this is a ${found.title}; framezero runs those for Stable Diffusion 1.x`,
      );
    }
    checkWhole(file.name, found);
    const source = found.layout === "ldm"
      ? sourceOf(file, "controlnet", placeLdmControlNet(file.tensors))
      : merged([file], file.name);
    return { config, source };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * A ControlNet for another model than the one that it was trained with: `w + (style − base)` for
 * the tensors that it has in common with a UNet, the way down and the middle (Zhang and Agrawala's
 * "transferring control to other models"). Made tensor by tensor while it is loaded.
 *
 * @throws {WeightError} if one of the models lacks a tensor, or has it in another shape.
 */
async function transferred(
  control: WeightSource,
  { base, style }: ControlTransfer,
  where: HubOptions & { variant?: string },
): Promise<WeightSource> {
  const opened: WeightSource[] = [control];
  const close = async () => {
    for (const source of opened) await source.close();
  };
  try {
    for (const model of [base, style]) opened.push(await openUNet(model, where));
    const [, from, to] = opened;
    const isShared = (name: string) => !name.startsWith("controlnet_");
    for (const name of [...control.tensors.keys()].filter(isShared)) {
      for (const model of [from, to]) checkCommon(name, control, model);
    }
    const source = changedWeights(control, isShared, async (name) => {
      const values = await read(control, name);
      const [before, after] = [await read(from, name), await read(to, name)];
      return values.map((value, i) => value + (after[i] - before[i]));
    });
    return { ...source, close };
  } catch (error) {
    for (const source of opened.slice(1)) await source.close();
    throw error;
  }
}

/** The UNet of a model: of a folder of diffusers, itself such a folder, or of a single file. */
async function openUNet(
  model: Location,
  where: HubOptions & { variant?: string },
): Promise<WeightSource> {
  const { location } = await locateModel(model, where);
  if (!isSingleFile(location)) {
    const isModel = await exists(inside(location, "model_index.json"));
    const folder = isModel ? inside(location, "unet") : location;
    return await openWeights(folder, "diffusion_pytorch_model", where.variant);
  }
  const file = await openSafetensors(location);
  const source = sourceOf(file, "unet");
  return source.tensors.size > 0 ? source : merged([file], file.name);
}

function read({ tensors }: WeightSource, name: string): Promise<Float32Array> {
  const { file, key } = tensors.get(name)!;
  return file.readF32(key);
}

function checkCommon(name: string, control: WeightSource, model: WeightSource): void {
  const shapeOf = ({ tensors }: WeightSource) => {
    const entry = tensors.get(name);
    return entry?.file.tensors.get(entry.key)?.shape;
  };
  const [wanted, found] = [shapeOf(control), shapeOf(model)];
  if (wanted && found && sameWeights(wanted, found)) return;
  throw new WeightError(
    `${model.name}: to transfer a ControlNet, the model must have its tensor ${name} of shape ` +
      `[${wanted}], ${
        found ? `here it is [${found}]` : "which is missing"
      }; give models with the ` +
      "extents of the one that the ControlNet was trained with",
  );
}
