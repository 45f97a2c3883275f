/**
 * The disk below the cache: what its errors mean, and whether there is room.
 *
 * @module
 */

import { fileSystem, reasonOf } from "../../core/byte_source.ts";
import { InputError } from "../../core/errors.ts";

/** `4.27 GB`: how amounts of data are written in messages. */
export function sizeText(bytes: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  return `${power ? (bytes / 1000 ** power).toFixed(2) : bytes} ${units[power]}`;
}

/** The code of a system error, such as `"ENOENT"`; empty for other things. */
export function codeOf(error: unknown): string {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" ? code : "";
}

const ELSEWHERE = "set HF_HOME or HF_HUB_CACHE to a folder on another disk";

/**
 * Turns an error of the file system into a sentence.
 *
 * @param path What could not be written.
 * @param missing Bytes that are still to be written there.
 */
export function diskError(error: unknown, path: string, missing?: number): InputError {
  const code = codeOf(error);
  const needed = missing === undefined ? "" : `${sizeText(missing)} more are needed; `;
  if (code === "ENOSPC" || code === "EDQUOT") {
    return new InputError(
      `${path}: the disk is full or your quota is used up; ${needed}free that much there, or ` +
        `${ELSEWHERE}, and run this again: it continues where it stopped`,
      { cause: error },
    );
  }
  if (code === "EROFS" || code === "EACCES" || code === "EPERM") {
    return new InputError(
      `${path}: the cache must be writable to download into it, it is not (${code}); change its ` +
        `permissions, or ${ELSEWHERE}; with HF_HUB_OFFLINE=1 only what it holds is used`,
      { cause: error },
    );
  }
  return new InputError(
    `${path}: cannot be written (${reasonOf(error)}); check the disk, or ${ELSEWHERE}`,
    { cause: error },
  );
}

/** Runs `action` on the file system; its errors become sentences about `path`. */
export async function onDisk<T>(
  path: string,
  action: () => Promise<T>,
  missing?: () => number,
): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw diskError(error, path, missing?.());
  }
}

/**
 * Makes sure that `bytes` fit into `folder`, which need not exist yet.
 *
 * @throws {InputError} with both amounts if they do not.
 */
export async function checkSpace(folder: string, bytes: number): Promise<void> {
  const free = await freeBytes(folder);
  if (free === undefined || bytes <= free) return;
  throw new InputError(
    `${folder}: the disk must have room for ${sizeText(bytes)}, only ${sizeText(free)} are free; ` +
      `free ${sizeText(bytes - free)} there, or ${ELSEWHERE}`,
  );
}

/** Undefined where the system does not tell: then writing will show. */
async function freeBytes(folder: string): Promise<number | undefined> {
  const fs = await fileSystem();
  for (let path = folder; path; path = path.replace(/(^|[/\\])[^/\\]*$/, "")) {
    const stat = await fs.statfs(path).catch(() => undefined);
    if (stat) return stat.bavail * stat.bsize;
  }
  const root = await fs.statfs(folder.startsWith("/") ? "/" : ".").catch(() => undefined);
  return root && root.bavail * root.bsize;
}

/** Length of the file at `path`; undefined if there is none. */
export async function fileSize(path: string): Promise<number | undefined> {
  const fs = await fileSystem();
  try {
    const stat = await fs.stat(path);
    return stat.isFile() ? stat.size : undefined;
  } catch {
    return undefined;
  }
}
