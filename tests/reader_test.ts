/**
 * Reading MP4, MOV, WebM and MKV: the frames that ffmpeg decodes, in constant memory, or a message.
 */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import fc from "fast-check";
import { runtime } from "../core/runtime.ts";
import type { Frame } from "../video/frame.ts";
import { openVideo } from "../video/reader.ts";
import { writeVideo } from "../video/writer.ts";
import { planesToRgb } from "../video/yuv.ts";
import { collect, difference, framesInStrip, refuses, videoPath } from "./video_files.ts";

const root = await mkdtemp(join(tmpdir(), "framezero-reader-"));
after(() => rm(root, { recursive: true, force: true }));

async function read(source: string | Blob | Uint8Array): Promise<Frame[]> {
  const reader = await openVideo(source);
  try {
    return await collect(reader.frames());
  } finally {
    await reader.close();
  }
}

const CLIPS: [file: string, strip: string, kind: string, size: [number, number]][] = [
  ["h264_709.mp4", "h264_709.png", "mp4", [48, 32]],
  ["h264_601.mp4", "h264_601.png", "mp4", [48, 32]],
  ["h264_full_range.mp4", "h264_full_range.png", "mp4", [48, 32]],
  ["h264_10bit.mp4", "h264_10bit.png", "mp4", [48, 32]],
  ["h264_odd.mp4", "h264_odd.png", "mp4", [47, 31]],
  ["av1.mp4", "av1.png", "mp4", [48, 32]],
  ["h264.mkv", "h264_709.png", "mkv", [48, 32]],
  ["vp8.webm", "vp8.png", "webm", [48, 32]],
  ["vp9.webm", "vp9.png", "webm", [48, 32]],
];

for (const [file, strip, kind, [width, height]] of CLIPS) {
  test(`${file} is read as ffmpeg decodes it`, async () => {
    const reader = await openVideo(videoPath(file));
    const { name, duration, ...info } = reader.info;
    assert.equal(name, videoPath(file));
    assert.ok(Math.abs(duration - 0.5) < 0.002, `${duration}`);
    assert.deepEqual(info, {
      ...{ kind, width, height, fps: 24, frames: 12, hasVariableFrameRate: false },
    });
    const frames = await collect(reader.frames());
    await reader.close();
    assert.equal(frames.length, 12);
    for (const [i, want] of (await framesInStrip(strip, 12)).entries()) {
      const { mean, max } = difference(frames[i], want);
      assert.ok(mean < 0.05 && max <= 1, `frame ${i}: mean ${mean}, at most ${max}`);
    }
  });
}

for (const angle of [90, 180, 270]) {
  test(`a video that is to be turned by ${angle} degrees is upright`, async () => {
    const file = videoPath(`turned_${angle}.mov`);
    const reader = await openVideo(file);
    const { width, height, kind } = reader.info;
    assert.deepEqual([kind, width, height], ["mov", ...angle === 180 ? [48, 32] : [32, 48]]);
    const frames = await collect(reader.frames([0, 0.05]));
    await reader.close();
    for (const [i, want] of (await framesInStrip(`turned_${angle}.png`, 2)).entries()) {
      assert.ok(difference(frames[i], want).max <= 1);
    }
  });
}

test("pixels that are not square are stretched", async () => {
  const frames = await read(videoPath("h264_anamorphic.mp4"));
  for (const [i, want] of (await framesInStrip("h264_anamorphic.png", 12)).entries()) {
    const { mean, max } = difference(frames[i], want);
    assert.ok(mean < 0.7 && max <= 4, `frame ${i}: mean ${mean}, at most ${max}`);
  }
});

test("a clip is read from a Blob and from bytes, several times at once", async () => {
  const bytes = await readFile(videoPath("vp8.webm"));
  const reader = await openVideo(new Blob([bytes]));
  const [all, again, some] = await Promise.all([
    collect(reader.frames()),
    collect(reader.frames()),
    collect(reader.frames([0.26, 0.27])),
  ]);
  assert.deepEqual(all, again);
  assert.deepEqual(some, [all[6], all[6]]);
  await reader.close();
  assert.deepEqual(await read(new Uint8Array(bytes)), all);
  await refuses(collect(reader.frames()), /the reader is closed/);
});

test("times pick what is on the screen, also where frames last for different times", async () => {
  const reader = await openVideo(videoPath("variable.mp4"));
  const { fps, frames, hasVariableFrameRate, duration } = reader.info;
  assert.deepEqual([fps, frames, hasVariableFrameRate, duration], [12, 6, true, 0.5]);
  const all = await collect(reader.frames());
  const strip = await framesInStrip("variable.png", 6);
  all.forEach((frame, i) => assert.ok(difference(frame, strip[i]).max <= 1));
  const picked = await collect(reader.frames([0, 0.12, 0.13, 0.3, 0.38, 0.42, 0.46, 9]));
  assert.deepEqual(picked, [0, 0, 1, 2, 3, 4, 5, 5].map((i) => all[i]));
  assert.deepEqual(await collect(reader.frames([])), []);
  await refuses(collect(reader.frames([0.2, 0.1])), /in ascending order: 0\.1 is not/);
  await refuses(collect(reader.frames([-1])), /seconds from 0 on/);
  await reader.close();
});

test("a clip is read from an address, by ranges", async () => {
  const bytes = await readFile(videoPath("ten_minutes.mp4"));
  let sent = 0;
  const server = createServer(({ headers }, response) => {
    const [from, last] = /(\d+)-(\d+)/.exec(headers.range ?? "")?.slice(1).map(Number) ?? [0, 0];
    const end = Math.min(last, bytes.length - 1);
    sent += end + 1 - from;
    const range = `bytes ${from}-${end}/${bytes.length}`;
    response.writeHead(206, { "content-range": range, "content-length": end + 1 - from });
    response.end(bytes.subarray(from, end + 1));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  assert.ok(address && typeof address === "object");
  const reader = await openVideo(`http://127.0.0.1:${address.port}/clip.mp4?key=secret`);
  assert.deepEqual([reader.info.frames, /secret/.test(reader.info.name)], [3000, false]);
  assert.equal((await collect(reader.frames([0, 1]))).length, 2);
  await reader.close();
  await new Promise((resolve) => server.close(resolve));
  assert.ok(sent < 1.5 * bytes.length, `${sent} bytes sent of a file of ${bytes.length}`);
});

for (const container of ["mp4", "webm"] as const) {
  test(`what is written to ${container} is read back`, async () => {
    const frames = Array.from({ length: 5 }, (_, i) => gradient(64, 48, i));
    const path = join(root, `own.${container}`);
    await writeVideo(frames, path, { fps: 8, quality: "best" });
    const reader = await openVideo(path);
    const { kind, width, height, fps, frames: count } = reader.info;
    assert.deepEqual([kind, width, height, fps, count], [container, 64, 48, 8, 5]);
    const back = await collect(reader.frames());
    await reader.close();
    back.forEach((frame, i) => {
      const { mean } = difference(frame, frames[i]);
      assert.ok(mean < 2, `frame ${i} of ${container}: ${mean}`);
    });
    assert.equal(back.length, 5);
  });
}

function gradient(width: number, height: number, shift: number): Frame {
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    const [x, y] = [i % width, Math.floor(i / width)];
    data.set([3 * x + 8 * shift, 4 * y, 200 - 2 * x], 3 * i);
  }
  return { width, height, data };
}

test("ten minutes are read in constant memory", async () => {
  const script = fileURLToPath(new URL("long_clip.ts", import.meta.url));
  const deno = runtime === "deno" ? ["run", "-A", "--no-check"] : [];
  const args = [...deno, script, videoPath("ten_minutes.mp4")];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  const { early, most, ...rest } = JSON.parse(stdout);
  assert.deepEqual(rest, { duration: 600, frames: 3000, count: 3000 });
  // The other 2500 frames have 288 MB as RGB, and half of that as they are decoded.
  assert.ok(most - early < 64e6, `${early} bytes after 500 frames, then up to ${most}`);
});

test("frames are decoded from the key frame before them on, not from the beginning", async () => {
  const file = await readFile(videoPath("ten_minutes.mp4"));
  const frameAt = async (bytes: Uint8Array, seconds: number) => {
    const reader = await openVideo(bytes);
    try {
      return await collect(reader.frames([seconds]));
    } finally {
      await reader.close();
    }
  };
  const damaged = Uint8Array.from(file);
  // The pictures lie between the names of these two boxes.
  const [first, end] = [file.indexOf("mdat") + 4, file.indexOf("moov")];
  damaged.fill(0, first, Math.floor((first + end) / 2));
  assert.deepEqual(await frameAt(damaged, 590.1), await frameAt(file, 590.1));
  assert.notDeepEqual(await frameAt(damaged, 0), await frameAt(file, 0));
});

test("a clip may be left early, and begun in the middle", async () => {
  const reader = await openVideo(videoPath("ten_minutes.mp4"));
  for await (const frame of reader.frames()) {
    assert.equal(frame.width, 240);
    break;
  }
  const [late] = await collect(reader.frames([590.1]));
  const orange = Array.from({ length: 240 }, (_, x) => x)
    .filter((x) => late.data[3 * (80 * 240 + x)] > 128);
  await reader.close();
  assert.deepEqual([orange[0], orange.at(-1)], [160, 199]);
});

test("a file whose end is missing gives its frames, then says where it ends", async () => {
  const whole = await readFile(videoPath("h264_601.mp4"));
  const all = await read(whole);
  const reader = await openVideo(whole.subarray(0, Math.floor(whole.length * 0.9)));
  const seen: Frame[] = [];
  const reading = (async () => {
    for await (const frame of reader.frames()) seen.push(frame);
  })();
  await refuses(reading, /cut off, its frames end at 0\.\d+ s of 0\.5 s/);
  await reader.close();
  assert.ok(seen.length > 0 && seen.length < 12, `${seen.length} frames`);
  assert.deepEqual(seen, all.slice(0, seen.length));

  for (const [file, share] of [["h264_709.mp4", 0.9], ["vp9.webm", 0.5], ["h264.mkv", 0.5]]) {
    const bytes = await readFile(videoPath(`${file}`));
    const part = bytes.subarray(0, Math.floor(bytes.length * Number(share)));
    await refuses(read(part), /the file is cut off/);
  }
});

test("files that are no clips are refused with what to do", async () => {
  const open = (file: string) => openVideo(videoPath(file));
  await refuses(open("audio_only.mp4"), /audio_only\.mp4: the file has no video track/);
  await refuses(open("mpeg4.mp4"), /the codec must be .*, this is mp4v; convert .* ffmpeg -i/);
  await refuses(open("transparent.webm"), /transparent videos are not read; convert/);
  await refuses(open("hdr.mp4"), /must have standard dynamic range/);
  await refuses(open("make.sh"), /by its content this is none; convert it/);
  await refuses(open("absent.mp4"), /absent\.mp4: the file cannot be opened/);
  await refuses(openVideo(new Uint8Array(0)), /the file is empty/);
});

/** The forward transform of a matrix, as in the recommendations. */
function toYCbCr([r, g, b]: number[], [kr, kb]: number[]): [number, number, number] {
  const y = kr * r + (1 - kr - kb) * g + kb * b;
  return [y, (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)];
}

test("every layout, matrix, range and depth gives back the colours that went in", () => {
  const constants = {
    "bt470bg": [0.299, 0.114],
    "smpte170m": [0.299, 0.114],
    "bt709": [0.2126, 0.0722],
    "bt2020-ncl": [0.2627, 0.0593],
  };
  const colour = fc.tuple(...[0, 1, 2].map(() => fc.integer({ min: 0, max: 255 })));
  fc.assert(fc.property(
    colour,
    fc.constantFrom("bt470bg", "smpte170m", "bt709", "bt2020-ncl"),
    fc.constantFrom("I420", "I422", "I444", "I420P10", "I422P12", "I444P10", "NV12"),
    fc.boolean(),
    (rgb, matrix, format, fullRange) => {
      const bits = Number(/P(\d+)/.exec(format)?.[1] ?? 8);
      const scale = 2 ** (bits - 8);
      const [y, cb, cr] = toYCbCr(rgb.map((value) => value / 255), constants[matrix]);
      const [luma, blue, red] = fullRange
        ? [0, 128 * scale, 128 * scale].map((zero, i) => zero + [y, cb, cr][i] * (2 ** bits - 1))
        : [16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr].map((value) => scale * value);
      const most = 2 ** bits - 1;
      const [Y, U, V] = [luma, blue, red].map((value) => Math.min(most, Math.round(value)));
      const rows = format.startsWith("I420") || format === "NV12" ? 2 : 3;
      const columns = format.startsWith("I444") ? 3 : 2;
      const chroma = rows * columns;
      const samples = [
        ...Array(9).fill(Y),
        ...format === "NV12"
          ? Array.from({ length: 2 * chroma }, (_, i) => i % 2 ? V : U)
          : [...Array(chroma).fill(U), ...Array(chroma).fill(V)],
      ];
      const bytes = bits > 8 ? 2 : 1;
      const data = bits > 8
        ? new Uint8Array(Uint16Array.from(samples).buffer)
        : Uint8Array.from(samples);
      const layout = [
        { offset: 0, stride: 3 * bytes },
        ...format === "NV12"
          ? [{ offset: 9, stride: 4 }]
          : [9, 9 + chroma].map((offset) => ({ offset: offset * bytes, stride: columns * bytes })),
      ];
      const planes = { format, width: 3, height: 3, data, layout, matrix, fullRange };
      const got = planesToRgb(planes, "a clip").data;
      got.forEach((value, i) => {
        assert.ok(Math.abs(value - rgb[i % 3]) <= 2, `${format} ${matrix}: ${rgb} gave ${got}`);
      });
    },
  ));
});

test("RGB layouts are reordered, and others refused", async () => {
  const planes = (format: string | null, matrix: string | null = null) => ({
    ...{ format, matrix, width: 1, height: 1, fullRange: false },
    data: Uint8Array.of(1, 2, 3, 4),
    layout: [{ offset: 0, stride: 4 }],
  });
  assert.deepEqual([...planesToRgb(planes("RGBX"), "").data], [1, 2, 3]);
  assert.deepEqual([...planesToRgb(planes("BGRA"), "").data], [3, 2, 1]);
  const convert = async (format: string | null, matrix?: string) =>
    await Promise.resolve(planesToRgb(planes(format, matrix), "a.mp4"));
  await refuses(convert(null), /a\.mp4: pictures must be decoded as .*, these are null/);
  await refuses(convert("I444", "rgb"), /a\.mp4: the colour matrix must be .*, it is rgb/);
});
