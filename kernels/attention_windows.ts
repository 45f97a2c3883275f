/**
 * Attention for software adapters: a lane holds a block of scores, 16 keys × 8 queries, in
 * registers; keys and values pass through windows of the uniform address space, as the weights of
 * `gemm_registers.ts` do, a dispatch each. What has been added up so far waits between windows in a
 * temporary, with the running maximum and sum.
 *
 * @module
 */

import { bytesPerElement } from "../core/dtype.ts";
import { f32, type Launch, scalars, u32, vectors, window, WINDOW_BYTES } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";
import type { AttentionGeometry } from "./attention_reference.ts";
import { panelsOf } from "./panels.ts";
import { variantsOf } from "./variants.ts";
import { each } from "./wgsl.ts";
import { walk, walkDeclarations, windowLoader } from "./windows.ts";

const LANES = 8;
/** 4-vectors of queries of a lane, and of keys of a tile. */
const NQ = 2;
const NK = 4;
const TILE = 4 * NK;
/** Queries of a workgroup. */
const BLOCK = 4 * NQ * LANES;

/** WGSL: where a lane's state `i` lies behind its first. Drivers unroll what is no loop to them. */
const STATE_AT = `i / ${NQ}u * ${LANES * NQ}u + i % ${NQ}u`;

/** Bytes of the temporary that holds unfinished sums, as far as one row fits. */
const SUM_BYTES = 2 ** 25;

/** A stretch of neighbouring query rows that attend to the same row of keys. */
interface Group {
  readonly source: number;
  readonly row: number;
  readonly rows: number;
}

/** Which rows of keys the rows `[row, row + rows)` read as their `slot`-th, neighbours together. */
function groupsOf(g: AttentionGeometry, row: number, rows: number, slot: number): Group[] {
  const groups: Group[] = [];
  for (let r = row; r < row + rows; r++) {
    const frame = r % g.frames;
    const previous = Math.max(frame - 1, 0);
    const wanted = {
      self: frame,
      first: 0,
      previous,
      "first+previous": slot * previous,
      all: slot,
    }[g.mode];
    const source = Math.floor(r / g.frames) * g.kvFrames + Math.min(wanted, g.kvFrames - 1);
    const last = groups.at(-1);
    if (last?.source === source) groups[groups.length - 1] = { ...last, rows: last.rows + 1 };
    else groups.push({ source, row: r, rows: 1 });
  }
  return groups;
}

/** Enqueues attention without a bias. */
export function attentionWindows(
  launch: Launch<unknown>,
  g: AttentionGeometry,
): void {
  const { inputs, output, dispatch, temporary } = launch;
  const [q, k, v] = inputs as [Tensor, Tensor, Tensor];
  const { d, heads, keys, queries } = g;
  const tiles = Math.ceil(keys / TILE);
  const d4 = Math.ceil(d / 4) * 4;
  const inPanels = (x: Tensor) => {
    const source = { tensor: x, offset: 0, major: 1, step: keys, batch: [d * keys] };
    return panelsOf(launch, source, { extent: keys, K: d, batch: [x.shape[0] * heads] }, TILE);
  };
  const panels = { k: inPanels(k), v: inPanels(v) };
  const tileBytes = d4 * TILE * bytesPerElement(k.dtype);
  // A window shows some tiles of one head, or all tiles of some heads.
  const most = Math.floor(WINDOW_BYTES / tileBytes);
  const used = Math.ceil(g.length / TILE);
  const headsTogether = Math.max(1, Math.min(heads, Math.floor(most / tiles)));
  const tilesTogether = Math.min(used, most);

  const blocks = Math.ceil(queries / BLOCK);
  const rowSums = heads * blocks * (d + 2) * BLOCK;
  const rowsTogether = Math.max(1, Math.min(g.rows, Math.floor(SUM_BYTES / 4 / rowSums)));
  const sums = temporary([rowsTogether * rowSums], "f32");
  const whole = queries % 4 === 0;
  const { immediates } = variantsOf(launch.device);

  for (let first = 0; first < g.rows; first += rowsTogether) {
    const rows = Math.min(rowsTogether, g.rows - first);
    for (let slot = 0; slot < g.sources; slot++) {
      for (const group of groupsOf(g, first, rows, slot)) {
        for (let head = 0; head < heads; head += headsTogether) {
          for (let tile = 0; tile < used; tile += tilesTogether) {
            const count = Math.min(tilesTogether, used - tile);
            const hs = Math.min(headsTogether, heads - head);
            const offset = ((group.source * heads + head) * tiles + tile) * tileBytes;
            const shownK = window(panels.k, offset);
            const shownV = window(panels.v, offset);
            const vectorBytes = 4 * bytesPerElement(k.dtype);
            dispatch({
              variant: `windows ${whole}`,
              immediates,
              read: {
                q: whole ? vectors(q) : scalars(q),
                k: shownK.binding,
                v: shownV.binding,
              },
              write: { out: whole ? vectors(output) : scalars(output), sums: vectors(sums) },
              params: {
                d: u32(d),
                heads: u32(heads),
                queries: u32(queries),
                length: u32(g.length),
                scale: f32(g.scale * Math.LOG2E),
                row: u32(group.row),
                slot: u32(group.row - first),
                head: u32(head),
                tile: u32(tile),
                count: u32(count),
                k0: u32(shownK.first * 16 / vectorBytes),
                v0: u32(shownV.first * 16 / vectorBytes),
                item: u32(tiles * d4 * NK),
                depth: u32(d4 * NK),
                begun: u32(slot + tile > 0 ? 1 : 0),
                wide: u32(NQ),
                keys: u32(TILE),
                causal: u32(g.causal ? 1 : 0),
                last: u32(slot === g.sources - 1 && tile + count >= used ? 1 : 0),
              },
              workgroup: [LANES, 1, 1],
              workgroups: [blocks, hs, group.rows],
              declarations: () => `
                ${declarations(whole, panels)}
                ${walkDeclarations(immediates)}`,
              main: () => main(immediates),
            });
          }
        }
      }
    }
  }
}

function declarations(
  whole: boolean,
  panels: { readonly k: Tensor; readonly v: Tensor },
): string {
  return `
    const LOW = -1e30;
    ${windowLoader("k", panels.k)}
    ${windowLoader("v", panels.v)}
    fn load_q(base: u32, token: u32) -> vec4f {
      ${
    whole
      ? `return vec4f(q[(base + min(token, p.queries - 4u)) / 4u]);`
      : `let last = p.queries - 1u;
         return vec4f(${
        [0, 1, 2, 3].map((j) => `f32(q[base + min(token + ${j}u, last)])`).join(", ")
      });`
  }
    }
    fn store(base: u32, token: u32, x: vec4f) {
      ${
    whole
      ? "if (token < p.queries) { out[(base + token) / 4u] = out_t(x); }"
      : each(4, (j) =>
        `if (token + ${j}u < p.queries) { out[base + token + ${j}u] = out_t(x[${j}]); }`)
  }
    }
    fn masked(x: vec4f, token: u32, key: u32) -> vec4f {
      let seen = select(
        vec4f(LOW), x, vec4<bool>(p.causal == 0u) | (vec4u(key) <= token + vec4u(0u, 1u, 2u, 3u)));
      return select(vec4f(LOW), seen, key < p.length);
    }`;
}

function main(immediates: boolean): string {
  const tile = (text: (key: number, h: number) => string) =>
    each(TILE, (key) => each(NQ, (h) => text(key, h)));
  const part = (name: string, key: number) => `${name}${key >> 2}.${"xyzw"[key & 3]}`;
  return `
      let row = p.row + wg.z;
      let head = p.head + wg.y;
      let token = (wg.x * ${LANES}u + lane) * ${4 * NQ}u;
      let tokens = (row * p.heads + head) * p.d * p.queries;
      let home = ((((p.slot + wg.z) * p.heads + head) * grid.x + wg.x) * (p.d + 2u) * ${LANES}u
        + lane) * ${NQ}u;
      // Maxima, then sums, of what other windows showed.
      let state = home + p.d * ${LANES * NQ}u;
      var states = array<vec4f, ${2 * NQ}>(${
    Array.from({ length: 2 * NQ }, (_, i) => i < NQ ? "vec4f(LOW)" : "vec4f()").join(", ")
  });
      if (p.begun == 1u) {
        for (var i = 0u; i < 2u * p.wide; i++) { states[i] = sums[state + ${STATE_AT}]; }
      }
      ${each(NQ, (h) => `var m${h} = states[${h}]; var l${h} = states[${NQ + h}];`)}
      for (var t = 0u; t < p.count; t++) {
        let key = (p.tile + t) * ${TILE}u;
        if (p.causal == 1u && key >= (wg.x + 1u) * ${BLOCK}u) { break; }
        let place = wg.y * p.item + t * p.depth;
        ${tile((j, h) => `var s${j}_${h} = vec4f();`)}
        ${
    walk(
      { immediates, rows: "p.d", step: 2, stride: NK, address: "at_k", from: "p.k0 + place" },
      `
          // Behind an odd end the keys are zero.
          let more = tokens + min(k + 1u, p.d - 1u) * p.queries;
          ${each(NQ, (h) => `let q0_${h} = load_q(tokens + k * p.queries, token + ${4 * h}u);`)}
          ${each(NQ, (h) => `let q1_${h} = load_q(more, token + ${4 * h}u);`)}
          ${each(2 * NK, (j) => `let a${j} = load_k(at_k + ${j}u);`)}
          ${
        tile((j, h) => {
          const first = `fma(vec4f(${part("a", j)}), q0_${h}, s${j}_${h})`;
          return `s${j}_${h} = fma(vec4f(${part("a", TILE + j)}), q1_${h}, ${first});`;
        })
      }`,
    )
  }
        // Loops of a length that the compiler does not know: unrolled, they take it seconds.
        var w = array<vec4f, ${TILE * NQ}>(${
    Array.from({ length: TILE * NQ }, (_, i) => `s${Math.floor(i / NQ)}_${i % NQ}`).join(", ")
  });
        ${each(NQ, (h) => `var n${h} = m${h};`)}
        for (var j = 0u; j < p.keys; j++) {
          ${
    each(NQ, (h) => `
          let x${h} = masked(w[${NQ}u * j + ${h}u] * p.scale, token + ${4 * h}u, key + j);
          w[${NQ}u * j + ${h}u] = x${h};
          n${h} = max(n${h}, x${h});`)
  }
        }
        ${each(NQ, (h) => `let f${h} = exp2(m${h} - n${h}); m${h} = n${h}; l${h} *= f${h};`)}
        for (var j = 0u; j < p.keys; j++) {
          ${
    each(NQ, (h) => `
          let x${h} = exp2(w[${NQ}u * j + ${h}u] - n${h});
          w[${NQ}u * j + ${h}u] = x${h};
          l${h} += x${h};`)
  }
        }
        ${tile((j, h) => `s${j}_${h} = w[${NQ * j + h}];`)}
        let begun = p.begun + t > 0u;
        ${
    walk(
      { immediates, rows: "p.d", step: 1, stride: NK, address: "at_v", from: "p.v0 + place" },
      `
          let at = home + k * ${LANES * NQ}u;
          ${each(NK, (j) => `let a${j} = load_v(at_v + ${j}u);`)}
          ${each(NQ, (h) => `var o${h} = select(vec4f(), sums[at + ${h}u] * f${h}, begun);`)}
          ${tile((j, h) => `o${h} = fma(vec4f(${part("a", j)}), s${j}_${h}, o${h});`)}
          ${each(NQ, (h) => `sums[at + ${h}u] = o${h};`)}`,
    )
  }
      }
      ${each(NQ, (h) => `states[${h}] = m${h}; states[${NQ + h}] = l${h};`)}
      if (p.last == 1u) {
        for (var c = 0u; c < p.d; c++) {
          let at = home + c * ${LANES * NQ}u;
          for (var h = 0u; h < p.wide; h++) {
            store(tokens + c * p.queries, token + 4u * h, sums[at + h] / states[${NQ}u + h]);
          }
        }
      } else {
        for (var i = 0u; i < 2u * p.wide; i++) { sums[state + ${STATE_AT}] = states[i]; }
      }`;
}
