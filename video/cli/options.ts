/**
 * The options of the commands that make pictures, and what their values must look like.
 *
 * @module
 */

import { type Command, InvalidArgumentError, Option } from "commander";
import { GPU_CHOICES, type GpuChoice } from "../../core/runtime.ts";
import { FRAME_ATTENTION, type FrameAttentionChoice } from "../frame_attention.ts";
import type { AtFrames } from "../prompt_travel.ts";
import { createScheduler, samplers, type TimestepSpacing } from "../../schedulers/mod.ts";
import type { SmoothingBlend } from "../background_smoothing.ts";
import { atFrames, byteCount, collect, frameList, NUMBER, number, whole } from "./values.ts";
import { addMotionOptions, type MotionFlags } from "./motion_options.ts";
import { addControlOptions } from "./control_options.ts";
import type { ControlFlags } from "./controls.ts";

/** Options of the commands that make pictures, as the parser gives them. */
export interface GenerateFlags extends ControlFlags, MotionFlags {
  /** Where to. */
  output?: string[];
  /** File to take settings from. */
  from?: string;
  /** Denoising steps. */
  steps?: number;
  /** Start of the random numbers; −1 for any. */
  seed?: number;
  /** Pixels. */
  width?: number;
  /** Pixels. */
  height?: number;
  /** Weight of the prompt. */
  guidance?: number;
  /** Share in which the spread of the guided noise is brought back. */
  guidanceRescale?: number;
  /** What not to show. */
  negative?: string;
  /** Read brackets as weights. */
  promptWeights?: boolean;
  /** Layers of the text encoder to leave out. */
  clipSkip?: number;
  /** Encode all of a prompt. */
  longPrompt?: boolean;
  /** Files of learnt words, each with `:word` behind it if it is to be renamed. */
  embedding?: string[];
  /** Name of the scheduler. */
  scheduler?: string;
  /** How its timesteps lie. */
  timestepSpacing?: TimestepSpacing;
  /** Share of fresh noise in each step. */
  eta?: number;
  /** Folder, file, id or address of the model. */
  model?: string;
  /** Precision of its files. */
  variant?: string;
  /** Another autoencoder than the model's. */
  vae?: string;
  /** Picture to start from. */
  init?: string;
  /** How far that is left behind; absent in `video`. */
  strength?: number;
  /** Where it is painted anew; absent in `video`. */
  mask?: string;
  /** Folder of the vocabulary. */
  tokenizer?: string;
  /** Folder of configurations for a single file. */
  config?: string;
  /** Adapters of the model. */
  lora?: LoraRequest[];
  /** Precision. */
  dtype?: DtypeChoice;
  /** Which WebGPU. */
  gpu: GpuChoice;
  /** Use what is no standard yet. */
  experimental?: boolean;
  /** Bytes that may be taken on the GPU. */
  memory?: number;
  /** How weights are kept, if not in the type of activations. */
  weights?: "q8";
  /** Share of merged tokens. */
  merge?: number;
  /** Steps between two that compute everything. */
  reuse?: number;
  /** File that shows the unfinished result. */
  preview?: string;
  /** Weights of the tiny decoder for previews. */
  taesd?: string;
  /** Replace files. */
  overwrite?: boolean;
  /** Print nothing but errors. */
  quiet?: boolean;
  /** Print the result as JSON. */
  json?: boolean;
  /** Make the demonstration. */
  demo?: boolean;
  /** Number of frames. */
  frames?: number;
  /** Frame numbers. */
  frameIds?: number[];
  /** Frames a second. */
  fps?: number;
  /** Folder for every frame. */
  framesDir?: string;
  /** Steps below T0. */
  t0?: number;
  /** Steps below T1. */
  t1?: number;
  /** Rows of the UNet computed at once. */
  rows?: number;
  /** Whether frames attend to the first one; absent in `image`. */
  crossFrame?: boolean;
  /** To which frames they attend. */
  attention?: FrameAttentionChoice;
  /** Frames of the window. */
  attentionWindow?: number;
  /** Prompts of later frames. */
  promptAt?: AtFrames<string>;
  /** Guidance of later frames. */
  guidanceAt?: AtFrames<number>;
  /** Frames of a chunk, as the original code has them. */
  chunkSize?: number;
  /** Frames of a window. */
  window?: number;
  /** Video to change. */
  video?: string;
  /** Seconds at which it begins. */
  start?: number;
  /** Seconds at which it ends. */
  end?: number;
  /** Frames that are taken of a second of it. */
  videoFps?: number;
  /** Pixels of its longer side. */
  resolution?: number;
  /** Weight of its frames. */
  imageGuidance?: number;
  /** Draw noise for every frame. */
  independentNoise?: boolean;
  /** How much of its own background a frame keeps. */
  smooth?: number;
  /** Whose formula of smoothing. */
  smoothBlend?: SmoothingBlend;
  /** Word of the prompt that is the foreground. */
  subject?: string;
  /** Masks of the foreground. */
  maskVideo?: string;
  /** Weights of a network that finds the foreground. */
  saliency?: string;
}

/** A LoRA, in the words of the command line. */
export interface LoraRequest {
  /** Path or address. */
  readonly file: string;
  /** How strongly. */
  readonly weight: number;
  /** What the sha256 of the file must be. */
  readonly sha256?: string;
}

/** Type of weights and activations; `auto` lets the model and the adapter decide. */
export type DtypeChoice = "auto" | "f16" | "f32";

/** What `--experimental` does. */
export const EXPERIMENTAL = "use what is no standard yet: the GPU's matrix units, which Dawn " +
  "offers (in Deno with --gpu dawn)";

/** What names a model. */
export const MODEL = "a diffusers folder, a .safetensors file, owner/name[@revision] on Hugging " +
  "Face, or an https address";

/** What `--variant` does. */
export const VARIANT = "precision to prefer where a model has several, such as fp16, or " +
  '"" for the plain files (default: fp16 when computing in f16, else the plain files)';

/**
 * A file with a weight behind a colon: `"style.safetensors:0.8"`. Colons of addresses, of drives
 * (`C:\style.safetensors`) and of what ends like a file are no such colon.
 */
export function loraWithWeight(text: string): LoraRequest {
  const at = text.lastIndexOf(":");
  const behind = text.slice(at + 1);
  if (at < 0 || /[/\\]|\.safetensors$/i.test(behind)) return { file: text, weight: 1 };
  const weight = Number(behind);
  if (at > 0 && NUMBER.test(behind) && Number.isFinite(weight)) {
    return { file: text.slice(0, at), weight };
  }
  throw new InvalidArgumentError(
    "It must be a file, with a number behind a colon if wanted, such as style.safetensors:0.8.",
  );
}

const SHORT_NAMES = samplers.map(({ name }) => name).join(" ");

function schedulerName(text: string): string {
  try {
    createScheduler(text, {});
    return text;
  } catch {
    throw new InvalidArgumentError(`It must be one of ${SHORT_NAMES}, or a class of diffusers.`);
  }
}

/** Adds what every command that makes pictures understands. */
export function addSharedOptions(command: Command): Command {
  return command
    .option(
      "-o, --output <file>",
      "where to, by extension: .mp4 .webm .gif .png .apng, a folder, sheet:NAME.png for a contact " +
        "sheet; can be repeated",
      collect,
    )
    .option("--steps <n>", "denoising steps (default: the model's)", whole(1, 1000))
    .option("--seed <n>", "start of the random numbers; -1 picks one (default: 0)", whole(-1))
    .option("--width <px>", "multiple of 8 (default: the model's)", whole(1))
    .option("--height <px>", "multiple of 8 (default: the model's)", whole(1))
    .option("--guidance <x>", "weight of the prompt (default: the model's)", number({ least: 0 }))
    .option(
      "--guidance-rescale <x>",
      "share of overexposure to take back where guidance is strong, 0 to 1 (default: 0)",
      number({ least: 0, most: 1 }),
    )
    .option("--negative <prompt>", "what not to show")
    .option("--prompt-weights", "read (more), [less] and (word:1.3) in prompts as weights")
    .option("--long-prompt", "take prompts of any length (default: 75 tokens of them)")
    .option(
      "--clip-skip <n>",
      'leave out the last n layers of the text encoder; 1 is A1111\'s "clip skip 2" (default: 0)',
      whole(0),
    )
    .option(
      "--embedding <file[:word]>",
      "textual inversion, a .safetensors file; can be repeated. It is used where the word stands " +
        "in a prompt (default: the word inside the file, or its name)",
      collect,
    )
    .option(
      "--sampler, --scheduler <name>",
      `${SHORT_NAMES}; "karras", "exponential" or "beta" may follow (default: ddim; edit: euler-a)`,
      schedulerName,
    )
    .addOption(
      new Option("--timestep-spacing <kind>", "how its timesteps lie (default: the model's)")
        .choices(["leading", "trailing", "linspace"]),
    )
    .option(
      "--eta <x>",
      "fresh noise in each step, 0 to 1 (default: 0)",
      number({ least: 0, most: 1 }),
    )
    .option("--model <model>", `Stable Diffusion 1.x: ${MODEL} (default: built in)`)
    .option(
      "--lora <file[:weight]>",
      "LoRA to merge into the model, a .safetensors file or its address (default weight: 1); can " +
        "be repeated",
      (text: string, before: LoraRequest[] = []) => [...before, loraWithWeight(text)],
    )
    .option("--variant <name>", VARIANT)
    .option("--vae <vae>", "another autoencoder: a diffusers folder or a .safetensors file")
    .option("--tokenizer <folder>", "where vocab.json and merges.txt are, if not with the model")
    .option("--config <folder>", "diffusers folder whose configurations describe a single file")
    .addOption(
      new Option("--dtype <type>", "precision; auto: f16 for big models where the GPU has it")
        .choices(["auto", "f16", "f32"]),
    )
    .addOption(
      new Option("--weights <kind>", "q8: the UNet's weights in 8 bits, half the memory of f16")
        .choices(["q8"]),
    )
    .addOption(
      new Option("--gpu <kind>", "which WebGPU to use").choices(GPU_CHOICES).default("auto"),
    )
    .option("--experimental", EXPERIMENTAL)
    .option(
      "--memory <size>",
      "GPU memory to stay within, such as 6GB (default: no limit); less is slower",
      byteCount,
    )
    .option(
      "--merge <ratio>",
      "share of tokens merged in self-attention, 0 to 1: faster, less detail (default: 0)",
      number({ least: 0, most: 1 }),
    )
    .option(
      "--reuse <n>",
      "compute the whole UNet every n-th step only: faster, less faithful (default: 1)",
      whole(1),
    )
    .option(
      "--preview <file>",
      "picture of the unfinished result, renewed every few steps; kitty, iTerm2 and others show " +
        "it too (- for there alone)",
    )
    .option("--taesd <file>", "TAESD decoder (.safetensors) for finer previews of big models")
    .option("--from <file>", "take the settings out of a file that framezero wrote")
    .option("--overwrite", "replace files that exist")
    .option("--quiet", "print nothing but errors")
    .option("--json", "print one JSON object about the result");
}

/** Adds the picture that the result begins with. */
function addStartImage(command: Command): Command {
  return command.option(
    "--init <file>",
    "PNG or JPEG to start from; a video's first frame; fills the size, cropped in the middle",
  );
}

/** Adds what commands that make several frames understand. */
export function addFrameOptions(command: Command): Command {
  return command
    .option(
      "--rows <n>",
      "UNet rows computed at once, with guidance several a frame (default: up to 8, what fits)",
      whole(1),
    )
    .option("--frames-dir <folder>", "also write every frame as a PNG file")
    .option("--no-cross-frame", "let every frame attend to itself only")
    .option(
      "--chunk-size <n>",
      "frames of a chunk; works and draws noise as Text2Video-Zero's own code, to compare with " +
        "it (default: no chunks are needed)",
      whole(2),
    );
}

/** Adds the options of `image`. */
export function addImageOptions(command: Command): Command {
  return addControlOptions(addStartImage(addSharedOptions(command)))
    .option(
      "--strength <x>",
      "how far the picture of --init is left behind, 0 to 1 (default: 0.8; with --mask 1)",
      number({ least: 0, most: 1 }),
    )
    .option(
      "--mask <file>",
      "paint the picture of --init anew where this one of its size is light",
    );
}

/** Adds the options of `video`. */
export function addVideoOptions(command: Command): Command {
  return addMotionOptions(
    addControlOptions(addFrameOptions(addStartImage(addSharedOptions(command)))),
  )
    .option("--frames <n>", "number of frames (default: 8)", whole(1))
    .option("--fps <x>", "frames a second (default: 4)", number({ above: 0, most: 240 }))
    .option("--t0 <n>", "steps below T0, where motion is applied; less than --t1", whole(0))
    .option("--t1 <n>", "steps below T1, where all frames join; less than --steps", whole(0))
    .option(
      "--frame-ids <list>",
      "frame numbers, such as 0,8-15; the first is the anchor",
      frameList,
    )
    .addOption(
      new Option("--attention <frames>", "which frames a frame attends to (default: first)")
        .choices(FRAME_ATTENTION),
    )
    .option(
      "--attention-window <n>",
      "frames of --attention window besides the first, the frame itself included (default: 2)",
      whole(1),
    )
    .option(
      "--prompt-at <frame: prompt>",
      "another prompt from that frame on, reached gradually; can be repeated",
      atFrames((text) => text),
    )
    .option(
      "--guidance-at <frame: x>",
      "another guidance from that frame on, reached gradually; can be repeated",
      atFrames(number({ least: 0 })),
    )
    .option(
      "--smooth <a>",
      "smooth the background: how much of its own each frame keeps, 0 to 1 (default: 0.4)",
      number({ least: 0, most: 1 }),
    )
    .addOption(
      new Option(
        "--smooth-blend <kind>",
        "formula of the authors' code or of the paper (default: code)",
      ).choices(["code", "paper"]),
    )
    .option("--subject <word>", "smooth behind this word of the prompt")
    .option(
      "--mask-video <path>",
      "smooth where these masks are dark: a video or folder with a mask for each frame, or a picture",
    )
    .option(
      "--saliency <file>",
      "smooth behind what stands out to U²-Net or U²-Net-p (.safetensors)",
    )
    .option(
      "--window <n>",
      "frames that are finished and written together, with the same result; 0 for all (default: 24 " +
        "in clips of more than 48)",
      whole(0),
    )
    .option("--demo", "make out/demo.mp4, out/demo.gif and out/demo.png");
}
