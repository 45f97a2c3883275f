/**
 * From a request to the clip that the library makes of it.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import type { StableDiffusion } from "../../models/stable_diffusion.ts";
import type { Clip } from "../clip.ts";
import { videoInstructPix2Pix } from "../instruct_pix2pix.ts";
import { inChunks } from "../long_video.ts";
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
  request: Pick<Request, "kind" | "chunkSize">,
  input: InputVideo | null,
): ClipMaker {
  const { kind, chunkSize } = request;
  const whole = kind === "image" ? textToImage : kind === "video" ? textToVideo : editing(input);
  if (chunkSize === undefined) return whole;
  return (sd, prompt, { frames, frameIds, ...options }) => {
    const count = frames ?? frameIds?.length ?? input?.count ?? 8;
    if (frameIds?.some((id, i) => id !== i)) {
      throw new InputError(
        "chunks take the frames in their order; leave out --frame-ids, or --chunk-size",
      );
    }
    return inChunks(count, chunkSize, (ids) => whole(sd, prompt, { ...options, frameIds: ids }));
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
