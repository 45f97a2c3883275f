/**
 * The decoder of TAESD, the tiny autoencoder for Stable Diffusion (Bohan, 2023): from latents to a
 * picture in a fraction of the time of the real decoder, for previews.
 *
 * Its names are those of a chain of layers, numbered; diffusers' `AutoencoderTiny` leaves the first,
 * which has no weights, out of the count, and keeps the encoder in the same file.
 *
 * @module
 */

import { bytesPerElement, type DType } from "../core/dtype.ts";
import { MemoryError, ShapeError } from "../core/errors.ts";
import { openSafetensors } from "../core/safetensors.ts";
import { formatShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { cast, interpolate, mul, relu, tanh } from "../kernels/mod.ts";
import { merged } from "./checkpoint.ts";
import { conv, type Layer } from "./layers.ts";
import { loadModel, type ModelOptions, type Weights, type WeightSource } from "./weights.ts";

/** Channels between the layers. */
const WIDTH = 64;

/** Channels of latents. */
const LATENT = 4;

/** Latents beyond ± this are pressed together. */
const MAGNITUDE = 3;

/** Where diffusers' file has the first layer with weights. */
const DIFFUSERS = "decoder.layers.";

/** TAESD's decoder. */
export class TaesdDecoder {
  readonly #weights: Weights;
  readonly #decode: Layer;

  private constructor(weights: Weights) {
    this.#weights = weights;
    this.#decode = decoder(weights);
  }

  /**
   * Loads the decoder from TAESD's own weights or those of diffusers' `AutoencoderTiny`.
   *
   * @throws {WeightError} if tensors are missing or of another shape.
   */
  static load(source: WeightSource, options: ModelOptions): Promise<TaesdDecoder> {
    return loadModel(decoderOnly(source), options, (weights) => new TaesdDecoder(weights));
  }

  /** Loads it from a `.safetensors` file. */
  static async open(file: string, options: ModelOptions): Promise<TaesdDecoder> {
    const source = merged([await openSafetensors(file)], file);
    try {
      return await TaesdDecoder.load(source, options);
    } finally {
      await source.close();
    }
  }

  /** Type of weights and activations. */
  get dtype(): DType {
    return this.#weights.dtype;
  }

  /**
   * Decodes latents as the UNet has them, not divided by the scaling factor.
   *
   * @param latents `[B, 4, h, w]`.
   * @returns `[B, 3, 8h, 8w]` in f32, about [0, 1].
   * @throws {MemoryError} if the picture is too large for the adapter, or for the memory budget.
   */
  decode(latents: Tensor): Tensor {
    if (latents.shape.length !== 4 || latents.shape[1] !== LATENT) {
      throw new ShapeError(
        `TAESD: latents must have shape [B, ${LATENT}, h, w], got ${formatShape(latents.shape)}`,
      );
    }
    const { device, size } = latents;
    const bytes = size / LATENT * 64 * WIDTH * bytesPerElement(this.dtype);
    if (bytes > device.gpu.limits.maxStorageBufferBindingSize) {
      throw new MemoryError(
        `TAESD: ${formatShape(latents.shape)} needs tensors of ${bytes} bytes, more than this ` +
          `adapter binds; decode fewer rows, or smaller ones`,
      );
    }
    return device.scope(() => cast(this.#decode(cast(latents, this.dtype)), "f32"));
  }

  /** Frees the weights. */
  dispose(): void {
    this.#weights.dispose();
  }
}

/** The tensors of the decoder, by the names of TAESD's own file. */
function decoderOnly(source: WeightSource): WeightSource {
  const entries = [...source.tensors];
  const tensors = new Map(
    entries.some(([name]) => name.startsWith(DIFFUSERS))
      ? entries.filter(([name]) => name.startsWith(DIFFUSERS)).map(([name, entry]) => {
        const [number, ...rest] = name.slice(DIFFUSERS.length).split(".");
        return [[Number(number) + 1, ...rest].join("."), entry] as const;
      })
      : entries,
  );
  return { name: source.name, tensors, close: () => source.close() };
}

function decoder(w: Weights): Layer {
  let number = 0;
  const layers: Layer[] = [];
  const add = (make: (w: Weights) => Layer) => layers.push(make(w.at(String(number++))));
  const convolution = (inputs: number, outputs: number, bias = true) =>
    add((w) => {
      const convolve = conv(w, inputs, outputs, 3, { bias });
      return (x) => convolve(x);
    });
  add(() => (x) => mul(tanh(mul(x, 1 / MAGNITUDE)), MAGNITUDE));
  convolution(LATENT, WIDTH);
  add(() => relu);
  for (let stage = 0; stage < 3; stage++) {
    for (let i = 0; i < 3; i++) add(block);
    add(() => (x) => interpolate(x, { scaleFactor: 2, mode: "nearest" }));
    convolution(WIDTH, WIDTH, false);
  }
  add(block);
  convolution(WIDTH, 3);
  return (x) => layers.reduce((h, layer) => x.device.scope(() => taken(layer, h, x)), x);
}

/** The output of a layer; its input is freed unless it is the caller's. */
function taken(layer: Layer, h: Tensor, input: Tensor): Tensor {
  const out = layer(h);
  if (h !== input) h.dispose();
  return out;
}

/** `relu(conv(relu(conv(relu(conv(x))))) + x)`. */
function block(w: Weights): Layer {
  const [first, second, third] = [0, 2, 4].map((i) => conv(w.at(`conv.${i}`), WIDTH, WIDTH, 3));
  return (x) => {
    const h = relu(first(x));
    return relu(third(relu(second(h)), { residual: x }));
  };
}
