/**
 * What the measurement of an evaluation says, in words and tables.
 *
 * @module
 */

import { describeSetting, type Setting } from "../setting.ts";
import { type Column, markdownTable, percent, significant, textHead, textRow } from "../table.ts";
import type { Peaks } from "../timing.ts";
import type { Evaluation } from "./evaluation.ts";
import { type CallTime, type KindTime, timeOf } from "./kinds.ts";

/** What is written with `--json`. */
export interface Results extends Setting {
  /** Name of the model. */
  readonly model: string;
  /** Side of the picture in pixels. */
  readonly size: number;
  /** Rows of the batch. */
  readonly rows: number;
  /** Type of weights and activations. */
  readonly dtype: "f32" | "f16";
  /** Measurements that medians are taken of. */
  readonly runs: number;
  /** Numbers in the model's weights. */
  readonly parameters: number;
  /** Milliseconds to draw or read the weights and upload them. */
  readonly load: number;
  /** What the adapter reached in the probes. */
  readonly peaks: Peaks;
  /** The evaluation as a whole. */
  readonly evaluation: Evaluation;
  /** Its work by kind, the costliest first. */
  readonly kinds: readonly KindTime[];
  /** Its calls, each measured alone. */
  readonly calls: readonly CallTime[];
}

const COLUMNS: readonly Column[] = [
  { title: "kind", width: 17, align: "left" },
  { title: "calls", width: 5, align: "right" },
  { title: "GFLOP", width: 7, align: "right" },
  { title: "ms", width: 8, align: "right" },
  { title: "share", width: 6, align: "right" },
  { title: "GFLOP/s", width: 7, align: "right" },
  { title: "of peak", width: 7, align: "right" },
  { title: "alone ms", width: 8, align: "right" },
  { title: "alone/ms", width: 8, align: "right" },
];

/** What stands above and below the table. */
function describe(results: Results): { head: string[]; foot: string } {
  const { model, size, rows, runs, parameters, load, peaks, evaluation, kinds } = results;
  const { dispatches, submissions, syncs, pipelines, wall, busy, hostShare } = evaluation;
  const flops = sum(kinds.map((kind) => kind.flops));
  const rate = flops / wall / 1e6;
  const head = [
    `${model}: UNet at ${size}², ${rows} row${rows > 1 ? "s" : ""}, ` +
    `${significant(parameters / 1e6)} million parameters, loaded in ${significant(load / 1e3)} s`,
    `one evaluation: ${significant(wall)} ms (median of ${runs}, spread ` +
    `${percent(evaluation.spread)}) for ${significant(flops / 1e9)} GFLOP, ` +
    `${significant(rate)} GFLOP/s, ${percent(rate / peaks.gigaflops)} of the ` +
    `${significant(peaks.gigaflops)} GFLOP/s that multiply-adds reach`,
    `${dispatches} dispatches, ${submissions} submissions, ${syncs} wait${syncs > 1 ? "s" : ""} ` +
    `of the host, ${pipelines} pipelines, ${significant(evaluation.peakBytes / 2 ** 20)} MiB at ` +
    `most`,
    `host: ${significant(evaluation.record)} ms to record, ${significant(evaluation.encode)} ms ` +
    `to encode a replay, ${significant(evaluation.submit)} ms within its submissions; ` +
    `the first replay took ${significant(evaluation.first)} ms`,
    busy === null || hostShare === null
      ? "this adapter has no timestamps to trust: times by kind are those of calls alone"
      : `GPU busy for ${significant(busy)} ms, host share ` +
        (hostShare < 0 ? "too small to be measured" : percent(hostShare)),
  ];
  const best = sum(kinds.map(({ alone }) => alone));
  const foot = `kernels' best rates ÷ evaluation: ${significant(best)} ms ÷ ${significant(wall)} ` +
    `ms = ${percent(best / wall)}`;
  return { head, foot };
}

function tableOf({ kinds, peaks }: Results): string[][] {
  const whole = sum(kinds.map(timeOf));
  return kinds.map((kind) => {
    const milliseconds = timeOf(kind);
    const rate = kind.flops / milliseconds / 1e6;
    return [
      kind.kind,
      String(kind.calls),
      significant(kind.flops / 1e9),
      significant(milliseconds),
      percent(milliseconds / whole),
      significant(rate),
      percent(rate / peaks.gigaflops),
      significant(kind.alone),
      percent(kind.alone / milliseconds),
    ];
  });
}

function sum(values: readonly number[]): number {
  return values.reduce((all, value) => all + value, 0);
}

/** The report for a terminal, without the setting. */
export function plainText(results: Results): string {
  const { head, foot } = describe(results);
  const rows = tableOf(results).map((cells) => textRow(COLUMNS, cells));
  return [...head, "", textHead(COLUMNS), ...rows, "", foot].join("\n");
}

/** The whole report in Markdown. */
export function markdown(results: Results): string {
  const { head, foot } = describe(results);
  const list = head.map((line) => `- ${line}`).join("\n");
  const setting = `${describeSetting(results)}, ${results.dtype}`;
  return `${setting}\n\n${list}\n\n${markdownTable(COLUMNS, tableOf(results))}\n\n${foot}\n`;
}
