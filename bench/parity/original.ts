/**
 * Reference files of the code that the authors of Text2Video-Zero published: other names than
 * diffusers', latents as `(b c f h w)`, a first pass that goes on to 0, videos in chunks, and the
 * conditional mode. Its changed videos are in `edits.ts`.
 *
 * @module
 */

import {
  chunkFrameIds,
  type Frame,
  type Mask,
  type StableDiffusion,
  textToImage,
  textToVideo,
} from "../../mod.ts";
import { type Outputs, type Setting, Unsupported, type Values } from "./case.ts";
import { flag, number, table, text } from "./params.ts";
import {
  commonOptions,
  pictures,
  pipelineOf,
  type PipelineOp,
  promptIds,
  type Results,
  rows,
  runVideo,
  wantedPictures,
} from "./pipelines.ts";
import { folderOf, type Input, readInput, type StoredCase } from "./stored_case.ts";

/** The cases of the authors' code, by operation. */
export const ORIGINAL_OPS: ReadonlyMap<string, PipelineOp> = new Map(
  [
    ["text_to_video_zero_original", originalVideo],
    ["text_to_video_zero_chunked", chunkedVideo],
    ["text_to_video_zero_controlnet", controlledVideo],
  ] satisfies [string, PipelineOp][],
);

/** The first two axes exchanged. */
function swapAxes({ data, shape = [] }: Values): Values {
  const [a, b, ...rest] = shape;
  const size = rest.reduce((product, n) => product * n, 1);
  const out = new Float32Array(data.length);
  for (let i = 0; i < a * b * size; i++) {
    const k = i % size;
    const column = Math.floor(i / size) % b;
    const row = Math.floor(i / size / b);
    out[(column * a + row) * size + k] = data[i];
  }
  return { data: out, shape: [b, a, ...rest] };
}

/** The original's `(b c f h w)`, b = 1, from frames `[F, C, h, w]`. */
function toOriginal(frames: Values): Values {
  const { data, shape = [] } = swapAxes(frames);
  return { data, shape: [1, ...shape] };
}

/** Frames `[F, C, h, w]` from the original's `(b c f h w)`. */
function fromOriginal({ data, shape }: Input): Values {
  return swapAxes({ data, shape: shape.slice(1) });
}

/** A clip of one piece. */
async function originalVideo(test: StoredCase, setting: Setting): Promise<Outputs> {
  const { params: p } = test;
  const sd = await pipelineOf(test, setting);
  const frames = number(p, "video_length");
  const smoothing = flag(p, "smooth_bg", false)
    ? { masks: await storedMasks(test), strength: number(p, "smooth_bg_strength") }
    : undefined;
  const moved = flag(p, "use_motion_field", true);
  const start = fromOriginal(await readInput(test, moved ? "x_T" : "x_T_all_frames"));
  const noise = moved ? fromOriginal(await readInput(test, "ddpm_noise")) : null;
  const run = await runVideo(sd, test, start, noise, { frames, smoothing });
  try {
    const { joint_pass: joint, ...results } = run.results;
    const shared = {
      ...promptIds(sd, test),
      before_smoothing_x0: toOriginal(last(joint)),
      ...(results.x_t1_smoothed && { smooth_latents_t1: toOriginal(results.x_t1_smoothed) }),
      final_latents: toOriginal(results.final_latents),
      ...await wantedPictures(test, sd, run.clip),
    };
    if (!moved) {
      const before = (t: string) => number(p, "num_inference_steps") - number(p, t) - 1;
      return {
        ...shared,
        x_t1_1: toOriginal(nth(joint, before("t1") - 1)),
        x_t0_1: toOriginal(nth(joint, before("t0") - 1)),
        first_pass_x0: toOriginal(last(joint)),
      };
    }
    return {
      ...shared,
      t0_t1: results.t0_t1,
      x_t1_1: toOriginal(results.x_1_t1),
      x_t0_1: toOriginal(results.x_1_t0),
      x_t0_k_warped: toOriginal(results.x_2k_t0_warped),
      x_t1_k: toOriginal(results.x_2k_t1),
      first_pass_x0: toOriginal(await firstPass(sd, test, start)),
    };
  } finally {
    run.dispose();
  }
}

/** Element `i` along the first axis, without it. */
function nth(values: Values, i: number): Values {
  const { data, shape = [] } = rows(values, i, i + 1);
  return { data, shape: shape.slice(1) };
}

const last = (values: Values): Values => nth(values, (values.shape ?? [0])[0] - 1);

/** A detector that finds the masks of a case, frame after frame. */
async function storedMasks(test: StoredCase): Promise<{ detect(): Promise<Mask> }> {
  const { data, shape: [, height, width] } = await readInput(test, "masks");
  let frame = 0;
  return {
    detect() {
      const values = Float32Array.from(
        data.slice(frame * height * width, ++frame * height * width),
      );
      return Promise.resolve({ width, height, values });
    },
  };
}

/** The first frame alone, denoised to the end: text to image. */
async function firstPass(sd: StableDiffusion, test: StoredCase, start: Values): Promise<Values> {
  const latents = sd.device.tensor(Float32Array.from(start.data), start.shape);
  const clip = textToImage(sd, text(test.params, "prompt"), commonOptions(sd, test, latents));
  try {
    const final = await clip.latents();
    return { data: await final.data(), shape: final.shape };
  } finally {
    clip.dispose();
    latents.dispose();
  }
}

/** Pictures of parts of a clip, one part after the other along the first axis. */
function joined(parts: readonly Values[]): Values {
  const [, ...size] = parts[0]?.shape ?? [];
  const count = parts.reduce((sum, part) => sum + (part.shape?.[0] ?? 0), 0);
  return { data: parts.flatMap((part) => Array.from(part.data)), shape: [count, ...size] };
}

function refuseExtras({ params: p }: StoredCase): void {
  if (flag(p, "smooth_bg", false)) throw new Unsupported("background smoothing in chunks");
  if (!flag(p, "use_motion_field", true)) throw new Unsupported("chunks with noise of their own");
}

/**
 * The authors' long videos: chunks that begin with the anchor, whose own picture is dropped. Their
 * noise is drawn from the seed.
 */
async function chunkedVideo(test: StoredCase, setting: Setting): Promise<Outputs> {
  refuseExtras(test);
  const { params: p } = test;
  const sd = await pipelineOf(test, setting);
  const results: Results = promptIds(sd, test);
  const parts: Values[] = [];
  const stride = test.outputs.map((role) => /^frames_every(\d+)$/.exec(role)?.[1])
    .find((found) => found !== undefined);
  const chunks = chunkFrameIds(number(p, "video_length"), number(p, "chunk_size"));
  for (const [i, frameIds] of chunks.entries()) {
    const start = fromOriginal(await readInput(test, `chunk${i}_x_T`));
    const noise = fromOriginal(await readInput(test, `chunk${i}_ddpm_noise`));
    const drawn = { seed: number(p, "seed"), latents: undefined, noise: undefined };
    const run = await runVideo(sd, test, start, noise, { frameIds, compat: "original", ...drawn });
    try {
      results[`chunk${i}_final_latents`] = toOriginal(run.results.final_latents);
      const shown = frameIds.map((_, place) => place).slice(1);
      parts.push(await pictures(sd, run.clip, shown, Number(stride ?? 1)));
    } finally {
      run.dispose();
    }
  }
  return { ...results, [stride ? `frames_every${stride}` : "frames"]: joined(parts) };
}

/** Maps `[F, 3, h, w]` in [0, 1] as pictures in which each value is a square of `side` pixels. */
function mapFrames({ data, shape: [count, channels, h, w] }: Input, side: number): Frame[] {
  const [width, height] = [w * side, h * side];
  return Array.from({ length: count }, (_, k) => {
    const pixels = Uint8Array.from({ length: width * height * channels }, (_, i) => {
      const pixel = Math.floor(i / channels);
      const [y, x] = [Math.floor(pixel / width / side), Math.floor(pixel % width / side)];
      return Math.round(255 * data[((k * channels + i % channels) * h + y) * w + x]);
    });
    return { width, height, data: pixels };
  });
}

/** The authors' conditional mode, in chunks that begin with the anchor, which is dropped. */
async function controlledVideo(test: StoredCase, setting: Setting): Promise<Outputs> {
  const { params: p } = test;
  const sd = await pipelineOf(test, setting);
  const model = await setting.models.controlNet(await folderOf(test, text(p, "controlnet")));
  const frames = mapFrames(await readInput(test, "control"), sd.factor);
  const start = await readInput(test, "latents_first");
  const latents = sd.device.tensor(Float32Array.from(start.data), start.shape);
  const results: Results = promptIds(sd, test);
  const parts: Values[] = [];
  try {
    for (const [i, frameIds] of table(p, "chunk_frame_ids").entries()) {
      const clip = textToVideo(sd, text(p, "prompt"), {
        ...commonOptions(sd, test, latents),
        frameIds,
        compat: "original",
        controls: [{ model, frames, scale: number(p, "controlnet_conditioning_scale", 1) }],
      });
      try {
        const final = await clip.latents();
        results[`chunk${i}_final_latents`] = { data: await final.data(), shape: final.shape };
        parts.push(await pictures(sd, clip, [...frameIds.keys()].slice(1), 1));
      } finally {
        clip.dispose();
      }
    }
  } finally {
    latents.dispose();
  }
  return { ...results, frames: joined(parts) };
}
