/**
 * From flags to a request: everything that can be decided, and refused, before a GPU is touched.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import { disk } from "../output_file.ts";
import { parseTarget } from "../target.ts";
import type { VideoInstructPix2PixOptions } from "../instruct_pix2pix.ts";
import type { StartImageOptions } from "../start_image.ts";
import type { TextToVideoOptions } from "../text_to_video_zero.ts";
import { checkTarget } from "../writer.ts";
import { type ControlsRequest, controlsRequest } from "./controls.ts";
import { isPicture, type VideoRequest, videoRequest } from "./input_video.ts";
import type { DtypeChoice, GenerateFlags, LoraRequest } from "./options.ts";
import { freeName } from "./output_name.ts";
import { type PictureNames, readPictures } from "./pictures.ts";
import { checkSmoothing, type SmoothingNames, smoothingNames } from "./smoothing.ts";
import { readStored } from "./stored.ts";

/** Which command runs. */
export type Kind = "video" | "image" | "edit";

/** Which model, in the words of the command line. */
export interface ModelRequest {
  /** Folder, file, id of the Hub, or address. */
  readonly model: string;
  /** Precision of its files. */
  readonly variant?: string;
  /** Folder of the vocabulary. */
  readonly tokenizer?: string;
  /** Folder, file, id or address of another autoencoder. */
  readonly vae?: string;
  /** Folder of configurations for a single file. */
  readonly config?: string;
  /** What the sha256 of a file at an address must be. */
  readonly modelSha256?: string;
}

/** Options of all commands. */
export type LibraryOptions =
  & TextToVideoOptions
  & StartImageOptions
  & Pick<VideoInstructPix2PixOptions, "imageGuidanceScale" | "sharedNoise">;

/** What shall be made, and where to. */
export interface Request {
  /** Which command runs. */
  readonly kind: Kind;
  /** What to show, or to change; not empty. */
  readonly prompt: string;
  /** Options of the library; pictures heed some of them. */
  readonly options: LibraryOptions;
  /** Where the pictures among them lie. */
  readonly pictures: PictureNames;
  /** How the background of a video is smoothed, if it is. */
  readonly smoothing?: SmoothingNames;
  /** The model; absent for the built-in one. */
  readonly model?: ModelRequest;
  /** Files of learnt words, each with `:word` behind it if it is to be renamed. */
  readonly embeddings: readonly string[];
  /** Adapters to merge into it. */
  readonly loras: readonly LoraRequest[];
  /** ControlNets and where their maps lie; absent without. */
  readonly controls?: ControlsRequest;
  /** The precision that was asked for. */
  readonly dtype: DtypeChoice;
  /** How weights are kept, if not in that precision. */
  readonly weights?: "q8";
  /** The video to change. */
  readonly video: VideoRequest | null;
  /** Frames of a chunk; absent without chunks. */
  readonly chunkSize?: number;
  /** Frames of a window of a long clip; 0 for all at once. */
  readonly window?: number;
  /** Frames a second; absent where those of the video decide. */
  readonly fps?: number;
  /** Whether flicker is taken out of the frames. */
  readonly deflicker: boolean;
  /** Files and folders to write, checked; at least one. */
  readonly targets: string[];
  /** Whether they may be there already. */
  readonly overwrite: boolean;
}

/** The command line itself is wrong, whatever is on the disk. */
export class UsageError extends InputError {}

/** Runs `action`; what it refuses is the command line's fault. */
export async function asUsage<T>(action: () => T | Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof InputError) throw new UsageError(error.message, { cause: error });
    throw error;
  }
}

/**
 * Settings of `--demo`. One latent cell a frame moves the heart evenly, and the wide picture leaves
 * it room: where an object comes near the border, the mirrored part would bring a second one in.
 */
const DEMO = {
  prompt: "a red heart in a green meadow",
  fps: 4,
  options: {
    seed: 3,
    frames: 8,
    width: 192,
    height: 128,
    steps: 12,
    t0: 5,
    t1: 6,
    motionFieldStrengthX: 21.5,
  },
  targets: ["out/demo.mp4", "out/demo.gif", "sheet:out/demo.png"],
} as const;

/** Frames a second where nothing says otherwise. */
export const DEFAULT_FPS = 4;

/**
 * Puts a request together: flags over the settings of `--from` over those of `--demo`.
 *
 * @throws {UsageError} no prompt, no video to change, or a target of an unknown kind.
 * @throws {InputError} a target that cannot be written, or a file without settings.
 */
export async function readRequest(
  kind: Kind,
  typed: string | undefined,
  flags: GenerateFlags,
): Promise<Request> {
  const stored = await readStored(flags.from);
  const demo = flags.demo ? DEMO : undefined;
  const prompt = checkPrompt(kind, typed ?? stored.request.prompt ?? demo?.prompt);
  const video = kind === "edit" ? videoRequest(flags, stored.clip) : null;
  if (kind === "edit" && !video) {
    throw new UsageError("there is no video to change; name it with --video");
  }
  const options = mergedOptions(kind, flags, { ...demo?.options, ...stored.options });
  const chunkSize = kind === "image" ? undefined : flags.chunkSize ?? stored.request.chunkSize;
  if (chunkSize !== undefined) {
    options.compat = "original";
    options.sharedNoise = false;
  }
  if (options.seed === -1) options.seed = crypto.getRandomValues(new Uint32Array(1))[0];
  const pictures = await readPictures(pictureNames(kind, flags, stored.pictures));
  const smoothing = kind === "video"
    ? await asUsage(() => smoothingNames(flags, stored.smoothing))
    : undefined;
  await checkSmoothing(smoothing);
  const overwrite = flags.overwrite ?? flags.demo ?? false;
  const targets = [...flags.output ?? []];
  if (flags.framesDir !== undefined) targets.push(`${flags.framesDir}/`);
  if (targets.length === 0) {
    await (await disk()).fs.mkdir("out", { recursive: true });
    if (demo) targets.push(...demo.targets);
    else {
      const single = kind === "image" || (video && isPicture(video.video));
      const extension = single ? "png" : "mp4";
      targets.push(await freeName(extension, prompt, options.seed ?? 0, overwrite));
    }
  }
  await checkTargets(targets, overwrite);
  checkPreview(flags, flags.model ?? stored.model.model);
  if (flags.preview !== undefined && flags.preview !== IN_TERMINAL) {
    await checkTargets([flags.preview], true);
  }
  const { embeddings = [], loras = [], dtype = "auto", weights, deflicker = false } =
    stored.request;
  const { controlSource, controlShort, ...controls } = stored.controls;
  const maps = { ...stored.clip, controlSource, controlShort };
  return {
    kind,
    prompt,
    options: { ...options, ...pictures.options },
    pictures: pictures.names,
    smoothing,
    model: modelRequest(flags, stored.model),
    embeddings: flags.embedding ?? embeddings,
    loras: flags.lora ?? loras,
    controls: await asUsage(() => controlsRequest(flags, { ...controls, maps })),
    dtype: flags.dtype ?? dtype,
    weights: flags.weights ?? weights,
    video,
    chunkSize,
    window: flags.window,
    fps: flags.fps ?? (isNewVideo(kind, flags) ? undefined : stored.request.fps) ?? demo?.fps,
    deflicker: flags.deflicker ?? deflicker,
    targets,
    overwrite,
  };
}

function checkPrompt(kind: Kind, prompt: string | undefined): string {
  if (prompt?.trim()) return prompt;
  const how = prompt === undefined ? "missing" : "empty";
  throw new UsageError(
    kind === "edit"
      ? `the instruction is ${how}; say what to change, as in: framezero edit "make it winter" ` +
        "--video clip.mp4 (edit --help lists the options)"
      : `the prompt is ${how}; say what to show, as in: framezero "a red heart in a ` +
        'green meadow" (--help lists the options)',
  );
}

/** Whether another video is to be changed than the one in settings, if there is one. */
function isNewVideo(kind: Kind, flags: GenerateFlags): boolean {
  return kind === "edit" && flags.video !== undefined;
}

/** The options of the flags over `base`, without what follows from what is now wanted otherwise. */
function mergedOptions(
  kind: Kind,
  flags: GenerateFlags,
  { ...base }: LibraryOptions,
): LibraryOptions {
  const given = libraryOptions(flags);
  if (given.frames !== undefined || kind === "edit") delete base.frameIds;
  if (given.frameIds !== undefined) delete base.frames;
  if (given.steps !== undefined) {
    delete base.t0;
    delete base.t1;
  }
  if (isNewVideo(kind, flags) || flags.resolution !== undefined) {
    delete base.width;
    delete base.height;
  }
  if (flags.canvas === false || given.motion === false) delete base.canvas;
  const steady = given.motionFieldStrengthX !== undefined ||
    given.motionFieldStrengthY !== undefined;
  if (steady && typeof base.motion === "string") {
    delete base.motion;
    delete base.subCell;
  }
  if (typeof given.motion === "string") {
    delete base.motionFieldStrengthX;
    delete base.motionFieldStrengthY;
    delete base.subCell;
  }
  return { ...base, ...given };
}

/** The pictures of the flags, which may be any, or else those in a file; videos know no masks. */
function pictureNames(kind: Kind, flags: GenerateFlags, stored: PictureNames): PictureNames {
  if (kind === "edit") return {};
  const { init, initSha256, mask, maskSha256 } = stored;
  return {
    ...(flags.init === undefined ? { init, initSha256 } : { init: flags.init }),
    ...(flags.mask !== undefined ? { mask: flags.mask } : kind === "image" && { mask, maskSha256 }),
  };
}

/** What `--preview` says for pictures in the terminal alone. */
export const IN_TERMINAL = "-";

function checkPreview({ preview, taesd }: GenerateFlags, model: string | undefined): void {
  if (taesd === undefined) return;
  if (preview === undefined) {
    throw new UsageError("--taesd decodes previews; say where they go with --preview");
  }
  if (model === undefined) {
    throw new UsageError(
      "--taesd decodes the latents of Stable Diffusion, the built-in model has its own; leave it " +
        "out, or name a model with --model",
    );
  }
}

/** The model of the flags, or else the one in a file; flags about its files go with either. */
function modelRequest(
  { model, variant, tokenizer, vae, config }: GenerateFlags,
  stored: Partial<ModelRequest>,
): ModelRequest | undefined {
  const base = model === undefined ? stored : { model };
  const given = Object.entries({ variant, tokenizer, vae, config }).filter(([, value]) =>
    value !== undefined
  );
  if (base.model === undefined) {
    if (!given.length) return undefined;
    throw new UsageError(`--${given[0][0]} is about the files of a model; name it with --model`);
  }
  const all = { ...base, ...Object.fromEntries(given) };
  return { ...all, model: base.model };
}

/** The flags that are options of the library, without those that were not given. */
function libraryOptions(flags: GenerateFlags): LibraryOptions {
  const all: LibraryOptions = {
    strength: flags.strength,
    steps: flags.steps,
    seed: flags.seed,
    width: flags.width,
    height: flags.height,
    guidanceScale: flags.guidance,
    guidanceRescale: flags.guidanceRescale,
    imageGuidanceScale: flags.imageGuidance,
    sharedNoise: flags.independentNoise ? false : undefined,
    negativePrompt: flags.negative,
    promptWeights: flags.promptWeights,
    clipSkip: flags.clipSkip,
    longPrompts: flags.longPrompt,
    scheduler: flags.scheduler,
    timestepSpacing: flags.timestepSpacing,
    eta: flags.eta,
    merge: flags.merge,
    reuse: flags.reuse,
    frames: flags.frames,
    frameIds: flags.frameIds,
    motionFieldStrengthX: flags.motionX,
    motionFieldStrengthY: flags.motionY,
    t0: flags.t0,
    t1: flags.t1,
    rows: flags.rows,
    attention: flags.attention,
    attentionWindow: flags.attentionWindow,
    prompts: flags.promptAt,
    guidanceScales: flags.guidanceAt,
    // The parser says true where nobody said no.
    crossFrame: flags.crossFrame === false ? false : undefined,
    motion: flags.motion,
    subCell: flags.subCell,
    canvas: flags.canvas || undefined,
    double: flags.double,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

/** Refuses targets of unknown kinds, and those that cannot be written. */
export async function checkTargets(targets: readonly string[], overwrite: boolean): Promise<void> {
  for (const target of targets) {
    await asUsage(() => parseTarget(target));
    await checkTarget(target, { overwrite });
  }
}
