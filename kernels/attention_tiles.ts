/**
 * Attention for GPUs: 64 invocations share tiles of Q, K, V and weights in less than 16 KiB of
 * workgroup memory and keep the sums of at most 80 channels in registers; longer heads are cut into
 * slices, each of which computes the scores again.
 *
 * @module
 */

import type { AttentionGeometry } from "./attention_reference.ts";
import { each } from "./wgsl.ts";

/** A form of attention: how it cuts the work, and its text. */
export interface AttentionShader {
  /** Names what the text depends on. */
  readonly variant: string;
  /** Invocations of a workgroup. */
  readonly lanes: number;
  /** Queries of a workgroup. */
  readonly queries: number;
  /** Pieces that the channels of a head are cut into. */
  readonly slices: number;
  /** Elements of an f32 temporary that a row needs. */
  readonly scratch: number;
  /** Workgroup variables of its own. */
  readonly memory?: string;
  /** See `Dispatch`. */
  readonly directives?: string;
  /** See `Dispatch`. */
  readonly builtins?: string;
  /** Body of the entry point. */
  readonly main: () => string;
}

/** 32 queries a workgroup, 32 keys at a time; an invocation has 4×4 scores. */
export function tilesForm(g: AttentionGeometry): AttentionShader {
  const slices = Math.ceil(g.d / 80);
  const own = Math.ceil(g.d / slices / 8); // channels of an invocation
  const stage = Math.max(512, 64 * own);
  return {
    variant: `tiles ${own}`,
    lanes: 64,
    queries: 32,
    slices,
    scratch: 0,
    memory: `
      var<workgroup> stage: array<vec4f, ${stage}>;
      var<workgroup> weights: array<vec4f, 256>;
      var<workgroup> shares: array<vec4f, 64>;`,
    main: () => `
      let row = p.first_row + wg.z;
      let head = wg.y / p.slices;
      let slice = wg.y % p.slices * ${8 * own}u;
      let a = lane % 8u;
      let b = lane / 8u;
      let first = wg.x * 32u;
      let token = first + 4u * a;
      let tokens = (row * p.heads + head) * p.d * p.queries;
      let bias_base = row * p.bias_row + head * p.bias_head;
      let length = ${g.causal ? "min(p.length, first + 32u)" : "p.length"};
      var m = vec4f(LOW);
      var l = vec4f();
      ${each(own, (i) => `var o${i} = vec4f();`)}
      for (var i = 0u; i < p.sources; i++) {
        let source = (source_row(row, i) * p.heads + head) * p.d * p.keys;
        for (var key = 0u; key < length; key += 32u) {
          ${each(4, (j) => `var s${j} = vec4f();`)}
          for (var c0 = 0u; c0 < p.d; c0 += 32u) {
            let depth = min(32u, p.d - c0);
            workgroupBarrier();
            for (var c = b; c < depth; c += 8u) {
              stage[c * 8u + a] = q_at(tokens + (c0 + c) * p.queries, token);
              stage[256u + c * 8u + a] = k_at(source + (c0 + c) * p.keys, key + 4u * a);
            }
            workgroupBarrier();
            for (var c = 0u; c < depth; c++) {
              let x = stage[c * 8u + a];
              let y = stage[256u + c * 8u + b];
              ${each(4, (j) => `s${j} = fma(vec4f(y[${j}]), x, s${j});`)}
            }
          }
          ${each(4, (j) => `s${j} = score(s${j}, bias_base, token, key + 4u * b + ${j}u);`)}
          shares[lane] = max(max(s0, s1), max(s2, s3));
          workgroupBarrier();
          var n = m;
          for (var j = 0u; j < 8u; j++) { n = max(n, shares[8u * j + a]); }
          let rescale = exp2(m - n);
          m = n;
          l *= rescale;
          ${
      each(4, (j) =>
        `s${j} = exp2(s${j} - n); l += s${j}; weights[(4u * b + ${j}u) * 8u + a] = s${j};`)
    }
          // Swizzled, so that the 8 channels read at once lie in different banks.
          for (var c = b; c < ${8 * own}u; c += 8u) {
            let channel = min(slice + c, p.d - 1u);
            stage[c * 8u + (a ^ b)] = v_at(source + channel * p.keys, key + 4u * a);
          }
          workgroupBarrier();
          ${each(own, (i) => `o${i} *= rescale;`)}
          for (var j = 0u; j < 8u; j++) {
            ${each(4, (w) => `let w${w} = weights[(4u * j + ${w}u) * 8u + a];`)}
            ${
      each(own, (i) =>
        `let t${i} = stage[(b + ${8 * i}u) * 8u + (j ^ b)];
         o${i} += t${i}.x * w0 + t${i}.y * w1 + t${i}.z * w2 + t${i}.w * w3;`)
    }
          }
        }
      }
      workgroupBarrier();
      shares[lane] = l;
      workgroupBarrier();
      l = vec4f();
      for (var j = 0u; j < 8u; j++) { l += shares[8u * j + a]; }
      ${
      each(own, (i) => {
        const channel = `slice + b + ${8 * i}u`;
        return `if (${channel} < p.d) {
          store(tokens + (${channel}) * p.queries, token, o${i} / l);
        }`;
      })
    }`,
  };
}
