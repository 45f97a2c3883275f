/**
 * Installs the libraries to compare with, and makes the worker a file that Node can run.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { runtime } from "../../core/runtime.ts";

/** A runtime that workers run in. */
export type Host = "deno" | "bun" | "node";

const WORKER = join("bench", "peers", "worker.ts");

/**
 * Installs the packages that `bench/peers/package.json` pins into `folder`, unless they are there.
 * Their install scripts stay unused: they fetch what is not needed here.
 *
 * @returns What went wrong, or `null`.
 */
export async function installPeers(root: string, folder: string): Promise<string | null> {
  const manifest = await readFile(join(root, "bench", "peers", "package.json"), "utf8");
  const done = join(folder, "node_modules", ".installed");
  if (existsSync(done) && await readFile(done, "utf8") === manifest) {
    return null;
  }
  console.log(`installing the peers into ${folder}`);
  await mkdir(folder, { recursive: true });
  await rm(join(folder, "package-lock.json"), { force: true });
  await writeFile(join(folder, "package.json"), manifest);
  const args = ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
  try {
    execFileSync("npm", args, {
      cwd: folder,
      stdio: ["ignore", "ignore", "pipe"],
    });
  } catch (error) {
    return `npm could not install the peers: ${error instanceof Error ? error.message : error}`;
  }
  await writeFile(done, manifest);
  return null;
}

/** The command that starts a worker in a runtime. */
export function workerCommand(host: Host, root: string, folder: string): string[] {
  const worker = join(root, WORKER);
  const program = executable(host, root);
  if (host === "deno") return [program, "run", "-A", worker];
  if (host === "bun") return [program, worker];
  // Node runs TypeScript only from version 22.18 on.
  const bundle = join(folder, "worker.mjs");
  const options = ["--target=node", "--packages=external", `--outfile=${bundle}`];
  execFileSync(executable("bun", root), ["build", worker, ...options], {
    stdio: "ignore",
  });
  return [program, bundle];
}

function executable(host: Host, root: string): string {
  if (host === runtime) return process.execPath;
  const local = join(root, "node_modules", ".bin", host);
  return existsSync(local) ? local : host;
}
