/**
 * From a request to the clip that the library makes of it.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import type { StableDiffusion } from "../../models/stable_diffusion.ts";
import type { Clip } from "../clip.ts";
import { videoInstructPix2Pix } from "../instruct_pix2pix.ts";
import { inChunks, inWindows } from "../long_video.ts";
import { textToImage } from "../text_to_image.ts";
import { textToVideo } from "../text_to_video_zero.ts";
import type { InputVideo } from "./input_video.ts";
import type { LibraryOptions, Request } from "./request.ts";

/** Makes a clip with a model. */
export type ClipMaker = (sd: StableDiffusion, prompt: string, options: LibraryOptions) => Clip;

/**
 * What makes the clips of a request.
 *
 * @param input What `--video` names, if anything.
 */
export function clipMaker(
  request: Pick<Request, "kind" | "chunkSize" | "window">,
  input: InputVideo | null,
): ClipMaker {
  const { kind, chunkSize, window } = request;
  const whole = kind === "image" ? textToImage : kind === "video" ? textToVideo : editing(input);
  if (kind === "video" && chunkSize === undefined) return inParts(whole, window);
  if (chunkSize === undefined) return whole;
  return (sd, prompt, { frames, frameIds, ...options }) => {
    const count = frames ?? frameIds?.length ?? input?.count ?? 8;
    if (frameIds?.some((id, i) => id !== i)) {
      throw new InputError(
        "chunks take the frames in their order; leave out --frame-ids, or --chunk-size",
      );
    }
    return inChunks(
      count,
      chunkSize,
      (ids) => whole(sd, prompt, { ...options, frameIds: ids, clipFrames: count }),
    );
  };
}

/** Frames of a clip that is made at once if nothing else is said, and of a window of longer ones. */
const AT_ONCE = 48, WINDOW = 24;

/**
 * Long clips in windows, where that changes nothing: each frame has noise of its own and attends to
 * the first one alone.
 */
function inParts(whole: ClipMaker, window: number | undefined): ClipMaker {
  return (sd, prompt, options) => {
    const { frames, frameIds, compat, attention = "first", double, image, smoothing } = options;
    const count = frames ?? frameIds?.length ?? 8;
    const apart = attention === "first" && (compat ?? "framezero") === "framezero" && !double &&
      !image && !smoothing && !frameIds?.some((id, i) => id !== i);
    if (window !== undefined && window > 0 && !apart) {
      throw new InputError(
        "--window makes frames apart from each other, which they are not with --attention, " +
          "--double, --init, smoothing or --frame-ids; leave one of them out",
      );
    }
    const size = window ?? (count > AT_ONCE ? WINDOW : 0);
    if (!apart || size === 0 || count <= size) return whole(sd, prompt, options);
    const { frames: _, ...rest } = options;
    const clipFrames = count;
    return inWindows(
      count,
      size,
      (ids) => whole(sd, prompt, { ...rest, clipFrames, frameIds: ids }),
    );
  };
}

function editing(input: InputVideo | null): ClipMaker {
  if (!input) throw new InputError("there is no video to change; name it with --video");
  const { width, height, count } = input;
  return (sd, instruction, { compat, ...options }) =>
    videoInstructPix2Pix(sd, instruction, {
      width,
      height,
      frames: options.frameIds ? undefined : count,
      ...options,
      compat: compat === "original" ? compat : "framezero",
      video: input.frames(),
    });
}
