/**
 * Reads clips, a frame at a time: MP4, MOV, WebM and MKV, animated GIF and PNG, folders of
 * pictures, and single pictures. Memory does not grow with the length of a clip.
 *
 * ```ts
 * import { openVideo } from "./reader.ts";
 * const reader = await openVideo("clip.mp4");
 * for await (const { width, height } of reader.frames()) console.log(width, height);
 * await reader.close();
 * ```
 *
 * @module
 */

import { type ByteSource, openByteSource } from "../core/byte_source.ts";
import { InputError } from "../core/errors.ts";
import type { Frame } from "./frame.ts";
import { allFrames, framesAt, type FrameStream, type VideoInfo } from "./frame_stream.ts";
import { isFolder } from "./output_file.ts";
import { PNG_SIGNATURE } from "./png.ts";
import { isApng, openApng } from "./reader_apng.ts";
import { openContainer } from "./reader_container.ts";
import { openGif } from "./reader_gif.ts";
import { openPicture, openPictureFolder } from "./reader_pictures.ts";

export type { VideoInfo };

/** An opened clip. */
export interface VideoReader {
  /** What it is. */
  readonly info: VideoInfo;
  /**
   * Its frames from the beginning, as often as it is called: all of them, or those that are on the
   * screen at `times`, seconds in ascending order. A frame belongs to whoever gets it.
   *
   * Throws an {@link InputError} where the file is damaged or ends too early, naming the time, and
   * when the reader is closed.
   */
  frames(times?: readonly number[]): AsyncGenerator<Frame, void>;
  /** Releases the file; frames cannot be read after that. */
  close(): Promise<void>;
}

/** The folder that `source` names, if it names one. */
async function folderOf(source: unknown): Promise<string | undefined> {
  if (typeof source !== "string" && !(source instanceof URL)) return undefined;
  const text = String(source);
  if (/^https?:/i.test(text)) return undefined;
  const path = /^file:/i.test(text) ? (await import("node:url")).fileURLToPath(text) : text;
  return await isFolder(path) ? path : undefined;
}

async function openFile(source: ByteSource): Promise<FrameStream> {
  if (source.size === 0) {
    throw new InputError(`${source.name}: the file is empty; fetch or make it again`);
  }
  const head = await source.read(0, Math.min(8, source.size));
  if (PNG_SIGNATURE.every((byte, i) => head[i] === byte)) {
    return await isApng(source) ? await openApng(source) : await openPicture(source);
  }
  if (head[0] === 0xff && head[1] === 0xd8) return await openPicture(source);
  if (String.fromCharCode(...head.subarray(0, 4)) === "GIF8") return await openGif(source);
  return await openContainer(source);
}

/**
 * Opens a clip, whatever its name: its content tells what it is.
 *
 * @param source A path, an address (the server must answer range requests), a `Blob`, or the bytes
 * of the file; the path of a folder of pictures.
 * @throws {InputError} if it cannot be opened, is nothing that is read here, is damaged, or has no
 * frames; for videos also an unknown codec, transparency, a high dynamic range, and the missing
 * package of codecs.
 */
export async function openVideo(source: string | URL | Blob | Uint8Array): Promise<VideoReader> {
  const folder = await folderOf(source);
  if (folder) return readerOf(await openPictureFolder(folder));
  const file = await openByteSource(source);
  try {
    return readerOf(await openFile(file));
  } catch (error) {
    await file.close();
    throw error;
  }
}

function readerOf(stream: FrameStream): VideoReader {
  const { info } = stream;
  let isClosed = false;
  async function* frames(times?: readonly number[]): AsyncGenerator<Frame, void> {
    if (isClosed) {
      throw new InputError(`${info.name}: the reader is closed; open the clip again`);
    }
    yield* times ? framesAt(stream, times) : allFrames(stream);
  }
  return {
    info,
    frames,
    async close() {
      isClosed = true;
      await stream.close();
    },
  };
}
