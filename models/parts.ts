/**
 * The parts of a checkpoint that hold weights: loading them together.
 *
 * @module
 */

import { megabytes } from "../core/buffer_pool.ts";
import type { Device } from "../core/device.ts";
import { bytesPerElement, type DType } from "../core/dtype.ts";
import { MemoryError, WeightError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { ClipTextModel } from "./clip_text.ts";
import type { ClipTokenizer } from "./clip_tokenizer.ts";
import { type Adapter, mergedWeights } from "./lora.ts";
import type { Part } from "./sd15.ts";
import { type StateDict, stateDicts } from "./state_dict.ts";
import { UNet2DConditionModel } from "./unet.ts";
import { AutoencoderKL } from "./vae.ts";
import type { ModelOptions, WeightSource } from "./weights.ts";

/** The models of a checkpoint. */
export interface Models {
  /** From token ids to what the UNet is conditioned on. */
  readonly textEncoder: ClipTextModel;
  /** The denoiser. */
  readonly unet: UNet2DConditionModel;
  /** Between latents and pictures. */
  readonly vae: AutoencoderKL;
}

/** @throws {WeightError} if the text encoder does not know all tokens of the vocabulary. */
export function checkVocabulary({ name, configs }: Checkpoint, tokenizer: ClipTokenizer): void {
  const { vocabSize } = configs.text_encoder;
  const { startId, endId, padId } = tokenizer;
  const last = Math.max(startId, endId, padId);
  if (last < vocabSize) return;
  throw new WeightError(
    `${name}: the text encoder knows ${vocabSize} tokens, the tokenizer's last is number ${last}; ` +
      `these parts do not belong together`,
  );
}

/** What loading parts needs to know. */
interface PartOptions {
  readonly dtype?: DType;
  readonly weights?: "q8";
  readonly onPart?: (part: string) => void;
  readonly onProgress?: (part: string, bytes: number, total: number) => void;
}

/**
 * Loads the parts of a checkpoint that are not among `kept`; if one fails, none is loaded.
 *
 * @throws {WeightError} if a part is damaged or incomplete.
 * @throws {MemoryError} if they exceed the device's budget; it says what they take.
 */
export async function loadParts(
  checkpoint: Checkpoint,
  device: Device,
  { dtype = "f32", weights, onPart, onProgress }: PartOptions,
  adapters: readonly Adapter[],
  kept: Partial<Models> = {},
): Promise<Models> {
  const { configs } = checkpoint;
  const loaded: { dispose(): void }[] = [];
  const load = async <Model extends { dispose(): void }>(
    part: Part,
    read: (source: WeightSource, options: ModelOptions) => Promise<Model>,
  ): Promise<Model> => {
    onPart?.(part);
    const stored = await checkpoint.open(part);
    const source = part === "vae" ? stored : mergedWeights(stored, part, adapters, device);
    try {
      const model = await read(source, {
        device,
        dtype,
        onProgress: (bytes, total) => onProgress?.(part, bytes, total),
      });
      loaded.push(model);
      return model;
    } finally {
      await source.close();
    }
  };
  try {
    return {
      textEncoder: kept.textEncoder ?? await load(
        "text_encoder",
        (source, options) => ClipTextModel.load(source, configs.text_encoder, options),
      ),
      unet: kept.unet ?? await load(
        "unet",
        (source, options) =>
          UNet2DConditionModel.load(source, configs.unet, {
            ...options,
            quantize: weights === "q8",
          }),
      ),
      vae: kept.vae ?? await load(
        "vae",
        (source, options) => AutoencoderKL.load(source, configs.vae, options),
      ),
    };
  } catch (error) {
    for (const model of loaded) model.dispose();
    throw tooLarge(checkpoint.name, Object.values(stateDicts(configs)), { device, dtype }, error);
  }
}

/** What is thrown where loading failed: a lack of memory is told with what all weights take. */
export function tooLarge(
  name: string,
  dicts: readonly StateDict[],
  { device, dtype = "f32" }: Pick<ModelOptions, "device" | "dtype">,
  error: unknown,
): unknown {
  if (!(error instanceof MemoryError)) return error;
  const sizes = dicts.flatMap((dict) => [...dict.values()]);
  const values = sizes.reduce((sum, shape) => sum + sizeOf(shape), 0);
  const half = dtype === "f32" && device.info.f16 ? `, ${megabytes(2 * values)} in f16` : "";
  return new MemoryError(
    `${name}: its weights take ${megabytes(values * bytesPerElement(dtype))} in ` +
      `${dtype}${half}, besides what pictures take (${error.message})`,
    { cause: error },
  );
}
