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

import process from "node:process";
import { type Device, InputError, openDevice } from "../mod.ts";
import {
  type Command,
  command,
  floatType,
  gpuChoice,
  path,
  pattern,
  writeResults,
} from "./command.ts";
import type { FloatType } from "./parity/case.ts";
import { HALF } from "./parity/compare.ts";
import { type CaseResult, formatResult, runPaths } from "./parity/runner.ts";

const HELP = `usage: parity <file or folder>… [options]
  --filter RE        only cases whose <file>:<case> matches
  --dtype f32|f16    type of weights and activations (default f32)
  --json FILE        write all results
  --weights DIR      folder with full-size unet/, vae/ and text_encoder/
  --gpu CHOICE       auto, native, dawn or software (default auto)
  --help             this text`;

interface Settings {
  readonly paths: readonly string[];
  readonly filter?: RegExp;
  readonly dtype: FloatType;
  readonly json?: string;
  readonly weights?: string;
}

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { filter: pattern, dtype: floatType, json: path, weights: path, gpu: gpuChoice },
  positionals: true,
}, async ({ dtype = "f32", gpu, ...options }, paths) => {
  if (!paths.length) throw new InputError("name at least one reference file or folder");
  const device = await openDevice({ gpu });
  try {
    return await report({ paths, dtype, ...options }, device);
  } finally {
    await device.close();
  }
});

async function report(settings: Settings, device: Device): Promise<number> {
  const { paths, dtype, json } = settings;
  const { description, implementation, f16 } = device.info;
  const limits = dtype === "f16" ? `; limits of f16: ${JSON.stringify(HALF)}` : "";
  console.error(`${description} (${implementation}), ${dtype}${limits}`);
  if (dtype === "f16" && !f16) throw new InputError("--dtype f16: this adapter has no f16");
  const results: CaseResult[] = [];
  for await (const result of runPaths(paths, { ...settings, device })) {
    console.log(formatResult(result));
    results.push(result);
  }
  const count = (status: CaseResult["status"]) =>
    results.filter((result) => result.status === status).length;
  const [passed, failed, unsupported] = [count("ok"), count("FAIL"), count("unsupported")];
  const content = { adapter: description, dtype, passed, failed, unsupported, results };
  await writeResults({ json }, content);
  console.log(`${passed} passed, ${failed} failed, ${unsupported} unsupported`);
  return failed + unsupported > 0 ? 1 : 0;
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
