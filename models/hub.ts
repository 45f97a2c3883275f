/**
 * Fetching models from the Hugging Face Hub, or from any address, into the cache that Python's
 * tools use too: each file once, continued after a break, checked before it is used.
 *
 * @module
 */

import { fileSystem } from "../core/byte_source.ts";
import { InputError, WeightError } from "../core/errors.ts";
import {
  blobPath,
  cachedSnapshot,
  linkIntoSnapshot,
  type ModelCache,
  modelCache,
  snapshotPath,
  writeRef,
} from "./hub/cache.ts";
import { checkSpace, fileSize, onDisk } from "./hub/disk.ts";
import { type HubOptions, hubSettings, type TransferTuning } from "./hub/environment.ts";
import { type Client, makeClient, publicUrl, type Subject, Unreachable } from "./hub/http.ts";
import { partialOf, rangeBytes, readJournal } from "./hub/journal.ts";
import { type FileFacts, type Listing, listModel, probeFile } from "./hub/listing.ts";
import { withLock } from "./hub/lock.ts";
import {
  checkFileName,
  checkModelId,
  checkRevision,
  isModelId,
  isSafePath,
  quoted,
} from "./hub/names.ts";
import {
  type DownloadProgress,
  type ProgressListener,
  type Tracker,
  trackProgress,
} from "./hub/progress.ts";
import { type ModelReference, parseModelReference } from "./hub/reference.ts";
import { CONVERT_PICKLES, isPickle, neededFiles } from "./hub/selection.ts";
import { type Digest, type RemoteFile, transfer } from "./hub/transfer.ts";

export { neededFiles, parseModelReference };
export type { DownloadProgress, HubOptions, ModelReference, ProgressListener, TransferTuning };

/** Which model to fetch. */
export interface ModelDownload extends HubOptions {
  /** `owner/name`. */
  readonly id: string;
  /** Branch, tag or commit. Default `"main"`. */
  readonly revision?: string;
  /** Precision to prefer where the repository has it, such as `"fp16"`. */
  readonly variant?: string;
  /** Picks names from those in the repository. Default: {@link neededFiles}. */
  readonly files?: (names: readonly string[]) => readonly string[];
}

/** A model in the cache. */
export interface DownloadedModel {
  /** Path of `snapshots/<commit>`. */
  readonly folder: string;
  /** The commit that the revision stands for, 40 hexadecimal digits. */
  readonly commit: string;
  /** What was asked for, as paths in that folder. */
  readonly files: readonly string[];
}

/** How to fetch one file. */
export interface FileDownload extends HubOptions {
  /** What the file's sha256 must be, 64 hexadecimal digits. */
  readonly sha256?: string;
}

/** A file in the cache. */
export interface DownloadedFile {
  /** Its path. */
  readonly path: string;
  /** Its sha256, if the caller or the server told it; else `null`. */
  readonly sha256: string | null;
}

/** A file of a repository, ready to be fetched, and where its content goes. */
interface Wanted extends RemoteFile {
  readonly digest: Digest;
  readonly blob: string;
}

/**
 * Fetches the files of a model that the cache does not hold yet. If the Hub cannot be reached, or
 * must not, what was fetched before is used.
 *
 * @throws {InputError} if there is no such model, no access, no network, or no room on the disk.
 * @throws {WeightError} if the bytes that arrive are not those of the model.
 */
export async function downloadModel(options: ModelDownload): Promise<DownloadedModel> {
  const { id, revision = "main" } = options;
  const { choose, settings, client, subject } = await prepare(options);
  const model = modelCache(settings.cache, id);
  if (settings.offline) {
    const cached = await completeSnapshot(model, revision, id, choose);
    if (cached) return cached;
    throw new InputError(
      `${id}: the network must not be used (HF_HUB_OFFLINE), and ${model.folder} holds no ` +
        `complete copy of ${revision}; fetch the model once with HF_HUB_OFFLINE=0`,
    );
  }
  let listing: Listing;
  try {
    listing = await listModel(client, id, revision, subject);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    const cached = await completeSnapshot(model, revision, id, choose).catch(() => undefined);
    if (!cached) throw error;
    client.notify(`${error.message.split(";")[0]}; using the copy in ${cached.folder}`);
    return cached;
  }
  const { commit } = listing;
  const files = chosen(id, listing.files.map(({ name }) => name), choose);
  const wanted: Wanted[] = [];
  for (const name of files) wanted.push(await wantedFile(client, model, listing, name, subject));
  await fetchAll(wanted, model, client, options.onProgress);
  for (const { name, digest, size } of wanted) {
    await linkIntoSnapshot(model, commit, name, digest.hex, size);
  }
  await writeRef(model, revision, commit);
  return { folder: snapshotPath(model, commit), commit, files };
}

/**
 * Finds the files of a model on the Hub without fetching them.
 *
 * @returns The address that their paths are relative to, and these paths.
 * @throws {InputError} if there is no such model, no access or no network.
 */
export async function browseModel(
  options: ModelDownload,
): Promise<{ url: URL; files: readonly string[] }> {
  const { id, revision = "main" } = options;
  const { choose, client, subject } = await prepare(options);
  const { commit, files } = await listModel(client, id, revision, subject);
  return {
    url: new URL(`${subject.page}/resolve/${commit}/`),
    files: chosen(id, files.map(({ name }) => name), choose),
  };
}

/** Checks what was asked for, and what every request needs. */
async function prepare(options: ModelDownload) {
  const { id, revision = "main", variant } = options;
  checkModelId(id);
  checkRevision(revision);
  const settings = await hubSettings(options);
  const subject: Subject = { name: id, page: `${settings.endpoint}/${id}` };
  const choose = options.files ?? ((names: readonly string[]) => neededFiles(names, variant));
  return { choose, settings, client: makeClient(settings, options), subject };
}

/** The caller's choice, checked: every name exists, and none would leave the cache. */
function chosen(
  id: string,
  names: readonly string[],
  choose: (names: readonly string[]) => readonly string[],
): readonly string[] {
  let picked: readonly string[];
  try {
    picked = choose(names);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    throw new InputError(`${id}: ${error.message}`, { cause: error });
  }
  for (const name of picked) {
    checkFileName(id, name);
    if (names.includes(name)) continue;
    throw new InputError(`${id}: there is no file ${quoted(name)}; choose among those that exist`);
  }
  return [...new Set(picked)];
}

async function completeSnapshot(
  model: ModelCache,
  revision: string,
  id: string,
  choose: (names: readonly string[]) => readonly string[],
): Promise<DownloadedModel | undefined> {
  const cached = await cachedSnapshot(model, revision);
  if (!cached) return undefined;
  const { path: folder, commit, names } = cached;
  return { folder, commit, files: chosen(id, names, choose) };
}

async function wantedFile(
  client: Client,
  model: ModelCache,
  { commit, files }: Listing,
  name: string,
  subject: Subject,
): Promise<Wanted> {
  const path = name.split("/").map(encodeURIComponent).join("/");
  const url = `${subject.page}/resolve/${commit}/${path}`;
  const listed = files.find((file) => file.name === name);
  let { size = null, digest = null } = listed ?? {};
  if (size === null || digest === null) {
    ({ size, digest } = await probeFile(client, subject, url, true));
  }
  if (digest === null) {
    throw new WeightError(
      `${subject.name}: each file must come with a checksum, the server gives none for ${name}; ` +
        "check HF_ENDPOINT",
    );
  }
  return { name, url, subject, size, digest, etag: null, blob: blobPath(model, digest.hex) };
}

async function fetchAll(
  wanted: readonly Wanted[],
  model: ModelCache,
  client: Client,
  onProgress?: ProgressListener,
): Promise<void> {
  const missing: Wanted[] = [];
  for (const file of wanted) {
    if (await fileSize(file.blob) !== file.size) missing.push(file);
  }
  const total = missing.reduce((sum, { size }) => sum + size, 0);
  const tracker = trackProgress(total, onProgress);
  let arrived = 0;
  for (const file of missing) {
    const bytes = rangeBytes(await readJournal(partialOf(file.blob, file.size)));
    tracker.at(file.name, bytes);
    arrived += bytes;
  }
  await checkSpace(model.folder, total - arrived);
  for (const file of missing) {
    const lock = `${model.locks}/${file.digest.hex}.framezero.lock`;
    await fetchOnce(file, file.blob, lock, client, tracker);
  }
}

/** Fetches a file unless another process has done it meanwhile. */
async function fetchOnce(
  file: RemoteFile,
  target: string,
  lock: string,
  client: Client,
  tracker: Tracker,
): Promise<void> {
  const fs = await fileSystem();
  const folder = target.replace(/\/[^/]*$/, "");
  await onDisk(folder, () => fs.mkdir(folder, { recursive: true }));
  await withLock(lock, file.name, client, async () => {
    if (await fileSize(target) !== file.size) await transfer(file, target, client, tracker);
  });
  tracker.at(file.name, file.size);
}

/**
 * Fetches one file from any web server into the folder `framezero/` of the cache. The names below it
 * are the sha256 of the address and of the content (of the ETag where that is unknown), so that a
 * file that changes on the server is fetched again.
 *
 * @throws {InputError} if there is no such file, no access, no network, or no room on the disk.
 * @throws {WeightError} if the bytes that arrive are not those that were announced.
 */
export async function downloadFile(
  url: string | URL,
  options: FileDownload = {},
): Promise<DownloadedFile> {
  const address = String(url);
  if (!URL.canParse(address) || !/^https?:$/.test(new URL(address).protocol)) {
    throw new InputError(`${quoted(address)}: only http(s) addresses can be fetched; correct it`);
  }
  const wanted = options.sha256?.toLowerCase();
  if (wanted !== undefined && !/^[0-9a-f]{64}$/.test(wanted)) {
    throw new InputError(`sha256 must be 64 hexadecimal digits, got ${quoted(wanted)}`);
  }
  const settings = await hubSettings(options);
  const client = makeClient(settings, options);
  const base = `${settings.cache}/framezero/${(await sha256Of(address)).slice(0, 32)}`;
  const folderOf = async (version: string) => (await sha256Of(version)).slice(0, 16);
  const subject = subjectOf(address, settings.endpoint);
  let facts: FileFacts;
  try {
    if (settings.offline) throw new Unreachable("the network must not be used (HF_HUB_OFFLINE)");
    facts = await probeFile(client, subject, address, subject.page !== undefined);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    const path = await newestCopy(base, wanted && await folderOf(wanted));
    if (path) return { path, sha256: wanted ?? null };
    throw new InputError(`${subject.name}: ${error.message}; there is no copy in the cache`);
  }
  const { size, etag, version } = facts;
  const name = fileNameOf(address, facts);
  const announced = facts.digest?.kind === "sha256" ? facts.digest.hex : undefined;
  const sha256 = wanted ?? announced ?? null;
  const target = `${base}/${await folderOf(sha256 ?? version)}/${name}`;
  const found: DownloadedFile = { path: target, sha256 };
  if (await fileSize(target) === size) return found;
  const digest: Digest | null = wanted ? { kind: "sha256", hex: wanted } : facts.digest;
  const file: RemoteFile = { name, url: address, subject, size, digest, etag };
  const arrived = rangeBytes(await readJournal(partialOf(target, size)));
  await checkSpace(base, size - arrived);
  const tracker = trackProgress(size, options.onProgress);
  await fetchOnce(file, target, `${target}.framezero.lock`, client, tracker);
  return found;
}

/** Files of the Hub's repositories have a page to visit when they are refused. */
function subjectOf(address: string, endpoint: string): Subject {
  const name = publicUrl(address);
  const [, id = ""] = /^\/([^/]+\/[^/]+)\/resolve\//.exec(name.slice(endpoint.length)) ?? [];
  const isHub = name.startsWith(`${endpoint}/`) && isModelId(id);
  return isHub ? { name, page: `${endpoint}/${id}` } : { name };
}

function fileNameOf(address: string, { proposedName }: FileFacts): string {
  const last = new URL(address).pathname.split("/").at(-1) ?? "";
  const name = [last, proposedName ?? ""].find((name) => /\.\w+$/.test(name) && isSafePath(name)) ??
    "model.safetensors";
  if (isPickle(name)) throw new InputError(`${name}: a Python pickle, ${CONVERT_PICKLES}`);
  return name.replaceAll("/", "_");
}

/** The copy of an address that was fetched last, or the one in the folder `only`. */
async function newestCopy(base: string, only?: string): Promise<string | undefined> {
  const fs = await fileSystem();
  let newest: { path: string; time: number } | undefined;
  for (const folder of only ? [only] : await fs.readdir(base).catch(() => [])) {
    for (const name of await fs.readdir(`${base}/${folder}`).catch(() => [])) {
      const path = `${base}/${folder}/${name}`;
      if (/\.framezero\.\w+(\.|$)/.test(name)) continue; // unfinished
      const time = (await fs.stat(path)).mtimeMs;
      if (!newest || time > newest.time) newest = { path, time };
    }
  }
  return newest?.path;
}

async function sha256Of(text: string): Promise<string> {
  const { createHash } = await import("node:crypto");
  return createHash("sha256").update(text).digest("hex");
}
