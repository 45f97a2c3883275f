/**
 * From prompts to what the UNet is conditioned on: words with their weights and added embeddings,
 * laid out in rows of tokens, encoded.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import type { ClipTextModel } from "./clip_text.ts";
import type { ClipTokenizer } from "./clip_tokenizer.ts";
import { applyWeights, parsePromptWeights } from "./prompt_weights.ts";
import { type AddedTokens, addedTokens, type TextualInversion } from "./textual_inversion.ts";

/** How prompts are read. */
export interface PromptOptions {
  /**
   * Whether brackets weight words, `(more)`, `[less]`, `(word:1.3)`, as in A1111's web UI. Default
   * false: brackets are text, as they are for diffusers, and as titles and smileys need it.
   */
  promptWeights?: boolean;
  /**
   * Layers at the end of the text encoder that are left out, as in diffusers. Default 0. What A1111
   * calls "clip skip 2" is 1 here.
   */
  clipSkip?: number;
  /**
   * Whether a prompt may be longer than the text encoder's 77 tokens: it is encoded in pieces of 77,
   * of which the UNet sees all. Default false: what does not fit is left out, and told.
   */
  longPrompts?: boolean;
}

/** What encodes prompts. */
export interface PromptEncoder {
  /** Device of the text encoder. */
  readonly device: Device;
  /** From text to token ids. */
  readonly tokenizer: ClipTokenizer;
  /** From token ids to hidden states. */
  readonly textEncoder: ClipTextModel;
  /** Learnt words. */
  readonly inversions: readonly TextualInversion[];
}

/** Prompts, encoded. */
export interface EncodedPrompts {
  /** `[prompts, 77·pieces, width]` in f32. */
  readonly hiddenStates: Tensor;
  /** For each prompt the words that did not fit, `""` if all did. */
  readonly cut: string[];
  /** For each prompt the brackets that have no partner and were read as text. */
  readonly unbalanced: string[];
}

/** Tokens that stay together, and what their embeddings are multiplied by. */
interface Word {
  readonly ids: readonly number[];
  readonly weight: number;
  /** The text of an added word. */
  readonly token?: string;
}

/** One row of the text encoder's input. */
interface Row {
  readonly ids: Int32Array;
  readonly weights: Float32Array;
}

/**
 * Encodes prompts. Without options and embeddings: the text encoder's last hidden state.
 *
 * With `longPrompts` every prompt is divided into pieces of 75 tokens between start and end, words
 * whole; the states of the pieces follow each other along the tokens. Shorter prompts get empty
 * pieces until all have the same number.
 *
 * @throws {InputError} if a weight is no number, or `clipSkip` leaves no layer.
 */
export function encodePrompts(
  { device, tokenizer, textEncoder, inversions }: PromptEncoder,
  prompts: readonly string[],
  options: PromptOptions = {},
): EncodedPrompts {
  const { clipSkip = 0 } = options;
  const { numHiddenLayers, vocabSize } = textEncoder.config;
  checkClipSkip(clipSkip, numHiddenLayers);
  const added = addedTokens(inversions, vocabSize);
  const read = prompts.map((prompt) => readPrompt(tokenizer, added, prompt, options));
  const count = Math.max(...read.map(({ pieces }) => pieces.length));
  const rows = read.flatMap(({ pieces }) =>
    Array.from({ length: count }, (_, i) => rowOf(tokenizer, pieces[i] ?? []))
  );
  const hiddenStates = device.scope(() => {
    const output = textEncoder.forward(rows.map(({ ids }) => ids), added.vectors);
    const states = clipSkip === 0
      ? output.lastHiddenState
      : textEncoder.finalNorm(output.hiddenStates[numHiddenLayers - clipSkip]);
    const weighted = applyWeights(states, rows.map(({ weights }) => weights));
    const [, tokens, width] = weighted.shape;
    return weighted.reshape([prompts.length, count * tokens, width]);
  });
  return {
    hiddenStates,
    cut: read.map(({ cut }) => cut),
    unbalanced: read.map(({ unbalanced }) => unbalanced),
  };
}

/** The words of a prompt that fit, in rows; those that did not, and brackets without partners. */
function readPrompt(
  tokenizer: ClipTokenizer,
  added: AddedTokens,
  prompt: string,
  { promptWeights = false, longPrompts = false }: PromptOptions,
): { pieces: Word[][]; cut: string; unbalanced: string } {
  const { parts, unbalanced } = promptWeights
    ? parsePromptWeights(prompt)
    : { parts: [{ text: prompt, weight: 1 }], unbalanced: "" };
  const words = parts.flatMap(({ text, weight }) => wordsOf(tokenizer, added, text, weight));
  const room = tokenizer.maxLength - 2;
  if (longPrompts) return { pieces: divide(words, Math.max(1, room)), cut: "", unbalanced };
  return { ...truncate(tokenizer, words, room), unbalanced };
}

/**
 * Where a word, or several that follow each other, stand among the tokens of an encoded prompt:
 * wherever they occur, all of their tokens.
 *
 * @returns Places in the hidden states of {@link encodePrompts}, one at least.
 * @throws {InputError} naming the words that there are, if they do not occur.
 */
export function findWords(
  { tokenizer, textEncoder, inversions }: Pick<
    PromptEncoder,
    "tokenizer" | "textEncoder" | "inversions"
  >,
  prompt: string,
  words: string,
  options: PromptOptions = {},
): number[] {
  const added = addedTokens(inversions, textEncoder.config.vocabSize);
  const wanted = wordsOf(tokenizer, added, words, 1).map(({ ids }) => ids.join());
  const { pieces } = readPrompt(tokenizer, added, prompt, options);
  const found = new Set<number>();
  pieces.forEach((piece, row) => {
    const starts = [1 + row * tokenizer.maxLength];
    for (const { ids } of piece) starts.push(starts[starts.length - 1] + ids.length);
    piece.forEach((_, i) => {
      if (!wanted.length || wanted.some((ids, j) => piece[i + j]?.ids.join() !== ids)) return;
      for (let at = starts[i]; at < starts[i + wanted.length]; at++) found.add(at);
    });
  });
  if (found.size) return [...found];
  const known = pieces.flat().map(({ ids, token }) => token ?? tokenizer.decode(ids));
  const list = [...new Set(known)].filter((word) => /[\p{L}\p{N}]/u.test(word));
  throw new InputError(
    `the prompt has no word ${JSON.stringify(words)}; its words are ${list.join(", ") || "none"}`,
  );
}

/**
 * Checks a number of layers to leave out.
 *
 * @throws {InputError} if it is no whole number, or no layer remains.
 */
export function checkClipSkip(clipSkip: number, layers: number): number {
  if (Number.isInteger(clipSkip) && clipSkip >= 0 && clipSkip < layers) return clipSkip;
  throw new InputError(
    `clipSkip must be a whole number from 0 to ${layers - 1}, as the text encoder has ${layers} ` +
      `layers, got ${String(clipSkip)}; "clip skip 2" of A1111 is 1 here`,
  );
}

function wordsOf(
  tokenizer: ClipTokenizer,
  added: AddedTokens,
  text: string,
  weight: number,
): Word[] {
  return added.split(text).flatMap((piece): Word[] =>
    typeof piece === "string"
      ? tokenizer.encodeWords(piece).map((ids) => ({ ids, weight }))
      : [{ ...piece, weight }]
  );
}

/** What fits into one row, and the text of the rest. */
function truncate(
  tokenizer: ClipTokenizer,
  words: readonly Word[],
  room: number,
): { pieces: Word[][]; cut: string } {
  const fitting: Word[] = [];
  const cut: string[] = [];
  for (const word of words) {
    const kept = word.ids.slice(0, room);
    const rest = word.ids.slice(room);
    room -= kept.length;
    if (kept.length) fitting.push({ ...word, ids: kept });
    if (rest.length) cut.push(word.token ?? tokenizer.decode(rest));
  }
  return { pieces: [fitting], cut: cut.join(" ") };
}

/** The words in pieces of at most `room` tokens. Only a word longer than that is divided itself. */
function divide(words: readonly Word[], room: number): Word[][] {
  const pieces: Word[][] = [[]];
  let left = room;
  for (const word of words) {
    for (let from = 0; from < word.ids.length; from += room) {
      const ids = word.ids.slice(from, from + room);
      if (ids.length > left) {
        pieces.push([]);
        left = room;
      }
      pieces[pieces.length - 1].push({ ...word, ids });
      left -= ids.length;
    }
  }
  return pieces;
}

function rowOf(tokenizer: ClipTokenizer, words: readonly Word[]): Row {
  const ids = tokenizer.frame(words.flatMap((word) => [...word.ids]));
  const weights = new Float32Array(ids.length).fill(1);
  weights.set(words.flatMap((word) => word.ids.map(() => word.weight)), 1);
  return { ids, weights };
}
