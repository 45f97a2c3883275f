/**
 * Clips made ready for a model: Text2Video-Zero's selection and sizes, and clips that are too short.
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import type { Frame } from "../video/frame.ts";
import { framesAt, type FrameStream, type Shot, type VideoInfo } from "../video/frame_stream.ts";
import { readPicture } from "../video/picture.ts";
import { extendFrames, frameNumbers, prepareVideo, sizeAt } from "../video/prepare_video.ts";
import { openVideo, type VideoReader } from "../video/reader.ts";
import { collect, difference, framesInStrip, refuses, videoPath } from "./video_files.ts";

const device = await openDevice();
after(() => device.close());

interface Selection {
  fpsIn: number;
  frames: number;
  start: number;
  end: number;
  fps: number;
  resolution: number;
  width: number;
  height: number;
  numbers: number[];
  size: [number, number];
}

test("frames and sizes are those of Text2Video-Zero's prepare_video", async () => {
  const cases: Selection[] = JSON.parse(await readFile(videoPath("selection.json"), "utf8"));
  assert.equal(cases.length, 60);
  for (const { fpsIn, frames, start, end, fps, resolution, width, height, ...want } of cases) {
    const info = { name: "a clip", fps: fpsIn, duration: frames / fpsIn };
    const rate = fps === -1 ? Math.trunc(fpsIn) : fps;
    assert.deepEqual(frameNumbers(info, { start, end, fps: rate }), want.numbers);
    const size = sizeAt(resolution, { width, height });
    assert.deepEqual([size.width, size.height], want.size);
  }
});

test("rounding errors take no frame away", () => {
  for (let frames = 1; frames < 400; frames++) {
    for (const fps of [7, 24, 30, 49, 60]) {
      const info = { name: "a clip", fps, duration: frames / fps };
      const numbers = frameNumbers(info, { start: 0, end: -1, fps });
      assert.deepEqual([numbers.length, numbers.at(-1)], [frames, frames - 1]);
    }
  }
});

/** A stream of grey pictures, which tells how many were begun, converted and closed. */
function counted(
  count: number,
  fps: number,
): { stream: FrameStream; reader: VideoReader; made: number[] } {
  const made = [0, 0, 0];
  const info: VideoInfo = {
    ...{ name: "a clip", kind: "mp4", width: 4, height: 2, fps, duration: count / fps },
    ...{ frames: count, hasVariableFrameRate: false },
  };
  async function* shots(): AsyncGenerator<Shot, void> {
    for (let i = 0; i < count; i++) {
      made[0]++;
      yield await Promise.resolve({
        time: i / fps,
        rgb: () => (made[1]++, { width: 4, height: 2, data: new Uint8Array(24).fill(i) }),
        close: () => void made[2]++,
      });
    }
  }
  const stream = { info, shots, close: () => Promise.resolve() };
  return {
    stream,
    made,
    reader: { info, frames: (times) => framesAt(stream, times ?? []), close: stream.close },
  };
}

const shades = (frames: Frame[]) => frames.map(({ data }) => data[0]);

test("only what is used is read and converted, and everything is closed", async () => {
  const { reader, made } = counted(100, 10);
  const fit = { width: 4, height: 2 };
  const video = await prepareVideo(device, reader, { start: 1, end: 3, fps: 4, fit });
  assert.deepEqual([video.count, video.fps, made], [8, 4, [0, 0, 0]]);
  const want = [10, 12, 15, 17, 20, 22, 25, 27];
  const frames = video.frames();
  assert.deepEqual(shades(await collect(frames)), want);
  assert.deepEqual(made, [29, 8, 29]);
  assert.deepEqual(shades(await collect(frames)), want);
  for await (const frame of video.frames()) {
    assert.equal(frame.data[0], 10);
    break;
  }
  assert.deepEqual(made, [29 + 29 + 12, 8 + 8 + 1, 29 + 29 + 12]);
  const faster = await prepareVideo(device, reader, { end: 0.25, fps: 40, fit });
  const twice = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1];
  assert.deepEqual(shades(await collect(faster.frames())), twice);
});

test("a clip slower than a frame a second keeps its rate, another loses its fraction", async () => {
  const fit = { width: 4, height: 2 };
  const slow = await prepareVideo(device, counted(3, 0.5).reader, { fit });
  assert.deepEqual([slow.fps, slow.count], [0.5, 3]);
  const film = await prepareVideo(device, counted(48, 23.976).reader, { fit });
  assert.deepEqual([film.fps, film.count], [23, 46]);
});

for (const [name, width, height] of [["larger", 192, 128], ["smaller", 21, 14]] as const) {
  test(`a clip made ${name} is resized as PyTorch does with antialiasing`, async () => {
    const reader = await openVideo(videoPath("h264_709.mp4"));
    const options = name === "larger" ? { resolution: 192 } : { fit: { width, height } };
    const video = await prepareVideo(device, reader, { ...options, end: 0.05, fps: 24 });
    assert.deepEqual([video.width, video.height, video.count], [width, height, 1]);
    const [frame] = await collect(video.frames());
    await reader.close();
    const { mean, max } = difference(frame, await readPicture(videoPath(`resized_${name}.png`)));
    assert.ok(mean < 0.3 && max <= 2, `mean ${mean}, at most ${max}`);
  });
}

test("a size to fit is covered by the middle", async () => {
  const reader = await openVideo(videoPath("h264_709.mp4"));
  const video = await prepareVideo(device, reader, { fit: { width: 32, height: 32 } });
  const [frame] = await collect(video.frames());
  await reader.close();
  const [whole] = await framesInStrip("h264_709.png", 12);
  for (let y = 0; y < 32; y++) {
    const middle = whole.data.subarray(3 * (48 * y + 8), 3 * (48 * y + 40));
    middle.forEach((value, i) => assert.ok(Math.abs(frame.data[96 * y + i] - value) <= 1));
  }
});

test("a part that holds nothing is refused, and so are options that make no sense", async () => {
  const { reader } = counted(20, 10);
  const prepare = (options: object) => prepareVideo(device, reader, options);
  await refuses(prepare({ start: 1, end: 1 }), /end must come after the start.*got 1 s to 1 s/);
  await refuses(prepare({ start: 1, end: 0.5 }), /the end must come after the start/);
  await refuses(prepare({ start: 2 }), /a clip: the start must lie within .*2 s long: got 2 s/);
  await refuses(prepare({ start: -0.5 }), /the start must lie within the clip/);
  await refuses(prepare({ start: NaN }), /the start must lie within the clip/);
  await refuses(prepare({ end: NaN }), /the end must come after the start/);
  await refuses(prepare({ fps: 0 }), /fps must be a number above 0: got 0/);
  await refuses(prepare({ fps: -4 }), /fps must be a number above 0: got -4/);
  await refuses(prepare({ fps: Infinity }), /fps must be a number above 0/);
  await refuses(prepare({ end: 0.1, fps: 4 }), /0\.1 s hold no frame at 4 frames a second/);
  await refuses(prepare({ resolution: 40 }), /4x2 would become 64x0; choose another resolution/);
  await refuses(prepare({ fit: { width: 8, height: 0 } }), /would become 8x0; choose another size/);
  await refuses(prepare({ resolution: 64, fit: { width: 8, height: 8 } }), /not both/);
});

const clip = [1, 2, 3].map((shade) => ({
  ...{ width: 1, height: 1 },
  data: new Uint8Array(3).fill(shade),
}));

async function* once(frames: Frame[]): AsyncGenerator<Frame, void> {
  for (const frame of frames) yield await Promise.resolve(frame);
}

test("clips that are too short are held, looped, or end", async () => {
  const extended = async (count: number, rule: "hold" | "loop" | "stop") =>
    shades(await collect(extendFrames(clip, count, rule)));
  assert.deepEqual(await extended(5, "hold"), [1, 2, 3, 3, 3]);
  assert.deepEqual(await extended(7, "loop"), [1, 2, 3, 1, 2, 3, 1]);
  assert.deepEqual(await extended(5, "stop"), [1, 2, 3]);
  for (const rule of ["hold", "loop", "stop"] as const) {
    assert.deepEqual(await extended(2, rule), [1, 2]);
    assert.deepEqual(await extended(3, rule), [1, 2, 3]);
    await refuses(collect(extendFrames([], 3, rule)), /at least one frame: got none/);
  }
  const held = extendFrames(once(clip), 4, "hold");
  assert.deepEqual(shades(await collect(held)), [1, 2, 3, 3]);
  await refuses(collect(extendFrames(once(clip), 4, "loop")), /must be readable again/);
  assert.throws(() => extendFrames(clip, 0, "hold"), /must be a positive integer: got 0/);
});

test("a prepared clip is looped by reading it again", async () => {
  const reader = await openVideo(videoPath("animated.gif"));
  const fit = { width: 48, height: 32 };
  const video = await prepareVideo(device, reader, { end: 0.25, fps: 8, fit });
  assert.equal(video.count, 2);
  const looped = await collect(extendFrames(video.frames(), 5, "loop"));
  await reader.close();
  const all = await framesInStrip("animated_gif.png", 12);
  assert.deepEqual(looped, [0, 3, 0, 3, 0].map((i) => all[i]));
});
