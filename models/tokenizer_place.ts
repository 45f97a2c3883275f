/**
 * Finding the vocabulary for checkpoints that bring none: a single file holds weights only.
 *
 * @module
 */

import { InputError, WeightError } from "../core/errors.ts";
import { exists, inside, type Location } from "./checkpoint.ts";
import { cachedSnapshot, modelCache } from "./hub/cache.ts";
import { downloadModel, type HubOptions } from "./hub.ts";
import { hubSettings } from "./hub/environment.ts";

/** Where the vocabulary of SD 1.x comes from. */
const ORIGIN = "openai/clip-vit-large-patch14";

/** Repositories on Hugging Face that hold it, all the same. */
const REPOSITORIES = [
  "stable-diffusion-v1-5/stable-diffusion-v1-5",
  "runwayml/stable-diffusion-v1-5",
  "CompVis/stable-diffusion-v1-4",
  ORIGIN,
];

const FILES = ["vocab.json", "merges.txt"];

/** Looks into the Hugging Face cache; the network is not used. */
async function cached(hub: HubOptions): Promise<Location[]> {
  try {
    const { cache } = await hubSettings(hub);
    const snapshots = await Promise.all(
      REPOSITORIES.map((id) => cachedSnapshot(modelCache(cache, id), "main")),
    );
    return snapshots.flatMap((found) => found ? [found.path] : []);
  } catch (error) {
    if (error instanceof InputError) return []; // no file system here, or an unusable setting
    throw error;
  }
}

async function vocabularyIn(folder: Location): Promise<Location | null> {
  for (const place of [folder, inside(folder, "tokenizer")]) {
    const files = FILES.map((name) => exists(inside(place, name)));
    if ((await Promise.all(files)).every((there) => there)) return place;
  }
  return null;
}

/** The folder that a file lies in. */
export function folderAround(file: Location): Location {
  if (file instanceof URL) return new URL(".", file);
  if (/^(https?|file):/i.test(file)) return new URL(".", file);
  return /[/\\]/.test(file) ? file.replace(/[/\\][^/\\]*$/, "") || "/" : ".";
}

/**
 * The folder with `vocab.json` and `merges.txt` for a checkpoint: the first of `folders` that has
 * them, itself or in `tokenizer/`; else a snapshot of SD 1.x in the Hugging Face cache; else both
 * files are fetched from the Hub.
 *
 * @param name What messages call the checkpoint.
 * @throws {WeightError} if there is none anywhere; the message says what to do.
 */
export async function findTokenizer(
  name: string,
  folders: readonly Location[],
  hub: HubOptions = {},
): Promise<Location> {
  for (const folder of folders) {
    const found = await vocabularyIn(folder);
    if (found) return found;
  }
  for (const snapshot of await cached(hub)) {
    const found = await vocabularyIn(snapshot);
    if (found) return found;
  }
  try {
    return (await downloadModel({ ...hub, id: ORIGIN, files: () => FILES })).folder;
  } catch (cause) {
    if (!(cause instanceof InputError)) throw cause;
    throw new WeightError(
      `${name}: a single file holds no vocabulary for its text encoder, there is none in ` +
        `${folders.join(", ")} or the Hugging Face cache, and it cannot be fetched ` +
        `(${cause.message.split(";")[0]}); put vocab.json and merges.txt of ` +
        `https://huggingface.co/${ORIGIN} next to the file, or name the folder that holds them ` +
        `as the tokenizer`,
      { cause },
    );
  }
}
