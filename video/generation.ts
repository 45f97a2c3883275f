/**
 * What all ways of making pictures from a prompt share: options with their checks and defaults, the
 * encoded prompt, the scheduler, and the step.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { checkClipSkip, type PromptOptions } from "../models/prompt.ts";
import { looksWeighted, parsePromptWeights } from "../models/prompt_weights.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import { createScheduler, type Scheduler, type SchedulerConfig } from "../schedulers/mod.ts";
import type { ClipStep } from "./clip.ts";
import { GuidedUNet } from "./guided_unet.ts";
import type { NoiseSource } from "./noise.ts";

/** Options of every generation. */
export interface GenerationOptions extends PromptOptions {
  /** Denoising steps. Default: the model's, or 50. */
  numInferenceSteps?: number;
  /** Short for `numInferenceSteps`. */
  steps?: number;
  /** Classifier-free guidance; 1 and below use the prompt alone. Default: the model's, or 7.5. */
  guidanceScale?: number;
  /** What the pictures shall not show. Default: empty. */
  negativePrompt?: string;
  /** Start of the random numbers. Default 0. */
  seed?: number;
  /** Pixels, a multiple of 8. Default: the size that the model was trained with. */
  width?: number;
  /** Pixels, a multiple of 8. Default: as `width`'s. */
  height?: number;
  /** Name of the scheduler. Default `"ddim"`, the method's own. */
  scheduler?: string;
  /** Share of fresh noise in each DDIM step, 0 … 1. Default 0. */
  eta?: number;
  /** Stops the work within a step. */
  signal?: AbortSignal;
}

/** Options, checked and completed. */
export interface Settled extends Readonly<Required<PromptOptions>> {
  readonly prompt: string;
  readonly negativePrompt: string;
  /** Files of the embeddings that prompts may use. */
  readonly embeddings: readonly string[];
  readonly steps: number;
  readonly guidanceScale: number;
  readonly seed: number;
  readonly width: number;
  readonly height: number;
  readonly scheduler: string;
  readonly eta: number;
}

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
    seed: checkNumber("seed", options.seed ?? 0, { whole: true }),
    width: side("width"),
    height: side("height"),
    scheduler: options.scheduler ?? "ddim",
    eta: checkNumber("eta", options.eta ?? 0, { least: 0, most: 1 }),
  };
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

/** The scheduler of that name with the checkpoint's noise schedule, its steps set. */
export function schedulerFor(sd: StableDiffusion, { scheduler, steps }: Settled): Scheduler {
  // Where the checkpoint says nothing, as Stable Diffusion has it: latents are not bounded as
  // pixels are, and PNDM begins without Runge–Kutta steps.
  const latent = { clip_sample: false, skip_prk_steps: true };
  const config = { ...latent, ...sd.schedulerConfig } as Partial<SchedulerConfig>;
  const made = createScheduler(scheduler, config);
  made.setTimesteps(steps);
  return made;
}

/**
 * Encodes the prompts of the guidance rows.
 *
 * @returns `[2, tokens, width]` (negative, positive), or `[1, tokens, width]` without guidance.
 */
export async function encodePrompts(
  sd: StableDiffusion,
  settled: Settled,
  warnings: string[],
): Promise<Tensor> {
  const { prompt, negativePrompt, guidanceScale } = settled;
  const prompts = GuidedUNet.needsNegative(guidanceScale) ? [negativePrompt, prompt] : [prompt];
  await sd.restoreTextEncoder();
  const { hiddenStates, cut, unbalanced } = sd.encodePrompt(prompts, settled);
  prompts.forEach((text, i) => {
    const which = prompts.length === 2 && i === 0 ? "negative prompt" : "prompt";
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

/** A run of the denoiser over latents. */
export interface Sampler {
  readonly unet: GuidedUNet;
  readonly scheduler: Scheduler;
  readonly noise: NoiseSource;
  readonly eta: number;
  readonly signal?: AbortSignal;
}

/** Where a run of steps stands in the whole. */
export interface Progress {
  readonly phase: ClipStep["phase"];
  /** Steps made before this run. */
  readonly before: number;
  /** Steps in all. */
  readonly total: number;
}

/**
 * Denoises `start` over the timesteps. Yields after every step; returns the latents, which are the
 * caller's then.
 *
 * @param start `[frames, C, h, w]`; is disposed of.
 */
export async function* denoise(
  sampler: Sampler,
  start: Tensor,
  timesteps: readonly number[],
  { phase, before, total }: Progress,
): AsyncGenerator<ClipStep, Tensor> {
  let x = start;
  let finished = false;
  try {
    for (let i = 0; i < timesteps.length; i++) {
      const timestep = timesteps[i];
      const { noisePrediction, latents } = await denoiseStep(sampler, x, timestep);
      x.dispose();
      x = latents;
      try {
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
  { unet, scheduler, noise, eta, signal }: Sampler,
  x: Tensor,
  timestep: number,
): Promise<{ noisePrediction: Tensor; latents: Tensor }> {
  const { device } = x;
  const afterGroup = async () => {
    signal?.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve, 0));
    signal?.throwIfAborted();
  };
  const input = device.scope(() => {
    const scaled = scheduler.scaleModelInput(x, timestep);
    return scaled === x ? x.reshape(x.shape) : scaled;
  }).keep();
  const prediction = unet.predict(input, timestep, afterGroup).finally(() => input.dispose());
  const noisePrediction = await prediction;
  const latents = device.scope(() => {
    const positions = [...Array(x.shape[0]).keys()];
    const generator = { randn: (shape: readonly number[]) => noise.frames(positions, shape) };
    return scheduler.step(noisePrediction, timestep, x, { eta, generator }).prevSample;
  }).keep();
  await device.sync();
  return { noisePrediction, latents };
}
