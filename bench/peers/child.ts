/**
 * A contender's process, seen from the parent.
 *
 * @module
 */

import { spawn } from "node:child_process";
import process from "node:process";
import type { Failed, Made, Opened, Reply, Request } from "./protocol.ts";
import { MARK } from "./protocol.ts";

/** A process that answers requests, one at a time. */
export interface Child {
  /**
   * Sends a request and waits for its answer.
   *
   * @throws {Error} if the process says that it failed, ended, or did not answer in time; of the
   * latter two none can be asked again.
   */
  ask(request: Extract<Request, { ask: "open" }>): Promise<Opened>;
  /** The same. */
  ask(request: Extract<Request, { ask: "prepare" }>): Promise<Made>;
  /** The same. */
  ask(request: Extract<Request, { ask: "run" }>): Promise<{ readonly milliseconds: number }>;
  /** Ends it. */
  stop(): void;
}

/** Milliseconds that a request may take. */
const PATIENCE = 600_000;

/** Characters of what a process prints that are kept to explain its end. */
const TAIL = 2000;

/** Starts a process; a command that does not exist fails the first request. */
export function startChild([command, ...args]: readonly string[]): Child {
  const env = { ...process.env, NO_COLOR: "1" };
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"], env });
  let alive = true;
  let printed = "";
  let line = "";
  let settle: ((answer: Reply | Failed) => void) | undefined;
  const end = (error: string) => {
    alive = false;
    child.kill("SIGKILL");
    settle?.({ error });
  };
  const keep = (text: string) => {
    printed = (printed + text).slice(-TAIL);
  };
  child.on("error", (error) => end(`${command} could not be started: ${error.message}`));
  child.on("close", (code, signal) => {
    const lines = printed.trim().split("\n");
    const why = lines.find((line) => /error/i.test(line)) ?? lines[lines.length - 1];
    end(`the process ended (${signal ?? `code ${code}`}): ${why}`);
  });
  child.stdin.on("error", () => {/* "close" tells why */});
  child.stderr.setEncoding("utf8").on("data", keep);
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    const lines = (line + text).split("\n");
    line = lines.pop() ?? "";
    for (const whole of lines) {
      if (whole.startsWith(MARK)) {
        settle?.(JSON.parse(whole.slice(MARK.length)));
      } else keep(`${whole}\n`);
    }
  });
  const ask = async (request: Request) => {
    if (!alive) throw new Error("the process has ended");
    const answer = await new Promise<Reply | Failed>((resolve) => {
      const timer = setTimeout(() => end(`no answer in ${PATIENCE / 1000} s`), PATIENCE);
      settle = (answer) => {
        clearTimeout(timer);
        resolve(answer);
      };
      child.stdin.write(`${JSON.stringify(request)}\n`);
    });
    if ("error" in answer) throw new Error(answer.error);
    return answer;
  };
  return {
    // Each kind of request has its kind of answer: see the worker.
    ask: ask as Child["ask"],
    stop: () => void child.stdin.end(),
  };
}
