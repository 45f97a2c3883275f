/**
 * Another autoencoder than the checkpoint's own: people train better decoders for the same latents.
 *
 * @module
 */

import { InputError, WeightError } from "../core/errors.ts";
import { openSafetensors } from "../core/safetensors.ts";
import {
  type Checkpoint,
  exists,
  inside,
  type Location,
  merged,
  openWeights,
  readJson,
} from "./checkpoint.ts";
import { type VaeConfig, vaeConfig } from "./config.ts";
import { inspectTensors, placeLdmVaeKey } from "./inspect.ts";
import { checkWhole, isSingleFile, sourceOf } from "./single_file.ts";
import type { WeightSource } from "./weights.ts";

/**
 * A checkpoint with the autoencoder at `location` in the place of its own: a folder of diffusers
 * with `config.json` and weights, one of a whole model with such a folder `vae`, or a single file
 * with the names of the original code or of diffusers, which the configuration of the checkpoint's
 * own autoencoder describes.
 *
 * @param variant Precision to prefer where a folder has several, as {@link openWeights} does.
 * @throws {InputError} if there is none, or something else.
 * @throws {WeightError} if it is damaged, incomplete, or for other latents.
 */
export async function withVae(
  checkpoint: Checkpoint,
  location: Location,
  variant?: string,
): Promise<Checkpoint> {
  const { vae: own } = checkpoint.configs;
  const { config, open } = isSingleFile(location)
    ? await singleFile(location, checkpoint)
    : await folder(location, variant);
  if (config.latentChannels !== own.latentChannels) {
    throw new WeightError(
      `${location}: this VAE has latents of ${config.latentChannels} channels, the model's have ` +
        `${own.latentChannels}; it belongs to another kind of model`,
    );
  }
  return {
    ...checkpoint,
    configs: { ...checkpoint.configs, vae: config },
    open: (part) => part === "vae" ? open() : checkpoint.open(part),
  };
}

interface ExternalVae {
  readonly config: VaeConfig;
  readonly open: () => Promise<WeightSource>;
}

async function folder(location: Location, variant: string | undefined): Promise<ExternalVae> {
  const isModel = await exists(inside(location, "model_index.json"));
  const place = isModel ? inside(location, "vae") : location;
  const file = inside(place, "config.json");
  if (!await exists(file)) {
    throw new InputError(
      `${place}: a VAE is a folder with config.json and diffusion_pytorch_model.safetensors, or ` +
        "a .safetensors file; there is no config.json here",
    );
  }
  return {
    config: vaeConfig(await readJson(file), String(file)),
    open: () => openWeights(place, "diffusion_pytorch_model", variant),
  };
}

async function singleFile(location: Location, { configs }: Checkpoint): Promise<ExternalVae> {
  const open = async (): Promise<WeightSource> => {
    const file = await openSafetensors(location);
    try {
      const found = inspectTensors(file.tensors, configs);
      if (found.kind !== "vae") {
        throw new InputError(
          `${file.name}: a VAE must hold an encoder and a decoder alone, this is ${found.title}`,
        );
      }
      checkWhole(file.name, found);
      return found.layout === "ldm"
        ? sourceOf(file, "vae", placeLdmVaeKey)
        : merged([file], file.name);
    } catch (error) {
      await file.close();
      throw error;
    }
  };
  await (await open()).close();
  return { config: configs.vae, open };
}
