/**
 * `--preview`: unfinished latents as a file, and in terminals that show pictures.
 *
 * @module
 */

import type { Tensor } from "../../core/tensor.ts";
import type { StableDiffusion } from "../../models/stable_diffusion.ts";
import { TaesdDecoder } from "../../models/taesd.ts";
import type { Frame } from "../frame.ts";
import { encodePng } from "../png.ts";
import { PREVIEW_FRAMES, previewFrames, type PreviewKind, sideBySide } from "../preview.ts";
import { picturePlace, type PictureProtocol } from "../terminal_picture.ts";
import { writeVideo } from "../writer.ts";
import type { CommandIo } from "./io.ts";
import type { GenerateFlags } from "./options.ts";
import { IN_TERMINAL, type Request, UsageError } from "./request.ts";

/** Lines of the terminal that pictures take at most. */
const MOST_ROWS = 12;

/** Rows of pixels of a picture in the terminal at most: it may be far away. */
const MOST_PIXELS = 192;

/** Shows what unfinished latents look like. */
export interface Preview {
  /** Shows latents `[frames, 4, h, w]`. */
  show(latents: Tensor): Promise<void>;
  /** Frees what it needed. */
  dispose(): void;
}

/**
 * Refuses previews that nobody would see.
 *
 * @throws {UsageError} if only a terminal shall show them, and it does not.
 */
export function checkTerminal({ preview, quiet }: GenerateFlags, { pictures }: CommandIo): void {
  if (preview !== IN_TERMINAL || (pictures && !quiet)) return;
  throw new UsageError(
    `--preview ${IN_TERMINAL} is for terminals that show pictures (kitty, iTerm2, WezTerm, ` +
      `Ghostty), without --quiet; name a file instead`,
  );
}

/**
 * What was asked for by `--preview` and `--taesd`; `null` if nothing was.
 *
 * The built-in model's latents are its own, and its autoencoder is fast: that decodes them. Those of
 * other models are mapped to colours, or decoded by TAESD.
 */
export async function openPreview(
  { model, fps }: Pick<Request, "model"> & { readonly fps: number },
  sd: StableDiffusion,
  { preview, taesd, quiet }: GenerateFlags,
  { pictures, columns, stderr, signal }: CommandIo,
): Promise<Preview | null> {
  if (preview === undefined) return null;
  const terminal = pictures && !quiet ? toTerminal(pictures, columns, stderr) : null;
  const file = preview === IN_TERMINAL ? null : preview;
  const { device, unet } = sd;
  const decoder = taesd === undefined
    ? null
    : await TaesdDecoder.open(taesd, { device, dtype: unet.dtype });
  const kind: PreviewKind = decoder ?? (model ? "linear" : "exact");
  return {
    async show(latents) {
      const frames: Frame[] = [];
      for await (const frame of previewFrames(sd, latents, kind)) frames.push(frame);
      if (file) await writeVideo(frames, file, { fps, overwrite: true, signal });
      await terminal?.(frames);
    },
    dispose: () => decoder?.dispose(),
  };
}

/** Shows frames side by side, always at the same place. */
function toTerminal(
  protocol: PictureProtocol,
  columns: number,
  write: (text: string) => void,
): (frames: readonly Frame[]) => Promise<void> {
  let show: ((png: Uint8Array) => void) | undefined;
  return async (frames) => {
    const { width, height } = frames[0];
    // A character is about twice as high as it is wide. All frames must fit: those of later steps.
    const rows = Math.floor(columns * height / (2 * width * PREVIEW_FRAMES));
    show ??= picturePlace(protocol, Math.max(1, Math.min(MOST_ROWS, rows)), write);
    show(await encodePng(sideBySide(frames, MOST_PIXELS)));
  };
}
