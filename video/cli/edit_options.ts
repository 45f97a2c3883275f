/**
 * The options of the command `edit`.
 *
 * @module
 */

import type { Command } from "commander";
import { addFrameOptions, addSharedOptions, number, whole } from "./options.ts";

/** Adds the options of `edit`. */
export function addEditOptions(command: Command): Command {
  command
    .option("--video <file>", "what to change: a video, a GIF, a folder of pictures, or a picture")
    .option("--start <s>", "seconds at which to begin (default: 0)", number({ least: 0 }))
    .option("--end <s>", "seconds at which to end (default: its end)", number({ above: 0 }))
    .option(
      "--video-fps <x>",
      "frames to take of a second of it (default: all)",
      number({ above: 0, most: 240 }),
    )
    .option("--resolution <px>", "its longer side, if no size is given (default: 512)", whole(1))
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
  return addFrameOptions(addSharedOptions(command));
}
