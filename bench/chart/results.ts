/**
 * Reading what the bench commands have written with `--json`.
 *
 * @module
 */

import { readFile } from "node:fs/promises";
import { InputError } from "../../core/errors.ts";
import type { Results as KernelResults, Row } from "../kernels.ts";
import type { Results as StepResults } from "../unet_step/report.ts";
import type { Family, Results as PeerResults, Row as PeerRow } from "../peers/report.ts";
import type { Task } from "./bars.ts";

/**
 * Reads a file of `bench/kernels.ts`.
 *
 * @throws {InputError} if it is none.
 */
export function readKernels(file: string): Promise<KernelResults> {
  return read<KernelResults>(file, "bench/kernels.ts", ["adapter", "peaks", "rows"]);
}

/**
 * Reads a file of `bench/unet_step.ts`.
 *
 * @throws {InputError} if it is none.
 */
export function readStep(file: string): Promise<StepResults> {
  return read<StepResults>(file, "bench/unet_step.ts", ["adapter", "evaluation", "kinds"]);
}

/**
 * Reads a file of `bench/peers.ts`.
 *
 * @throws {InputError} if it is none.
 */
export function readPeers(file: string): Promise<PeerResults> {
  return read<PeerResults>(file, "bench/peers.ts", ["settings", "rows"]);
}

async function read<T extends object>(
  file: string,
  writer: string,
  keys: readonly (keyof T & string)[],
): Promise<T> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(file, "utf8"));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new InputError(`${file} must be a JSON file of ${writer}: ${reason}`);
  }
  const isObject = typeof value === "object" && value !== null;
  const missing = keys.find((key) => !isObject || !(key in (value as object)));
  if (missing === undefined) return value as T;
  throw new InputError(
    `${file} must be a JSON file of ${writer}, but it has no "${missing}"; write it with --json`,
  );
}

/** Of each kernel the call on which most time is spent, the most expensive kernel first. */
export function costliest(rows: readonly Row[]): Row[] {
  const spent = ({ calls, milliseconds }: Row) => calls * milliseconds;
  const best = new Map<string, Row>();
  for (const row of rows) {
    const other = best.get(row.kernel);
    if (!other || spent(row) > spent(other)) best.set(row.kernel, row);
  }
  return [...best.values()].sort((a, b) => spent(b) - spent(a));
}

/** The library that is this project. */
const OURS = "framezero";

/** A row that has a time. */
type Timed = PeerRow & { readonly milliseconds: number };

function timed(rows: readonly PeerRow[]): Timed[] {
  return rows.flatMap((row) =>
    row.milliseconds === null ? [] : [{ ...row, milliseconds: row.milliseconds }]
  );
}

function fastest(rows: readonly Timed[]): Timed | undefined {
  return rows.toSorted((a, b) => a.milliseconds - b.milliseconds).at(0);
}

/** `jax-js 0.1, Deno`. */
function nameOf({ library, version, runtime }: PeerRow): string {
  return `${`${library} ${version}`.trim()}, ${runtime.split(" ")[0]}`;
}

/** Who did each case, every library once for each kind of WebGPU: in its fastest runtime. */
export function tasksOf({ rows }: PeerResults): Task[] {
  const all = timed(rows);
  return unique(all.map((row) => row.case)).map((name) => {
    const own = all.filter((row) => row.case === name);
    const keyOf = ({ library, family }: PeerRow) => `${library}|${family}`;
    const best = unique(own.map(keyOf)).flatMap((key) =>
      fastest(own.filter((row) => keyOf(row) === key)) ?? []
    );
    const bars = best.map((row) => ({
      name: nameOf(row),
      milliseconds: row.milliseconds,
      ours: row.library === OURS,
    }));
    return { name, bars };
  });
}

/** This project and the fastest other one, in a case and with one kind of WebGPU. */
export interface Duel {
  /** Name of the case. */
  readonly name: string;
  /** Which WebGPU. */
  readonly family: Family;
  /** Milliseconds of this project. */
  readonly ours: number;
  /** The fastest other library, its version and runtime. */
  readonly peer: string;
  /** Its milliseconds. */
  readonly theirs: number;
}

/** The duels of all cases; where one side has no time there is none. */
export function duelsOf({ rows }: PeerResults): Duel[] {
  const all = timed(rows);
  return unique(all.map((row) => row.case)).flatMap((name) =>
    unique(all.map(({ family }) => family)).flatMap((family) => {
      const own = all.filter((row) => row.case === name && row.family === family);
      const ours = fastest(own.filter(({ library }) => library === OURS));
      const peer = fastest(own.filter(({ library }) => library !== OURS));
      if (!ours || !peer) return [];
      const [mine, theirs] = [ours.milliseconds, peer.milliseconds];
      return [{ name, family, ours: mine, peer: nameOf(peer), theirs }];
    })
  );
}

function unique<T>(values: readonly T[]): T[] {
  return [...new Set(values)];
}
