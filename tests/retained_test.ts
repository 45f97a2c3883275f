/**
 * What a long clip still holds in the host's memory while it is made.
 */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { runtime } from "../core/runtime.ts";

test("a long clip lets go of frames that are written and of windows that are done", async () => {
  const folder = await mkdtemp(join(tmpdir(), "framezero-retained-"));
  try {
    const script = fileURLToPath(new URL("retained.ts", import.meta.url));
    const deno = runtime === "deno" ? ["run", "-A", "--no-check"] : [];
    const args = [...deno, script, join(folder, "clip.mp4")];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    const { frames, windows, results } = JSON.parse(stdout);
    // Of 40 frames, 6 windows and 40 results: those at hand, and what a compiler's frame keeps.
    assert.ok(frames <= 3 && windows <= 2 && results <= 1, stdout);
  } finally {
    await rm(folder, { recursive: true });
  }
});
