/**
 * From times to choices: the value of each decision whose ways take the least time in all.
 *
 * @module
 */

import { describeChoice } from "../../kernels/tuned_variants.ts";
import type { VariantChoices } from "../../kernels/variants.ts";
import { type Column, significant, textHead, textRow } from "../table.ts";
import { median } from "../timing.ts";
import type { Decision, Value } from "./decisions.ts";
import { describeCall, type Failures, type Times } from "./trial.ts";

/** A call timed in one way. */
export interface TimedCall {
  /** Name of the way. */
  readonly way: string;
  /** Kernel and shapes. */
  readonly call: string;
  /** Median of the rounds. */
  readonly milliseconds: number;
  /** Median of its time divided by that of the table's way; `null` where that failed. */
  readonly ratio: number | null;
}

/** What came out for one decision. */
export interface Verdict {
  /** Name of the decision. */
  readonly title: string;
  /** All that was timed. */
  readonly calls: readonly TimedCall[];
  /** Ways that were left out, and why. */
  readonly dropped: readonly { readonly way: string; readonly why: string }[];
  /** What to use instead of the table's value; `null`: nothing else is worth it. */
  readonly better: Partial<VariantChoices> | null;
  /** Median of the time of `better` divided by the table's; `null` where that failed. */
  readonly ratio: number | null;
}

/** What a value must save for the table to be left. */
const GAIN = 0.05;

/** Decides: rounds are compared with each other, and calls count as often as a model makes them. */
export function judge(
  { title, workloads, values }: Decision,
  times: readonly Times[],
  failures: Failures,
): Verdict {
  const [table, ...others] = values;
  const usable = (value: Value) => value.ways.every((way) => !failures.has(way));
  const totals = (value: Value): number[] => {
    const perCall = workloads.map(({ calls }, i) =>
      times[i].get(value.ways[i])?.map((milliseconds) => calls * milliseconds) ?? []
    );
    return perCall[0].map((_, round) => perCall.reduce((sum, rounds) => sum + rounds[round], 0));
  };
  const reference = usable(table) ? totals(table) : null;
  const scores = others.filter(usable).map((value) => {
    const rounds = totals(value);
    return { value, rounds: reference ? over(rounds, reference) : rounds };
  });
  const winners = scores.filter(({ rounds }) => !reference || isGain(rounds))
    .sort((a, b) => median(a.rounds) - median(b.rounds));
  const best = winners.length ? winners[0] : null;
  return {
    title,
    calls: workloads.flatMap((workload, i) => {
      const own = times[i].get(table.ways[i]);
      return [...times[i]].map(([way, rounds]): TimedCall => ({
        way: way.name,
        call: describeCall(workload),
        milliseconds: median(rounds),
        ratio: own ? median(over(rounds, own)) : null,
      }));
    }),
    dropped: [...failures].map(([{ name }, why]) => ({ way: name, why })),
    better: best && best.value.choices,
    ratio: best && reference && median(best.rounds),
  };
}

/** Whether the table's choice is beaten in every round, and by more than noise. */
function isGain(ratios: readonly number[]): boolean {
  return median(ratios) <= 1 - GAIN && ratios.every((ratio) => ratio < 1);
}

function over(times: readonly number[], reference: readonly number[]): number[] {
  return times.map((time, i) => time / reference[i]);
}

const COLUMNS: readonly Column[] = [
  { title: "way", width: 34, align: "left" },
  { title: "call", width: 48, align: "left" },
  { title: "median ms", width: 9, align: "right" },
  { title: "to table", width: 8, align: "right" },
];

/** A verdict for people. */
export function describeVerdict({ title, calls, dropped, better, ratio }: Verdict): string {
  const rows = calls.map(({ way, call, milliseconds, ratio }) =>
    textRow(COLUMNS, [way, call, significant(milliseconds), ratio?.toFixed(2) ?? "–"])
  );
  const end = better
    ? `better: ${describeChoices(better)}${ratio === null ? "" : ` (${ratio.toFixed(2)})`}`
    : "the table's choice stays";
  const lost = dropped.map(({ way, why }) => `left out: ${way}: ${why}`);
  return [`\n${title}`, textHead(COLUMNS), ...rows, ...lost, end].join("\n");
}

/** `gemm windows; block 16×8`. */
export function describeChoices(choices: Partial<VariantChoices>): string {
  return Object.entries(choices).map(([name, value]) => `${name} ${describeChoice(value)}`)
    .join("; ");
}
