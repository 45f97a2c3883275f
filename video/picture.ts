/**
 * Pictures from files, and onto the size of a clip.
 *
 * A picture of another aspect covers the clip: it is scaled until it fills it, and what stands out
 * on two sides is cut off evenly.
 *
 * @module
 */

import { convertIndexedToRgb, decode as decodePngFile, type DecodedPng } from "fast-png";
import { decode as decodeJpegFile } from "jpeg-js";
import { type ByteSource, openByteSource, reasonOf } from "../core/byte_source.ts";
import type { Device } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { assign, clamp, interpolate } from "../kernels/mod.ts";
import type { Frame } from "./frame.ts";
import { type JpegHead, readJpegHead } from "./jpeg.ts";
import { PNG_SIGNATURE } from "./png.ts";

/** Most pixels of a picture: a channel of it in f32 stays within what every adapter binds. */
const MOST_PIXELS = 2 ** 25;

/**
 * Reads a picture: PNG (any kind; the first frame of an APNG) or JPEG, by its content. What is
 * transparent is laid on white; a photograph is turned upright.
 *
 * @param source A path, an address, a `Blob`, or the bytes of the file.
 * @throws {InputError} if it cannot be opened, is neither, is damaged, or has more than 2²⁵ pixels.
 */
export async function readPicture(
  source: string | URL | Blob | Uint8Array | ByteSource,
): Promise<Frame> {
  const opened = await openByteSource(source);
  try {
    return decodePicture(await opened.read(0, opened.size), opened.name);
  } finally {
    await opened.close();
  }
}

/**
 * The picture in the bytes of a PNG or JPEG file, as {@link readPicture} gives it.
 *
 * @param name What messages call it.
 * @throws {InputError} if it is neither, is damaged, or has more than 2²⁵ pixels.
 */
export function decodePicture(bytes: Uint8Array, name: string): Frame {
  const isPng = PNG_SIGNATURE.every((byte, i) => bytes[i] === byte);
  const isJpeg = bytes[0] === 0xff && bytes[1] === 0xd8;
  if (!isPng && !isJpeg) {
    throw new InputError(
      `${name}: a picture must be a PNG or JPEG file, by its first bytes this is neither; ` +
        "save it as one of these",
    );
  }
  try {
    return isPng ? decodePng(bytes, name) : decodeJpeg(bytes, name);
  } catch (cause) {
    if (cause instanceof InputError) throw cause;
    throw new InputError(
      `${name}: this ${isPng ? "PNG" : "JPEG"} file is damaged (${reasonOf(cause)}); ` +
        "open it in an image editor and save it again",
      { cause },
    );
  }
}

/**
 * Refuses pictures of more than 2²⁵ pixels.
 *
 * @throws {InputError} naming the file.
 */
export function checkPictureSize(name: string, width: number, height: number): void {
  if (width * height <= MOST_PIXELS) return;
  throw new InputError(
    `${name}: a picture may have ${MOST_PIXELS} pixels, this one is ${width}x${height}; ` +
      "save a smaller copy of it",
  );
}

/**
 * The picture in a whole PNG file.
 *
 * @param ground RGB of its size that it is laid on, which is changed; white when absent.
 * @throws {InputError} more than 2²⁵ pixels; other errors if the file is damaged.
 */
export function decodePng(bytes: Uint8Array, name: string, ground?: Uint8Array): Frame {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  // The signature, then the length and name of the first chunk, IHDR, which begins with the size.
  checkPictureSize(name, view.getUint32(16), view.getUint32(20));
  const png = decodePngFile(bytes, { checkCrc: true });
  const { width, height } = png;
  const rgb = ground ?? new Uint8Array(3 * width * height).fill(255);
  const palette = png.palette ?? (png.depth < 8 ? greys(png.depth) : null);
  if (palette) layOn(rgb, convertIndexedToRgb({ ...png, palette }), palette[0].length);
  else layOn(rgb, png.data, png.channels, png.depth === 16 ? 257 : 1);
  return { width, height, data: rgb };
}

/** The palette that few bits of grey amount to. */
function greys(depth: DecodedPng["depth"]): number[][] {
  const most = 2 ** depth - 1;
  return Array.from(
    { length: most + 1 },
    (_, i) => [0, 1, 2].map(() => Math.round(255 * i / most)),
  );
}

/** Draws grey or RGB, with or without alpha, on RGB. */
function layOn(rgb: Uint8Array, data: ArrayLike<number>, channels: number, divisor = 1): void {
  const colours = channels < 3 ? 1 : 3;
  for (let i = 0; i < rgb.length / 3; i++) {
    const at = i * channels;
    const opacity = channels === colours ? 1 : data[at + colours] / divisor / 255;
    for (let c = 0; c < 3; c++) {
      const value = data[at + Math.min(c, colours - 1)] / divisor;
      const ground = rgb[3 * i + c];
      rgb[3 * i + c] = Math.round(ground + opacity * (value - ground));
    }
  }
}

function decodeJpeg(bytes: Uint8Array, name: string): Frame {
  const head = readJpegHead(bytes);
  if (!head) throw new Error("it ends before its picture begins");
  checkPictureSize(name, head.width, head.height);
  const { data } = decodeJpegFile(bytes, {
    useTArray: true,
    formatAsRGBA: false,
    tolerantDecoding: false,
    maxMemoryUsageInMB: 4096,
  });
  return upright(data, head);
}

/** Turns and mirrors the rows of a picture as its orientation says. */
export function upright(data: Uint8Array, { width, height, orientation }: JpegHead): Frame {
  if (orientation === 1) return { width, height, data };
  const swapped = orientation >= 5;
  const fromRight = [2, 3, 7, 8].includes(orientation);
  const fromBottom = [3, 4, 6, 7].includes(orientation);
  const turned = new Uint8Array(data.length);
  for (let i = 0; i < data.length / 3; i++) {
    const column = i % width;
    const row = Math.floor(i / width);
    const x = fromRight ? width - 1 - column : column;
    const y = fromBottom ? height - 1 - row : row;
    const at = swapped ? x * height + y : y * width + x;
    turned.set(data.subarray(3 * i, 3 * i + 3), 3 * at);
  }
  return { width: swapped ? height : width, height: swapped ? width : height, data: turned };
}

/** Width and height in pixels. */
export interface Size {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
}

/** A part of a picture. */
export interface Crop extends Size {
  /** Columns left of it. */
  readonly left: number;
  /** Rows above it. */
  readonly top: number;
}

/** The largest part of a picture in the middle that has the aspect of `size`, to a pixel. */
export function cropTo(picture: Size, size: Size): Crop {
  const scale = Math.max(size.width / picture.width, size.height / picture.height);
  const width = Math.max(1, Math.min(picture.width, Math.round(size.width / scale)));
  const height = Math.max(1, Math.min(picture.height, Math.round(size.height / scale)));
  return {
    width,
    height,
    left: Math.floor((picture.width - width) / 2),
    top: Math.floor((picture.height - height) / 2),
  };
}

/**
 * A picture as the models have it, cropped and scaled to a size (bicubic, antialiased).
 *
 * @returns `[1, 3, height, width]` in [−1, 1].
 */
export function fitPicture(device: Device, picture: Frame, size: Size): Tensor {
  const { width, height } = size;
  const crop = cropTo(picture, size);
  return device.scope(() => {
    const fitted = device.empty([1, 3, height, width]);
    // A channel at a time: three of a large photograph would exceed one binding.
    for (let c = 0; c < 3; c++) {
      device.scope(() => {
        const stored = device.tensor(channel(picture, crop, c), [1, 1, crop.height, crop.width]);
        const same = crop.width === width && crop.height === height;
        const scaled = same ? stored : interpolate(stored, {
          size: [height, width],
          mode: "bicubic",
          antialias: true,
        });
        assign(fitted, clamp(scaled, -1, 1), c * width * height);
      });
    }
    return fitted;
  });
}

function channel({ width, data }: Frame, crop: Crop, c: number): Float32Array<ArrayBuffer> {
  const values = new Float32Array(crop.width * crop.height);
  for (let y = 0; y < crop.height; y++) {
    const row = (crop.top + y) * width + crop.left;
    for (let x = 0; x < crop.width; x++) {
      values[y * crop.width + x] = data[3 * (row + x) + c] / 127.5 - 1;
    }
  }
  return values;
}

/**
 * A mask, cropped as its picture is, at a size: 1 where it is light (a luma of at least one half),
 * else 0. The pixel nearest to the middle of each place decides.
 *
 * @returns `height · width` values.
 */
export function fitMask(mask: Frame, size: Size): Float32Array<ArrayBuffer> {
  const { width, height } = size;
  const crop = cropTo(mask, size);
  const values = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = crop.top + Math.floor((y + 0.5) * crop.height / height);
    for (let x = 0; x < width; x++) {
      const column = crop.left + Math.floor((x + 0.5) * crop.width / width);
      const [r, g, b] = mask.data.subarray(3 * (row * mask.width + column));
      values[y * width + x] = 0.299 * r + 0.587 * g + 0.114 * b >= 127.5 ? 1 : 0;
    }
  }
  return values;
}
