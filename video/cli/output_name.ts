/**
 * What a result is called where nobody says: after its prompt and seed.
 *
 * @module
 */

import { disk } from "../output_file.ts";

/** `out/<prompt>-<seed>.mp4`, with a number behind it if that is taken and must stay. */
export async function freeName(
  extension: "mp4" | "png",
  prompt: string,
  seed: number,
  overwrite: boolean,
): Promise<string> {
  const { fs } = await disk();
  for (let n = 1;; n++) {
    const name = `out/${slug(prompt)}-${seed}${n > 1 ? `-${n}` : ""}.${extension}`;
    const free = overwrite || await fs.stat(name).then(() => false, () => true);
    if (free) return name;
  }
}

/** The words of a prompt as a file name: `"a-red-heart-in-a-green-meadow"`. */
export function slug(prompt: string): string {
  const words = prompt.normalize("NFKC").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  let name = "";
  for (const word of words) {
    if (name && name.length + word.length >= 48) break;
    name += (name && "-") + [...word].slice(0, 48).join("");
  }
  return name || "clip";
}
