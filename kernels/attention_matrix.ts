/**
 * Attention for GPUs with matrix units (`gemm_matrix.ts`): a subgroup has as many queries as a
 * matrix has rows, and the subgroups of a workgroup share tiles of K and V.
 *
 * Matrix units cannot rescale rows of the sums, as a running maximum asks for. So the scores are
 * computed twice: once for the maximum of each row, then for weights that need no correction. That
 * is half as many products again, but no sum ever leaves the registers.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { loadMatrix, storeMatrix } from "../core/subgroup_matrix.ts";
import type { Tensor } from "../core/tensor.ts";
import type { AttentionGeometry } from "./attention_reference.ts";
import type { AttentionShader } from "./attention_tiles.ts";
import { matrixUnits, writeFour } from "./gemm_matrix.ts";
import { each } from "./wgsl.ts";

/** Subgroups of a workgroup. */
const TEAMS = 4;

/** Channels of a head whose queries and sums fit into registers. */
const MOST_CHANNELS = 160;

/** Most keys of a tile: more would need more workgroup memory, not fewer loads. */
const MOST_KEYS = 32;

/** The form for tensors q, k and v, or `null` where the adapter has no matrix units for it. */
export function matrixForm(
  g: AttentionGeometry,
  { info, gpu: { limits } }: Pick<Device, "info" | "gpu">,
  tensors: readonly Tensor[],
): AttentionShader | null {
  const units = matrixUnits(info, tensors.map(({ dtype }) => dtype));
  if (!units || g.d > MOST_CHANNELS) return null;
  const { config: { M, N, K }, size, type, pad, syntax } = units;
  const lanes = TEAMS * size;
  const queries = TEAMS * M;
  // Channels are terms of the scores and columns of the result, keys the other way round.
  const step = Math.max(N, K);
  const depth = Math.ceil(g.d / step) * step;
  const staged = (keys: number) => Math.max(depth * (keys + pad), K * queries);
  const bytes = (keys: number) =>
    (staged(keys) + queries * keys) * (type === "f16" ? 2 : 4) + 4 * queries * keys + 16 * lanes;
  let keys = MOST_KEYS;
  while (keys > step && bytes(keys) > limits.maxComputeWorkgroupStorageSize) keys /= 2;
  const groups = M / 4; // 4-vectors of queries of a subgroup
  if (
    bytes(keys) > limits.maxComputeWorkgroupStorageSize || size % groups !== 0 ||
    lanes > limits.maxComputeInvocationsPerWorkgroup
  ) return null;

  const parts = size / groups;
  const stride = keys + pad;
  const fill = (name: "k" | "v") => `
          for (var e = lane; e < ${depth * keys / 4}u; e += ${lanes}u) {
            let c = e / ${keys / 4}u;
            let i = e % ${keys / 4}u * 4u;
            var x = vec4f();
            if (c < p.d) { x = ${name}_at(source + c * p.keys, key + i); }
            ${writeFour("stage", type, `c * ${stride}u + i`, "x")}
          }`;
  const right = (order: "row" | "col", at: number) =>
    loadMatrix(syntax, "right", order, { array: "stage", at: `${at}u`, stride });
  const blocks = depth / K;
  const scores = `
          workgroupBarrier();
          ${fill("k")}
          workgroupBarrier();
          ${
    each(keys / N, (j) =>
      `{
            var s = sums();
            ${
        each(
          blocks,
          (c) =>
            `s = subgroupMatrixMultiplyAccumulate(q${c}, ${
              right("row", c * K * stride + j * N)
            }, s);`,
        )
      }
            ${
        storeMatrix(syntax, "s", "col", { array: "scores", at: `home + ${j * N * M}u`, stride: M })
      }
          }`)
  }
          workgroupBarrier();`;
  // What an invocation sees of the scores of its subgroup: four queries, every `parts`-th key.
  const everyScore = (text: string) => `
          for (var j = part; j < ${keys}u; j += ${parts}u) {
            let at = home + j * ${M}u + group * 4u;
            let s = score(${four("scores")}, bias_base, token, key + j);
            ${text}
          }`;
  const everyTile = (text: string) => `
      for (var i = 0u; i < p.sources; i++) {
        let source = (source_row(row, i) * p.heads + head) * p.d * p.keys;
        for (var key = 0u; key < length; key += ${keys}u) {
          ${scores}
          ${text}
        }
      }`;
  // Over the invocations that see different keys of the same queries.
  const combine = (value: string, result: string, step: (share: string) => string) => `
      workgroupBarrier();
      shares[mates + mate] = ${value};
      workgroupBarrier();
      for (var j = 0u; j < ${parts}u; j++) {
        ${result} = ${step(`shares[mates + j * ${groups}u + group]`)};
      }`;
  return {
    variant: `matrix ${depth} ${keys} ${units.variant}`,
    lanes,
    queries,
    slices: 1,
    scratch: 0,
    directives: units.directives,
    builtins: units.builtins,
    memory: `
    ${units.declarations}
    var<workgroup> stage: array<${type}, ${staged(keys)}>;
    var<workgroup> weights: array<${type}, ${queries * keys}>;
    var<workgroup> scores: array<f32, ${queries * keys}>;
    var<workgroup> shares: array<vec4f, ${lanes}>;`,
    main: () => `
      let row = p.first_row + wg.z;
      let head = wg.y;
      let first = wg.x * ${queries}u;
      let group = mate % ${groups}u;
      let part = mate / ${groups}u;
      let mates = team * ${size}u;
      let home = team * ${M * keys}u;
      let token = first + team * ${M}u + group * 4u;
      let tokens = (row * p.heads + head) * p.d * p.queries;
      let bias_base = row * p.bias_row + head * p.bias_head;
      let length = ${g.causal ? `min(p.length, first + ${queries}u)` : "p.length"};
      ${
      each(blocks, (b) => `
      workgroupBarrier();
      for (var e = lane; e < ${K * queries / 4}u; e += ${lanes}u) {
        let c = ${b * K}u + e / ${queries / 4}u;
        var x = vec4f();
        if (c < p.d) { x = q_at(tokens + c * p.queries, first + e % ${queries / 4}u * 4u); }
        ${writeFour("stage", type, "e * 4u", "x")}
      }
      workgroupBarrier();
      let q${b} = ${
        loadMatrix(syntax, "left", "col", {
          array: "stage",
          at: `team * ${M}u`,
          stride: queries,
        })
      };`)
    }
      var m = vec4f(LOW);
      ${everyTile(everyScore("m = max(m, s);"))}
      ${combine("m", "m", (share) => `max(m, ${share})`)}
      var own = vec4f();
      ${each(depth / N, (n) => `var o${n} = sums();`)}
      ${
      everyTile(`
          ${
        everyScore(`
            let w = exp2(s - m);
            own += w;
            ${writeFour("weights", type, "at", "w")}`)
      }
          ${fill("v")}
          workgroupBarrier();
          ${
        each(keys / K, (b) =>
          `{
            let w = ${
            loadMatrix(syntax, "left", "col", {
              array: "weights",
              at: `home + ${b * K * M}u`,
              stride: M,
            })
          };
            ${
            each(
              depth / N,
              (n) =>
                `o${n} = subgroupMatrixMultiplyAccumulate(w, ${
                  right("col", n * N * stride + b * K)
                }, o${n});`,
            )
          }
          }`)
      }`)
    }
      var l = vec4f();
      ${combine("own", "l", (share) => `l + ${share}`)}
      ${
      each(depth / N, (n) => `
      workgroupBarrier();
      ${storeMatrix(syntax, `o${n}`, "col", { array: "scores", at: "home", stride: M })}
      workgroupBarrier();
      for (var j = part; j < ${N}u; j += ${parts}u) {
        let channel = ${n * N}u + j;
        let at = home + j * ${M}u + group * 4u;
        if (channel < p.d) { store(tokens + channel * p.queries, token, ${four("scores")} / l); }
      }`)
    }`,
  };
}

/** WGSL: four elements of an array of scalars from `at` on. */
function four(array: string): string {
  return `vec4f(${[0, 1, 2, 3].map((i) => `${array}[at + ${i}u]`).join(", ")})`;
}
