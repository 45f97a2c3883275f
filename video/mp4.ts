/**
 * MP4 with H.264 and WebM with VP9, 8-bit 4:2:0 in the colours of ITU-R BT.709 (limited range),
 * which ordinary players and browsers show. 4:2:0 needs even sizes: the last column or row is
 * repeated where a size is odd.
 *
 * Timestamps are those of frame i at i/fps seconds: exact in MP4, to the millisecond in WebM,
 * whose clock is that coarse.
 *
 * @module
 */

import type * as Mediabunny from "mediabunny";
import { InputError } from "../core/errors.ts";
import type { ByteSink, Frame, FrameEncoder } from "./frame.ts";
import { settingsText } from "./settings.ts";
import { loadCodecs } from "./webcodecs.ts";

/** How much of the picture to keep: `"small"` files, `"good"` to look at, `"best"` to edit. */
export type VideoQuality = "small" | "good" | "best";

/** Bits a pixel for H.264, whose encoder package ignores quantizers, and quantizers for VP9. */
const QUALITIES: Record<VideoQuality, { bitsPerPixel: number; quantizer: number }> = {
  small: { bitsPerPixel: 0.25, quantizer: 40 },
  good: { bitsPerPixel: 1, quantizer: 20 },
  best: { bitsPerPixel: 4, quantizer: 8 },
};

/** A small picture is nearly all edges and headers: it needs more than its share of bits. */
const LEAST_BITRATE = 250_000;

const BT709: Mediabunny.VideoSampleInit["colorSpace"] = {
  primaries: "bt709",
  transfer: "bt709",
  matrix: "bt709",
  fullRange: false,
};

const even = (size: number): number => size + size % 2;

/**
 * RGB → planar Y'CbCr 4:2:0 by ITU-R BT.709-6 §3 with limited range:
 * Y = 16 + 219 (0.2126 R + 0.7152 G + 0.0722 B), Cb = 128 + 224 (B − Y)/1.8556,
 * Cr = 128 + 224 (R − Y)/1.5748, with R, G, B and Y in 0…1 on the right; chroma of the mean of
 * 2×2 pixels. Beyond the right and lower edge the last pixel is repeated.
 *
 * @returns the planes Y, Cb, Cr of the size rounded up to even numbers.
 */
export function rgbToI420(frame: Frame): Uint8Array<ArrayBuffer> {
  const { data } = frame;
  const width = even(frame.width), height = even(frame.height);
  const planes = new Uint8Array(width * height * 3 / 2);
  const pixel = (x: number, y: number): number =>
    3 * (Math.min(y, frame.height - 1) * frame.width + Math.min(x, frame.width - 1));
  let blueAt = width * height;
  let redAt = blueAt * 5 / 4;
  for (let y = 0; y < height; y += 2) {
    for (let x = 0; x < width; x += 2) {
      let r = 0, g = 0, b = 0;
      for (let corner = 0; corner < 4; corner++) {
        const cx = x + (corner & 1), cy = y + (corner >> 1);
        const at = pixel(cx, cy);
        r += data[at];
        g += data[at + 1];
        b += data[at + 2];
        const luma = 0.2126 * data[at] + 0.7152 * data[at + 1] + 0.0722 * data[at + 2];
        planes[cy * width + cx] = 16.5 + luma * (219 / 255);
      }
      const luma = 0.2126 * r + 0.7152 * g + 0.0722 * b;
      planes[blueAt++] = 128.5 + (b - luma) * (224 / 1020 / 1.8556);
      planes[redAt++] = 128.5 + (r - luma) * (224 / 1020 / 1.5748);
    }
  }
  return planes;
}

/**
 * Frames → MP4 or WebM, with `settings` as the comment tag. The index of an MP4 follows its
 * pictures, so that nothing has to be kept until the end.
 *
 * @throws {InputError} from `add`: the codec package is missing, or the encoder refuses the size.
 */
export function videoEncoder(
  sink: ByteSink,
  container: "mp4" | "webm",
  options: { fps: number; settings?: Record<string, unknown>; quality?: VideoQuality },
): FrameEncoder {
  const { fps, settings, quality = "good" } = options;
  let muxer: Awaited<ReturnType<typeof start>> | undefined;
  let index = 0;
  let failure: unknown;

  async function start(width: number, height: number): Promise<{
    output: Mediabunny.Output;
    source: Mediabunny.VideoSampleSource;
    sample: typeof Mediabunny.VideoSample;
  }> {
    await loadCodecs();
    const media = await import("mediabunny");
    const { bitsPerPixel, quantizer } = QUALITIES[quality];
    const bitrate = Math.ceil(Math.max(LEAST_BITRATE, bitsPerPixel * width * height * fps));
    const source = new media.VideoSampleSource(
      container === "mp4"
        ? { codec: "avc", quality: new media.Quality({ bitrate }) }
        : { codec: "vp9", quality: new media.Quality({ bitrate, quantizer }) },
    );
    const bytes = new WritableStream<Mediabunny.StreamTargetChunk>({
      async write({ data, position }) {
        await sink.write(data, position).catch((error) => {
          failure ??= error;
          throw error;
        });
      },
    });
    const output = new media.Output({
      format: container === "mp4" ? new media.Mp4OutputFormat() : new media.WebMOutputFormat(),
      target: new media.StreamTarget(bytes, { chunked: true, chunkSize: 1 << 20 }),
    });
    // The encoder package rounds this rate down and cannot start at 0.
    output.addVideoTrack(source, fps >= 1 ? { frameRate: fps } : {});
    if (settings) output.setMetadataTags({ comment: settingsText(settings) });
    await output.start();
    return { output, source, sample: media.VideoSample };
  }

  /** Runs `action`; a failure to write comes before whatever the encoder makes of it. */
  async function guarded(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (error) {
      if (failure) throw failure;
      if (error instanceof InputError) throw error;
      throw new InputError(
        `the ${container === "mp4" ? "H.264" : "VP9"} encoder failed: ${error}; ` +
          "use .gif, .png or a folder instead",
        { cause: error },
      );
    }
    if (failure) throw failure;
  }

  return {
    add: (frame) =>
      guarded(async () => {
        const width = even(frame.width), height = even(frame.height);
        muxer ??= await start(width, height);
        const sample = new muxer.sample(rgbToI420(frame), {
          format: "I420",
          codedWidth: width,
          codedHeight: height,
          timestamp: index++ / fps,
          duration: 1 / fps,
          colorSpace: BT709,
        });
        await muxer.source.add(sample).finally(() => sample.close());
      }),
    end: () => guarded(async () => await muxer?.output.finalize()),
    async close() {
      if (muxer && muxer.output.state !== "finalized") {
        await muxer.output.cancel().catch(() => {});
      }
    },
  };
}
