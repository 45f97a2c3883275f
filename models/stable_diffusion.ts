/**
 * A Stable Diffusion checkpoint: tokenizer, text encoder, UNet, autoencoder and the configuration of
 * its scheduler.
 *
 * @module
 */

import { type Device, openDevice } from "../core/device.ts";
import type { DType } from "../core/dtype.ts";
import { GpuError, InputError } from "../core/errors.ts";
import type { openSafetensors } from "../core/safetensors.ts";
import { type Checkpoint, checkTogether, type Location, openFolder } from "./checkpoint.ts";
import type { ClipTextModel } from "./clip_text.ts";
import { ClipTokenizer } from "./clip_tokenizer.ts";
import { withVae } from "./external_vae.ts";
import type { Json, ModelDefaults } from "./config.ts";
import { locateModel } from "./hub/locate.ts";
import {
  type Adapter,
  type AppliedLora,
  closeAdapters,
  type LoraChoice,
  openAdapters,
  partsOf,
} from "./lora.ts";
import { checkVocabulary, loadParts, type Models } from "./parts.ts";
import { type EncodedPrompts, encodePrompts, type PromptOptions } from "./prompt.ts";
import type { Part } from "./sd15.ts";
import { isSingleFile, openSingleFile, type SingleFileOptions } from "./single_file.ts";
import {
  checkNewToken,
  readTextualInversion,
  type TextualInversion,
  type TextualInversionOptions,
} from "./textual_inversion.ts";
import type { UNet2DConditionModel } from "./unet.ts";
import type { AutoencoderKL } from "./vae.ts";

/** How to load a checkpoint. */
export interface LoadOptions extends SingleFileOptions {
  /** Device to load to. Default: a new one, which {@link StableDiffusion.dispose} closes. */
  device?: Device;
  /** Type of weights and activations. Default `"f32"`. */
  dtype?: DType;
  /**
   * Precision to prefer where a model has its weights in several, such as `"fp16"`. Default: that
   * of `dtype`, so `"fp16"` for f16 and none for f32. Where a part lacks it, the weights without a
   * variant's name come next, then fp16, then bf16.
   */
  variant?: string;
  /** `"q8"` rounds the UNet's weights to 8 bits: a quarter of their memory in f32, half in f16. */
  weights?: "q8";
  /** Adapters to merge into the weights, all of them at once. Default: none. */
  loras?: readonly LoraChoice[];
  /**
   * Another autoencoder than the model's own: a folder or `.safetensors` file, or what
   * {@link locateModel} finds one by.
   */
  vae?: Location;
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

/** Where a checkpoint came from, for loading parts of it again. */
interface Origin {
  open(): Promise<Checkpoint>;
  readonly options: LoadOptions;
  readonly ownsDevice: boolean;
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
  /** The content of `scheduler/scheduler_config.json`. */
  readonly schedulerConfig: Json;
  /** Settings that suit it. */
  readonly defaults: ModelDefaults;
  /** What names it again, as {@link LocatedModel} has it. */
  readonly source: string;
  readonly #origin: Origin | null;
  #models: Models;
  #released = false;
  readonly #inversions: TextualInversion[] = [];
  #loras: readonly AppliedLora[] = [];
  #adapted: ReadonlySet<Part> = new Set();

  private constructor(parts: StableDiffusionParts, origin: Origin | null) {
    this.device = parts.device;
    this.tokenizer = parts.tokenizer;
    const { textEncoder, unet, vae } = parts;
    this.#models = { textEncoder, unet, vae };
    this.schedulerConfig = parts.schedulerConfig;
    this.defaults = parts.defaults;
    this.source = parts.source ?? "parts";
    this.#origin = origin;
  }

  /** From token ids to what the UNet is conditioned on. */
  get textEncoder(): ClipTextModel {
    return this.#models.textEncoder;
  }

  /** The denoiser. */
  get unet(): UNet2DConditionModel {
    return this.#models.unet;
  }

  /** Between latents and pictures. */
  get vae(): AutoencoderKL {
    return this.#models.vae;
  }

  /** The adapters in the weights. */
  get loras(): readonly AppliedLora[] {
    return this.#loras;
  }

  /** Puts models together that have been loaded one by one; disposing of it frees them. */
  static of(parts: StableDiffusionParts): StableDiffusion {
    return new StableDiffusion(parts, null);
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
    const vae = options.vae === undefined
      ? null
      : (await locateModel(options.vae, { ...options.hub, variant })).location;
    const open = async () => {
      const own = isSingleFile(location)
        ? await openSingleFile(location, options)
        : await openFolder(location, { ...options, variant });
      if (vae === null) return own;
      try {
        return await withVae(own, vae, variant);
      } catch (error) {
        await own.close();
        throw error;
      }
    };
    const checkpoint = await open();
    let adapters: Adapter[] = [];
    try {
      checkTogether(checkpoint);
      const tokenizer = await ClipTokenizer.load(checkpoint.tokenizer);
      checkVocabulary(checkpoint, tokenizer);
      adapters = await openAdapters(options.loras ?? [], checkpoint.configs, options.hub);
      const device = options.device ?? await openDevice();
      try {
        const models = await loadParts(checkpoint, device, options, adapters);
        const { schedulerConfig, defaults } = checkpoint;
        const sd = new StableDiffusion(
          { device, tokenizer, ...models, schedulerConfig, defaults, source },
          { open, options, ownsDevice: !options.device },
        );
        sd.#note(adapters);
        return sd;
      } catch (error) {
        if (!options.device) device.dispose();
        throw error;
      }
    } finally {
      await closeAdapters(adapters);
      await checkpoint.close();
    }
  }

  #note(adapters: readonly Adapter[]): void {
    this.#loras = adapters.map(({ applied }) => applied);
    this.#adapted = partsOf(adapters);
  }

  /**
   * Replaces the adapters by others; `[]` gives back exactly the weights of the checkpoint. Parts
   * that neither the old nor the new ones change stay as they are. The others are loaded again, and
   * are there twice until that has succeeded; if it fails, nothing has changed. Clips must be
   * finished before, since what they work with is freed.
   *
   * @throws {InputError} if a file is missing or no LoRA, a weight is no number, or this was made
   * by {@link StableDiffusion.of}.
   * @throws {WeightError} if a LoRA is damaged, of another kind or made for another model.
   */
  async setLoras(loras: readonly LoraChoice[]): Promise<void> {
    if (!this.#origin) {
      throw new InputError(
        "setLoras needs a checkpoint to load weights from again, but this model was put together " +
          "of parts; load it with StableDiffusion.load",
      );
    }
    await this.#reload(
      this.#origin,
      loras,
      (adapters) => new Set([...partsOf(adapters), ...this.#adapted]),
    );
  }

  /** Loads parts again, with these adapters; if that fails, nothing has changed. */
  async #reload(
    { open, options }: Origin,
    loras: readonly LoraChoice[],
    which: (adapters: readonly Adapter[]) => ReadonlySet<Part>,
  ): Promise<void> {
    const checkpoint = await open();
    let adapters: Adapter[] = [];
    try {
      adapters = await openAdapters(loras, checkpoint.configs, options.hub);
      const again = which(adapters);
      const { textEncoder, unet, vae } = this.#models;
      const after = await loadParts(checkpoint, this.device, options, adapters, {
        vae,
        ...(!again.has("text_encoder") && { textEncoder }),
        ...(!again.has("unet") && { unet }),
      });
      this.#models = after;
      this.#note(adapters);
      if (after.unet !== unet) unet.dispose();
      if (after.textEncoder === textEncoder) return;
      textEncoder.dispose();
      this.#released = false;
    } finally {
      await closeAdapters(adapters);
      await checkpoint.close();
    }
  }

  /**
   * Frees the text encoder, which is needed again for the next prompt only.
   *
   * @returns Whether anything was freed: not if it is freed already, or cannot be loaded again.
   */
  releaseTextEncoder(): boolean {
    if (this.#released || !this.#origin) return false;
    this.textEncoder.dispose();
    this.device.trim();
    return this.#released = true;
  }

  /** Loads the text encoder again if it was released. */
  async restoreTextEncoder(): Promise<void> {
    if (!this.#released || !this.#origin) return;
    await this.#reload(this.#origin, this.#loras, () => new Set(["text_encoder"]));
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
    if (this.#origin?.ownsDevice) this.device.dispose();
  }
}
