/**
 * Runs reference files against framezero: every case in them, through the public operations and
 * models, compared with the numbers that the reference implementation gave.
 *
 * ```sh
 * deno run -A bench/parity.ts tests/golden --filter 'ops.safetensors:conv2d'
 * ```
 *
 * Prints one line a case, then `N passed, M failed, K unsupported`. Exit code 1 if anything failed
 * or was unsupported, 2 if it was called wrongly.
 *
 * @module
 */

import { writeFile } from "node:fs/promises";
import process from "node:process";
import { parseArgs } from "node:util";
import { type Device, type GpuChoice, InputError, openDevice } from "../mod.ts";
import type { FloatType } from "./parity/case.ts";
import { HALF } from "./parity/compare.ts";
import { type CaseResult, formatResult, runPaths } from "./parity/runner.ts";

const USAGE = `usage: parity <file or folder>… [options]
  --filter RE        only cases whose <file>:<case> matches
  --dtype f32|f16    type of weights and activations (default f32)
  --json FILE        write all results
  --weights DIR      folder with full-size unet/, vae/ and text_encoder/
  --gpu CHOICE       auto, native, dawn or software (default auto)`;

/** Where the lines go. */
export interface ParityOutput {
  /** Results. */
  readonly out: (line: string) => void;
  /** What is not a result. */
  readonly log: (line: string) => void;
}

interface Settings {
  readonly paths: readonly string[];
  readonly filter?: RegExp;
  readonly dtype: FloatType;
  readonly json?: string;
  readonly weights?: string;
  readonly gpu: GpuChoice;
}

/** @throws {InputError} saying what is wrong with the arguments. */
function settingsFrom(args: readonly string[]): Settings {
  const text = { type: "string" } as const;
  const { values, positionals: paths } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: { filter: text, dtype: text, json: text, weights: text, gpu: text },
  });
  if (!paths.length) throw new InputError("name at least one reference file or folder");
  const { dtype = "f32", gpu = "auto", filter } = values;
  if (dtype !== "f32" && dtype !== "f16") {
    throw new InputError(`--dtype must be f32 or f16, got ${dtype}`);
  }
  if (gpu !== "auto" && gpu !== "native" && gpu !== "dawn" && gpu !== "software") {
    throw new InputError(`--gpu must be auto, native, dawn or software, got ${gpu}`);
  }
  return {
    paths,
    dtype,
    gpu,
    json: values.json,
    weights: values.weights,
    filter: filter === undefined ? undefined : new RegExp(filter),
  };
}

/**
 * The command line of this file.
 *
 * @returns The exit code.
 */
export async function main(
  args: readonly string[],
  { out, log }: ParityOutput = { out: console.log, log: console.error },
): Promise<number> {
  let settings: Settings;
  try {
    settings = settingsFrom(args);
  } catch (error) {
    log(`${error instanceof Error ? error.message : error}\n${USAGE}`);
    return 2;
  }
  const device = await openDevice({ gpu: settings.gpu });
  try {
    return await report(settings, device, { out, log });
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    log(error.message);
    return 2;
  } finally {
    await device.close();
  }
}

async function report(
  settings: Settings,
  device: Device,
  { out, log }: ParityOutput,
): Promise<number> {
  const { paths, dtype, json } = settings;
  const { description, implementation, f16 } = device.info;
  const limits = dtype === "f16" ? `; limits of f16: ${JSON.stringify(HALF)}` : "";
  log(`${description} (${implementation}), ${dtype}${limits}`);
  if (dtype === "f16" && !f16) throw new InputError("--dtype f16: this adapter has no f16");
  const results: CaseResult[] = [];
  for await (const result of runPaths(paths, { ...settings, device })) {
    out(formatResult(result));
    results.push(result);
  }
  const count = (status: CaseResult["status"]) =>
    results.filter((result) => result.status === status).length;
  const [passed, failed, unsupported] = [count("ok"), count("FAIL"), count("unsupported")];
  if (json !== undefined) {
    const content = { adapter: description, dtype, passed, failed, unsupported, results };
    await writeFile(json, JSON.stringify(content, null, 1));
  }
  out(`${passed} passed, ${failed} failed, ${unsupported} unsupported`);
  return failed + unsupported > 0 ? 1 : 0;
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
