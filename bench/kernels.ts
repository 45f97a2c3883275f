/**
 * How fast every kernel is: median and spread of several runs after warming up, operations and
 * bytes per second, and the share of what this adapter was measured to reach in the same run.
 *
 * ```sh
 * deno run -A bench/kernels.ts --quick
 * bun bench/kernels.ts --sd15 512 --filter conv2d --json conv2d.json
 * ```
 *
 * A kernel is timed only if its values agree with its float64 reference. What a shader gets wrong
 * without a wrong value, such as a refused pipeline, ends the run with an error.
 *
 * @module
 */

import process from "node:process";
import { type Device, openDevice } from "../core/device.ts";
import { GpuError, InputError } from "../core/errors.ts";
import { type Kernel, run } from "../core/kernel.ts";
import "../kernels/mod.ts";
import { readConfigs } from "../models/checkpoint.ts";
import { SD15 } from "../models/sd15.ts";
import { BUILT_IN } from "../models/stable_diffusion.ts";
import {
  type Command,
  command,
  count,
  flag,
  floatType,
  gpuChoice,
  path,
  pattern,
  severalOf,
  writeResults,
} from "./command.ts";
import { describeSetting, type Setting, settingOf } from "./setting.ts";
import { modelSuites, type Suite } from "./shapes.ts";
import {
  type Column,
  formatShapes,
  markdownTable,
  percent,
  significant,
  textHead,
  textRow,
} from "./table.ts";
import { leastTime, type Peaks, probe, time } from "./timing.ts";
import { costOf, everyKernel, findError, upload, type Workload } from "./workload.ts";

const HELP = `Times the kernels. deno run -A bench/kernels.ts [options]

  --quick          one small call of every kernel: about a minute on a CPU
  --sd15 SIZE      the calls of Stable Diffusion 1.5 at 512 or 256 pixels
  --tiny           the calls of the built-in model
                   (without these three: all of them, and the kernels that no model calls)
  --filter RE      only kernels whose name matches
  --runs N         runs that the median is taken of (default 5, with --quick 3)
  --dtype TYPE     f32 (default) or f16
  --gpu CHOICE     auto (default), native, dawn or software
  --json FILE      write the results as JSON
  --markdown FILE  write the table as Markdown
  --help           this text`;

/** What one row says. */
export interface Row {
  /** Name of the suite. */
  readonly suite: string;
  /** Name of the kernel. */
  readonly kernel: string;
  /** Those of the inputs. */
  readonly shapes: readonly (readonly number[] | null)[];
  /** Settings of the call. */
  readonly attributes: unknown;
  /** How often an evaluation of the suite's model makes this call. */
  readonly calls: number;
  /** Of one call. */
  readonly flops: number;
  /** Of one call, at least. */
  readonly bytes: number;
  /** Median. */
  readonly milliseconds: number;
  /** (longest − shortest) / median. */
  readonly spread: number;
  /** 10⁹ operations a second. */
  readonly gigaflops: number;
  /** 10⁹ bytes a second. */
  readonly gigabytesPerSecond: number;
  /** The least time that the measured peaks allow, divided by the median. */
  readonly shareOfPeak: number;
}

/** What is written with `--json`. */
export interface Results extends Setting {
  /** Type of the tensors. */
  readonly dtype: "f32" | "f16";
  /** Runs that medians are taken of. */
  readonly runs: number;
  /** What the adapter reached in the probes. */
  readonly peaks: Peaks;
  /** What was timed. */
  readonly rows: readonly Row[];
  /** What was not timed, and why. */
  readonly problems: readonly string[];
}

const COLUMNS: readonly Column[] = [
  { title: "kernel", width: 18, align: "left" },
  { title: "inputs", width: 34, align: "left" },
  { title: "calls", width: 5, align: "right" },
  { title: "median ms", width: 9, align: "right" },
  { title: "spread", width: 6, align: "right" },
  { title: "GFLOP/s", width: 7, align: "right" },
  { title: "GB/s", width: 6, align: "right" },
  { title: "of peak", width: 7, align: "right" },
];

/** Elements of the calls of kernels that no model uses. */
const ELEMENTS = { quick: 2 ** 17, full: 2 ** 20 };

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: {
    quick: flag,
    sd15: severalOf(["512", "256"]),
    tiny: flag,
    filter: pattern,
    runs: count,
    dtype: floatType,
    gpu: gpuChoice,
    json: path,
    markdown: path,
  },
}, async ({ quick, sd15, tiny, filter, dtype = "f32", gpu, ...options }) => {
  const { runs = quick ? 3 : 5 } = options;
  const suites = filtered(await suitesFor(quick, tiny, sd15.map(Number)), filter);
  const device = await openDevice({ gpu });
  let results: Results;
  try {
    results = await timeSuites(device, suites, { dtype, runs, allCases: !quick });
  } finally {
    await device.close();
  }
  await writeResults(options, results, markdown(results, suites));
  return results.problems.length ? 1 : 0;
});

async function suitesFor(
  quick: boolean,
  tiny: boolean,
  sizes: readonly number[],
): Promise<Suite[]> {
  const builtIn = modelSuites("built-in model", await readConfigs(BUILT_IN), 128, {
    rows: 8,
    textRows: 2,
  });
  const callsOf = (suites: readonly Suite[]) => suites.flatMap(({ workloads }) => workloads);
  if (quick) {
    const workloads = everyKernel(callsOf(builtIn), ELEMENTS.quick);
    return [{ name: "every kernel", isModel: false, workloads }];
  }
  const sd15 = (size: number) =>
    modelSuites("Stable Diffusion 1.5", SD15, size, { rows: 1, textRows: 1 });
  if (tiny || sizes.length) return [...(tiny ? builtIn : []), ...sizes.flatMap(sd15)];
  const models = [...builtIn, ...sd15(256), ...sd15(512)];
  const used = new Set(callsOf(models).map(({ kernel }) => kernel.name));
  const rest = everyKernel([], ELEMENTS.full).filter(({ kernel }) => !used.has(kernel.name));
  return [{ name: "kernels that no model calls", isModel: false, workloads: rest }, ...models];
}

function filtered(suites: readonly Suite[], filter?: RegExp): readonly Suite[] {
  if (!filter) return suites;
  const kept = suites.map(({ name, workloads }) => ({
    name,
    isModel: false,
    workloads: workloads.filter(({ kernel }) => filter.test(kernel.name)),
  })).filter(({ workloads }) => workloads.length);
  if (kept.length) return kept;
  throw new InputError(`--filter matches no kernel that would be timed, got "${filter.source}"`);
}

async function timeSuites(
  device: Device,
  suites: readonly Suite[],
  { dtype, runs, allCases }: { dtype: "f32" | "f16"; runs: number; allCases: boolean },
): Promise<Results> {
  const setting = settingOf(device);
  console.log(describeSetting(setting));
  const peaks = await probe(device);
  console.log(describePeaks(peaks, runs));
  const problems: string[] = [];
  const say = (problem: string) => {
    problems.push(problem);
    console.log(problem);
  };
  const kernels = new Set(suites.flatMap(({ workloads }) => workloads.map(({ kernel }) => kernel)));
  const right = new Set<Kernel<unknown>>();
  for (const kernel of kernels) {
    const error = await findErrorInCases(device, kernel, dtype, allCases);
    if (error) say(`FAIL ${kernel.name}: ${error}`);
    else right.add(kernel);
  }
  console.log(
    `${right.size} of ${kernels.size} kernels agree with their float64 references ` +
      `(${allCases ? "all cases" : "largest case"}, ${dtype})`,
  );
  const rows: Row[] = [];
  for (const suite of suites) {
    console.log(`\n${suite.name}\n${textHead(COLUMNS)}`);
    for (const workload of suite.workloads) {
      if (!right.has(workload.kernel)) continue;
      const row = await timeWorkload(device, suite.name, workload, { dtype, runs, peaks });
      if (typeof row === "string") {
        say(`not timed: ${workload.kernel.name} ${formatShapes(workload.input.shapes)}: ${row}`);
        continue;
      }
      rows.push(row);
      console.log(textRow(COLUMNS, cellsOf(row)));
    }
    if (suite.isModel) console.log(total(rows.filter((row) => row.suite === suite.name)));
  }
  return { ...setting, dtype, runs, peaks, rows, problems };
}

async function findErrorInCases(
  device: Device,
  kernel: Kernel<unknown>,
  dtype: "f32" | "f16",
  all: boolean,
): Promise<string | null> {
  const bytes = kernel.cases.map((input) => costOf({ kernel, input, calls: 1 }, dtype).bytes);
  const largest = bytes.indexOf(Math.max(...bytes));
  for (const [i, input] of kernel.cases.entries()) {
    const error = all || i === largest ? await findError(device, kernel, input, dtype) : null;
    if (error) return `case ${i} (${formatShapes(input.shapes)}): ${error}`;
  }
  return null;
}

/** Times a call, or says why it cannot run on this adapter. */
async function timeWorkload(
  device: Device,
  suite: string,
  workload: Workload,
  { dtype, runs, peaks }: { dtype: "f32" | "f16"; runs: number; peaks: Peaks },
): Promise<Row | string> {
  const { kernel, input, calls } = workload;
  const { shapes, attributes } = input;
  const { flops, bytes } = costOf(workload, dtype);
  const scope = device.scope();
  try {
    const inputs = upload(device, input, dtype);
    const call = () => device.scope(() => void run(kernel, inputs, attributes));
    const { milliseconds, spread } = await time(device, peaks.method, call, runs);
    return {
      suite,
      kernel: kernel.name,
      shapes,
      attributes,
      calls,
      flops,
      bytes,
      milliseconds,
      spread,
      gigaflops: flops / milliseconds / 1e6,
      gigabytesPerSecond: bytes / milliseconds / 1e6,
      shareOfPeak: leastTime(peaks, { flops, bytes }) / milliseconds,
    };
  } catch (error) {
    // A limit of the adapter; a device that has failed would throw here again.
    if (!(error instanceof GpuError)) throw error;
    await device.sync();
    return error.message;
  } finally {
    scope[Symbol.dispose]();
  }
}

function describePeaks({ method, gigaflops, copies }: Peaks, runs: number): string {
  const rates = copies.map(({ bytes, gigabytesPerSecond }) =>
    `${significant(gigabytesPerSecond)} GB/s (${bytes / 2 ** 20} MiB)`
  );
  return `time by ${method}, median of ${runs} runs; peaks: ${significant(gigaflops)} GFLOP/s ` +
    `multiply-add, copy ${rates.join(", ")}`;
}

function cellsOf(row: Row): string[] {
  return [
    row.kernel,
    formatShapes(row.shapes),
    String(row.calls),
    significant(row.milliseconds),
    percent(row.spread),
    significant(row.gigaflops),
    significant(row.gigabytesPerSecond),
    percent(row.shareOfPeak),
  ];
}

/** The sum over an evaluation of a model: what it costs if nothing is lost between the kernels. */
function total(rows: readonly Row[]): string {
  const sum = (of: (row: Row) => number) => rows.reduce((all, row) => all + row.calls * of(row), 0);
  const [milliseconds, flops] = [sum((row) => row.milliseconds), sum((row) => row.flops)];
  return `calls × median: ${significant(milliseconds)} ms for ${significant(flops / 1e9)} GFLOP, ` +
    `${significant(flops / milliseconds / 1e6)} GFLOP/s`;
}

function markdown({ rows, peaks, runs, dtype, ...setting }: Results, suites: readonly Suite[]) {
  const parts = suites.map(({ name, isModel }) => {
    const own = rows.filter(({ suite }) => suite === name);
    const table = markdownTable(COLUMNS, own.map(cellsOf));
    return `## ${name}\n\n${table}\n${isModel ? `\n${total(own)}\n` : ""}`;
  });
  const head = `${describeSetting(setting)}, ${dtype}; ${describePeaks(peaks, runs)}`;
  return `${head}\n\n${parts.join("\n")}`;
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
