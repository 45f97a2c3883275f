/**
 * The models that the cases of one file share.
 *
 * @module
 */

import {
  AutoencoderKL,
  ClipTextModel,
  ControlNetModel,
  type Device,
  StableDiffusion,
  UNet2DConditionModel,
} from "../../mod.ts";
import { inside, openWeights, readJson } from "../../models/checkpoint.ts";
import { clipTextConfig, type Json, unetConfig, vaeConfig } from "../../models/config.ts";
import type { WeightSource } from "../../models/weights.ts";
import type { FloatType } from "./case.ts";

/** Models on one device, each loaded once, counted apart from what the cases leave behind. */
export class ModelCache {
  readonly #setting: { device: Device; dtype: FloatType };
  readonly #models = new Set<{ dispose(): void }>();
  readonly #textEncoders = new Map<string, ClipTextModel>();
  readonly #unets = new Map<string, UNet2DConditionModel>();
  readonly #controlNets = new Map<string, ControlNetModel>();
  readonly #vaes = new Map<string, AutoencoderKL>();
  readonly #pipelines = new Map<string, StableDiffusion>();
  #bytes = 0;

  /** An empty cache. */
  constructor(device: Device, dtype: FloatType) {
    this.#setting = { device, dtype };
  }

  /** Bytes on the device that the models hold. */
  get bytes(): number {
    return this.#bytes;
  }

  async #once<T extends { dispose(): void }>(
    shelf: Map<string, T>,
    folder: string,
    load: () => Promise<T>,
  ): Promise<T> {
    const known = shelf.get(folder);
    if (known) return known;
    const { device } = this.#setting;
    const before = device.memory().live;
    const model = await load();
    this.#bytes += device.memory().live - before;
    this.#models.add(model);
    shelf.set(folder, model);
    return model;
  }

  /** The text encoder in a folder. */
  textEncoder(folder: string): Promise<ClipTextModel> {
    return this.#once(
      this.#textEncoders,
      folder,
      () =>
        fromFolder(
          folder,
          "model",
          (source, json, file) =>
            ClipTextModel.load(source, clipTextConfig(json, file), this.#setting),
        ),
    );
  }

  /** The UNet in a folder. */
  unet(folder: string): Promise<UNet2DConditionModel> {
    return this.#once(
      this.#unets,
      folder,
      () =>
        fromFolder(
          folder,
          "diffusion_pytorch_model",
          (source, json, file) =>
            UNet2DConditionModel.load(source, unetConfig(json, file), this.#setting),
        ),
    );
  }

  /** The ControlNet in a folder. */
  controlNet(folder: string): Promise<ControlNetModel> {
    return this.#once(
      this.#controlNets,
      folder,
      () => ControlNetModel.load(folder, this.#setting),
    );
  }

  /** The autoencoder in a folder. */
  vae(folder: string): Promise<AutoencoderKL> {
    return this.#once(
      this.#vaes,
      folder,
      () =>
        fromFolder(
          folder,
          "diffusion_pytorch_model",
          (source, json, file) => AutoencoderKL.load(source, vaeConfig(json, file), this.#setting),
        ),
    );
  }

  /** The complete checkpoint in a folder. */
  pipeline(folder: string): Promise<StableDiffusion> {
    return this.#once(this.#pipelines, folder, () => StableDiffusion.load(folder, this.#setting));
  }

  /** Frees all models. */
  dispose(): void {
    for (const model of this.#models) model.dispose();
  }
}

async function fromFolder<T>(
  folder: string,
  stem: "model" | "diffusion_pytorch_model",
  load: (source: WeightSource, json: Json, file: string) => Promise<T>,
): Promise<T> {
  const file = String(inside(folder, "config.json"));
  const json = await readJson(file);
  const source = await openWeights(folder, stem);
  try {
    return await load(source, json, file);
  } finally {
    await source.close();
  }
}
