/**
 * Makes and writes a clip in windows and prints, as JSON, how many of its first 40 frames, of its
 * windows, and of as many results of waiting are still held. A program of its own: what other tests
 * hold would blur the figures.
 */

import process from "node:process";
import { PLAIN_GPU } from "../bench/memory.ts";
import { openNullDevice } from "../core/null_gpu.ts";
import { endedBy } from "../core/race.ts";
import { collectGarbage } from "../core/runtime.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { inWindows } from "../video/long_video.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { writeVideo } from "../video/writer.ts";

const [COUNT, WINDOW] = [48, 8];
const made: Record<"frames" | "windows" | "results", WeakRef<object>[]> = {
  ...{ frames: [], windows: [], results: [] },
};
const device = openNullDevice(PLAIN_GPU);
const sd = await StableDiffusion.load(undefined, { device });
const video = inWindows(COUNT, WINDOW, (frameIds) => {
  const tiny = { width: 64, height: 64, steps: 1, guidanceScale: 1 };
  const clip = textToVideo(sd, "a red heart", { ...tiny, frameIds, clipFrames: COUNT });
  made.windows.push(new WeakRef(clip));
  return clip;
});
const unless = endedBy(new Promise<never>(() => {}));

async function* watched() {
  for await (const frame of video) {
    yield frame;
    made.frames.push(new WeakRef(frame.data));
    made.results.push(new WeakRef(await unless(Promise.resolve({}))));
    if (made.frames.length === 40) await count();
  }
}

async function count(): Promise<void> {
  // What a WeakRef was made of, or shown, is held until the end of the turn.
  for (let turn = 0; turn < 3; turn++) {
    await new Promise((resolve) => setTimeout(resolve));
    collectGarbage();
  }
  const held = Object.entries(made).map(([what, refs]) =>
    [what, refs.filter((ref) => ref.deref() !== undefined).length] as const
  );
  console.log(JSON.stringify(Object.fromEntries(held)));
}

await writeVideo(watched(), process.argv[2], { fps: 8 });
process.exit(0);
