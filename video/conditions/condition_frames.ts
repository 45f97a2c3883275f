/**
 * From a clip, ordinary or of ready maps, to the frames that a ControlNet is shown.
 *
 * @module
 */

import type { Device } from "../../core/device.ts";
import { InputError } from "../../core/errors.ts";
import { checkFrame, type Frame } from "../frame.ts";
import type { Frames } from "../writer.ts";
import { canny, type CannyOptions, checkCanny } from "./canny.ts";
import { type ConditionKind, CONDITIONS } from "./kinds.ts";
import { type DepthBounds, inverted, isLight, normaliseDepth, shareOfBlack } from "./maps.ts";

/** How conditions are made. */
export interface ConditionOptions extends CannyOptions {
  /**
   * What the frames are: an ordinary video, of which maps have to be made, or ready maps. Default:
   * the video for `"canny"`, maps for all others. Line art and scribbles can be made as well: their
   * lines are then Canny's edges.
   */
  source?: "video" | "maps";
  /**
   * Whether ready maps are inverted. Default: dark lines on white are, by the look of the first
   * frame, with a remark; nothing else is.
   */
  invert?: boolean;
  /**
   * The scale of depth: the bounds of the whole clip, which is read twice for them, given bounds,
   * or the maps as they are. Default `"clip"`.
   */
  depth?: "clip" | "keep" | DepthBounds;
  /** Told what the user should know. */
  onRemark?: (remark: string) => void;
}

/** Share of black below which a picture hardly is a drawing of skeletons. */
const BLACK_GROUND = 0.5;

/**
 * The conditions of a clip, one frame at a time: RGB, whose levels 0 … 255 are a ControlNet's
 * 0 … 1. They have the size of the clip.
 *
 * @throws {InputError} an unknown kind; an ordinary video for a kind that is not made here;
 * settings of {@link canny} that are out of range; what {@link normaliseDepth} refuses; frames of
 * different sizes.
 */
export async function* conditionFrames(
  device: Device,
  kind: ConditionKind,
  frames: Frames,
  options: ConditionOptions = {},
): AsyncGenerator<Frame, void> {
  const settings = settle(kind, options);
  let first: Frame | undefined;
  let index = 0;
  for await (const frame of mapsOf(device, kind, frames, settings)) {
    checkFrame(frame, index++, first);
    first ??= { ...frame, data: frame.data.subarray(0, 0) };
    yield frame;
  }
}

type Settled = ConditionOptions & Required<Pick<ConditionOptions, "source" | "depth">>;

function settle(kind: ConditionKind, options: ConditionOptions): Settled {
  if (!Object.hasOwn(CONDITIONS, kind)) {
    throw new InputError(
      `a condition must be one of ${Object.keys(CONDITIONS).join(", ")}: got "${kind}"`,
    );
  }
  const { maker, map, source: usual } = CONDITIONS[kind];
  const { source = usual, depth = "clip" } = options;
  if (source === "video" && maker !== null) {
    throw new InputError(
      `${kind} is not made of ordinary videos here: give a clip of maps (${map}) that ${maker} ` +
        "has made",
    );
  }
  checkCanny(options);
  return { ...options, source, depth };
}

async function* mapsOf(
  device: Device,
  kind: ConditionKind,
  frames: Frames,
  settings: Settled,
): AsyncGenerator<Frame, void> {
  const { source, depth } = settings;
  if (source === "video") {
    for await (const frame of frames) yield await canny(device, frame, settings);
    return;
  }
  const scaled = kind === "depth" && depth !== "keep"
    ? normaliseDepth(frames, depth === "clip" ? undefined : depth)
    : frames;
  let invert: boolean | undefined;
  for await (const frame of scaled) {
    invert ??= settings.invert ?? lookAt(frame, kind, settings);
    yield invert ? inverted(frame) : frame;
  }
}

/** Whether maps that begin with this one have to be inverted; remarks on what is odd about it. */
function lookAt(first: Frame, kind: ConditionKind, { onRemark }: Settled): boolean {
  const { lines, map } = CONDITIONS[kind];
  if (kind === "pose" && shareOfBlack(first) < BLACK_GROUND) {
    onRemark?.(`a clip of poses should be ${map}; this one does not look like it`);
  }
  if (!lines || !isLight(first)) return false;
  onRemark?.(`the maps are lines on a light ground; they are inverted, as ${kind} wants ${map}`);
  return true;
}
