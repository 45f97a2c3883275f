/**
 * Attention, `out = softmax(scale · QᵀK + bias) Vᵀ` for every head, over channel-major tokens, with
 * the keys and values of other frames where a clip asks for them.
 *
 * Scores are never stored: keys come in tiles, and a running maximum and sum rescale what has been
 * added up so far (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et
 * al. 2022, "FlashAttention"). Weights are powers of two, the scores being multiplied by log₂e.
 *
 * The shader here is `lanes`, for adapters that compute on the CPU: a workgroup is one SIMD vector,
 * a lane holds a block of scores in registers, channels stream by, unnormalised sums wait in a
 * bounded temporary. Those for GPUs stand in `attention_tiles.ts` and `attention_matrix.ts`, what
 * software adapters get where there is no bias in `attention_texels.ts`.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import { defineKernel, f32, type Kernel, run, scalars, u32, vectors } from "../core/kernel.ts";
import { formatShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { fitsTexels } from "../core/texels.ts";
import {
  type AttentionAttributes,
  attentionCases,
  type AttentionGeometry,
  attentionGeometry,
  type AttentionMode,
  type AttentionOptions,
  attentionOutput,
  attentionReference,
} from "./attention_reference.ts";
import { matrixForm } from "./attention_matrix.ts";
import { type AttentionShader, tilesForm } from "./attention_tiles.ts";
import { attentionTexels } from "./attention_texels.ts";
import { permute } from "./rearrange.ts";
import { variantsOf } from "./variants.ts";
import { each } from "./wgsl.ts";

export type { AttentionMode, AttentionOptions } from "./attention_reference.ts";

/** Bytes of the temporary of the `lanes` form, as far as one row fits. */
const ACCUMULATOR_BYTES = 2 ** 25;

/** Most workgroups per dimension. */
const MOST_ROWS = 65535;

const MODES = ["self", "first", "previous", "first+previous", "all"] as const;

/** The kernel behind {@link attention}. */
export const attentionKernel: Kernel<AttentionAttributes> = defineKernel({
  name: "attention",
  inputs: ["q", "k", "v", "bias"],
  output: attentionOutput,
  launch(launch) {
    const { device, inputs, output, attributes, dispatch, temporary } = launch;
    const [q, k, v, bias = null] = inputs as [Tensor, Tensor, Tensor, Tensor | null];
    const g = attentionGeometry(inputs.map((input) => input?.shape ?? null), attributes);
    const wanted = attributes.form ?? variantsOf(device).attention;
    const mode = MODES.indexOf(g.mode);
    if (wanted === "texels" && !bias && [q, k].every(fitsTexels)) {
      return attentionTexels(launch, g, { declarations: framesText(g), mode });
    }
    const matrices = wanted === "matrix" ? matrixForm(g, device, [q, k, v]) : null;
    const form = matrices ??
      (wanted === "lanes" || wanted === "texels" ? lanesForm(g, bias !== null) : tilesForm(g));
    const blocks = Math.ceil(g.queries / form.queries);
    const most = Math.floor(ACCUMULATOR_BYTES / 4 / Math.max(form.scratch, 1));
    const rows = Math.min(g.rows, MOST_ROWS, Math.max(most, 1));
    const sums = form.scratch ? temporary([rows * form.scratch], "f32") : null;
    const along = (tensor: Tensor, n: number) => aligned(n) ? vectors(tensor) : scalars(tensor);
    const [biasRows, biasHeads] = bias?.shape ?? [1, 1];
    const params = {
      d: u32(g.d),
      heads: u32(g.heads),
      queries: u32(g.queries),
      keys: u32(g.keys),
      length: u32(g.length),
      sources: u32(g.sources),
      frames: u32(g.frames),
      kv_frames: u32(g.kvFrames),
      mode: u32(mode),
      scale: f32(g.scale * Math.LOG2E),
      slices: u32(form.slices),
      bias_row: u32(biasRows > 1 ? biasHeads * g.queries * g.keys : 0),
      bias_head: u32(biasHeads > 1 ? g.queries * g.keys : 0),
    };
    for (let first = 0; first < g.rows; first += rows) {
      dispatch({
        variant: `${form.variant} ${aligned(g.queries)} ${aligned(g.keys)} ${g.causal} ${
          bias !== null
        }`,
        read: {
          q: along(q, g.queries),
          k: along(k, g.keys),
          v: along(v, g.keys),
          ...(bias && { bias: scalars(bias) }),
        },
        write: { out: along(output, g.queries), ...(sums && { sums: vectors(sums) }) },
        params: { ...params, first_row: u32(first) },
        workgroup: [form.lanes, 1, 1],
        directives: form.directives,
        builtins: form.builtins,
        workgroups: [blocks, g.heads * form.slices, Math.min(rows, g.rows - first)],
        declarations: () => shared(g, bias) + (form.memory ?? ""),
        main: form.main,
      });
    }
  },
  flops(inputs, _output, attributes) {
    const g = attentionGeometry(inputs.map((input) => input?.shape ?? null), attributes);
    return 4 * g.rows * g.queries * g.sources * g.length * g.heads * g.d;
  },
  reference: attentionReference,
  cases: attentionCases,
});

/** Whether rows of so many tokens consist of 4-vectors. */
const aligned = (tokens: number): boolean => tokens % 4 === 0;

/** Text of all forms: stores of four neighbouring tokens, and which rows of keys a row reads. */
function framesText({ queries }: AttentionGeometry): string {
  return `
    const LOW = -1e30;
    fn store(base: u32, token: u32, x: vec4f) {
      ${
    aligned(queries)
      ? "if (token < p.queries) { out[(base + token) / 4u] = out_t(x); }"
      : [0, 1, 2, 3].map((j) =>
        `if (token + ${j}u < p.queries) { out[base + token + ${j}u] = out_t(x[${j}]); }`
      ).join("\n")
  }
    }
    fn source_row(row: u32, i: u32) -> u32 {
      let frame = row % p.frames;
      let previous = max(frame, 1u) - 1u;
      var from_frame = i;
      switch p.mode {
        case 0u: { from_frame = frame; }
        case 2u: { from_frame = previous; }
        case 3u: { from_frame = previous * i; }
        default: {}
      }
      return row / p.frames * p.kv_frames + min(from_frame, p.kv_frames - 1u);
    }`;
}

/** Text of the forms that read storage: loads of four neighbouring tokens, masks. */
function shared(g: AttentionGeometry, bias: Tensor | null): string {
  const load = (name: string, count: string, whole: boolean) =>
    `fn ${name}_at(base: u32, token: u32) -> vec4f {` + (whole
      ? `return vec4f(${name}[(base + min(token, p.${count} - 4u)) / 4u]);`
      : `let last = p.${count} - 1u;
         return vec4f(${
        [0, 1, 2, 3].map((j) =>
          `f32(${name}[base + min(token + ${j}u, last)])`
        ).join(", ")
      });`) +
    "}";
  const [q4, k4] = [aligned(g.queries), aligned(g.keys)];
  return `
    ${framesText(g)}
    ${load("q", "queries", q4)}
    ${load("k", "keys", k4)}
    ${load("v", "keys", k4)}
    fn score(product: vec4f, base: u32, token: u32, key: u32) -> vec4f {
      var x = product * p.scale;
      ${
    bias
      ? `let at = base + min(key, p.keys - 1u);
      let last = p.queries - 1u;
      x += ${Math.LOG2E} * vec4f(${
        [0, 1, 2, 3].map((j) => `f32(bias[at + min(token + ${j}u, last) * p.keys])`).join(", ")
      });`
      : ""
  }
      ${g.causal ? "x = select(vec4f(LOW), x, vec4u(key) <= token + vec4u(0u, 1u, 2u, 3u));" : ""}
      return select(vec4f(LOW), x, key < p.length);
    }`;
}

function lanesForm(g: AttentionGeometry, biased: boolean): AttentionShader {
  const lanes = 8;
  const nq = biased ? 1 : g.queries > 4 * lanes ? 2 : 1; // 4-vectors of queries of a lane
  const nk = biased ? 1 : 4; // 4-vectors of keys of a tile
  const queries = 4 * nq * lanes;
  const blocks = Math.ceil(g.queries / queries);
  const tile = (text: (key: number, h: number) => string) =>
    each(4 * nk, (key) => each(nq, (h) => text(key, h)));
  const part = (key: number) => `t${key >> 2}.${"xyzw"[key & 3]}`;
  return {
    variant: `lanes ${nq}x${nk}`,
    lanes,
    queries,
    slices: 1,
    scratch: blocks * queries * g.heads * g.d,
    main: () => `
      let row = p.first_row + wg.z;
      let head = wg.y;
      let token = (wg.x * ${lanes}u + lane) * ${4 * nq}u;
      let tokens = (row * p.heads + head) * p.d * p.queries;
      let home = ((wg.z * p.heads + head) * grid.x + wg.x) * p.d * ${lanes * nq}u + lane * ${nq}u;
      let bias_base = row * p.bias_row + head * p.bias_head;
      let length = ${g.causal ? `min(p.length, (wg.x + 1u) * ${queries}u)` : "p.length"};
      ${each(nq, (h) => `var m${h} = vec4f(LOW); var l${h} = vec4f();`)}
      for (var i = 0u; i < p.sources; i++) {
        let source = (source_row(row, i) * p.heads + head) * p.d * p.keys;
        for (var key = 0u; key < length; key += ${4 * nk}u) {
          ${tile((j, h) => `var s${j}_${h} = vec4f();`)}
          for (var c = 0u; c < p.d; c++) {
            ${each(nq, (h) => `let q${h} = q_at(tokens + c * p.queries, token + ${4 * h}u);`)}
            ${each(nk, (j) => `let t${j} = k_at(source + c * p.keys, key + ${4 * j}u);`)}
            ${tile((j, h) => `s${j}_${h} = fma(vec4f(${part(j)}), q${h}, s${j}_${h});`)}
          }
          ${each(nq, (h) => `var n${h} = m${h};`)}
          ${
      tile((j, h) =>
        `s${j}_${h} = score(s${j}_${h}, bias_base, token + ${4 * h}u, key + ${j}u);
         n${h} = max(n${h}, s${j}_${h});`
      )
    }
          ${each(nq, (h) => `let a${h} = exp2(m${h} - n${h}); m${h} = n${h}; l${h} *= a${h};`)}
          ${tile((j, h) => `s${j}_${h} = exp2(s${j}_${h} - n${h}); l${h} += s${j}_${h};`)}
          let begun = i + key > 0u;
          for (var c = 0u; c < p.d; c++) {
            let at = home + c * ${lanes * nq}u;
            ${each(nk, (j) => `let t${j} = v_at(source + c * p.keys, key + ${4 * j}u);`)}
            ${each(nq, (h) => `var o${h} = select(vec4f(), sums[at + ${h}u] * a${h}, begun);`)}
            ${tile((j, h) => `o${h} = fma(vec4f(${part(j)}), s${j}_${h}, o${h});`)}
            ${each(nq, (h) => `sums[at + ${h}u] = o${h};`)}
          }
        }
      }
      for (var c = 0u; c < p.d; c++) {
        let at = home + c * ${lanes * nq}u;
        ${
      each(nq, (h) => `store(tokens + c * p.queries, token + ${4 * h}u, sums[at + ${h}u] / l${h});`)
    }
      }`,
  };
}

/**
 * Attention over channel-major tokens.
 *
 * @param q Queries `[Bq, C, Nq]`, `C = heads·d`.
 * @param k Keys `[Bk, C, Nk]`.
 * @param v Values `[Bk, C, Nk]`.
 * @param bias Added to the scores: `[1 or Bq, 1 or heads, Nq, Nk]`; `−∞` hides a key. Where a query
 * reads several rows of k, the bias counts for each of them, as do `causal` and `kvLength`.
 * @returns `[Bq, C, Nq]`, of the type of q.
 * @throws {ShapeError} if shapes and settings do not agree.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions & { readonly bias?: Tensor },
): Tensor {
  const { bias, ...attributes } = options;
  return run(attentionKernel, [q, k, v, bias ?? null], attributes);
}

/** Settings of {@link scaledDotProductAttention}. */
export interface ScaledDotProductOptions {
  /** Factor of the scores. Default `D^-½`. */
  readonly scale?: number;
  /** Whether the query at `i` sees only keys at `j ≤ i`. Default false. */
  readonly causal?: boolean;
  /** Added to the scores: `[1 or B, 1 or H, Nq, Nk]`. */
  readonly bias?: Tensor;
}

/**
 * Attention in PyTorch's layout, `torch.nn.functional.scaled_dot_product_attention`.
 *
 * @param q Queries `[B, H, Nq, D]`.
 * @param k Keys `[B, H, Nk, D]`.
 * @param v Values `[B, H, Nk, D]`.
 * @returns `[B, H, Nq, D]`.
 * @throws {ShapeError} if shapes do not agree.
 */
export function scaledDotProductAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ScaledDotProductOptions = {},
): Tensor {
  return channelMajor(q, k, v, options);
}

/**
 * Attention of the frames of clips to each other, in PyTorch's layout `(b f) h n d`, the rows of
 * one clip being neighbours.
 *
 * @param q Queries `[B·F, H, Nq, D]`.
 * @param k Keys `[B·F, H, Nk, D]`.
 * @param v Values `[B·F, H, Nk, D]`.
 * @param options Which frames a query attends to, and frames of a clip.
 * @returns `[B·F, H, Nq, D]`.
 * @throws {ShapeError} if shapes do not agree.
 */
export function crossFrameAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: { readonly mode: AttentionMode; readonly frames: number; readonly scale?: number },
): Tensor {
  return channelMajor(q, k, v, options);
}

function channelMajor(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: Omit<AttentionOptions, "heads"> & { readonly bias?: Tensor },
): Tensor {
  const shapes = [q.shape, k.shape, v.shape];
  if (shapes.some(({ length }) => length !== 4) || q.shape[1] !== k.shape[1]) {
    throw new ShapeError(
      `attention: q, k and v must be [batch, heads, tokens, channels] with equal heads, got ` +
        shapes.map(formatShape).join(", "),
    );
  }
  const [batch, heads, queries, d] = q.shape;
  const tokens = (x: Tensor) => permute(x, [0, 1, 3, 2]).reshape([x.shape[0], -1, x.shape[2]]);
  return q.device.scope(() => {
    const out = attention(tokens(q), tokens(k), tokens(v), { ...options, heads });
    return permute(out.reshape([batch, heads, d, queries]), [0, 1, 3, 2]);
  });
}
