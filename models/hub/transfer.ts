/**
 * Bringing one file to disk: several ranges at a time where the server can, continuing where an
 * earlier attempt stopped, checked before it gets its name. Memory does not grow with the file.
 *
 * @module
 */

import type { FileHandle } from "node:fs/promises";
import { fileSystem, reasonOf } from "../../core/byte_source.ts";
import { InputError, WeightError } from "../../core/errors.ts";
import { diskError, fileSize, onDisk } from "./disk.ts";
import { type Client, persist, type Reply, request, type Subject, Transient } from "./http.ts";
import {
  type ByteRange,
  discard,
  missingBlocks,
  noteRange,
  type PartialFile,
  partialOf,
  rangeBytes,
  readJournal,
  writeJournal,
} from "./journal.ts";
import type { Tracker } from "./progress.ts";

/** What a file's bytes must hash to: sha256, or git's sha1 (of `"blob <size>\0"` and the bytes). */
export interface Digest {
  /** How it is computed. */
  readonly kind: "sha256" | "git-sha1";
  /** Lower-case hexadecimal digits. */
  readonly hex: string;
}

/** A file on a server. */
export interface RemoteFile {
  /** What messages and progress call it. */
  readonly name: string;
  /** Where it is. */
  readonly url: string;
  /** Whose it is, for messages of refusals. */
  readonly subject: Subject;
  /** Length in bytes. */
  readonly size: number;
  /** What it must hash to, `null` if the server does not tell. */
  readonly digest: Digest | null;
  /** Strong ETag that every answer must carry, `null` if there is none. */
  readonly etag: string | null;
}

/** Bytes written between two lines of the journal. */
const JOURNAL_STEP = 2 ** 20;
const HASH_CHUNK = 4 * 2 ** 20;

/** The server answers a request for a range with the whole file. */
class NoRanges extends Error {}

/**
 * Fetches `file` to the path `target`, whose folder must exist.
 *
 * @throws {WeightError} if the bytes are not those that were announced.
 * @throws {InputError} if the network, the server or the disk fails.
 */
export async function transfer(
  file: RemoteFile,
  target: string,
  client: Client,
  tracker: Tracker,
): Promise<void> {
  const partial = partialOf(target, file.size);
  for (let resumed = true; resumed;) {
    const ranges = await readJournal(partial);
    resumed = ranges.length > 0;
    tracker.at(file.name, rangeBytes(ranges));
    const found = await fillAndHash(file, partial, ranges, client, tracker);
    if (file.digest === null || found === file.digest.hex) return await finish(partial, target);
    await discard(partial);
    tracker.at(file.name, 0);
    // What an earlier run left may have suffered (a crash before the disk was written): once anew.
    if (resumed) client.notify(`${file.name}: the part from before was damaged; starting again`);
    else throw wrongDigest(file, file.digest, found);
  }
}

async function finish({ data, journal, size }: PartialFile, target: string): Promise<void> {
  const fs = await fileSystem();
  try {
    await fs.rename(data, target);
  } catch (error) {
    // On Windows a file that somebody reads cannot be replaced, and need not be.
    if (await fileSize(target) !== size) throw diskError(error, target);
    await onDisk(data, () => fs.rm(data, { force: true }));
  }
  await onDisk(journal, () => fs.rm(journal, { force: true }));
}

function wrongDigest(file: RemoteFile, { kind, hex }: Digest, found: string): WeightError {
  return new WeightError(
    `${file.name}: ${kind === "sha256" ? kind : "git's sha1"} of the file must be ${hex}, what ` +
      `arrived has ${found} and was deleted; run this again, and if it happens again suspect the ` +
      "proxy or mirror in between",
  );
}

async function fillAndHash(
  file: RemoteFile,
  partial: PartialFile,
  ranges: readonly ByteRange[],
  client: Client,
  tracker: Tracker,
): Promise<string> {
  const fs = await fileSystem();
  const { data, size } = partial;
  const handle = await onDisk(data, () => fs.open(data, ranges.length ? "r+" : "w+"));
  try {
    await onDisk(data, () => handle.truncate(size), () => size - rangeBytes(ranges));
    await writeJournal(partial, ranges);
    const sink: Sink = { file, partial, tracker, left: size - rangeBytes(ranges) };
    try {
      await fetchBlocks(sink, missingBlocks(ranges, size, client.tuning.blockBytes), client);
    } catch (error) {
      if (!(error instanceof NoRanges)) throw error;
      await fetchWhole(sink, client);
    }
    await onDisk(data, () => handle.sync());
    return file.digest ? await hash(handle, file, file.digest, client.signal) : "";
  } finally {
    await handle.close();
  }
}

/** Where bytes go. */
interface Sink {
  readonly file: RemoteFile;
  readonly partial: PartialFile;
  readonly tracker: Tracker;
  /** Bytes still to be written. */
  left: number;
}

/** Works on `blocks` with several connections; the others wait for what the first one learns. */
async function fetchBlocks(sink: Sink, blocks: ByteRange[], client: Client): Promise<void> {
  const stop = new AbortController();
  const scoped = { ...client, signal: AbortSignal.any([client.signal, stop.signal]) };
  let failure: { error: unknown } | undefined;
  let open = () => {};
  const opened = new Promise<void>((resolve) => open = resolve);

  async function work(waitFor?: Promise<void>): Promise<void> {
    try {
      await waitFor;
      for (let block; !failure && (block = blocks.shift());) {
        await fetchBlock(sink, block, scoped, open);
      }
    } catch (error) {
      failure ??= { error };
      stop.abort();
    } finally {
      open();
    }
  }

  const others = Math.min(client.tuning.connections, blocks.length) - 1;
  await Promise.all([work(), ...Array.from({ length: Math.max(others, 0) }, () => work(opened))]);
  if (failure) throw failure.error;
}

/** Fetches a block, which shrinks as its bytes are written, so that a break costs nothing. */
async function fetchBlock(
  sink: Sink,
  block: ByteRange,
  client: Client,
  onAnswer: () => void,
): Promise<void> {
  let noted = block.start;
  let before = block.start;
  const note = async () => {
    const range = { start: noted, end: block.start };
    noted = block.start;
    if (range.start < range.end) await noteRange(sink.partial, range);
  };
  const attempt = () =>
    fetchRest(sink, block, client, (reply) => {
      checkRange(reply, block, sink.file);
      onAnswer();
    }, async () => {
      if (block.start - noted >= JOURNAL_STEP) await note();
    });
  try {
    await persist(client, attempt, () => {
      const progressed = block.start > before;
      before = block.start;
      return progressed;
    });
  } catch (error) {
    await note().catch(() => {}); // the first failure tells more
    throw error;
  }
  await note();
}

/** Fetches the whole file from its beginning, as often as it takes. */
async function fetchWhole(sink: Sink, client: Client): Promise<void> {
  const { file } = sink;
  client.notify(`${file.name}: the server sends whole files only; a break means to start again`);
  await persist(client, async () => {
    sink.left = file.size;
    sink.tracker.at(file.name, 0);
    const check = (reply: Reply) => checkWhole(reply, file);
    await fetchRest(sink, { start: 0, end: file.size }, client, check);
  });
}

/**
 * One connection for the rest of a block: asks, checks the answer, and writes what comes.
 *
 * @throws {Transient} if the line breaks or falls silent before the end.
 */
async function fetchRest(
  sink: Sink,
  block: ByteRange,
  client: Client,
  check: (reply: Reply) => void,
  onWritten: () => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const { file } = sink;
  const idle = new AbortController();
  const watch = () => setTimeout(() => idle.abort(), client.tuning.idleSeconds * 1000);
  let timer = watch();
  const scoped = { ...client, signal: AbortSignal.any([client.signal, idle.signal]) };
  const whole = block.start === 0 && block.end === file.size;
  const headers: Record<string, string> = whole
    ? {}
    : { Range: `bytes=${block.start}-${block.end - 1}` };
  let reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  let handle: FileHandle | undefined;
  try {
    const reply = await request(scoped, file.subject, file.url, headers);
    reader = reply.response.body?.getReader();
    check(reply);
    // A handle for each connection: some runtimes seek and write in two steps.
    handle = await openData(sink.partial);
    while (block.start < block.end) {
      const chunk = await reader?.read().catch((error: unknown) => {
        throw new Transient(`${file.name}: the connection broke (${reasonOf(error)})`);
      });
      if (!chunk || chunk.done) throw new Transient(`${file.name}: the connection broke`);
      if (chunk.value.length > block.end - block.start) {
        throw new WeightError(`${file.name}: the server sends more bytes than it announced${LIES}`);
      }
      await write(handle, sink, chunk.value, block.start);
      block.start += chunk.value.length;
      sink.left -= chunk.value.length;
      sink.tracker.received(file.name, chunk.value.length);
      await onWritten();
      clearTimeout(timer);
      timer = watch();
    }
  } catch (error) {
    if (!idle.signal.aborted || error instanceof InputError) throw error;
    const { idleSeconds } = client.tuning;
    throw new Transient(`${file.name}: the server was silent for ${idleSeconds} s`);
  } finally {
    clearTimeout(timer);
    await reader?.cancel().catch(() => {}); // the connection may be broken already
    await handle?.close();
  }
}

async function openData({ data }: PartialFile): Promise<FileHandle> {
  const fs = await fileSystem();
  return await onDisk(data, () => fs.open(data, "r+"));
}

async function write(
  handle: FileHandle,
  { partial, left }: Sink,
  bytes: Uint8Array,
  at: number,
): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await onDisk(
      partial.data,
      () => handle.write(bytes, done, bytes.length - done, at + done),
      () => left,
    );
    done += bytesWritten;
  }
}

const LIES = "; run this again, and if it happens again suspect the proxy or mirror in between";

/** Checks that an answer begins with the first byte of the block. */
function checkRange({ response, ...reply }: Reply, block: ByteRange, file: RemoteFile): void {
  const whole = block.start === 0 && block.end === file.size;
  if (response.status === 200) {
    if (!whole) throw new NoRanges();
    checkWhole({ response, ...reply }, file);
    return;
  }
  const text = response.headers.get("Content-Range") ?? "";
  const [, first, last, total] = /^bytes (?:(\d+)-(\d+)|\*)\/(\d+|\*)$/i.exec(text) ?? [];
  if (total !== undefined && total !== "*" && +total !== file.size) throw otherSize(file, total);
  checkEtag(response, file);
  if (response.status === 206 && +first === block.start && +last < block.end) return;
  throw new WeightError(
    `${file.name}: the server must answer a request for bytes ${block.start}-${block.end - 1} ` +
      `with those, it answers ${response.status} with "${text.slice(0, 60)}"${LIES}`,
  );
}

function checkWhole({ response }: Reply, file: RemoteFile): void {
  checkEtag(response, file);
  const length = response.headers.get("Content-Length");
  const coded = response.headers.has("Content-Encoding");
  if (length !== null && !coded && +length !== file.size) throw otherSize(file, length);
}

function otherSize(file: RemoteFile, found: string): WeightError {
  return new WeightError(
    `${file.name}: must have ${file.size} bytes, the server now says ${found.slice(0, 20)}${LIES}`,
  );
}

function checkEtag(response: Response, { name, etag }: RemoteFile): void {
  if (etag === null || response.headers.get("ETag") === etag) return;
  throw new WeightError(
    `${name}: the file was changed on the server while it was downloaded; run this again`,
  );
}

async function hash(
  handle: FileHandle,
  { name, size }: RemoteFile,
  { kind }: Digest,
  signal: AbortSignal,
): Promise<string> {
  const { createHash } = await import("node:crypto");
  const hash = createHash(kind === "sha256" ? kind : "sha1");
  if (kind === "git-sha1") hash.update(`blob ${size}\0`);
  const buffer = new Uint8Array(Math.min(HASH_CHUNK, size));
  for (let at = 0; at < size;) {
    signal.throwIfAborted();
    const { bytesRead } = await onDisk(name, () => handle.read(buffer, 0, buffer.length, at));
    if (bytesRead === 0) break; // somebody cut the file: the digest will tell
    hash.update(buffer.subarray(0, bytesRead));
    at += bytesRead;
  }
  return hash.digest("hex");
}
