/**
 * Reading MP4, MOV, WebM and MKV: mediabunny takes the file apart, WebCodecs decodes, and
 * `yuv.ts` makes RGB of what comes.
 *
 * Decoders run ahead by at most 40 pictures, whatever the length of the clip.
 *
 * @module
 */

import type * as Mediabunny from "mediabunny";
import { type ByteSource, reasonOf } from "../core/byte_source.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { isBoxFileCutOff, isSegmentFileCutOff } from "./cut_off.ts";
import type { Frame } from "./frame.ts";
import {
  cutOffError,
  type FrameStream,
  seconds,
  type Shot,
  type VideoInfo,
} from "./frame_stream.ts";
import { type Size, upright } from "./picture.ts";
import { stretchTo } from "./stretch.ts";
import { loadCodecs } from "./webcodecs.ts";
import { planesToRgb } from "./yuv.ts";

/** Bytes of the file that are kept in memory. */
const CACHE = 1 << 23;

/** The kinds of files, by mediabunny's names. */
const KINDS: Record<string, "mp4" | "mov" | "webm" | "mkv"> = {
  "MP4": "mp4",
  "QuickTime File Format": "mov",
  "WebM": "webm",
  "Matroska": "mkv",
};

/** EXIF's orientation of a picture to be turned clockwise by 0, 90, 180, 270 degrees. */
const TURNED = [1, 6, 3, 8];
/** The same if it is mirrored left to right after that. */
const TURNED_AND_MIRRORED = [2, 5, 4, 7];

/** What is needed to decode a track and to show its pictures. */
interface Track {
  readonly sink: Mediabunny.VideoSampleSink;
  readonly info: VideoInfo;
  /** When the first frame is shown, by the clock of the file. */
  readonly start: number;
  /** Size with square pixels, before turning; pictures of another size are stretched to it. */
  readonly square: Size;
  /** EXIF's orientation. */
  readonly orientation: number;
  readonly isCutOff: boolean;
}

/**
 * Opens the first video track of a file.
 *
 * @throws {InputError} if it is no such file, is damaged or cut off before its first frame, has no
 * video track or none that can be decoded, is transparent or of high dynamic range, or if the
 * package of codecs is missing.
 */
export async function openContainer(source: ByteSource): Promise<FrameStream> {
  const media = await import("mediabunny");
  const input = new media.Input({
    formats: [media.MP4, media.QTFF, media.MATROSKA, media.WEBM],
    source: new media.CustomSource({
      getSize: () => source.size,
      read: (start, end) => source.read(start, end - start),
      maxCacheSize: CACHE,
      prefetchProfile: /^https?:/i.test(source.name) ? "network" : "fileSystem",
    }),
  });
  try {
    const track = await openTrack(input, source, media);
    return {
      info: track.info,
      shots: (from) => shots(track, from),
      async close() {
        input.dispose();
        await source.close();
      },
    };
  } catch (cause) {
    input.dispose();
    if (cause instanceof InputError || cause instanceof WeightError) throw cause;
    throw new InputError(
      `${source.name}: the file is damaged (${reasonOf(cause)}); fetch or make it again`,
      { cause },
    );
  }
}

async function openTrack(
  input: Mediabunny.Input,
  source: ByteSource,
  media: typeof Mediabunny,
): Promise<Track> {
  const { name } = source;
  if (!await input.canRead()) {
    throw new InputError(
      `${name}: a clip must be an MP4, MOV, WebM, MKV, GIF, PNG or JPEG file or a folder of ` +
        "pictures, by its content this is none; convert it: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4",
    );
  }
  const kind = KINDS[(await input.getFormat()).name];
  const isBoxes = kind === "mp4" || kind === "mov";
  const isCutOff = await (isBoxes ? isBoxFileCutOff : isSegmentFileCutOff)(source);
  const video = await input.getPrimaryVideoTrack();
  if (!video || await new media.EncodedPacketSink(video).getFirstPacket() === null) {
    throw new InputError(
      isCutOff
        ? `${name}: the file is cut off before its first frame; fetch or make it again`
        : `${name}: the file has ${video ? "no frames" : "no video track"}; name another one`,
    );
  }
  await loadCodecs();
  await checkDecodable(name, video);
  const info = await describe(name, kind, video, isCutOff);
  return {
    sink: new media.VideoSampleSink(video),
    info,
    start: Math.max(0, await video.getFirstTimestamp()),
    square: {
      width: await video.getSquarePixelWidth(),
      height: await video.getSquarePixelHeight(),
    },
    orientation: (await video.getFlip() ? TURNED_AND_MIRRORED : TURNED)[
      await video.getRotation() / 90
    ],
    isCutOff,
  };
}

async function checkDecodable(name: string, video: Mediabunny.InputVideoTrack): Promise<void> {
  const advice = "convert the video first: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4";
  if (!await video.canDecode()) {
    const codec = await video.getCodec() ?? await video.getInternalCodecId() ?? "unknown";
    throw new InputError(
      `${name}: the codec must be one that is decoded here (H.264, HEVC, VP8, VP9, AV1), ` +
        `this is ${codec}; ${advice}`,
    );
  }
  if (await video.canBeTransparent()) {
    throw new InputError(`${name}: transparent videos are not read; ${advice}`);
  }
  if (await video.hasHighDynamicRange()) {
    throw new InputError(
      `${name}: a video must have standard dynamic range, this one has a high one (PQ or HLG); ` +
        "map its tones first, with ffmpeg's filter tonemap or in a video editor",
    );
  }
}

async function describe(
  name: string,
  kind: VideoInfo["kind"],
  video: Mediabunny.InputVideoTrack,
  isCutOff: boolean,
): Promise<VideoInfo> {
  const rate = await video.computeFrameRateMetrics();
  const start = await video.getFirstTimestamp();
  const isBoxes = kind === "mp4" || kind === "mov";
  // The tables of MP4 count all packets; other files would have to be read to their end.
  const isCounted = isBoxes || rate.probedPacketCount < 256 && !isCutOff;
  const { packetCount, averagePacketRate } = await video.computePacketStats(
    isCounted ? Infinity : 256,
  );
  const announced = isBoxes || isCutOff ? await video.getDurationFromMetadata() : null;
  const duration = (announced || await video.computeDuration()) - Math.max(0, start);
  const average = isCounted ? packetCount / duration : averagePacketRate;
  // Times rounded to milliseconds would make 23.99 of 24.
  const constant = rate.frameRateIsConstant ? rate.underlyingFrameRate : null;
  return {
    name,
    kind,
    width: await video.getDisplayWidth(),
    height: await video.getDisplayHeight(),
    fps: constant ?? average,
    duration,
    // What lies before time 0 is cut away by an edit list, and not shown.
    frames: isCounted && start >= 0 ? packetCount : null,
    hasVariableFrameRate: !rate.frameRateIsConstant,
  };
}

async function* shots(track: Track, from: number): AsyncGenerator<Shot, void> {
  const { info: { name, duration }, start, isCutOff } = track;
  const samples = track.sink.samples(start + from);
  let end = 0;
  let isDone = false;
  try {
    while (true) {
      const { value: sample, done } = await kept(samples.next());
      if (done) {
        isDone = true;
        break;
      }
      const time = Math.max(0, sample.timestamp - start);
      end = time + sample.duration;
      yield { time, rgb: () => toFrame(sample, track), close: () => sample.close() };
    }
  } catch (cause) {
    if (cause instanceof InputError || cause instanceof WeightError) throw cause;
    throw new InputError(
      `${name}: decoding failed after ${seconds(end)} (${reasonOf(cause)}); ` +
        "the file may be damaged: fetch or make it again",
      { cause },
    );
  } finally {
    // At the end it would close the last picture, which is still in use.
    if (!isDone) await samples.return();
  }
  if (isCutOff) throw cutOffError(name, end, duration);
}

/** Waits for a decoder: Deno would end a program that waits for nothing else. */
async function kept<T>(promise: Promise<T>): Promise<T> {
  const timer = setInterval(() => {}, 60_000);
  try {
    return await promise;
  } finally {
    clearInterval(timer);
  }
}

async function toFrame(
  sample: Mediabunny.VideoSample,
  { info, square, orientation }: Track,
): Promise<Frame> {
  // Pictures that a browser keeps on the GPU have no format until they are copied in one.
  const options: VideoFrameCopyToOptions & { format?: "RGBX" } = sample.format === null
    ? { format: "RGBX" }
    : {};
  const data = new Uint8Array(sample.allocationSize(options));
  const layout = await kept(sample.copyTo(data, options));
  const planes = {
    format: sample.format ?? "RGBX",
    width: sample.visibleRect.width,
    height: sample.visibleRect.height,
    data,
    layout,
    matrix: sample.colorSpace.matrix,
    fullRange: sample.colorSpace.fullRange === true,
  };
  const frame = stretchTo(planesToRgb(planes, info.name), square);
  return upright(frame.data, { width: frame.width, height: frame.height, orientation });
}
