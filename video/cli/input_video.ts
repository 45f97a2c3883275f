/**
 * The clips that a command line names: which part of them is used, and the names under which
 * settings find them again.
 *
 * @module
 */

import { createHash } from "node:crypto";
import type { Device } from "../../core/device.ts";
import { InputError } from "../../core/errors.ts";
import type { Frame } from "../frame.ts";
import { disk, isFolder } from "../output_file.ts";
import type { Size } from "../picture.ts";
import { prepareVideo } from "../prepare_video.ts";
import { openVideo } from "../reader.ts";
import type { GenerateFlags } from "./options.ts";

/** What is taken of which video, as settings hold it. */
export interface VideoNames {
  /** File, or folder of pictures. */
  readonly video?: string;
  /** Its sha256; of a folder that of the list of its pictures' sha256. */
  readonly videoSha256?: string;
  /** Seconds from its beginning at which to begin. */
  readonly start?: number;
  /** Seconds from its beginning at which to end. */
  readonly end?: number;
  /** Frames that are taken of a second of it. */
  readonly videoFps?: number;
  /** Pixels of the longer side. */
  readonly resolution?: number;
}

/** The same where a video is named. */
export interface VideoRequest extends VideoNames {
  readonly video: string;
}

/** A video that is open. */
export interface InputVideo extends Size {
  /** Frames in it. */
  readonly count: number;
  /** Frames a second; absent for a single picture. */
  readonly fps?: number;
  /** What settings hold. */
  readonly names: VideoNames;
  /** Its frames, from the first one at every call. */
  frames(): AsyncIterable<Frame>;
  /** Closes it. */
  close(): Promise<void>;
}

const PICTURE = /\.(png|jpe?g)$/i;

/** The video of the flags, or else the one in a file; `null` if neither names one. */
export function videoRequest(flags: GenerateFlags, stored: VideoNames): VideoRequest | null {
  const { video, start, end, videoFps, resolution } = flags;
  const { videoSha256, ...kept } = stored;
  const base: VideoNames = video === undefined ? { ...kept, videoSha256 } : { video };
  if (base.video === undefined) return null;
  const given = Object.entries({ start, end, videoFps, resolution })
    .filter(([, value]) => value !== undefined);
  return { ...base, ...Object.fromEntries(given), video: base.video };
}

/** Whether a path names a single picture, by its extension. */
export function isPicture(path: string): boolean {
  return PICTURE.test(path);
}

/**
 * Opens the part of a clip that is used: a video, a GIF, a folder of pictures, or a picture.
 *
 * @param fit The size of its frames, cropped in the middle, by its own; none if the resolution
 * decides.
 * @throws {InputError} if it cannot be read, or is not what settings were made with.
 */
export async function openInputVideo(
  request: VideoRequest,
  device: Device,
  fit: (own: Size) => Size | undefined,
): Promise<InputVideo> {
  const { video, videoSha256: wanted, start, end, videoFps, resolution } = request;
  const reader = await openVideo(video);
  try {
    const sha256 = await fingerprint(video);
    if (wanted !== undefined && wanted !== sha256) {
      throw new InputError(
        `${video}: the settings were made with a clip of sha256 ${wanted}, this one has ` +
          `${sha256}; give the right one with --video`,
      );
    }
    const exact = fit(reader.info);
    const size = exact ? { fit: { width: exact.width, height: exact.height } } : { resolution };
    const part = await prepareVideo(device, reader, { start, end, fps: videoFps, ...size });
    return {
      width: part.width,
      height: part.height,
      count: part.count,
      fps: reader.info.kind === "picture" ? undefined : part.fps,
      names: { video, videoSha256: sha256, start, end, videoFps, resolution },
      frames: () => part.frames(),
      close: () => reader.close(),
    };
  } catch (error) {
    await reader.close();
    throw error;
  }
}

/**
 * The sha256 of a file; of a folder that of the list of its pictures' sha256. What lies at an
 * address is not fetched twice for it.
 */
async function fingerprint(path: string): Promise<string | undefined> {
  if (/^https?:/i.test(path)) return undefined;
  const { fs, path: names } = await disk();
  if (!await isFolder(path)) return await sha256OfFile(path);
  const pictures = (await fs.readdir(path)).filter(isPicture).sort();
  const list = createHash("sha256");
  for (const name of pictures) list.update(`${await sha256OfFile(names.join(path, name))}\n`);
  return list.digest("hex");
}

/** Read in pieces: clips may be larger than memory. */
async function sha256OfFile(path: string): Promise<string> {
  const { fs } = await disk();
  const hash = createHash("sha256");
  const file = await fs.open(path);
  try {
    for await (const piece of file.createReadStream()) hash.update(piece);
    return hash.digest("hex");
  } finally {
    await file.close();
  }
}
