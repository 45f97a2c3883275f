/**
 * Clips made ready for a model: which frames, at which rate, at which size. This is `prepare_video`
 * of Text2Video-Zero's code:
 *
 *     first = ⌊start · fps_in⌋,  end = ⌊end · fps_in⌋,  n = ⌊(end − start) · fps_out⌋ in seconds
 *     frame i of n  =  ⌊first + i · (end − first) / n⌋
 *     side  =  64 · round(side · resolution / longest side / 64)
 *
 * and a bilinear, antialiased resize. A frame number means a time, the middle of that frame at a
 * constant rate, so that clips of variable rates keep their pace.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { roundToEven } from "../core/rounding.ts";
import type { Tensor } from "../core/tensor.ts";
import { assign, interpolate } from "../kernels/mod.ts";
import type { Frame } from "./frame.ts";
import { seconds, type VideoInfo } from "./frame_stream.ts";
import { type Crop, cropTo, type Size } from "./picture.ts";
import type { VideoReader } from "./reader.ts";

/** Sides of prepared clips are multiples of this many pixels. */
const SIDE_UNIT = 64;
/** The longest side unless told. */
const RESOLUTION = 512;

/** Which part of a clip is used, and how. */
export interface PrepareOptions {
  /** Seconds into the clip at which to begin; 0 unless told. */
  readonly start?: number;
  /** Seconds into the clip at which to end, at most its end; −1, the default, for its end. */
  readonly end?: number;
  /** Frames a second wanted; unless told those of the clip, without their fraction. */
  readonly fps?: number;
  /** Pixels of the longest side, before both are rounded to multiples of 64; 512 unless told. */
  readonly resolution?: number;
  /** Instead of a resolution: the exact size, covered by the middle of each frame. */
  readonly fit?: { readonly width: number; readonly height: number };
}

/** A clip at its size and rate, not read yet. */
export interface PreparedVideo {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Frames a second. */
  readonly fps: number;
  /** How many frames there are. */
  readonly count: number;
  /** The frames, one at a time; what it returns can be read as often as wanted. */
  frames(): AsyncIterable<Frame>;
}

/** What becomes of a clip that is too short: its last frame stays, it starts again, or it ends. */
export type ExtendRule = "hold" | "loop" | "stop";

/** ⌊x⌋, where a rounding error must not make 6 of 7. */
const whole = (x: number): number => Math.floor(x + 1e-6);

/** The size of a clip whose longest side is to be `resolution`, in multiples of 64. */
export function sizeAt(resolution: number, { width, height }: Size): Size {
  const scale = resolution / Math.max(width, height);
  return {
    width: SIDE_UNIT * roundToEven(width * scale / SIDE_UNIT),
    height: SIDE_UNIT * roundToEven(height * scale / SIDE_UNIT),
  };
}

/**
 * The numbers of the frames that are used of a clip with a constant rate.
 *
 * @throws {InputError} if the part is empty, lies outside, or is too short for one frame.
 */
export function frameNumbers(
  info: Pick<VideoInfo, "name" | "fps" | "duration">,
  { start, end, fps }: { start: number; end: number; fps: number },
): number[] {
  const { name, duration } = info;
  if (!(fps > 0 && Number.isFinite(fps))) {
    throw new InputError(`fps must be a number above 0: got ${fps}`);
  }
  if (!(start >= 0 && start < duration)) {
    throw new InputError(
      `${name}: the start must lie within the clip, which is ${seconds(duration)} long: ` +
        `got ${seconds(start)}`,
    );
  }
  const until = end === -1 ? duration : Math.min(end, duration);
  if (!(until > start)) {
    throw new InputError(
      `${name}: the end must come after the start, or be -1 for the end of the clip: ` +
        `got ${seconds(start)} to ${seconds(end)}`,
    );
  }
  const count = whole((until - start) * fps);
  if (count === 0) {
    throw new InputError(
      `${name}: ${seconds(until - start)} hold no frame at ${fps} frames a second; ` +
        "use a longer part or a higher rate",
    );
  }
  const first = whole(start * info.fps);
  const step = (whole(until * info.fps) - first) / count;
  return Array.from({ length: count }, (_, i) => Math.trunc(i * step + first));
}

/** A part of a frame at a size, bilinear and antialiased as torchvision has it, in bytes. */
async function resized(device: Device, frame: Frame, crop: Crop, size: Size): Promise<Frame> {
  const { width, height } = size;
  if (frame.width === width && frame.height === height) return frame;
  const fitted = device.scope(() => {
    const fitted = device.empty([1, 3, height, width]);
    // A channel at a time: three of a large frame would exceed one binding.
    for (let c = 0; c < 3; c++) {
      device.scope(() => assign(fitted, scaled(device, frame, crop, c, size), c * width * height));
    }
    return fitted;
  });
  try {
    const planes = await fitted.data();
    const data = new Uint8ClampedArray(planes.length);
    const pixels = width * height;
    for (let i = 0; i < data.length; i++) data[i] = planes[(i % 3) * pixels + Math.floor(i / 3)];
    return { width, height, data: new Uint8Array(data.buffer) };
  } finally {
    fitted.dispose();
  }
}

function scaled(
  device: Device,
  { width, data }: Frame,
  crop: Crop,
  c: number,
  size: Size,
): Tensor {
  const values = new Float32Array(crop.width * crop.height);
  for (let y = 0; y < crop.height; y++) {
    const row = (crop.top + y) * width + crop.left;
    for (let x = 0; x < crop.width; x++) values[y * crop.width + x] = data[3 * (row + x) + c];
  }
  return interpolate(device.tensor(values, [1, 1, crop.height, crop.width]), {
    size: [size.height, size.width],
    mode: "bilinear",
    antialias: true,
  });
}

/**
 * Picks and sizes the frames of a clip. Nothing is decoded until they are asked for, and then no
 * more than a frame behind the last of them.
 *
 * A clip slower than a frame a second keeps its rate unless told.
 *
 * @throws {InputError} for options that are out of range or do not suit the clip.
 */
export function prepareVideo(
  device: Device,
  reader: VideoReader,
  options: PrepareOptions = {},
): Promise<PreparedVideo> {
  return Promise.resolve().then(() => prepared(device, reader, options));
}

function prepared(
  device: Device,
  reader: VideoReader,
  { start = 0, end = -1, fps: wanted, resolution, fit }: PrepareOptions,
): PreparedVideo {
  const { info } = reader;
  if (resolution !== undefined && fit !== undefined) {
    throw new InputError("a clip is given either a resolution or a size to fit, not both");
  }
  const size = fit ?? sizeAt(resolution ?? RESOLUTION, info);
  for (const side of [size.width, size.height]) {
    if (Number.isInteger(side) && side > 0) continue;
    throw new InputError(
      `${info.name}: both sides of a clip must be positive integers, ${info.width}x` +
        `${info.height} would become ${size.width}x${size.height}; choose another ${
          fit ? "size" : "resolution, or a size to fit"
        }`,
    );
  }
  const fps = wanted ?? (whole(info.fps) || info.fps);
  const numbers = frameNumbers(info, { start, end, fps });
  const times = numbers.map((number) => (number + 0.5) / info.fps);
  const crop = fit ? cropTo(info, fit) : { ...info, left: 0, top: 0 };

  async function* frames(): AsyncGenerator<Frame, void> {
    for await (const frame of reader.frames(times)) {
      yield await resized(device, frame, crop, size);
    }
  }
  return {
    width: size.width,
    height: size.height,
    fps,
    count: numbers.length,
    frames: () => ({ [Symbol.asyncIterator]: frames }),
  };
}

/**
 * `count` frames of a clip that may be shorter: `"hold"` repeats its last frame, `"loop"` reads it
 * again from the beginning, and `"stop"` gives those that there are. One frame is kept in memory.
 *
 * @returns frames that can be read as often as `frames` can.
 * @throws {InputError} a count that is not a positive integer; while reading, if there are no
 * frames, or `"loop"` meets frames that can be read only once, as those of a generator.
 */
export function extendFrames(
  frames: AsyncIterable<Frame> | Iterable<Frame>,
  count: number,
  rule: ExtendRule,
): AsyncIterable<Frame> {
  if (!Number.isInteger(count) || count < 1) {
    throw new InputError(`the number of frames must be a positive integer: got ${count}`);
  }
  async function* extended(): AsyncGenerator<Frame, void> {
    let given = 0;
    let last: Frame | undefined;
    for (let pass = 0; pass === 0 || rule === "loop"; pass++) {
      const before = given;
      for await (const frame of frames) {
        last = { ...frame, data: frame.data.slice() };
        yield frame;
        if (++given === count) return;
      }
      if (given === before) throw nothingMore(pass);
    }
    for (; rule === "hold" && last && given < count; given++) {
      yield { ...last, data: last.data.slice() };
    }
  }
  return { [Symbol.asyncIterator]: extended };
}

function nothingMore(pass: number): InputError {
  return new InputError(
    pass === 0
      ? "a clip must have at least one frame: got none"
      : "a clip to be looped must be readable again: pass an array or the frames of a prepared " +
        "clip, not a generator",
  );
}
