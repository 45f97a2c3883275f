/**
 * Textual inversion: words whose embeddings were learnt from pictures while the model itself stayed
 * as it was (Gal et al. 2022, arXiv:2208.01618). A word may have several vectors; they take as many
 * places in the prompt.
 *
 * @module
 */

import type { ByteSource } from "../core/byte_source.ts";
import { allFinite } from "../core/dtype.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { openSafetensors, type SafetensorsFile, type TensorInfo } from "../core/safetensors.ts";
import { isPickle } from "./hub/selection.ts";

/** A learnt word. */
export interface TextualInversion {
  /** What stands for it in prompts, in any case; white space is single spaces. */
  readonly token: string;
  /** How many vectors it has. */
  readonly count: number;
  /** The vectors, `[count, width]`. */
  readonly vectors: Float32Array;
  /** What the file is called, and `:token` if it was renamed. */
  readonly source: string;
}

/** How to read a file of textual inversion. */
export interface TextualInversionOptions {
  /**
   * What shall stand for it in prompts. Default: the name that the file gives it, else the file's
   * own name without its ending.
   */
  readonly token?: string;
}

/** Names of the tensor that say nothing about the word: A1111's, kohya's, and a placeholder. */
const NAMELESS = new Set(["emb_params", "clip_l", "*"]);

const CONVERT = "Convert it with Python: import torch, safetensors.torch as s; " +
  'd = torch.load("FILE", weights_only=True); ' +
  'v = next(iter(d.get("string_to_param", d).values())); ' +
  's.save_file({"emb_params": v.detach().contiguous()}, "WORD.safetensors")';

/** What can be the name of a word; the parameters of networks have dots in theirs. */
const TOKEN_KEY = /^(<[^<>\s]+>|[^\s.]+)$/;

/** Widths of other text encoders, for whoever has the wrong file. */
const OTHER_WIDTHS: Readonly<Record<number, string>> = {
  768: "Stable Diffusion 1.x",
  1024: "Stable Diffusion 2.x",
  1280: "SDXL",
};

/**
 * Reads the safetensors files of A1111 and its relatives (one tensor `emb_params`), of diffusers
 * (one tensor named like the word), and of kohya's scripts (one tensor `clip_l`). The tensor is
 * `[width]` or `[vectors, width]`.
 *
 * @param source A path, a `file:` or `http(s):` URL, a `Blob` or bytes.
 * @param width Values of each vector: the text encoder's `hiddenSize`.
 * @throws {WeightError} if it is of another width or kind, damaged, or a pickle.
 * @throws {InputError} if it cannot be opened, or has no name that prompts could use.
 */
export async function readTextualInversion(
  source: string | URL | Blob | Uint8Array | ByteSource,
  width: number,
  { token }: TextualInversionOptions = {},
): Promise<TextualInversion> {
  const path = typeof source === "string" || source instanceof URL
    ? String(source)
    : "name" in source
    ? source.name
    : "";
  if (isPickle(path.replace(/[?#].*$/, ""))) {
    throw new WeightError(
      `${path}: a Python pickle, which can run code when it is opened and is therefore not ` +
        `loaded. ${CONVERT}`,
    );
  }
  const file = await openSafetensors(source);
  try {
    const [key, { shape }] = onlyTensor(file);
    const count = shape.length === 1 ? 1 : shape[0];
    if (shape.length < 1 || shape.length > 2 || count < 1 || shape.at(-1) !== width) {
      const other = OTHER_WIDTHS[shape.at(-1) ?? 0];
      throw new WeightError(
        `${file.name}: vectors must be ${width} wide, as those of the model's text encoder, but ` +
          `${key} has shape [${shape}]${other ? `, as for ${other}` : ""}; use an embedding that ` +
          `was trained for this kind of model`,
      );
    }
    const vectors = await file.readF32(key);
    if (!allFinite(vectors)) {
      throw new WeightError(`${file.name}: ${key} holds NaN or infinity; fetch the file again`);
    }
    const own = NAMELESS.has(key) ? /([^/\\]*?)(\.[^./\\]*)?$/.exec(file.name)?.[1] ?? "" : key;
    const name = token === undefined ? file.name : `${file.name}:${token}`;
    return { token: checkedToken(token ?? own, file.name), count, vectors, source: name };
  } finally {
    await file.close();
  }
}

function onlyTensor({ name, tensors }: SafetensorsFile): [string, TensorInfo] {
  const keys = [...tensors.keys()];
  if (keys.includes("clip_g")) {
    throw new WeightError(
      `${name}: an embedding for SDXL, it has vectors for two text encoders; use one that was ` +
        `trained for Stable Diffusion 1.x`,
    );
  }
  const [only] = tensors;
  if (keys.length === 1 && (NAMELESS.has(only[0]) || TOKEN_KEY.test(only[0]))) return only;
  throw new WeightError(
    `${name}: an embedding is one tensor, named emb_params, clip_l or like its word, but the file ` +
      `has ${keys.length}: ${keys.slice(0, 3).join(", ")}${keys.length > 3 ? ", …" : ""}; ` +
      `"framezero models inspect" tells what it is`,
  );
}

function checkedToken(token: string, file: string): string {
  const tidy = token.trim().replace(/\s+/g, " ");
  if (/[\p{L}\p{N}]/u.test(tidy)) return tidy;
  throw new InputError(
    `${file}: the word of an embedding needs at least one letter or digit, got ` +
      `${JSON.stringify(token)}; name it, as in "--embedding FILE:my-style"`,
  );
}

/**
 * Checks that a word is not yet taken.
 *
 * @throws {InputError} if it is.
 */
export function checkNewToken(
  { token, source }: TextualInversion,
  others: readonly TextualInversion[],
): void {
  const same = others.find((other) => other.token.toLowerCase() === token.toLowerCase());
  if (!same) return;
  throw new InputError(
    `${source}: the word ${JSON.stringify(token)} stands for ${same.source} already; give one of ` +
      `them another, as in "--embedding FILE:my-style"`,
  );
}

/** A piece of a prompt: ordinary text, or an added word. */
export type PromptPiece = string | { readonly token: string; readonly ids: readonly number[] };

/** Words added to a vocabulary, and their vectors. */
export interface AddedTokens {
  /** The rows that the text encoder lacks, `[n, width]`. */
  readonly vectors: Float32Array<ArrayBuffer>;
  /** Takes a text apart at the added words. */
  split(text: string): PromptPiece[];
}

/**
 * Numbers the vectors of `inversions` from `firstId` on. The word `name` stands for all of its
 * vectors, `name_1`, `name_2`, … for those after the first alone, as in diffusers. Upper and lower
 * case are the same; a word is found only where no letter, digit or underscore continues it.
 */
export function addedTokens(inversions: readonly TextualInversion[], firstId: number): AddedTokens {
  const words: { token: string; ids: number[] }[] = [];
  let next = firstId;
  for (const { token, count } of inversions) {
    const ids = Array.from({ length: count }, () => next++);
    words.push(
      { token, ids },
      ...ids.slice(1).map((id, i) => ({
        token: `${token}_${i + 1}`,
        ids: [id],
      })),
    );
  }
  // The longest first: "<cat>-2" is no "<cat>". Stable, so that a word of its own comes before
  // another one's number.
  words.sort((a, b) => b.token.length - a.token.length);
  const pattern = new RegExp(words.map(({ token }) => `(${wordPattern(token)})`).join("|"), "giu");
  return {
    vectors: Float32Array.from(inversions.flatMap(({ vectors }) => [...vectors])),
    split(text) {
      if (!words.length) return [text];
      const pieces: PromptPiece[] = [];
      let from = 0;
      for (const match of text.matchAll(pattern)) {
        if (match.index > from) pieces.push(text.slice(from, match.index));
        pieces.push(words[match.slice(1).findIndex((group) => group !== undefined)]);
        from = match.index + match[0].length;
      }
      if (from < text.length) pieces.push(text.slice(from));
      return pieces;
    },
  };
}

function wordPattern(token: string): string {
  const literal = token.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&").replaceAll(" ", "\\s+");
  const before = /^[\p{L}\p{N}_]/u.test(token) ? "(?<![\\p{L}\\p{N}_])" : "";
  const after = /[\p{L}\p{N}_]$/u.test(token) ? "(?![\\p{L}\\p{N}_])" : "";
  return before + literal + after;
}
