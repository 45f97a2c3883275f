/**
 * Pictures from files, and onto the size of a clip.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import fc from "fast-check";
import { encode as encodeAnyPng } from "fast-png";
import { encode as encodeJpegFile } from "jpeg-js";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import type { Frame } from "../video/frame.ts";
import { cropTo, decodePicture, fitMask, fitPicture, readPicture } from "../video/picture.ts";
import { encodePng } from "../video/png.ts";

const device = await openDevice();
after(() => device.close());

/** A picture of blocks of 8×8 pixels in the given colours, row by row. */
function blocks(colours: readonly (readonly (readonly number[])[])[]): Frame {
  const [width, height] = [8 * colours[0].length, 8 * colours.length];
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    data.set(colours[Math.floor(i / width / 8)][Math.floor(i % width / 8)], 3 * i);
  }
  return { width, height, data };
}

const [RED, GREEN, BLUE] = [[200, 30, 30], [30, 180, 40], [30, 40, 190]];
const GREY = [128, 128, 128], BLACK = [0, 0, 0], WHITE = [255, 255, 255];
const SCENE = blocks([[RED, GREEN, BLUE], [GREY, BLACK, WHITE]]);

function jpegOf({ width, height, data }: Frame): Uint8Array {
  const rgba = new Uint8Array(4 * width * height).fill(255);
  for (let i = 0; i < width * height; i++) rgba.set(data.subarray(3 * i, 3 * i + 3), 4 * i);
  return new Uint8Array(encodeJpegFile({ width, height, data: rgba }, 95).data);
}

/** The file with Exif's orientation behind its first two bytes, in either order of bytes. */
function oriented(jpeg: Uint8Array, orientation: number, little: boolean): Uint8Array {
  const segment = new Uint8Array(36);
  const view = new DataView(segment.buffer);
  view.setUint16(0, 0xffe1);
  view.setUint16(2, 34);
  segment.set([...("Exif\0\0")].map((c) => c.charCodeAt(0)), 4);
  view.setUint16(10, little ? 0x4949 : 0x4d4d);
  view.setUint16(12, 42, little);
  view.setUint32(14, 8, little);
  view.setUint16(18, 1, little);
  view.setUint16(20, 0x0112, little);
  view.setUint16(22, 3, little);
  view.setUint32(24, 1, little);
  view.setUint16(28, orientation, little);
  return Uint8Array.of(...jpeg.subarray(0, 2), ...segment, ...jpeg.subarray(2));
}

/** The colours in the middle of the blocks, each as the nearest of the scene's. */
function readBlocks({ width, height, data }: Frame): string {
  const names = Object.entries({ R: RED, G: GREEN, B: BLUE, g: GREY, k: BLACK, w: WHITE });
  const rows = Array.from(
    { length: height / 8 },
    (_, y) =>
      Array.from({ length: width / 8 }, (_, x) => {
        const at = 3 * ((8 * y + 4) * width + 8 * x + 4);
        const far = (colour: number[]) =>
          colour.reduce((sum, value, c) => sum + Math.abs(value - data[at + c]), 0);
        return names.reduce((best, next) => far(next[1]) < far(best[1]) ? next : best)[0];
      }).join(""),
  );
  return rows.join("/");
}

test("a PNG file of ours is read back exactly, from bytes and from a Blob", async () => {
  const bytes = await encodePng(SCENE);
  assert.deepEqual(decodePicture(bytes, "a.png"), SCENE);
  assert.deepEqual(await readPicture(new Blob([bytes])), SCENE);
});

test("PNG files of other kinds become 8-bit RGB on white", () => {
  const read = (
    png: Parameters<typeof encodeAnyPng>[0],
  ) => [...decodePicture(encodeAnyPng(png), "a.png").data];
  const size = { width: 2, height: 1 };
  assert.deepEqual(read({ ...size, data: Uint8Array.of(7, 200), channels: 1 }), [
    ...[7, 7, 7],
    ...[200, 200, 200],
  ]);
  const deep = Uint16Array.of(0, 257, 65535, 128 * 257, 300, 65000);
  assert.deepEqual(
    read({ ...size, data: deep, channels: 3, depth: 16 }),
    Array.from(deep, (value) => Math.round(value / 257)),
  );
  const clear = Uint8Array.of(10, 20, 30, 0, 10, 20, 30, 102);
  assert.deepEqual(read({ ...size, data: clear, channels: 4 }), [255, 255, 255, 157, 161, 165]);
  const palette = [[1, 2, 3], [200, 100, 50]];
  assert.deepEqual(read({ ...size, data: Uint8Array.of(1, 0), channels: 1, palette }), [
    ...palette[1],
    ...palette[0],
  ]);
});

test("a JPEG file is read, and turned upright by its orientation", () => {
  const jpeg = jpegOf(SCENE);
  assert.equal(readBlocks(decodePicture(jpeg, "a.jpg")), "RGB/gkw");
  const turned = [
    ...["RGB/gkw", "BGR/wkg", "wkg/BGR", "gkw/RGB"],
    ...["Rg/Gk/Bw", "gR/kG/wB", "wB/kG/gR", "Bw/Gk/Rg"],
  ];
  turned.forEach((want, i) => {
    for (const little of [true, false]) {
      assert.equal(readBlocks(decodePicture(oriented(jpeg, i + 1, little), "a.jpg")), want);
    }
  });
});

test("what is no picture is refused in words", async () => {
  const png = await encodePng(SCENE);
  const jpeg = jpegOf(SCENE);
  const huge = Uint8Array.from(png);
  new DataView(huge.buffer).setUint32(16, 1 << 22);
  const flipped = Uint8Array.from(png);
  flipped[60] ^= 255;
  const cases: [string, Uint8Array, RegExp][] = [
    ["empty", new Uint8Array(0), /a\.x: a picture must be a PNG or JPEG file/],
    ["text", new TextEncoder().encode("GIF89a…"), /neither; save it as one of these/],
    ["half a PNG", png.subarray(0, 60), /this PNG file is damaged/],
    ["its head", png.subarray(0, 8), /this PNG file is damaged/],
    ["a flipped byte", flipped, /this PNG file is damaged/],
    ["half a JPEG", jpeg.subarray(0, jpeg.length / 2), /this JPEG file is damaged/],
    ["its head", jpeg.subarray(0, 3), /JPEG file is damaged \(it ends before/],
    ["too large", huge, /may have 33554432 pixels, this one is 4194304x16; save a smaller/],
  ];
  for (const [what, bytes, message] of cases) {
    assert.throws(
      () => decodePicture(bytes, "a.x"),
      (error: unknown) => error instanceof InputError && message.test(error.message),
      what,
    );
  }
  await assert.rejects(readPicture("no/such/file.png"), InputError);
});

test("the crop has the clip's aspect, lies in the middle, and is as large as can be", () => {
  const side = fc.integer({ min: 1, max: 4000 });
  const size = fc.record({ width: side, height: side });
  fc.assert(fc.property(size, size, (picture, clip) => {
    const { left, top, width, height } = cropTo(picture, clip);
    assert.ok(width >= 1 && height >= 1 && left >= 0 && top >= 0);
    assert.ok(left + width <= picture.width && top + height <= picture.height);
    assert.ok(Math.abs(picture.width - width - 2 * left) <= 1);
    assert.ok(Math.abs(picture.height - height - 2 * top) <= 1);
    assert.ok(width === picture.width || height === picture.height);
    const wide = width * clip.height / clip.width;
    assert.ok(
      Math.abs(wide - height) <= 0.5 * Math.max(1, clip.height / clip.width) + 1e-6 ||
        height === 1 || width === 1,
    );
  }));
});

test("a picture of the clip's size stays exact; others are cropped and scaled", async () => {
  const same = fitPicture(device, SCENE, SCENE);
  assert.deepEqual(same.shape, [1, 3, 16, 24]);
  const plane = 16 * 24;
  (await same.data()).forEach((value, i) => {
    const byte = SCENE.data[3 * (i % plane) + Math.floor(i / plane)];
    assert.equal(value, Math.fround(byte / 127.5 - 1));
  });
  // The outer columns are cut off: what is left is one colour above another.
  const middle = fitPicture(device, SCENE, { width: 16, height: 32 });
  const values = await middle.data();
  assert.deepEqual(middle.shape, [1, 3, 32, 16]);
  for (let c = 0; c < 3; c++) {
    const at = (x: number, y: number) => 127.5 * (values[c * 512 + y * 16 + x] + 1);
    for (const x of [0, 7, 15]) {
      assert.ok(Math.abs(at(x, 0) - GREEN[c]) < 1 && Math.abs(at(x, 31) - BLACK[c]) < 1);
    }
  }
  same.dispose();
  middle.dispose();
});

test("a mask is 1 where it is light, at any size", () => {
  const mask = blocks([[WHITE, BLACK], [GREY, RED]]);
  assert.deepEqual([...fitMask(mask, { width: 2, height: 2 })], [1, 0, 1, 0]);
  const large = fitMask(mask, { width: 64, height: 64 });
  assert.deepEqual([large[31], large[32], large[32 * 64 + 31], large[64 * 64 - 1]], [1, 0, 1, 0]);
  assert.equal(large.reduce((sum, value) => sum + value), 64 * 32);
});
