/**
 * Writing videos: every format is decoded again and compared, and nothing is ever left half-done.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { decode } from "fast-png";
import { ALL_FORMATS, FilePathSource, Input, VideoSampleSink } from "mediabunny";
import { InputError } from "../core/errors.ts";
import { sheetEncoder } from "../video/contact_sheet.ts";
import type { ByteSink, FrameEncoder } from "../video/frame.ts";
import { gifEncoder } from "../video/gif.ts";
import { rgbToI420, videoEncoder } from "../video/mp4.ts";
import { diskError, openOutputFile, type Output } from "../video/output_file.ts";
import { pngEncoder } from "../video/png.ts";
import { loadCodecs } from "../video/webcodecs.ts";
import {
  checkTarget,
  feedWriters,
  type Frame,
  readSettings,
  writeVideo,
  writeVideos,
} from "../video/writer.ts";

const root = await mkdtemp(join(tmpdir(), "framezero-writer-"));
after(() => rm(root, { recursive: true, force: true }));

let folders = 0;
/** A new empty folder. */
async function emptyFolder(): Promise<string> {
  const path = join(root, String(folders++));
  await mkdir(path);
  return path;
}

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

async function* discs(count: number, width = 64, height = 64): AsyncGenerator<Frame> {
  for (let i = 0; i < count; i++) yield await Promise.resolve(disc(i, width, height));
}

const settings = { prompt: 'a "horse" 馬 🐎', seed: 3, nested: { list: [1, 2.5, null] } };

/** Rejects with an InputError whose message matches. */
async function refuses(action: Promise<unknown>, message: RegExp): Promise<void> {
  await assert.rejects(action, (error) => {
    assert.ok(error instanceof InputError, String(error));
    assert.match(error.message, message);
    return true;
  });
}

function meanDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += Math.abs(a[i] - b[i]);
  return sum / a.length;
}

/** Size, colours, times and planes of a video file. */
async function decodeVideo(path: string): Promise<{
  width: number;
  height: number;
  matrix: string | null;
  times: number[];
  planes: Uint8Array[];
}> {
  await loadCodecs();
  const input = new Input({ formats: ALL_FORMATS, source: new FilePathSource(path) });
  const track = await input.getPrimaryVideoTrack();
  assert.ok(track);
  const times: number[] = [];
  const planes: Uint8Array[] = [];
  let matrix: string | null = null;
  for await (const sample of new VideoSampleSink(track).samples()) {
    const plane = new Uint8Array(sample.allocationSize());
    await sample.copyTo(plane);
    times.push(sample.timestamp);
    planes.push(plane);
    matrix = sample.colorSpace.matrix;
    sample.close();
  }
  const { displayWidth: width, displayHeight: height } = track;
  input.dispose();
  return { width, height, matrix, times, planes };
}

for (const container of ["mp4", "webm"] as const) {
  test(`${container} decodes to the frames it was given, at their times`, async () => {
    const path = join(await emptyFolder(), `disc.${container}`);
    const written = await writeVideo(discs(8, 64, 48), path, { fps: 24, settings });
    assert.equal(written.bytes, (await readFile(path)).length);
    const video = await decodeVideo(path);
    assert.deepEqual([video.width, video.height], [64, 48]);
    assert.equal(video.matrix, "bt709");
    video.planes.forEach((planes, i) => {
      assert.ok(meanDifference(planes, rgbToI420(disc(i, 64, 48))) < 2);
    });
    const clock = container === "mp4" ? 1e-9 : 5e-4;
    assert.equal(video.times.length, 8);
    video.times.forEach((time, i) => assert.ok(Math.abs(time - i / 24) <= clock + 1e-6, `${time}`));
    assert.deepEqual(await readSettings(path), settings);
  });

  test(`${container} takes odd sizes, single frames and odd rates`, async () => {
    const path = join(await emptyFolder(), `odd.${container}`);
    await writeVideo(discs(1, 37, 21), path, { fps: 29.97, quality: "best" });
    const video = await decodeVideo(path);
    assert.deepEqual([video.width, video.height, video.times.length], [38, 22, 1]);
    assert.ok(meanDifference(video.planes[0], rgbToI420(disc(0, 37, 21))) < 3);
  });
}

test("settings come back from every format", async () => {
  const folder = await emptyFolder();
  const targets = ["a.png", "b.apng", "c.gif", "sheet:d.png", "e/"].map((name) =>
    name.startsWith("sheet:") ? `sheet:${join(folder, name.slice(6))}` : `${folder}/${name}`
  );
  await writeVideos(discs(2), targets, { fps: 4, settings });
  for (const target of [...targets, `${folder}/e/frame_0001.png`]) {
    assert.deepEqual(await readSettings(target.replace("sheet:", "")), settings, target);
  }
  await writeVideo(discs(2), `${folder}/none.gif`, { fps: 4 });
  assert.equal(await readSettings(`${folder}/none.gif`), null);
  await writeFile(`${folder}/text.txt`, "not a video");
  await refuses(readSettings(`${folder}/text.txt`), /is none of these, or is damaged/);
  await refuses(readSettings(`${folder}/absent.gif`), /absent\.gif: there is no such file/);
});

test("settings beyond JSON or 64 KiB are refused before anything is written", async () => {
  const folder = await emptyFolder();
  const write = (settings: Record<string, unknown>): Promise<unknown> =>
    writeVideo(discs(1), `${folder}/a.gif`, { fps: 4, settings });
  await refuses(write({ big: 1n }), /settings must be plain JSON values/);
  await refuses(write({ text: "é".repeat(11_000) }), /at most 65536 bytes of JSON/);
  await write({ text: "é".repeat(10_000) });
  assert.deepEqual(await readSettings(`${folder}/a.gif`), { text: "é".repeat(10_000) });
});

test("a folder gets numbered pictures and keeps what is not ours", async () => {
  const folder = await emptyFolder();
  await writeFile(`${folder}/notes.txt`, "keep me");
  await writeVideo(discs(3), folder, { fps: 4, settings });
  const names = ["frame_0000.png", "frame_0001.png", "frame_0002.png", "notes.txt"];
  assert.deepEqual((await readdir(folder)).sort(), [...names, "settings.json"]);
  assert.deepEqual([...decode(await readFile(`${folder}/frame_0002.png`)).data], [
    ...disc(2).data,
  ]);
  await refuses(writeVideo(discs(1), folder, { fps: 4 }), /holds .* already: allow overwriting/);
  await writeVideo(discs(1), folder, { fps: 4, overwrite: true });
  assert.deepEqual((await readdir(folder)).sort(), ["frame_0000.png", "notes.txt"]);
});

test("one pass feeds several targets", async () => {
  const folder = await emptyFolder();
  let made = 0;
  async function* counted(): AsyncGenerator<Frame> {
    for await (const frame of discs(5)) {
      made++;
      yield frame;
    }
  }
  const targets = [`${folder}/a.gif`, `${folder}/b.png`, `${folder}/c/`, `sheet:${folder}/d.png`];
  const written = await writeVideos(counted(), targets, { fps: 8 });
  assert.equal(made, 5);
  assert.deepEqual(written.map(({ frames }) => frames), [5, 5, 5, 5]);
  assert.deepEqual((await readdir(folder)).sort(), ["a.gif", "b.png", "c", "d.png"]);
  await refuses(
    writeVideos(discs(1), [`${folder}/x.png`, `sheet:${folder}/./x.png`], { fps: 4 }),
    /is named twice/,
  );
});

test("the slowest writer sets the pace", async () => {
  const output: Output = {
    path: "nowhere",
    size: () => 0,
    flush: () => Promise.resolve(),
    commit: () => Promise.resolve(),
    discard: () => Promise.resolve(),
  };
  let busy = 0;
  const slow = (milliseconds: number): FrameEncoder => ({
    async add() {
      busy++;
      await new Promise((resolve) => setTimeout(resolve, milliseconds));
      busy--;
    },
    end: () => Promise.resolve(),
    close: () => Promise.resolve(),
  });
  const seen: number[] = [];
  function* watching(): Generator<Frame> {
    for (let i = 0; i < 4; i++) {
      seen.push(busy);
      yield disc(i);
    }
  }
  const writers = [1, 10].map((milliseconds) => ({ output, encoder: slow(milliseconds) }));
  await feedWriters(watching(), writers);
  assert.deepEqual(seen, [0, 0, 0, 0]);
});

test("a contact sheet shows all frames in rows", async () => {
  const folder = await emptyFolder();
  const sheet = async (count: number, options: object): Promise<ReturnType<typeof decode>> => {
    await writeVideo(discs(count), `sheet:${folder}/s.png`, {
      fps: 4,
      overwrite: true,
      sheet: options,
    });
    return decode(await readFile(`${folder}/s.png`), { checkCrc: true });
  };
  const picture = await sheet(6, { gap: 2 });
  assert.deepEqual([picture.width, picture.height], [4 * 64 + 3 * 2, 2 * 64 + 2]);
  const pixel = (x: number, y: number): number[] => {
    const at = 3 * (y * picture.width + x);
    return [...picture.data.subarray(at, at + 3)];
  };
  for (const x of [0, 31, 63]) {
    assert.deepEqual(
      pixel(66 + x, 66 + 32),
      [...disc(5).data.subarray(3 * (32 * 64 + x))].slice(0, 3),
    );
  }
  assert.deepEqual(pixel(64, 10), [255, 255, 255]);
  assert.deepEqual(pixel(132 + 5, 66 + 5), [255, 255, 255]);

  const strip = await sheet(3, { columns: Infinity, gap: 0, label: true });
  assert.deepEqual([strip.width, strip.height], [192, 64]);
  assert.deepEqual([...strip.data.subarray(0, 3)], [0, 0, 0]);
  await refuses(sheet(1, { columns: 0 }), /columns must be a positive integer/);
  await refuses(sheet(1, { gap: -1 }), /gap must be a whole number/);
  assert.deepEqual(await readdir(folder), ["s.png"]);
});

test("bad targets and options are refused before the first frame is asked for", async () => {
  const folder = await emptyFolder();
  await writeFile(`${folder}/there.gif`, "old");
  let asked = false;
  const frames = {
    *[Symbol.iterator](): Generator<Frame> {
      asked = true;
      yield disc(0);
    },
  };
  const write = (target: string, fps = 4): Promise<unknown> => writeVideo(frames, target, { fps });
  await refuses(write(`${folder}/a.avi`), /written as \.mp4, \.webm, \.gif, \.png, \.apng, as a/);
  await refuses(write(`sheet:${folder}/a.gif`), /name it sheet:NAME\.png/);
  await refuses(write(""), /must have a name/);
  await refuses(write(`${folder}/there.gif`), /there\.gif exists already/);
  await refuses(write(`${folder}/absent/a.gif`), /must exist: create .*absent first/);
  await refuses(write(`${folder}/absent/a/`), /must exist: create .*absent first/);
  await refuses(write(`${folder}/there.gif/`), /is not a folder/);
  for (const fps of [0, -1, 241, NaN, Infinity]) {
    await refuses(write(`${folder}/a.gif`, fps), /fps must be a number above 0, at most 240/);
  }
  await refuses(checkTarget(`${folder}/there.gif`), /exists already/);
  await checkTarget(`${folder}/there.gif`, { overwrite: true });
  await checkTarget(`${folder}/new.mp4`);
  assert.equal(asked, false);
  assert.deepEqual(await readdir(folder), ["there.gif"]);
});

test("bad frames leave nothing behind", async () => {
  const folder = await emptyFolder();
  const targets = ["a.mp4", "b.gif", "c.png", "d/", "e.webm"].map((name) => `${folder}/${name}`);
  const write = (frames: Iterable<Frame>): Promise<unknown> =>
    writeVideos(frames, targets, { fps: 4 });
  await refuses(write([]), /at least one frame/);
  await refuses(write([disc(0), disc(0, 32, 64)]), /frame 1 is 32x64, the first is 64x64/);
  await refuses(write([{ ...disc(0), width: 63 }]), /63x64 must hold 12096 bytes/);
  await refuses(write([{ ...disc(0), width: 0.5 }]), /at least 1x1 pixels/);
  assert.deepEqual(await readdir(folder), []);
});

test("a failing source keeps the old file and is closed", async () => {
  const folder = await emptyFolder();
  await writeFile(`${folder}/a.gif`, "old");
  const failure = new Error("the device was lost");
  async function* failing(): AsyncGenerator<Frame> {
    yield await Promise.resolve(disc(0));
    throw failure;
  }
  await assert.rejects(
    writeVideos(failing(), [`${folder}/a.gif`, `sheet:${folder}/b.png`, `${folder}/c.mp4`], {
      fps: 4,
      overwrite: true,
    }),
    failure,
  );
  assert.deepEqual(await readdir(folder), ["a.gif"]);
  assert.equal(await readFile(`${folder}/a.gif`, "utf8"), "old");
});

test("aborting ends the writing at once, even while a frame is being made", async () => {
  const folder = await emptyFolder();
  const [early, late] = [new AbortController(), new AbortController()];
  let closed = false;
  async function* stuck(): AsyncGenerator<Frame> {
    yield disc(0);
    setTimeout(() => early.abort(new Error("enough")), 20);
    await new Promise(() => {});
  }
  async function* endless(): AsyncGenerator<Frame> {
    try {
      for (let i = 0;; i++) {
        if (i === 5) setTimeout(() => late.abort(new Error("too long")), 20);
        yield await Promise.resolve(disc(i % 8));
      }
    } finally {
      closed = true;
    }
  }
  const targets = [`${folder}/a.mp4`, `${folder}/b.gif`, `sheet:${folder}/c.png`, `${folder}/d/`];
  await assert.rejects(writeVideos(stuck(), targets, { fps: 4, signal: early.signal }), /enough/);
  await assert.rejects(
    writeVideos(endless(), targets, { fps: 4, signal: late.signal }),
    /too long/,
  );
  assert.ok(closed);
  await assert.rejects(
    writeVideo(discs(1), targets[1], { fps: 4, signal: late.signal }),
    /too long/,
  );
  assert.deepEqual(await readdir(folder), []);
});

test("a full disk is told in plain words and leaves nothing behind", async () => {
  const folder = await emptyFolder();
  const noise = Array.from({ length: 8 }, () => ({
    width: 64,
    height: 64,
    data: crypto.getRandomValues(new Uint8Array(3 * 64 * 64)),
  }));
  const encoders: [string, number, (sink: ByteSink) => FrameEncoder][] = [
    ["gif", 100, (sink) => gifEncoder(sink, { fps: 4 })],
    ["png", 100, (sink) => pngEncoder(sink, { fps: 4 })],
    ["mp4", 100, (sink) => videoEncoder(sink, "mp4", { fps: 4 })],
    ["webm", 100, (sink) => videoEncoder(sink, "webm", { fps: 4 })],
    ["sheet.png", 100, (sink) => sheetEncoder(sink, { columns: 2 })],
    ["late.png", 30_000, (sink) => sheetEncoder(sink, { columns: 2 })],
  ];
  const full = Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
  for (const [name, space, open] of encoders) {
    const output = await openOutputFile(`${folder}/a.${name}`, false);
    let room = space;
    const encoder = open({
      async write(bytes, position) {
        room -= bytes.length;
        if (room < 0) throw diskError(full, output.path);
        await output.write(bytes, position);
      },
    });
    await refuses(feedWriters(noise, [{ output, encoder }]), /a\..*: the disk is full: free/);
  }
  assert.deepEqual(await readdir(folder), []);
});

test("missing codecs are told with what works without them", async () => {
  const saved = Object.getOwnPropertyDescriptor(globalThis, "VideoEncoder");
  Reflect.deleteProperty(globalThis, "VideoEncoder");
  try {
    await refuses(
      loadCodecs(() => Promise.reject(new Error("Cannot find module"))),
      /run `npm install @napi-rs\/webcodecs`.* or use \.gif, \.png or a folder/,
    );
  } finally {
    if (saved) Object.defineProperty(globalThis, "VideoEncoder", saved);
  }
});
