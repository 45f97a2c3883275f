/**
 * The transformer layer that CLIP's text and image encoders are made of (pre-norm, as in GPT-2).
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import { attention, gelu, quickGelu } from "../kernels/mod.ts";
import type { ClipTextConfig } from "./config.ts";
import { type Layer, linear, tokenNorm } from "./layers.ts";
import type { Weights } from "./weights.ts";

/** What the layers of an encoder have in common. */
export type ClipLayerConfig = Pick<
  ClipTextConfig,
  "hiddenSize" | "intermediateSize" | "numAttentionHeads" | "hiddenAct" | "layerNormEps"
>;

/**
 * `x += attention(norm(x)); x += mlp(norm(x))`, x `[B, width, tokens]`.
 *
 * @param causal Whether tokens see only those before them, as in texts.
 */
export function clipLayer(
  w: Weights,
  config: ClipLayerConfig,
  { causal }: { readonly causal: boolean },
): Layer {
  const { hiddenSize: width, intermediateSize: hidden, layerNormEps: eps } = config;
  const heads = config.numAttentionHeads;
  const act = config.hiddenAct === "gelu" ? (x: Tensor) => gelu(x) : quickGelu;
  const norm1 = tokenNorm(w.at("layer_norm1"), width, eps);
  const q = linear(w.at("self_attn.q_proj"), width, width);
  const k = linear(w.at("self_attn.k_proj"), width, width);
  const v = linear(w.at("self_attn.v_proj"), width, width);
  const out = linear(w.at("self_attn.out_proj"), width, width);
  const norm2 = tokenNorm(w.at("layer_norm2"), width, eps);
  const fc1 = linear(w.at("mlp.fc1"), width, hidden);
  const fc2 = linear(w.at("mlp.fc2"), hidden, width);
  return w.module((x: Tensor) => {
    const h = norm1(x);
    const y = out(attention(q(h), k(h), v(h), { heads, causal }), { residual: x });
    return fc2(act(fc1(norm2(y))), { residual: y });
  });
}
