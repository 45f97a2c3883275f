/**
 * GIF89a: blocks, LZW, and an encoder that loops for ever. Every frame has a palette of its own,
 * so that nothing has to be known about the frames to come.
 *
 * GIF counts time in hundredths of a second: delays are rounded so that their sum stays right, and
 * are at least 2, because players slow down shorter ones. Above 50 frames a second it runs slower.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { ByteSink, Frame, FrameEncoder } from "./frame.ts";
import { indexColors } from "./palette.ts";
import { asciiJson, settingsText } from "./settings.ts";

const LARGEST = 0xffff;
const LOOP_FOR_EVER = [0x21, 0xff, 11, ...ascii("NETSCAPE2.0"), 3, 1, 0, 0, 0];
const TRAILER = 0x3b;

function ascii(text: string): number[] {
  return Array.from(text, (letter) => letter.charCodeAt(0));
}

const word = (value: number): [number, number] => [value & 255, value >> 8];

/** `bytes` as sub-blocks of at most 255 bytes, each behind its length, and the closing zero. */
function subBlocks(bytes: Uint8Array | number[]): Uint8Array {
  const blocks = new Uint8Array(bytes.length + Math.ceil(bytes.length / 255) + 1);
  let at = 0;
  for (let start = 0; start < bytes.length; start += 255) {
    const block = bytes.slice(start, start + 255);
    blocks[at] = block.length;
    blocks.set(block, at + 1);
    at += block.length + 1;
  }
  return blocks;
}

/**
 * GIF's variant of LZW: codes of `bits + 1` … 12 bits, least significant bit first, beginning
 * with a clear code; the table is cleared when its 4096 codes are used up.
 *
 * @param bits of a palette index, 2 … 8.
 */
export function lzwEncode(indices: Uint8Array, bits: number): Uint8Array {
  const clear = 1 << bits;
  // Entry [prefix, index]: the code of that string, with the number of the table it belongs to
  // above it, which makes clearing the table a matter of counting on.
  const codes = new Int32Array(4096 << bits);
  let generation = 1;
  let next = clear + 2;
  let width = bits + 1;
  let output = new Uint8Array(1024);
  let length = 0, pending = 0, pendingBits = 0;

  const pushByte = (byte: number): void => {
    if (length === output.length) {
      const larger = new Uint8Array(2 * length);
      larger.set(output);
      output = larger;
    }
    output[length++] = byte;
  };
  const emit = (code: number): void => {
    pending |= code << pendingBits;
    pendingBits += width;
    for (; pendingBits >= 8; pendingBits -= 8, pending >>>= 8) pushByte(pending & 255);
  };

  emit(clear);
  let prefix = indices[0];
  for (let i = 1; i < indices.length; i++) {
    const slot = prefix << bits | indices[i];
    if (codes[slot] >> 12 === generation) {
      prefix = codes[slot] & 4095;
      continue;
    }
    emit(prefix);
    prefix = indices[i];
    if (next === 4096) {
      emit(clear);
      generation++;
      next = clear + 2;
      width = bits + 1;
    } else {
      if (next === 1 << width) width++;
      codes[slot] = generation << 12 | next++;
    }
  }
  emit(prefix);
  // The decoder has added one more string by now, and may have widened its codes for it.
  if (next === 1 << width && width < 12) width++;
  emit(clear + 1);
  if (pendingBits > 0) pushByte(pending);
  return output.subarray(0, length);
}

/** Graphic control extension, image descriptor, local palette and pixels of one frame. */
function imageBlocks(frame: Frame, delay: number): Uint8Array[] {
  const { palette, indices } = indexColors(frame);
  const bits = Math.max(2, Math.ceil(Math.log2(palette.length / 3)));
  const table = new Uint8Array(3 << bits);
  table.set(palette);
  const KEEP = 1 << 2;
  const LOCAL_PALETTE = 0x80;
  return [
    Uint8Array.of(0x21, 0xf9, 4, KEEP, ...word(delay), 0, 0),
    Uint8Array.of(
      ...[0x2c, 0, 0, 0, 0, ...word(frame.width), ...word(frame.height)],
      LOCAL_PALETTE | bits - 1,
    ),
    table,
    Uint8Array.of(bits),
    subBlocks(lzwEncode(indices, bits)),
  ];
}

/**
 * Frames → GIF89a, with `settings` as a comment extension.
 *
 * @throws {InputError} from `add`: a side longer than 65535 pixels.
 */
export function gifEncoder(
  sink: ByteSink,
  options: { fps: number; settings?: Record<string, unknown> },
): FrameEncoder {
  const { fps, settings } = options;
  let index = 0;

  const start = async ({ width, height }: Frame): Promise<void> => {
    if (Math.max(width, height) > LARGEST) {
      throw new InputError(`GIF allows at most ${LARGEST} pixels a side: got ${width}x${height}`);
    }
    const screen = [...ascii("GIF89a"), ...word(width), ...word(height), 0x70, 0, 0];
    await sink.write(Uint8Array.from([...screen, ...LOOP_FOR_EVER]));
    if (!settings) return;
    await sink.write(Uint8Array.of(0x21, 0xfe));
    await sink.write(subBlocks(ascii(asciiJson(settingsText(settings)))));
  };

  return {
    async add(frame) {
      if (index === 0) await start(frame);
      const delay = Math.round((index + 1) * 100 / fps) - Math.round(index * 100 / fps);
      index++;
      for (const block of imageBlocks(frame, Math.max(2, Math.min(LARGEST, delay)))) {
        await sink.write(block);
      }
    },
    async end() {
      await sink.write(Uint8Array.of(TRAILER));
    },
    async close() {},
  };
}
