/**
 * Finding reference files, running their cases, and saying how they went.
 *
 * @module
 */

import { readdir, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { type Device, InputError, Tensor } from "../../mod.ts";
import {
  type Case,
  type CaseFile,
  type FloatType,
  type Outputs,
  type Setting,
  Unsupported,
  type Values,
} from "./case.ts";
import { compare, type Comparison, failure } from "./compare.ts";
import { openJson } from "./json_files.ts";
import { ModelCache } from "./model_cache.ts";
import { openCases } from "./registry.ts";

/** How one case went. */
export interface CaseResult {
  /** The file, relative to the path given. */
  readonly file: string;
  /** The case. */
  readonly name: string;
  /** What it computes. */
  readonly op: string;
  /** Whether it passed. */
  readonly status: "ok" | "FAIL" | "unsupported";
  /** How each output compares. */
  readonly comparisons: readonly Comparison[];
  /** Why it failed as a whole, or what is not supported. */
  readonly message: string | null;
  /** How long it took. */
  readonly seconds: number;
}

/** What to run, and how. */
export interface RunOptions {
  /** Where it is computed. */
  readonly device: Device;
  /** Default `"f32"`. */
  readonly dtype?: FloatType;
  /** Runs only cases whose `<file>:<case>` it matches. */
  readonly filter?: RegExp;
  /** Folder with full-size weights. */
  readonly weights?: string;
}

/** A file that may hold cases. */
interface Candidate {
  readonly path: string;
  /** Relative to the path given. */
  readonly name: string;
  /** Whether it was named itself, rather than found in a folder. */
  readonly named: boolean;
}

async function candidates(path: string): Promise<Candidate[]> {
  const info = await stat(path).catch(() => null);
  if (!info) throw new InputError(`${path}: no such file or folder of references`);
  if (!info.isDirectory()) return [{ path, name: basename(path), named: true }];
  const entries = await readdir(path, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && /\.(safetensors|json)$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .map((found) => ({
      path: found,
      name: found.slice(join(path, "/").length).replaceAll("\\", "/"),
      named: false,
    }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/**
 * Runs the cases of files and folders; yields each result as it comes. Files in folders that hold
 * no cases (weights, configurations) are passed over.
 *
 * @throws {InputError} if a path does not exist.
 */
export async function* runPaths(
  paths: readonly string[],
  options: RunOptions,
): AsyncGenerator<CaseResult> {
  for (const path of paths) {
    for (const candidate of await candidates(path)) yield* runFile(candidate, options);
  }
}

async function openCandidate({ path, named }: Candidate): Promise<CaseFile | null> {
  const file = path.endsWith(".json") ? await openJson(path) : await openCases(path);
  if (file || !named) return file;
  const nothing: Case = {
    name: "*",
    op: "?",
    family: "host",
    outputs: [],
    tolerance: {},
    want: () => Promise.resolve(null),
    run: () => Promise.reject(new Unsupported("a file without cases")),
  };
  return { cases: [nothing], close: () => Promise.resolve() };
}

async function* runFile(
  candidate: Candidate,
  { device, dtype = "f32", filter, weights }: RunOptions,
): AsyncGenerator<CaseResult> {
  const { name } = candidate;
  const whole = { file: name, name: "*", op: "?", comparisons: [], seconds: 0 } as const;
  let file: CaseFile | null;
  try {
    file = await openCandidate(candidate);
  } catch (error) {
    if (!filter || filter.test(`${name}:*`)) {
      yield { ...whole, status: "FAIL", message: reason(error) };
    }
    return;
  }
  if (!file) return;
  const before = device.memory().live;
  const models = new ModelCache(device, dtype);
  try {
    const setting = { device, dtype, models, weights: weights ?? null };
    for (const item of file.cases) {
      if (filter && !filter.test(`${name}:${item.name}`)) continue;
      yield { file: name, ...await runCase(item, setting) };
    }
  } finally {
    models.dispose();
    await file.close();
  }
  const left = device.memory().live - before;
  if (left) yield { ...whole, status: "FAIL", message: `its models leave ${left} bytes behind` };
}

function reason(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

/** Runs one case and compares all that it must produce. */
export async function runCase(
  item: Case,
  setting: Setting,
): Promise<Omit<CaseResult, "file">> {
  const { device, models } = setting;
  const start = performance.now();
  const held = () => device.memory().live - models.bytes;
  const before = held();
  const about = (
    status: CaseResult["status"],
    message: string | null,
    comparisons: readonly Comparison[] = [],
  ) => {
    const seconds = (performance.now() - start) / 1000;
    return { name: item.name, op: item.op, status, message, comparisons, seconds };
  };
  try {
    const comparisons = await compareAll(item, await item.run(setting), setting);
    const left = held() - before;
    if (left) return about("FAIL", `it leaves ${left} bytes on the device`, comparisons);
    const passed = comparisons.every((comparison) => comparison.passed);
    return about(passed ? "ok" : "FAIL", null, comparisons);
  } catch (error) {
    if (error instanceof Unsupported) return about("unsupported", error.message);
    return about("FAIL", reason(error));
  }
}

/** Reads and frees the outputs, and compares those that the reference has. */
async function compareAll(
  item: Case,
  outputs: Outputs,
  { dtype }: Setting,
): Promise<Comparison[]> {
  const comparisons: Comparison[] = [];
  const roles = new Set([...item.outputs, ...Object.keys(outputs)]);
  try {
    for (const role of roles) {
      const want = await item.want(role);
      const got = outputs[role];
      const due = item.outputs.includes(role);
      if (!want) {
        if (due) comparisons.push(failure(role, "is not stored in the reference file"));
      } else if (got === undefined) {
        comparisons.push(failure(role, "was not produced"));
      } else {
        const values = await valuesOf(got);
        const precision = { family: item.family, dtype };
        comparisons.push(compare(role, values, want, item.tolerance, precision));
      }
    }
    return comparisons;
  } finally {
    for (const output of Object.values(outputs)) if (output instanceof Tensor) output.dispose();
  }
}

async function valuesOf(output: Outputs[string]): Promise<Values> {
  if (output instanceof Tensor) return { data: await output.data(), shape: output.shape };
  return "data" in output ? output : { data: output };
}

/** `status  file:case  max_abs  max_rel  (worst element: role[index], got, want)`. */
export function formatResult(result: CaseResult): string {
  const { status, file, name, message, comparisons } = result;
  const head = `${status.padEnd(4)}  ${file}:${name}`;
  if (!comparisons.length) return message ? `${head}  (${message})` : head;
  const number = (value: number) => value === 0 ? "0" : value.toExponential(2);
  const most = (key: "maxAbs" | "maxRel") =>
    number(Math.max(...comparisons.map((comparison) => comparison[key])));
  const worst = comparisons.reduce((a, b) =>
    b.used > a.used || (b.used === a.used && b.maxAbs > a.maxAbs) ? b : a
  );
  const { role, problem } = worst;
  const at = worst.worst &&
    `worst element: ${role}[${worst.worst.index}], ${worst.worst.got}, ${worst.worst.want}`;
  const notes = [message, problem && `${role} ${problem}`, at].filter(Boolean).join("; ");
  return `${head}  ${most("maxAbs")}  ${most("maxRel")}  (${notes})`;
}
