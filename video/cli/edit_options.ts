/**
 * The options of the command `edit`.
 *
 * @module
 */

import type { Command } from "commander";
import { addClipOptions } from "./control_options.ts";
import { addFrameOptions, addSharedOptions } from "./options.ts";
import { number } from "./values.ts";

/** Adds the options of `edit`. */
export function addEditOptions(command: Command): Command {
  command
    .option("--video <file>", "what to change: a video, a GIF, a folder of pictures, or a picture")
    .option(
      "--image-guidance <x>",
      "how closely it is followed, 1 to 2 (default: 1)",
      number({ least: 0 }),
    )
    .option("--independent-noise", "draw noise for every frame: less consistent")
    .option(
      "--fps <x>",
      "frames a second (default: as the video)",
      number({ above: 0, most: 240 }),
    );
  return addFrameOptions(addSharedOptions(addClipOptions(command)));
}
