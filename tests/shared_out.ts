/**
 * Cases that run under one of the two runtimes of `run.ts`, where the subject is arithmetic.
 *
 * @module
 */

import { runtime } from "../core/runtime.ts";

/** Every second case: those at even places under Deno, those at odd places under Bun. */
export function sharedOut<T>(cases: readonly T[]): T[] {
  const first = runtime === "bun" ? 1 : 0;
  return cases.filter((_, i) => i % 2 === first);
}
