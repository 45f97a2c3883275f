/**
 * Finds what the variant table should say about the adapter at hand: times the candidates of every
 * choice, drops those that do not compile or are wrong, and keeps what beats the table for the
 * command line to use from then on.
 *
 * ```sh
 * deno run -A bench/tune.ts --quick
 * bun bench/tune.ts --dtype f16 --save
 * ```
 *
 * @module
 */

import process from "node:process";
import { openDevice } from "../core/device.ts";
import { saveTunedVariants } from "../kernels/tuned_variants.ts";
import { type VariantChoices, variantsOf } from "../kernels/variants.ts";
import type { UNetConfig } from "../models/config.ts";
import { SD15 } from "../models/sd15.ts";
import {
  type Command,
  command,
  flag,
  floatType,
  gpuChoice,
  path,
  writeResults,
} from "./command.ts";
import { describeSetting, type Setting, settingOf } from "./setting.ts";
import { type Method, probe } from "./timing.ts";
import { decisionsFor, type Extent } from "./tune/decisions.ts";
import { type Bench, qualify, timeWays } from "./tune/trial.ts";
import { describeChoices, describeVerdict, judge, type Verdict } from "./tune/verdict.ts";

const HELP = `Tunes the kernels to this adapter. deno run -A bench/tune.ts [options]

  --quick          small calls and few candidates: less than 3 minutes on a CPU
  --save           keep the result: the command line uses it from then on
  --dtype TYPE     f32 (default) or f16
  --gpu CHOICE     auto (default), native, dawn or software
  --experimental   try what is no standard yet, such as Dawn's subgroup matrices
  --json FILE      write the results as JSON
  --help           this text`;

/** What is written with `--json`. */
export interface Results extends Setting {
  /** Type of the tensors. */
  readonly dtype: "f32" | "f16";
  /** How time was taken. */
  readonly method: Method;
  /** Rounds that medians are taken of. */
  readonly rounds: number;
  /** Name of the adapter's row of the table. */
  readonly row: string;
  /** One for each decision. */
  readonly verdicts: readonly Verdict[];
  /** All that should replace parts of the row. */
  readonly choices: Partial<VariantChoices>;
}

const FULL: Extent = { model: SD15.unet, side: 64, calls: 4, cases: 12, everything: true };

/** A quarter of the channels, groups and heads, so that a head has as many channels as there. */
const NARROW: UNetConfig = {
  ...SD15.unet,
  blockOutChannels: SD15.unet.blockOutChannels.map((width) => width / 4),
  heads: SD15.unet.heads.map((heads) => heads / 4),
  normNumGroups: SD15.unet.normNumGroups / 4,
};

const QUICK: Extent = { model: NARROW, side: 32, calls: 2, cases: 2, everything: false };

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: {
    quick: flag,
    save: flag,
    dtype: floatType,
    gpu: gpuChoice,
    experimental: flag,
    json: path,
  },
}, async ({ quick, save, dtype = "f32", gpu, experimental, json }) => {
  const open = () => openDevice({ gpu, experimental });
  const bench: Bench = { device: await open(), open };
  try {
    const results = await decideAll(bench, dtype, quick);
    await writeResults({ json }, results);
    if (save) console.log(`kept in ${await saveTunedVariants(bench.device, results.choices)}`);
  } finally {
    await bench.device.close();
  }
  return 0;
});

async function decideAll(bench: Bench, dtype: "f32" | "f16", quick: boolean): Promise<Results> {
  const setting = settingOf(bench.device);
  const row = variantsOf(bench.device);
  const { method } = await probe(bench.device);
  const rounds = quick ? 5 : 9;
  console.log(`${describeSetting(setting)}, ${dtype}\ntable row: ${row.name}`);
  console.log(`time by ${method}, median of ${rounds} rounds`);
  let choices: Partial<VariantChoices> = {};
  const verdicts: Verdict[] = [];
  for (const decision of decisionsFor(row, quick ? QUICK : FULL)) {
    const options = { base: choices, dtype };
    const failures = await qualify(bench, decision, options);
    const times = await timeWays(bench, decision, failures, { ...options, method, rounds });
    const verdict = judge(decision, times, failures);
    console.log(describeVerdict(verdict));
    verdicts.push(verdict);
    // Later decisions build on earlier ones: Winograd's method consists of products.
    choices = { ...choices, ...verdict.better };
  }
  const found = Object.keys(choices).length ? describeChoices(choices) : "nothing beats the table";
  console.log(`\nresult: ${found}`);
  return { ...setting, dtype, method, rounds, row: row.name, verdicts, choices };
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
