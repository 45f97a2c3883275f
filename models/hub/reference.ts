/**
 * What people write to name a model: a folder, a file, an address, or `owner/name@revision`.
 *
 * @module
 */

import { fileSystem } from "../../core/byte_source.ts";
import { InputError } from "../../core/errors.ts";
import { publicUrl } from "./http.ts";
import { checkRevision, isModelId, quoted } from "./names.ts";

/** A model on disk, on the web, or on the Hub. */
export type ModelReference =
  | {
    /** A folder on disk. */
    readonly kind: "folder";
    /** Its path. */
    readonly path: string;
  }
  | {
    /** A checkpoint on disk. */
    readonly kind: "file";
    /** Its path. */
    readonly path: string;
  }
  | {
    /** A checkpoint on a web server. */
    readonly kind: "url";
    /** Its address. */
    readonly url: string;
  }
  | {
    /** A repository of the Hub. */
    readonly kind: "hub";
    /** `owner/name`. */
    readonly id: string;
    /** Branch, tag or commit. */
    readonly revision: string;
    /** Precision to prefer, such as `"fp16"`. */
    readonly variant?: string;
  };

/**
 * Finds out what a text names. What exists on disk wins over a model of the Hub of that name.
 * Addresses of pages of huggingface.co become what they show.
 *
 * @param options.variant Passed on with a model of the Hub.
 * @throws {InputError} if it is none of these; the message says what was looked for.
 */
export async function parseModelReference(
  text: string,
  { variant }: { readonly variant?: string } = {},
): Promise<ModelReference> {
  if (/^https?:\/\//i.test(text)) return parseUrl(text, variant);
  const path = /^file:/i.test(text) ? (await import("node:url")).fileURLToPath(text) : text;
  const kind = await kindOnDisk(path);
  if (kind) return { kind, path };
  const [, id = "", revision = "main"] = /^([^@]*)(?:@(.+))?$/s.exec(text) ?? [];
  if (isModelId(id) && !/\.(safetensors|ckpt)$/i.test(id)) return hub(id, revision, variant);
  throw new InputError(
    `${quoted(text)}: a model is an existing folder or .safetensors file, an https address, or ` +
      `owner/name of a model of the Hub (with @revision if wanted); this is none of them, check ` +
      "the spelling and the folder you are in",
  );
}

function hub(id: string, revision: string, variant?: string): ModelReference {
  checkRevision(revision);
  return { kind: "hub", id, revision, ...(variant && { variant }) };
}

async function kindOnDisk(path: string): Promise<"folder" | "file" | undefined> {
  try {
    const stat = await (await fileSystem()).stat(path);
    return stat.isDirectory() ? "folder" : "file";
  } catch {
    return undefined; // nothing there, or no disk at all
  }
}

function parseUrl(text: string, variant?: string): ModelReference {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || url.username || url.password) {
    throw new InputError(
      `${
        url ? publicUrl(url) : quoted(text)
      }: an address must be valid and without user name and ` +
        "password; correct it, or download the file and give its path",
    );
  }
  if (url.hostname !== "huggingface.co") return { kind: "url", url: url.href };
  const [owner, name, what, ...rest] = url.pathname.slice(1).replace(/\/$/, "").split("/");
  const id = `${owner}/${name}`;
  if (isModelId(id) && (what === undefined || what === "tree")) {
    return hub(id, decodeURIComponent(rest.join("/") || "main"), variant);
  }
  // A "blob" page shows a file, the file itself is under "resolve".
  if (what === "blob") url.pathname = `/${[id, "resolve", ...rest].join("/")}`;
  return { kind: "url", url: url.href };
}
