/**
 * framezero against other WebGPU libraries, on the same adapter and in one run: matrix products,
 * convolution, attention and group norm in the sizes of Stable Diffusion 1.5, f32.
 *
 * ```sh
 * deno run -A bench/peers.ts --json peers.json
 * bun bench/peers.ts --gpu dawn --filter matmul
 * ```
 *
 * Every contender has a process of its own in its runtime and keeps its tensors on the device. They
 * run in turn, A B C A B C …, with the same number of calls in a run; one that waits does nothing.
 * Times go from the first call to the end of a wait for the last; nothing is subtracted. Only who
 * agrees with a float64 reference is timed, and who cannot run is listed with the reason.
 *
 * The peers are installed into `out/peers`, once; framezero does not depend on them.
 *
 * @module
 */

import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { InputError } from "../core/errors.ts";
import type { GpuChoice } from "../core/runtime.ts";
import {
  type Command,
  command,
  count,
  flag,
  gpuChoice,
  path,
  pattern,
  writeResults,
} from "./command.ts";
import { type Child, startChild } from "./peers/child.ts";
import { type Host, installPeers, workerCommand } from "./peers/install.ts";
import { type Case, CASES, SMALL_CASES } from "./peers/problems.ts";
import type { Opened } from "./peers/protocol.ts";
import { errorOf, flopsOf, referenceOf, TOLERANCE } from "./peers/references.ts";
import {
  explain,
  type Family,
  markdown,
  type Results,
  type Row,
  textRows,
  textSummary,
} from "./peers/report.ts";
import { describeSetting } from "./setting.ts";
import { significant } from "./table.ts";
import { enoughCalls, median } from "./timing.ts";

const HELP = `Compares with other libraries. deno run -A bench/peers.ts [options]

  --quick          small tensors: shows who runs, not how fast
  --filter RE      only cases whose name matches
  --runs N         runs that the median is taken of (default 5)
  --gpu CHOICE     auto (default): native WebGPU in Deno and Dawn in Bun and Node; native, dawn:
                   only these; software: both, on the CPU even if there is a GPU
  --json FILE      write the results as JSON
  --markdown FILE  write the tables as Markdown
  --help           this text`;

/** A library in a runtime. */
interface Contender {
  readonly library: string;
  readonly host: Host;
  readonly family: Family;
}

const CONTENDERS: readonly Contender[] = [
  { library: "framezero", host: "deno", family: "native" },
  { library: "jax-js", host: "deno", family: "native" },
  { library: "tfjs", host: "deno", family: "native" },
  { library: "onnxruntime-web", host: "deno", family: "native" },
  { library: "framezero", host: "bun", family: "dawn" },
  { library: "jax-js", host: "bun", family: "dawn" },
  { library: "tfjs", host: "bun", family: "dawn" },
  { library: "onnxruntime-web", host: "bun", family: "dawn" },
  { library: "framezero", host: "node", family: "dawn" },
  { library: "onnxruntime-node", host: "node", family: "dawn" },
  { library: "onnxruntime-node CPU", host: "node", family: "cpu" },
];

/**
 * Milliseconds that a run of the fastest contender shall last at least: waiting for its end costs up
 * to 12 in Deno, whoever waits.
 */
const RUN = 300;

/** Calls of a run at most. */
const MOST_CALLS = 512;

/** Milliseconds after which a contender makes no further run of a case. */
const BUDGET = 30_000;

/** A contender and its process, which is started anew if it has ended. */
interface Seat extends Contender {
  child?: Child;
  opened?: Opened;
}

/** What a case takes from the command. */
interface Session {
  readonly root: string;
  /** Where the peers are. */
  readonly folder: string;
  /** Where results lie while they are compared. */
  readonly scratch: string;
  readonly gpu: GpuChoice;
  readonly runs: number;
}

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: {
    quick: flag,
    filter: pattern,
    runs: count,
    gpu: gpuChoice,
    json: path,
    markdown: path,
  },
}, async ({ quick, filter, runs = 5, gpu = "auto", ...files }) => {
  const cases = filtered(quick ? SMALL_CASES : CASES, filter);
  const root = dirname(import.meta.dirname ?? dirname(fileURLToPath(import.meta.url)));
  const folder = join(root, "out", "peers");
  const problem = await installPeers(root, folder);
  if (problem) console.error(problem);
  const scratch = await mkdtemp(join(tmpdir(), "framezero-peers-"));
  const left = gpu === "native" ? "dawn" : gpu === "dawn" ? "native" : null;
  const seats: Seat[] = CONTENDERS.filter(({ family }) => family !== left)
    .map((contender) => ({ ...contender }));
  const rows: Row[] = [];
  try {
    for (const each of cases) {
      const own = await compare(seats, each, { root, folder, scratch, gpu, runs });
      rows.push(...own);
      console.log(`\n${each.name}\n${textRows(own)}`);
    }
  } finally {
    for (const { child } of seats) child?.stop();
    await rm(scratch, { recursive: true, force: true });
  }
  console.log(`\n${textSummary(rows)}\n${explain(runs)}`);
  const settings = seats.flatMap(({ opened }) => opened?.setting ?? []);
  const results: Results = { settings, runs, tolerance: TOLERANCE, rows };
  await writeResults(files, results, markdown(results));
  const failed = rows.some(({ library, milliseconds }) =>
    library === "framezero" && milliseconds === null
  );
  return failed ? 1 : 0;
});

function filtered(cases: readonly Case[], filter?: RegExp): readonly Case[] {
  if (!filter) return cases;
  const kept = cases.filter(({ name }) => filter.test(name));
  if (kept.length) return kept;
  const names = cases.map(({ name }) => name).join("; ");
  throw new InputError(`--filter must match one of: ${names}; got "${filter.source}"`);
}

/** What became of a contender in a case. */
interface Entry {
  readonly seat: Seat;
  error: number | null;
  note: string;
  /** Of each run. */
  readonly times: number[];
  failed: boolean;
}

async function compare(seats: readonly Seat[], each: Case, session: Session): Promise<Row[]> {
  const want = referenceOf(each.problem);
  const entries: Entry[] = seats.map((seat) => ({
    seat,
    error: null,
    note: "",
    times: [],
    failed: false,
  }));
  const attempt = async (entry: Entry, body: (child: Child) => Promise<void>) => {
    if (entry.failed) return;
    try {
      await body(await open(entry.seat, session));
    } catch (error) {
      entry.failed = true;
      const message = error instanceof Error ? error.message : String(error);
      entry.note = message.replaceAll(/\s+/g, " ").trim().slice(0, 300);
      // A device that has failed once may fail for ever: the next case starts with another.
      entry.seat.child?.stop();
      entry.seat.child = undefined;
    }
  };
  for (const entry of entries) {
    await attempt(entry, async (child) => {
      await check(child, entry, each, want, join(session.scratch, "result"));
    });
  }
  for (const entry of entries) {
    await attempt(entry, async (child) => {
      const { milliseconds } = await child.ask({ ask: "run", calls: 1 });
      entry.times.push(milliseconds);
    });
  }
  const calls = await callsOf(entries, attempt);
  // Runs of one call each have begun already.
  if (calls > 1) { for (const { times } of entries) times.length = 0; }
  for (let run = calls > 1 ? 0 : 1; run < session.runs; run++) {
    for (const entry of entries) {
      const spent = entry.times.reduce((sum, time) => sum + time, 0) * calls;
      if (spent > BUDGET) continue;
      await attempt(entry, async (child) => {
        const { milliseconds } = await child.ask({ ask: "run", calls });
        entry.times.push(milliseconds / calls);
      });
    }
  }
  return entries.map((entry) => rowOf(entry, entries, each, calls));
}

/** Calls of a run: of the fastest contender, until they are enough. */
async function callsOf(
  entries: readonly Entry[],
  attempt: (entry: Entry, body: (child: Child) => Promise<void>) => Promise<void>,
): Promise<number> {
  const onGpu = entries.filter(({ seat, failed }) => seat.family !== "cpu" && !failed);
  if (!onGpu.length) return 1;
  const fastest = onGpu.reduce((a, b) => b.times[0] < a.times[0] ? b : a);
  return await enoughCalls(RUN, MOST_CALLS, async (calls) => {
    let lasted = Infinity;
    await attempt(fastest, async (child) => {
      lasted = (await child.ask({ ask: "run", calls })).milliseconds;
    });
    return lasted;
  });
}

/** Has a contender prepare a case, in another way if its first gives wrong results. */
async function check(child: Child, entry: Entry, each: Case, want: Float64Array, file: string) {
  const wrong: string[] = [];
  for (const plain of [false, true]) {
    const made = await child.ask({ ask: "prepare", problem: each.problem, plain, file });
    const bytes = await readFile(file);
    const got = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    entry.error = errorOf(got, want);
    entry.note = [made.note, ...wrong].filter((part) => part).join("; ");
    if (entry.error <= TOLERANCE) return;
    const { milliseconds } = await child.ask({ ask: "run", calls: 1 });
    const what = made.note || (made.hasPlain ? "the fused operator" : "its result");
    wrong.push(
      `${what} is wrong by ${significant(entry.error)} of the greatest value ` +
        `(in ${significant(milliseconds)} ms)`,
    );
    if (!made.hasPlain) break;
  }
  throw new Error(wrong.join("; "));
}

/** The process of a contender, opened if it is not. */
async function open(seat: Seat, { root, folder, gpu }: Session): Promise<Child> {
  if (seat.child) return seat.child;
  const { library, host, family } = seat;
  const child = startChild(workerCommand(host, root, folder));
  seat.child = child;
  const choice = gpu === "software" || family === "cpu" ? gpu : family;
  const known = seat.opened !== undefined;
  seat.opened = await child.ask({ ask: "open", library, place: { root, folder, gpu: choice } });
  if (seat.opened.setting && !known) console.log(describeSetting(seat.opened.setting));
  return child;
}

function rowOf(entry: Entry, entries: readonly Entry[], each: Case, calls: number): Row {
  const { seat: { library, host, family, opened }, times, error, note } = entry;
  const timeOf = ({ failed, times }: Entry) => failed || !times.length ? null : median(times);
  const milliseconds = timeOf(entry);
  const own = entries.find(({ seat }) => seat.library === "framezero" && seat.host === host);
  const ours = own ? timeOf(own) : null;
  return {
    case: each.name,
    library,
    version: opened?.version ?? "",
    runtime: opened?.runtime ?? host,
    family,
    adapter: opened?.adapter ?? "",
    milliseconds,
    spread: milliseconds ? (Math.max(...times) - Math.min(...times)) / milliseconds : 0,
    runs: times.length,
    calls,
    gigaflops: milliseconds ? flopsOf(each.problem) / milliseconds / 1e6 : 0,
    error,
    ratio: milliseconds && ours ? milliseconds / ours : null,
    note,
  };
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
