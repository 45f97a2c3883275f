/**
 * Reading GIF, APNG, folders of pictures and single pictures.
 */

import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { pathToFileURL } from "node:url";
import fc from "fast-check";
import { encode as encodeAnyPng } from "fast-png";
import { encode as encodeJpegFile } from "jpeg-js";
import type { Frame } from "../video/frame.ts";
import { lzwEncode } from "../video/gif.ts";
import { concatBytes, encodePng, PNG_SIGNATURE, pngChunk } from "../video/png.ts";
import { openVideo, type VideoReader } from "../video/reader.ts";
import { lzwDecode } from "../video/reader_gif.ts";
import { writeVideo } from "../video/writer.ts";
import { collect, difference, framesInStrip, refuses, videoPath } from "./video_files.ts";

const root = await mkdtemp(join(tmpdir(), "framezero-pictures-"));
after(() => rm(root, { recursive: true, force: true }));

async function within<T>(
  source: string | URL | Uint8Array,
  use: (reader: VideoReader) => Promise<T>,
): Promise<T> {
  const reader = await openVideo(source);
  try {
    return await use(reader);
  } finally {
    await reader.close();
  }
}

const read = (source: string | Uint8Array) => within(source, (reader) => collect(reader.frames()));

const ANIMATIONS = [
  ["animated.gif", "gif", "animated_gif.png"],
  ["animated.png", "apng", "animated_png.png"],
];

for (const [file, kind, strip] of ANIMATIONS) {
  test(`${file} is read as ffmpeg decodes it`, async () => {
    await within(videoPath(file), async ({ info, frames }) => {
      const { name, fps, duration, ...rest } = info;
      assert.equal(name, videoPath(file));
      assert.ok(Math.abs(fps - 24) < 1e-9 && Math.abs(duration - 0.5) < 1e-9, `${fps} ${duration}`);
      assert.deepEqual(rest, {
        ...{ kind, width: 48, height: 32, frames: 12, hasVariableFrameRate: false },
      });
      const all = await collect(frames());
      const wanted = await framesInStrip(strip, 12);
      assert.equal(all.length, 12);
      all.forEach((frame, i) => assert.equal(difference(frame, wanted[i]).max, 0));
      assert.deepEqual(await collect(frames([0.26, 0.26])), [all[6], all[6]]);
    });
  });
}

const PALETTE = [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]];
const LETTERS = "krgbw";

interface Part {
  at?: [left: number, top: number];
  /** Rows of letters of the palette, `.` for what is transparent. */
  rows: string[];
  disposal?: number;
  delay?: number;
  interlaced?: boolean;
  palette?: number[][];
}

/** A GIF of 4×4 pixels; index 7 is transparent. */
function gif(parts: Part[], { trailer = true } = {}): Uint8Array {
  const table = (palette: number[][]) => {
    const colours = [...palette, ...Array(8 - palette.length).fill([9, 9, 9])];
    return colours.flat();
  };
  const image = (part: Part): number[] => {
    const { at = [0, 0], rows, disposal = 0, delay = 10, interlaced = false, palette } = part;
    const [width, height] = [rows[0].length, rows.length];
    const order = interlaced ? [0, 8, 4, 2, 6, 1, 3, 5, 7].filter((y) => y < height) : rows.keys();
    const indices = [...order].flatMap((y) =>
      [...rows[y]].map((letter) => letter === "." ? 7 : LETTERS.indexOf(letter))
    );
    const codes = lzwEncode(Uint8Array.from(indices), 3);
    return [
      ...[0x21, 0xf9, 4, disposal << 2 | 1, delay & 255, delay >> 8, 7, 0],
      ...[0x2c, at[0], 0, at[1], 0, width, 0, height, 0],
      (palette ? 0x82 : 0) | (interlaced ? 0x40 : 0),
      ...palette ? table(palette) : [],
      ...[3, codes.length, ...codes, 0],
    ];
  };
  return Uint8Array.from([
    ..."GIF89a".split("").map((letter) => letter.charCodeAt(0)),
    ...[4, 0, 4, 0, 0x82, 0, 0, ...table(PALETTE)],
    ...parts.flatMap(image),
    ...trailer ? [0x3b] : [],
  ]);
}

/** The pixels of a frame as rows of letters, `w` for white. */
function letters({ width, height, data }: Frame): string {
  const colours = [...PALETTE, [255, 255, 255]];
  const rows = Array.from({ length: height }, (_, y) =>
    Array.from({ length: width }, (_, x) => {
      const pixel = data.subarray(3 * (y * width + x));
      return LETTERS[colours.findIndex((colour) => colour.every((value, c) => value === pixel[c]))];
    }).join(""));
  return rows.join("/");
}

test("GIF images are drawn where they belong and disposed of as they say", async () => {
  const frames = await read(gif([
    { rows: ["rrrr", "rrrr", "rrrr", "rr.."], disposal: 1 },
    { at: [1, 1], rows: ["gg", ".g"], disposal: 2 },
    { at: [3, 3], rows: ["bb", "bb"], disposal: 3 },
    { at: [0, 0], rows: ["k"], disposal: 0 },
    { at: [0, 3], rows: ["..b."] },
  ]));
  assert.deepEqual(frames.map(letters), [
    "rrrr/rrrr/rrrr/rrww",
    "rrrr/rggr/rrgr/rrww",
    "rrrr/rwwr/rwwr/rrwb",
    "krrr/rwwr/rwwr/rrww",
    "krrr/rwwr/rwwr/rrbw",
  ]);
});

test("GIF images may be interlaced, have palettes of their own, and last differently", async () => {
  const own = [[0, 0, 255], [0, 255, 0], [255, 0, 0], [0, 0, 0]];
  const file = gif([
    { rows: ["rrrr", "gggg", "bbbb", "kkkk"], interlaced: true, delay: 0 },
    { rows: ["kkkk", "rrrr", "gggg", "bbbb"], palette: own, delay: 50 },
  ]);
  await within(file, async ({ info, frames }) => {
    const all = await collect(frames());
    assert.deepEqual(all.map(letters), ["rrrr/gggg/bbbb/kkkk", "bbbb/gggg/rrrr/kkkk"]);
    const { duration, fps, hasVariableFrameRate } = info;
    assert.deepEqual([duration, hasVariableFrameRate], [0.6, true]);
    assert.ok(Math.abs(fps - 2 / 0.6) < 1e-9);
    const picked = await collect(frames([0, 0.09, 0.11, 0.59]));
    assert.deepEqual(picked, [all[0], all[0], all[1], all[1]]);
  });
});

test("a GIF may lack its trailer, but no part of an image", async () => {
  const whole = gif([{ rows: ["rr"] }, { rows: ["gg"] }]);
  assert.deepEqual(await read(gif([{ rows: ["rr"] }], { trailer: false })), [
    (await read(whole))[0],
  ]);
  await within(whole.subarray(0, whole.length - 4), async ({ info, frames }) => {
    assert.equal(info.frames, 1);
    const seen: Frame[] = [];
    const reading = (async () => {
      for await (const frame of frames()) seen.push(frame);
    })();
    await refuses(reading, /the file is cut off, its frames end at 0\.1 s;/);
    assert.equal(seen.length, 1);
  });
  await refuses(read(whole.subarray(0, 50)), /GIF .*cut off before its first frame/);
  await refuses(read(gif([])), /GIF .*it has no frames/);
  const strange = gif([{ rows: ["rr"] }]);
  strange[strange.length - 1] = 0x99;
  await refuses(read(strange), /GIF file is damaged \(a block of kind 153\)/);
});

test("LZW codes decode to what was encoded, and damage is noticed", () => {
  fc.assert(fc.property(
    fc.integer({ min: 2, max: 8 }).chain((bits) =>
      fc.record({
        bits: fc.constant(bits),
        indices: fc.array(fc.integer({ min: 0, max: 2 ** bits - 1 }), {
          minLength: 1,
          maxLength: 400,
        }),
      })
    ),
    ({ bits, indices }) => {
      const back = lzwDecode(lzwEncode(Uint8Array.from(indices), bits), bits, indices.length);
      assert.deepEqual([...back ?? []], indices);
    },
  ));
  // Enough noise to fill the table several times.
  const noise = Uint8Array.from({ length: 40_000 }, (_, i) => (i * 2654435761 >>> 0) >>> 24);
  assert.deepEqual(lzwDecode(lzwEncode(noise, 8), 8, noise.length), noise);
  assert.equal(lzwDecode(Uint8Array.of(0b11_110_100), 2, 4), undefined);
});

/** Chunks of an APNG of 2×1 pixels with alpha, whose frames cover both pixels or one. */
function apng(
  frames: { x?: number; rgba: number[]; disposal?: number; blend?: number; delay?: number[] }[],
): Uint8Array {
  const word = (...values: number[]) =>
    values.flatMap((v) => [v >>> 24, v >>> 16 & 255, v >>> 8 & 255, v & 255]);
  const parts = [
    PNG_SIGNATURE,
    pngChunk("IHDR", Uint8Array.from([...word(2, 1), 8, 6, 0, 0, 0])),
    pngChunk("acTL", Uint8Array.from(word(frames.length, 0))),
  ];
  let sequence = 0;
  for (const { x = 0, rgba, disposal = 0, blend = 0, delay = [1, 10] } of frames) {
    const width = rgba.length / 4;
    const control = [
      ...word(sequence++, width, 1, x, 0),
      ...[delay[0] >> 8, delay[0] & 255, delay[1] >> 8, delay[1] & 255, disposal, blend],
    ];
    parts.push(pngChunk("fcTL", Uint8Array.from(control)));
    const file = encodeAnyPng({ width, height: 1, channels: 4, data: Uint8Array.from(rgba) });
    const at = 8 + 25;
    const length = new DataView(file.buffer, file.byteOffset).getUint32(at);
    const data = file.subarray(at + 8, at + 8 + length);
    parts.push(
      sequence === 1
        ? pngChunk("IDAT", data)
        : pngChunk("fdAT", Uint8Array.from(word(sequence++)), data),
    );
  }
  return concatBytes(...parts, pngChunk("IEND"));
}

test("APNG frames are blended and disposed of as they say", async () => {
  const red = [255, 0, 0, 255], half = [0, 0, 255, 128], clear = [0, 0, 0, 0];
  const file = apng([
    { rgba: [...red, ...red] },
    { rgba: [...half, ...clear], blend: 1, disposal: 2, delay: [0, 5] },
    { x: 1, rgba: half, blend: 0, disposal: 1, delay: [3, 0] },
    { rgba: clear, blend: 1 },
  ]);
  await within(file, async ({ info, frames }) => {
    assert.deepEqual((await collect(frames())).map(({ data }) => [...data]), [
      [255, 0, 0, 255, 0, 0],
      [127, 0, 128, 255, 0, 0],
      [255, 0, 0, 127, 127, 255],
      [255, 0, 0, 255, 255, 255],
    ]);
    assert.ok(Math.abs(info.duration - 0.33) < 1e-9);
    assert.equal(info.hasVariableFrameRate, true);
  });
});

test("a damaged APNG gives its frames, then says where it ends", async () => {
  const bytes = await readFile(videoPath("animated.png"));
  const part = bytes.subarray(0, Math.floor(bytes.length * 0.7));
  await refuses(read(part), /the file is cut off, its frames end at 0\.\d+ s;/);
  const changed = new Uint8Array(bytes);
  changed[changed.length - 20] ^= 1;
  await refuses(read(changed), /damaged \(a wrong checksum of chunk/);
});

test("what is written to GIF, APNG and folders is read back", async () => {
  const frames = [0, 1, 2].map((shift) => plain(6, 5, [80 * shift, 200, 30]));
  for (const target of ["own.gif", "own.png", "own"]) {
    const path = join(root, target);
    await writeVideo(frames, path, { fps: 4, settings: { fps: 4 } });
    await within(path, async (reader) => {
      assert.equal(reader.info.fps, 4);
      assert.equal(reader.info.frames, 3);
      assert.deepEqual(await collect(reader.frames()), frames, target);
    });
  }
});

function plain(width: number, height: number, colour: number[]): Frame {
  const data = Uint8Array.from({ length: 3 * width * height }, (_, i) => colour[i % 3]);
  return { width, height, data };
}

function jpeg({ width, height, data }: Frame): Uint8Array {
  const rgba = new Uint8Array(4 * width * height).fill(255);
  for (let i = 0; i < width * height; i++) rgba.set(data.subarray(3 * i, 3 * i + 3), 4 * i);
  return new Uint8Array(encodeJpegFile({ width, height, data: rgba }, 95).data);
}

test("a folder gives its pictures in natural order", async () => {
  const folder = join(root, "numbered");
  await mkdir(folder);
  const shades = [50, 100, 150, 200];
  const [first, second, third, fourth] = shades.map((shade) => plain(8, 8, [shade, shade, shade]));
  await writeFile(join(folder, "shot 10.png"), await encodePng(third));
  await writeFile(join(folder, "shot 9.jpg"), jpeg(second));
  await writeFile(join(folder, "Shot 1.JPEG"), jpeg(first));
  await writeFile(join(folder, "shot 011.PNG"), await encodePng(fourth));
  await writeFile(join(folder, ".hidden.png"), "nothing");
  await writeFile(join(folder, "notes.txt"), "nothing");
  for (const source of [folder, pathToFileURL(folder)]) {
    await within(source, async ({ info, frames }) => {
      const { kind, width, height, fps, frames: count, duration } = info;
      assert.deepEqual([kind, width, height, fps, count], ["folder", 8, 8, 25, 4]);
      assert.equal(duration, 4 / 25);
      const seen = (await collect(frames())).map(({ data }) => data[0]);
      seen.forEach((shade, i) => assert.ok(Math.abs(shade - shades[i]) <= 1, `${seen}`));
      assert.equal((await collect(frames([0.1, 1]))).length, 2);
    });
  }

  await writeFile(join(folder, "shot 12.png"), await encodePng(plain(8, 9, [1, 2, 3])));
  await refuses(openVideo(folder), /must have one size, .*Shot 1\.JPEG has 8x8 and .*12\.png 8x9/);
  const empty = join(root, "empty");
  await mkdir(empty);
  await refuses(openVideo(empty), /empty: a folder must hold pictures .* this one has none/);
});

test("a picture is a clip of one frame", async () => {
  const picture = plain(5, 3, [10, 20, 30]);
  await within(await encodePng(picture), async ({ info, frames }) => {
    const { name: _, ...rest } = info;
    assert.deepEqual(rest, {
      ...{ kind: "picture", width: 5, height: 3, fps: 1, duration: 1, frames: 1 },
      hasVariableFrameRate: false,
    });
    assert.deepEqual(await collect(frames()), [picture]);
    assert.deepEqual(await collect(frames([0, 0.5])), [picture, picture]);
  });
  assert.equal((await read(jpeg(picture))).length, 1);
  await refuses(read(Uint8Array.of(...PNG_SIGNATURE, 1, 2)), /PNG file is damaged/);
});
