/**
 * A canvas larger than the picture, for the camera to move over: MultiDiffusion (Bar-Tal et al.,
 * arXiv:2302.08113) joined with Text2Video-Zero's cross-frame attention.
 *
 * Motion in the latent codes moves the first frame's latents at T0, and beyond their border there
 * is only their mirror image. On a canvas of several frames, with the first frame in its middle,
 * there is more to see. x_T is drawn for all of it, and until T0 it is denoised in windows Fᵢ of
 * the frame's size that overlap by half. What the UNet predicts for a cell in several windows is
 * averaged, the paper's closed form with equal weights:
 *
 * `ε(x) = Σᵢ Fᵢ⁻¹(ε(Fᵢ(x))) / Σᵢ Fᵢ⁻¹(1)`
 *
 * For DDIM it does not matter whether that is done with the noise or with the latents after a step,
 * as in the paper, since steps are linear. With the noise there is one step of the whole canvas: a
 * multistep method remembers the canvas, and fresh noise is drawn once for each cell.
 *
 * To the UNet windows are what frames are. The middle one comes first and leaves its keys and
 * values behind, and all others attend to them (or to the windows before them, where frames do), so
 * that the canvas is of one piece; memory does not grow with the number of windows.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import { generatorForFrame } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, indexSelect, narrow, pad, permute, scatterMean } from "../kernels/mod.ts";
import type { Denoiser } from "./generation.ts";
import type { FramePlace } from "./motion_field.ts";

/** Columns and rows of a canvas, in frames: whole numbers from 1 to {@link MOST}, not both 1. */
export type CanvasExtent = readonly [columns: number, rows: number];

/** Frames of a canvas at most, in either direction. */
const MOST = 4;

/** A canvas of latent cells, and its windows. */
export interface Canvas extends FramePlace {
  /** Its height and width. */
  readonly cells: readonly [H: number, W: number];
  /** Upper left cells of the windows, the middle one first: that is the first frame. */
  readonly windows: readonly (readonly [top: number, left: number])[];
}

/**
 * Refuses what is no extent of a canvas.
 *
 * @throws {InputError} naming the rule and the value.
 */
export function checkExtent(extent: CanvasExtent): void {
  const right = Array.isArray(extent) && extent.length === 2 &&
    extent.every((frames) => Number.isInteger(frames) && frames >= 1 && frames <= MOST) &&
    extent.some((frames) => frames > 1);
  if (right) return;
  throw new InputError(
    `canvas must be columns and rows in frames, whole numbers from 1 to ${MOST} and not both 1, ` +
      `such as 2x1, got ${JSON.stringify(extent)}; leave it out to move over the first frame alone`,
  );
}

/**
 * The canvas of so many frames around the first one.
 *
 * @param frame Height and width of the frames, in latent cells.
 * @throws {InputError} if the extent is none.
 */
export function canvasOf(extent: CanvasExtent, frame: readonly [number, number]): Canvas {
  checkExtent(extent);
  const [columns, rows] = extent;
  const [down, across] = [axisOf(rows, frame[0]), axisOf(columns, frame[1])];
  return {
    cells: [down.cells, across.cells],
    frame,
    middle: [down.starts[0], across.starts[0]],
    windows: down.starts.flatMap((top) => across.starts.map((left) => [top, left] as const)),
  };
}

/** One axis of a canvas. */
interface Axis {
  readonly cells: number;
  /** Where the windows begin, the middle one first. */
  readonly starts: readonly number[];
}

/**
 * From the middle window to either end in the fewest strides of at most half a frame, which differ
 * by a cell where they cannot be equal.
 */
function axisOf(frames: number, frame: number): Axis {
  const cells = frames * frame;
  const middle = (cells - frame) >> 1;
  const stride = Math.max(1, frame >> 1);
  const strides = (way: number) => {
    const count = Math.ceil(Math.abs(way) / stride);
    return Array.from({ length: count }, (_, i) => middle + Math.round(way * (i + 1) / count));
  };
  return { cells, starts: [middle, ...strides(-middle), ...strides(cells - frame - middle)] };
}

/** Which cell of the canvas each cell of each window is, row by row. */
export function windowCells(
  { cells: [, W], frame: [h, w], windows }: Pick<Canvas, "cells" | "frame" | "windows">,
): Int32Array<ArrayBuffer> {
  return Int32Array.from({ length: windows.length * h * w }, (_, i) => {
    const [top, left] = windows[Math.floor(i / (h * w))];
    const [y, x] = [Math.floor(i / w) % h, i % w];
    return (top + y) * W + left + x;
  });
}

/** Fᵢ(x): the windows `[windows, C, h, w]` of a canvas `[1, C, H, W]`. */
export function cutWindows(x: Tensor, canvas: Canvas): Tensor {
  const { cells: [H, W], frame: [h, w], windows } = canvas;
  const [, channels] = x.shape;
  return x.device.scope(() => {
    const cut = indexSelect(x.reshape([channels, H * W]), 1, windowCells(canvas));
    return permute(cut.reshape([channels, windows.length, h, w]), [1, 0, 2, 3]);
  });
}

/** The canvas `[1, C, H, W]` of the means of what windows `[windows, C, h, w]` hold for a cell. */
export function averageWindows(windows: Tensor, canvas: Canvas): Tensor {
  const { cells: [H, W] } = canvas;
  const [count, channels, h, w] = windows.shape;
  const { device } = windows;
  return device.scope(() => {
    const side = permute(windows, [1, 0, 2, 3]).reshape([1, channels, count * h * w]);
    const cells = device.tensor(windowCells(canvas), [1, count * h * w], "i32");
    return scatterMean(side, cells, H * W).reshape([1, channels, H, W]);
  });
}

/** The first frame `[1, C, h, w]` of a canvas `[1, C, H, W]`. */
export function middleOf(x: Tensor, { frame: [h, w], middle: [top, left] }: Canvas): Tensor {
  return x.device.scope(() => narrow(narrow(x, 2, top, h), 3, left, w));
}

/** Stands for no frame's number, so that no frame draws the same. */
const CANVAS_STREAM = Number.MAX_SAFE_INTEGER - 1;

/**
 * x_T of a canvas: that of the first frame, with noise of its own around it.
 *
 * @param first `[1, C, h, w]`.
 * @returns `[1, C, H, W]`.
 */
export function drawAround(first: Tensor, canvas: Canvas, seed: number): Tensor {
  const { cells: [H, W], frame: [h, w], middle: [top, left] } = canvas;
  const { device, shape: [, channels] } = first;
  const shape = [1, channels, H, W];
  const around = generatorForFrame(seed, CANVAS_STREAM).randn(shape);
  const covered = windowCells({ ...canvas, windows: [canvas.middle] });
  for (let plane = 0; plane < around.length; plane += H * W) {
    for (const cell of covered) around[plane + cell] = 0;
  }
  const margins = [left, W - w - left, top, H - h - top];
  return device.scope(() => add(device.tensor(around, shape), pad(first, margins)));
}

/** A denoiser of canvases `[1, C, H, W]`, made of one of frames. */
export function overCanvas(unet: Denoiser, canvas: Canvas): Denoiser {
  return {
    device: unet.device,
    subjectMap: undefined,
    async predict(x, timestep, step, afterGroup, place) {
      const windows = cutWindows(x, canvas).keep();
      try {
        const ofFirst = () => 0;
        const noise = await unet.predict(windows, timestep, step, afterGroup, place, ofFirst);
        try {
          return averageWindows(noise, canvas).keep();
        } finally {
          noise.dispose();
        }
      } finally {
        windows.dispose();
      }
    },
  };
}
