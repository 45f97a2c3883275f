/**
 * One picture of a video, and the two contracts of everything that writes pictures.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";

/** One picture: 8-bit RGB, row by row from the top, three bytes a pixel. */
export interface Frame {
  /** Pixels in a row. */
  width: number;
  /** Rows. */
  height: number;
  /** `width * height * 3` bytes: R, G, B of the first pixel, then of its right neighbour. */
  data: Uint8Array;
}

/** Where encoded bytes go: a file on disk, or memory. */
export interface ByteSink {
  /** Stores `bytes` at `position`, or behind everything stored so far when it is absent. */
  write(bytes: Uint8Array, position?: number): Promise<void>;
}

/** Turns frames into one format, a frame at a time, keeping none of them. */
export interface FrameEncoder {
  /** Takes the next frame; resolves once it may be overwritten and another can follow. */
  add(frame: Frame): Promise<void>;
  /** Writes whatever follows the last frame. Called once, after at least one frame. */
  end(): Promise<void>;
  /** Releases the encoder, whether or not it came to its end. */
  close(): Promise<void>;
}

/**
 * Refuses a frame that is not a picture, or not of the size of the `first` one.
 *
 * @throws {InputError} sizes that are not positive integers, data of another length, another size.
 */
export function checkFrame(frame: Frame, index: number, first: Frame | undefined): void {
  const { width, height, data } = frame;
  const size = `${width}x${height}`;
  if (!Number.isInteger(width) || !Number.isInteger(height) || width < 1 || height < 1) {
    throw new InputError(`frames must be at least 1x1 pixels: frame ${index} is ${size}`);
  }
  if (data.length !== width * height * 3) {
    throw new InputError(
      `a frame of ${size} must hold ${width * height * 3} bytes of RGB: ` +
        `frame ${index} holds ${data.length}`,
    );
  }
  if (first && (width !== first.width || height !== first.height)) {
    throw new InputError(
      `all frames of a video must have one size: frame ${index} is ${size}, ` +
        `the first is ${first.width}x${first.height}; resize them before writing`,
    );
  }
}
