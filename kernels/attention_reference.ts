/**
 * What attention computes: its settings, its shape rule, the same in float64 with plain loops, and
 * its cases.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import type { KernelCase, TensorSpec } from "../core/kernel.ts";
import { formatShape, type Shape, sizeOf } from "../core/shape.ts";
import type { AttentionForm } from "./variants.ts";

/**
 * Which frames of a clip a query of frame `f` attends to: its own; frame 0; frame `max(f − 1, 0)`;
 * the tokens of frame 0 followed by those of frame `max(f − 1, 0)`; those of all frames in order.
 */
export type AttentionMode = "self" | "first" | "previous" | "first+previous" | "all";

/** Settings of attention. */
export interface AttentionOptions {
  /** Heads; head `h` of `d` channels owns the channels `h·d … (h+1)·d − 1`. */
  readonly heads: number;
  /** Factor of the scores. Default `d^-½`. */
  readonly scale?: number;
  /** Whether the token at `i` sees only keys at `j ≤ i` of a row. Default false. */
  readonly causal?: boolean;
  /** Only this many keys of each row of k and v count: the rest is padding. Default: all. */
  readonly kvLength?: number;
  /** Which frames a query attends to. Default `"self"`. */
  readonly mode?: AttentionMode;
  /** Frames F of a clip: row `b·F + f` of q is frame `f` of clip `b`. Default 1. */
  readonly frames?: number;
  /**
   * Frames of a clip that k and v hold: F (the default), or 1 if every frame of a clip reads the
   * same row `b` of k and v; for modes `"first"` and `"all"` any number.
   */
  readonly kvFrames?: number;
}

/** Settings of the kernel. */
export interface AttentionAttributes extends AttentionOptions {
  /** Shader to use, whatever the adapter. For tests. */
  readonly form?: AttentionForm;
}

/** The numbers behind an attention's shapes and settings. */
export interface AttentionGeometry {
  /** Rows of q. */
  readonly rows: number;
  /** Heads. */
  readonly heads: number;
  /** Channels of a head. */
  readonly d: number;
  /** Tokens of a row of q. */
  readonly queries: number;
  /** Tokens of a row of k and v. */
  readonly keys: number;
  /** Those of them that count. */
  readonly length: number;
  /** Frames of a clip in q. */
  readonly frames: number;
  /** Frames of a clip in k and v. */
  readonly kvFrames: number;
  /** Rows of k and v that a query reads. */
  readonly sources: number;
  /** Factor of the scores. */
  readonly scale: number;
  /** Whether keys behind the query are hidden. */
  readonly causal: boolean;
  /** Which rows a query reads. */
  readonly mode: AttentionMode;
}

/**
 * The numbers behind shapes and settings.
 *
 * @param shapes Those of q `[Bq, C, Nq]`, k and v `[Bk, C, Nk]`, and of the bias or `null`.
 * @throws {ShapeError} if they do not agree.
 */
export function attentionGeometry(
  shapes: readonly (Shape | null)[],
  options: AttentionOptions,
): AttentionGeometry {
  const [q, k, v, bias] = shapes;
  const { heads, causal = false, mode = "self", frames = 1, kvFrames = frames } = options;
  if (!q || !k || !v || q.length !== 3 || k.length !== 3 || k.join() !== v.join()) {
    throw new ShapeError(
      `attention: q must be [rows, channels, tokens], k and v likewise and of one shape, got ` +
        [q, k, v].map((shape) => shape ? formatShape(shape) : "nothing").join(", "),
    );
  }
  const [rows, channels, queries] = q;
  const [kvRows, kvChannels, keys] = k;
  const { kvLength: length = keys } = options;
  if (kvChannels !== channels || !isCount(heads) || channels % heads) {
    throw new ShapeError(
      `attention: q and k must have the same number of channels, a multiple of the heads; got ` +
        `${channels} and ${kvChannels} channels, ${heads} heads`,
    );
  }
  if (!isCount(length) || length > keys) {
    throw new ShapeError(`attention: kvLength must be from 1 to ${keys} tokens, got ${length}`);
  }
  const anyFrames = mode === "first" || mode === "all";
  if (
    !isCount(frames) || !isCount(kvFrames) || rows % frames ||
    kvRows * frames !== rows * kvFrames ||
    !(anyFrames || kvFrames === 1 || kvFrames === frames)
  ) {
    throw new ShapeError(
      `attention: q must have clips×frames rows and k clips×kvFrames, with kvFrames 1 or equal ` +
        `to frames (mode "${mode}"); got ${rows} and ${kvRows} rows, frames ${frames}, kvFrames ` +
        `${kvFrames}`,
    );
  }
  if (
    bias && (bias.length !== 4 || ![1, rows].includes(bias[0]) || ![1, heads].includes(bias[1]) ||
      bias[2] !== queries || bias[3] !== keys)
  ) {
    throw new ShapeError(
      `attention: the bias must be [1 or ${rows}, 1 or ${heads}, ${queries}, ${keys}], got ` +
        formatShape(bias),
    );
  }
  const d = channels / heads;
  const sources = mode === "all" ? kvFrames : mode === "first+previous" ? 2 : 1;
  const { scale = 1 / Math.sqrt(d) } = options;
  return {
    rows,
    heads,
    d,
    queries,
    keys,
    length,
    frames,
    kvFrames,
    sources,
    scale,
    causal,
    mode,
  };
}

function isCount(n: number): boolean {
  return Number.isInteger(n) && n >= 1;
}

/** Shape and type of attention's output: those of q. */
export function attentionOutput(
  inputs: readonly (TensorSpec | null)[],
  attributes: AttentionAttributes,
): TensorSpec {
  attentionGeometry(inputs.map((input) => input?.shape ?? null), attributes);
  const { shape, dtype } = inputs[0] as TensorSpec;
  return { shape, dtype };
}

/** Attention in float64: all scores of a query, their softmax, the weighted sum of the values. */
export function attentionReference(
  inputs: readonly (Float64Array | null)[],
  shapes: readonly (Shape | null)[],
  attributes: AttentionAttributes,
  output: Shape,
): Float64Array {
  const g = attentionGeometry(shapes, attributes);
  const [q, k, v, bias] = inputs;
  if (!q || !k || !v) throw new ShapeError("attention: needs q, k and v");
  const [biasRows, biasHeads] = shapes[3] ?? [1, 1];
  const out = new Float64Array(sizeOf(output));
  for (let row = 0; row < g.rows; row++) {
    const sources = sourceRows(g, row);
    for (let head = 0; head < g.heads; head++) {
      const at = (row * g.heads + head) * g.d * g.queries;
      const biasAt = ((row % biasRows) * biasHeads + head % biasHeads) * g.queries * g.keys;
      for (let query = 0; query < g.queries; query++) {
        const count = g.causal ? Math.min(g.length, query + 1) : g.length;
        const terms = sources.flatMap((source) => {
          const from = (source * g.heads + head) * g.d * g.keys;
          return Array.from({ length: count }, (_, key) => {
            let score = 0;
            for (let c = 0; c < g.d; c++) {
              score += q[at + c * g.queries + query] * k[from + c * g.keys + key];
            }
            const added = bias ? bias[biasAt + query * g.keys + key] : 0;
            return { place: from + key, score: score * g.scale + added };
          });
        });
        const most = Math.max(...terms.map(({ score }) => score));
        const weights = terms.map(({ score }) => Math.exp(score - most));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        for (let c = 0; c < g.d; c++) {
          const sum = terms.reduce(
            (sum, { place }, i) => sum + weights[i] * v[place + c * g.keys],
            0,
          );
          out[at + c * g.queries + query] = sum / total;
        }
      }
    }
  }
  return out;
}

/** The rows of k and v that a row of q reads. */
function sourceRows({ frames, kvFrames, mode }: AttentionGeometry, row: number): number[] {
  const frame = row % frames;
  const first = (row - frame) / frames * kvFrames;
  const previous = Math.max(frame - 1, 0);
  const wanted = {
    "self": [frame],
    "first": [0],
    "previous": [previous],
    "first+previous": [0, previous],
    "all": Array.from({ length: kvFrames }, (_, i) => i),
  }[mode];
  return wanted.map((i) => first + Math.min(i, kvFrames - 1));
}

/** All forms at sizes that no tile divides, head widths of SD 1.5, and every mode. */
export const attentionCases: readonly KernelCase<AttentionAttributes>[] =
  (["texels", "lanes", "tiles"] as const).flatMap((form) => {
    const one = (
      q: Shape,
      kv: Shape,
      attributes: AttentionOptions,
      bias: Shape | null = null,
    ): KernelCase<AttentionAttributes> => ({
      shapes: [q, kv, kv, bias],
      attributes: { ...attributes, form },
    });
    return [
      one([1, 1, 1], [1, 1, 1], { heads: 1 }),
      one([2, 24, 64], [2, 24, 64], { heads: 2 }),
      one([1, 80, 66], [1, 80, 77], { heads: 2 }),
      one([1, 80, 16], [1, 80, 80], { heads: 1, kvLength: 77 }),
      one([1, 21, 35], [1, 21, 19], { heads: 3, scale: 2 }),
      one([1, 160, 20], [1, 160, 13], { heads: 1 }),
      one([1, 512, 12], [1, 512, 12], { heads: 1 }),
      one([1, 16, 77], [1, 16, 77], { heads: 2, causal: true }),
      one([2, 12, 11], [2, 12, 9], { heads: 2 }, [1, 1, 11, 9]),
      one([2, 12, 40], [2, 12, 44], { heads: 2, causal: true }, [2, 2, 40, 44]),
      one([6, 8, 20], [2, 8, 7], { heads: 1, frames: 3, kvFrames: 1 }),
      one([6, 8, 20], [6, 8, 20], { heads: 2, frames: 3, mode: "first" }),
      one([4, 8, 12], [2, 8, 12], { heads: 2, frames: 2, kvFrames: 1, mode: "first" }),
      one([6, 8, 20], [6, 8, 20], { heads: 2, frames: 3, mode: "previous" }),
      one([6, 8, 20], [6, 8, 20], { heads: 2, frames: 3, mode: "first+previous", kvLength: 18 }),
      one([6, 8, 5], [6, 8, 5], { heads: 2, frames: 3, mode: "all" }),
      one([2, 8, 40], [6, 8, 36], { heads: 2, kvFrames: 3, mode: "all" }),
    ];
  });
