/**
 * What a server says about files before they are fetched: names, lengths and checksums.
 *
 * @module
 */

import { InputError, WeightError } from "../../core/errors.ts";
import {
  type Client,
  persist,
  publicUrl,
  request,
  requestJson,
  type Subject,
  withTimeout,
} from "./http.ts";
import { quoted } from "./names.ts";
import type { Digest } from "./transfer.ts";

/** A file as a repository lists it. */
export interface ListedFile {
  /** Its path in the repository. */
  readonly name: string;
  /** Length in bytes; `null` if the listing does not tell. */
  readonly size: number | null;
  /** Checksum; `null` if the listing does not tell. */
  readonly digest: Digest | null;
}

/** A repository at one commit. */
export interface Listing {
  /** The commit, 40 hexadecimal digits. */
  readonly commit: string;
  /** All of its files. */
  readonly files: readonly ListedFile[];
}

/** What one file's server says about it. */
export interface FileFacts {
  /** Length in bytes. */
  readonly size: number;
  /** Checksum, if an ETag of the Hub is one. */
  readonly digest: Digest | null;
  /** ETag of the last answer, as it was sent. */
  readonly etag: string | null;
  /** What stands for the content in a cache: the ETag, or else the date and the length. */
  readonly version: string;
  /** File name that the server proposes (RFC 6266). */
  readonly proposedName: string | null;
}

/** No range of an empty file can be sent, so that some servers tell nothing about it. */
const EMPTY: Digest = { kind: "git-sha1", hex: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391" };

type Fields = { readonly [key: string]: unknown };

function fieldsOf(value: unknown): Fields {
  return typeof value === "object" && value !== null ? value as Fields : {};
}

/**
 * Lists a repository of the Hub (`GET /api/models/{id}/revision/{revision}?blobs=true`).
 *
 * @throws {Unreachable} if there is no answer.
 * @throws {InputError} if there is no such model or revision.
 * @throws {WeightError} if the answer is not what the Hub would say.
 */
export async function listModel(
  client: Client,
  id: string,
  revision: string,
  subject: Subject,
): Promise<Listing> {
  const path = `/api/models/${id}/revision/${encodeURIComponent(revision)}?blobs=true`;
  const { sha, siblings } = fieldsOf(await requestJson(client, subject, client.endpoint + path));
  if (typeof sha !== "string" || !/^[0-9a-f]{40}$/.test(sha) || !Array.isArray(siblings)) {
    throw new WeightError(
      `${id}: a listing must have the commit as 40 hexadecimal digits and a list of files, this ` +
        `one has ${quoted(String(sha))}; check HF_ENDPOINT`,
    );
  }
  return { commit: sha, files: siblings.map((entry) => listedFile(id, fieldsOf(entry))) };
}

function listedFile(id: string, entry: Fields): ListedFile {
  const lfs = fieldsOf(entry.lfs);
  const size = lfs.size ?? entry.size ?? null;
  const sha256 = lfs.sha256 ?? lfs.oid;
  const { rfilename: name, blobId } = entry;
  const wrong = typeof name !== "string" ||
    !(size === null || (typeof size === "number" && Number.isSafeInteger(size) && size >= 0));
  if (wrong) {
    throw new WeightError(
      `${id}: the listing must give each file a name and a length, one has ` +
        `${quoted(String(name))} and ${quoted(String(size))}; check HF_ENDPOINT`,
    );
  }
  return { name, size, digest: digestOf(sha256) ?? (entry.lfs ? null : digestOf(blobId)) };
}

/** The Hub's checksums: 64 digits are sha256 (large files), 40 are git's sha1 (small ones). */
function digestOf(text: unknown): Digest | null {
  const hex = typeof text === "string" ? text.replace(/^(W\/)?"(.*)"$/, "$2") : "";
  if (/^[0-9a-f]{64}$/.test(hex)) return { kind: "sha256", hex };
  if (/^[0-9a-f]{40}$/.test(hex)) return { kind: "git-sha1", hex };
  return null;
}

/**
 * Asks for the first byte of a file, which tells all about the others, also where `HEAD` is not
 * allowed (signed addresses).
 *
 * @param isHub Whether ETags are the Hub's checksums.
 * @throws {Unreachable} if there is no answer.
 * @throws {InputError} if there is no such file, or its length stays unknown.
 */
export async function probeFile(
  client: Client,
  subject: Subject,
  url: string,
  isHub: boolean,
): Promise<FileFacts> {
  const { response, linkedEtag, linkedSize } = await persist(client, async () => {
    const reply = await request(withTimeout(client), subject, url, { Range: "bytes=0-0" });
    await reply.response.body?.cancel();
    return reply;
  });
  const { headers, status } = response;
  if (/^text\/html\b/i.test(headers.get("Content-Type") ?? "")) {
    throw new InputError(
      `${subject.name}: the address must be that of the file itself, this is a web page (perhaps ` +
        "a login); copy the address of the download button",
    );
  }
  const total = /\/(\d+)$/.exec(headers.get("Content-Range") ?? "")?.[1];
  const size = Number((status === 200 ? headers.get("Content-Length") : total) ?? NaN);
  if (!Number.isSafeInteger(size) || (linkedSize !== null && Number(linkedSize) !== size)) {
    throw new InputError(
      `${publicUrl(url)}: the server must say how long the file is, it says ` +
        `${quoted(linkedSize ?? String(total))}; download it with a browser and give its path`,
    );
  }
  const etag = headers.get("ETag");
  const proposed = /filename="?([^";]+)"?/i.exec(headers.get("Content-Disposition") ?? "")?.[1];
  return {
    size,
    digest: isHub ? digestOf(linkedEtag ?? etag) ?? (size === 0 ? EMPTY : null) : null,
    etag: etag?.startsWith('"') ? etag : null,
    version: linkedEtag ?? etag ?? `${headers.get("Last-Modified")} ${size}`,
    proposedName: proposed?.trim() ?? null,
  };
}
