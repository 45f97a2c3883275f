/**
 * Random access to bytes wherever they lie: a file, an HTTP server, a `Blob`, memory. Only the
 * ranges that are asked for are read, so that a checkpoint never has to fit into memory.
 *
 * @module
 */

import { InputError, WeightError } from "./errors.ts";

/** Bytes that can be read by position. */
export type ByteSource = {
  /** What messages call the source: a path, a URL without its query, a file name. */
  readonly name: string;
  /** Length in bytes. */
  readonly size: number;
  /**
   * The `length` bytes from `offset` on; the range must lie inside. They come at the beginning of
   * `out` where the source can do that, and otherwise, or without it, in a fresh array.
   */
  read(offset: number, length: number, out?: Uint8Array<ArrayBuffer>): Promise<Uint8Array>;
  /** Releases what the source holds open; later reads fail. */
  close(): Promise<void>;
};

/** Bytes per call to the file system: Node allows at most 2 GiB − 1. */
export const MAX_TRANSFER = 2 ** 28;

/**
 * Opens anything that bytes can be read from: a path, a `file:` or `http(s):` URL (the server must
 * answer range requests), a `Blob` or `File`, bytes in memory, or a source made by the caller
 * (returned as it is).
 *
 * @throws {InputError} if it cannot be opened, or the server does not serve ranges.
 */
export function openByteSource(
  source: string | URL | Blob | Uint8Array | ByteSource,
): Promise<ByteSource> {
  if (source instanceof Uint8Array) return Promise.resolve(memorySource(source));
  if (source instanceof Blob) return Promise.resolve(blobSource(source));
  if (typeof source !== "string" && !(source instanceof URL)) return Promise.resolve(source);
  const text = String(source);
  if (/^https?:/i.test(text)) return openHttp(text);
  if (/^file:/i.test(text)) return openFile(new URL(text), text);
  if (typeof source === "string") return openFile(source, source);
  return Promise.reject(
    new InputError(
      `${text.slice(0, 100)}: only file:, http: and https: URLs can be opened; ` +
        "fetch the data yourself and pass it as a Blob",
    ),
  );
}

/**
 * The file system module, loaded on first use so that importing framezero works in a browser.
 *
 * @throws {InputError} where there is no file system.
 */
export async function fileSystem(): Promise<typeof import("node:fs/promises")> {
  try {
    return await import("node:fs/promises");
  } catch (cause) {
    throw new InputError(
      "there is no file system in this runtime; pass a Blob, bytes or an http(s) URL instead",
      { cause },
    );
  }
}

/** `error.message`, or the thing itself as text: what a message quotes of a foreign error. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function memorySource(bytes: Uint8Array): ByteSource {
  return {
    name: "bytes in memory",
    size: bytes.byteLength,
    // Not `bytes.slice`: Node's Buffer overrides it to share memory.
    read: (offset, length) =>
      Promise.resolve(new Uint8Array(bytes.subarray(offset, offset + length))),
    close: () => Promise.resolve(),
  };
}

function blobSource(blob: Blob): ByteSource {
  const name = blob instanceof File ? blob.name : "Blob";
  return {
    name,
    size: blob.size,
    async read(offset, length) {
      try {
        return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      } catch (cause) {
        throw new InputError(
          `${name}: reading ${length} bytes at ${offset} failed (${reasonOf(cause)}); ` +
            "choose the file again",
          { cause },
        );
      }
    },
    close: () => Promise.resolve(),
  };
}

async function openFile(path: string | URL, name: string): Promise<ByteSource> {
  const fs = await fileSystem();
  const handle = await fs.open(path, "r").catch((cause: unknown) => {
    throw new InputError(
      `${name}: the file cannot be opened (${reasonOf(cause)}); check the path and permissions`,
      { cause },
    );
  });
  const stat = await handle.stat();
  if (!stat.isFile()) {
    await handle.close();
    throw new InputError(`${name}: a file is needed, this is not one; name the file inside it`);
  }
  return {
    name,
    size: stat.size,
    async read(offset, length, out) {
      const bytes = place(name, length, out);
      for (let filled = 0; filled < length;) {
        const wanted = Math.min(length - filled, MAX_TRANSFER);
        const { bytesRead } = await handle.read(bytes, filled, wanted, offset + filled).catch(
          (cause: unknown) => {
            throw new InputError(
              `${name}: reading at byte ${offset + filled} failed (${reasonOf(cause)}); ` +
                "check the disk, and that the file was not closed",
              { cause },
            );
          },
        );
        if (bytesRead === 0) {
          throw new WeightError(
            `${name}: the file ended at byte ${offset + filled}, it had ${stat.size} when it was ` +
              "opened; do not change it while it is in use",
          );
        }
        filled += bytesRead;
      }
      return bytes;
    },
    close: () => handle.close(),
  };
}

async function openHttp(url: string): Promise<ByteSource> {
  const name = withoutSecrets(url);
  const probe = await requestRange(url, name, 0, 1);
  const size = probe.total;
  await probe.response.body?.cancel();
  return {
    name,
    size,
    async read(offset, length, out) {
      if (length === 0) return new Uint8Array(0);
      const { response, total } = await requestRange(url, name, offset, length);
      if (total !== size) {
        await response.body?.cancel();
        throw new WeightError(
          `${name}: the file had ${size} bytes when it was opened and now has ${total}; ` +
            "open it again",
        );
      }
      return await readBody(response, name, place(name, length, out));
    },
    close: () => Promise.resolve(),
  };
}

/** Queries of signed URLs and `user:password@` do not belong into messages. */
function withoutSecrets(url: string): string {
  try {
    const { origin, pathname } = new URL(url);
    return origin + pathname;
  } catch (cause) {
    throw new InputError(`${url.slice(0, 100)}: not a valid URL; check its spelling`, { cause });
  }
}

async function requestRange(
  url: string,
  name: string,
  offset: number,
  length: number,
): Promise<{ response: Response; total: number }> {
  const last = offset + length - 1;
  const response = await fetch(url, {
    headers: { Range: `bytes=${offset}-${last}`, "Accept-Encoding": "identity" },
  }).catch((cause: unknown) => {
    throw new InputError(
      `${name}: the server cannot be reached (${
        reasonOf(cause)
      }); check the address and the network`,
      { cause },
    );
  });
  const range = response.headers.get("Content-Range") ?? "";
  // A range of an empty file cannot be satisfied: its length is all that comes.
  if (response.status === 416 && range === "bytes */0") return { response, total: 0 };
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/i.exec(range);
  if (response.status === 206 && match && +match[1] === offset && +match[2] === last) {
    return { response, total: Number(match[3]) };
  }
  await response.body?.cancel();
  if (response.status >= 300) {
    throw new InputError(
      `${name}: the server answered ${response.status} ${response.statusText}; ` +
        "check the address, and whether it needs a login or an accepted licence",
    );
  }
  throw new InputError(
    `${name}: a server must answer a request for bytes ${offset}-${last} with status 206 and ` +
      `that Content-Range, got ${response.status} and "${range.slice(0, 60)}"; ` +
      "download the file and open the copy (in a browser, CORS must expose Content-Range)",
  );
}

/** Reads a body that must fill `out` exactly, and never holds more than that. */
async function readBody(response: Response, name: string, out: Uint8Array): Promise<Uint8Array> {
  const { length } = out;
  let filled = 0;
  const reader = response.body?.getReader();
  try {
    for (;;) {
      const chunk = await reader?.read();
      if (!chunk || chunk.done) break;
      filled += chunk.value.length;
      if (filled > length) break;
      out.set(chunk.value, filled - chunk.value.length);
    }
  } catch (cause) {
    throw new InputError(
      `${name}: the connection broke after ${filled} of ${length} bytes ` +
        `(${reasonOf(cause)}); try again`,
      { cause },
    );
  }
  if (filled !== length) {
    await reader?.cancel();
    throw new InputError(
      `${name}: the server announced ${length} bytes and sent ` +
        `${filled > length ? "more" : `only ${filled}`}; try again or download the file`,
    );
  }
  return out;
}

function place(name: string, length: number, out?: Uint8Array): Uint8Array {
  if (out) return out.subarray(0, length);
  try {
    return new Uint8Array(length);
  } catch (cause) {
    throw new WeightError(
      `${name}: a piece of ${length} bytes does not fit into one buffer of this runtime; ` +
        "use a checkpoint with smaller tensors",
      { cause },
    );
  }
}
