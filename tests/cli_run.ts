/**
 * Running command lines of framezero inside a test's own process.
 *
 * @module
 */

import assert from "node:assert/strict";
import type { CommandIo } from "../video/cli/io.ts";
import { main } from "../video/cli.ts";

/** What a command line did. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command line in this process; `onText` sees what comes on stderr. */
export async function run(
  args: string[],
  onText: (text: string, abort: AbortController) => void = () => {},
  isTTY = false,
): Promise<Outcome> {
  const abort = new AbortController();
  let stdout = "", stderr = "";
  const io: CommandIo = {
    stdout: (text) => void (stdout += text),
    stderr(text) {
      stderr += text;
      onText(text, abort);
    },
    isTTY,
    columns: 80,
    signal: abort.signal,
    debug: false,
  };
  return { code: await main(args, io), stdout, stderr };
}

/** Fails unless the command ends with `code` and one line that matches. */
export async function refused(args: string[], code: number, message: RegExp): Promise<void> {
  const outcome = await run(args);
  assert.match(outcome.stderr, /^framezero: [^\n]+\n$/, args.join(" "));
  assert.match(outcome.stderr, message);
  assert.equal(outcome.code, code, outcome.stderr);
  assert.equal(outcome.stdout, "");
}
