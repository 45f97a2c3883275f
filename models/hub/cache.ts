/**
 * The cache of Hugging Face's tools on disk, so that Python and framezero share what they fetch:
 * `models--owner--name/` with `blobs/` (content, named by checksum), `snapshots/<commit>/` (names,
 * as links to blobs) and `refs/` (branch or tag → commit).
 *
 * @module
 */

import { fileSystem } from "../../core/byte_source.ts";
import { fileSize, onDisk } from "./disk.ts";

/** The folders of one model in the cache. */
export interface ModelCache {
  /** `models--owner--name`. */
  readonly folder: string;
  /** Where locks lie. */
  readonly locks: string;
}

/** Where the model `id` (a checked one) lies in the cache. */
export function modelCache(cache: string, id: string): ModelCache {
  const name = `models--${id.replace("/", "--")}`;
  return { folder: `${cache}/${name}`, locks: `${cache}/.locks/${name}` };
}

/** The content with this checksum. */
export function blobPath({ folder }: ModelCache, hex: string): string {
  return `${folder}/blobs/${hex}`;
}

/** The folder of one commit. */
export function snapshotPath({ folder }: ModelCache, commit: string): string {
  return `${folder}/snapshots/${commit}`;
}

/** How a name can be given to content: what of `node:fs/promises` is used for it. */
export type Linking = Pick<
  typeof import("node:fs/promises"),
  "mkdir" | "symlink" | "link" | "copyFile" | "rename" | "rm"
>;

/**
 * Gives the content `hex` the path `name` in the snapshot of a commit: by a relative symbolic link,
 * by a hard link where those are not allowed (Windows), by a copy where there are none (exFAT).
 *
 * @throws {InputError} if nothing can be written there.
 */
export async function linkIntoSnapshot(
  model: ModelCache,
  commit: string,
  name: string,
  hex: string,
  size: number,
  linking?: Linking,
): Promise<void> {
  const path = `${snapshotPath(model, commit)}/${name}`;
  if (await fileSize(path) === size) return;
  const fs = linking ?? await fileSystem();
  const blob = blobPath(model, hex);
  const up = "../".repeat(2 + name.split("/").length - 1);
  // Made under another name and renamed: nobody must see a copy that is still growing.
  const fresh = `${path}.${crypto.randomUUID()}`;
  await onDisk(path, async () => {
    await fs.mkdir(path.replace(/\/[^/]*$/, ""), { recursive: true });
    await fs.symlink(`${up}blobs/${hex}`, fresh)
      .catch(() => fs.link(blob, fresh))
      .catch(() => fs.copyFile(blob, fresh));
    try {
      await fs.rename(fresh, path);
    } catch (error) {
      await fs.rm(fresh, { force: true });
      if (await fileSize(path) !== size) throw error;
    }
  }, () => size);
}

/** Notes which commit a branch or tag stands for, unless that is known. */
export async function writeRef(
  { folder }: ModelCache,
  revision: string,
  commit: string,
): Promise<void> {
  if (revision === commit) return;
  const fs = await fileSystem();
  const path = `${folder}/refs/${revision}`;
  if (await fs.readFile(path, "utf8").catch(() => "") === commit) return;
  const fresh = `${path}.${crypto.randomUUID()}`;
  await onDisk(path, async () => {
    await fs.mkdir(path.replace(/\/[^/]*$/, ""), { recursive: true });
    await fs.writeFile(fresh, commit);
    await fs.rename(fresh, path);
  });
}

/** What the cache holds of one commit. */
export interface Snapshot {
  /** Its folder. */
  readonly path: string;
  /** 40 hexadecimal digits. */
  readonly commit: string;
  /** Files that are there, as sorted paths in that folder. */
  readonly names: string[];
}

/** The snapshot that a revision stood for when it was last fetched. */
export async function cachedSnapshot(
  model: ModelCache,
  revision: string,
): Promise<Snapshot | undefined> {
  const fs = await fileSystem();
  const ref = await fs.readFile(`${model.folder}/refs/${revision}`, "utf8").catch(() => revision);
  const commit = ref.trim();
  if (!/^[0-9a-f]{40}$/.test(commit)) return undefined;
  const path = snapshotPath(model, commit);
  const names = await filesIn(path);
  return names.length > 0 ? { path, commit, names: names.sort() } : undefined;
}

/** All files below a folder, as paths in it. */
async function filesIn(path: string): Promise<string[]> {
  const fs = await fileSystem();
  const names: string[] = [];
  for (const folders = [""]; folders.length > 0;) {
    const folder = folders.pop() ?? "";
    for (const entry of await fs.readdir(`${path}/${folder}`).catch(() => [])) {
      const name = folder + entry;
      // A link whose content is gone is neither a file nor a folder.
      if (await fileSize(`${path}/${name}`) !== undefined) names.push(name);
      else folders.push(`${name}/`);
    }
  }
  return names;
}

/** A revision of a model in the cache. */
export interface CachedModel extends Snapshot {
  /** `owner/name`. */
  readonly id: string;
  /** Branch or tag. */
  readonly revision: string;
}

/** All models in the cache, by every branch and tag that was ever fetched. */
export async function cachedModels(cache: string): Promise<CachedModel[]> {
  const fs = await fileSystem();
  const found: CachedModel[] = [];
  for (const name of (await fs.readdir(cache).catch(() => [])).sort()) {
    const id = /^models--(.+)$/.exec(name)?.[1].replace("--", "/");
    if (id === undefined) continue;
    const model = modelCache(cache, id);
    for (const revision of (await filesIn(`${model.folder}/refs`)).sort()) {
      const snapshot = await cachedSnapshot(model, revision);
      if (snapshot) found.push({ id, revision, ...snapshot });
    }
  }
  return found;
}
