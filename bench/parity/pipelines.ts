/**
 * Reference files of whole sampling loops: text to image, and Text2Video-Zero by diffusers. Those by
 * its authors are in `original.ts`.
 *
 * @module
 */

import { dirname, join } from "node:path";
import {
  type Clip,
  Generator,
  InputError,
  type StableDiffusion,
  type Tensor,
  textToImage,
  textToVideo,
  type TextToVideoOptions,
} from "../../mod.ts";
import { exists } from "../../models/checkpoint.ts";
import { decodeFrame } from "../../video/clip.ts";
import type { Outputs, Setting, Values } from "./case.ts";
import { fullsizePipeline } from "./fullsize.ts";
import { number, numbers, text } from "./params.ts";
import { folderOf, readInput, type StoredCase } from "./stored_case.ts";

/** Runs one case of a pipeline. */
export type PipelineOp = (test: StoredCase, setting: Setting) => Promise<Outputs>;

/** The cases of pipelines, by operation. */
export const PIPELINE_OPS: ReadonlyMap<string, PipelineOp> = new Map(
  [
    ["text_to_image", image],
    ["text_to_video_zero", video],
  ] satisfies [string, PipelineOp][],
);

/** Values by the role that they have in a case. */
export type Results = Record<string, Values>;

/** The checkpoint that a case names, or the one called `pipeline` beside the file. */
export async function pipelineOf(test: StoredCase, { models }: Setting): Promise<StableDiffusion> {
  const { params: p, path } = test;
  if (p.pipeline !== undefined) return models.pipeline(await folderOf(test, text(p, "pipeline")));
  const beside = join(dirname(path), "pipeline");
  if (await exists(join(beside, "model_index.json"))) return models.pipeline(beside);
  throw new InputError("the case names no checkpoint, and there is none beside its file");
}

/** The checkpoint, and the case with its prompt: full-size cases state its token ids instead. */
async function modelAndCase(
  test: StoredCase,
  setting: Setting,
): Promise<{ sd: StableDiffusion; test: StoredCase }> {
  const { params } = test;
  if (params.context === undefined) return { sd: await pipelineOf(test, setting), test };
  const { sd, prompt } = await fullsizePipeline(test, setting);
  // "DDIM SD1.5 config": the configuration is the checkpoint's own.
  const scheduler = text(params, "scheduler", "ddim").split(" ")[0].toLowerCase();
  return { sd, test: { ...test, params: { ...params, prompt, scheduler } } };
}

/** What the prompts of a case become, for comparison with what it stores. */
export function promptIds(sd: StableDiffusion, test: StoredCase): Results {
  const ids = (prompt: string): Values => {
    const { ids: data } = sd.tokenizer.tokenize(prompt);
    return { data, shape: [1, data.length] };
  };
  return {
    prompt_ids: ids(text(test.params, "prompt")),
    negative_prompt_ids: ids(text(test.params, "negative_prompt", "")),
  };
}

/** Options that all pipelines share; `latents` are x_T, `[1, C, h, w]`. */
export function commonOptions(sd: StableDiffusion, { params: p }: StoredCase, latents: Tensor) {
  const [, , h, w] = latents.shape;
  return {
    steps: number(p, "num_inference_steps"),
    guidanceScale: number(p, "guidance_scale"),
    negativePrompt: text(p, "negative_prompt", ""),
    eta: number(p, "eta", 0),
    scheduler: text(p, "scheduler", "ddim"),
    height: h * sd.factor,
    width: w * sd.factor,
    latents,
  };
}

/** Takes snapshots of tensors; they are read when the run is over. */
function album() {
  const kept: [string, Tensor][] = [];
  return {
    keep(name: string, tensor: Tensor): void {
      kept.push([name, tensor.reshape(tensor.shape).keep()]);
    },
    async read(): Promise<Results> {
      const results: Results = {};
      for (const [name, tensor] of kept) {
        results[name] = { data: await tensor.data(), shape: tensor.shape };
      }
      return results;
    },
    dispose(): void {
      for (const [, tensor] of kept) tensor.dispose();
    },
  };
}

/** Values of equal shapes, one after the other under a new axis. */
function stacked(parts: readonly Values[]): Values {
  const data = parts.flatMap((part) => Array.from(part.data));
  return { data, shape: [parts.length, ...(parts[0]?.shape ?? [])] };
}

/** Rows along the first axis. */
export function rows({ data, shape = [] }: Values, from: number, to: number): Values {
  const size = data.length / shape[0];
  return {
    data: Array.from(data).slice(from * size, to * size),
    shape: [to - from, ...shape.slice(1)],
  };
}

/** Pictures as `[F, H, W, 3]` in 0 … 1, every `stride`-th pixel along both sides. */
export async function pictures(
  sd: StableDiffusion,
  clip: Clip,
  frames: readonly number[],
  stride: number,
): Promise<Values> {
  const latents = await clip.latents();
  const { width: W, height: H } = clip;
  const columns = Math.ceil(W / stride);
  const lines = Math.ceil(H / stride);
  const data: number[] = [];
  for (const frame of frames) {
    const planes = await decodeFrame(sd, latents, frame, []);
    for (let y = 0; y < H; y += stride) {
      for (let x = 0; x < W; x += stride) {
        for (let c = 0; c < 3; c++) data.push(planes[(c * H + y) * W + x]);
      }
    }
  }
  return { data, shape: [frames.length, lines, columns, 3] };
}

/** The pictures that a case names: `image`, `frames`, or `frames_every8`. */
export async function wantedPictures(
  { outputs }: StoredCase,
  sd: StableDiffusion,
  clip: Clip,
): Promise<Results> {
  const results: Results = {};
  for (const role of outputs) {
    const stride = /^(?:image|frames)(?:_every(\d+))?$/.exec(role);
    if (!stride) continue;
    results[role] = await pictures(sd, clip, [...clip.frameIds.keys()], Number(stride[1] ?? 1));
  }
  return results;
}

/** Negative and positive prompt, as our pipelines encode them, apart. */
function splitText(text: Values): Results {
  return {
    negative_prompt_embeds: rows(text, 0, 1),
    prompt_embeds: rows(text, 1, 2),
  };
}

async function image(test: StoredCase, setting: Setting): Promise<Outputs> {
  const sd = await pipelineOf(test, setting);
  const { params: p } = test;
  const { device } = setting;
  const start = await readInput(test, "x_T");
  const latents = device.tensor(start.data, start.shape);
  const clip = textToImage(sd, text(p, "prompt"), commonOptions(sd, test, latents));
  const predictions = album();
  const steps = album();
  const timesteps: number[] = [];
  try {
    for await (const { step, timestep, noisePrediction, latents } of clip.steps) {
      timesteps.push(timestep);
      predictions.keep(`${step}`, noisePrediction);
      steps.keep(`${step}`, latents);
    }
    const flat = async (book: ReturnType<typeof album>): Promise<Values> => {
      const { data, shape = [] } = stacked(Object.values(await book.read()));
      return { data, shape: shape.toSpliced(1, 1) }; // one picture: no axis for it
    };
    return {
      ...promptIds(sd, test),
      ...await encoded(sd, test),
      ...(p.x_T_seed === undefined ? {} : {
        x_T: { data: new Generator(number(p, "x_T_seed")).randn(start.shape), shape: start.shape },
      }),
      timesteps,
      noise_pred_guided: await flat(predictions),
      latents_after_step: await flat(steps),
      ...await wantedPictures(test, sd, clip),
    };
  } finally {
    predictions.dispose();
    steps.dispose();
    clip.dispose();
    latents.dispose();
  }
}

async function encoded(sd: StableDiffusion, { params: p }: StoredCase): Promise<Results> {
  const prompts = [text(p, "negative_prompt", ""), text(p, "prompt")];
  const { hiddenStates } = sd.encodePrompt(prompts);
  try {
    return splitText({ data: await hiddenStates.data(), shape: hiddenStates.shape });
  } finally {
    hiddenStates.dispose();
  }
}

/** A finished run of Text2Video-Zero. */
export interface VideoRun {
  readonly clip: Clip;
  /** Intermediate results under diffusers' names, and `final_latents`. */
  readonly results: Results;
  dispose(): void;
}

/**
 * Makes a clip of a case with what all its forms share.
 *
 * @param start x_T, `[1, C, h, w]`, or `[F, C, h, w]` where frames have one each.
 * @param noise Noise of the jump from T0 to T1; `null` to draw it.
 * @param options Besides, or instead of, those that the case states.
 */
export async function runVideo(
  sd: StableDiffusion,
  test: StoredCase,
  start: Values,
  noise: Values | null,
  options: TextToVideoOptions,
): Promise<VideoRun> {
  const { params: p } = test;
  const { device } = sd;
  const upload = ({ data, shape }: Values) => device.tensor(Float32Array.from(data), shape);
  const latents = upload(start);
  const given = noise && upload(noise);
  const joints = album();
  const loop = album();
  const lists: Results = {};
  const eta = number(p, "eta", 0);
  const clip = textToVideo(sd, text(p, "prompt"), {
    ...commonOptions(sd, test, latents),
    motionFieldStrengthX: number(p, "motion_field_strength_x"),
    motionFieldStrengthY: number(p, "motion_field_strength_y"),
    t0: number(p, "t0"),
    t1: number(p, "t1"),
    compat: "diffusers",
    // With η > 0 the noise of the jump is one draw among those of the steps.
    ...(eta > 0
      ? { generator: new Generator(number(p, "generator_seed")) }
      : given && { noise: given }),
    onIntermediate(name, value) {
      if ("device" in value) joints.keep(name, value);
      else lists[name] = { data: value };
    },
    ...options,
  });
  const dispose = () => {
    clip.dispose();
    latents.dispose();
    given?.dispose();
    joints.dispose();
    loop.dispose();
  };
  try {
    const wantsLoop = ["loop3_latents_after_step", "before_smoothing_x0", "x_t1_1"]
      .some((role) => test.outputs.includes(role));
    for await (const { phase, step, latents } of clip.steps) {
      if (wantsLoop && phase === "frames") loop.keep(`${step}`, latents);
    }
    const final = await clip.latents();
    const { prompt_embeds, ...tensors } = await joints.read();
    const results = {
      ...lists,
      ...tensors,
      ...splitText(prompt_embeds),
      joint_pass: stacked(Object.values(await loop.read())),
      final_latents: { data: await final.data(), shape: final.shape },
    };
    return { clip, results, dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

async function video(stored: StoredCase, setting: Setting): Promise<Outputs> {
  const { sd, test } = await modelAndCase(stored, setting);
  const { params: p } = test;
  const start = await readInput(test, "x_T");
  const noise = await readInput(test, "ddpm_noise");
  const run = await runVideo(
    sd,
    test,
    start,
    noise,
    p.frame_ids ? { frameIds: numbers(p, "frame_ids") } : { frames: number(p, "video_length") },
  );
  try {
    const { joint_pass, ...results } = run.results;
    return {
      ...promptIds(sd, test),
      ...results,
      loop3_latents_after_step: joint_pass,
      ...await wantedPictures(test, sd, run.clip),
    };
  } finally {
    run.dispose();
  }
}
