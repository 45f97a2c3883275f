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
  /** What tables call the same frames after the filter against flicker, if they list them. */
  readonly steadied?: string;
}

/** A prompt of the study. */
export interface Prompt {
  /** What is shown. */
  readonly text: string;
  /** Its subject, a word of it. */
  readonly subject: string;
}

/**
 * The settings of the method's own code, as near as {@link STEPS} steps come: motion of 12 by 12
 * 512ths a frame, which is ⅜ of a cell at 128², and the jump right after the beginning, where that
 * code has t0 = 44 and t1 = 47 of 50 steps.
 */
const REFERENCE = { motionFieldStrengthX: 12, motionFieldStrengthY: 12, t0: 6, t1: 7 };

/** The jump where the built-in model has it by default: more of the picture is settled before. */
const LATER = { t0: 4, t1: 5 };

/** Denoising steps that the places of the jumps are meant for. */
export const STEPS = 8;

/** The reference comes first. One thing is changed at a time, then some together. */
export const VARIANTS: readonly Variant[] = [
  { name: "reference", options: REFERENCE, steadied: "deflicker" },
  { name: "no cross-frame attention", options: { ...REFERENCE, crossFrame: false } },
  { name: "attention: previous", options: { ...REFERENCE, attention: "previous" } },
  { name: "attention: first+previous", options: { ...REFERENCE, attention: "first+previous" } },
  { name: "attention: window", options: { ...REFERENCE, attention: "window" } },
  { name: "sub-cell motion", options: { ...REFERENCE, subCell: true } },
  { name: "later jump (t0 4, t1 5)", options: { ...REFERENCE, ...LATER } },
  { name: "wider jump (t0 4, t1 7)", options: { ...REFERENCE, t0: 4 } },
  { name: "smoothing", options: REFERENCE, smooths: true },
  {
    name: "later jump, smoothing",
    options: { ...REFERENCE, ...LATER },
    smooths: true,
  },
  {
    name: "later jump, sub-cell motion",
    options: { ...REFERENCE, ...LATER, subCell: true },
    steadied: "later jump, sub-cell, deflicker",
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
