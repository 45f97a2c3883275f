/**
 * Writes frames to MP4, WebM, GIF, APNG, PNG, folders of pictures and contact sheets, one frame at
 * a time: memory does not grow with the number of frames, and one pass feeds several files.
 *
 * ```ts
 * import { writeVideo } from "./writer.ts";
 * const frame = { width: 2, height: 1, data: Uint8Array.of(255, 0, 0, 0, 0, 255) };
 * await writeVideo([frame, frame], "flag.gif", { fps: 4, settings: { prompt: "a flag" } });
 * ```
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import { endedBy } from "../core/race.ts";
import { sheetEncoder, type SheetOptions } from "./contact_sheet.ts";
import { checkFrame, type Frame, type FrameEncoder } from "./frame.ts";
import { FRAME_FOLDER_NAMES, frameFolderEncoder } from "./frame_folder.ts";
import { gifEncoder } from "./gif.ts";
import { videoEncoder, type VideoQuality } from "./mp4.ts";
import {
  disk,
  openOutputFile,
  openOutputFolder,
  type Output,
  type OutputFile,
} from "./output_file.ts";
import { pngEncoder } from "./png.ts";
import { settingsText } from "./settings.ts";
import { checkTarget, parseTarget, type TargetFormat } from "./target.ts";

export { readSettings } from "./metadata.ts";
export { checkTarget };
export type { Frame, SheetOptions, VideoQuality };

/** Frames as they come: a clip, an array, a generator, or an asynchronous one. */
export type Frames = (AsyncIterable<Frame> | Iterable<Frame>) & {
  /** What they were made with: stored in the file unless other settings are given. */
  readonly settings?: Readonly<Record<string, unknown>>;
};

/** How a video is written. */
export interface WriteOptions {
  /** Frames a second: above 0, at most 240. Pictures and sheets have no use for it. */
  fps: number;
  /** What the video was made with; stored inside the file as JSON. A clip brings its own. */
  settings?: Readonly<Record<string, unknown>>;
  /** Whether files that are there already may be replaced; no unless told. */
  overwrite?: boolean;
  /** Stops writing; nothing of the video is left behind. */
  signal?: AbortSignal;
  /** Of MP4 and WebM; `"good"` unless told. */
  quality?: VideoQuality;
  /** The layout of contact sheets. */
  sheet?: SheetOptions;
}

/** What was written. */
export interface WrittenVideo {
  /** The file or folder. */
  path: string;
  /** Frames in it. */
  frames: number;
  /** Its size on disk. */
  bytes: number;
}

/** A target being written: what encodes the frames, and where the bytes end up. */
export interface TargetWriter {
  /** Takes the frames. */
  encoder: FrameEncoder;
  /** Takes what the encoder makes of them. */
  output: Output;
}

function fileEncoder(
  format: Exclude<TargetFormat, "folder">,
  output: OutputFile,
  options: WriteOptions,
): FrameEncoder {
  switch (format) {
    case "mp4":
    case "webm":
      return videoEncoder(output, format, options);
    case "gif":
      return gifEncoder(output, options);
    case "png":
      return pngEncoder(output, options);
    case "sheet":
      return sheetEncoder(output, { ...options.sheet, settings: options.settings });
  }
}

async function openTarget(target: string, options: WriteOptions): Promise<TargetWriter> {
  const { overwrite = false } = options;
  const { format, path } = await parseTarget(target);
  if (format === "folder") {
    const output = await openOutputFolder(path, overwrite, FRAME_FOLDER_NAMES);
    return { output, encoder: frameFolderEncoder(output, options) };
  }
  const output = await openOutputFile(path, overwrite);
  try {
    return { output, encoder: fileEncoder(format, output, options) };
  } catch (error) {
    await output.discard();
    throw error;
  }
}

function checkOptions({ fps, settings }: WriteOptions): void {
  if (!(fps > 0 && fps <= 240)) {
    throw new InputError(`fps must be a number above 0, at most 240: got ${fps}`);
  }
  if (settings) settingsText(settings);
}

/** The frames of `frames` until `signal` aborts, which also ends waiting for the next one. */
async function* untilAborted(frames: Frames, signal?: AbortSignal): AsyncGenerator<Frame, void> {
  signal?.throwIfAborted();
  const iterator = Symbol.asyncIterator in frames
    ? frames[Symbol.asyncIterator]()
    : frames[Symbol.iterator]();
  let onAbort = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal?.reason);
    signal?.addEventListener("abort", onAbort);
  });
  const unlessAborted = endedBy(aborted);
  let done = false;
  let waiting = false;
  try {
    while (true) {
      waiting = true;
      const result = await unlessAborted(Promise.resolve(iterator.next()));
      waiting = false;
      done = result.done === true;
      if (result.done) return;
      yield result.value;
      signal?.throwIfAborted();
    }
  } finally {
    signal?.removeEventListener("abort", onAbort);
    const closed = done ? undefined : Promise.resolve(iterator.return?.()).catch(() => {});
    // A generator in the middle of a frame heeds this only after it: that may take long.
    if (!waiting) await closed;
  }
}

/**
 * Feeds every frame to all `writers`, waiting for the slowest, and gives the outputs their names
 * once all of them are whole. On any failure every output is discarded.
 *
 * @throws {InputError} no frames, or frames of different sizes; whatever the frames, the encoders,
 * the disk or `signal` throw.
 */
export async function feedWriters(
  frames: Frames,
  writers: TargetWriter[],
  signal?: AbortSignal,
): Promise<WrittenVideo[]> {
  try {
    let first: Frame | undefined;
    let count = 0;
    for await (const frame of untilAborted(frames, signal)) {
      checkFrame(frame, count, first);
      first ??= { ...frame };
      count++;
      await settled(writers.map(({ encoder }) => encoder.add(frame)));
    }
    if (count === 0) throw new InputError("a video must have at least one frame: got none");
    await settled(writers.map(({ encoder }) => encoder.end()));
    await settled(writers.map(({ output }) => output.flush()));
    signal?.throwIfAborted();
    for (const { output } of writers) await output.commit();
    return writers.map(({ output }) => ({
      path: output.path,
      frames: count,
      bytes: output.size(),
    }));
  } finally {
    for (const { encoder, output } of writers) {
      await encoder.close();
      await output.discard();
    }
  }
}

/** Waits for all of `actions`, also after a failure, so that none still writes; then throws it. */
async function settled(actions: Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(actions)) {
    if (result.status === "rejected") throw result.reason;
  }
}

/**
 * Writes one pass of `frames` to several targets at once; see {@link writeVideo}. Either all of
 * them appear or, on a failure before the last frame is written, none.
 *
 * @returns what was written, in the order of `targets`.
 * @throws {InputError} as {@link writeVideo}; two targets that are the same place.
 */
export async function writeVideos(
  frames: Frames,
  targets: string[],
  given: WriteOptions,
): Promise<WrittenVideo[]> {
  const own = frames.settings && { ...frames.settings, fps: given.fps };
  const options = { ...given, settings: given.settings ?? own };
  checkOptions(options);
  options.signal?.throwIfAborted();
  const names = (await disk()).path;
  const places = new Set<string>();
  for (const target of targets) {
    await checkTarget(target, options);
    const place = names.resolve((await parseTarget(target)).path);
    if (places.has(place)) {
      throw new InputError(`each target must be a place of its own: ${target} is named twice`);
    }
    places.add(place);
  }
  const writers: TargetWriter[] = [];
  try {
    for (const target of targets) writers.push(await openTarget(target, options));
  } catch (error) {
    for (const { output } of writers) await output.discard();
    throw error;
  }
  return await feedWriters(frames, writers, options.signal);
}

/**
 * Writes `frames` to `target`, whose name tells the format: `.mp4` (H.264), `.webm` (VP9), `.gif`,
 * `.png` or `.apng` (animated if there are several frames), a folder (`NAME/`, no extension, or an
 * existing one) for `frame_0000.png`, `frame_0001.png`, …, and `sheet:NAME.png` for one picture
 * of all frames. The target appears when it is whole, or not at all.
 *
 * @returns where it is, its frames, its bytes.
 * @throws {InputError} a target that {@link checkTarget} refuses, `fps` out of range, settings
 * that are not JSON, no frames, frames of different sizes, a full or failing disk.
 * @throws the reason of `options.signal` when it aborts, and whatever producing the frames throws.
 */
export async function writeVideo(
  frames: Frames,
  target: string,
  options: WriteOptions,
): Promise<WrittenVideo> {
  const [written] = await writeVideos(frames, [target], options);
  return written;
}
