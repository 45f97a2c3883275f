/**
 * `--video`: the frames that a command changes, and the names under which settings find them again.
 *
 * @module
 */

import { openByteSource } from "../../core/byte_source.ts";
import { InputError } from "../../core/errors.ts";
import { sha256Of } from "../../core/sha256.ts";
import type { Frame } from "../frame.ts";
import { disk, isFolder } from "../output_file.ts";
import { decodePicture, type Size } from "../picture.ts";
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
  /** Frames a second; absent for pictures. */
  readonly fps?: number;
  /** What settings hold. */
  readonly names: VideoNames;
  /** Its frames, from the first one at every call. */
  frames(): AsyncIterable<Frame>;
  /** Closes it. */
  close(): Promise<void>;
}

const PICTURE = /\.(png|jpe?g)$/i;

/** Longer side of the pictures that Stable Diffusion 1.x was trained with. */
const DEFAULT_RESOLUTION = 512;

/** Sides are multiples of it: then every level of the UNet has whole cells. */
const SIDE = 64;

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
 * Opens what `--video` names: a picture, or a folder of pictures in the order of their names.
 *
 * @throws {InputError} if it cannot be read, or is not what settings were made with.
 */
export async function openInputVideo(request: VideoRequest): Promise<InputVideo> {
  const { video } = request;
  const files = await isFolder(video) ? await picturesIn(video) : [video];
  return await openPictures(files, request);
}

async function picturesIn(folder: string): Promise<string[]> {
  const { fs, path } = await disk();
  const names = (await fs.readdir(folder)).filter(isPicture)
    .sort(new Intl.Collator("en", { numeric: true }).compare);
  if (names.length) return names.map((name) => path.join(folder, name));
  throw new InputError(`${folder}: there is no PNG or JPEG file in this folder; name another`);
}

async function openPictures(files: readonly string[], request: VideoRequest): Promise<InputVideo> {
  const { video, start, end, videoFps, resolution = DEFAULT_RESOLUTION } = request;
  if (start !== undefined || end !== undefined || videoFps !== undefined) {
    throw new InputError(
      `${video}: --start, --end and --video-fps choose frames by their times, which pictures ` +
        "have not; leave them out",
    );
  }
  const digests: string[] = [];
  for (const file of files) digests.push(await sha256Of((await bytesOf(file)).bytes));
  const list = new TextEncoder().encode(digests.join("\n"));
  const videoSha256 = await isFolder(video) ? await sha256Of(list) : digests[0];
  checkSame(request, videoSha256);
  const read = async (file: string): Promise<Frame> => {
    const { bytes, name } = await bytesOf(file);
    return decodePicture(bytes, name);
  };
  return {
    ...fittedSize(await read(files[0]), resolution),
    count: files.length,
    names: { video, videoSha256, resolution },
    async *frames() {
      for (const file of files) yield await read(file);
    },
    close: () => Promise.resolve(),
  };
}

async function bytesOf(file: string): Promise<{ bytes: Uint8Array; name: string }> {
  const source = await openByteSource(file);
  try {
    return { bytes: await source.read(0, source.size), name: source.name };
  } finally {
    await source.close();
  }
}

function checkSame({ video, videoSha256: wanted }: VideoRequest, sha256: string): void {
  if (wanted === undefined || wanted === sha256) return;
  throw new InputError(
    `${video}: the settings were made with a video of sha256 ${wanted}, this one has ${sha256}; ` +
      "give the right one with --video",
  );
}

/** The size whose longer side is `resolution`, both sides rounded to whole cells of the UNet. */
function fittedSize({ width, height }: Size, resolution: number): Size {
  const side = (pixels: number) => {
    const scaled = pixels * resolution / Math.max(width, height);
    return Math.max(SIDE, Math.round(scaled / SIDE) * SIDE);
  };
  return { width: side(width), height: side(height) };
}
