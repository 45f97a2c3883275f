/**
 * What a LoRA file holds: for each weight the factors of its change (Hu et al., arXiv:2106.09685),
 *
 * ```text
 * ΔW = (α / r) · up · down          up [O, r], down [r, K], W [O, K…]
 * ΔW = (α / r) · up · mid ∗ down    the same of a convolution, decomposed once more (LoCon)
 * ```
 *
 * Only the header is read at first; factors are read when a weight is merged.
 *
 * @module
 */

import { allFinite } from "../core/dtype.ts";
import { InputError, WeightError } from "../core/errors.ts";
import type { SafetensorsFile, TensorInfo } from "../core/safetensors.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import { inspectTensors } from "./inspect.ts";
import {
  ADAPTED_PARTS,
  type AdaptedPart,
  type LoraKey,
  loraPlaces,
  type LoraRole,
  otherAdapter,
  roleOf,
} from "./lora_names.ts";
import type { PartConfigs } from "./sd15.ts";
import { sameWeights, type StateDict, stateDicts } from "./state_dict.ts";

/** The change of one weight: keys of its factors. */
export interface LoraLayer {
  /** `[r, K…]`; with `mid` `[r, I]`. */
  readonly down: string;
  /** `[O, r]`. */
  readonly up: string;
  /** `[r, r, h, w]`, the kernel of a decomposed convolution. */
  readonly mid: string | undefined;
  /** Key of α, if the file has one for this weight. */
  readonly alpha: string | undefined;
  /** What the product is scaled by where there is no α. */
  readonly scale: number;
}

/** The changes that a file makes: part → name of the weight in diffusers' terms → change. */
export type LoraLayers = Readonly<Record<AdaptedPart, ReadonlyMap<string, LoraLayer>>>;

/** Factors of a change, ready to be multiplied. */
export interface LoraFactors {
  /** `[outputs, rank]`, scaled. */
  readonly up: Float32Array;
  /** `[rank, K]`. */
  readonly down: Float32Array;
  /** Columns of `up`, rows of `down`. */
  readonly rank: number;
}

/**
 * Reads the header of a LoRA.
 *
 * @param configs The model that it shall change.
 * @throws {InputError} if the file holds something else.
 * @throws {WeightError} if it was made for another model, is of another kind (DoRA, LoHa, LoKr, …),
 * is incomplete, or has tensors that belong to no weight of the model.
 */
export function readLoraLayers(file: SafetensorsFile, configs: PartConfigs): LoraLayers {
  refuse(file, configs);
  const place = loraPlaces(configs);
  const keys = [...file.tensors.keys()];
  const strangers = keys.filter((key) => !place(key));
  if (strangers.length) {
    throw new WeightError(
      `${file.name}: every tensor of a LoRA must belong to a weight of the model, but ` +
        `${strangers.length} of ${keys.length} match none: ${list(strangers)}; the LoRA was made ` +
        "for another model, or by a tool whose names are not known",
    );
  }
  const found = { unet: new Map<string, Roles>(), text_encoder: new Map<string, Roles>() };
  for (const key of keys) {
    const { part, module, role } = place(key) as LoraKey;
    const roles = found[part].get(module) ?? {};
    if (roles[role] !== undefined) {
      throw new WeightError(
        `${file.name}: a weight must be changed once, but ${roles[role]} and ${key} mean the same`,
      );
    }
    found[part].set(module, { ...roles, [role]: key });
  }
  const dicts = stateDicts(configs);
  const layersOf = (part: AdaptedPart) => {
    const scaleOf = scaleFromMetadata(file, part);
    return new Map(Array.from(found[part], ([module, roles]) => {
      return [`${module}.weight`, layer(file, module, roles, dicts[part], scaleOf)];
    }));
  };
  return { unet: layersOf("unet"), text_encoder: layersOf("text_encoder") };
}

type Roles = Partial<Record<LoraRole, string>>;

const list = (names: readonly string[]) =>
  names.slice(0, 5).join(", ") + (names.length > 5 ? ", …" : "");

const shapeOf = (file: SafetensorsFile, key: string): Shape =>
  (file.tensors.get(key) as TensorInfo).shape;

/** Refuses what is no LoRA for a model of Stable Diffusion 1.x. */
function refuse(file: SafetensorsFile, configs: PartConfigs): void {
  const keys = [...file.tensors.keys()];
  for (const key of keys) {
    const kind = otherAdapter(key);
    if (!kind) continue;
    throw new WeightError(
      `${file.name}: this is ${kind} (it has ${key}); framezero merges plain LoRA and LoCon: ` +
        "products of lora_down and lora_up",
    );
  }
  if (!keys.some(roleOf)) {
    const { title } = inspectTensors(file.tensors, configs);
    throw new InputError(
      `${file.name}: a LoRA has tensors named lora_down and lora_up, or lora_A and lora_B; this ` +
        `file holds ${title}. A whole model is given with --model`,
    );
  }
  const base = foreignBase(file, configs);
  if (!base) return;
  throw new WeightError(
    `${file.name}: a LoRA fits only the model family that it was made for, this one was made for ` +
      `${base}; get one for Stable Diffusion 1.x`,
  );
}

/** Other models, by names that only their adapters have. */
const BASES: readonly (readonly [RegExp, string])[] = [
  [/^(lora_te2_|text_encoder_2\.)|add_embedding|label_emb/, "Stable Diffusion XL"],
  [/^lora_te3_|^text_encoder_3\.|joint_blocks/, "Stable Diffusion 3"],
  [
    /^(lora_transformer_|transformer\.)|double_blocks|single_(transformer_)?blocks/,
    "FLUX or another diffusion transformer",
  ],
  [/motion_modules/, "AnimateDiff (a motion LoRA)"],
];

/** Widths of the text that the families of Stable Diffusion read. */
const TEXT_WIDTHS: Readonly<Record<number, string>> = {
  768: "Stable Diffusion 1.x",
  1024: "Stable Diffusion 2.x",
  1280: "Stable Diffusion XL (its refiner)",
  2048: "Stable Diffusion XL",
};

/** Reads the text, in the UNet; or is as wide as it, in the text encoder. */
const TEXT_INPUT = /attn2[._](processor\.)?to_[kv][._]|self_attn[._](to_)?[qkv](_proj)?[._]/;

/** What a LoRA was made for, if that is another model than `configs` describe. */
function foreignBase(file: SafetensorsFile, { text_encoder }: PartConfigs): string | undefined {
  for (const [key, { shape }] of file.tensors) {
    const base = BASES.find(([pattern]) => pattern.test(key))?.[1];
    if (base) return base;
    if (roleOf(key) !== "down" || !TEXT_INPUT.test(key) || shape[1] === text_encoder.hiddenSize) {
      continue;
    }
    return TEXT_WIDTHS[shape[1]] ?? `a model that reads texts of width ${shape[1]}`;
  }
}

/** Puts a change together and checks that it fits its weight. */
function layer(
  file: SafetensorsFile,
  module: string,
  { down, up, mid, alpha }: Roles,
  weights: StateDict,
  scaleOf: (module: string, rank: number) => number,
): LoraLayer {
  const weight = weights.get(`${module}.weight`) as Shape;
  if (down === undefined || up === undefined) {
    throw new WeightError(
      `${file.name}: a LoRA has lora_down and lora_up for each weight, but for ${module} there ` +
        `is only ${down ?? up ?? mid ?? alpha}; the file is incomplete, fetch it again`,
    );
  }
  const [outputs, inputs, ...kernel] = weight;
  const [rank = 0] = shapeOf(file, down);
  const wanted: [string, Shape][] = mid === undefined
    ? [[down, [rank, inputs, ...kernel]], [up, [outputs, rank]]]
    : [[down, [rank, inputs]], [mid, [rank, rank, ...kernel]], [up, [outputs, rank]]];
  for (const [key, shape] of wanted) {
    const found = shapeOf(file, key);
    if (rank > 0 && sameWeights(found, shape)) continue;
    throw new WeightError(
      `${file.name}: ${key} must have shape [${shape}] for a rank of ${rank} and a weight of ` +
        `[${weight}], it has [${found}]; the LoRA was made for another model`,
    );
  }
  if (alpha !== undefined && sizeOf(shapeOf(file, alpha)) !== 1) {
    throw new WeightError(
      `${file.name}: ${alpha} must be one number, it has shape [${shapeOf(file, alpha)}]`,
    );
  }
  return { down, up, mid, alpha, scale: scaleOf(module, rank) };
}

/**
 * The scale α/r from the metadata that diffusers writes, a JSON object such as
 * `{"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 4}, "unet.use_rslora": false}`; 1
 * without it. Rank-stabilised LoRA has α/√r (arXiv:2312.03732).
 */
function scaleFromMetadata(
  { name, metadata }: SafetensorsFile,
  part: AdaptedPart,
): (module: string, rank: number) => number {
  const text = metadata.lora_adapter_metadata;
  if (text === undefined) return () => 1;
  const settings = new Map(Object.entries(parseObject(name, text)));
  const patterns = Object.entries(settings.get(`${part}.alpha_pattern`) ?? {});
  const stabilised = settings.get(`${part}.use_rslora`) === true;
  return (module, rank) => {
    const own = patterns.find(([path]) => module === path || module.endsWith(`.${path}`))?.[1];
    const alpha: unknown = own ?? settings.get(`${part}.lora_alpha`) ?? rank;
    if (typeof alpha === "number") return alpha / (stabilised ? Math.sqrt(rank) : rank);
    throw new WeightError(
      `${name}: lora_alpha of ${module} in the metadata must be a number, it is ` +
        JSON.stringify(alpha),
    );
  };
}

function parseObject(name: string, text: string): object {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null) return value;
    throw new SyntaxError("it holds no object");
  } catch (cause) {
    throw new WeightError(
      `${name}: lora_adapter_metadata must be a JSON object (${cause}); fetch the file again`,
      { cause },
    );
  }
}

/**
 * Reads the factors of a change.
 *
 * @param weight What it is multiplied by, besides α/r.
 * @throws {WeightError} if they are no finite floating-point numbers.
 */
export async function readLoraFactors(
  file: SafetensorsFile,
  { down, up, mid, alpha, scale }: LoraLayer,
  weight: number,
): Promise<LoraFactors> {
  const [rank, inputs] = shapeOf(file, down);
  const factor = weight * (alpha === undefined ? scale : await numberIn(file, alpha) / rank);
  const scaled = (await finite(file, up)).map((value) => value * factor);
  const rows = await finite(file, down);
  const kernel = mid === undefined ? rows : spread(await finite(file, mid), rows, { rank, inputs });
  return { up: scaled, down: kernel, rank };
}

/** `out[p, i, x] = Σ_q mid[p, q, x] · down[q, i]`: the two inner factors of LoCon as one. */
function spread(
  mid: Float32Array,
  down: Float32Array,
  { rank, inputs }: { rank: number; inputs: number },
): Float32Array {
  const cells = mid.length / rank ** 2;
  const out = new Float32Array(rank * inputs * cells);
  for (let at = 0; at < out.length; at++) {
    const x = at % cells;
    const i = Math.floor(at / cells) % inputs;
    const p = Math.floor(at / cells / inputs);
    let sum = 0;
    for (let q = 0; q < rank; q++) sum += mid[(p * rank + q) * cells + x] * down[q * inputs + i];
    out[at] = sum;
  }
  return out;
}

async function finite(file: SafetensorsFile, key: string): Promise<Float32Array> {
  const values = await file.readF32(key);
  if (allFinite(values)) return values;
  throw new WeightError(
    `${file.name}: ${key} must hold finite numbers, but it has NaN or infinity; the LoRA is ` +
      "damaged, fetch it again",
  );
}

async function numberIn(file: SafetensorsFile, key: string): Promise<number> {
  const { dtype } = file.tensors.get(key) as TensorInfo;
  const [value] = /^[IU]/.test(dtype) ? await file.readInts(key) : await finite(file, key);
  return value;
}

/** The parts that a LoRA changes. */
export function adaptedParts(layers: LoraLayers): AdaptedPart[] {
  return ADAPTED_PARTS.filter((part) => layers[part].size > 0);
}
