/**
 * What the values of options must look like.
 *
 * @module
 */

import { InvalidArgumentError } from "commander";
import type { AtFrames } from "../prompt_travel.ts";

/** What numbers look like. */
export const NUMBER: RegExp = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** A parser of numbers within bounds. */
export function number(
  { least = -Infinity, most = Infinity, above = -Infinity } = {},
): (text: string) => number {
  const bounds = [
    above > -Infinity ? `above ${above}` : "",
    least > -Infinity ? `of at least ${least}` : "",
    most < Infinity ? `of at most ${most}` : "",
  ].filter(Boolean).join(" and ");
  return (text) => {
    const value = Number(text);
    if (NUMBER.test(text.trim()) && value >= least && value <= most && value > above) return value;
    throw new InvalidArgumentError(`It must be a number ${bounds}`.trimEnd() + ".");
  };
}

/** A parser of whole numbers within bounds. */
export function whole(
  least: number,
  most: number = Number.MAX_SAFE_INTEGER,
): (text: string) => number {
  const bounds = most < Number.MAX_SAFE_INTEGER ? ` and at most ${most}` : "";
  return (text) => {
    const value = Number(text);
    if (/^[+-]?\d+$/.test(text.trim()) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a whole number of at least ${least}${bounds}.`);
  };
}

const UNITS: Readonly<Record<string, number>> = {
  MB: 1e6,
  GB: 1e9,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
};

/** Bytes: `"6GB"`, `"512 MiB"`. */
export function byteCount(text: string): number {
  const [, amount, unit] = /^\s*(\d+(?:\.\d+)?)\s*([MG]i?B)\s*$/.exec(text) ?? [];
  const bytes = Math.floor(Number(amount) * UNITS[unit]);
  if (bytes > 0 && bytes <= Number.MAX_SAFE_INTEGER) return bytes;
  throw new InvalidArgumentError("It must be a size, such as 6GB or 512MiB.");
}

/** Frame numbers: `"0,4,8-11"` is 0, 4, 8, 9, 10, 11. */
export function frameList(text: string): number[] {
  const MOST = 100_000;
  return text.split(",").flatMap((part) => {
    const [, from, to] = /^\s*(\d{1,9})(?:-(\d{1,9}))?\s*$/.exec(part) ?? [];
    const count = Number(to ?? from) - Number(from) + 1;
    if (count >= 1 && count <= MOST) {
      return Array.from({ length: count }, (_, i) => Number(from) + i);
    }
    throw new InvalidArgumentError(`It must list frame numbers and ranges, such as 0,8-15.`);
  });
}

/** A parser that collects values at frames: `"12: a blue heart"`. */
export function atFrames<T>(
  read: (text: string) => T,
): (text: string, before?: AtFrames<T>) => AtFrames<T> {
  return (text, before = {}) => {
    const [, frame, value] = /^\s*(\d{1,9})\s*:\s*(.+)$/s.exec(text) ?? [];
    if (frame === undefined) {
      throw new InvalidArgumentError('It must be a frame number, a colon and a value: "12: …".');
    }
    if (Object.hasOwn(before, Number(frame))) {
      throw new InvalidArgumentError(`Frame ${frame} is given twice.`);
    }
    return { ...before, [Number(frame)]: read(value) };
  };
}

/** Collects the values of an option that is repeated. */
export const collect = (text: string, before: string[] = []): string[] => [...before, text];
