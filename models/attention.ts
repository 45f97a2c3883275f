/**
 * The transformer blocks of the UNet: self-attention that may look at other frames, cross-attention
 * to the text, GEGLU feed-forward. Tokens are channel-major, `[B, C, N]`.
 *
 * Cross-frame attention (Text2Video-Zero, §3.3, Eq. 7–8): every frame's queries attend to keys and
 * values of the first frame. Keys and values are projected for the frames that are looked at only,
 * and can be kept: then frames may be computed in groups, or one by one, with the same result.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, attention, type AttentionMode, geglu, slice } from "../kernels/mod.ts";
import { type Layer, linear, norm, tokenNorm } from "./layers.ts";
import { matchTokens, type TokenMerging } from "./token_merging.ts";
import type { Weights } from "./weights.ts";

/** Keys and values of one attention layer, `[B, C, N]` each. */
export interface KeyValue {
  /** What queries are compared with. */
  readonly key: Tensor;
  /** What is mixed. */
  readonly value: Tensor;
}

/** Keys and values by the path of their layer. */
export type KeyValueCache = Map<string, KeyValue>;

/** Frees the tensors of a cache and empties it. */
export function disposeCache(cache: KeyValueCache): void {
  for (const { key, value } of cache.values()) {
    key.dispose();
    value.dispose();
  }
  cache.clear();
}

/** How self-attention treats the rows of a batch laid out `(guidance, frame)`. */
export interface FrameAttention {
  /** Which frames a frame looks at. */
  readonly mode: AttentionMode;
  /** Frames in the batch: rows / guidance rows. */
  readonly frames: number;
  /**
   * Keys and values of the anchor frame. An empty cache is filled by this call, whose batch must
   * then hold the anchor alone; a filled one is used instead of projecting them again.
   */
  readonly anchor?: KeyValueCache;
  /** Merges tokens around self-attention in the blocks of full resolution. Default: none. */
  readonly merge?: TokenMerging;
  /** Sees what is compared in cross-attention. */
  readonly onText?: CrossAttentionObserver;
}

/** Sees queries `[rows, C, N]` and keys of the text, `[rows of text, C, tokens]`, of a layer. */
export type CrossAttentionObserver = (queries: Tensor, keys: Tensor, heads: number) => void;

/** Frames that do not see each other. */
export const SELF: FrameAttention = { mode: "self", frames: 1 };

/** The `attn1` and `attn2` of a transformer block. */
export interface AttentionLayer {
  /** Keys and values of tokens `[B, width, N]`. */
  project(tokens: Tensor): KeyValue;
  /** `residual + to_out(softmax(q kᵀ/√d) v)`, with keys and values of some rows. */
  attend(
    residual: Tensor | null,
    x: Tensor,
    kv: KeyValue,
    frames: FrameAttention,
    kvFrames: number,
    observer?: CrossAttentionObserver,
  ): Tensor;
}

/** Attention of queries from `channels` wide tokens to tokens of `width`. */
export function attentionLayer(
  w: Weights,
  channels: number,
  width: number,
  heads: number,
): AttentionLayer {
  if (channels % heads !== 0) {
    throw new ShapeError(
      `${w.path}: ${channels} channels cannot be split over ${heads} heads; check ` +
        `attention_head_dim (the number of heads) in the model's config.json`,
    );
  }
  const toQ = linear(w.at("to_q"), channels, channels, { bias: false });
  const toK = linear(w.at("to_k"), width, channels, { bias: false });
  const toV = linear(w.at("to_v"), width, channels, { bias: false });
  const toOut = linear(w.at("to_out.0"), channels, channels);
  const attend = w.residual(
    (
      residual: Tensor | null,
      x: Tensor,
      { key, value }: KeyValue,
      { mode, frames }: FrameAttention,
      kvFrames: number,
      observer?: CrossAttentionObserver,
    ) => {
      const q = toQ(x);
      observer?.(q, key, heads);
      return toOut(attention(q, key, value, { heads, mode, frames, kvFrames }), { residual });
    },
  );
  return { project: (tokens) => ({ key: toK(tokens), value: toV(tokens) }), attend };
}

/** Keys and values for self-attention, of those frames only that are looked at. */
function selfKeyValue(
  layer: AttentionLayer,
  path: string,
  x: Tensor,
  { mode, frames, anchor }: FrameAttention,
): { kv: KeyValue; kvFrames: number } {
  const kept = anchor?.get(path);
  if (kept) return { kv: kept, kvFrames: 1 };
  if (anchor) {
    const { key, value } = layer.project(x);
    const kv = { key: key.keep(), value: value.keep() };
    anchor.set(path, kv);
    return { kv, kvFrames: frames };
  }
  if (mode !== "first" || frames === 1) return { kv: layer.project(x), kvFrames: frames };
  const [rows, C, N] = x.shape;
  const first = slice(x.reshape([rows / frames, frames, C, N]), [0], [1], [1]);
  return { kv: layer.project(first.reshape([rows / frames, C, N])), kvFrames: 1 };
}

/** A block of self-attention, cross-attention and feed-forward. */
export interface TransformerBlock {
  /** Keys and values of the text for this block. */
  readonly text: AttentionLayer;
  /** Path under which they are kept. */
  readonly path: string;
  forward(x: Tensor, text: KeyValueCache, frames: FrameAttention): Tensor;
}

/** `BasicTransformerBlock` of diffusers. */
export function transformerBlock(
  w: Weights,
  channels: number,
  textWidth: number,
  heads: number,
): TransformerBlock {
  const norm1 = tokenNorm(w.at("norm1"), channels, 1e-5);
  const attn1 = attentionLayer(w.at("attn1"), channels, channels, heads);
  const norm2 = tokenNorm(w.at("norm2"), channels, 1e-5);
  const attn2 = attentionLayer(w.at("attn2"), channels, textWidth, heads);
  const norm3 = tokenNorm(w.at("norm3"), channels, 1e-5);
  const ff = feedForward(w.at("ff"), channels);
  const { path } = w;
  const forward = w.module((x: Tensor, text: KeyValueCache, frames: FrameAttention) => {
    const h1 = x.device.scope(() => {
      const h = norm1(x);
      const attend = (residual: Tensor | null, tokens: Tensor) => {
        const { kv, kvFrames } = selfKeyValue(attn1, path, tokens, frames);
        return attn1.attend(residual, tokens, kv, frames, kvFrames);
      };
      const matched = matchTokens(x, frames.merge);
      return matched ? add(x, matched.unmerge(attend(null, matched.merge(h)))) : attend(x, h);
    });
    const kv = text.get(path) as KeyValue;
    // One text row serves all frames of its guidance row.
    const perText = { mode: "self", frames: x.shape[0] / kv.key.shape[0] } as const;
    const h2 = x.device.scope(() => attn2.attend(h1, norm2(h1), kv, perText, 1, frames.onText));
    h1.dispose();
    return ff(h2, norm3(h2));
  });
  return { text: attn2, path, forward };
}

/** `x + W₂ (a · gelu(g)), (a, g) = W₁ h`: GEGLU with the exact GELU. */
function feedForward(w: Weights, channels: number): (residual: Tensor, h: Tensor) => Tensor {
  const proj = linear(w.at("net.0.proj"), channels, 8 * channels);
  const out = linear(w.at("net.2"), 4 * channels, channels);
  return w.residual((residual: Tensor | null, h: Tensor) => out(geglu(proj(h), 1), { residual }));
}

/** A transformer over the pixels of a feature map. */
export interface Transformer2D {
  readonly blocks: readonly TransformerBlock[];
  forward(x: Tensor, text: KeyValueCache, frames: FrameAttention): Tensor;
}

/** `Transformer2DModel` of diffusers, x `[B, C, H, W]`. */
export function transformer2d(
  w: Weights,
  channels: number,
  textWidth: number,
  heads: number,
  groups: number,
): Transformer2D {
  const normIn: Layer = norm(w.at("norm"), channels, { groups, eps: 1e-6 });
  const projIn = linear(w.at("proj_in"), channels, channels);
  const block = transformerBlock(w.at("transformer_blocks.0"), channels, textWidth, heads);
  const projOut = linear(w.at("proj_out"), channels, channels);
  const forward = w.module((x: Tensor, text: KeyValueCache, frames: FrameAttention) => {
    const [B, C, H, W] = x.shape;
    const tokens = projIn(normIn(x).reshape([B, C, H * W]));
    const out = block.forward(tokens, text, frames);
    return projOut(out, { residual: x.reshape([B, C, H * W]) }).reshape(x.shape);
  });
  return { blocks: [block], forward };
}
