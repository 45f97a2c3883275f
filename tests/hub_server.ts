/**
 * A Hub on this machine, as well or badly behaved as a test wants: it speaks HTTP by hand, so that
 * it can break off, lie about lengths and fall silent.
 *
 * @module
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InputError, type WeightError } from "../core/errors.ts";
import type { HubOptions } from "../models/hub.ts";
import { setVariables } from "./environment.ts";

/** A request as it came. */
export interface Asked {
  readonly path: string;
  /** `[first, last]` of the `Range` header. */
  readonly range: readonly [number, number] | null;
  readonly headers: ReadonlyMap<string, string>;
}

/** What goes back, to the letter. */
export interface Answer {
  readonly status: number;
  /** Added to, replacing, or (undefined) removing `Content-Length` and `Connection: close`. */
  readonly headers?: Readonly<Record<string, string | undefined>>;
  readonly body?: Uint8Array | string;
  /** Bytes of the body after which the line is cut. */
  readonly cutAt?: number;
  /** Leave the line open after the body's end. */
  readonly silent?: boolean;
}

/** A server that is running. */
export interface TestServer {
  readonly url: string;
  /** Everything that was asked, in order. */
  readonly asked: Asked[];
  close(): Promise<void>;
}

/** Starts a server on a free port. */
export async function serve(
  answer: (asked: Asked) => Answer | Promise<Answer>,
): Promise<TestServer> {
  const asked: Asked[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket)).on("error", () => socket.destroy());
    let text = "";
    socket.on("data", async (bytes) => {
      if (text.includes("\r\n\r\n")) return;
      text += bytes.toString();
      if (!text.includes("\r\n\r\n")) return;
      const request = parse(text);
      asked.push(request);
      send(socket, await answer(request));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (typeof address !== "object" || address === null) throw new Error("no address");
  return {
    url: `http://127.0.0.1:${address.port}`,
    asked,
    close() {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => server.close(() => resolve()));
    },
  };
}

function parse(text: string): Asked {
  const [first, ...lines] = text.slice(0, text.indexOf("\r\n\r\n")).split("\r\n");
  const headers = new Map(
    lines.map((
      line,
    ) => [line.split(":")[0].toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
  );
  const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(headers.get("range") ?? "") ?? [];
  return { path: first.split(" ")[1], range: from ? [Number(from), Number(to)] : null, headers };
}

function send(socket: Socket, { status, headers, body = "", cutAt, silent }: Answer): void {
  const bytes = typeof body === "string" ? new TextEncoder().encode(body) : body;
  const all = { "Content-Length": String(bytes.length), Connection: "close", ...headers };
  const lines = Object.entries(all).map(([name, text]) =>
    text === undefined ? "" : `${name}: ${text}\r\n`
  );
  socket.write(`HTTP/1.1 ${status} Test\r\n${lines.join("")}\r\n`);
  socket.write(bytes.subarray(0, cutAt ?? bytes.length));
  // Bun forgets what it has not handed out when the line breaks: it gets time to.
  if (!silent) setTimeout(() => socket.end(), cutAt ? 10 : 0);
}

/** The bytes asked for: 206 for a range, 200 without one. */
export function sendFile(
  bytes: Uint8Array,
  { range }: Asked,
  headers: Record<string, string> = {},
): Answer {
  if (!range) return { status: 200, headers, body: bytes };
  if (range[0] >= bytes.length) {
    return { status: 416, headers: { "Content-Range": `bytes */${bytes.length}` } };
  }
  const last = Math.min(range[1], bytes.length - 1);
  const contentRange = `bytes ${range[0]}-${last}/${bytes.length}`;
  return {
    status: 206,
    headers: { "Content-Range": contentRange, ...headers },
    body: bytes.subarray(range[0], last + 1),
  };
}

/** A file of a repository. */
export interface RepoFile {
  readonly bytes: Uint8Array;
  /** Large files live in another place, under their sha256. */
  readonly large: boolean;
}

/** A model on the test Hub. */
export interface Repo {
  readonly id: string;
  readonly commit: string;
  readonly files: Readonly<Record<string, RepoFile>>;
}

/** sha256 of bytes in hexadecimal digits. */
export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** The name of a blob in the cache. */
export function blobName({ bytes, large }: RepoFile): string {
  return large
    ? sha256(bytes)
    : createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
}

/** The Hub's answer to a request for the listing of a repository. */
export function listing({ commit, files }: Repo): Answer {
  const siblings = Object.entries(files).map(([rfilename, file]) => ({
    rfilename,
    size: file.bytes.length,
    blobId: file.large ? "0".repeat(40) : blobName(file),
    ...(file.large && { lfs: { sha256: blobName(file), size: file.bytes.length } }),
  }));
  return { status: 200, body: JSON.stringify({ sha: commit, siblings }) };
}

/** What a file request is about: the file's name, or `null` for everything else. */
export function fileAsked(repo: Repo, { path }: Asked): string | null {
  const prefix = `/${repo.id}/resolve/${repo.commit}/`;
  return path.startsWith(prefix) ? decodeURIComponent(path.slice(prefix.length)) : null;
}

/** Answers as the Hub does; large files are redirected to the server at `storage`, if given. */
export function hubAnswer(repo: Repo, asked: Asked, storage?: string): Answer {
  if (asked.path.startsWith(`/api/models/${repo.id}/revision/`)) return listing(repo);
  const name = fileAsked(repo, asked);
  const file = name === null ? undefined : repo.files[name];
  if (!file) return { status: 404, headers: { "X-Error-Code": "RepoNotFound" } };
  const headers = { ETag: `"${blobName(file)}"` };
  if (!storage || !file.large) return sendFile(file.bytes, asked, headers);
  return {
    status: 302,
    headers: {
      Location: `${storage}/${blobName(file)}?signature=secret`,
      "X-Linked-Etag": headers.ETag,
      "X-Linked-Size": String(file.bytes.length),
    },
  };
}

/** Bytes that look random and are the same each time. */
export function noise(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed * 2 + 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

/** The files of a small pipeline, and some that nobody needs. */
export function smallRepo(): Repo {
  const small = (text: string): RepoFile => ({
    bytes: new TextEncoder().encode(text),
    large: false,
  });
  const large = (seed: number): RepoFile => ({ bytes: noise(20_000 + seed, seed), large: true });
  return {
    id: "artist/tiny-model",
    commit: "0123456789abcdef0123456789abcdef01234567",
    files: {
      "README.md": small("# hello"),
      "model_index.json": small("{}"),
      "scheduler/scheduler_config.json": small('{"scheduler": 1}'),
      "tokenizer/vocab.json": small('{"vocab": 1}'),
      "tokenizer/merges.txt": small(""),
      "text_encoder/config.json": small('{"text": 1}'),
      "text_encoder/model.safetensors": large(1),
      "text_encoder/pytorch_model.bin": large(2),
      "unet/config.json": small('{"unet": 1}'),
      "unet/diffusion_pytorch_model.safetensors": large(3),
      "unet/diffusion_pytorch_model.fp16.safetensors": large(4),
      "vae/config.json": small('{"vae": 1}'),
      "vae/diffusion_pytorch_model.safetensors": large(5),
      "safety_checker/model.safetensors": large(6),
    },
  };
}

/** What a test of downloads works with. */
export interface Bench {
  readonly server: TestServer;
  readonly cache: string;
  /** Options for that server and that cache, impatient, without a token. */
  readonly options: HubOptions;
  /** The sentences that were said to the user. */
  readonly messages: string[];
}

/** Runs `use` with a server and an empty cache, and removes both. */
export async function withServer(
  answer: (asked: Asked) => Answer | Promise<Answer>,
  use: (bench: Bench) => Promise<void>,
): Promise<void> {
  const server = await serve(answer);
  const cache = await mkdtemp(join(tmpdir(), "framezero-hub-"));
  const messages: string[] = [];
  const options: HubOptions = {
    endpoint: server.url,
    cache,
    token: null,
    offline: false,
    onMessage: (text) => messages.push(text),
    tuning: { retrySeconds: 0.001, idleSeconds: 10 },
  };
  try {
    await use({ server, cache, options, messages });
  } finally {
    await server.close();
    await rm(cache, { recursive: true });
  }
}

/**
 * Runs `use` with a server that is the Hub of every command in this process: its address, an empty
 * cache and a token are in the environment.
 */
export async function withHub(
  answer: (asked: Asked) => Answer | Promise<Answer>,
  use: (bench: Bench) => Promise<void>,
): Promise<void> {
  await withServer(answer, async (bench) => {
    const restore = setVariables({
      HF_ENDPOINT: bench.server.url,
      HF_HUB_CACHE: bench.cache,
      HF_HUB_OFFLINE: "",
      HF_TOKEN: "hf_TopSecret",
    });
    try {
      await use(bench);
    } finally {
      restore();
    }
  });
}

/** A folder as a repository; weights are large files. */
export async function repoOf(folder: string, id: string): Promise<Repo> {
  const files: Record<string, RepoFile> = {};
  for (const name of await filesBelow(folder)) {
    const bytes = new Uint8Array(await readFile(join(folder, name)));
    files[name] = { bytes, large: name.endsWith(".safetensors") };
  }
  return { id, commit: "fedcba9876543210fedcba9876543210fedcba98", files };
}

/** All files and links below a folder, as sorted relative paths. */
export async function filesBelow(folder: string, prefix = ""): Promise<string[]> {
  const entries = await readdir(join(folder, prefix), { withFileTypes: true });
  const lists = entries.map((entry) => {
    const name = prefix + entry.name;
    return entry.isDirectory() ? filesBelow(folder, `${name}/`) : Promise.resolve([name]);
  });
  return (await Promise.all(lists)).flat().sort();
}

/** A class of errors. */
export type ErrorKind = typeof InputError | typeof WeightError;

/** For `assert.rejects`: an error of that kind and text, without any of the tests' secrets. */
export function rejectsWith(
  message: RegExp,
  kind: ErrorKind = InputError,
): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof kind, String(error));
    assert.match(error.message, message);
    const everything = `${error.stack}${String(error.cause)}`;
    assert.doesNotMatch(everything, /TopSecret|signature/, "secrets must not be printed");
    return true;
  };
}
