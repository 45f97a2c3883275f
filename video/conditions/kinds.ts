/**
 * The kinds of conditions that ControlNets of Stable Diffusion 1.5 are made for, as data.
 *
 * @module
 */

/** What a clip of conditions shows. */
export type ConditionKind =
  | "canny"
  | "depth"
  | "lineart"
  | "normals"
  | "pose"
  | "scribble"
  | "segmentation";

/** What there is to know about a kind of conditions. */
export interface ConditionInfo {
  /** What a map must look like. */
  readonly map: string;
  /** What the clip is taken for unless told: an ordinary video, or maps that are ready. */
  readonly source: "video" | "maps";
  /** Where maps come from, if they cannot be made of an ordinary video here; else `null`. */
  readonly maker: string | null;
  /** Whether maps are bright lines on black, so that dark ones on white have to be inverted. */
  readonly lines: boolean;
  /** ControlNet to load from the Hub unless another one is named. */
  readonly model: string;
  /** What the original code of Text2Video-Zero adds to prompts, behind a comma. */
  readonly promptSuffix: string;
  /** Its negative prompt. */
  readonly negativePrompt: string;
}

const SUFFIX = "best quality, extremely detailed";
const NEGATIVE = "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, " +
  "fewer digits, cropped, worst quality, low quality";

/** Of kinds that the original code does not have, the prompts are those of its others. */
const PROMPTS = { promptSuffix: SUFFIX, negativePrompt: NEGATIVE };

/** All kinds of conditions. */
export const CONDITIONS: Readonly<Record<ConditionKind, ConditionInfo>> = {
  canny: {
    map: "edges in white, a pixel wide, on black",
    source: "video",
    maker: null,
    lines: true,
    model: "lllyasviel/sd-controlnet-canny",
    ...PROMPTS,
  },
  depth: {
    map: "grey, the nearer the lighter",
    source: "maps",
    maker: "a depth estimator such as MiDaS or Depth Anything",
    lines: false,
    model: "lllyasviel/sd-controlnet-depth",
    ...PROMPTS,
  },
  lineart: {
    map: "lines in white on black",
    source: "maps",
    maker: null,
    lines: true,
    model: "lllyasviel/control_v11p_sd15_lineart",
    ...PROMPTS,
  },
  normals: {
    map: "the surface's normal as a colour: x, y, z from −1 … 1 to 0 … 255",
    source: "maps",
    maker: "an estimator of normals",
    lines: false,
    model: "lllyasviel/sd-controlnet-normal",
    ...PROMPTS,
  },
  pose: {
    map: "skeletons in OpenPose's colours on black",
    source: "maps",
    maker: "OpenPose or DWPose, whose keypoint files can be drawn",
    lines: false,
    model: "lllyasviel/sd-controlnet-openpose",
    promptSuffix: `${SUFFIX}, HD, ultra-realistic, 8K, HQ, masterpiece, trending on artstation, ` +
      "art, smooth",
    // The misspelt word is the original's: another one would make another picture.
    negativePrompt: `${NEGATIVE.replace("digits", "difits")}, deformed body, bloated, ugly, ` +
      "unrealistic",
  },
  scribble: {
    map: "strokes in white on black",
    source: "maps",
    maker: null,
    lines: true,
    model: "lllyasviel/sd-controlnet-scribble",
    ...PROMPTS,
  },
  segmentation: {
    map: "a flat colour for each kind of thing, as ADE20K's palette has it",
    source: "maps",
    maker: "a segmentation model with the classes of ADE20K",
    lines: false,
    model: "lllyasviel/sd-controlnet-seg",
    ...PROMPTS,
  },
};
