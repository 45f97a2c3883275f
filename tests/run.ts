/**
 * Runs the test files under Deno and Bun, and adds up what they say.
 * What failed is told once more at the end; the last line is `N passed, N failed`; the exit status
 * is 1 if anything failed.
 *
 * Everything runs at once, Deno's files in two processes: each waits for the GPU half of its time.
 *
 * Files that make whole clips run under one of the two: what they test is the arithmetic, which is
 * the adapter's in both. `shared_out.ts` does so with the cases of a file, whoever runs it. All files
 * run under either with `deno test -A tests`, `bun test ./tests`.
 */

import { readdir } from "node:fs/promises";
import { spawn } from "node:child_process";
import process from "node:process";

/** How a runner is called, and what it prints. */
interface Runner {
  readonly name: string;
  readonly command: readonly string[];
  /** Its last lines: how many tests passed and failed. */
  readonly passed: RegExp;
  readonly failed: RegExp;
  /** What it says of failures. */
  readonly failures: RegExp;
}

/** What came of a runner. */
interface Outcome {
  readonly passed: number;
  readonly failed: number;
  /** What it said of failures. */
  readonly failures: string;
}

/** Tests of arithmetic and of whole clips, by the runtime that they are left to. */
const ALONE: Readonly<Record<string, readonly string[]>> = {
  Deno: ["canvas_video", "controls_cli", "frame_attention", "lora_use", "preview", "schedulers"],
  Bun: [
    ...["control_branch", "controlled_memory", "controlled_video", "edit_cli", "edit_guidance"],
    ...["feature_reuse", "frame_rate", "inpainting", "instruct_pix2pix", "long_video", "memory"],
    ...["merging", "motion_field", "prompt_travel", "samplers_video", "smoothing"],
    ...["smoothing_cli", "start_image", "text_to_video"],
  ],
};

const files = (await readdir(new URL(".", import.meta.url)))
  .filter((name) => name.endsWith("_test.ts")).sort();

/** The test files of a runtime: all but those that are left to the other. */
function filesOf(name: string): string[] {
  const others = Object.entries(ALONE).filter(([runtime]) => runtime !== name)
    .flatMap(([, tests]) => tests.map((test) => `${test}_test.ts`));
  return files.filter((file) => !others.includes(file)).map((file) => `./tests/${file}`);
}

/** How many processes share Deno's files. */
const DENOS = 2;

const deno = (share: number): Runner => ({
  name: `Deno (${share + 1} of ${DENOS})`,
  command: ["deno", "test", "-A", ...filesOf("Deno").filter((_, i) => i % DENOS === share)],
  passed: /(\d+) passed/g,
  failed: /(\d+) failed/g,
  failures: /^ ERRORS $.*/gms,
});

const bun: Runner = {
  name: "Bun",
  command: ["bun", "test", "--timeout", "120000", ...filesOf("Bun")],
  passed: /^\s*(\d+) pass$/gm,
  failed: /^\s*(\d+) fail$/gm,
  failures: /^(?:(?!\(pass\)|\(fail\)).*\n)*\(fail\) .*/gm,
};

const RUNNERS = [...Array.from({ length: DENOS }, (_, share) => deno(share)), bun];

/** Runs the tests, telling `say` what they print. */
async function run(
  { name, command, passed, failed, failures }: Runner,
  say: (text: string) => void,
): Promise<Outcome> {
  say(`\n${name}: ${command.slice(0, 3).join(" ")} …\n`);
  const [program, ...args] = command;
  const path = `node_modules/.bin:${process.env.PATH}`;
  const env = { ...process.env, PATH: path, NO_COLOR: "1" };
  const child = spawn(program, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      say(chunk);
    });
  }
  const status = await new Promise<number | string | null>((resolve, reject) => {
    child.on("error", reject).on("close", (code, signal) => resolve(signal ?? code));
  });
  const last = (pattern: RegExp) => Number([...text.matchAll(pattern)].at(-1)?.[1] ?? 0);
  const outcome = {
    passed: last(passed),
    failed: last(failed),
    failures: [...text.matchAll(failures)].map(([told]) => told).join("\n"),
  };
  // Mesa's exit handlers race with its own threads: now and then Deno is aborted by them after it
  // has printed its verdict. Whatever else breaks off has failed, whatever it counted.
  const aborted = status === "SIGABRT" || status === 134;
  if (aborted && outcome.passed > 0 && /^ok \| .* 0 failed/m.test(text)) {
    say(`${name} was aborted by the GPU driver after its last test, at its exit\n`);
  } else if (status !== 0 && outcome.failed === 0) {
    outcome.failed = 1;
    outcome.failures = `ended with ${status}; its last words: ${text.slice(-2000)}`;
  }
  return outcome;
}

// The first one's output is shown as it comes, that of the others when all have ended.
const [first, ...others] = RUNNERS;
const held = others.map(() => "");
const outcomes = await Promise.all([
  run(first, (text) => process.stdout.write(text)),
  ...others.map((runner, i) => run(runner, (text) => held[i] += text)),
]);
process.stdout.write(held.join(""));
// Once more at the end, where they are seen.
outcomes.forEach(({ failures }, i) => {
  if (failures) console.log(`\n${RUNNERS[i].name}, failures:\n${failures}`);
});
const total = (count: "passed" | "failed") =>
  outcomes.reduce((sum, outcome) => sum + outcome[count], 0);
console.log(`\n${total("passed")} passed, ${total("failed")} failed`);
process.exitCode = total("failed") > 0 ? 1 : 0;
