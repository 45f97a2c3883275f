/**
 * From what people write to a folder or file that can be opened, fetching what is not there yet.
 *
 * @module
 */

import { inside, type Location } from "../checkpoint.ts";
import { downloadFile, downloadModel, type HubOptions } from "../hub.ts";
import { publicUrl } from "./http.ts";
import { parseModelReference } from "./reference.ts";

/** How to find a model. */
export interface LocateOptions extends HubOptions {
  /** Precision to prefer where a repository has several, such as `"fp16"`. */
  readonly variant?: string;
  /** What the sha256 of a file at an address must be, 64 hexadecimal digits. */
  readonly sha256?: string;
}

/** A model that can be opened. */
export interface LocatedModel {
  /** Its folder or file. */
  readonly location: Location;
  /**
   * What names it again, for good: `owner/name@<commit>` for the Hub, else what was written. An
   * address loses its query, which may hold keys.
   */
  readonly source: string;
  /** sha256 of a file at an address, where it is known. */
  readonly sha256?: string;
}

/**
 * Finds a model, and fetches what is not on disk.
 *
 * - A `URL` is left where it is: a folder or file that is read in place, nothing is stored.
 * - A text that names an existing folder or file means that, even if it could be an id of the Hub;
 *   `./` in front of it never means the Hub.
 * - `https://huggingface.co/owner/name`, or the page of a revision or file there, means just that.
 * - Any other `http(s)` address is that of a file, which is fetched into the cache; with `/` at its
 *   end it is a folder in diffusers' layout, read in place.
 * - `owner/name` or `owner/name@revision` is a model of the Hub, of which the needed files are
 *   fetched into Hugging Face's cache.
 *
 * @throws {InputError} if it is none of these, or cannot be had; the message says why.
 * @throws {WeightError} if the bytes that arrive are not those that were announced.
 */
export async function locateModel(
  model: Location,
  options: LocateOptions = {},
): Promise<LocatedModel> {
  if (model instanceof URL) return { location: model, source: publicUrl(model) };
  const reference = await parseModelReference(model, options);
  switch (reference.kind) {
    case "folder":
    case "file":
      return { location: reference.path, source: model };
    case "url": {
      const url = new URL(reference.url);
      const source = publicUrl(url);
      if (url.pathname.endsWith("/")) return { location: url, source };
      const { path, sha256 } = await downloadFile(url, options);
      return { location: path, source, ...(sha256 && { sha256 }) };
    }
    case "hub": {
      const { folder, commit, files } = await downloadModel({ ...options, ...reference });
      const location = files.length === 1 ? inside(folder, files[0]) : folder;
      return { location, source: `${reference.id}@${commit}` };
    }
  }
}
