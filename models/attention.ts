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
import {
  add,
  assign,
  attention,
  type AttentionMode,
  broadcastTo,
  concat,
  geglu,
  narrow,
  slice,
} from "../kernels/mod.ts";
import { type Layer, linear, norm, repeatRows, tokenNorm } from "./layers.ts";
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

/** The rows of a cache as caches of their own; the cache itself stays. */
export function splitRows(cache: KeyValueCache, rows: number): KeyValueCache[] {
  const part = (tensor: Tensor, row: number) =>
    tensor.device.scope(() => narrow(tensor, 0, row, 1)).keep();
  return Array.from(
    { length: rows },
    (_, row) =>
      new Map(Array.from(cache, ([path, { key, value }]) => [
        path,
        { key: part(key, row), value: part(value, row) },
      ])),
  );
}

/** Attention that looks back at the frames before each frame. */
export interface LookBack {
  /** The frames that a frame sees, as distances back from itself; 0 is the frame itself. */
  readonly distances: readonly number[];
  /** Whether it sees the anchor, too. */
  readonly first: boolean;
  /**
   * Keys and values of the frames just before the batch, as many as the longest distance. An empty
   * cache is filled by this call, whose batch must then hold the anchor alone, which stands for all
   * frames before it; every later call leaves its own last frames there.
   */
  readonly before: KeyValueCache;
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
  /** Looks at other frames than the anchor, in place of `mode`. */
  readonly lookBack?: LookBack;
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

/** Keys and values for self-attention, and which of their rows each frame looks at. */
interface Looked {
  readonly kv: KeyValue;
  readonly by: FrameAttention;
  readonly kvFrames: number;
}

/** Keys and values for self-attention, of those frames only that are looked at. */
function selfKeyValue(
  layer: AttentionLayer,
  path: string,
  x: Tensor,
  by: FrameAttention,
): Looked {
  const { mode, frames, anchor, lookBack } = by;
  if (lookBack) {
    return { kv: lookingBack(layer.project(x), path, by, lookBack), by: SELF, kvFrames: 1 };
  }
  const kept = anchor?.get(path);
  if (kept) return { kv: kept, by, kvFrames: 1 };
  if (anchor) {
    const { key, value } = layer.project(x);
    const kv = { key: key.keep(), value: value.keep() };
    anchor.set(path, kv);
    return { kv, by, kvFrames: frames };
  }
  if (mode !== "first" || frames === 1) return { kv: layer.project(x), by, kvFrames: frames };
  const [rows, C, N] = x.shape;
  const first = slice(x.reshape([rows / frames, frames, C, N]), [0], [1], [1]);
  return { kv: layer.project(first.reshape([rows / frames, C, N])), by, kvFrames: 1 };
}

/** For each frame the keys and values of all frames that it sees, one behind the other. */
export function lookingBack(
  own: KeyValue,
  path: string,
  { frames, anchor }: FrameAttention,
  { distances, first, before }: LookBack,
): KeyValue {
  const reach = Math.max(...distances);
  const [rows, C, N] = own.key.shape;
  const guidance = rows / frames;
  const spread = (tensor: Tensor, count: number) =>
    broadcastTo(tensor.reshape([guidance, 1, C, N]), [guidance, count, C, N]);
  const each = (make: (part: (kv: KeyValue) => Tensor) => Tensor): KeyValue => ({
    key: make(({ key }) => key),
    value: make(({ value }) => value),
  });
  const keep = ({ key, value }: KeyValue): KeyValue => ({ key: key.keep(), value: value.keep() });
  const earlier = before.get(path);
  const anchored = anchor?.get(path);
  if (!earlier && !anchored) {
    // Copies of its own: later frames overwrite these, not the anchor's.
    const repeated = (tensor: Tensor) => {
      const copies = tensor.device.empty([guidance, reach, C, N], tensor.dtype);
      assign(copies, spread(tensor, reach));
      return copies;
    };
    if (reach) before.set(path, keep(each((part) => repeated(part(own)))));
    if (first) anchor?.set(path, keep(own));
    return own;
  }
  return each((part) => {
    const recent = part(own).reshape([guidance, frames, C, N]);
    const bank = earlier ? concat([part(earlier), recent], 1) : recent;
    const seen = distances.map((back) => slice(bank, [reach - back], [reach - back + frames], [1]));
    if (anchored) seen.unshift(spread(part(anchored), frames));
    if (earlier) assign(part(earlier), slice(bank, [frames], [frames + reach], [1]));
    return concat(seen.map((tensor) => tensor.reshape([rows, C, N])), 2);
  });
}

/** What flows through the blocks of a UNet besides the feature map. */
export interface Context {
  /** SiLU of the time embedding, `[rows, timeWidth]`. */
  readonly temb: Tensor;
  /** Keys and values of the text. */
  readonly text: KeyValueCache;
  /** Which frames see which. */
  readonly frames: FrameAttention;
}

/** A block of self-attention, cross-attention and feed-forward. */
export interface TransformerBlock {
  /** Keys and values of the text for this block. */
  readonly text: AttentionLayer;
  /** Path under which they are kept. */
  readonly path: string;
  /**
   * x has the rows of the context, or those of one guidance row, which then stand for all until the
   * text tells them apart.
   */
  forward(x: Tensor, context: Context): Tensor;
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
  const forward = w.module((x: Tensor, { temb: { shape: [rows] }, text, frames }: Context) => {
    const h1 = x.device.scope(() => {
      const h = norm1(x);
      const attend = (residual: Tensor | null, tokens: Tensor) => {
        const { kv, by, kvFrames } = selfKeyValue(attn1, path, tokens, frames);
        return attn1.attend(residual, tokens, kv, by, kvFrames);
      };
      const matched = matchTokens(x, frames.merge);
      const seen = matched ? add(x, matched.unmerge(attend(null, matched.merge(h)))) : attend(x, h);
      return repeatRows(seen, rows);
    });
    const kv = text.get(path) as KeyValue;
    // One text row serves all frames of its guidance row.
    const perText = { mode: "self", frames: rows / kv.key.shape[0] } as const;
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
  /** x has the rows of the context, or those of one guidance row for all. */
  forward(x: Tensor, context: Context): Tensor;
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
  const forward = w.module((x: Tensor, context: Context) => {
    const [B, C, H, W] = x.shape;
    const [rows] = context.temb.shape;
    const tokens = projIn(normIn(x).reshape([B, C, H * W]));
    const out = block.forward(tokens, context);
    const residual = repeatRows(x.reshape([B, C, H * W]), rows);
    return projOut(out, { residual }).reshape([rows, C, H, W]);
  });
  return { blocks: [block], forward };
}
