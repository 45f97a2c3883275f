/**
 * Attention for software adapters that fetch texels faster than they read storage: a lane holds a
 * block of scores, 16 keys × 8 queries, in registers; queries, keys and values come from textures, as
 * the operands of `gemm_texels.ts` do. Unnormalised sums wait in a bounded temporary between tiles of
 * keys.
 *
 * @module
 */

import { f32, type Launch, scalars, u32, vectors } from "../core/kernel.ts";
import { texelLoader } from "../core/texels.ts";
import type { Tensor } from "../core/tensor.ts";
import type { AttentionGeometry } from "./attention_reference.ts";
import { inTexelRows } from "./gemm.ts";
import { panelsOf } from "./panels.ts";
import { broadcastDirectives, LANES, loadRows } from "./shared_rows.ts";
import { variantsOf } from "./variants.ts";
import { each } from "./wgsl.ts";

/** 4-vectors of queries of a lane, and of keys of a tile. */
const NQ = 2;
const NK = 4;
const TILE = 4 * NK;
/** Queries of a workgroup. */
const BLOCK = 4 * NQ * LANES;
/** Channels of a round of the sum that makes scores. */
const STEPS = 2;

/** Bytes of the temporary that holds unfinished sums, as far as one row fits. */
const SUM_BYTES = 2 ** 25;

/** WGSL of what this form shares with the others. */
export interface AttentionText {
  /** `store(base, token, x)`, `source_row(row, i)`, and `LOW`, less than any score. */
  readonly declarations: string;
  /** The number of a mode in `source_row`. */
  readonly mode: number;
}

/** Enqueues attention without a bias. */
export function attentionTexels(
  launch: Launch<unknown>,
  g: AttentionGeometry,
  { declarations, mode }: AttentionText,
): void {
  const { device, inputs, output, dispatch, temporary } = launch;
  const [q, k, v] = inputs as [Tensor, Tensor, Tensor];
  const { d, heads, keys, queries } = g;
  const blocks = Math.ceil(queries / BLOCK);
  const depth = Math.ceil(d / 4) * 4;
  // A matrix for each head.
  const headsOf = (x: Tensor, tokens: number) => ({
    source: { tensor: x, offset: 0, major: 1, step: tokens, batch: [d * tokens] },
    batch: [x.shape[0] * heads],
  });
  const { source, batch } = headsOf(q, queries);
  const rows = inTexelRows(launch, source, { N: queries, K: d, batch });
  // Keys and values are read again by every workgroup, a tile after the other.
  const inTiles = (x: Tensor) => {
    const { source, batch } = headsOf(x, keys);
    return launch.texels(panelsOf(launch, source, { extent: keys, K: d, batch }, TILE));
  };
  const texels = { q: launch.texels(rows.tensor), k: inTiles(k), v: inTiles(v) };
  const whole = queries % 4 === 0;
  const { broadcast } = variantsOf(device);
  const rowSums = heads * blocks * depth * BLOCK;
  const rowsTogether = Math.max(1, Math.min(g.rows, Math.floor(SUM_BYTES / 4 / rowSums)));
  const sums = temporary([rowsTogether * rowSums], "f32");
  for (let first = 0; first < g.rows; first += rowsTogether) {
    dispatch({
      variant: `texels ${whole} ${broadcast}`,
      directives: broadcastDirectives(broadcast),
      read: texels,
      write: { out: whole ? vectors(output) : scalars(output), sums: vectors(sums) },
      params: {
        d: u32(d),
        depth: u32(depth),
        heads: u32(heads),
        queries: u32(queries),
        length: u32(g.length),
        scale: f32(g.scale * Math.LOG2E),
        first: u32(first),
        sources: u32(g.sources),
        frames: u32(g.frames),
        kv_frames: u32(g.kvFrames),
        mode: u32(mode),
        causal: u32(g.causal ? 1 : 0),
        keys: u32(TILE),
        q_head: u32(rows.batch[0] / 4),
        q_step: u32(rows.step / 4),
        k_head: u32(Math.ceil(keys / TILE) * depth * NK),
      },
      workgroup: [LANES, 1, 1],
      workgroups: [blocks, heads, Math.min(rowsTogether, g.rows - first)],
      declarations: () => declarations + ["q", "k", "v"].map(texelLoader).join(""),
      main: () => main(broadcast),
    });
  }
}

function main(broadcast: boolean): string {
  const tile = (text: (key: number, h: number) => string) =>
    each(TILE, (key) => each(NQ, (h) => text(key, h)));
  const moveUp = tile((j, h) => `s${j}_${h} = ${j + 1 < TILE ? `s${j + 1}_${h}` : `x${h}`};`);
  const shared = { width: NK, stride: NK };
  const keys = loadRows(broadcast, { ...shared, name: "k", at: "at_k", rows: STEPS });
  // A fetch of all lanes brings two channels of values.
  const channels = broadcast ? LANES / NK : 1;
  const values = loadRows(broadcast, { ...shared, name: "v", at: "at_v", rows: channels });
  return `
      let row = p.first + wg.z;
      let head = wg.y;
      let token = (wg.x * ${LANES}u + lane) * ${4 * NQ}u;
      let queries = (row * p.heads + head) * p.q_head + token / 4u;
      let home = ((wg.z * p.heads + head) * grid.x + wg.x) * p.depth * ${
    LANES * NQ
  }u + lane * ${NQ}u;
      let length = select(p.length, min(p.length, (wg.x + 1u) * ${BLOCK}u), p.causal == 1u);
      ${each(NQ, (h) => `var m${h} = vec4f(LOW); var l${h} = vec4f();`)}
      for (var i = 0u; i < p.sources; i++) {
        let source = (source_row(row, i) * p.heads + head) * p.k_head;
        for (var key = 0u; key < length; key += ${TILE}u) {
          let tile = source + key / ${TILE}u * p.depth * ${NK}u;
          ${tile((j, h) => `var s${j}_${h} = vec4f();`)}
          for (var c = 0u; c < p.depth; c += ${STEPS}u) {
            let at_k = tile + c * ${NK}u;
            ${keys.statements}
            ${
    each(STEPS, (u) => `
            // Behind the last channel the keys are zero; the queries are read again.
            let at_q${u} = queries + min(c + ${u}u, p.d - 1u) * p.q_step;
            ${each(NQ, (h) => `let q${u}_${h} = load_q(at_q${u} + ${h}u);`)}`)
  }
            ${
    each(TILE, (j) => `
            ${each(STEPS, (u) => `let k${u}at${j} = vec4f(${keys.number(u, j)});`)}
            ${
      each(NQ, (h) => {
        let sum = `s${j}_${h}`;
        for (let u = 0; u < STEPS; u++) sum = `fma(k${u}at${j}, q${u}_${h}, ${sum})`;
        return `s${j}_${h} = ${sum};`;
      })
    }`)
  }
          }
          // Loops of a length that the compiler does not know: unrolled, they take it seconds. Each round
          // works on the first key's scores and moves all up: an array with a changing index takes longer
          // to compile.
          ${each(NQ, (h) => `var n${h} = m${h};`)}
          for (var j = 0u; j < p.keys; j++) {
            ${
    each(NQ, (h) => `
            let tokens${h} = token + vec4u(${[0, 1, 2, 3].map((i) => `${4 * h + i}u`)});
            let seen${h} = (vec4<bool>(p.causal == 0u) | (vec4u(key + j) <= tokens${h})) & vec4<bool>(key + j < p.length);
            let x${h} = select(vec4f(LOW), s0_${h} * p.scale, seen${h});
            n${h} = max(n${h}, x${h});`)
  }
            ${moveUp}
          }
          ${each(NQ, (h) => `let f${h} = exp2(m${h} - n${h}); m${h} = n${h}; l${h} *= f${h};`)}
          for (var j = 0u; j < p.keys; j++) {
            ${
    each(NQ, (h) => `
            let x${h} = exp2(s0_${h} - n${h});
            l${h} += x${h};`)
  }
            ${moveUp}
          }
          let begun = i + key > 0u;
          for (var c = 0u; c < p.depth; c += ${channels}u) {
            let at_v = tile + c * ${NK}u;
            ${values.statements}
            ${
    each(channels, (u) => `
            let at${u} = home + (c + ${u}u) * ${LANES * NQ}u;
            ${
      each(NQ, (h) => `var o${u}_${h} = select(vec4f(), sums[at${u} + ${h}u] * f${h}, begun);`)
    }
            ${
      each(TILE, (j) => `
            let v${u}at${j} = vec4f(${values.number(u, j)});
            ${each(NQ, (h) => `o${u}_${h} = fma(v${u}at${j}, s${j}_${h}, o${u}_${h});`)}`)
    }
            ${each(NQ, (h) => `sums[at${u} + ${h}u] = o${u}_${h};`)}`)
  }
          }
        }
      }
      for (var c = 0u; c < p.d; c++) {
        let at = home + c * ${LANES * NQ}u;
        ${
    each(NQ, (h) =>
      `store(((row * p.heads + head) * p.d + c) * p.queries, token + ${4 * h}u,
          sums[at + ${h}u] / l${h});`)
  }
      }`;
}
