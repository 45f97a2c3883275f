/**
 * What a safetensors file is, judged by its header alone: which model, in whose names, how large, in
 * which types, and what a complete Stable Diffusion 1.x checkpoint would have besides.
 *
 * @module
 */

import type { TensorInfo } from "../core/safetensors.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import type { ControlNetConfig } from "./config.ts";
import { ldmToDiffusers } from "./ldm_names.ts";
import { type Part, type PartConfigs, PARTS, SD15, SD15_CONTROLNET } from "./sd15.ts";
import { controlNetStateDict, sameWeights, stateDicts } from "./state_dict.ts";

/** The kinds of files that are told apart. */
export type ModelKind =
  | "sd1"
  | "sd2"
  | "sdxl"
  | "inpainting"
  | "instruct-pix2pix"
  | "controlnet"
  | "lora"
  | "textual-inversion"
  | "vae"
  | "text-encoder"
  | "unknown";

/** The parts of a checkpoint, and what stands beside one. */
export type InspectedPart = Part | "controlnet";

/** How much of a model a file holds. */
export interface Holding {
  /** Tensors. */
  readonly tensors: number;
  /** Elements of these. */
  readonly parameters: number;
}

/** What a file is. */
export interface Inspection {
  /** What it is. */
  readonly kind: ModelKind;
  /** The same in words, such as `"Stable Diffusion 1.x"`. */
  readonly title: string;
  /** Whose names it has: single-file checkpoints have LDM's. */
  readonly layout: "ldm" | "diffusers" | "other";
  /** The parts of a Stable Diffusion checkpoint that it holds, or a ControlNet. */
  readonly parts: ReadonlyMap<InspectedPart, Holding>;
  /** Its tensors. */
  readonly tensors: number;
  /** Elements of all its tensors. */
  readonly parameters: number;
  /** Bytes of all its tensors. */
  readonly bytes: number;
  /** Storage types, the commonest first, with the elements stored in each. */
  readonly dtypes: readonly (readonly [dtype: string, parameters: number])[];
  /** Tensors of training or bookkeeping that loading passes over, such as EMA copies. */
  readonly ignored: number;
  /** Channels that its UNet takes, or would take. */
  readonly inChannels: number;
  /** Whether the file was compared with what it should hold; only SD 1.x is known so well. */
  readonly checked: boolean;
  /** Tensors that a complete file would have, as `part/name`. */
  readonly missing: readonly string[];
  /** Tensors that no part has a place for, by their keys. */
  readonly superfluous: readonly string[];
  /** Tensors of another shape than they must have: `part/name [found] instead of [wanted]`. */
  readonly misshapen: readonly string[];
}

/** Tensors by name. */
export type Header = ReadonlyMap<string, TensorInfo>;

/** A tensor of a known part, under the name that this part gives it. */
export interface PlacedTensor {
  /** The part. */
  readonly part: InspectedPart;
  /** The present diffusers name. */
  readonly name: string;
}

/** Buffers, schedules and training state, by their whole keys. */
const IGNORED =
  /(^|\.)position_ids$|num_batches_tracked$|^model_ema\.|^first_stage_model\.loss\.|^loss\.|^(alphas|betas|sqrt_|log_one_minus|posterior_|lvlb_|logvar|scale_factor|global_step)/;

const LDM_VAE = "first_stage_model.";

const LDM_CONTROLNET = "control_model.";

const LDM_PARTS: readonly string[] = [
  "model.diffusion_model.",
  LDM_VAE,
  "cond_stage_model.transformer.",
  LDM_CONTROLNET,
];

/** Old diffusers files call the attention of the autoencoder otherwise. */
const OLD_ATTENTION: Readonly<Record<string, string>> = {
  query: "to_q",
  key: "to_k",
  value: "to_v",
  proj_attn: "to_out.0",
};

/**
 * Where a key of a single-file checkpoint belongs.
 *
 * @returns The part and the name there; `"ignored"` for what loading passes over; `"foreign"` for
 * keys inside a part that has no such tensor.
 */
export function placeLdmKey(key: string): PlacedTensor | "ignored" | "foreign" {
  if (IGNORED.test(key)) return "ignored";
  const placed = ldmToDiffusers(key);
  if (!placed) return LDM_PARTS.some((prefix) => key.startsWith(prefix)) ? "foreign" : "ignored";
  const { part, name } = placed;
  // Checkpoints older than transformers 4.0 lack this level.
  const old = part === "text_encoder" && /^(embeddings|encoder|final_layer_norm)\./.test(name);
  return { part, name: old ? `text_model.${name}` : name };
}

/** As {@link placeLdmKey}, for a file of the autoencoder alone, whose prefix may be left out. */
export function placeLdmVaeKey(key: string): PlacedTensor | "ignored" | "foreign" {
  if (IGNORED.test(key)) return "ignored";
  return placeLdmKey(key.startsWith(LDM_VAE) ? key : LDM_VAE + key);
}

/**
 * How the keys of a file that holds a ControlNet are placed, as by {@link placeLdmKey}: its prefix
 * may be left out; where it is there, what lacks it belongs to another model in the same file.
 */
export function placeLdmControlNet(header: Header): typeof placeLdmKey {
  const prefixed = controlNetPrefix(header) !== "";
  return (key) => {
    if (key.startsWith(LDM_CONTROLNET)) return placeLdmKey(key);
    return prefixed || IGNORED.test(key) ? "ignored" : placeLdmKey(LDM_CONTROLNET + key);
  };
}

function controlNetPrefix(header: Header): string {
  return [...header.keys()].some((key) => key.startsWith(LDM_CONTROLNET)) ? LDM_CONTROLNET : "";
}

/** Where a key of a diffusers file of the part `part` belongs. */
function placeDiffusersKey(part: InspectedPart, key: string): PlacedTensor | "ignored" {
  if (IGNORED.test(key)) return "ignored";
  const name = key.replace(
    /(\.attentions\.\d+\.)(query|key|value|proj_attn)\./,
    (_, module: string, old: string) => `${module}${OLD_ATTENTION[old]}.`,
  );
  return { part, name };
}

/** What a kind is called. */
const TITLES: Readonly<Record<Exclude<ModelKind, "unknown">, string>> = {
  sd1: "Stable Diffusion 1.x",
  sd2: "Stable Diffusion 2.x",
  sdxl: "Stable Diffusion XL",
  inpainting: "Stable Diffusion inpainting",
  "instruct-pix2pix": "InstructPix2Pix",
  controlnet: "ControlNet",
  lora: "LoRA",
  "textual-inversion": "textual inversion (an embedding)",
  vae: "VAE",
  "text-encoder": "CLIP text encoder",
};

/** Other models, by a part of a key that only they have. */
const STRANGERS: readonly (readonly [RegExp, string])[] = [
  [/(^|\.)double_blocks\./, "FLUX or another diffusion transformer"],
  [/(^|\.)joint_blocks\./, "Stable Diffusion 3"],
  [/(^|\.)motion_modules\./, "an AnimateDiff motion module"],
  [/(^|\.)(time_stack|temporal_res_block|temp_convs|temp_attentions)\./, "a video UNet"],
  [/(^|\.)(prior|decoder_prior)\./, "a diffusion prior"],
  [/(^|\.)ip_adapter\.|^image_proj\./, "an IP-Adapter"],
  [/^lllite_/, "a ControlNet-LLLite"],
  [/^lora_controlnet$/, "a Control-LoRA, which holds factors of a ControlNet"],
  [/^difference$/, "a ControlNet of differences, to be added to a model that it does not name"],
  [/^(adapter\.)?body\.\d+\.(in_conv|block1|resnets|resnet)\b/, "a T2I-Adapter"],
  [/(^|\.)(control_add_embedding|task_embedding)\b/, "a ControlNet of several kinds, for SDXL"],
];

const LORA =
  /[._]lora[._](up|down|A|B|mid)|_lora\.|(^|\.)(hada_w[12]_[ab]|lokr_w[12]|dora_scale)|^lora_(unet|te)/;

/** What the shapes of a UNet or ControlNet say. */
interface UNetFacts {
  readonly inChannels: number;
  readonly textWidth: number;
}

function unetFacts(header: Header, prefix: string): UNetFacts | null {
  const shapeOf = (suffix: RegExp) =>
    [...header].find(([key]) => key.startsWith(prefix) && suffix.test(key))?.[1].shape;
  const convIn = shapeOf(/^(.*\.)?(conv_in|input_blocks\.0\.0)\.weight$/);
  const toK = shapeOf(/attn2\.to_k\.weight$/);
  // Without its first layer a file is incomplete, but still of its kind.
  return toK ? { inChannels: convIn?.[1] ?? 4, textWidth: toK[1] } : null;
}

function unetKind({ inChannels, textWidth }: UNetFacts, textWidthOfSd1: number): ModelKind {
  if (textWidth === 1024) return "sd2";
  if (textWidth === 2048 || textWidth === 1280) return "sdxl";
  if (textWidth !== textWidthOfSd1) return "unknown";
  if (inChannels === 9) return "inpainting";
  return inChannels === 8 ? "instruct-pix2pix" : "sd1";
}

interface Guess {
  readonly kind: ModelKind;
  readonly title: string;
  readonly layout: Inspection["layout"];
  /** How keys are placed, where that is known. */
  readonly place: ((key: string) => PlacedTensor | "ignored" | "foreign") | null;
  /** Parts that a complete file of this kind has. */
  readonly due: readonly InspectedPart[];
}

function guess(header: Header, textWidthOfSd1: number, control: ControlNetConfig): Guess {
  const keys = [...header.keys()];
  const some = (pattern: RegExp) => keys.some((key) => pattern.test(key));
  const plain = (kind: Exclude<ModelKind, "unknown">, layout: Guess["layout"]): Guess => {
    return { kind, title: TITLES[kind], layout, place: null, due: [] };
  };
  const diffusers = (kind: ModelKind, title: string, part: InspectedPart): Guess => {
    return {
      kind,
      title,
      layout: "diffusers",
      place: (k) => placeDiffusersKey(part, k),
      due: [part],
    };
  };
  if (some(LORA)) return plain("lora", "other");
  const stranger = STRANGERS.find(([pattern]) => some(pattern));
  if (stranger) {
    return { kind: "unknown", title: stranger[1], layout: "other", place: null, due: [] };
  }
  const isDiffusers = some(/(^|\.)controlnet_cond_embedding\./);
  if (isDiffusers || some(/^(control_model\.)?input_hint_block\./)) {
    const base = controlNetBase(header, control.crossAttentionDim);
    const guessed = isDiffusers
      ? diffusers("controlnet", TITLES.controlnet, "controlnet")
      : { ...plain("controlnet", "ldm"), place: placeLdmControlNet(header), due: ["controlnet"] };
    return base === null
      ? { ...guessed, due: ["controlnet"] }
      : { ...guessed, title: `${TITLES.controlnet} for ${base}`, place: null, due: [] };
  }
  const ldm = unetFacts(header, "model.diffusion_model.");
  if (ldm) {
    const kind = unetKind(ldm, textWidthOfSd1);
    if (kind === "unknown") return unknownUNet(ldm, "ldm");
    const known = kind !== "sd2" && kind !== "sdxl";
    return {
      kind,
      title: TITLES[kind],
      layout: "ldm",
      place: known ? placeLdmKey : null,
      due: known ? PARTS : [],
    };
  }
  const unet = some(/^(down|up)_blocks\.\d+\.attentions\./) && unetFacts(header, "");
  if (unet) {
    const kind = unetKind(unet, textWidthOfSd1);
    if (kind === "unknown") return unknownUNet(unet, "diffusers");
    if (kind === "sd2" || kind === "sdxl") {
      return { ...plain(kind, "diffusers"), title: `${TITLES[kind]}, the UNet alone` };
    }
    return diffusers(kind, `${TITLES[kind]}, the UNet alone`, "unet");
  }
  if (some(/^(encoder|decoder)\.(down|up)_blocks\./)) return diffusers("vae", TITLES.vae, "vae");
  if (some(/^first_stage_model\.(encoder|decoder)\.|^(encoder|decoder)\.(down|up)\.\d\.block\./)) {
    return { ...plain("vae", "ldm"), place: placeLdmVaeKey, due: ["vae"] };
  }
  const tokens = header.get("text_model.embeddings.token_embedding.weight")?.shape;
  if (tokens) {
    if (tokens[1] === textWidthOfSd1) {
      return diffusers("text-encoder", TITLES["text-encoder"], "text_encoder");
    }
    const title = `${TITLES["text-encoder"]} of width ${tokens[1]}, not SD 1.x's`;
    return { ...plain("text-encoder", "diffusers"), title };
  }
  return embeddingOrUnknown(header, plain);
}

/** What a ControlNet was made for, if not for SD 1.x. */
function controlNetBase(header: Header, textWidth: number): string | null {
  const facts = unetFacts(header, controlNetPrefix(header));
  if (!facts || facts.textWidth === textWidth) return null;
  const kind = unetKind(facts, textWidth);
  return kind === "unknown" ? `texts of width ${facts.textWidth}` : TITLES[kind];
}

function unknownUNet({ textWidth }: UNetFacts, layout: Guess["layout"]): Guess {
  const title = `a UNet for texts of width ${textWidth}, which no Stable Diffusion has`;
  return { kind: "unknown", title, layout, place: null, due: [] };
}

/** Widths of CLIP's text encoders. */
const TEXT_WIDTHS = [768, 1024, 1280];

function embeddingOrUnknown(
  header: Header,
  plain: (kind: "textual-inversion", layout: "other") => Guess,
): Guess {
  const vectors = ({ shape }: TensorInfo) =>
    shape.length > 0 && shape.length <= 2 && TEXT_WIDTHS.includes(shape[shape.length - 1]);
  if (header.size > 0 && header.size <= 4 && [...header.values()].every(vectors)) {
    return plain("textual-inversion", "other");
  }
  return { kind: "unknown", title: "nothing known", layout: "other", place: null, due: [] };
}

/** Channels that the first convolution has in variants of SD 1.x. */
const IN_CHANNELS: Partial<Record<ModelKind, number>> = { inpainting: 9, "instruct-pix2pix": 8 };

/**
 * Says what a file is.
 *
 * @param header Its tensors, as `openSafetensors` gives them.
 * @param configs What a complete checkpoint is measured by; default: SD 1.5.
 * @param control What a ControlNet is measured by; default: those for SD 1.5.
 */
export function inspectTensors(
  header: Header,
  configs: PartConfigs = SD15,
  control: ControlNetConfig = SD15_CONTROLNET,
): Inspection {
  const { crossAttentionDim } = configs.unet;
  const { kind, title, layout, place, due } = guess(header, crossAttentionDim, control);
  const inChannels = IN_CHANNELS[kind] ?? configs.unet.inChannels;
  const wanted = {
    ...stateDicts({ ...configs, unet: { ...configs.unet, inChannels } }),
    controlnet: controlNetStateDict(control),
  };
  const found = new Map<InspectedPart, Map<string, Shape>>();
  const superfluous: string[] = [];
  const misshapen: string[] = [];
  let ignored = 0;
  for (const [key, { shape }] of place ? header : []) {
    const placed = place!(key);
    if (placed === "ignored") ignored++;
    if (placed === "foreign") superfluous.push(key);
    if (typeof placed === "string") continue;
    const { part, name } = placed;
    const names = found.get(part) ?? new Map<string, Shape>();
    found.set(part, names.set(name, shape));
    const right = wanted[part].get(name);
    if (!right) superfluous.push(key);
    else if (!sameWeights(shape, right)) {
      misshapen.push(`${part}/${name} [${shape}] instead of [${right}]`);
    }
  }
  const missing = due.flatMap((part) =>
    [...wanted[part].keys()]
      .filter((name) => !found.get(part)?.has(name))
      .map((name) => `${part}/${name}`)
  );
  const parts = new Map(
    [...PARTS, "controlnet" as const].filter((part) => found.has(part))
      .map((part) => [part, holding(found.get(part)!)]),
  );
  return {
    kind,
    title,
    layout,
    inChannels,
    parts,
    tensors: header.size,
    ...sizes(header),
    ignored,
    checked: place !== null,
    missing,
    superfluous,
    misshapen,
  };
}

function holding(tensors: ReadonlyMap<string, Shape>): Holding {
  const parameters = [...tensors.values()].reduce((sum, shape) => sum + sizeOf(shape), 0);
  return { tensors: tensors.size, parameters };
}

function sizes(header: Header): Pick<Inspection, "parameters" | "bytes" | "dtypes"> {
  const dtypes = new Map<string, number>();
  let bytes = 0;
  for (const { dtype, shape, begin, end } of header.values()) {
    dtypes.set(dtype, (dtypes.get(dtype) ?? 0) + sizeOf(shape));
    bytes += end - begin;
  }
  const sorted = [...dtypes].sort(([, a], [, b]) => b - a);
  return { bytes, dtypes: sorted, parameters: sorted.reduce((sum, [, count]) => sum + count, 0) };
}
