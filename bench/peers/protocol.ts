/**
 * What the parent asks a contender's process, and what it answers: one line of JSON each.
 *
 * @module
 */

import type { Setting } from "../setting.ts";
import type { Place } from "./library.ts";
import type { Problem } from "./problems.ts";

/** A line that the parent sends. */
export type Request =
  /** Opens a library; the answer is {@link Opened}. */
  | { readonly ask: "open"; readonly library: string; readonly place: Place }
  /** Prepares a problem and writes the result of one call to `file`; answer: {@link Made}. */
  | {
    readonly ask: "prepare";
    readonly problem: Problem;
    readonly plain: boolean;
    readonly file: string;
  }
  /** Makes so many calls; the answer tells how long they took. */
  | { readonly ask: "run"; readonly calls: number };

/** What was opened. */
export interface Opened {
  /** Version of the library. */
  readonly version: string;
  /** Runtime, its version and its machine. */
  readonly runtime: string;
  /** Adapter and driver that the library finds. */
  readonly adapter: string;
  /** Where and when framezero runs. */
  readonly setting?: Setting;
}

/** What was prepared. */
export interface Made {
  /** How the library computes it; may be empty. */
  readonly note: string;
  /** Whether there is a plain way. */
  readonly hasPlain: boolean;
}

/** Answer to a request that was met. */
export type Reply = Opened | Made | { readonly milliseconds: number };

/** Answer to a request that was not. */
export interface Failed {
  /** What went wrong. */
  readonly error: string;
}

/** Begins each line that is an answer. */
export const MARK = "peer> ";
