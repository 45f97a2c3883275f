/**
 * What the bench commands share: their options, how they fail, and the files they write.
 *
 * @module
 */

import { writeFile } from "node:fs/promises";
import { parseArgs, type ParseArgsOptionsConfig } from "node:util";
import { InputError } from "../core/errors.ts";
import { GPU_CHOICES, type GpuChoice } from "../core/runtime.ts";

/** An option of a command. */
export interface Option<T> {
  /** Whether it takes a value. */
  readonly type: "string" | "boolean";
  /**
   * Makes one value of all that were given, in order, with the option's name for messages.
   *
   * @throws {InputError} if one of them cannot be used.
   */
  readonly read: (given: readonly string[], name: string) => T;
}

/** Options by their names. */
export type Options = Readonly<Record<string, Option<unknown>>>;

/** What options were read as. */
export type Values<O extends Options> = {
  readonly [Name in keyof O]: O[Name] extends Option<infer T> ? T : never;
};

/** What a command understands; `--help` is always there. */
export interface Usage<O extends Options> {
  /** What `--help` prints. */
  readonly help: string;
  /** Its options. */
  readonly options: O;
  /** Whether arguments that are no options are allowed; default `false`. */
  readonly positionals?: boolean;
}

/** A command, called with its arguments: gives the exit code. */
export type Command = (args: readonly string[]) => Promise<number>;

/**
 * Makes a command of `body`. An error becomes a line on standard error and an exit code: 2 for
 * what was called wrongly, 1 for everything else.
 */
export function command<O extends Options>(
  { help, options, positionals: allowPositionals = false }: Usage<O>,
  body: (values: Values<O>, positionals: readonly string[]) => Promise<number>,
): Command {
  const entries = Object.entries(options);
  const accepted: ParseArgsOptionsConfig = { help: { type: "boolean" } };
  for (const [name, { type }] of entries) accepted[name] = { type, multiple: true };
  return async (args) => {
    try {
      const { values: given, positionals } = parseArgs({
        args: [...args],
        allowPositionals,
        options: accepted,
      });
      if (given.help) {
        console.log(help);
        return 0;
      }
      const values = entries.map(([name, { read }]) => {
        const texts = [given[name] ?? []].flat().map(String);
        return [name, read(texts, `--${name}`)] as const;
      });
      return await body(Object.fromEntries(values) as Values<O>, positionals);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      console.error(error.message);
      // node:util names what it finds wrong with options ERR_PARSE_ARGS_…
      const code = "code" in error ? String(error.code) : "";
      return error instanceof InputError || code.startsWith("ERR_PARSE_ARGS") ? 2 : 1;
    }
  };
}

/** An option with a value, of which the last one counts. */
function single<T>(read: (text: string, name: string) => T): Option<T | undefined> {
  return {
    type: "string",
    read(given, name) {
      const last = given.at(-1);
      return last === undefined ? undefined : read(last, name);
    },
  };
}

/** An option without a value. */
export const flag: Option<boolean> = { type: "boolean", read: (given) => given.length > 0 };

/** A file or folder. */
export const path: Option<string | undefined> = single((text) => text);

/** A whole number of at least 1. */
export const count: Option<number | undefined> = single((text, name) => {
  const number = Number(text);
  if (Number.isSafeInteger(number) && number >= 1) return number;
  throw new InputError(`${name} must be a whole number of at least 1, got "${text}"`);
});

/** A regular expression. */
export const pattern: Option<RegExp | undefined> = single((text, name) => {
  try {
    return new RegExp(text);
  } catch {
    throw new InputError(`${name} must be a regular expression, got "${text}"`);
  }
});

function choose<T extends string>(choices: readonly T[], text: string, name: string): T {
  const found = choices.find((choice) => choice === text);
  if (found !== undefined) return found;
  throw new InputError(`${name} must be ${choices.join(" or ")}, got "${text}"`);
}

/** One of a few words. */
export function oneOf<const T extends string>(choices: readonly T[]): Option<T | undefined> {
  return single((text, name) => choose(choices, text, name));
}

/** Any number of a few words; the option is repeated. */
export function severalOf<const T extends string>(choices: readonly T[]): Option<readonly T[]> {
  return {
    type: "string",
    read: (given, name) => given.map((text) => choose(choices, text, name)),
  };
}

/** Type of weights and activations. */
export const floatType: Option<"f32" | "f16" | undefined> = oneOf(["f32", "f16"]);

/** Which WebGPU. */
export const gpuChoice: Option<GpuChoice | undefined> = oneOf(GPU_CHOICES);

/** Writes what was measured to those files that are named, as JSON and as Markdown. */
export async function writeResults(
  { json, markdown }: { readonly json?: string; readonly markdown?: string },
  results: object,
  text = "",
): Promise<void> {
  if (json) await writeFile(json, `${JSON.stringify(results, null, 1)}\n`);
  if (markdown) await writeFile(markdown, text);
}
