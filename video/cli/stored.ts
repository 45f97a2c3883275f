/**
 * The settings that a file holds, checked, and given to the parts of a request that they belong to.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import { BUILT_IN_NAME } from "../../models/stable_diffusion.ts";
import { readSettings } from "../writer.ts";
import type { MapsOptions } from "./control_maps.ts";
import { areControls, type ControlsRequest } from "./controls.ts";
import type { VideoNames } from "./input_video.ts";
import type { DtypeChoice, LoraRequest } from "./options.ts";
import type { PictureNames } from "./pictures.ts";
import type { LibraryOptions, ModelRequest } from "./request.ts";
import type { SmoothingNames } from "./smoothing.ts";

/** The settings of a clip, by what they are about; those that a file does not hold are absent. */
export interface Stored {
  /** Options of the library. */
  readonly options: LibraryOptions;
  /** Which model. */
  readonly model: Partial<ModelRequest>;
  /** Start image and mask. */
  readonly pictures: PictureNames;
  /** What is taken of which video; of the clips of controls the same part. */
  readonly clip: VideoNames;
  /** ControlNets, and how their maps are made. */
  readonly controls:
    & Partial<Omit<ControlsRequest, "maps">>
    & Pick<MapsOptions, "controlSource" | "controlShort">;
  /** Background smoothing. */
  readonly smoothing: SmoothingNames;
  /** What is left. */
  readonly request: StoredRequest;
}

/** Settings of the request itself. */
interface StoredRequest {
  readonly prompt?: string;
  readonly embeddings?: readonly string[];
  readonly loras?: readonly LoraRequest[];
  readonly dtype?: DtypeChoice;
  readonly weights?: "q8";
  readonly fps?: number;
  readonly chunkSize?: number;
  readonly deflicker?: boolean;
}

/** What a value must be. */
interface Rule {
  /** In words, as in "must be a …". */
  readonly name: string;
  readonly holds: (value: unknown) => boolean;
}

const text: Rule = { name: "string", holds: (value) => typeof value === "string" };
const number: Rule = { name: "number", holds: (value) => typeof value === "number" };
const flag: Rule = { name: "boolean", holds: (value) => typeof value === "boolean" };
const list: Rule = { name: "list", holds: Array.isArray };
const map: Rule = {
  name: "map",
  holds: (value) => typeof value === "object" && value !== null && !Array.isArray(value),
};
const flagOrText: Rule = {
  name: "boolean or string",
  holds: (value) => flag.holds(value) || text.holds(value),
};

/** What is taken from a file; everything else in it is passed over. */
const RULES: { readonly [G in keyof Stored]: { readonly [Name in keyof Stored[G]]?: Rule } } = {
  options: {
    negativePrompt: text,
    promptWeights: flag,
    clipSkip: number,
    longPrompts: flag,
    steps: number,
    guidanceScale: number,
    guidanceRescale: number,
    imageGuidanceScale: number,
    sharedNoise: flag,
    seed: number,
    width: number,
    height: number,
    scheduler: text,
    timestepSpacing: text,
    eta: number,
    merge: number,
    reuse: number,
    frameIds: list,
    motionFieldStrengthX: number,
    motionFieldStrengthY: number,
    t0: number,
    t1: number,
    crossFrame: flag,
    attention: text,
    attentionWindow: number,
    prompts: map,
    guidanceScales: map,
    motion: flagOrText,
    subCell: flag,
    canvas: list,
    double: flag,
    compat: text,
    strength: number,
  },
  model: {
    model: text,
    variant: text,
    tokenizer: text,
    vae: text,
    config: text,
    modelSha256: text,
  },
  pictures: { init: text, initSha256: text, mask: text, maskSha256: text },
  clip: {
    video: text,
    videoSha256: text,
    start: number,
    end: number,
    videoFps: number,
    resolution: number,
  },
  controls: {
    controls: { name: "list of nets with their maps", holds: areControls },
    controlAttention: text,
    transferFrom: text,
    controlSource: text,
    controlShort: text,
  },
  smoothing: { smooth: number, smoothBlend: text, subject: text, maskVideo: text, saliency: text },
  request: {
    prompt: text,
    embeddings: list,
    loras: { name: "list of files and weights", holds: areLoras },
    dtype: text,
    weights: text,
    fps: number,
    chunkSize: number,
    deflicker: flag,
  },
};

function areLoras(value: unknown): boolean {
  return Array.isArray(value) && value.every((item: unknown) => {
    const { file, weight, sha256 }: Record<string, unknown> = Object(item);
    return typeof file === "string" && typeof weight === "number" &&
      (sha256 === undefined || typeof sha256 === "string");
  });
}

/**
 * Reads the settings in the file that `--from` names; without one there are none.
 *
 * @throws {InputError} if it cannot be read, holds no settings, or one is of a wrong type.
 */
export async function readStored(file: string | undefined): Promise<Stored> {
  const settings = file === undefined ? {} : await readSettings(file);
  if (!settings) {
    throw new InputError(`--from: ${file} holds no settings; name a file that framezero wrote`);
  }
  if (settings.model === BUILT_IN_NAME) delete settings.model;
  const group = <G extends keyof Stored>(name: G): Stored[G] => {
    const rules = Object.entries<Rule>(RULES[name])
      .filter(([key]) => settings[key] !== undefined);
    for (const [key, { name: type, holds }] of rules) {
      if (holds(settings[key])) continue;
      throw new InputError(
        `--from: ${file}: "${key}" must be a ${type}, it is ${JSON.stringify(settings[key])}; ` +
          "the file was changed, give the settings as options",
      );
    }
    return Object.fromEntries(rules.map(([key]) => [key, settings[key]])) as Stored[G];
  };
  return {
    options: group("options"),
    model: group("model"),
    pictures: group("pictures"),
    clip: group("clip"),
    controls: group("controls"),
    smoothing: group("smoothing"),
    request: group("request"),
  };
}
