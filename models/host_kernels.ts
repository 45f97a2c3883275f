/**
 * What loading does to numbers on the host: checks, conversions between storage types, and packing
 * into the panels of `kernels/panels.ts`, which a software adapter's shaders take ten times as long
 * for. All work on one memory and take places in it, so that nothing is allocated on the way.
 *
 * @module
 */

import { allFinite, bf16ArrayToF32, f16ArrayToF32, f32ArrayToF16 } from "../core/dtype.ts";
import { PANEL } from "../kernels/panels.ts";

/**
 * Works on ranges `[from, end)` of bytes, multiples of {@link PANEL} numbers and aligned to them,
 * and writes from byte `to` on.
 */
export interface HostKernels {
  /** What the places lie in. */
  readonly memory: ArrayBuffer;
  /** Not 0 if one of the f32 is infinite or NaN. */
  readonly infinite32: (from: number, end: number) => number;
  /** Not 0 if one of the f16 is infinite or NaN. */
  readonly infinite16: (from: number, end: number) => number;
  /** f16 to f32; only for finite numbers. */
  readonly widenF16: (from: number, end: number, to: number) => void;
  /** bf16 to f32. */
  readonly widenBf16: (from: number, end: number, to: number) => void;
  /** f32 to the nearest f16, ties to even; NaN becomes NaN or infinity. */
  readonly narrow: (from: number, end: number, to: number) => void;
  /** Packs a panel: 32 rows of `columns` f32 from `from` on. */
  readonly pack32: (from: number, to: number, columns: number) => void;
  /** Packs a panel of f16. */
  readonly pack16: (from: number, to: number, columns: number) => void;
}

/** Elements that `rows × columns` weights take up in panels. */
export function packedSize(rows: number, columns: number): number {
  return Math.ceil(rows / PANEL) * depthOf(columns) * PANEL;
}

function depthOf(columns: number): number {
  return Math.ceil(columns / 4) * 4;
}

/** The kernels in plain JavaScript: for any number of columns, and where nothing else may run. */
export function scalarKernels(memory: ArrayBuffer): HostKernels {
  const floats = (from: number, end: number) => new Float32Array(memory, from, (end - from) / 4);
  const halves = (from: number, end: number) => new Uint16Array(memory, from, (end - from) / 2);
  return {
    memory,
    infinite32: (from, end) => allFinite(floats(from, end)) ? 0 : 1,
    infinite16: (from, end) => allFinite(halves(from, end)) ? 0 : 1,
    widenF16(from, end, to) {
      f16ArrayToF32(halves(from, end), floats(to, to + 2 * (end - from)));
    },
    widenBf16(from, end, to) {
      bf16ArrayToF32(halves(from, end), floats(to, to + 2 * (end - from)));
    },
    narrow(from, end, to) {
      f32ArrayToF16(floats(from, end), halves(to, to + (end - from) / 2));
    },
    pack32(from, to, columns) {
      packPanel(
        new Uint32Array(memory, from, PANEL * columns),
        new Uint32Array(memory, to, PANEL * depthOf(columns)),
        columns,
      );
    },
    pack16(from, to, columns) {
      packPanel(
        new Uint16Array(memory, from, PANEL * columns),
        new Uint16Array(memory, to, PANEL * depthOf(columns)),
        columns,
      );
    },
  };
}

/** The outputs of an input one after the other: 32 rows are read at once, one place is written. */
function packPanel<Bits extends Uint32Array | Uint16Array>(
  rows: Bits,
  panel: Bits,
  columns: number,
): void {
  let to = 0;
  for (let k = 0; k < columns; k++) {
    for (let from = k; from < rows.length; from += columns) panel[to++] = rows[from];
  }
  panel.fill(0, to);
}
