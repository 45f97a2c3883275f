/**
 * Finding the vocabulary for checkpoints that bring none: a single file holds weights only.
 *
 * @module
 */

import { InputError, WeightError } from "../core/errors.ts";
import { exists, inside, type Location } from "./checkpoint.ts";
import { cachedSnapshot, modelCache } from "./hub/cache.ts";
import { hubSettings } from "./hub/environment.ts";

/** Repositories on Hugging Face that hold the vocabulary of SD 1.x, all the same. */
const REPOSITORIES = [
  "stable-diffusion-v1-5/stable-diffusion-v1-5",
  "runwayml/stable-diffusion-v1-5",
  "CompVis/stable-diffusion-v1-4",
  "openai/clip-vit-large-patch14",
];

/** Looks into the Hugging Face cache; the network is not used. */
async function cached(): Promise<Location[]> {
  try {
    const { cache } = await hubSettings({ token: null });
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
    const files = ["vocab.json", "merges.txt"].map((name) => exists(inside(place, name)));
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
 * them, itself or in `tokenizer/`; else a snapshot of SD 1.x in the Hugging Face cache.
 *
 * @param name What messages call the checkpoint.
 * @throws {WeightError} if there is none anywhere; the message says what to do.
 */
export async function findTokenizer(
  name: string,
  folders: readonly Location[],
): Promise<Location> {
  for (const folder of folders) {
    const found = await vocabularyIn(folder);
    if (found) return found;
  }
  for (const snapshot of await cached()) {
    const found = await vocabularyIn(snapshot);
    if (found) return found;
  }
  throw new WeightError(
    `${name}: a single file holds no vocabulary for its text encoder, and there is none in ` +
      `${folders.join(", ")} or the Hugging Face cache; put vocab.json and merges.txt of ` +
      `https://huggingface.co/openai/clip-vit-large-patch14 next to the file, or name the folder ` +
      `that holds them as the tokenizer`,
  );
}
