/**
 * The library example of the README runs as it stands there, and what the README promises exists.
 */

import assert from "node:assert/strict";
import { access, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { readSettings } from "../video/writer.ts";
import { schedulerNames } from "../schedulers/mod.ts";

const root = new URL("../", import.meta.url);
const readme = await readFile(new URL("README.md", root), "utf8");

test("the library example runs", async () => {
  const [, example] = /```ts\n([\s\S]*?)```/.exec(readme) ?? [];
  assert.ok(example, "the README has an example in TypeScript");
  const folder = await mkdtemp(join(tmpdir(), "framezero-readme-"));
  const gif = join(folder, "heart.gif");
  const source = example
    .replace('"framezero"', JSON.stringify(new URL("mod.ts", root).href))
    .replace('"heart.gif"', JSON.stringify(gif));
  const file = join(folder, `example_${process.pid}.ts`);
  await writeFile(file, source);
  try {
    await import(pathToFileURL(file).href);
    assert.ok((await stat(gif)).size > 1000);
    const settings = await readSettings(gif);
    assert.deepEqual([settings?.prompt, settings?.fps], ["a red heart in a green meadow", 4]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("files that the README links to exist", async () => {
  const links = [...readme.matchAll(/\]\(([^)#:]+)\)/g)].map(([, path]) => path);
  assert.ok(links.length >= 3);
  for (const path of links) await access(new URL(path, root));
});

test("the README lists all schedulers", () => {
  for (const name of ["ddim", "ddpm", "pndm", "euler", "euler-a", "lms", "heun", "unipc", "lcm"]) {
    assert.ok(schedulerNames.includes(name), name);
    assert.match(readme, new RegExp(`\\b${name}\\b`));
  }
});
