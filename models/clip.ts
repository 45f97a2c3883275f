/**
 * A whole CLIP model (Radford et al. 2021): texts and pictures as vectors of one space, in which they
 * are the nearer to each other the better they match.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { inside, type Location, openWeights, readJson } from "./checkpoint.ts";
import { ClipTextModel } from "./clip_text.ts";
import { ClipTokenizer } from "./clip_tokenizer.ts";
import { ClipVisionModel } from "./clip_vision.ts";
import { clipTextConfig, clipVisionConfig, type Json } from "./config.ts";
import { downloadModel, type HubOptions, parseModelReference } from "./hub.ts";
import type { ModelOptions, WeightSource } from "./weights.ts";

/** How to load a CLIP model. */
export interface ClipLoadOptions extends Pick<ModelOptions, "device" | "dtype"> {
  /** How files are fetched. */
  readonly hub?: HubOptions;
}

/** What is fetched of a repository. */
const FILES =
  /^(config|vocab|tokenizer_config|special_tokens_map)\.json$|^merges\.txt$|^model\.safetensors$/;

/** Sizes that configurations leave out where they are those of ViT-B/32. */
const TEXT_DEFAULTS: Json = {
  vocab_size: 49408,
  hidden_size: 512,
  intermediate_size: 2048,
  num_hidden_layers: 12,
  num_attention_heads: 8,
};

/** Text and image encoder of one CLIP model. */
export class ClipModel {
  /** Device that it lives on. */
  readonly device: Device;
  /** From text to token ids. */
  readonly tokenizer: ClipTokenizer;
  /** The text encoder. */
  readonly text: ClipTextModel;
  /** The image encoder. */
  readonly vision: ClipVisionModel;

  private constructor(
    device: Device,
    tokenizer: ClipTokenizer,
    text: ClipTextModel,
    vision: ClipVisionModel,
  ) {
    this.device = device;
    this.tokenizer = tokenizer;
    this.text = text;
    this.vision = vision;
  }

  /**
   * Loads a CLIP model in transformers' layout: `config.json`, `model.safetensors`, `vocab.json` and
   * `merges.txt`, such as `openai/clip-vit-large-patch14`.
   *
   * @param model A folder, or `owner/name` or `owner/name@revision` of the Hub; what exists on disk
   * wins.
   * @throws {InputError} if there is no such model, or it cannot be fetched.
   * @throws {WeightError} if it is damaged, incomplete or no CLIP model with projections.
   */
  static async load(model: Location, { hub, ...options }: ClipLoadOptions): Promise<ClipModel> {
    const folder = await locate(model, hub);
    const file = inside(folder, "config.json");
    const config = await readJson(file);
    const { projection_dim = 512, text_config, vision_config } = config;
    const own = (part: unknown): Json => ({ projection_dim, ...(part as Json | undefined) });
    const textConfig = clipTextConfig({ ...TEXT_DEFAULTS, ...own(text_config) }, String(file));
    const visionConfig = clipVisionConfig(own(vision_config), String(file));
    const tokenizer = await ClipTokenizer.load(folder);
    const source = await openWeights(folder, "model");
    try {
      const text = await ClipTextModel.load(part(source, /^text_/), textConfig, options);
      try {
        const names = /^(vision_model|visual_projection)\./;
        const vision = await ClipVisionModel.load(part(source, names), visionConfig, options);
        return new ClipModel(options.device, tokenizer, text, vision);
      } catch (error) {
        text.dispose();
        throw error;
      }
    } finally {
      await source.close();
    }
  }

  /**
   * Texts as vectors `[B, projection]`, not of length 1. What does not fit into 77 tokens is left
   * out, as in CLIP's own code.
   *
   * @throws {InputError} if this text encoder has no projection.
   */
  embedTexts(texts: readonly string[]): Tensor {
    return this.device.scope(() => {
      const ids = texts.map((text) => this.tokenizer.tokenize(text).ids);
      const { textEmbeds } = this.text.forward(ids);
      if (textEmbeds) return textEmbeds;
      throw new InputError(
        "this CLIP text encoder has no text_projection.weight, so its texts cannot be compared " +
          "with pictures; use a whole CLIP model, such as openai/clip-vit-large-patch14",
      );
    });
  }

  /** Frees the weights. */
  dispose(): void {
    this.text.dispose();
    this.vision.dispose();
  }
}

async function locate(model: Location, hub: HubOptions = {}): Promise<Location> {
  if (model instanceof URL) return model;
  const reference = await parseModelReference(model);
  switch (reference.kind) {
    case "folder":
      return reference.path;
    case "hub": {
      const files = (names: readonly string[]) => names.filter((name) => FILES.test(name));
      return (await downloadModel({ ...hub, ...reference, files })).folder;
    }
    default:
      throw new InputError(
        `${model}: a CLIP model is a folder with config.json, model.safetensors, vocab.json and ` +
          "merges.txt, or owner/name on the Hub, such as openai/clip-vit-large-patch14",
      );
  }
}

/** The tensors whose names match, as a model of their own. */
function part(source: WeightSource, names: RegExp): WeightSource {
  const tensors = new Map([...source.tensors].filter(([name]) => names.test(name)));
  return { name: source.name, tensors, close: () => source.close() };
}
