/**
 * PNG and APNG (W3C Recommendation "Portable Network Graphics, Third Edition"): chunks, scanline
 * filters, and encoders for one picture and for an animation. Only 8-bit RGB is written.
 *
 * Needs nothing but `CompressionStream`, so it works in browsers too.
 *
 * @module
 */

import { type ByteSink, checkFrame, type Frame, type FrameEncoder } from "./frame.ts";
import { settingsText } from "./settings.ts";

/** The eight bytes that every PNG file begins with. */
export const PNG_SIGNATURE: Uint8Array<ArrayBuffer> = Uint8Array.of(
  ...[0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a],
);

/** The keyword under which settings are stored; registered in the PNG specification. */
export const PNG_KEYWORD = "Comment";

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** The checksum of PNG's chunks. */
export function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc;
}

/** Joins byte arrays into one. */
export function concatBytes(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** A PNG chunk: length, four-letter type, data, and the CRC of type and data. */
export function pngChunk(type: string, ...data: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const chunk = concatBytes(new Uint8Array(8), ...data, new Uint8Array(4));
  const view = new DataView(chunk.buffer);
  view.setUint32(0, chunk.length - 12);
  for (let i = 0; i < 4; i++) chunk[4 + i] = type.charCodeAt(i);
  view.setInt32(chunk.length - 4, crc32(chunk.subarray(4, chunk.length - 4)));
  return chunk;
}

/** The IHDR chunk of an 8-bit RGB picture without interlacing. */
export function pngHeader(width: number, height: number): Uint8Array<ArrayBuffer> {
  return pngChunk("IHDR", bigEndian(width, height), Uint8Array.of(8, 2, 0, 0, 0));
}

/** The iTXt chunk that holds `settings` as JSON; empty when there are none. */
export function pngSettings(settings?: Record<string, unknown>): Uint8Array<ArrayBuffer> {
  if (!settings) return new Uint8Array(0);
  const text = `${PNG_KEYWORD}\0\0\0\0\0${settingsText(settings)}`;
  return pngChunk("iTXt", new TextEncoder().encode(text));
}

/**
 * Filters scanlines for compression: each row is written as whichever of the five predictors
 * (none, left, above, their mean, Paeth) leaves the least sum of absolute differences.
 *
 * @param rgb `height * width * 3` bytes.
 * @param above the row before the first one; zeros when absent.
 * @returns `height * (1 + width * 3)` bytes: the filter's number before each row.
 */
export function filterScanlines(
  rgb: Uint8Array,
  width: number,
  height: number,
  above?: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const stride = width * 3;
  const filtered = new Uint8Array(height * (stride + 1));
  const candidates = Array.from({ length: 5 }, () => new Uint8Array(stride));
  let previous = above ?? new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const row = rgb.subarray(y * stride, (y + 1) * stride);
    const best = filterRow(row, previous, candidates);
    filtered[y * (stride + 1)] = best;
    filtered.set(candidates[best], y * (stride + 1) + 1);
    previous = row;
  }
  return filtered;
}

/** Fills the five candidates for one row and returns the number of the best. */
function filterRow(row: Uint8Array, previous: Uint8Array, candidates: Uint8Array[]): number {
  const [none, sub, up, mean, paeth] = candidates;
  let sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0, sum4 = 0;
  for (let i = 0; i < row.length; i++) {
    const x = row[i];
    const a = i < 3 ? 0 : row[i - 3];
    const b = previous[i];
    const c = i < 3 ? 0 : previous[i - 3];
    const toA = Math.abs(b - c), toB = Math.abs(a - c), toC = Math.abs(a + b - 2 * c);
    none[i] = x;
    sub[i] = x - a;
    up[i] = x - b;
    mean[i] = x - ((a + b) >> 1);
    paeth[i] = x - (toA <= toB && toA <= toC ? a : toB <= toC ? b : c);
    sum0 += x < 128 ? x : 256 - x;
    sum1 += sub[i] < 128 ? sub[i] : 256 - sub[i];
    sum2 += up[i] < 128 ? up[i] : 256 - up[i];
    sum3 += mean[i] < 128 ? mean[i] : 256 - mean[i];
    sum4 += paeth[i] < 128 ? paeth[i] : 256 - paeth[i];
  }
  const sums = [sum0, sum1, sum2, sum3, sum4];
  return sums.indexOf(Math.min(...sums));
}

/** Compresses `bytes` as a zlib stream (RFC 1950). */
async function deflate(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The compressed scanlines of `frame`, as IDAT and fdAT chunks carry them. */
function imageData(frame: Frame): Promise<Uint8Array<ArrayBuffer>> {
  return deflate(filterScanlines(frame.data, frame.width, frame.height));
}

/**
 * A whole PNG file of one frame, with `settings` in an iTXt chunk.
 *
 * @throws {InputError} a frame whose data does not fit its size; settings that are not JSON.
 */
export async function encodePng(
  frame: Frame,
  settings?: Record<string, unknown>,
): Promise<Uint8Array<ArrayBuffer>> {
  checkFrame(frame, 0, undefined);
  return concatBytes(
    PNG_SIGNATURE,
    pngHeader(frame.width, frame.height),
    pngSettings(settings),
    pngChunk("IDAT", await imageData(frame)),
    pngChunk("IEND"),
  );
}

/** Big-endian 32-bit integers. */
function bigEndian(...values: number[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(values.length * 4);
  const view = new DataView(bytes.buffer);
  values.forEach((value, i) => view.setUint32(i * 4, value));
  return bytes;
}

/** The fraction of 16-bit integers nearest to a frame's duration: 4 → 1/4, 29.97 → 100/2997. */
function frameDelay(fps: number): [numerator: number, denominator: number] {
  let best: [number, number] = [1, 1];
  let bestError = Infinity;
  for (let k = 1; k <= 0xffff && k * fps < 0xffff; k++) {
    const denominator = Math.max(1, Math.round(k * fps));
    const error = Math.abs(denominator / k / fps - 1);
    if (error < bestError - 1e-12) [best, bestError] = [[k, denominator], error];
  }
  return best;
}

/**
 * Frames → APNG that loops for ever, or a plain PNG when there is only one frame. The first frame
 * is held back in its compressed form until it is known whether a second one follows; the number
 * of frames, which the format wants at the start, is written there at the end.
 */
export function pngEncoder(
  sink: ByteSink,
  options: { fps: number; settings?: Record<string, unknown> },
): FrameEncoder {
  const settings = pngSettings(options.settings);
  const controlAt = PNG_SIGNATURE.length + 25 + settings.length;
  const [numerator, denominator] = frameDelay(options.fps);
  const delay = bigEndian(numerator * 0x10000 + denominator);
  let first: { frame: Frame; data: Uint8Array } | undefined;
  let frames = 0;
  let sequence = 0;

  const frameControl = (frame: Frame): Uint8Array =>
    pngChunk(
      "fcTL",
      bigEndian(sequence++, frame.width, frame.height, 0, 0),
      delay,
      Uint8Array.of(0, 0),
    );
  const animationControl = (): Uint8Array => pngChunk("acTL", bigEndian(frames, 0));
  const writeFirst = async (animated: boolean): Promise<void> => {
    if (!first) return;
    const { frame, data } = first;
    first = undefined;
    const control = animated ? [animationControl(), frameControl(frame)] : [];
    await sink.write(concatBytes(
      PNG_SIGNATURE,
      pngHeader(frame.width, frame.height),
      settings,
      ...control,
      pngChunk("IDAT", data),
    ));
  };

  return {
    async add(frame) {
      const data = await imageData(frame);
      if (frames++ === 0) {
        first = { frame: { ...frame, data: new Uint8Array(0) }, data };
        return;
      }
      await writeFirst(true);
      await sink.write(frameControl(frame));
      await sink.write(pngChunk("fdAT", bigEndian(sequence++), data));
    },
    async end() {
      await writeFirst(false);
      await sink.write(pngChunk("IEND"));
      if (frames > 1) await sink.write(animationControl(), controlAt);
    },
    async close() {},
  };
}
