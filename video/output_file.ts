/**
 * Files and folders that appear only when they are whole: written under a temporary name in the
 * same place, renamed at the end, removed on failure. Errors of the disk become sentences.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { ByteSink } from "./frame.ts";

/** Something being written under a temporary name. */
export interface Output {
  /** Where it will be. */
  readonly path: string;
  /** Bytes written so far. */
  size(): number;
  /** Closes what is open, so that nothing of the content is missing on disk. */
  flush(): Promise<void>;
  /** Gives it its name. Called once, after `flush`. */
  commit(): Promise<void>;
  /** Removes what was written and not committed; safe to call at any time. */
  discard(): Promise<void>;
}

/** One file being written. */
export interface OutputFile extends Output, ByteSink {}

/** A folder of files being written. */
export interface OutputFolder extends Output {
  /** Writes one whole file of the folder. */
  writeFile(name: string, bytes: Uint8Array): Promise<void>;
}

/** Node's functions for files and for their names. */
export interface Disk {
  /** `node:fs/promises` */
  fs: typeof import("node:fs/promises");
  /** `node:path` */
  path: typeof import("node:path");
}

/**
 * The disk, loaded when first needed so that browsers can load this module.
 *
 * @throws {InputError} in a runtime without one.
 */
export async function disk(): Promise<Disk> {
  try {
    return { fs: await import("node:fs/promises"), path: await import("node:path") };
  } catch (cause) {
    throw new InputError("video files need Deno, Bun or Node: this runtime has no disk", { cause });
  }
}

function errorCode(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

/** What is at `path`: `undefined` if nothing. */
async function kindAt(path: string): Promise<"file" | "folder" | "device" | undefined> {
  const { fs } = await disk();
  try {
    const found = await fs.stat(path);
    return found.isDirectory() ? "folder" : found.isFile() ? "file" : "device";
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(errorCode(error))) return undefined;
    throw diskError(error, path);
  }
}

/** Whether `path` is an existing folder. */
export async function isFolder(path: string): Promise<boolean> {
  return await kindAt(path) === "folder";
}

/** `error` as an {@link InputError} about `path`, if it comes from the disk; else unchanged. */
export function diskError(error: unknown, path: string): unknown {
  const reasons: Record<string, string> = {
    ENOSPC: "the disk is full: free some space, or choose another place",
    EDQUOT: "the disk quota is used up: free some space, or choose another place",
    EACCES: "permission denied: choose another place, or change its permissions",
    EPERM: "permission denied: choose another place, or change its permissions",
    EROFS: "the disk is read-only: choose another place",
    ENOENT: "there is no such file or folder",
    ENAMETOOLONG: "the name is too long",
    EFBIG: "the file has become too large for this disk",
    EIO: "the disk reports a hardware error: choose another place",
  };
  const code = errorCode(error);
  const denied = error instanceof Error && error.name === "NotCapable" ? error.message : undefined;
  const reason = denied ?? reasons[code];
  if (error instanceof InputError || (!reason && !/^E[A-Z0-9]+$/.test(code))) return error;
  return new InputError(`${path}: ${reason ?? code}`, { cause: error });
}

/** Runs `action`, giving errors of the disk the name of `path`. */
async function onDisk<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw diskError(error, path);
  }
}

/** The folder that holds `path`. */
async function parentOf(path: string): Promise<string> {
  const names = (await disk()).path;
  return names.dirname(names.resolve(path));
}

/** A name, not in use, for what is not finished yet. */
function temporaryName(): string {
  return `.framezero-${crypto.randomUUID().slice(0, 8)}.part`;
}

/** Refuses unless something can be made in `folder`; making it is the only test that holds. */
async function checkWritable(folder: string): Promise<void> {
  if (!await isFolder(folder)) {
    throw new InputError(`the folder to write into must exist: create ${folder} first`);
  }
  const { fs } = await disk();
  const probe = `${folder}/${temporaryName()}`;
  await onDisk(folder, () => fs.mkdir(probe));
  await onDisk(folder, () => fs.rmdir(probe));
}

/** Refuses what is at `path`, if it is no file or must not be overwritten. */
async function checkFileFree(path: string, overwrite: boolean): Promise<void> {
  const kind = await kindAt(path);
  if (kind === "file" && !overwrite) {
    throw new InputError(`${path} exists already: allow overwriting it, or choose another name`);
  }
  if (kind === "folder" || kind === "device") {
    throw new InputError(`${path} is a ${kind} and cannot be replaced: choose another name`);
  }
}

/** Refuses an existing folder that holds `owned` files, if these must not be overwritten. */
async function checkFolderFree(path: string, overwrite: boolean, owned: RegExp): Promise<void> {
  const kind = await kindAt(path);
  if (kind === undefined) return;
  if (kind !== "folder") throw new InputError(`${path} is not a folder: choose another name`);
  const { fs } = await disk();
  const found = (await onDisk(path, () => fs.readdir(path))).find((name) => owned.test(name));
  if (found && !overwrite) {
    throw new InputError(
      `${path} holds ${found} already: allow overwriting, or choose another folder`,
    );
  }
}

/**
 * Refuses a file that could not be written at `path`, before anything is computed for it.
 *
 * @throws {InputError} no folder to hold it, not writable, or something there already that is not
 * a file or must not be overwritten.
 */
export async function checkFile(path: string, overwrite: boolean): Promise<void> {
  await checkFileFree(path, overwrite);
  await checkWritable(await parentOf(path));
}

/**
 * Refuses a folder that could not take `owned` files, before anything is computed for it.
 *
 * @param owned which names in an existing folder would be replaced.
 * @throws {InputError} as for {@link checkFile}.
 */
export async function checkFolder(
  path: string,
  overwrite: boolean,
  owned: RegExp,
): Promise<void> {
  await checkFolderFree(path, overwrite, owned);
  await checkWritable(await isFolder(path) ? path : await parentOf(path));
}

/**
 * Starts a file that will be at `path`.
 *
 * @throws {InputError} as {@link checkFile}; later, from its methods, when the disk fails.
 */
export async function openOutputFile(path: string, overwrite: boolean): Promise<OutputFile> {
  await checkFile(path, overwrite);
  const { fs } = await disk();
  const temporary = `${await parentOf(path)}/${temporaryName()}`;
  const handle = await onDisk(path, () => fs.open(temporary, "wx"));
  let size = 0;
  let state: "open" | "closed" | "done" = "open";

  const flush = async (): Promise<void> => {
    if (state !== "open") return;
    state = "closed";
    await onDisk(path, () => handle.close());
  };
  return {
    path,
    size: () => size,
    async write(bytes, position = size) {
      size = Math.max(size, position + bytes.length);
      await onDisk(path, async () => {
        for (let done = 0; done < bytes.length;) {
          const { bytesWritten } = await handle.write(
            bytes,
            done,
            bytes.length - done,
            position + done,
          );
          done += bytesWritten;
        }
      });
    },
    flush,
    async commit() {
      await checkFileFree(path, overwrite);
      await onDisk(path, () => fs.rename(temporary, path));
      state = "done";
    },
    async discard() {
      if (state === "done") return;
      await flush().catch(() => {});
      await fs.rm(temporary, { force: true });
    },
  };
}

/**
 * Starts a folder of files that will be at `path`. A folder that is there already is kept, with
 * everything in it that is not `owned`: the files are then written into a folder inside it and
 * moved out at the end, after its old `owned` files are removed.
 *
 * @throws {InputError} as {@link checkFolder}; later, from its methods, when the disk fails.
 */
export async function openOutputFolder(
  path: string,
  overwrite: boolean,
  owned: RegExp,
): Promise<OutputFolder> {
  await checkFolder(path, overwrite, owned);
  const { fs } = await disk();
  const existing = await isFolder(path);
  const temporary = `${existing ? path : await parentOf(path)}/${temporaryName()}`;
  await onDisk(path, () => fs.mkdir(temporary));
  let size = 0;
  let done = false;

  const moveOut = async (): Promise<void> => {
    for (const name of await fs.readdir(path)) {
      if (owned.test(name)) await fs.rm(`${path}/${name}`);
    }
    for (const name of await fs.readdir(temporary)) {
      await fs.rename(`${temporary}/${name}`, `${path}/${name}`);
    }
    await fs.rmdir(temporary);
  };
  return {
    path,
    size: () => size,
    async writeFile(name, bytes) {
      size += bytes.length;
      await onDisk(path, () => fs.writeFile(`${temporary}/${name}`, bytes));
    },
    async flush() {},
    async commit() {
      await checkFolderFree(path, overwrite, owned);
      await onDisk(path, existing ? moveOut : () => fs.rename(temporary, path));
      done = true;
    },
    async discard() {
      if (!done) await fs.rm(temporary, { recursive: true, force: true });
    },
  };
}

/** Writes a text file, whole or not at all. */
export async function writeText(path: string, text: string, overwrite: boolean): Promise<void> {
  const file = await openOutputFile(path, overwrite);
  try {
    await file.write(new TextEncoder().encode(text));
    await file.flush();
    await file.commit();
  } finally {
    await file.discard();
  }
}
