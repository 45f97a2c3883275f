/**
 * CLIP's byte-pair tokenizer: text to the 77 token ids that the text encoder reads.
 *
 * Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) over lower-cased text, with an
 * end-of-word mark on the last symbol of a word and CLIP's own way of splitting text into words.
 * Text is cleaned as in OpenAI's CLIP: Unicode repair, HTML entities, white space, lower case.
 *
 * @module
 */

import { openByteSource, reasonOf } from "../core/byte_source.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { cleanText, type TextCleanup } from "./clip_text_cleanup.ts";

export { cleanText, type TextCleanup };

/** A special token as tokenizer files write it: the text, or an object that holds the text. */
export type SpecialToken = string | { readonly content: string } | null;

/** The entries of `tokenizer_config.json` and `special_tokens_map.json` that are honoured. */
export interface ClipTokenizerConfig {
  /** Start of text; `<|startoftext|>` unless given. */
  readonly bos_token?: SpecialToken;
  /** End of text; `<|endoftext|>` unless given. */
  readonly eos_token?: SpecialToken;
  /** Fills up short prompts; the end token unless given (SD 2 has `!`). */
  readonly pad_token?: SpecialToken;
  /** Stands for bytes that the vocabulary lacks; the end token unless given. */
  readonly unk_token?: SpecialToken;
  /** Ids per prompt, start and end included; 77 unless given. */
  readonly model_max_length?: number;
}

/** What a tokenizer is made of: the contents of its files. */
export interface ClipTokenizerFiles {
  /** `vocab.json`, parsed: token to id. */
  readonly vocab: Readonly<Record<string, number>>;
  /** `merges.txt`, the whole text: one merge a line, the most important first. */
  readonly merges: string;
  /** Special tokens and length. */
  readonly config?: ClipTokenizerConfig;
  /** `"ftfy"` unless given. */
  readonly cleanup?: TextCleanup;
}

/** A prompt as the text encoder takes it. */
export interface TokenizedPrompt {
  /** `maxLength` ids: start, content, end, padding. */
  readonly ids: Int32Array;
  /** Content ids that fitted. */
  readonly tokens: number;
  /** Text of the content that did not fit, `""` if everything did. */
  readonly cut: string;
}

const UTF8 = new TextEncoder();
const TEXT = new TextDecoder("utf-8", { ignoreBOM: true });
const DEFAULT_LENGTH = 77;
/** Tokenizers without a limit of their own write about 10^30 as their length. */
const UNLIMITED = 1e9;
const END_OF_WORD = "</w>";
const NO_RANK = 0x7fffffff;
/** Words remembered before the cache starts anew: more than a long session's prompts hold. */
const CACHE_LIMIT = 65536;

/** CLIP's tokenizer; made by {@linkcode ClipTokenizer.load} or {@linkcode ClipTokenizer.from}. */
export class ClipTokenizer {
  /** Ids per prompt, start and end included. */
  readonly maxLength: number;
  /** Id of the start token. */
  readonly startId: number;
  /** Id of the end token. */
  readonly endId: number;
  /** Id that fills up short prompts. */
  readonly padId: number;

  readonly #cleanup: TextCleanup;
  readonly #unknownId: number;
  readonly #tokens: ReadonlyMap<number, string>;
  readonly #inner: Int32Array;
  readonly #final: Int32Array;
  readonly #merges: MergeTable;
  readonly #specials: ReadonlyMap<string, number>;
  readonly #words: RegExp;
  readonly #cache = new Map<string, readonly number[]>();

  private constructor(files: ClipTokenizerFiles, names: { vocab: string; merges: string }) {
    this.#cleanup = files.cleanup ?? "ftfy";
    const ids = readVocab(files.vocab, names.vocab);
    this.#tokens = new Map(Array.from(ids, ([token, id]) => [id, token]));
    if (this.#tokens.size < ids.size) {
      throw new WeightError(
        `${names.vocab}: every token has an id of its own, but ${ids.size} tokens share ` +
          `${this.#tokens.size} ids; use the vocab.json that came with the model`,
      );
    }
    this.#merges = readMerges(files.merges, ids, names);
    const symbol = (end: string): Int32Array =>
      Int32Array.from(BYTE_SYMBOLS, (char) => ids.get(char + end) ?? -1);
    this.#inner = symbol("");
    this.#final = symbol(END_OF_WORD);

    const config = files.config ?? {};
    const special = (key: keyof ClipTokenizerConfig, fallback: string): string =>
      specialText(config[key], key) ?? fallback;
    const idOf = (token: string): number => {
      const id = ids.get(token);
      if (id !== undefined) return id;
      throw new WeightError(
        `${names.vocab}: the special token ${JSON.stringify(token)} is not in the vocabulary of ` +
          `${ids.size} tokens; use the vocab.json that came with the model, or name its own ` +
          `special tokens in tokenizer_config.json`,
      );
    };
    const start = special("bos_token", "<|startoftext|>");
    const end = special("eos_token", "<|endoftext|>");
    this.startId = idOf(start);
    this.endId = idOf(end);
    this.padId = idOf(special("pad_token", end));
    this.#unknownId = idOf(special("unk_token", end));
    this.maxLength = readLength(config.model_max_length);

    // Text is lower-case by the time it is split. Padding is no part of this: SD 2's `!` has to
    // stay an ordinary character.
    const lower: [string, number][] = [
      [start.toLowerCase(), this.startId],
      [end.toLowerCase(), this.endId],
    ];
    this.#specials = new Map(lower);
    const literals = lower.map(([text]) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    // The long s counts as an s, because the original matches regardless of case.
    const words = ["'[sſtmd]", "'re", "'ve", "'ll", "\\p{L}+", "\\p{N}"];
    const others = "[^\\p{White_Space}\\p{L}\\p{N}]+";
    this.#words = new RegExp([...literals, ...words, others].join("|"), "gu");
  }

  /**
   * Reads `vocab.json`, `merges.txt` and, where present, `tokenizer_config.json` and
   * `special_tokens_map.json` (which wins, as in transformers) from a folder on disk; `cleanup` says
   * how text is cleaned.
   *
   * @throws {InputError} if a file is missing or unreadable.
   * @throws {WeightError} if a file is malformed, or the files do not belong together.
   */
  static async load(
    folder: string | URL,
    cleanup: TextCleanup = "ftfy",
  ): Promise<ClipTokenizer> {
    const path = (name: string): string => `${String(folder).replace(/[/\\]+$/, "")}/${name}`;
    const [vocab, merges, config, map] = await Promise.all([
      readText(path("vocab.json")),
      readText(path("merges.txt")),
      readText(path("tokenizer_config.json"), "{}"),
      readText(path("special_tokens_map.json"), "{}"),
    ]);
    return new ClipTokenizer({
      vocab: parseObject(vocab, path("vocab.json")),
      merges,
      cleanup,
      config: {
        ...parseObject(config, path("tokenizer_config.json")),
        ...parseObject(map, path("special_tokens_map.json")),
      },
    }, { vocab: path("vocab.json"), merges: path("merges.txt") });
  }

  /**
   * Builds a tokenizer from the contents of its files, for places without a file system.
   *
   * @throws {WeightError} if vocabulary or merges are malformed, or do not belong together.
   * @throws {InputError} if the configuration cannot be used.
   */
  static from(files: ClipTokenizerFiles): ClipTokenizer {
    return new ClipTokenizer(files, { vocab: "vocab.json", merges: "merges.txt" });
  }

  /** Ids of the text, cleaned, without start, end, padding or any limit of length. */
  encode(text: string): number[] {
    return this.encodeWords(text).flat();
  }

  /** Ids of each word of the text, as {@linkcode ClipTokenizer.encode} strings them together. */
  encodeWords(text: string): (readonly number[])[] {
    const words = cleanText(text, this.#cleanup).matchAll(this.#words);
    return Array.from(words, ([word]) => this.#encodeWord(word));
  }

  /**
   * Text of the ids, special tokens included: words come back lower-case with one space between
   * them. Bytes that are no UTF-8, as at a cut inside a character, come back as U+FFFD.
   *
   * @throws {InputError} if an id is not in the vocabulary.
   */
  decode(ids: Iterable<number>): string {
    const bytes: number[] = [];
    for (const id of ids) {
      const token = this.#tokens.get(id);
      if (token === undefined) {
        throw new InputError(
          `token ids come from the vocabulary of ${this.#tokens.size} tokens, but ${id} is not ` +
            `in it; decode with the tokenizer that made the ids`,
        );
      }
      const ends = token.endsWith(END_OF_WORD);
      const symbols = ends ? token.slice(0, -END_OF_WORD.length) : token;
      for (const char of symbols) {
        const byte = SYMBOL_BYTES.get(char);
        if (byte === undefined) bytes.push(...UTF8.encode(char));
        else bytes.push(byte);
      }
      if (ends) bytes.push(0x20);
    }
    return TEXT.decode(Uint8Array.from(bytes)).trim();
  }

  /** The text encoder's input: start, as many content ids as fit, end, padding. */
  tokenize(text: string): TokenizedPrompt {
    const content = this.encode(text);
    const tokens = Math.min(content.length, this.maxLength - 2);
    const ids = this.frame(content.slice(0, tokens));
    return { ids, tokens, cut: this.decode(content.slice(tokens)) };
  }

  /**
   * Start, the content ids, end, padding: `maxLength` ids.
   *
   * @throws {InputError} if there are more than `maxLength - 2` of them.
   */
  frame(content: readonly number[]): Int32Array {
    if (content.length > this.maxLength - 2) {
      throw new InputError(
        `at most ${this.maxLength - 2} content ids fit between start and end, got ` +
          `${content.length}; cut or divide them`,
      );
    }
    const ids = new Int32Array(this.maxLength).fill(this.padId);
    ids.set([this.startId, ...content, this.endId]);
    return ids;
  }

  #encodeWord(word: string): readonly number[] {
    const known = this.#cache.get(word);
    if (known) return known;
    const special = this.#specials.get(word);
    const ids = special === undefined ? this.#merge(UTF8.encode(word)) : [special];
    if (this.#cache.size >= CACHE_LIMIT) this.#cache.clear();
    this.#cache.set(word, ids);
    return ids;
  }

  /**
   * Byte-pair encoding of one word: as long as neighbours can be merged, every occurrence of the
   * best-ranked pair is, from left to right. `ranks[i]` is the rank of the pair (i, i + 1), looked
   * up only where a merge changed it, so that a sweep over a very long word is one plain scan.
   */
  #merge(bytes: Uint8Array): number[] {
    const { rankOf, merged } = this.#merges;
    let n = bytes.length;
    const ids = Int32Array.from(bytes, (byte, i) => (i < n - 1 ? this.#inner : this.#final)[byte]);
    const ranks = new Int32Array(n).fill(NO_RANK);
    for (let i = 0; i + 1 < n; i++) ranks[i] = rankOf(ids[i], ids[i + 1]);
    for (;;) {
      let best = NO_RANK;
      for (let i = 0; i < n; i++) if (ranks[i] < best) best = ranks[i];
      if (best === NO_RANK) break;
      let out = 0;
      let previousMerged = false;
      for (let i = 0; i < n; out++) {
        const merges = ranks[i] === best;
        ids[out] = merges ? merged[best] : ids[i];
        if (out > 0 && (merges || previousMerged)) ranks[out - 1] = rankOf(ids[out - 1], ids[out]);
        i += merges ? 2 : 1;
        ranks[out] = ranks[i - 1];
        previousMerged = merges;
      }
      n = out;
    }
    return Array.from(ids.subarray(0, n), (id) => id < 0 ? this.#unknownId : id);
  }
}

/**
 * A printable character for every byte (GPT-2's table): printable Latin-1 stands for itself, the
 * other bytes are numbered from U+0100 on.
 */
const BYTE_SYMBOLS: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const char = String.fromCharCode(byte);
    return String.fromCharCode(/[!-~¡-¬®-ÿ]/.test(char) ? byte : next++);
  });
})();
const SYMBOL_BYTES = new Map(BYTE_SYMBOLS.map((char, byte) => [char, byte]));

/** Ranks of pairs of ids (`NO_RANK` if they do not merge), and the id that each rank makes. */
interface MergeTable {
  readonly rankOf: (left: number, right: number) => number;
  readonly merged: readonly number[];
}

function readMerges(
  text: string,
  vocab: ReadonlyMap<string, number>,
  names: { vocab: string; merges: string },
): MergeTable {
  if (typeof text !== "string") {
    throw new WeightError(`${names.merges}: merges are given as text, one merge a line`);
  }
  const ranks = new Map<number, number>();
  const merged: number[] = [];
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (line === "" || (i === 0 && line.includes("#version:"))) continue;
    const parts = line.split(" ");
    if (parts.length !== 2 || parts.includes("")) {
      throw new WeightError(
        `${names.merges}, line ${i + 1}: a merge is two tokens with one space between them, but ` +
          `the line is ${JSON.stringify(line.slice(0, 80))}; fetch the file again`,
      );
    }
    const [left, right, both] = [...parts, parts.join("")].map((token) => {
      const id = vocab.get(token);
      if (id !== undefined) return id;
      throw new WeightError(
        `${names.merges}, line ${i + 1}: merges are about tokens of ${names.vocab}, but ` +
          `${JSON.stringify(token)} is not in it; use the two files of the same tokenizer`,
      );
    });
    ranks.set(pairKey(left, right), merged.length);
    merged.push(both);
  }
  return { rankOf: (left, right) => ranks.get(pairKey(left, right)) ?? NO_RANK, merged };
}

/** Ids are below 2^24 and may be -1 (a byte that the vocabulary lacks): an exact, unique number. */
function pairKey(left: number, right: number): number {
  return (left + 1) * 2 ** 25 + right + 1;
}

function readVocab(vocab: Readonly<Record<string, number>>, name: string): Map<string, number> {
  if (typeof vocab !== "object" || vocab === null || Array.isArray(vocab)) {
    throw new WeightError(`${name}: a vocabulary is a JSON object of tokens and their ids`);
  }
  const ids = new Map(Object.entries(vocab));
  for (const [token, id] of ids) {
    if (!Number.isInteger(id) || id < 0 || id >= 2 ** 24) {
      throw new WeightError(
        `${name}: the id of a token is a whole number from 0 to 2^24 - 1, but ` +
          `${JSON.stringify(token)} has ${JSON.stringify(id)}; fetch the file again`,
      );
    }
  }
  return ids;
}

function specialText(token: unknown, key: string): string | undefined {
  if (token === undefined || token === null) return undefined;
  const text = typeof token === "object" && "content" in token ? token.content : token;
  if (typeof text === "string" && text !== "") return text;
  throw new InputError(
    `tokenizer config: ${key} is a text or an object with the text as "content", but it is ` +
      `${JSON.stringify(token)}; correct it or leave it out`,
  );
}

function readLength(length: unknown): number {
  if (length === undefined || length === null || Number(length) >= UNLIMITED) return DEFAULT_LENGTH;
  if (typeof length === "number" && Number.isInteger(length) && length >= 2) return length;
  throw new InputError(
    `tokenizer config: model_max_length is a whole number of at least 2 (start and end), but it ` +
      `is ${JSON.stringify(length)}; SD 1.5 has ${DEFAULT_LENGTH}`,
  );
}

async function readText(path: string, otherwise?: string): Promise<string> {
  try {
    const source = await openByteSource(path);
    try {
      return new TextDecoder().decode(await source.read(0, source.size));
    } finally {
      await source.close();
    }
  } catch (cause) {
    if (cause instanceof InputError && otherwise !== undefined) return otherwise;
    throw new InputError(
      `a CLIP tokenizer is a folder with vocab.json and merges.txt, but ${path} cannot be read ` +
        `(${reasonOf(cause)}); give the "tokenizer" folder of the model`,
      { cause },
    );
  }
}

function parseObject<T extends object>(text: string, path: string): T {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new WeightError(`${path}: not JSON (${reasonOf(cause)}); fetch the file again`, {
      cause,
    });
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as T;
  throw new WeightError(`${path}: a JSON object belongs here; fetch the file again`);
}
