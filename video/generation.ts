/**
 * What all ways of making pictures from a prompt share: options with their checks and defaults, the
 * encoded prompt, the scheduler, and the step.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { concat, narrow } from "../kernels/mod.ts";
import { checkClipSkip, type PromptOptions } from "../models/prompt.ts";
import { looksWeighted, parsePromptWeights } from "../models/prompt_weights.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import {
  createScheduler,
  DDIMInverseScheduler,
  type Scheduler,
  type SchedulerConfig,
  type TimestepSpacing,
} from "../schedulers/mod.ts";
import type { ClipStep } from "./clip.ts";
import { guidanceRows, type GuidanceScales } from "./guidance.ts";
import type { GuidedUNet } from "./guided_unet.ts";
import type { NoiseSource } from "./noise.ts";

/** Options of every generation. */
export interface GenerationOptions extends PromptOptions {
  /** Denoising steps. Default: the model's, or 50. */
  numInferenceSteps?: number;
  /** Short for `numInferenceSteps`. */
  steps?: number;
  /** Classifier-free guidance; 1 and below use the prompt alone. Default: the model's, or 7.5. */
  guidanceScale?: number;
  /**
   * How much of the guided noise's spread is brought back to that of the prompt alone, 0 … 1
   * (arXiv:2305.08891, section 3.4): less overexposed where guidance is strong. Default 0.
   */
  guidanceRescale?: number;
  /** What the pictures shall not show. Default: empty. */
  negativePrompt?: string;
  /** Start of the random numbers. Default 0. */
  seed?: number;
  /** Pixels, a multiple of 8. Default: the size that the model was trained with. */
  width?: number;
  /** Pixels, a multiple of 8. Default: as `width`'s. */
  height?: number;
  /** Name of the scheduler, as {@link createScheduler} knows it. Default `"ddim"`, the method's own. */
  scheduler?: string;
  /** How its timesteps lie among the training timesteps. Default: the model's, or the scheduler's. */
  timestepSpacing?: TimestepSpacing;
  /** Share of fresh noise in each DDIM step, 0 … 1. Default 0. */
  eta?: number;
  /**
   * Share of the tokens merged around self-attention at full resolution, 0 … 1 (0.75 is the most
   * that has an effect). Default 0. Saves time at the cost of detail.
   */
  merge?: number;
  /**
   * Steps from one that computes the whole UNet to the next; those between use its deep features
   * again. Default 1. Saves time at the cost of fidelity.
   */
  reuse?: number;
  /** Stops the work within a step. */
  signal?: AbortSignal;
}

/** Options, checked and completed. */
export interface Settled extends Readonly<Required<PromptOptions>>, GuidanceScales {
  readonly prompt: string;
  readonly negativePrompt: string;
  /** Files of the embeddings that prompts may use. */
  readonly embeddings: readonly string[];
  readonly steps: number;
  readonly guidanceRescale: number;
  readonly seed: number;
  readonly width: number;
  readonly height: number;
  readonly scheduler: string;
  /** Absent where model or scheduler decide. */
  readonly timestepSpacing?: TimestepSpacing;
  readonly eta: number;
  readonly merge: number;
  readonly reuse: number;
}

const SPACINGS: readonly TimestepSpacing[] = ["leading", "trailing", "linspace"];

/** Refuses a number that is not finite, not whole where it must be, or out of bounds. */
export function checkNumber(
  name: string,
  value: number,
  { least = -Infinity, most = Infinity, whole = false } = {},
): number {
  const right = typeof value === "number" && Number.isFinite(value) &&
    value >= least && value <= most && (!whole || Number.isSafeInteger(value));
  if (right) return value;
  const kind = whole ? "a whole number" : "a number";
  const bounds = [
    least > -Infinity ? ` of at least ${least}` : "",
    most < Infinity ? `${least > -Infinity ? " and" : " of"} at most ${most}` : "",
  ].join("");
  throw new InputError(`${name} must be ${kind}${bounds}, got ${String(value)}`);
}

/**
 * Checks options and fills in defaults.
 *
 * @throws {InputError} naming the option, the rule and the value.
 */
export function settle(sd: StableDiffusion, prompt: string, options: GenerationOptions): Settled {
  if (typeof prompt !== "string" || !prompt.trim()) {
    throw new InputError('the prompt is empty; say what to show, like "a horse on a street"');
  }
  const { defaults, factor } = sd;
  const { negativePrompt = "", promptWeights = false, clipSkip = 0, longPrompts = false } = options;
  if (promptWeights) [negativePrompt, prompt].forEach(parsePromptWeights);
  const side = (name: "width" | "height") => {
    const pixels = checkNumber(name, options[name] ?? sd.defaultSize, { least: 1, whole: true });
    if (pixels % factor !== 0) {
      const near = Math.max(factor, Math.round(pixels / factor) * factor);
      throw new InputError(
        `${name} must be a multiple of ${factor} (one latent cell), got ${pixels}; try ${near}`,
      );
    }
    return pixels;
  };
  const { timestepSpacing } = options;
  if (timestepSpacing !== undefined && !SPACINGS.includes(timestepSpacing)) {
    throw new InputError(
      `timestepSpacing must be one of ${SPACINGS.join(", ")}, got ${String(timestepSpacing)}`,
    );
  }
  const steps = options.steps ?? options.numInferenceSteps ?? defaults.steps;
  const guidanceScale = options.guidanceScale ?? defaults.guidanceScale;
  return {
    prompt,
    negativePrompt,
    promptWeights,
    clipSkip: checkClipSkip(clipSkip, sd.textEncoder.config.numHiddenLayers),
    longPrompts,
    embeddings: sd.inversions.map(({ source }) => source),
    steps: checkNumber("steps", steps, { least: 1, most: 1000, whole: true }),
    guidanceScale: checkNumber("guidanceScale", guidanceScale, { least: 0 }),
    guidanceRescale: checkNumber("guidanceRescale", options.guidanceRescale ?? 0, {
      least: 0,
      most: 1,
    }),
    seed: checkNumber("seed", options.seed ?? 0, { whole: true }),
    width: side("width"),
    height: side("height"),
    scheduler: options.scheduler ?? "ddim",
    ...(timestepSpacing && { timestepSpacing }),
    eta: checkNumber("eta", options.eta ?? 0, { least: 0, most: 1 }),
    merge: checkNumber("merge", options.merge ?? 0, { least: 0, most: 1 }),
    reuse: checkNumber("reuse", options.reuse ?? 1, { least: 1, whole: true }),
  };
}

/**
 * The frame numbers of a clip: those that are listed, or 0 … frames − 1.
 *
 * @throws {InputError} if there are none, one is no such number, or two options contradict.
 */
export function framesFrom(
  { frames, frameIds }: { readonly frames?: number; readonly frameIds?: readonly number[] },
  usual = 8,
): readonly number[] {
  if (!frameIds) {
    const count = checkNumber("frames", frames ?? usual, { least: 1, whole: true });
    return Array.from({ length: count }, (_, i) => i);
  }
  if (!frameIds.length) throw new InputError("frameIds must list at least one frame, got none");
  for (const id of frameIds) checkNumber("frameIds", id, { least: 0, whole: true });
  if (frames !== undefined && frames !== frameIds.length) {
    throw new InputError(`frames is ${frames}, but frameIds lists ${frameIds.length}; give one`);
  }
  return frameIds;
}

/** What settings of clips say about a model. */
export function modelSettings({ source, unet, loras }: StableDiffusion): Record<string, unknown> {
  return {
    model: source,
    ...(loras.length && { loras }),
    dtype: unet.dtype,
    ...(unet.quantized && { weights: "q8" }),
  };
}

/**
 * The scheduler of that name with the checkpoint's noise schedule, its steps set.
 *
 * @throws {InputError} if there is none, or it cannot make pictures in so many steps.
 */
export function schedulerFor(sd: StableDiffusion, settled: Settled): Scheduler {
  const made = namedScheduler(sd, settled.scheduler, settled);
  if (made instanceof DDIMInverseScheduler) {
    throw new InputError(
      `scheduler must lead from noise to pictures, and ${settled.scheduler} leads back; choose ddim`,
    );
  }
  return made;
}

/** The scheduler that leads from pictures to noise, by the same steps. */
export function inverseScheduler(sd: StableDiffusion, settled: Settled): Scheduler {
  return namedScheduler(sd, "DDIMInverseScheduler", settled);
}

function namedScheduler(
  sd: StableDiffusion,
  name: string,
  { steps, timestepSpacing }: Settled,
): Scheduler {
  // Where the checkpoint says nothing, as Stable Diffusion has it: latents are not bounded as
  // pixels are, and PNDM begins without Runge–Kutta steps.
  const latent = { clip_sample: false, skip_prk_steps: true };
  const spacing = timestepSpacing && { timestep_spacing: timestepSpacing };
  const config = { ...latent, ...sd.schedulerConfig, ...spacing } as Partial<SchedulerConfig>;
  const made = createScheduler(name, config);
  made.setTimesteps(steps);
  return made;
}

/**
 * Encodes the prompts of the guidance rows.
 *
 * @param later Prompts of later frames.
 * @returns `[rows, tokens, width]`: negative, positive; or the positive one alone without guidance;
 * then a row for each later prompt.
 */
export async function encodePrompts(
  sd: StableDiffusion,
  settled: Settled,
  warnings: string[],
  later: readonly string[] = [],
): Promise<Tensor> {
  const rows = guidanceRows(settled);
  const prompts = rows.map(({ text }) =>
    text === "prompt" ? settled.prompt : settled.negativePrompt
  ).concat(later);
  await sd.restoreTextEncoder();
  const { hiddenStates, cut, unbalanced } = sd.encodePrompt(prompts, settled);
  prompts.forEach((text, i) => {
    if (rows[i - 1] && rows[i - 1].text === rows[i]?.text) return;
    const which = rows[i]?.text === "negative" ? "negative prompt" : "prompt";
    if (cut[i]) {
      const limit = sd.tokenizer.maxLength - 2;
      warnings.push(
        `the ${which} is longer than ${limit} tokens; left out: "${cut[i]}" ` +
          "(longPrompts, or --long-prompt, takes all of it)",
      );
    }
    if (unbalanced[i]) {
      warnings.push(
        `the ${which} has brackets without a partner, read as text: ${unbalanced[i]} ` +
          "(write \\( for a bracket that is text)",
      );
    }
    if (!settled.promptWeights && looksWeighted(text)) {
      warnings.push(
        `the ${which} looks as if its brackets were weights; they were read as text ` +
          "(promptWeights, or --prompt-weights, reads them)",
      );
    }
  });
  return hiddenStates;
}

/** What predicts noise: the UNet with guidance, or what stands before it. */
export type Denoiser = Pick<GuidedUNet, "device" | "predict" | "subjectMap">;

/** A run of the denoiser over latents. */
export interface Sampler {
  readonly unet: Denoiser;
  readonly scheduler: Scheduler;
  /**
   * Steps all frames but the first. Two histories are needed where the frames have come different
   * ways: what a multistep method remembers of one frame says nothing about another.
   */
  readonly others?: Scheduler;
  readonly noise: NoiseSource;
  readonly eta: number;
  readonly signal?: AbortSignal;
  /** Channels that the model sees behind those of the latents, `[frames, channels, h, w]`. */
  readonly condition?: Tensor;
  /** Sees the latents after step `i` of a run, inside a scope; what it returns goes on. */
  readonly afterStep?: (latents: Tensor, i: number) => Tensor;
}

/** Where a run of steps stands in the whole. */
export interface Progress {
  readonly phase: ClipStep["phase"];
  /** Steps made before this run. */
  readonly before: number;
  /** Steps in all. */
  readonly total: number;
  /** Place of the run's first timestep in the whole schedule. Default 0. */
  readonly place?: number;
}

/** Milliseconds of work that the host is ahead of the device, unless a single step takes longer. */
const AHEAD = 500;

/**
 * A wait for the device after so many steps as take {@link AHEAD}, judged by those before: waiting
 * after every one leaves the device idle, for 10 ms in Deno.
 */
function pacer(device: Device): () => Promise<void> {
  let made = 0;
  let most = 1;
  let since = performance.now();
  return async () => {
    if (++made < most) return;
    await device.sync();
    const now = performance.now();
    most = Math.max(1, Math.floor(made * AHEAD / (now - since)));
    made = 0;
    since = now;
  };
}

/**
 * Denoises `start` over the timesteps. Yields after every step, which the device may not have made
 * yet; returns the latents, which are the caller's then.
 *
 * @param start `[frames, C, h, w]`; is disposed of.
 */
export async function* denoise(
  sampler: Sampler,
  start: Tensor,
  timesteps: readonly number[],
  { phase, before, total, place = 0 }: Progress,
): AsyncGenerator<ClipStep, Tensor> {
  let x = start;
  let finished = false;
  const pace = pacer(x.device);
  try {
    for (let i = 0; i < timesteps.length; i++) {
      const timestep = timesteps[i];
      const { noisePrediction, latents } = await denoiseStep(sampler, x, timestep, i, place);
      x.dispose();
      x = latents;
      try {
        await pace();
        yield { phase, step: before + i + 1, total, timestep, noisePrediction, latents };
      } finally {
        noisePrediction.dispose();
      }
    }
    finished = true;
    return x;
  } finally {
    if (!finished) x.dispose();
  }
}

/** One denoising step of all frames: `x_{t−1} = step(ε(x_t, t), t, x_t)`. */
async function denoiseStep(
  sampler: Sampler,
  x: Tensor,
  timestep: number,
  i: number,
  place: number,
): Promise<{ noisePrediction: Tensor; latents: Tensor }> {
  const { unet, scheduler, others, noise, eta, signal, condition } = sampler;
  const { afterStep = (latents) => latents } = sampler;
  const { device } = x;
  const afterGroup = async () => {
    signal?.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve, 0));
    signal?.throwIfAborted();
  };
  const input = device.scope(() => {
    const scaled = scheduler.scaleModelInput(x, timestep);
    if (condition) return concat([scaled, condition], 1);
    return scaled === x ? x.reshape(x.shape) : scaled;
  }).keep();
  const prediction = unet.predict(input, timestep, i, afterGroup, place + i)
    .finally(() => input.dispose());
  const noisePrediction = await prediction;
  const latents = device.scope(() => {
    const step = (by: Scheduler, first: number, count: number): Tensor => {
      const positions = Array.from({ length: count }, (_, k) => first + k);
      const generator = { randn: (shape: readonly number[]) => noise.frames(positions, shape) };
      const part = narrow(x, 0, first, count);
      const output = narrow(noisePrediction, 0, first, count);
      return by.step(output, timestep, part, { eta, generator }).prevSample;
    };
    const [frames] = x.shape;
    const all = others
      ? concat([step(scheduler, 0, 1), step(others, 1, frames - 1)], 0)
      : step(scheduler, 0, frames);
    return afterStep(all, i);
  }).keep();
  return { noisePrediction, latents };
}
