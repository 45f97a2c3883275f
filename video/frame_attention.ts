/**
 * To which frames a frame attends.
 *
 * `first` is Text2Video-Zero's (§3.3): everything refers to the first frame, so that frames do not
 * depend on each other and nothing drifts. `first+previous` is the sparse-causal attention of
 * Tune-A-Video (arXiv:2212.11565, §3.2). `window` adds the frame itself and those just before it to
 * the first one, whose look then no longer decides alone.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { LookBack } from "../models/attention.ts";

/** To which frames a frame attends. */
export type FrameAttentionChoice = "first" | "previous" | "first+previous" | "window";

/** All ways to attend to other frames. */
export const FRAME_ATTENTION: readonly FrameAttentionChoice[] = [
  "first",
  "previous",
  "first+previous",
  "window",
];

/**
 * The frames that a frame sees.
 *
 * @param window Frames of the window, the frame itself included.
 * @returns `undefined` for the first frame alone.
 * @throws {InputError} if there is no such choice.
 */
export function lookBackOf(
  attention: FrameAttentionChoice,
  window: number,
): Pick<LookBack, "distances" | "first"> | undefined {
  switch (attention) {
    case "first":
      return undefined;
    case "previous":
      return { distances: [1], first: false };
    case "first+previous":
      return { distances: [1], first: true };
    case "window":
      return { distances: Array.from({ length: window }, (_, i) => window - 1 - i), first: true };
    default:
      throw new InputError(
        `attention must be one of ${FRAME_ATTENTION.join(", ")}, got ${String(attention)}`,
      );
  }
}
