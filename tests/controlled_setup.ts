/**
 * The prompt, size and maps of the tests of videos under control.
 *
 * @module
 */

import { stripes } from "./control_files.ts";

/** What all of them show. */
export const PROMPT = "a horse on a street";
/** As large as the maps. */
export const SIZE = { width: 96, height: 96 } as const;
/** A clip in one step, from noise alone. */
export const QUICK = {
  steps: 1,
  timestepSpacing: "trailing",
  frames: 2,
  seed: 5,
  ...SIZE,
} as const;
/** A map for each of its frames. */
export const MAPS = [0, 1].map((n) => stripes(n));
