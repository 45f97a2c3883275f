/**
 * A Stable Diffusion checkpoint: tokenizer, text encoder, UNet, autoencoder and the configuration of
 * its scheduler.
 *
 * @module
 */

import { type Device, openDevice } from "../core/device.ts";
import { megabytes } from "../core/buffer_pool.ts";
import { bytesPerElement, type DType } from "../core/dtype.ts";
import { GpuError, MemoryError, WeightError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { openSafetensors } from "../core/safetensors.ts";
import { AutoencoderKL } from "./vae.ts";
import { type Checkpoint, checkTogether, type Location, openFolder } from "./checkpoint.ts";
import { ClipTextModel } from "./clip_text.ts";
import { ClipTokenizer } from "./clip_tokenizer.ts";
import type { Json, ModelDefaults } from "./config.ts";
import { type EncodedPrompts, encodePrompts, type PromptOptions } from "./prompt.ts";
import type { Part } from "./sd15.ts";
import { locateModel } from "./hub/locate.ts";
import { isSingleFile, openSingleFile, type SingleFileOptions } from "./single_file.ts";
import { stateDicts } from "./state_dict.ts";
import {
  checkNewToken,
  readTextualInversion,
  type TextualInversion,
  type TextualInversionOptions,
} from "./textual_inversion.ts";
import { UNet2DConditionModel } from "./unet.ts";
import type { ModelOptions, WeightSource } from "./weights.ts";

/** How to load a checkpoint. */
export interface LoadOptions extends SingleFileOptions {
  /** Device to load to. Default: a new one, which {@link StableDiffusion.dispose} closes. */
  device?: Device;
  /** Type of weights and activations. Default `"f32"`. */
  dtype?: DType;
  /** `"q8"` rounds the UNet's weights to 8 bits: a quarter of their memory in f32, half in f16. */
  weights?: "q8";
  /**
   * Precision to prefer where a model has its weights in several, such as `"fp16"`. Default: that
   * of `dtype`, so `"fp16"` for f16 and none for f32. Where a part lacks it, the weights without a
   * variant's name come next, then fp16, then bf16.
   */
  variant?: string;
  /** Called with the name of each part before it is loaded. */
  onPart?: (part: string) => void;
  /** Called as bytes of a part arrive on the device. */
  onProgress?: (part: string, bytes: number, total: number) => void;
}

/** What a checkpoint is made of. */
export type StableDiffusionParts =
  & Pick<
    StableDiffusion,
    "device" | "textEncoder" | "unet" | "vae" | "tokenizer" | "schedulerConfig" | "defaults"
  >
  & Partial<Pick<StableDiffusion, "source">>;

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
  /** The denoiser. */
  readonly unet: UNet2DConditionModel;
  /** Between latents and pictures. */
  readonly vae: AutoencoderKL;
  /** The content of `scheduler/scheduler_config.json`. */
  readonly schedulerConfig: Json;
  /** Settings that suit it. */
  readonly defaults: ModelDefaults;
  /** What names it again, as {@link LocatedModel} has it. */
  readonly source: string;
  readonly #ownsDevice: boolean;
  #textEncoder: ClipTextModel;
  #released = false;
  /** Loads the text encoder once more. */
  readonly #reload: (() => Promise<ClipTextModel>) | null;
  readonly #inversions: TextualInversion[] = [];

  private constructor(
    parts: StableDiffusionParts,
    ownsDevice: boolean,
    reload: (() => Promise<ClipTextModel>) | null,
  ) {
    this.device = parts.device;
    this.tokenizer = parts.tokenizer;
    this.#textEncoder = parts.textEncoder;
    this.#reload = reload;
    this.unet = parts.unet;
    this.vae = parts.vae;
    this.schedulerConfig = parts.schedulerConfig;
    this.defaults = parts.defaults;
    this.source = parts.source ?? "parts";
    this.#ownsDevice = ownsDevice;
  }

  /** Puts models together that have been loaded one by one; disposing of it frees them. */
  static of(parts: StableDiffusionParts): StableDiffusion {
    return new StableDiffusion(parts, false, null);
  }

  /**
   * Loads a checkpoint: a diffusers folder, a single `.safetensors` file with the names of the
   * original code, `owner/name` or `owner/name@revision` of the Hub, or an address. What exists on
   * disk wins over a model of the Hub; {@link locateModel} states the rules.
   *
   * @param model Text as above, or the URL of a folder or file that is read in place; default: the
   * built-in model.
   * @throws {InputError} if there is no such model, or it cannot be fetched.
   * @throws {WeightError} if it is damaged, incomplete or of another architecture, if its parts do
   * not belong together, or if there is no vocabulary.
   */
  static async load(
    model: Location = BUILT_IN,
    options: LoadOptions = {},
  ): Promise<StableDiffusion> {
    const { variant = options.dtype === "f16" ? "fp16" : undefined } = options;
    const { location, source } = model === BUILT_IN
      ? { location: BUILT_IN, source: BUILT_IN_NAME }
      : await locateModel(model, { ...options.hub, variant });
    const open = () =>
      isSingleFile(location)
        ? openSingleFile(location, options)
        : openFolder(location, { ...options, variant });
    const checkpoint = await open();
    try {
      checkTogether(checkpoint);
      const tokenizer = await ClipTokenizer.load(checkpoint.tokenizer);
      checkVocabulary(checkpoint, tokenizer);
      const device = options.device ?? await openDevice();
      try {
        const models = await loadParts(checkpoint, device, options);
        const { schedulerConfig, defaults } = checkpoint;
        const reload = async () => {
          const again = await open();
          try {
            return await loadTextEncoder(again, device, options);
          } finally {
            await again.close();
          }
        };
        return new StableDiffusion(
          { device, tokenizer, ...models, schedulerConfig, defaults, source },
          !options.device,
          reload,
        );
      } catch (error) {
        if (!options.device) device.dispose();
        throw error;
      }
    } finally {
      await checkpoint.close();
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

  /** From token ids to what the UNet is conditioned on. */
  get textEncoder(): ClipTextModel {
    return this.#textEncoder;
  }

  /**
   * Frees the text encoder, which is needed again for the next prompt only.
   *
   * @returns Whether anything was freed: not if it is freed already, or cannot be loaded again.
   */
  releaseTextEncoder(): boolean {
    if (this.#released || !this.#reload) return false;
    this.#textEncoder.dispose();
    this.device.trim();
    return this.#released = true;
  }

  /** Loads the text encoder again if it was released. */
  async restoreTextEncoder(): Promise<void> {
    if (!this.#released || !this.#reload) return;
    this.#textEncoder = await this.#reload();
    this.#released = false;
  }

  /** Learnt words, in the order in which they were loaded. */
  get inversions(): readonly TextualInversion[] {
    return this.#inversions;
  }

  /**
   * Loads a textual inversion: a word for prompts. The checkpoint's own words stay as they are.
   *
   * @throws {WeightError} if the file is no embedding for this text encoder.
   * @throws {InputError} if it cannot be opened, or its word is taken or cannot be used.
   */
  async loadTextualInversion(
    source: Parameters<typeof openSafetensors>[0],
    options: TextualInversionOptions = {},
  ): Promise<TextualInversion> {
    const { hiddenSize } = this.textEncoder.config;
    const inversion = await readTextualInversion(source, hiddenSize, options);
    checkNewToken(inversion, this.#inversions);
    this.#inversions.push(inversion);
    return inversion;
  }

  /**
   * Encodes prompts.
   *
   * @throws {InputError} if an option cannot be used, or a weight in a prompt is none.
   * @throws {GpuError} if the text encoder was released and not restored.
   */
  encodePrompt(prompts: readonly string[], options: PromptOptions = {}): EncodedPrompts {
    if (this.#released) {
      throw new GpuError("the text encoder was released: await restoreTextEncoder() first");
    }
    return encodePrompts(this, prompts, options);
  }

  /** Frees everything on the GPU. */
  dispose(): void {
    this.textEncoder.dispose();
    this.unet.dispose();
    this.vae.dispose();
    if (this.#ownsDevice) this.device.dispose();
  }
}

/** Refuses a vocabulary whose tokens the text encoder does not know. */
function checkVocabulary({ name, configs }: Checkpoint, tokenizer: ClipTokenizer): void {
  const { vocabSize } = configs.text_encoder;
  const { startId, endId, padId } = tokenizer;
  const last = Math.max(startId, endId, padId);
  if (last < vocabSize) return;
  throw new WeightError(
    `${name}: the text encoder knows ${vocabSize} tokens, the tokenizer's last is number ${last}; ` +
      `these parts do not belong together`,
  );
}

async function loadPart<Model>(
  checkpoint: Checkpoint,
  part: Part,
  device: Device,
  { dtype = "f32", onPart, onProgress }: LoadOptions,
  read: (source: WeightSource, options: ModelOptions) => Promise<Model>,
): Promise<Model> {
  onPart?.(part);
  const source = await checkpoint.open(part);
  try {
    return await read(source, {
      device,
      dtype,
      onProgress: (bytes, total) => onProgress?.(part, bytes, total),
    });
  } finally {
    await source.close();
  }
}

function loadTextEncoder(
  checkpoint: Checkpoint,
  device: Device,
  options: LoadOptions,
): Promise<ClipTextModel> {
  return loadPart(
    checkpoint,
    "text_encoder",
    device,
    options,
    (source, to) => ClipTextModel.load(source, checkpoint.configs.text_encoder, to),
  );
}

async function loadParts(
  checkpoint: Checkpoint,
  device: Device,
  options: LoadOptions,
): Promise<Pick<StableDiffusionParts, "textEncoder" | "unet" | "vae">> {
  const { configs } = checkpoint;
  const loaded: { dispose(): void }[] = [];
  try {
    const textEncoder = await loadTextEncoder(checkpoint, device, options);
    loaded.push(textEncoder);
    const unet = await loadPart(
      checkpoint,
      "unet",
      device,
      options,
      (source, to) =>
        UNet2DConditionModel.load(source, configs.unet, {
          ...to,
          quantize: options.weights === "q8",
        }),
    );
    loaded.push(unet);
    const vae = await loadPart(
      checkpoint,
      "vae",
      device,
      options,
      (source, to) => AutoencoderKL.load(source, configs.vae, to),
    );
    return { textEncoder, unet, vae };
  } catch (error) {
    for (const model of loaded) model.dispose();
    if (!(error instanceof MemoryError)) throw error;
    const sizes = Object.values(stateDicts(configs)).flatMap((dict) => [...dict.values()]);
    const values = sizes.reduce((sum, shape) => sum + sizeOf(shape), 0);
    const { dtype = "f32" } = options;
    const half = dtype === "f32" && device.info.f16 ? `, ${megabytes(2 * values)} in f16` : "";
    throw new MemoryError(
      `${checkpoint.name}: its weights take ${megabytes(values * bytesPerElement(dtype))} in ` +
        `${dtype}${half}, besides what pictures take (${error.message})`,
      { cause: error },
    );
  }
}
