/**
 * Motion of a clip, and what motion does not explain of its changes: the measures OFS, warp error
 * and MAWE of StreamingT2V (arXiv:2403.14773), with the flow of {@link opticalFlow}.
 *
 * For consecutive frames x_t, x_{t+1}, the flow f from the first to the second, and M the pixels of
 * the first that the second shows too ({@link visiblePixels}):
 *
 * ```
 * OFS  = mean over pixels and pairs of |f|                                  (pixels)
 * W    = mean over pairs of Σ_M (x_t − x_{t+1}(· + f))² / (3 |M|)           (squared 8-bit levels)
 * MAWE = W / (9.5 · OFS)
 * ```
 *
 * A still picture warps perfectly; that MAWE divides by the motion takes this advantage away. All
 * three depend on the size of the frames. StreamingT2V scales to 720×720 (`side`), takes its flow from
 * RAFT, moves pixels forwards, and counts those as hidden on which none lands: compare its figures with
 * each other, and these with each other.
 *
 * @module
 */

import type { Device } from "../../core/device.ts";
import { InputError } from "../../core/errors.ts";
import type { Tensor } from "../../core/tensor.ts";
import {
  concat,
  interpolate,
  mean,
  mul,
  narrow,
  permute,
  sqrt,
  square,
  sub,
  sum,
} from "../../kernels/mod.ts";
import type { Frame } from "../frame.ts";
import type { Frames } from "../writer.ts";
import { meanOf, type Meter, takeMeasure } from "./meter.ts";
import { opticalFlow, visiblePixels, warpByFlow } from "./optical_flow.ts";

/** How to measure motion. */
export interface WarpOptions {
  /** Side of the square that frames are scaled to first, such as 720. Default: their own size. */
  readonly side?: number;
}

/** Motion, and the changes that it does not explain. */
export interface WarpErrors {
  /** OFS: mean length of the flow in pixels a frame, 0 or more. Higher is livelier. */
  readonly opticalFlowScore: number;
  /**
   * W: mean squared error of warped frames, in squared 8-bit levels, 0 … 65025. Lower is better;
   * `null` if no pixel is seen again in any frame.
   */
  readonly warpError: number | null;
  /**
   * MAWE: warp error relative to motion. Lower is better; `null` if there is no warp error, or next
   * to nothing moves.
   */
  readonly mawe: number | null;
  /** Mean share of pixels that the next frame shows too, 0 … 1. */
  readonly visible: number;
  /** Mean length of the flow of each pair in pixels. */
  readonly lengths: readonly number[];
  /** Warp error of each pair; `NaN` where no pixel is seen again, which the mean leaves out. */
  readonly errors: readonly number[];
}

/** c of MAWE. */
const BALANCE = 9.5;

/** OFS in pixels below which a clip is still: errors of the flow are as large. */
const STILL = 0.01;

/** Shortest side of frames: the largest window of the flow. */
const LEAST_SIDE = 15;

/** The meter behind {@link warpErrors}. */
export function warpMeter(device: Device, { side }: WarpOptions = {}): Meter<WarpErrors> {
  if (side !== undefined && !(Number.isInteger(side) && side >= LEAST_SIDE)) {
    throw new InputError(
      `the side of frames must be a whole number from ${LEAST_SIDE}: got ${side}`,
    );
  }
  let before: Tensor | undefined;
  const pairs: Pair[] = [];
  return {
    name: "motion (OFS, warp error, MAWE)",
    least: 2,
    async add(frame) {
      const picture = pixelsOf(device, frame, side).keep();
      const last = before;
      before = picture;
      if (!last) return;
      const [length, seen, error] = await comparePair(last, picture).finally(() => last.dispose());
      const pixels = picture.size / 3;
      pairs.push({ length, visible: seen / pixels, error: error / (3 * seen) });
    },
    result() {
      const errors = pairs.map(({ error }) => error);
      const lengths = pairs.map(({ length }) => length);
      const known = errors.filter((error) => !Number.isNaN(error));
      const opticalFlowScore = meanOf(lengths);
      const warpError = known.length ? meanOf(known) : null;
      const mawe = warpError === null || opticalFlowScore < STILL
        ? null
        : warpError / (BALANCE * opticalFlowScore);
      const visible = meanOf(pairs.map(({ visible }) => visible));
      return { opticalFlowScore, warpError, mawe, visible, lengths, errors };
    },
    close: () => before?.dispose(),
  };
}

interface Pair {
  readonly length: number;
  readonly visible: number;
  readonly error: number;
}

/** A frame as `[1, 3, H, W]` in 0 … 255. */
function pixelsOf(device: Device, { width, height, data }: Frame, side?: number): Tensor {
  if (side === undefined && Math.min(width, height) < LEAST_SIDE) {
    throw new InputError(
      `motion needs frames of at least ${LEAST_SIDE}x${LEAST_SIDE} pixels, these are ` +
        `${width}x${height}; scale them up first`,
    );
  }
  return device.scope(() => {
    const rows = device.tensor(Float32Array.from(data), [1, height, width, 3]);
    const pixels = permute(rows, [0, 3, 1, 2]);
    return side === undefined
      ? pixels
      : interpolate(pixels, { size: [side, side], mode: "bilinear" });
  });
}

/** Mean length of the flow, number of visible pixels, sum of their squared errors. */
async function comparePair(first: Tensor, second: Tensor): Promise<Iterable<number>> {
  const figures = first.device.scope(() => {
    const flows = opticalFlow(concat([first, second], 0), concat([second, first], 0));
    const there = narrow(flows, 0, 0, 1);
    const visible = visiblePixels(there, narrow(flows, 0, 1, 1));
    const error = mul(square(sub(first, warpByFlow(second, there))), visible);
    const lengths = sqrt(sum(square(there), [1]));
    return concat([mean(lengths), sum(visible), sum(error)].map((x) => x.reshape([1])), 0);
  }).keep();
  return await figures.data().finally(() => figures.dispose());
}

/**
 * Measures how much moves in a clip, and what motion does not explain.
 *
 * @throws {InputError} fewer than 2 frames, frames of different sizes or below 15×15 pixels.
 */
export async function warpErrors(
  frames: Frames,
  device: Device,
  options: WarpOptions = {},
): Promise<WarpErrors> {
  return await takeMeasure(frames, warpMeter(device, options));
}
