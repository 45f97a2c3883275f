/**
 * From flags to a request: everything that can be decided, and refused, before a GPU is touched.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import { BUILT_IN_NAME } from "../../models/stable_diffusion.ts";
import { disk } from "../output_file.ts";
import { parseTarget } from "../target.ts";
import type { VideoInstructPix2PixOptions } from "../instruct_pix2pix.ts";
import type { StartImageOptions } from "../start_image.ts";
import type { TextToVideoOptions } from "../text_to_video_zero.ts";
import { checkTarget, readSettings } from "../writer.ts";
import { areControls, type ControlsRequest, controlsRequest } from "./controls.ts";
import type { MapsOptions } from "./control_maps.ts";
import { isPicture, type VideoNames, type VideoRequest, videoRequest } from "./input_video.ts";
import type { DtypeChoice, GenerateFlags, LoraRequest } from "./options.ts";
import { type PictureNames, readPictures } from "./pictures.ts";
import { checkSmoothing, type SmoothingNames, smoothingNames } from "./smoothing.ts";

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

/** Settings in files and the type that each must have. */
const STORED = {
  prompt: "string",
  negativePrompt: "string",
  promptWeights: "boolean",
  clipSkip: "number",
  longPrompts: "boolean",
  embeddings: "object",
  steps: "number",
  guidanceScale: "number",
  guidanceRescale: "number",
  imageGuidanceScale: "number",
  sharedNoise: "boolean",
  seed: "number",
  width: "number",
  height: "number",
  scheduler: "string",
  timestepSpacing: "string",
  eta: "number",
  merge: "number",
  reuse: "number",
  frameIds: "object",
  motionFieldStrengthX: "number",
  motionFieldStrengthY: "number",
  t0: "number",
  t1: "number",
  crossFrame: "boolean",
  attention: "string",
  attentionWindow: "number",
  prompts: "map",
  guidanceScales: "map",
  motion: "boolean or string",
  subCell: "boolean",
  double: "boolean",
  deflicker: "boolean",
  smooth: "number",
  smoothBlend: "string",
  subject: "string",
  maskVideo: "string",
  saliency: "string",
  compat: "string",
  chunkSize: "number",
  video: "string",
  videoSha256: "string",
  start: "number",
  end: "number",
  videoFps: "number",
  resolution: "number",
  model: "string",
  variant: "string",
  tokenizer: "string",
  vae: "string",
  init: "string",
  initSha256: "string",
  strength: "number",
  mask: "string",
  maskSha256: "string",
  config: "string",
  modelSha256: "string",
  loras: "object",
  controls: "object",
  controlAttention: "string",
  controlSource: "string",
  controlShort: "string",
  transferFrom: "string",
  dtype: "string",
  weights: "string",
  fps: "number",
} as const;

/** Stored settings that are not options of the library. */
interface Stored
  extends
    Omit<TextToVideoOptions, keyof ControlsRequest>,
    Partial<Omit<ControlsRequest, "maps">>,
    Pick<MapsOptions, "controlSource" | "controlShort">,
    Pick<StartImageOptions, "strength">,
    Partial<ModelRequest>,
    SmoothingNames,
    PictureNames,
    VideoNames {
  prompt?: string;
  embeddings?: string[];
  loras?: readonly LoraRequest[];
  dtype?: DtypeChoice;
  weights?: "q8";
  fps?: number;
  chunkSize?: number;
  deflicker?: boolean;
}

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
  const from: Stored = flags.from === undefined ? {} : await readStored(flags.from);
  const { prompt: stored, embeddings, loras, dtype, weights, fps, deflicker, ...others } = from;
  const { init, initSha256, mask, maskSha256, ...unpictured } = others;
  const { controls, controlAttention, transferFrom, ...mapped } = unpictured;
  const { controlSource, controlShort, ...unsmoothed } = mapped;
  const { smooth, smoothBlend, subject, maskVideo, saliency, ...made } = unsmoothed;
  const { model, variant, tokenizer, vae, config, modelSha256, ...plain } = made;
  const { video: film, videoSha256, start, end, videoFps, resolution, ...remaining } = plain;
  const { chunkSize: chunks, ...kept } = remaining;
  const demo = flags.demo ? DEMO : undefined;
  const prompt = typed ?? stored ?? demo?.prompt;
  if (!prompt?.trim()) {
    const how = prompt === undefined ? "missing" : "empty";
    throw new UsageError(
      kind === "edit"
        ? `the instruction is ${how}; say what to change, as in: framezero edit "make it winter" ` +
          "--video clip.mp4 (edit --help lists the options)"
        : `the prompt is ${how}; say what to show, as in: framezero "a red heart in a ` +
          'green meadow" (--help lists the options)',
    );
  }
  const names = { video: film, videoSha256, start, end, videoFps, resolution };
  const video = kind === "edit" ? videoRequest(flags, names) : null;
  if (kind === "edit" && !video) {
    throw new UsageError("there is no video to change; name it with --video");
  }
  const given = libraryOptions(flags);
  const base: LibraryOptions = { ...demo?.options, ...kept };
  // These follow from what the user now wants otherwise.
  if (given.frames !== undefined) delete base.frameIds;
  if (given.frameIds !== undefined) delete base.frames;
  if (given.steps !== undefined) {
    delete base.t0;
    delete base.t1;
  }
  const anew = kind === "edit" && flags.video !== undefined;
  if (kind === "edit") delete base.frameIds;
  if (anew || flags.resolution !== undefined) {
    delete base.width;
    delete base.height;
  }
  const chunkSize = kind === "image" ? undefined : flags.chunkSize ?? chunks;
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
  const options = { ...base, ...given };
  if (chunkSize !== undefined) {
    options.compat = "original";
    options.sharedNoise = false;
  }
  if (options.seed === -1) options.seed = crypto.getRandomValues(new Uint32Array(1))[0];
  // A picture that a flag names may be any; videos know no masks.
  const pictures = await readPictures(
    kind === "edit" ? {} : {
      ...(flags.init === undefined ? { init, initSha256 } : { init: flags.init }),
      ...(flags.mask !== undefined
        ? { mask: flags.mask }
        : kind === "image" && { mask, maskSha256 }),
    },
  );
  const smoothing = kind === "video"
    ? await asUsage(() =>
      smoothingNames(flags, { smooth, smoothBlend, subject, maskVideo, saliency })
    )
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
  checkPreview(flags, flags.model ?? model);
  if (flags.preview !== undefined && flags.preview !== IN_TERMINAL) {
    await checkTargets([flags.preview], true);
  }
  return {
    kind,
    prompt,
    options: { ...options, ...pictures.options },
    pictures: pictures.names,
    smoothing,
    model: modelRequest(flags, { model, variant, tokenizer, vae, config, modelSha256 }),
    embeddings: flags.embedding ?? embeddings ?? [],
    loras: flags.lora ?? loras ?? [],
    controls: await asUsage(() =>
      controlsRequest(flags, {
        controls,
        controlAttention,
        transferFrom,
        maps: { start, end, videoFps, resolution, controlSource, controlShort },
      })
    ),
    dtype: flags.dtype ?? dtype ?? "auto",
    weights: flags.weights ?? weights,
    video,
    chunkSize,
    window: flags.window,
    fps: flags.fps ?? (anew ? undefined : fps) ?? demo?.fps,
    deflicker: flags.deflicker ?? deflicker ?? false,
    targets,
    overwrite,
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
    double: flags.double,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

async function readStored(file: string): Promise<Stored> {
  const settings = await readSettings(file);
  if (!settings) {
    throw new InputError(`--from: ${file} holds no settings; name a file that framezero wrote`);
  }
  if (settings.model === BUILT_IN_NAME) delete settings.model;
  const entries = Object.entries(STORED).filter(([name]) => settings[name] !== undefined);
  for (const [name, type] of entries) {
    const value = settings[name];
    const types = type === "map" ? ["object"] : type.split(" or ");
    const right = types.includes(typeof value) &&
      (typeof value !== "object" || (type === "map") !== Array.isArray(value));
    if (right && (LISTS[name]?.(value) ?? true)) continue;
    throw new InputError(
      `--from: ${file}: "${name}" must be a ${type === "object" ? "list" : type}, it is ` +
        `${JSON.stringify(value)}; the file was changed, give the settings as options`,
    );
  }
  return Object.fromEntries(entries.map(([name]) => [name, settings[name]]));
}

/** What lists must hold. */
const LISTS: Readonly<Record<string, (value: unknown) => boolean>> = {
  loras: areLoras,
  controls: areControls,
};

function areLoras(value: unknown): boolean {
  return Array.isArray(value) && value.every((item: unknown) => {
    const { file, weight, sha256 }: Record<string, unknown> = Object(item);
    return typeof file === "string" && typeof weight === "number" &&
      (sha256 === undefined || typeof sha256 === "string");
  });
}

/** `out/<prompt>-<seed>.mp4`, with a number behind it if that is taken. */
async function freeName(
  extension: "mp4" | "png",
  prompt: string,
  seed: number,
  overwrite: boolean,
): Promise<string> {
  const { fs } = await disk();
  for (let n = 1;; n++) {
    const name = `out/${slug(prompt)}-${seed}${n > 1 ? `-${n}` : ""}.${extension}`;
    const free = overwrite || await fs.stat(name).then(() => false, () => true);
    if (free) return name;
  }
}

/** The words of a prompt as a file name: `"a-red-heart-in-a-green-meadow"`. */
export function slug(prompt: string): string {
  const words = prompt.normalize("NFKC").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  let name = "";
  for (const word of words) {
    if (name && name.length + word.length >= 48) break;
    name += (name && "-") + [...word].slice(0, 48).join("");
  }
  return name || "clip";
}

/** Refuses targets of unknown kinds, and those that cannot be written. */
export async function checkTargets(targets: readonly string[], overwrite: boolean): Promise<void> {
  for (const target of targets) {
    await asUsage(() => parseTarget(target));
    await checkTarget(target, { overwrite });
  }
}
