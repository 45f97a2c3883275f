/**
 * A clip: pictures that are still being made. Its steps can be watched while the latents are
 * denoised; its frames are decoded one at a time when they are asked for.
 *
 * @module
 */

import { MemoryError, ShapeError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { linearCombination, narrow } from "../kernels/mod.ts";
import type { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Frame } from "./frame.ts";

/** One denoising step that was just made. */
export interface ClipStep {
  /** Which part of the method it belongs to. */
  readonly phase: "inversion" | "anchor" | "frames" | "smoothing";
  /** Steps so far, this one included, which the device may be making still. */
  readonly step: number;
  /** Steps in all. */
  readonly total: number;
  /** Training timestep that the model saw. */
  readonly timestep: number;
  /**
   * The guided model output, `[frames, C, h, w]`, or `[1, C, H, W]` of a canvas; valid until the
   * next step is asked for.
   */
  readonly noisePrediction: Tensor;
  /** The latents after the step, of the same shape; valid until the next step is asked for. */
  readonly latents: Tensor;
}

/** What happens while a clip is made: a step was begun, or a frame is finished. */
export type ClipEvent =
  | { readonly kind: "step"; readonly step: ClipStep }
  | { readonly kind: "frame"; readonly frame: Frame };

/** Pictures in the making. */
export interface Clip extends AsyncIterable<Frame>, Disposable {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows of pixels. */
  readonly height: number;
  /** Frame numbers, which decide motion and noise. */
  readonly frameIds: readonly number[];
  /** What made it: stored in output files, enough to make it again. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Remarks for the user: cut words, fallbacks. Grows while the clip is made. */
  readonly warnings: readonly string[];
  /** The denoising steps. Can be iterated once; whoever asks for frames runs what is left. */
  readonly steps: AsyncIterable<ClipStep>;
  /**
   * Steps and frames in the order in which they are made. Can be iterated once; long clips have
   * their first frames before their last steps.
   */
  readonly events: AsyncIterable<ClipEvent>;
  /** The final latents, `[frames, C, h, w]`, still scaled; owned by the clip. */
  latents(): Promise<Tensor>;
  /** Frees the latents. */
  dispose(): void;
}

/** The parts that make a clip. */
export interface ClipParts {
  readonly sd: StableDiffusion;
  readonly frameIds: readonly number[];
  readonly settings: Readonly<Record<string, unknown>>;
  readonly warnings: string[];
  /** Yields steps and returns the final latents. */
  readonly denoise: AsyncGenerator<ClipStep, Tensor>;
  readonly width: number;
  readonly height: number;
  readonly signal?: AbortSignal;
}

/** A clip whose latents a generator makes. */
export function makeClip(parts: ClipParts): Clip {
  const { sd, denoise, signal, warnings, frameIds, settings, width, height } = parts;
  let latents: Tensor | null = null;
  const finish = async (): Promise<Tensor> => {
    while (!latents) {
      const { done, value } = await denoise.next();
      if (done) latents = value ?? null;
      if (done && !latents) throw new ShapeError("the clip was disposed of before it was made");
    }
    return latents;
  };
  async function* steps(): AsyncGenerator<ClipStep, void> {
    for (;;) {
      const { done, value } = await denoise.next();
      if (done) {
        latents ??= value ?? null;
        return;
      }
      yield value;
    }
  }
  async function* frames(): AsyncGenerator<Frame, void> {
    const all = await finish();
    for (let i = 0; i < frameIds.length; i++) {
      signal?.throwIfAborted();
      const pixels = await decodeFrame(sd, all, i, warnings);
      yield toFrame(pixels, width, height);
    }
  }
  return {
    width,
    height,
    frameIds,
    settings,
    warnings,
    steps: { [Symbol.asyncIterator]: steps },
    events: { [Symbol.asyncIterator]: () => eventsOf(steps(), frames()) },
    latents: finish,
    [Symbol.asyncIterator]: frames,
    dispose() {
      void denoise.return(undefined as never);
      latents?.dispose();
    },
    [Symbol.dispose]() {
      this.dispose();
    },
  };
}

/** Steps, and then frames, as events; returns what the steps return. */
export async function* eventsOf<T>(
  steps: AsyncIterator<ClipStep, T>,
  frames: AsyncIterable<Frame>,
): AsyncGenerator<ClipEvent, T> {
  let next = await steps.next();
  for (; !next.done; next = await steps.next()) yield { kind: "step", step: next.value };
  for await (const frame of frames) yield { kind: "frame", frame };
  return next.value;
}

/** Bytes of a band of the autoencoder, from the usual to the least. */
const BANDS = [2 ** 25, 2 ** 23, 2 ** 21];

/**
 * What the autoencoder makes in bands of so many bytes: frees what can be spared, then makes bands
 * smaller, until it fits the memory budget.
 */
export function inFittingBands<T>(
  sd: StableDiffusion,
  work: (bandBytes: number) => T,
  sizes: readonly number[] = BANDS,
): T {
  try {
    return work(sizes[0]);
  } catch (error) {
    if (!(error instanceof MemoryError)) throw error;
    if (sd.releaseTextEncoder()) return inFittingBands(sd, work, sizes);
    if (sizes.length === 1) throw error;
    return inFittingBands(sd, work, sizes.slice(1));
  }
}

/**
 * Decodes one frame. If half precision overflows, the frame is decoded again in f32.
 *
 * @param latents `[frames, C, h, w]`, scaled as the UNet has them.
 * @returns `[3, H, W]` in [0, 1].
 */
export async function decodeFrame(
  sd: StableDiffusion,
  latents: Tensor,
  index: number,
  warnings: string[],
): Promise<Float32Array> {
  const decode = async (dtype: "f16" | "f32"): Promise<Float32Array> => {
    const image = sd.device.scope(() => {
      const scaled = linearCombination(
        [1 / sd.vae.config.scalingFactor],
        [narrow(latents, 0, index, 1)],
      );
      return inFittingBands(sd, (bandBytes) => sd.vae.decode(scaled, { dtype, bandBytes }));
    });
    try {
      return await image.data();
    } finally {
      image.dispose();
    }
  };
  let image = await decode(sd.vae.dtype === "f16" ? "f16" : "f32");
  if (image.some(Number.isNaN) && sd.vae.dtype === "f16") {
    warnings.push(`frame ${index}: the autoencoder overflowed in half precision; decoded in f32`);
    image = await decode("f32");
  }
  return image.map((value) => Math.min(1, Math.max(0, value / 2 + 0.5)));
}

/** Planar RGB in [0, 1] to interleaved bytes. */
export function toFrame(pixels: Float32Array, width: number, height: number): Frame {
  const data = new Uint8Array(3 * width * height);
  const plane = width * height;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) data[3 * i + c] = Math.round(255 * pixels[c * plane + i]);
  }
  return { width, height, data };
}
