/**
 * Runs the same test files under Deno and Bun and adds up what they say.
 * The last line is `N passed, N failed`; the exit status is 1 if anything failed.
 */

import { spawn } from "node:child_process";
import process from "node:process";

/** How a runner is called, and where its last lines say how many tests passed and failed. */
interface Runner {
  readonly name: string;
  readonly command: readonly string[];
  readonly passed: RegExp;
  readonly failed: RegExp;
}

const RUNNERS: readonly Runner[] = [
  {
    name: "Deno",
    command: ["deno", "test", "-A", "tests"],
    passed: /(\d+) passed/g,
    failed: /(\d+) failed/g,
  },
  {
    name: "Bun",
    command: ["bun", "test", "--timeout", "120000", "./tests"],
    passed: /^\s*(\d+) pass$/gm,
    failed: /^\s*(\d+) fail$/gm,
  },
];

async function run({ name, command, passed, failed }: Runner): Promise<[number, number]> {
  console.log(`\n${name}: ${command.join(" ")}`);
  const [program, ...args] = command;
  const path = `node_modules/.bin:${process.env.PATH}`;
  const env = { ...process.env, PATH: path, NO_COLOR: "1" };
  const child = spawn(program, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      process.stdout.write(chunk);
    });
  }
  const status = await new Promise<number | string | null>((resolve, reject) => {
    child.on("error", reject).on("close", (code, signal) => resolve(signal ?? code));
  });
  const last = (pattern: RegExp) => Number([...text.matchAll(pattern)].at(-1)?.[1] ?? 0);
  const counts: [number, number] = [last(passed), last(failed)];
  // Mesa's exit handlers race with its own threads: now and then Deno is aborted by them after it
  // has printed its verdict. Whatever else breaks off has failed, whatever it counted.
  const aborted = status === "SIGABRT" || status === 134;
  if (aborted && counts[0] > 0 && /^ok \| .* 0 failed/m.test(text)) {
    console.log(`${name} was aborted by the GPU driver after its last test, at its exit`);
  } else if (status !== 0 && counts[1] === 0) {
    counts[1] = 1;
  }
  return counts;
}

let passed = 0;
let failed = 0;
for (const runner of RUNNERS) {
  const [ok, broken] = await run(runner);
  passed += ok;
  failed += broken;
}
console.log(`\n${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
