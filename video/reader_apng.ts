/**
 * Reading animated PNG (W3C Recommendation "Portable Network Graphics, Third Edition", §11.3.4):
 * every frame is made a PNG file of its own, decoded, and laid on the picture so far.
 *
 * What is transparent is white, as in pictures: a white ground under everything that is laid on it
 * gives the same as a transparent one that is laid on white in the end.
 *
 * @module
 */

import { type ByteSource, reasonOf } from "../core/byte_source.ts";
import { InputError } from "../core/errors.ts";
import { type ByteCursor, byteCursor, CutOff } from "./byte_cursor.ts";
import { cutOffError, type FrameStream, seconds, type Shot } from "./frame_stream.ts";
import { checkPictureSize, decodePng } from "./picture.ts";
import { concatBytes, crc32, PNG_SIGNATURE, pngChunk } from "./png.ts";

const BACKGROUND = 1, PREVIOUS = 2, OVER = 1;

/** A frame control chunk, fcTL. */
interface FrameControl {
  readonly width: number;
  readonly height: number;
  readonly left: number;
  readonly top: number;
  /** Seconds. */
  readonly delay: number;
  /** What becomes of the place after its time. */
  readonly disposal: number;
  readonly blend: number;
}

/** One frame, compressed. */
interface ApngFrame {
  readonly control: FrameControl;
  readonly data: Uint8Array[];
}

interface Chunk {
  readonly type: string;
  readonly data: Uint8Array<ArrayBuffer>;
}

function damaged(name: string, what: string): InputError {
  return new InputError(`${name}: this PNG file is damaged (${what}); fetch or make it again`);
}

/** The chunks of a file up to IEND. */
async function* readChunks(cursor: ByteCursor, name: string): AsyncGenerator<Chunk, void> {
  cursor.skip(PNG_SIGNATURE.length);
  for (;;) {
    const length = new DataView((await cursor.bytes(4)).buffer).getUint32(0);
    const named = await cursor.bytes(4 + length);
    const type = String.fromCharCode(...named.subarray(0, 4));
    const sum = new DataView((await cursor.bytes(4)).buffer).getInt32(0);
    if (sum !== crc32(named)) throw damaged(name, `a wrong checksum of chunk ${type}`);
    yield { type, data: named.slice(4) };
    if (type === "IEND") return;
  }
}

function readControl(data: Uint8Array<ArrayBuffer>): FrameControl {
  const view = new DataView(data.buffer);
  const [width, height, left, top] = [4, 8, 12, 16].map((at) => view.getUint32(at));
  const [numerator, denominator] = [view.getUint16(20), view.getUint16(22)];
  return {
    ...{ width, height, left, top },
    // A denominator of 0 stands for 100. No time at all counts as in a GIF.
    delay: numerator === 0 ? 0.1 : numerator / (denominator || 100),
    disposal: data[24],
    blend: data[25],
  };
}

/** The frames of the animation; the chunks that all of them need are added to `shared`. */
async function* readFrames(
  cursor: ByteCursor,
  name: string,
  shared: Chunk[],
): AsyncGenerator<ApngFrame, void> {
  let frame: ApngFrame | undefined;
  for await (const { type, data } of readChunks(cursor, name)) {
    if (type === "fcTL" || type === "IEND") {
      if (frame) yield frame;
      if (type === "fcTL") frame = { control: readControl(data), data: [] };
    } else if (type === "IHDR" || type === "PLTE" || type === "tRNS") {
      shared.push({ type, data });
    } else if (type === "IDAT") {
      frame?.data.push(data);
    } else if (type === "fdAT") {
      frame?.data.push(data.subarray(4));
    }
  }
}

/** A frame as a PNG file. */
function asFile({ control, data }: ApngFrame, [header, ...shared]: Chunk[]): Uint8Array {
  const own = header.data.slice();
  new DataView(own.buffer).setUint32(0, control.width);
  new DataView(own.buffer).setUint32(4, control.height);
  return concatBytes(
    PNG_SIGNATURE,
    pngChunk("IHDR", own),
    ...shared.map(({ type, data }) => pngChunk(type, data)),
    pngChunk("IDAT", ...data),
    pngChunk("IEND"),
  );
}

/** RGB of a part of a picture with rows of `width` pixels. */
function cut(canvas: Uint8Array, width: number, place: FrameControl): Uint8Array {
  const part = new Uint8Array(3 * place.width * place.height);
  for (let y = 0; y < place.height; y++) {
    const at = 3 * ((place.top + y) * width + place.left);
    part.set(canvas.subarray(at, at + 3 * place.width), 3 * y * place.width);
  }
  return part;
}

/** Puts a part of a picture back. */
function paste(canvas: Uint8Array, width: number, place: FrameControl, part: Uint8Array): void {
  for (let y = 0; y < place.height; y++) {
    const row = part.subarray(3 * y * place.width, 3 * (y + 1) * place.width);
    canvas.set(row, 3 * ((place.top + y) * width + place.left));
  }
}

/** Whether a PNG file is animated: then it says so before its first pixels. */
export async function isApng(source: ByteSource): Promise<boolean> {
  const cursor = byteCursor(source);
  try {
    cursor.skip(PNG_SIGNATURE.length);
    for (;;) {
      const head = await cursor.bytes(8);
      const type = String.fromCharCode(...head.subarray(4));
      if (type === "acTL") return true;
      if (type === "IDAT" || type === "IEND") return false;
      cursor.skip(new DataView(head.buffer).getUint32(0) + 4);
    }
  } catch (error) {
    if (error instanceof CutOff) return false;
    throw error;
  }
}

/**
 * Opens an animated PNG. Its frames are counted, so the whole file is read once, but not kept.
 *
 * @throws {InputError} if it is damaged, has no frames, or more than 2²⁵ pixels.
 */
export async function openApng(source: ByteSource): Promise<FrameStream> {
  const { name } = source;
  const delays: number[] = [];
  const shared: Chunk[] = [];
  let isCutOff = false;
  try {
    for await (const { control } of readFrames(byteCursor(source), name, shared)) {
      delays.push(control.delay);
    }
  } catch (error) {
    if (!(error instanceof CutOff)) throw error;
    isCutOff = true;
  }
  if (delays.length === 0) {
    throw damaged(name, isCutOff ? "it is cut off before its first frame" : "it has no frames");
  }
  const header = new DataView(shared[0].data.buffer);
  const [width, height] = [header.getUint32(0), header.getUint32(4)];
  checkPictureSize(name, width, height);
  const duration = delays.reduce((sum, delay) => sum + delay, 0);

  async function* shots(): AsyncGenerator<Shot, void> {
    const canvas = new Uint8Array(3 * width * height).fill(255);
    let time = 0;
    let index = 0;
    for await (const frame of readFrames(byteCursor(source), name, [])) {
      const { control } = frame;
      if (control.left + control.width > width || control.top + control.height > height) {
        throw damaged(name, `the frame at ${seconds(time)} exceeds the picture`);
      }
      const before = cut(canvas, width, control);
      const white = before.slice().fill(255);
      const ground = control.blend === OVER ? before.slice() : white.slice();
      try {
        paste(canvas, width, control, decodePng(asFile(frame, shared), name, ground).data);
      } catch (cause) {
        if (cause instanceof InputError) throw cause;
        throw damaged(name, `the frame at ${seconds(time)}: ${reasonOf(cause)}`);
      }
      const data = canvas.slice();
      yield { time, rgb: () => ({ width, height, data: data.slice() }), close() {} };
      const isFirst = index++ === 0;
      if (control.disposal === BACKGROUND || control.disposal === PREVIOUS && isFirst) {
        paste(canvas, width, control, white);
      } else if (control.disposal === PREVIOUS) {
        paste(canvas, width, control, before);
      }
      time += control.delay;
      if (index === delays.length) break;
    }
    if (isCutOff) throw cutOffError(name, time);
  }
  return {
    info: {
      ...{ name, kind: "apng", width, height, duration },
      fps: delays.length / duration,
      frames: delays.length,
      hasVariableFrameRate: delays.some((delay) => delay !== delays[0]),
    },
    shots,
    close: () => source.close(),
  };
}
