/**
 * From the planes of a decoded picture to RGB, by the colour matrix of the stream.
 *
 * With R, G, B in 0 … 1, Kr and Kb of the matrix (ITU-R BT.601-7, BT.709-6, BT.2020-2) and
 * Kg = 1 − Kr − Kb:
 *
 *     Y = Kr R + Kg G + Kb B,   Cb = (B − Y) / (2 − 2 Kb),   Cr = (R − Y) / (2 − 2 Kr)
 *
 * Bytes hold 16 + 219 Y and 128 + 224 C in the limited range, 255 Y and 128 + 255 C in the full
 * one; with more bits everything is that many times larger.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Frame } from "./frame.ts";

/** Kr and Kb, by WebCodecs' names of the matrices. */
const MATRICES: Record<string, readonly [kr: number, kb: number]> = {
  "bt470bg": [0.299, 0.114],
  "smpte170m": [0.299, 0.114],
  "bt709": [0.2126, 0.0722],
  "bt2020-ncl": [0.2627, 0.0593],
};

/** A decoded picture in memory, as WebCodecs' `VideoFrame.copyTo` leaves it. */
export interface Planes {
  /** WebCodecs' name of the layout: `I420`, `I422P10`, `NV12`, `BGRX`, … */
  readonly format: string | null;
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** All planes; samples of more than 8 bits take two bytes, the low one first. */
  readonly data: Uint8Array<ArrayBuffer>;
  /** Where each plane begins, and how far apart its rows are, in bytes. */
  readonly layout: readonly { readonly offset: number; readonly stride: number }[];
  /** WebCodecs' name of the matrix; `null` or absent, as ffmpeg has it, is BT.601. */
  readonly matrix?: string | null;
  /** Whether the full range of values is used. */
  readonly fullRange: boolean;
}

/**
 * Converts a decoded picture to RGB. Each chroma sample serves the pixels that it was taken from.
 *
 * @param name What messages call the video.
 * @throws {InputError} for a layout or a matrix that is not one of the above.
 */
export function planesToRgb(planes: Planes, name: string): Frame {
  const { format } = planes;
  if (/^(RGB|BGR)[AX]$/.test(format ?? "")) return fromInterleaved(planes);
  const planar = /^I4(20|22|44)A?(?:P(10|12))?$/.exec(format ?? "");
  if (!planar && format !== "NV12") {
    throw new InputError(
      `${name}: pictures must be decoded as I4xx, NV12, RGB or BGR, these are ${format}; ` +
        "convert the video first: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4",
    );
  }
  const [, sampling = "20", bits = "8"] = planar ?? [];
  return fromYCbCr(planes, name, {
    bits: Number(bits),
    halfWidth: sampling === "44" ? 0 : 1,
    halfHeight: sampling === "20" ? 1 : 0,
    interleaved: format === "NV12",
  });
}

function fromInterleaved({ format, width, height, data, layout: [plane] }: Planes): Frame {
  const [red, blue] = format?.startsWith("RGB") ? [0, 2] : [2, 0];
  const rgb = new Uint8Array(3 * width * height);
  for (let y = 0, out = 0; y < height; y++) {
    const row = plane.offset + y * plane.stride;
    for (let at = row; at < row + 4 * width; at += 4) {
      rgb[out++] = data[at + red];
      rgb[out++] = data[at + 1];
      rgb[out++] = data[at + blue];
    }
  }
  return { width, height, data: rgb };
}

/** How the samples of a planar picture lie. */
interface Sampling {
  readonly bits: number;
  /** 1 where a chroma sample serves two columns, else 0. */
  readonly halfWidth: number;
  /** 1 where it serves two rows, else 0. */
  readonly halfHeight: number;
  /** Whether Cb and Cr alternate in one plane. */
  readonly interleaved: boolean;
}

function fromYCbCr(planes: Planes, name: string, sampling: Sampling): Frame {
  const { width, height, fullRange } = planes;
  const { bits, halfWidth, halfHeight, interleaved } = sampling;
  const constants = MATRICES[planes.matrix ?? "smpte170m"];
  if (!constants) {
    throw new InputError(
      `${name}: the colour matrix must be BT.601, BT.709 or BT.2020, it is ${planes.matrix}; ` +
        "convert it first: ffmpeg -i IN -vf scale=out_color_matrix=bt709,format=yuv420p OUT.mp4",
    );
  }
  const wide = bits > 8;
  const samples = wide ? new Uint16Array(planes.data.buffer) : planes.data;
  const [luma, cb, cr] = planes.layout.map(({ offset, stride }) => ({
    offset: wide ? offset / 2 : offset,
    stride: wide ? stride / 2 : stride,
  }));
  const step = interleaved ? 2 : 1;
  const [blue, red] = interleaved ? [cb, { ...cb, offset: cb.offset + 1 }] : [cb, cr];
  // Some decoders leave out the last chroma sample of an odd row and the last row of an odd size.
  const lastColumn = Math.floor(cb.stride / step) - 1;
  const chromaEnd = interleaved ? samples.length : cr.offset;
  const lastRow = Math.floor((chromaEnd - cb.offset) / cb.stride) - 1;

  const scale = 2 ** (bits - 8);
  const black = fullRange ? 0 : 16 * scale;
  const middle = 128 * scale;
  const lumaGain = fullRange ? 255 / (256 * scale - 1) : 255 / (219 * scale);
  const chromaGain = fullRange ? 255 / (256 * scale - 1) : 255 / (224 * scale);
  const [kr, kb] = constants;
  const kg = 1 - kr - kb;
  const redOfCr = 2 * (1 - kr) * chromaGain;
  const blueOfCb = 2 * (1 - kb) * chromaGain;
  const greenOfCr = -redOfCr * kr / kg;
  const greenOfCb = -blueOfCb * kb / kg;

  // Clamped arrays round and clamp while storing.
  const rgb = new Uint8ClampedArray(3 * width * height);
  for (let y = 0, out = 0; y < height; y++) {
    const row = luma.offset + y * luma.stride;
    const chromaRow = Math.min(y >> halfHeight, lastRow);
    const blueRow = blue.offset + chromaRow * blue.stride;
    const redRow = red.offset + chromaRow * red.stride;
    for (let x = 0; x < width; x++) {
      const at = step * Math.min(x >> halfWidth, lastColumn);
      const b = samples[blueRow + at] - middle;
      const r = samples[redRow + at] - middle;
      const light = (samples[row + x] - black) * lumaGain;
      rgb[out++] = light + redOfCr * r;
      rgb[out++] = light + greenOfCr * r + greenOfCb * b;
      rgb[out++] = light + blueOfCb * b;
    }
  }
  return { width, height, data: new Uint8Array(rgb.buffer) };
}
