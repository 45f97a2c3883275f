/**
 * Weights of words in prompts, in the notation of A1111's web UI: `(more)`, `[less]`, `(word:1.3)`.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { div, mean, mul, where } from "../kernels/mod.ts";

/** Text of one weight. */
export interface WeightedText {
  /** As the tokenizer takes it. */
  readonly text: string;
  /** 1 for ordinary text. */
  readonly weight: number;
}

/** A prompt, taken apart. */
export interface ParsedPrompt {
  /** Its text in order; neighbours differ in weight. */
  readonly parts: WeightedText[];
  /** Brackets that belong to no pair and were left in the text, `""` if there were none. */
  readonly unbalanced: string;
}

/** What brackets without a number do. */
const STEP = 1.1;

/** Larger weights mean nothing, and would overflow in half precision. */
const MOST = 1000;

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)$/;
const SYMBOLS = /\\[^]?|[()[\]]|[^\\()[\]]+/gu;

/**
 * Reads weights. `(text)` multiplies by 1.1, `[text]` divides by it, `(text:w)` multiplies by `w`;
 * pairs may be nested and multiply then. A backslash makes the bracket or backslash behind it
 * ordinary text. Brackets that have no partner, or cross another pair, are ordinary text as well.
 *
 * @throws {InputError} if what stands behind the last colon in round brackets is no number, or a
 * weight lies outside −1000 … 1000.
 */
export function parsePromptWeights(prompt: string): ParsedPrompt {
  const symbols = prompt.match(SYMBOLS) ?? [];
  const { factors, closing, ends } = bracketsOf(symbols);
  const parts: { text: string; weight: number }[] = [];
  const weights = [1];
  let unbalanced = "";
  for (const [i, symbol] of symbols.entries()) {
    const weight = weights[weights.length - 1];
    const factor = factors.get(i);
    if (factor !== undefined) {
      weights.push(checked(weight * factor));
    } else if (closing.has(i)) {
      weights.pop();
    } else {
      if (isBracket(symbol)) unbalanced += symbol;
      const text = symbol.startsWith("\\") ? symbol.slice(1) : symbol.slice(0, ends.get(i));
      const last = parts.at(-1);
      if (last?.weight === weight) last.text += text;
      else if (text) parts.push({ text, weight });
    }
  }
  return { parts, unbalanced };
}

const isBracket = (symbol: string): boolean => /^[()[\]]$/.test(symbol);

/** What the brackets mean, by the index of their symbols. */
interface Brackets {
  /** What each opening bracket that has a partner multiplies by. */
  readonly factors: ReadonlyMap<number, number>;
  /** The closing brackets that have a partner. */
  readonly closing: ReadonlySet<number>;
  /** Where the text ends in symbols that hold a weight behind it. */
  readonly ends: ReadonlyMap<number, number>;
}

/** Finds partners: a closing bracket takes the nearest open one of its kind. */
function bracketsOf(symbols: readonly string[]): Brackets {
  const factors = new Map<number, number>();
  const closing = new Set<number>();
  const ends = new Map<number, number>();
  const open: number[] = [];
  for (const [i, symbol] of symbols.entries()) {
    if (symbol === "(" || symbol === "[") open.push(i);
    if (symbol !== ")" && symbol !== "]") continue;
    const round = symbol === ")";
    const depth = open.findLastIndex((at) => symbols[at] === (round ? "(" : "["));
    if (depth < 0) continue;
    const [start] = open.splice(depth); // what was opened inside stays without a partner
    closing.add(i);
    const tail = symbols[i - 1];
    const colon = tail.startsWith("\\") ? -1 : tail.lastIndexOf(":");
    if (!round || colon < 0) {
      factors.set(start, round ? STEP : 1 / STEP);
    } else {
      factors.set(start, weightOf(tail.slice(colon + 1).trim()));
      ends.set(i - 1, colon);
    }
  }
  return { factors, closing, ends };
}

function weightOf(text: string): number {
  if (NUMBER.test(text)) return Number(text);
  throw new InputError(
    `prompt weights: behind the last colon in round brackets belongs a number, as in ` +
      `"(word:1.2)", got ${JSON.stringify(text.slice(0, 40))}; write one, or \\( and \\) for ` +
      `brackets that are text`,
  );
}

function checked(weight: number): number {
  if (Math.abs(weight) <= MOST) return weight;
  throw new InputError(
    `prompt weights must lie between -${MOST} and ${MOST}, nested ones multiplied, got ${weight}; ` +
      `useful ones are 0.5 to 1.5`,
  );
}

/** Whether a text holds something like `(word:1.2)`, which means a weight in A1111. */
export function looksWeighted(text: string): boolean {
  return /\([^()]*:\s*[+-]?[.\d]+\s*\)/.test(text);
}

/**
 * Scales hidden states by the weights of their tokens, then brings each row back to the mean that it
 * had: `z′ = w·z · mean(z) / mean(w·z)`, A1111's rule, for rows of one prompt chunk each. Rows whose
 * weights are all 1 stay as they are, bit for bit.
 *
 * @param z `[rows, tokens, width]`.
 * @param weights For each row, one weight a token.
 */
export function applyWeights(z: Tensor, weights: readonly Float32Array[]): Tensor {
  const [rows, tokens] = z.shape;
  if (weights.every(isPlain)) return z;
  const { device } = z;
  return device.scope(() => {
    const w = device.tensor(Float32Array.from(weights.flatMap((row) => [...row])), [
      rows,
      tokens,
      1,
    ]);
    const scaled = mul(z, w);
    const before = mean(z, [1, 2], { keepdim: true });
    const after = mean(scaled, [1, 2], { keepdim: true });
    // Zero for plain rows, and for those whose mean vanished: these are not brought back.
    const weighted = device.tensor(
      Float32Array.from(weights, (row) => isPlain(row) ? 0 : 1),
      [rows, 1, 1],
    );
    const factor = where(mul(weighted, after), div(before, after), device.tensor([1], [1, 1, 1]));
    return mul(scaled, factor);
  });
}

function isPlain(weights: Float32Array): boolean {
  return weights.every((weight) => weight === 1);
}
