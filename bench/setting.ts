/**
 * Where and when a measurement was made, and what the bench commands share.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import type { Device } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { describeRuntime, type GpuChoice } from "../core/runtime.ts";

/** Where and when a measurement was made. */
export interface Setting {
  /** ISO 8601. */
  readonly date: string;
  /** Adapter and driver. */
  readonly adapter: string;
  /** `"native"`: the runtime's own WebGPU. `"dawn"`: npm `webgpu`. */
  readonly implementation: "native" | "dawn";
  /** Runtime, its version and its machine. */
  readonly runtime: string;
  /** Commit of the sources, `+` where they were changed since; `null` outside a repository. */
  readonly commit: string | null;
}

/** The setting of a measurement on `device`. */
export function settingOf({ info }: Device): Setting {
  return {
    date: new Date().toISOString(),
    adapter: info.description,
    implementation: info.implementation,
    runtime: describeRuntime(),
    commit: commit(),
  };
}

/** The setting in words. */
export function describeSetting(setting: Setting): string {
  const { adapter, implementation, runtime, date, commit } = setting;
  return `${adapter}, ${implementation} WebGPU, ${runtime}, ${date.slice(0, 10)}` +
    (commit ? `, commit ${commit}` : "");
}

function commit(): string | null {
  const git = (...args: string[]) =>
    execFileSync("git", args, {
      cwd: import.meta.dirname,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    }).trim();
  try {
    return git("rev-parse", "--short", "HEAD") + (git("status", "--porcelain") ? "+" : "");
  } catch {
    return null;
  }
}

const GPU_CHOICES: readonly GpuChoice[] = ["auto", "native", "dawn", "software"];

/**
 * The value of `--gpu`.
 *
 * @throws {InputError} if there is no such choice.
 */
export function gpuChoice(value = "auto"): GpuChoice {
  return oneOf("--gpu", value, GPU_CHOICES);
}

/**
 * The value of an option with few choices.
 *
 * @throws {InputError} if it is none of them.
 */
export function oneOf<T extends string>(option: string, value: string, choices: readonly T[]): T {
  const found = choices.find((choice) => choice === value);
  if (found !== undefined) return found;
  throw new InputError(`${option} must be ${choices.join(" or ")}, got "${value}"`);
}

/**
 * The value of an option that counts something.
 *
 * @throws {InputError} if it is no whole number of at least 1.
 */
export function count(option: string, value: string): number {
  const number = Number(value);
  if (Number.isSafeInteger(number) && number >= 1) return number;
  throw new InputError(`${option} must be a whole number of at least 1, got "${value}"`);
}

/**
 * Runs a command: an error becomes a line on standard error.
 *
 * @returns The exit code: `body`'s own; 2 after a wrong option, 1 after another error.
 */
export async function withExitCode(body: () => Promise<number>): Promise<number> {
  try {
    return await body();
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    console.error(error.message);
    // node:util names what it finds wrong with options ERR_PARSE_ARGS_…
    const code = "code" in error ? String(error.code) : "";
    return error instanceof InputError || code.startsWith("ERR_PARSE_ARGS") ? 2 : 1;
  }
}
