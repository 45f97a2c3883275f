/**
 * The encoders behind the video writer: what they make is decoded again and compared.
 *
 * @module
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { decode, decodeApng } from "fast-png";
import type { ByteSink, Frame, FrameEncoder } from "../video/frame.ts";
import { gifEncoder, lzwEncode } from "../video/gif.ts";
import { rgbToI420 } from "../video/mp4.ts";
import { indexColors } from "../video/palette.ts";
import { encodePng, pngEncoder } from "../video/png.ts";

/** A red disc that moves to the right over a flat blue ground: two colours. */
function disc(index: number, width = 64, height = 64): Frame {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const inside = (x - 12 - 5 * index) ** 2 + (y - height / 2) ** 2 < 100;
      data.set(inside ? [220, 30, 40] : [40, 90, 200], 3 * (y * width + x));
    }
  }
  return { width, height, data };
}

/** Colours that change from pixel to pixel: far more than 256. */
function gradient(width: number, height: number): Frame {
  const data = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    const x = i % width, y = Math.floor(i / width);
    data.set([255 * x / width, 255 * y / height, 128 + 60 * Math.sin(x / 9)], 3 * i);
  }
  return { width, height, data };
}

function meanDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += Math.abs(a[i] - b[i]);
  return sum / a.length;
}

/** What `open`'s encoder makes of `frames`. */
async function encode(
  frames: Frame[],
  open: (sink: ByteSink) => FrameEncoder,
): Promise<Uint8Array> {
  const bytes: number[] = [];
  const encoder = open({
    write(data, position = bytes.length) {
      data.forEach((byte, i) => bytes[position + i] = byte);
      return Promise.resolve();
    },
  });
  for (const frame of frames) await encoder.add(frame);
  await encoder.end();
  await encoder.close();
  return Uint8Array.from(bytes);
}

/** Decodes the code stream of `lzwEncode`, as the GIF89a specification describes the decoder. */
function lzwDecode(bytes: Uint8Array, bits: number): number[] {
  const clear = 1 << bits;
  const output: number[] = [];
  let table: number[][] = [];
  let width = bits + 1, previous: number[] | undefined;
  for (let at = 0;;) {
    let code = 0;
    for (let bit = 0; bit < width; bit++, at++) code |= (bytes[at >> 3] >> (at & 7) & 1) << bit;
    if (code === clear + 1) {
      assert.equal(Math.ceil(at / 8), bytes.length, "bytes behind the end code");
      return output;
    }
    if (code === clear) {
      table = Array.from({ length: clear + 2 }, (_, i) => i < clear ? [i] : []);
      width = bits + 1;
      previous = undefined;
      continue;
    }
    assert.ok(code < table.length || (code === table.length && previous), "code out of range");
    const entry = table[code] ?? [...previous ?? [], (previous ?? [])[0]];
    output.push(...entry);
    if (previous && table.length < 4096) table.push([...previous, entry[0]]);
    if (table.length === 1 << width && width < 12) width++;
    previous = entry;
  }
}

/** The pictures of a GIF that this library wrote, and their delays in hundredths of a second. */
function decodeGif(bytes: Uint8Array): { width: number; delays: number[]; frames: number[][] } {
  const word = (at: number): number => bytes[at] | bytes[at + 1] << 8;
  const delays: number[] = [];
  const frames: number[][] = [];
  let at = 13;
  const blocks = (): Uint8Array => {
    const parts: number[] = [];
    for (; bytes[at] > 0; at += bytes[at] + 1) {
      parts.push(...bytes.subarray(at + 1, at + 1 + bytes[at]));
    }
    at++;
    return Uint8Array.from(parts);
  };
  while (bytes[at] !== 0x3b) {
    if (bytes[at] === 0x21) {
      if (bytes[at + 1] === 0xf9) delays.push(word(at + 4));
      at += 2;
      blocks();
      continue;
    }
    assert.equal(bytes[at], 0x2c);
    const size = 2 << (bytes[at + 9] & 7);
    const palette = bytes.subarray(at + 10, at + 10 + 3 * size);
    at += 10 + 3 * size;
    const bits = bytes[at++];
    const indices = lzwDecode(blocks(), bits);
    frames.push(indices.flatMap((i) => [...palette.subarray(3 * i, 3 * i + 3)]));
  }
  assert.equal(at, bytes.length - 1);
  return { width: word(6), delays, frames };
}

/** Type and data of each chunk of a PNG file. */
function pngChunks(bytes: Uint8Array): { type: string; data: DataView }[] {
  const chunks = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 8; at < bytes.length;) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    chunks.push({ type, data: new DataView(bytes.buffer, bytes.byteOffset + at + 8, length) });
    at += length + 12;
  }
  return chunks;
}

test("a PNG holds exactly the pixels it was given", async () => {
  const frames = fc.integer({ min: 1, max: 17 }).chain((width) =>
    fc.integer({ min: 1, max: 17 }).chain((height) =>
      fc.uint8Array({ minLength: width * height * 3, maxLength: width * height * 3 })
        .map((data) => ({ width, height, data }))
    )
  );
  await fc.assert(
    fc.asyncProperty(frames, async (frame) => {
      const picture = decode(await encodePng(frame), { checkCrc: true });
      assert.deepEqual([picture.width, picture.height], [frame.width, frame.height]);
      assert.equal(picture.channels, 3);
      assert.deepEqual([...picture.data], [...frame.data]);
    }),
    { numRuns: 60 },
  );
});

test("scanline filters make smooth pictures small", async () => {
  const png = await encodePng(gradient(256, 256));
  assert.ok(png.length < 256 * 256 * 3 / 20, `${png.length} bytes`);
});

test("one frame makes a plain PNG, several make an APNG", async () => {
  const settings = { prompt: "馬" };
  const one = await encode([disc(0)], (sink) => pngEncoder(sink, { fps: 4 }));
  assert.deepEqual(pngChunks(one).map(({ type }) => type), ["IHDR", "IDAT", "IEND"]);

  const many = await encode(
    [disc(0), disc(1), disc(2)],
    (sink) => pngEncoder(sink, { fps: 29.97, settings }),
  );
  const chunks = pngChunks(many);
  assert.equal(
    chunks.map(({ type }) => type).join(" "),
    "IHDR iTXt acTL fcTL IDAT fcTL fdAT fcTL fdAT IEND",
  );
  assert.equal(chunks[2].data.getUint32(0), 3);
  const sequence = chunks.filter(({ type }) => type === "fcTL" || type === "fdAT");
  assert.deepEqual(sequence.map(({ data }) => data.getUint32(0)), [0, 1, 2, 3, 4]);
  assert.equal(chunks[3].data.getUint16(20) / chunks[3].data.getUint16(22), 100 / 2997);
  const animation = decodeApng(many, { checkCrc: true });
  animation.frames.forEach(({ data }, i) => assert.deepEqual([...data], [...disc(i).data]));
  assert.equal(animation.frames.length, 3);
});

test("LZW codes decode to what was encoded, beyond full tables", () => {
  const lcg = (n: number): number => (n * 1664525 + 1013904223) >>> 0;
  for (const bits of [2, 3, 8]) {
    const indices = new Uint8Array(20_000);
    for (let i = 0, state = bits; i < indices.length; i++) {
      state = lcg(state);
      indices[i] = state >>> (32 - bits);
    }
    assert.deepEqual(lzwDecode(lzwEncode(indices, bits), bits), [...indices]);
  }
  fc.assert(fc.property(
    fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 300 }),
    (indices) => {
      assert.deepEqual(lzwDecode(lzwEncode(Uint8Array.from(indices), 2), 2), indices);
    },
  ));
});

test("a GIF keeps flat colours exactly, and its delays add up", async () => {
  const frames = [0, 1, 2, 3, 4, 5].map((i) => disc(i, 64, 33));
  const gif = decodeGif(await encode(frames, (sink) => gifEncoder(sink, { fps: 30 })));
  assert.equal(gif.width, 64);
  gif.frames.forEach((pixels, i) => assert.deepEqual(pixels, [...frames[i].data]));
  assert.deepEqual(gif.delays, [3, 4, 3, 3, 4, 3]);
});

test("a palette of 256 colours stays close to many colours, on the mean of an area closest", () => {
  const frame = gradient(64, 64);
  const { palette, indices } = indexColors(frame);
  assert.ok(palette.length <= 256 * 3);
  const pixels = Array.from(indices).flatMap((i) => [...palette.subarray(3 * i, 3 * i + 3)]);
  assert.ok(meanDifference(pixels, frame.data) < 8);
  const mean = (data: ArrayLike<number>, channel: number): number => {
    let sum = 0;
    for (let y = 24; y < 40; y++) {
      for (let x = 24; x < 40; x++) sum += data[3 * (y * 64 + x) + channel];
    }
    return sum / 256;
  };
  for (const channel of [0, 1, 2]) {
    assert.ok(Math.abs(mean(pixels, channel) - mean(frame.data, channel)) < 2);
  }
});

test("RGB to 4:2:0 follows BT.709 and repeats the last row and column", () => {
  const data = Uint8Array.from([255, 0, 0, 255, 0, 0, 255, 0, 0].flatMap((v) => [v, v, v]));
  const planes = rgbToI420({ width: 3, height: 3, data });
  const high = 235, low = 16;
  const row = [high, low, low, low];
  assert.deepEqual([...planes.subarray(0, 16)], [...row, ...row, ...row, ...row]);
  assert.deepEqual([...planes.subarray(16)], Array(8).fill(128));
  const red = rgbToI420({
    width: 2,
    height: 2,
    data: Uint8Array.from(Array(4).fill([255, 0, 0]).flat()),
  });
  assert.deepEqual([...red], [63, 63, 63, 63, 102, 240]);
});
