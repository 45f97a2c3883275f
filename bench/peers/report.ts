/**
 * What comparisons say, in tables.
 *
 * @module
 */

import { describeSetting, type Setting } from "../setting.ts";
import { type Column, markdownTable, percent, significant, textTable } from "../table.ts";
import { TOLERANCE } from "./references.ts";

/** Which WebGPU a contender uses: only those of one family are compared with each other. */
export type Family = "native" | "dawn" | "cpu";

/** What one contender did with one case. */
export interface Row {
  /** Name of the case. */
  readonly case: string;
  /** Name of the library. */
  readonly library: string;
  /** Its version; empty if it could not be opened. */
  readonly version: string;
  /** Runtime and its version. */
  readonly runtime: string;
  /** Which WebGPU. */
  readonly family: Family;
  /** Adapter and driver. */
  readonly adapter: string;
  /** Median time of a call; `null` if it was not timed. */
  readonly milliseconds: number | null;
  /** (longest − shortest) / median. */
  readonly spread: number;
  /** Runs that the median is taken of: fewer than wanted where they take too long. */
  readonly runs: number;
  /** Calls in a run. */
  readonly calls: number;
  /** 10⁹ operations a second, of those that a direct computation takes. */
  readonly gigaflops: number;
  /** Greatest error, as a share of the greatest value; `null` if there is no result. */
  readonly error: number | null;
  /** Its time divided by framezero's in the same runtime. */
  readonly ratio: number | null;
  /** How it computes, or why it was not timed. */
  readonly note: string;
}

/** What is written with `--json`. */
export interface Results {
  /** Where and when, as framezero sees it in each runtime. */
  readonly settings: readonly Setting[];
  /** Runs that medians are taken of. */
  readonly runs: number;
  /** Greatest error accepted. */
  readonly tolerance: number;
  /** One for each contender and case. */
  readonly rows: readonly Row[];
}

const COLUMNS: readonly Column[] = [
  { title: "library", width: 28, align: "left" },
  { title: "runtime", width: 12, align: "left" },
  { title: "WebGPU", width: 6, align: "left" },
  { title: "median ms", width: 9, align: "right" },
  { title: "spread", width: 6, align: "right" },
  { title: "GFLOP/s", width: 7, align: "right" },
  { title: "error", width: 7, align: "right" },
  { title: "ratio", width: 6, align: "right" },
  { title: "note", width: 120, align: "left" },
];

const SUMMARY: readonly Column[] = [
  { title: "case", width: 34, align: "left" },
  { title: "WebGPU", width: 6, align: "left" },
  { title: "fastest peer", width: 40, align: "left" },
  { title: "GFLOP/s", width: 7, align: "right" },
  { title: "framezero", width: 9, align: "right" },
  { title: "ratio", width: 6, align: "right" },
];

/** The rows of a case, in a terminal. */
export function textRows(rows: readonly Row[]): string {
  return textTable(COLUMNS, rows.map(cellsOf));
}

/** The fastest peer of each case and family, in a terminal. */
export function textSummary(rows: readonly Row[]): string {
  return textTable(SUMMARY, summary(rows));
}

/** Everything in Markdown. */
export function markdown({ settings, runs, rows }: Results): string {
  const cases = [...new Set(rows.map((row) => row.case))];
  return [
    "## The fastest peer of each kind of WebGPU\n",
    markdownTable(SUMMARY, summary(rows)),
    `\n${explain(runs)}\n`,
    ...settings.map((setting) => `- ${describeSetting(setting)}`),
    ...cases.flatMap((name) => [
      `\n## ${name}\n`,
      markdownTable(COLUMNS, rows.filter((row) => row.case === name).map(cellsOf)),
    ]),
  ].join("\n") + "\n";
}

/** What the columns mean. */
export function explain(runs: number): string {
  return `f32, tensors on the device, median of up to ${runs} interleaved runs; GFLOP/s of a ` +
    `direct computation; error: greatest, as a share of the greatest value, against float64 (at ` +
    `most ${TOLERANCE} counts); ratio: time divided by framezero's in the same runtime; rows ` +
    `without a GPU are for orientation`;
}

function cellsOf(row: Row): string[] {
  const { library, version, runtime, family, milliseconds, error, ratio } = row;
  const timed = (cell: string) => milliseconds === null ? "–" : cell;
  return [
    `${library} ${version}`.trim(),
    runtime.split(" on ")[0],
    WEBGPU[family],
    timed(significant(milliseconds ?? 0)),
    timed(percent(row.spread)),
    timed(significant(row.gigaflops)),
    error === null ? "–" : error.toExponential(0),
    ratio === null ? "–" : significant(ratio),
    row.note,
  ];
}

const WEBGPU: Readonly<Record<Family, string>> = {
  native: "native",
  dawn: "Dawn",
  cpu: "none",
};

function summary(rows: readonly Row[]): string[][] {
  const cases = [...new Set(rows.map((row) => row.case))];
  const families = Object.keys(WEBGPU) as Family[];
  return cases.flatMap((name) =>
    families.flatMap((family) => {
      const peers = rows.filter((row) =>
        row.case === name && row.family === family &&
        row.library !== "framezero" &&
        row.ratio !== null
      );
      if (!peers.length) return [];
      const best = peers.reduce((a, b) => a.gigaflops >= b.gigaflops ? a : b);
      const { library, version, runtime, gigaflops, ratio } = best;
      return [[
        name,
        WEBGPU[family],
        `${library} ${version}, ${runtime.split(" ", 1)[0]}`,
        significant(gigaflops),
        significant(gigaflops * (ratio ?? 0)),
        significant(ratio ?? 0),
      ]];
    })
  );
}
