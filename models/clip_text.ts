/**
 * The text encoder of Stable Diffusion 1.x: `CLIPTextModel` of transformers, a causal pre-norm
 * transformer over 77 tokens.
 *
 * @module
 */

import { InputError, ShapeError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  add,
  cast,
  embedding,
  indexSelect,
  linear as rowLinear,
  permute,
  slice,
  stack,
  where,
} from "../kernels/mod.ts";
import { clipLayer } from "./clip_layer.ts";
import type { ClipTextConfig } from "./config.ts";
import { tokenNorm } from "./layers.ts";
import { loadModel, type ModelOptions, type Weights, type WeightSource } from "./weights.ts";

/** What the encoder makes of token ids; all in f32, tokens along axis 1. */
export interface ClipTextOutput {
  /** `[B, tokens, width]` after the final layer norm: what Stable Diffusion is conditioned on. */
  readonly lastHiddenState: Tensor;
  /** Input of every layer, and the output of the last: `layers + 1` of `[B, tokens, width]`. */
  readonly hiddenStates: readonly Tensor[];
  /** `[B, width]`: the final state at the end token. */
  readonly pooled: Tensor;
  /** `[B, projection]`, for encoders with a text projection. */
  readonly textEmbeds: Tensor | null;
}

/** The text encoder of Stable Diffusion 1.x. */
export class ClipTextModel {
  /** Its configuration. */
  readonly config: ClipTextConfig;
  readonly #weights: Weights;
  readonly #network: Network;

  private constructor(weights: Weights, config: ClipTextConfig) {
    this.config = config;
    this.#weights = weights;
    this.#network = network(weights, config);
  }

  /**
   * Loads a text encoder. Activations are f32 whatever the type of the weights: one prompt costs
   * little, and everything after it depends on it.
   *
   * @throws {WeightError} if tensors are missing, superfluous or of another shape.
   */
  static load(
    source: WeightSource,
    config: ClipTextConfig,
    options: ModelOptions,
  ): Promise<ClipTextModel> {
    return loadModel(source, options, (weights) => new ClipTextModel(weights, config));
  }

  /**
   * Encodes token ids, all rows of one length.
   *
   * @param added Embeddings `[n, width]` of the ids `vocabSize … vocabSize + n − 1`, which the
   * checkpoint lacks.
   * @throws {InputError} if an id lies outside the vocabulary or a row is too long.
   * @throws {ShapeError} if rows differ in length, or `added` does not consist of whole embeddings.
   */
  forward(
    ids: readonly ArrayLike<number>[],
    added: Float32Array<ArrayBuffer> = new Float32Array(),
  ): ClipTextOutput {
    const { hiddenSize: width, maxPositionEmbeddings: most } = this.config;
    if (added.length % width !== 0) {
      throw new ShapeError(
        `CLIP: added embeddings must have ${width} values each, got ${added.length} in all`,
      );
    }
    const vocabSize = this.config.vocabSize + added.length / width;
    const length = ids[0]?.length ?? 0;
    if (!length || ids.some((row) => row.length !== length)) {
      throw new ShapeError("CLIP: needs at least one row of tokens, and rows of equal length");
    }
    if (length > most) {
      throw new InputError(`CLIP: takes at most ${most} tokens a prompt, got ${length}`);
    }
    for (const row of ids) {
      const wrong = Array.from(row).find((id) => !(id >= 0 && id < vocabSize));
      if (wrong !== undefined) {
        throw new InputError(
          `CLIP: token ids must lie in [0, ${vocabSize}), got ${wrong}; ` +
            `the tokenizer may belong to another model`,
        );
      }
    }
    return this.#weights.device.scope(() =>
      this.#network(ids.map((row) => Array.from(row)), added)
    );
  }

  /** Final layer norm of another hidden state: "clip skip". `[B, tokens, width]` → the same. */
  finalNorm(hiddenState: Tensor): Tensor {
    return hiddenState.device.scope(() =>
      permute(this.#network.finalNorm(permute(hiddenState, [0, 2, 1])), [0, 2, 1])
    );
  }

  /** Frees the weights. */
  dispose(): void {
    this.#weights.dispose();
  }
}

interface Network {
  (ids: readonly number[][], added: Float32Array<ArrayBuffer>): ClipTextOutput;
  finalNorm(x: Tensor): Tensor;
}

function network(root: Weights, config: ClipTextConfig): Network {
  const w = root.at("text_model");
  const { hiddenSize: width, vocabSize, maxPositionEmbeddings, layerNormEps } = config;
  const tokens = w.at("embeddings").tensor("token_embedding.weight", [vocabSize, width]);
  const positions = w.at("embeddings")
    .tensor("position_embedding.weight", [maxPositionEmbeddings, width]);
  const layers = Array.from(
    { length: config.numHiddenLayers },
    (_, i) => clipLayer(w.at(`encoder.layers.${i}`), config, { causal: true }),
  );
  const finalNorm = tokenNorm(w.at("final_layer_norm"), width, layerNormEps);
  const projection = root.has("text_projection.weight")
    ? root.tensor("text_projection.weight", [config.projectionDim, width])
    : null;
  const { device } = root;
  const tokensLast = (x: Tensor) => permute(x, [0, 2, 1]);

  const embed = (ids: readonly number[][], added: Float32Array<ArrayBuffer>): Tensor => {
    const shape = [ids.length, ids[0].length];
    const flat = Int32Array.from(ids.flat());
    // The residual stream is f32. Lookups clamp ids: each table answers for its own ones only.
    const known = cast(embedding(tokens, device.tensor(flat, shape)), "f32");
    if (flat.every((id) => id < vocabSize)) return known;
    const table = device.tensor(added, [added.length / width, width]);
    const others = embedding(table, device.tensor(flat.map((id) => id - vocabSize), shape));
    const isAdded = Float32Array.from(flat, (id) => id < vocabSize ? 0 : 1);
    return where(device.tensor(isAdded, [...shape, 1]), others, known);
  };

  const forward = (
    ids: readonly number[][],
    added: Float32Array<ArrayBuffer>,
  ): ClipTextOutput => {
    // Rows of whole vectors need no shaders of their own. What stands behind a text does not change
    // it, because attention is causal: the last token is repeated, and dropped again.
    const [{ length }] = ids;
    const places = Array.from(
      { length: Math.ceil(length / 4) * 4 },
      (_, i) => Math.min(i, length - 1),
    );
    const shown = (x: Tensor) => slice(tokensLast(x), [0], [length], [1]);
    const texts = ids.map((row) => places.map((place) => row[place]));
    let h = tokensLast(add(embed(texts, added), indexSelect(positions, 0, places)));

    const hiddenStates = [shown(h)];
    for (const layer of layers) {
      h = layer(h);
      hiddenStates.push(shown(h));
    }
    const lastHiddenState = shown(finalNorm(h));
    const ends = ids.map((row) => endPosition(row, config));
    const rows = ends.map((end, row) =>
      indexSelect(slice(lastHiddenState, [row], [row + 1], [0]), 1, [end]).reshape([width])
    );
    const pooled = stack(rows, 0);
    const textEmbeds = projection && rowLinear(pooled, projection);
    return { lastHiddenState, hiddenStates, pooled, textEmbeds };
  };
  return Object.assign(forward, { finalNorm });
}

/**
 * Where a row's end token stands. Old configurations say `eos_token_id` 2, which is not the end
 * token: then the largest id is meant, which the end token of CLIP's vocabulary is; ids that were
 * added behind the vocabulary do not count. A row without an end token counts from its first one, as
 * in transformers.
 */
function endPosition(ids: readonly number[], { eosTokenId, vocabSize }: ClipTextConfig): number {
  const largest = () => Math.max(...ids.filter((id) => id < vocabSize));
  return Math.max(0, ids.indexOf(eosTokenId === 2 ? largest() : eosTokenId));
}
