/**
 * A Stable Diffusion checkpoint: tokenizer, text encoder, UNet, autoencoder and the configuration of
 * its scheduler.
 *
 * @module
 */

import { type Device, openDevice } from "../core/device.ts";
import type { DType } from "../core/dtype.ts";
import { WeightError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { AutoencoderKL } from "./vae.ts";
import {
  exists,
  inside,
  type Location,
  openWeights,
  readJson,
  readModelIndex,
} from "./checkpoint.ts";
import { ClipTextModel } from "./clip_text.ts";
import { ClipTokenizer } from "./clip_tokenizer.ts";
import {
  clipTextConfig,
  type Json,
  type ModelDefaults,
  modelDefaults,
  unetConfig,
  vaeConfig,
} from "./config.ts";
import { UNet2DConditionModel } from "./unet.ts";

/** How to load a checkpoint. */
export interface LoadOptions {
  /** Device to load to. Default: a new one, which {@link StableDiffusion.dispose} closes. */
  device?: Device;
  /** Type of weights and activations. Default `"f32"`. */
  dtype?: DType;
  /** Called with the name of each part before it is loaded. */
  onPart?: (part: string) => void;
}

/** Where the built-in model lies. */
export const BUILT_IN: URL = new URL("./tiny-shapes/", import.meta.url);

/** What settings of clips call the built-in model. */
export const BUILT_IN_NAME = "built-in tiny-shapes";

/** The parts of a Stable Diffusion 1.x checkpoint, ready to run. */
export class StableDiffusion {
  /** Device that it lives on. */
  readonly device: Device;
  /** From text to token ids. */
  readonly tokenizer: ClipTokenizer;
  /** From token ids to what the UNet is conditioned on. */
  readonly textEncoder: ClipTextModel;
  /** The denoiser. */
  readonly unet: UNet2DConditionModel;
  /** Between latents and pictures. */
  readonly vae: AutoencoderKL;
  /** The content of `scheduler/scheduler_config.json`. */
  readonly schedulerConfig: Json;
  /** Settings that suit it. */
  readonly defaults: ModelDefaults;
  /** Where it was loaded from. */
  readonly source: string;
  readonly #ownsDevice: boolean;

  private constructor(
    parts: Pick<
      StableDiffusion,
      | "device"
      | "tokenizer"
      | "textEncoder"
      | "unet"
      | "vae"
      | "schedulerConfig"
      | "defaults"
      | "source"
    >,
    ownsDevice: boolean,
  ) {
    this.device = parts.device;
    this.tokenizer = parts.tokenizer;
    this.textEncoder = parts.textEncoder;
    this.unet = parts.unet;
    this.vae = parts.vae;
    this.schedulerConfig = parts.schedulerConfig;
    this.defaults = parts.defaults;
    this.source = parts.source;
    this.#ownsDevice = ownsDevice;
  }

  /**
   * Loads a diffusers folder.
   *
   * @param location Path or URL of the folder; default: the built-in model.
   * @throws {InputError} if there is no such model.
   * @throws {WeightError} if it is damaged, incomplete or of another architecture.
   */
  static async load(
    location: Location = BUILT_IN,
    { device: given, dtype = "f32", onPart = () => {} }: LoadOptions = {},
  ): Promise<StableDiffusion> {
    await readModelIndex(location);
    const device = given ?? await openDevice();
    const loaded: { dispose(): void }[] = [];
    const part = async <T extends { dispose(): void }>(
      name: string,
      stem: "model" | "diffusion_pytorch_model",
      load: (
        folder: Location,
        source: Awaited<ReturnType<typeof openWeights>>,
        json: Json,
        file: string,
      ) => Promise<T>,
    ): Promise<T> => {
      onPart(name);
      const folder = inside(location, name);
      const file = inside(folder, "config.json");
      const json = await readJson(file);
      const source = await openWeights(folder, stem);
      try {
        const model = await load(folder, source, json, String(file));
        loaded.push(model);
        return model;
      } finally {
        await source.close();
      }
    };
    try {
      const textEncoder = await part(
        "text_encoder",
        "model",
        (_, source, json, file) =>
          ClipTextModel.load(source, clipTextConfig(json, file), { device, dtype }),
      );
      const unet = await part(
        "unet",
        "diffusion_pytorch_model",
        (_, source, json, file) =>
          UNet2DConditionModel.load(source, unetConfig(json, file), { device, dtype }),
      );
      const width = textEncoder.config.hiddenSize;
      if (unet.config.crossAttentionDim !== width) {
        throw new WeightError(
          `${location}: the UNet wants a text of width ${unet.config.crossAttentionDim}, the text ` +
            `encoder makes ${width}; these parts do not belong together`,
        );
      }
      const vae = await part(
        "vae",
        "diffusion_pytorch_model",
        (_, source, json, file) =>
          AutoencoderKL.load(source, vaeConfig(json, file), { device, dtype }),
      );
      const tokenizer = await ClipTokenizer.load(inside(location, "tokenizer"));
      const config = inside(inside(location, "scheduler"), "scheduler_config.json");
      const schedulerConfig = await exists(config) ? await readJson(config) : {};
      return new StableDiffusion(
        {
          device,
          tokenizer,
          textEncoder,
          unet,
          vae,
          schedulerConfig,
          defaults: await readDefaults(location),
          source: location === BUILT_IN ? BUILT_IN_NAME : String(location),
        },
        !given,
      );
    } catch (error) {
      for (const model of loaded) model.dispose();
      if (!given) device.dispose();
      throw error;
    }
  }

  /** Pixels per latent cell along each side. */
  get factor(): number {
    return this.vae.factor;
  }

  /** Side of the pictures that the model was trained with. */
  get defaultSize(): number {
    return this.unet.config.sampleSize * this.factor;
  }

  /**
   * Encodes prompts.
   *
   * @returns `[prompts, 77, width]` in f32, and for each prompt the words that did not fit.
   */
  encodePrompt(prompts: readonly string[]): { hiddenStates: Tensor; cut: string[] } {
    const tokens = prompts.map((prompt) => this.tokenizer.tokenize(prompt));
    const hiddenStates = this.device.scope(() =>
      this.textEncoder.forward(tokens.map(({ ids }) => ids)).lastHiddenState
    );
    return { hiddenStates, cut: tokens.map(({ cut }) => cut) };
  }

  /** Frees everything on the GPU. */
  dispose(): void {
    this.textEncoder.dispose();
    this.unet.dispose();
    this.vae.dispose();
    if (this.#ownsDevice) this.device.dispose();
  }
}

/** Those of the paper, unless the folder brings its own. */
async function readDefaults(location: Location): Promise<ModelDefaults> {
  const file = inside(location, "framezero.json");
  return modelDefaults(await exists(file) ? await readJson(file) : {}, String(file));
}
