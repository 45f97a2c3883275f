/**
 * Packing weights into panels on the host: rows `[O, K]` become `[⌈O/32⌉, ⌈K/4⌉·4, 32]` as
 * `kernels/panels.ts` defines it. On a software adapter this takes a tenth of the shader's time,
 * whose strided reads are single loads there.
 *
 * @module
 */

import { PANEL } from "../kernels/panels.ts";

/** Elements that `rows × columns` weights take up in panels. */
export function packedSize(rows: number, columns: number): number {
  return Math.ceil(rows / PANEL) * Math.ceil(columns / 4) * 4 * PANEL;
}

/**
 * Packs whole rows.
 *
 * @param values `rows × columns` numbers, or their half-precision bits.
 * @param out `packedSize(rows, columns)` elements; what no weight fills becomes zero.
 */
export function packRows<Values extends Float32Array | Uint16Array>(
  values: Values,
  columns: number,
  out: Values,
): Values {
  const rows = values.length / columns;
  const depth = Math.ceil(columns / 4) * 4;
  const filled = rows % PANEL === 0 && depth === columns;
  if (!filled) out.fill(0);
  if (values instanceof Uint16Array && filled && values.byteOffset % 4 === 0) {
    packPairs(words(values), rows, columns, words(out));
    return out;
  }
  // The outputs of an input one after the other: 32 rows are read at once, one place is written.
  for (let panel = 0; panel < rows; panel += PANEL) {
    const end = Math.min(panel + PANEL, rows);
    for (let k = 0; k < columns; k++) {
      let to = panel * depth + k * PANEL;
      for (let from = panel * columns + k; from < end * columns; from += columns) {
        out[to++] = values[from];
      }
    }
  }
  return out;
}

function words({ buffer, byteOffset, byteLength }: Float32Array | Uint16Array): Uint32Array {
  return new Uint32Array(buffer, byteOffset, byteLength / 4);
}

/** Turns 2×2 blocks of half-precision numbers, two of which share a word. */
function packPairs(values: Uint32Array, rows: number, columns: number, out: Uint32Array): void {
  const half = columns / 2;
  for (let panel = 0; panel < rows; panel += PANEL) {
    for (let k = 0; k < half; k++) {
      let from = panel * half + k;
      let to = panel * half + k * PANEL;
      for (let pair = 0; pair < PANEL / 2; pair++) {
        const a = values[from];
        const b = values[from + half];
        out[to] = (a & 0xffff) | (b << 16);
        out[to + PANEL / 2] = (a >>> 16) | (b & 0xffff0000);
        from += columns;
        to++;
      }
    }
  }
}
