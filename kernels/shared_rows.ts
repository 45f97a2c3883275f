/**
 * WGSL for what all lanes of a software adapter need alike: rows of texels, such as those of weights
 * that every lane multiplies with columns of its own.
 *
 * A driver without an analysis of divergence fetches a texel for each lane, even if it is the same
 * for all. Where 8 lanes are a subgroup, each can fetch another texel instead, and a broadcast from a
 * known lane is a shuffle: a fetch brings 8 texels, not one.
 *
 * @module
 */

import { each } from "./wgsl.ts";

/** Lanes of a workgroup and, where it broadcasts, of a subgroup. */
export const LANES = 8;

/** Some neighbouring rows of texels. */
export interface SharedRows {
  /** `load_<name>(at)` reads a texel; also the prefix of what is declared. */
  readonly name: string;
  /** WGSL: where the first row begins. */
  readonly at: string;
  /** Rows. */
  readonly rows: number;
  /** Texels of a row that are needed: 1, 2, 4 or 8. */
  readonly width: number;
  /** Texels from a row to the next. */
  readonly stride: number;
}

/** Statements that load rows, and WGSL of their numbers. */
export interface LoadedRows {
  readonly statements: string;
  /** Number `i` of a row. */
  number(row: number, i: number): string;
}

/** Loads rows by broadcasts, or by each lane for itself. */
export function loadRows(
  broadcast: boolean,
  { name, at, rows, width, stride }: SharedRows,
): LoadedRows {
  const part = (i: number) => "xyzw"[i & 3];
  if (!broadcast) {
    return {
      statements: each(
        rows,
        (row) =>
          each(
            width,
            (i) => `let ${name}${row}_${i} = load_${name}(${at} + ${row * stride + i}u);`,
          ),
      ),
      number: (row, i) => `${name}${row}_${i >> 2}.${part(i)}`,
    };
  }
  const together = LANES / width;
  return {
    statements: each(
      Math.ceil(rows / together),
      (i) =>
        `let ${name}${i} = load_${name}(${at} + (lane / ${width}u + ${i * together}u) * ${stride}u
        + lane % ${width}u);`,
    ),
    number: (row, i) =>
      `subgroupBroadcast(${name}${Math.floor(row / together)}.${part(i)}, ${
        row % together * width + (i >> 2)
      }u)`,
  };
}

/** WGSL directives of texts that may broadcast. */
export function broadcastDirectives(broadcast: boolean): string {
  return broadcast ? "enable subgroups;\n" : "";
}
