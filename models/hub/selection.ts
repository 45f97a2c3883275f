/**
 * Which files of a repository Stable Diffusion needs. Repositories hold the same weights several
 * times, in formats and precisions that nobody needs all of.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";

const TOKENIZER = [
  "vocab.json",
  "merges.txt",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
];

/** Folders of a pipeline that hold weights, and what the weights are called there. */
const PARTS = [
  ["text_encoder/", "model"],
  ["unet/", "diffusion_pytorch_model"],
  ["vae/", "diffusion_pytorch_model"],
] as const;

const PICKLE = /\.(bin|ckpt|pt|pth|pkl)$/i;

/** Whether a file of this name is a Python pickle. */
export function isPickle(name: string): boolean {
  return PICKLE.test(name);
}

/** What to do with pickled weights. */
export const CONVERT_PICKLES: string =
  "which can run code when they are opened and are therefore not loaded. Convert them with " +
  "Python: from diffusers import StableDiffusionPipeline as P; " +
  'P.from_pretrained("owner/name").save_pretrained("folder", safe_serialization=True) ' +
  '(for a .ckpt: P.from_single_file("file.ckpt")), and give that folder';

/**
 * Picks the files to fetch from the names in a repository: the parts of a diffusers pipeline
 * (configuration, tokenizer and safetensors of text encoder, UNet and autoencoder), a single part
 * such as a ControlNet, or else the one checkpoint at the top.
 *
 * @param variant Precision to prefer where it exists, such as `"fp16"`.
 * @throws {InputError} if there are only pickles, several checkpoints, parts missing, or no model.
 */
export function neededFiles(names: readonly string[], variant?: string): string[] {
  const present = new Set(names);
  const checkpoints = names.filter((name) => /^[^/]+\.safetensors$/.test(name));
  if (present.has("model_index.json")) {
    const lacking = PARTS.filter(([folder, stem]) => !weights(names, folder + stem, variant));
    if (lacking.length === 0) return pipeline(names, present, variant);
    if (checkpoints.length === 1) return checkpoints;
    throw noWeights(names, lacking.map(([folder]) => folder));
  }
  const part = weights(names, "diffusion_pytorch_model", variant);
  if (part && present.has("config.json")) return ["config.json", ...part];
  const fitting = checkpoints.length > 1 && variant
    ? checkpoints.filter((name) => name.toLowerCase().includes(variant.toLowerCase()))
    : checkpoints;
  if (fitting.length === 1) return fitting;
  if (checkpoints.length > 1) {
    throw new InputError(
      `a repository must hold one checkpoint to be named by its id alone, this one holds ` +
        `${few(checkpoints)}; give the address of the file that you want`,
    );
  }
  throw noWeights(names, []);
}

function pipeline(
  names: readonly string[],
  present: ReadonlySet<string>,
  variant: string | undefined,
): string[] {
  const required = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    ...PARTS.map(([folder]) => `${folder}config.json`),
  ];
  const missing = required.filter((name) => !present.has(name));
  if (missing.length) {
    throw new InputError(
      `a Stable Diffusion pipeline must have ${few(missing)}, not found among its files; ` +
        `choose another model or revision`,
    );
  }
  const optional = [...TOKENIZER.map((name) => `tokenizer/${name}`), "framezero.json"];
  const found = PARTS.flatMap(([folder, stem]) => weights(names, folder + stem, variant) ?? []);
  return [...new Set([...required, ...optional.filter((name) => present.has(name)), ...found])];
}

/** Where the weights of one part may lie. */
export interface WeightNames {
  /** What stands behind the stem: `""`, `".fp16"`, … */
  readonly dotted: string;
  /** The one file. */
  readonly whole: string;
  /** Or a list of shards, which is named in two ways. */
  readonly indexes: readonly string[];
}

/**
 * The names that weights may have, the preferred ones first: those of the variant, then those
 * without any, then fp16, then bf16.
 */
export function weightNames(stem: string, variant = ""): WeightNames[] {
  return [...new Set([variant, "", "fp16", "bf16"])].map((name) => {
    const dotted = name && `.${name}`;
    const whole = `${stem}${dotted}.safetensors`;
    const indexes = [`${whole}.index.json`, `${stem}.safetensors.index${dotted}.json`];
    return { dotted, whole, indexes: [...new Set(indexes)] };
  });
}

/** One file, or an index with all of its shards. */
function weights(names: readonly string[], stem: string, variant?: string): string[] | undefined {
  for (const { dotted, whole, indexes } of weightNames(stem, variant)) {
    if (names.includes(whole)) return [whole];
    const index = indexes.find((name) => names.includes(name));
    const shards = names.filter((name) => shardOf(name, stem, dotted) !== undefined);
    // Shards number themselves "i of n": an incomplete set is no model.
    const count = Number(shardOf(shards[0] ?? "", stem, dotted));
    if (index && shards.length > 0 && shards.length === count) return [index, ...shards];
  }
  return undefined;
}

/** The `n` of `stem-00001-of-0000n.safetensors`, where the variant stands before or after. */
function shardOf(name: string, stem: string, dotted: string): string | undefined {
  if (!name.startsWith(stem) || !name.endsWith(".safetensors")) return undefined;
  const middle = name.slice(stem.length, -".safetensors".length);
  const number = middle.startsWith(dotted)
    ? middle.slice(dotted.length)
    : middle.endsWith(dotted)
    ? middle.slice(0, -dotted.length)
    : "";
  return /^-\d{5}-of-(\d{5})$/.exec(number)?.[1];
}

function noWeights(names: readonly string[], folders: readonly string[]): InputError {
  const where = folders.length ? `for ${few(folders)} ` : "";
  const pickles = names.filter((name) =>
    isPickle(name) && (folders.length === 0 || folders.some((folder) => name.startsWith(folder)))
  );
  if (pickles.length) {
    return new InputError(
      `weights must be safetensors, ${where}there are only Python pickles (${few(pickles)}), ` +
        CONVERT_PICKLES,
    );
  }
  return new InputError(
    `a model must have weights as safetensors, ${where}there are none (found ${
      few(names) || "no files"
    }); choose another model or revision`,
  );
}

function few(names: readonly string[]): string {
  return names.slice(0, 4).join(", ") + (names.length > 4 ? ", …" : "");
}
