/**
 * Writes measurements into a Markdown file, between two marks: `<!-- bench:start -->` and
 * `<!-- bench:end -->`, or the same with `memory`.
 *
 * ```sh
 * deno run -A bench/readme.ts --kernels k.json --step s.json README.md
 * ```
 *
 * @module
 */

import { readFile, writeFile } from "node:fs/promises";
import process from "node:process";
import { InputError } from "../core/errors.ts";
import { costliest, duelsOf, readKernels, readPeers, readStep } from "./chart/results.ts";
import { type Command, command, path } from "./command.ts";
import type { Results as KernelResults } from "./kernels.ts";
import type { Results as PeerResults } from "./peers/report.ts";
import { describeSetting } from "./setting.ts";
import { type Column, formatShapes, markdownTable, percent, significant } from "./table.ts";
import { markdown as stepReport } from "./unet_step/report.ts";

const HELP =
  `Writes measurements between <!-- bench:start --> and <!-- bench:end -->, memory between
<!-- memory:start --> and <!-- memory:end -->.
deno run -A bench/readme.ts [options] FILE.md

  --kernels FILE   what bench/kernels.ts wrote with --json
  --step FILE      what bench/unet_step.ts wrote with --json
  --peers FILE     what bench/peers.ts wrote with --json
  --memory FILE    what bench/memory.ts wrote with --markdown
  --help           this text`;

/** Kernels in the table: those that most time is spent on. */
const KERNELS = 12;

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { kernels: path, step: path, peers: path, memory: path },
  positionals: true,
}, async (options, files) => {
  const [file] = files;
  if (files.length !== 1) {
    throw new InputError(`exactly one Markdown file must be named, got ${files.length}`);
  }
  const parts: string[] = [];
  if (options.kernels) parts.push(kernelTable(await readKernels(options.kernels)));
  if (options.step) parts.push(stepReport(await readStep(options.step)).trimEnd());
  if (options.peers) parts.push(peerTable(await readPeers(options.peers)));
  const memory = options.memory ? await readText(options.memory) : "";
  if (!parts.length && !memory) {
    throw new InputError("nothing to write: give --kernels, --step, --peers or --memory");
  }
  let text = await readText(file);
  if (parts.length) text = replaceMarked(text, "bench", parts.join("\n\n"), file);
  if (memory) text = replaceMarked(text, "memory", memory.trimEnd(), file);
  await writeFile(file, text);
  return 0;
});

async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch {
    throw new InputError(`${file} must be a file that can be read`);
  }
}

/**
 * `text` with `content` in the place of what stood between the marks of that name.
 *
 * @throws {InputError} if there are not exactly two marks in order; `file` names the text there.
 */
export function replaceMarked(text: string, name: string, content: string, file: string): string {
  const [start, end] = [`<!-- ${name}:start -->`, `<!-- ${name}:end -->`];
  const [before, inside, ...more] = text.split(start);
  const [, after, ...rest] = inside?.split(end) ?? [];
  if (after === undefined || more.length || rest.length || before.includes(end)) {
    throw new InputError(
      `${file} must contain the lines ${start} and ${end} once each, in this order; add them ` +
        `where the measurements shall stand`,
    );
  }
  return `${before}${start}\n\n${content}\n\n${end}${after}`;
}

const left = (title: string): Column => ({ title, width: 0, align: "left" });
const right = (title: string): Column => ({ title, width: 0, align: "right" });

/** The costliest kernels, each with the call that it spends most time on. */
export function kernelTable(results: KernelResults): string {
  const columns = [
    left("kernel"),
    left("inputs"),
    right("ms"),
    right("GFLOP/s"),
    right("GB/s"),
    right("of peak"),
  ];
  const rows = costliest(results.rows).slice(0, KERNELS).map((row) => [
    row.kernel,
    formatShapes(row.shapes),
    significant(row.milliseconds),
    significant(row.gigaflops),
    significant(row.gigabytesPerSecond),
    percent(row.shareOfPeak),
  ]);
  const head = `${describeSetting(results)}, ${results.dtype}`;
  return `${head}\n\n${markdownTable(columns, rows)}`;
}

/** This project beside the fastest other one, for each case and kind of WebGPU. */
export function peerTable(results: PeerResults): string {
  const columns = [
    left("case"),
    left("WebGPU"),
    right("framezero ms"),
    left("fastest other"),
    right("ms"),
    right("ratio"),
  ];
  const rows = duelsOf(results).map(({ name, family, ours, peer, theirs }) => [
    name,
    family,
    significant(ours),
    peer,
    significant(theirs),
    significant(theirs / ours),
  ]);
  const settings = results.settings.map((setting) => `- ${describeSetting(setting)}`).join("\n");
  return `${settings}\n\n${markdownTable(columns, rows)}`;
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
