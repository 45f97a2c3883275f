/**
 * The camera of a clip: what the options of {@link textToVideo} say about motion, checked, and the
 * latents that each frame begins with.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import type { ModelDefaults } from "../models/config.ts";
import { type Canvas, type CanvasExtent, canvasOf } from "./canvas.ts";
import { checkNumber } from "./generation.ts";
import { checkMotion, type MotionPath, motionText, parseMotion } from "./motion.ts";
import { type Affine, drawSubCellNoise, warpBetweenCells, warpByCells } from "./motion_field.ts";
import { motionAt, motionRemark } from "./motion_path.ts";

/** Options about motion. */
export interface CameraOptions {
  /** Motion of the camera to the right, in 512ths of the width a frame. Default: the model's. */
  motionFieldStrengthX?: number;
  /** Motion of the camera downwards, in 512ths of the height a frame. Default: the model's. */
  motionFieldStrengthY?: number;
  /**
   * What the camera does, instead of the steady motion of these strengths: a sentence such as
   * `"zoom 1.02"`, or what {@link parseMotion} makes of it. Default true; false keeps every frame's
   * own noise, unmoved.
   */
  motion?: boolean | string | MotionPath;
  /**
   * Whether frames move by parts of latent cells, too. Default: true for motion in words; false,
   * the method's own, for steady motion.
   */
  subCell?: boolean;
  /**
   * Columns and rows, in frames, of a canvas that the camera moves over, with the first frame in
   * its middle: whole numbers from 1 to 4, not both 1. Until T0 all of it is denoised. Default: the
   * first frame alone, mirrored at its border.
   */
  canvas?: CanvasExtent;
}

/** What a camera needs to know of its clip. */
export interface CameraClip {
  /** Frames of the whole clip. */
  readonly clipFrames: number;
  readonly seed: number;
  /** Of one frame, `[1, C, h, w]`. */
  readonly latentShape: readonly number[];
}

/** A camera that is ready to move. */
export interface Camera {
  /** What makes it again, as options. */
  readonly settings: CameraOptions;
  /** What the user should know. */
  readonly warnings: readonly string[];
  /** What it moves over, if that is more than the first frame. */
  readonly canvas: Canvas | undefined;
  /**
   * The latents that a frame begins with, `[1, C, h, w]`, from those of the canvas,
   * `[1, C, H, W]`, or of the first frame.
   *
   * @param level Standard deviation of their noise.
   */
  move(latents: Tensor, frameId: number, level: number): Tensor;
  /** A mask of the first frame's cells, `[1, 1, h, w]`, where that frame has them: whole cells. */
  moveMask(mask: Tensor, frameId: number): Tensor;
}

/**
 * Reads the options about motion.
 *
 * @throws {InputError} naming the option, or quoting what cannot be read in a sentence.
 */
export function cameraOf(
  options: CameraOptions,
  defaults: Pick<ModelDefaults, "motionX" | "motionY">,
  { clipFrames: frames, seed, latentShape }: CameraClip,
): Camera {
  const { motion = true } = options;
  const inWords = typeof motion !== "boolean";
  const { subCell = inWords } = options;
  const [, , h, w] = latentShape;
  const canvas = options.canvas && canvasOf(options.canvas, [h, w]);
  const { settings, warnings, at } = inWords
    ? followPath(motion, options, frames, w / h)
    : moveSteadily(options, defaults);
  const shape = [...latentShape.slice(0, 2), ...canvas?.cells ?? [h, w]];
  const noise = subCell && motion !== false ? drawSubCellNoise(seed, shape) : undefined;
  return {
    settings: { ...settings, subCell, ...(canvas && { canvas: options.canvas }) },
    warnings,
    canvas,
    move(latents, frameId, level) {
      if (motion === false) return latents;
      if (!noise) return warpByCells(latents, at(frameId), canvas);
      return warpBetweenCells(latents, at(frameId), noise, level, canvas);
    },
    moveMask: (mask, frameId) => motion === false ? mask : warpByCells(mask, at(frameId)),
  };
}

/** How the places of a frame are found, and what is said about that. */
type Course = Pick<Camera, "settings" | "warnings"> & { at(frameId: number): Affine };

function followPath(
  motion: string | MotionPath,
  { motionFieldStrengthX: x, motionFieldStrengthY: y, canvas }: CameraOptions,
  frames: number,
  aspect: number,
): Course {
  if (x !== undefined || y !== undefined) {
    throw new InputError(
      "motion says what the camera does, and so do motionFieldStrengthX and " +
        "motionFieldStrengthY; give one",
    );
  }
  const path = typeof motion === "string" ? parseMotion(motion) : motion;
  checkMotion(path, frames);
  const remark = motionRemark(path, frames, aspect, canvas);
  return {
    settings: { motion: motionText(path) },
    warnings: remark ? [remark] : [],
    at: (frameId) => motionAt(path, frameId, frames, aspect, canvas),
  };
}

/** The method's own: `δ = strength · frameId`, without bounds. */
function moveSteadily(
  { motion = true, ...options }: CameraOptions,
  { motionX, motionY }: Pick<ModelDefaults, "motionX" | "motionY">,
): Course {
  const x = options.motionFieldStrengthX ?? motionX;
  const y = options.motionFieldStrengthY ?? motionY;
  checkNumber("motionFieldStrengthX", x);
  checkNumber("motionFieldStrengthY", y);
  return {
    settings: { motion, motionFieldStrengthX: x, motionFieldStrengthY: y },
    warnings: [],
    at: (frameId) => [1, 0, x * frameId / GRID, 0, 1, y * frameId / GRID],
  };
}

/** Length on which strengths are measured. */
const GRID = 512;
