/**
 * What the study compares: settings of Text2Video-Zero, one changed at a time, and together.
 *
 * @module
 */

import type { TextToVideoOptions } from "../../video/text_to_video_zero.ts";

/** Settings with a name. */
export interface Variant {
  /** What tables call it. */
  readonly name: string;
  /** Options besides the prompt, the seed and what all have. */
  readonly options: TextToVideoOptions;
  /** Whether the background is smoothed behind the prompt's subject. */
  readonly smooths?: boolean;
  /** Whether finished frames pass the filter against flicker. */
  readonly steadies?: boolean;
}

/** A prompt of the study. */
export interface Prompt {
  /** What is shown. */
  readonly text: string;
  /** Its subject, a word of it. */
  readonly subject: string;
}

/** Motion of the camera in all variants that move: 8 pixels a frame to the right at 128². */
const STRENGTH = { motionFieldStrengthX: 32, motionFieldStrengthY: 0 };

/** The same motion in words. */
const PAN = "pan 32 0";

/** The reference comes first; all others are compared with it. */
export const VARIANTS: readonly Variant[] = [
  { name: "reference", options: STRENGTH },
  { name: "no cross-frame attention", options: { ...STRENGTH, crossFrame: false } },
  { name: "attention: previous", options: { ...STRENGTH, attention: "previous" } },
  { name: "attention: first+previous", options: { ...STRENGTH, attention: "first+previous" } },
  { name: "attention: window", options: { ...STRENGTH, attention: "window" } },
  { name: "between cells", options: { motion: PAN } },
  { name: "less freedom (t1 − t0 = 1)", options: { ...STRENGTH, t0: 6, t1: 7 } },
  { name: "more freedom (t1 − t0 = 3)", options: { ...STRENGTH, t0: 5, t1: 8 } },
  { name: "later (t0 4, t1 6)", options: { ...STRENGTH, t0: 4, t1: 6 } },
  { name: "smoothing", options: STRENGTH, smooths: true },
  { name: "deflicker", options: STRENGTH, steadies: true },
  {
    name: "between cells, window, smoothing",
    options: { motion: PAN, attention: "window" },
    smooths: true,
  },
];

const COLOURS = ["red", "blue", "yellow", "green", "purple"];
const SHAPES = ["heart", "circle", "star", "square"];
const SCENES = ["in a green meadow", "on a beach", "in the sky", "on a blue background"];

/** Twenty prompts that the built-in model knows: every colour with every shape, scenes in turn. */
export const PROMPTS: readonly Prompt[] = COLOURS.flatMap((colour, c) =>
  SHAPES.map((shape, s) => ({
    text: `a ${colour} ${shape} ${SCENES[(c + s) % SCENES.length]}`,
    subject: shape,
  }))
);
