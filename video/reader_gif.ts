/**
 * Reading GIF87a and GIF89a: blocks, LZW, interlacing, disposal, one picture at a time.
 *
 * What is transparent is white, as in pictures. A delay of less than two hundredths of a second
 * counts as ten, as in browsers and ffmpeg. A missing trailer is forgiven.
 *
 * @module
 */

import type { ByteSource } from "../core/byte_source.ts";
import { InputError } from "../core/errors.ts";
import { type ByteCursor, byteCursor, CutOff } from "./byte_cursor.ts";
import { cutOffError, type FrameStream, type Shot } from "./frame_stream.ts";
import { checkPictureSize } from "./picture.ts";

const EXTENSION = 0x21, IMAGE = 0x2c, TRAILER = 0x3b, GRAPHIC_CONTROL = 0xf9;
const BACKGROUND = 2, PREVIOUS = 3;
const MOST_CODES = 4096;

/** What a graphic control extension says of the image behind it. */
interface Control {
  /** What becomes of the image after its time. */
  readonly disposal: number;
  /** Seconds. */
  readonly delay: number;
  /** The index that leaves pixels as they are; −1 for none. */
  readonly transparent: number;
}

/** One image of a file, not decoded. */
interface GifImage extends Control {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
  readonly isInterlaced: boolean;
  readonly palette: Uint8Array;
  /** Bits of an index. */
  readonly bits: number;
  readonly codes: Uint8Array;
}

interface Screen {
  readonly width: number;
  readonly height: number;
  readonly palette: Uint8Array;
}

const NO_CONTROL: Control = { disposal: 0, delay: 0.1, transparent: -1 };

function damaged(name: string, what: string): InputError {
  return new InputError(`${name}: this GIF file is damaged (${what}); fetch or make it again`);
}

async function readPalette(cursor: ByteCursor, packed: number): Promise<Uint8Array> {
  return await cursor.bytes(packed & 0x80 ? 3 << (packed & 7) + 1 : 0);
}

async function readScreen(cursor: ByteCursor): Promise<Screen> {
  cursor.skip(6);
  const head = await cursor.bytes(7);
  const [width, height] = [head[0] | head[1] << 8, head[2] | head[3] << 8];
  return { width, height, palette: await readPalette(cursor, head[4]) };
}

/** The sub-blocks at the cursor, joined. */
async function readBlocks(cursor: ByteCursor): Promise<Uint8Array> {
  const blocks: Uint8Array[] = [];
  for (;;) {
    const length = await cursor.byte();
    if (length === 0) break;
    blocks.push(await cursor.bytes(length));
  }
  const joined = new Uint8Array(blocks.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const block of blocks) {
    joined.set(block, at);
    at += block.length;
  }
  return joined;
}

function readControl([packed, low, high, transparent]: Uint8Array): Control {
  const delay = low | high << 8;
  return {
    disposal: packed >> 2 & 7,
    delay: (delay < 2 ? 10 : delay) / 100,
    transparent: packed & 1 ? transparent : -1,
  };
}

/** The images of a file, from behind its screen on. */
async function* readImages(
  cursor: ByteCursor,
  screen: Screen,
  name: string,
): AsyncGenerator<GifImage, void> {
  let control = NO_CONTROL;
  while (!cursor.atEnd()) {
    const block = await cursor.byte();
    if (block === TRAILER) return;
    if (block === EXTENSION) {
      const label = await cursor.byte();
      const content = await readBlocks(cursor);
      if (label === GRAPHIC_CONTROL) control = readControl(content);
      continue;
    }
    if (block !== IMAGE) throw damaged(name, `a block of kind ${block}`);
    const head = await cursor.bytes(9);
    const [left, top, width, height] = [0, 2, 4, 6].map((at) => head[at] | head[at + 1] << 8);
    const own = await readPalette(cursor, head[8]);
    const bits = await cursor.byte();
    if (bits < 1 || bits > 11) throw damaged(name, `indices of ${bits} bits`);
    yield {
      ...control,
      ...{ left, top, width, height, bits },
      isInterlaced: (head[8] & 0x40) !== 0,
      palette: own.length > 0 ? own : screen.palette,
      codes: await readBlocks(cursor),
    };
    control = NO_CONTROL;
  }
}

/**
 * Undoes GIF's variant of LZW; see `lzwEncode` in `gif.ts`.
 *
 * @param bits of an index, 1 … 11.
 * @param count Indices wanted; what is missing stays 0.
 * @returns the indices, or `undefined` if a code stands for nothing.
 */
export function lzwDecode(codes: Uint8Array, bits: number, count: number): Uint8Array | undefined {
  const indices = new Uint8Array(count);
  const clear = 1 << bits;
  // A string is its last index behind another string.
  const prefix = new Uint16Array(MOST_CODES);
  const last = Uint8Array.from({ length: MOST_CODES }, (_, code) => code < clear ? code : 0);
  const length = new Uint16Array(MOST_CODES).fill(1, 0, clear);
  let next = clear + 2, width = bits + 1;
  let previous = -1;
  let pending = 0, pendingBits = 0;
  for (let at = 0, out = 0; out < count;) {
    for (; pendingBits < width && at < codes.length; pendingBits += 8) {
      pending |= codes[at++] << pendingBits;
    }
    if (pendingBits < width) break;
    const code = pending & (1 << width) - 1;
    pending >>>= width;
    pendingBits -= width;
    if (code === clear) {
      [next, width, previous] = [clear + 2, bits + 1, -1];
      continue;
    }
    if (code === clear + 1) break;
    // The code being added now stands for the string before it and the first index of that.
    const isNew = code === next && previous >= 0;
    if (code >= next && !isNew) return undefined;
    let string = isNew ? previous : code;
    const end = out + length[string];
    for (let place = end - 1; place >= out; place--, string = prefix[string]) {
      if (place < count) indices[place] = last[string];
    }
    const first = indices[out];
    if (isNew && end < count) indices[end] = first;
    out = isNew ? end + 1 : end;
    if (previous >= 0 && next < MOST_CODES) {
      [prefix[next], last[next], length[next]] = [previous, first, length[previous] + 1];
      next++;
      if (next === 1 << width && width < 12) width++;
    }
    previous = code;
  }
  return indices;
}

/** The rows of an interlaced image in the order in which they are stored. */
function interlacedRows(height: number): number[] {
  const rows: number[] = [];
  for (const [first, step] of [[0, 8], [4, 8], [2, 4], [1, 2]]) {
    for (let row = first; row < height; row += step) rows.push(row);
  }
  return rows;
}

/** Draws an image onto the RGB pixels of the screen. */
function draw(canvas: Uint8Array, screen: Screen, image: GifImage, name: string): void {
  const { left, top, width, height, palette, transparent } = image;
  const indices = lzwDecode(image.codes, image.bits, width * height);
  if (!indices) throw damaged(name, "a code that stands for nothing");
  const rows = image.isInterlaced ? interlacedRows(height) : undefined;
  for (let stored = 0; stored < height; stored++) {
    const y = top + (rows?.[stored] ?? stored);
    if (y >= screen.height) continue;
    for (let x = left; x < Math.min(left + width, screen.width); x++) {
      const index = indices[stored * width + x - left];
      if (index === transparent) continue;
      const at = 3 * (y * screen.width + x);
      for (let c = 0; c < 3; c++) canvas[at + c] = palette[3 * index + c] ?? 0;
    }
  }
}

/** Makes the place of an image white. */
function clearPlace(canvas: Uint8Array, screen: Screen, image: GifImage): void {
  const right = Math.min(image.left + image.width, screen.width);
  for (let y = image.top; y < Math.min(image.top + image.height, screen.height); y++) {
    const row = y * screen.width;
    if (right > image.left) canvas.fill(255, 3 * (row + image.left), 3 * (row + right));
  }
}

/**
 * Opens an animated GIF. Its blocks are counted, so the whole file is read once, but not kept.
 *
 * @throws {InputError} if it is damaged, has no frames, or more than 2²⁵ pixels.
 */
export async function openGif(source: ByteSource): Promise<FrameStream> {
  const { name } = source;
  const delays: number[] = [];
  let isCutOff = false;
  let screen: Screen = { width: 0, height: 0, palette: new Uint8Array(0) };
  try {
    const cursor = byteCursor(source);
    screen = await readScreen(cursor);
    for await (const { delay } of readImages(cursor, screen, name)) delays.push(delay);
  } catch (error) {
    if (!(error instanceof CutOff)) throw error;
    isCutOff = true;
  }
  const { width, height } = screen;
  if (delays.length === 0 || width === 0 || height === 0) {
    throw damaged(name, isCutOff ? "it is cut off before its first frame" : "it has no frames");
  }
  checkPictureSize(name, width, height);
  const duration = Math.round(delays.reduce((sum, delay) => sum + 100 * delay, 0)) / 100;

  async function* shots(): AsyncGenerator<Shot, void> {
    const cursor = byteCursor(source);
    await readScreen(cursor);
    const canvas = new Uint8Array(3 * width * height).fill(255);
    let time = 0;
    let index = 0;
    for await (const image of readImages(cursor, screen, name)) {
      const before = image.disposal === PREVIOUS ? canvas.slice() : undefined;
      draw(canvas, screen, image, name);
      const data = canvas.slice();
      yield { time, rgb: () => ({ width, height, data: data.slice() }), close() {} };
      if (before) canvas.set(before);
      if (image.disposal === BACKGROUND) clearPlace(canvas, screen, image);
      time += image.delay;
      if (++index === delays.length) break;
    }
    if (isCutOff) throw cutOffError(name, time);
  }
  return {
    info: {
      ...{ name, kind: "gif", width, height, duration },
      fps: delays.length / duration,
      frames: delays.length,
      // Hundredths of a second are too coarse for most constant rates.
      hasVariableFrameRate: Math.max(...delays) - Math.min(...delays) > 0.0101,
    },
    shots,
    close: () => source.close(),
  };
}
