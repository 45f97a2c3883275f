/**
 * Options about what moves in a video, and how it looks over time.
 *
 * @module
 */

import { type Command, InvalidArgumentError } from "commander";
import { type CanvasExtent, checkExtent } from "../canvas.ts";
import { parseMotion } from "../motion.ts";
import { number } from "./values.ts";

/** What the command line says about motion. */
export interface MotionFlags {
  /** Motion of the camera to the right, in 512ths of the width a frame. */
  motionX?: number;
  /** Motion of the camera downwards, in 512ths of the height a frame. */
  motionY?: number;
  /** What the camera does; false if nothing. */
  motion?: string | false;
  /** Whether it moves by parts of latent cells. */
  subCell?: boolean;
  /** Columns and rows of what the camera moves over, in frames; false for the first frame alone. */
  canvas?: CanvasExtent | false;
  /** Make a frame between every two. */
  double?: boolean;
  /** Take flicker of brightness and colour away. */
  deflicker?: boolean;
}

/** What the camera does, in words. */
function motionSentence(text: string): string {
  try {
    parseMotion(text);
    return text;
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
}

/** Columns and rows in frames: `"2x1"`. */
function canvasExtent(text: string): CanvasExtent {
  const [, columns, rows] = /^(\d)x(\d)$/.exec(text.trim()) ?? [];
  const extent = [Number(columns), Number(rows)] as const;
  try {
    checkExtent(extent);
    return extent;
  } catch {
    throw new InvalidArgumentError(
      "It must be columns and rows of 1 to 4 frames, not both 1, such as 2x1.",
    );
  }
}

/** Adds them. */
export function addMotionOptions(command: Command): Command {
  return command
    .option(
      "--motion-x <d>",
      "motion of the camera to the right, in 512ths of the width a frame",
      number(),
    )
    .option(
      "--motion-y <d>",
      "motion of the camera downwards, in 512ths of the height a frame",
      number(),
    )
    .option(
      "--motion <sentence>",
      'what the camera does instead: "pan X Y", "zoom F" or "rotate D" a frame, "orbit R", ' +
        '"shake A", "still"; with ease, ping-pong or once behind; joined by ; and with key ' +
        'frames as in "0: pan 12 0; 12: zoom 1.02 ease"',
      motionSentence,
    )
    .option("--no-motion", "do not move the frames")
    .option("--sub-cell", "move by parts of latent cells, too (default: with --motion)")
    .option("--no-sub-cell", "move by whole latent cells, 8 pixels, as the method does")
    .option(
      "--canvas <columns>x<rows>",
      "make what lies around the first frame, too, and move over it, such as 2x1 (1 to 4 frames)",
      canvasExtent,
    )
    .option("--no-canvas", "move over the first frame alone, whatever --from says")
    .option("--double", "make a frame between every two, and show twice as many a second")
    .option("--deflicker", "take flicker of brightness and colour out of the frames");
}
