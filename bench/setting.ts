/**
 * Where and when a measurement was made.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import type { Device } from "../core/device.ts";
import { describeRuntime } from "../core/runtime.ts";

/** Where and when a measurement was made. */
export interface Setting {
  /** ISO 8601. */
  readonly date: string;
  /** Adapter and driver. */
  readonly adapter: string;
  /** `"native"`: the runtime's own WebGPU. `"dawn"`: npm `webgpu`. */
  readonly implementation: "native" | "dawn";
  /** Runtime, its version and its machine. */
  readonly runtime: string;
  /** Commit of the sources, `+` where they were changed since; `null` outside a repository. */
  readonly commit: string | null;
}

/** The setting of a measurement on `device`. */
export function settingOf({ info }: Device): Setting {
  return {
    date: new Date().toISOString(),
    adapter: info.description,
    implementation: info.implementation,
    runtime: describeRuntime(),
    commit: commit(),
  };
}

/** The setting in words. */
export function describeSetting(setting: Setting): string {
  const { adapter, implementation, runtime, date, commit } = setting;
  return `${adapter}, ${implementation} WebGPU, ${runtime}, ${date.slice(0, 10)}` +
    (commit ? `, commit ${commit}` : "");
}

function commit(): string | null {
  const git = (...args: string[]) =>
    execFileSync("git", args, {
      cwd: import.meta.dirname,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    }).trim();
  try {
    return git("rev-parse", "--short", "HEAD") + (git("status", "--porcelain") ? "+" : "");
  } catch {
    return null;
  }
}
