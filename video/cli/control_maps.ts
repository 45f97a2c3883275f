/**
 * The clips that `--control` names, as maps for a ControlNet: videos of which maps are made, maps
 * that are ready, and keypoints that are drawn.
 *
 * @module
 */

import { InvalidArgumentError } from "commander";
import type { Device } from "../../core/device.ts";
import { InputError } from "../../core/errors.ts";
import { conditionFrames } from "../conditions/condition_frames.ts";
import { readPoses } from "../conditions/keypoints.ts";
import { type ConditionKind, CONDITIONS } from "../conditions/kinds.ts";
import { poseFrames } from "../conditions/pose.ts";
import type { Frame } from "../frame.ts";
import { disk, isFolder } from "../output_file.ts";
import type { Size } from "../picture.ts";
import { extendFrames, type ExtendRule, sizeAt } from "../prepare_video.ts";
import { openInputVideo, type VideoNames } from "./input_video.ts";

/** Maps, in the words of the command line. */
export interface MapsRequest {
  /** What they show. */
  readonly kind: ConditionKind;
  /** Where they lie. */
  readonly file: string;
  /** The sha256 of what lies there, as {@link openInputVideo} has it. */
  readonly sha256?: string;
}

/** How maps are made of what lies there. */
export interface MapsOptions extends Omit<VideoNames, "video" | "videoSha256"> {
  /** Whether the clips are ordinary videos or maps already. Default: the kind's usual one. */
  readonly controlSource?: "video" | "maps";
  /** What becomes of a clip with fewer frames than are asked for. Default `"hold"`. */
  readonly controlShort?: ExtendRule;
}

/** Opened maps. */
export interface ControlMaps extends Size {
  /** How many there are; `null` for a lone picture, which is that of every frame. */
  readonly count: number | null;
  /** Frames a second of the clip; absent where it has no rate. */
  readonly fps?: number;
  /** The sha256 of the file. */
  readonly sha256?: string;
  /** The maps for frames 0 … `count` − 1; can be iterated again. */
  frames(count: number): AsyncIterable<Frame>;
  /** Closes the clip. */
  close(): Promise<void>;
}

/** Maps with their kind in front of a colon: `"canny:dance.mp4"`. */
export function mapsOfKind(text: string): MapsRequest {
  // A single letter is a drive of Windows.
  const [, kind, file] = /^([a-z][a-z0-9_-]+):(.+)$/i.exec(text) ?? [];
  const known = kind?.toLowerCase() ?? "";
  if (Object.hasOwn(CONDITIONS, known)) return { kind: known as ConditionKind, file };
  throw new InvalidArgumentError(
    `It must be a kind of map and a file, such as canny:dance.mp4; the kinds are ${
      Object.keys(CONDITIONS).join(", ")
    }.`,
  );
}

/** What opening maps needs to know besides where they lie. */
export interface MapsContext {
  /** The size of the clip, if it is given. */
  readonly size?: Size;
  /** Pixels of a latent cell: sides of clips are multiples. */
  readonly factor: number;
  /** Pixels of the longer side where nothing else decides. */
  readonly resolution: number;
  /** Told what the user should know. */
  readonly say: (text: string) => void;
}

/**
 * Opens the maps that `--control` names: a video, a GIF, a folder of pictures, one picture for all
 * frames, or the JSON files of keypoints. Maps that are ready keep their size if a model can make
 * it; everything else is scaled as the original's `prepare_video` does.
 *
 * @throws {InputError} if they cannot be read, or are not what settings were made with.
 */
export async function openMaps(
  { kind, file, sha256 }: MapsRequest,
  options: MapsOptions,
  device: Device,
  context: MapsContext,
): Promise<ControlMaps> {
  const { controlSource: source = CONDITIONS[kind].source, controlShort, ...part } = options;
  const { size, factor, resolution, say } = context;
  if (kind === "pose" && await holdsKeypoints(file)) {
    return await openPoses(file, options, context);
  }
  const isWhole = ({ width, height }: Size) => width % factor === 0 && height % factor === 0;
  const input = await openInputVideo(
    { ...part, video: file, videoSha256: sha256, resolution: part.resolution ?? resolution },
    device,
    (own) =>
      size ??
        (source === "maps" && part.resolution === undefined && isWhole(own) ? own : undefined),
  );
  let told = false;
  const remark = (text: string) => {
    if (!told) say(`warning: ${file}: ${text}`);
    told = true;
  };
  const readable = {
    [Symbol.asyncIterator]: () => input.frames()[Symbol.asyncIterator](),
  };
  const conditions = {
    [Symbol.asyncIterator]: () =>
      conditionFrames(device, kind, readable, { source, onRemark: remark }),
  };
  const lone = input.fps === undefined;
  return {
    width: input.width,
    height: input.height,
    count: lone ? null : input.count,
    fps: input.fps,
    sha256: input.names.videoSha256,
    frames: (count) => extended(conditions, count, lone ? "hold" : controlShort),
    close: () => input.close(),
  };
}

/** Frames for a clip of `count`; `"stop"` has been heeded by asking for no more. */
function extended(
  frames: AsyncIterable<Frame>,
  count: number,
  rule: ExtendRule = "hold",
): AsyncIterable<Frame> {
  return extendFrames(frames, count, rule);
}

async function holdsKeypoints(file: string): Promise<boolean> {
  if (/\.json$/i.test(file)) return true;
  if (!await isFolder(file)) return false;
  const { fs } = await disk();
  return (await fs.readdir(file)).some((name) => /_keypoints\.json$/i.test(name));
}

async function openPoses(
  file: string,
  { controlShort, start, end, videoFps, resolution: wanted }: MapsOptions,
  { size, resolution, say }: MapsContext,
): Promise<ControlMaps> {
  if (start !== undefined || end !== undefined || videoFps !== undefined) {
    throw new InputError(
      `${file}: --start, --end and --video-fps choose frames by their times, which keypoints ` +
        "have not; leave them out",
    );
  }
  const { poses, warnings } = await readPoses(file);
  for (const warning of warnings) say(`warning: ${warning}`);
  const canvas = poses.find((pose) => pose.canvas)?.canvas ?? null;
  const drawn = size ?? (canvas && sizeAt(wanted ?? resolution, canvas));
  if (!drawn) {
    throw new InputError(
      `${file}: the keypoints do not say how large their picture was (canvas_width and ` +
        "canvas_height); give the size of the clip with --width and --height",
    );
  }
  const drawings = {
    async *[Symbol.asyncIterator]() {
      yield* poseFrames(poses, drawn, canvas ?? drawn);
    },
  };
  return {
    ...drawn,
    count: poses.length > 1 ? poses.length : null,
    frames: (count) => extended(drawings, count, poses.length > 1 ? controlShort : "hold"),
    close: () => Promise.resolve(),
  };
}
