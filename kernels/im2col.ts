/**
 * im2col: the patches of an image that a convolution multiplies with its weights, as a matrix
 * `[images, C·kh·kw, pixels]`.
 *
 * @module
 */

import { type Launch, scalars, u32, vectors } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";

/** Rows and columns of padding on each side. */
export interface Padding {
  /** Rows above. */
  readonly top: number;
  /** Rows below. */
  readonly bottom: number;
  /** Columns before. */
  readonly left: number;
  /** Columns behind. */
  readonly right: number;
}

/** The window that moves over an image; pairs are (rows, columns). */
export interface Window {
  readonly kernel: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly dilation: readonly [number, number];
  readonly padding: Padding;
}

/** A piece of the output: some images, some of their rows. */
export interface Piece {
  readonly image: number;
  readonly images: number;
  readonly row: number;
  readonly rows: number;
}

const LANES = 64;

/**
 * Fills `patches` `[piece.images, C·kh·kw, columns]`, columns a multiple of four. One invocation
 * fills four neighbouring pixels of all rows that belong to one channel. Where four pixels lie in
 * one row of the output, each input is read once for all the taps of a window row that need it.
 */
export function im2col(
  dispatch: Launch<unknown>["dispatch"],
  x: Tensor,
  patches: Tensor,
  window: Window,
  outW: number,
  { image, images, row, rows }: Piece,
): void {
  const [, C, H, W] = x.shape;
  const { kernel: [kh, kw], stride, dilation, padding } = window;
  const groups = patches.shape[2] / 4;
  // Windows that move by one pixel are most of the work: a shader each, which reads less.
  const shared = outW % 4 === 0 && stride.every((n) => n === 1);
  dispatch({
    variant: shared ? `gather ${kh},${kw} ${dilation}` : "gather",
    read: { x: scalars(x) },
    write: { patches: vectors(patches) },
    params: {
      groups: u32(groups),
      C: u32(C),
      first: u32(image * C),
      H: u32(H),
      W: u32(W),
      outW: u32(outW),
      row: u32(row),
      pixels: u32(rows * outW),
      top: u32(padding.top),
      left: u32(padding.left),
      taps: u32(kh * kw),
      tapsX: u32(kw),
      strideY: u32(stride[0]),
      strideX: u32(stride[1]),
      dilationY: u32(dilation[0]),
      dilationX: u32(dilation[1]),
    },
    workgroup: [LANES, 1, 1],
    workgroups: [Math.ceil(groups / LANES), C, images],
    main: () => `
      let group = wg.x * ${LANES}u + lane;
      if (group >= p.groups) { return; }
      let plane = (p.first + wg.z * p.C + wg.y) * p.H * p.W;
      var at = (wg.z * p.C + wg.y) * p.taps * p.groups + group;
      ${shared ? sharedTaps(window) : SEPARATE_TAPS}`,
  });
}

/**
 * WGSL: the taps of four pixels of one output row, one apart, from one window of inputs a window row.
 */
function sharedTaps({ kernel: [kh, kw], dilation }: Window): string {
  const indexes = (count: number) => Array.from({ length: count }, (_, i) => i);
  return `
      let y = p.row + group * 4u / p.outW - p.top;
      let left = group * 4u % p.outW - p.left;
      for (var u = 0u; u < ${kh}u; u++) {
        // Unsigned: what lies before the first row or column wraps to a large number.
        let iy = y + u * ${dilation[0]}u;
        let line = plane + min(iy, p.H - 1u) * p.W;
        let inside = iy < p.H;
        ${
    indexes(4 + (kw - 1) * dilation[1]).map((i) => `
        let c${i} = left + ${i}u;
        let x${i} = select(0.0, f32(x[line + min(c${i}, p.W - 1u)]), inside && c${i} < p.W);`)
      .join("")
  }
        ${
    indexes(kw).map((v) => {
      const taps = indexes(4).map((n) => `x${n + v * dilation[1]}`);
      return `patches[at] = patches_t(vec4f(${taps.join(", ")})); at += p.groups;`;
    }).join("\n        ")
  }
      }`;
}

/** WGSL: the same for any window, where the four pixels may lie in different rows. */
const SEPARATE_TAPS = `
      for (var tap = 0u; tap < p.taps; tap++) {
        var v = vec4f();
        for (var n = 0u; n < 4u; n++) {
          let pixel = group * 4u + n;
          let iy = (p.row + pixel / p.outW) * p.strideY + tap / p.tapsX * p.dilationY - p.top;
          let ix = pixel % p.outW * p.strideX + tap % p.tapsX * p.dilationX - p.left;
          if (iy < p.H && ix < p.W && pixel < p.pixels) { v[n] = f32(x[plane + iy * p.W + ix]); }
        }
        patches[at] = patches_t(v);
        at += p.groups;
      }`;
