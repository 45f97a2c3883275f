/**
 * CLIP's image encoder: `CLIPVisionModelWithProjection` of transformers, a vision transformer
 * (Radford et al. 2021; Dosovitskiy et al. 2021) with a norm before its first layer.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { formatShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  add,
  broadcastTo,
  cast,
  concat,
  linear as rowLinear,
  narrow,
  permute,
} from "../kernels/mod.ts";
import { clipLayer } from "./clip_layer.ts";
import type { ClipVisionConfig } from "./config.ts";
import { conv, tokenNorm } from "./layers.ts";
import { loadModel, type ModelOptions, type Weights, type WeightSource } from "./weights.ts";

/** What the encoder makes of pictures; all in f32. */
export interface ClipVisionOutput {
  /** `[B, 1 + patches, width]` after the last layer, without a norm; the class token comes first. */
  readonly lastHiddenState: Tensor;
  /** `[B, width]`: the norm of the class token. */
  readonly pooled: Tensor;
  /** `[B, projection]`: in the space that texts and pictures share. Not of length 1. */
  readonly imageEmbeds: Tensor;
}

/** CLIP's image encoder. */
export class ClipVisionModel {
  /** Its configuration. */
  readonly config: ClipVisionConfig;
  readonly #weights: Weights;
  readonly #network: (pixels: Tensor) => ClipVisionOutput;

  private constructor(weights: Weights, config: ClipVisionConfig) {
    this.config = config;
    this.#weights = weights;
    this.#network = network(weights, config);
  }

  /**
   * Loads an image encoder with the names `vision_model.*` and `visual_projection.weight`.
   * Activations are f32 whatever the type of the weights.
   *
   * @throws {WeightError} if tensors are missing, superfluous or of another shape.
   */
  static load(
    source: WeightSource,
    config: ClipVisionConfig,
    options: ModelOptions,
  ): Promise<ClipVisionModel> {
    return loadModel(source, options, (weights) => new ClipVisionModel(weights, config));
  }

  /**
   * Encodes pictures.
   *
   * @param pixels `[B, 3, imageSize, imageSize]`, each channel less CLIP's mean, divided by its
   * standard deviation.
   * @throws {ShapeError} for other shapes.
   */
  forward(pixels: Tensor): ClipVisionOutput {
    const { imageSize } = this.config;
    const [, channels, height, width] = pixels.shape;
    const right = pixels.shape.length === 4 && channels === 3 && height === imageSize &&
      width === imageSize;
    if (!right) {
      throw new ShapeError(
        `CLIP: pictures must have shape [B, 3, ${imageSize}, ${imageSize}], got ` +
          formatShape(pixels.shape),
      );
    }
    return pixels.device.scope(() => this.#network(pixels));
  }

  /** Frees the weights. */
  dispose(): void {
    this.#weights.dispose();
  }
}

function network(
  root: Weights,
  config: ClipVisionConfig,
): (pixels: Tensor) => ClipVisionOutput {
  const w = root.at("vision_model");
  const { hiddenSize: width, patchSize, imageSize, layerNormEps: eps, projectionDim } = config;
  const patches = Math.floor(imageSize / patchSize) ** 2;
  const embeddings = w.at("embeddings");
  const first = embeddings.tensor("class_embedding", [width]);
  const patch = conv(embeddings.at("patch_embedding"), 3, width, patchSize, {
    stride: patchSize,
    padding: 0,
    bias: false,
  });
  const positions = embeddings.tensor("position_embedding.weight", [1 + patches, width]);
  const normBefore = tokenNorm(w.at("pre_layrnorm"), width, eps); // the checkpoints' own spelling
  const layers = Array.from(
    { length: config.numHiddenLayers },
    (_, i) => clipLayer(w.at(`encoder.layers.${i}`), config, { causal: false }),
  );
  const normAfter = tokenNorm(w.at("post_layernorm"), width, eps);
  const projection = root.tensor("visual_projection.weight", [projectionDim, width]);

  return (pixels) => {
    const [B] = pixels.shape;
    const token = broadcastTo(cast(first, "f32").reshape([1, width, 1]), [B, width, 1]);
    const tokens = concat([token, patch(pixels).reshape([B, width, patches])], 2);
    const places = permute(cast(positions, "f32").reshape([1, 1 + patches, width]), [0, 2, 1]);
    const h = layers.reduce((x, layer) => layer(x), normBefore(add(tokens, places)));
    const pooled = normAfter(narrow(h, 2, 0, 1)).reshape([B, width]);
    return {
      lastHiddenState: permute(h, [0, 2, 1]),
      pooled,
      imageEmbeds: rowLinear(pooled, projection),
    };
  };
}
