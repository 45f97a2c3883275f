/**
 * im2col: the patches of an image that a convolution multiplies with its weights, as a matrix
 * `[images, C·kh·kw, pixels]`.
 *
 * @module
 */

import { type Launch, scalars, u32, vectors } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";
import { texelLoader, type Texels } from "../core/texels.ts";

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

/** Windows that move by one pixel are most of the work: a shader each, which reads less. */
export function sharesTaps({ stride }: Window, outW: number): boolean {
  return outW % 4 === 0 && stride.every((n) => n === 1);
}

/**
 * Fills `patches` `[piece.images, C·kh·kw, columns]`, columns a multiple of four. One invocation
 * fills four neighbouring pixels of all rows that belong to one channel. Where four pixels lie in
 * one row of the output, each input is read once for all the taps of a window row that need it.
 *
 * @param texels Of `x`, if its rows consist of them, for what {@link sharesTaps}.
 */
export function im2col(
  dispatch: Launch<unknown>["dispatch"],
  x: Tensor,
  texels: Texels | null,
  patches: Tensor,
  window: Window,
  outW: number,
  { image, images, row, rows }: Piece,
): void {
  const [, C, H, W] = x.shape;
  const { kernel: [kh, kw], stride, dilation, padding } = window;
  const groups = patches.shape[2] / 4;
  const shared = sharesTaps(window, outW);
  const taps = `${kh},${kw} ${dilation}`;
  dispatch({
    variant: texels ? `texels ${taps} ${padding.left}` : shared ? `gather ${taps}` : "gather",
    read: { x: texels ?? scalars(x) },
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
    declarations: () => texels ? texelLoader("x") : "",
    main: () => `
      let group = wg.x * ${LANES}u + lane;
      if (group >= p.groups) { return; }
      let plane = (p.first + wg.z * p.C + wg.y) * p.H * p.W;
      var at = (wg.z * p.C + wg.y) * p.taps * p.groups + group;
      ${
      shared ? sharedTaps(window, texels ? texelRow(window) : scalarRow(window)) : SEPARATE_TAPS
    }`,
  });
}

const indexes = (count: number) => Array.from({ length: count }, (_, i) => i);

/** Inputs of a window row that four neighbouring pixels need. */
const inputsOf = ({ kernel: [, kw], dilation }: Window) => 4 + (kw - 1) * dilation[1];

/** WGSL: the taps of four pixels of one output row, one apart, from one window of inputs a window row. */
function sharedTaps(window: Window, row: string): string {
  const { kernel: [kh, kw], dilation } = window;
  return `
      let y = p.row + group * 4u / p.outW - p.top;
      for (var u = 0u; u < ${kh}u; u++) {
        // Unsigned: what lies before the first row or column wraps to a large number.
        let iy = y + u * ${dilation[0]}u;
        let line = plane + min(iy, p.H - 1u) * p.W;
        let inside = iy < p.H;
        ${row}
        ${
    indexes(kw).map((v) => {
      const taps = indexes(4).map((n) => `x${n + v * dilation[1]}`);
      return `patches[at] = patches_t(vec4f(${taps.join(", ")})); at += p.groups;`;
    }).join("\n        ")
  }
      }`;
}

/** WGSL: `x0`, `x1`, …, the inputs of a window row, read one by one. */
function scalarRow(window: Window): string {
  return indexes(inputsOf(window)).map((i) => `
        let c${i} = group * 4u % p.outW - p.left + ${i}u;
        let x${i} = select(0.0, f32(x[line + min(c${i}, p.W - 1u)]), inside && c${i} < p.W);`)
    .join("");
}

/** WGSL: the same from texels, which begin at multiples of four: the inputs begin `skipped` behind. */
function texelRow(window: Window): string {
  const count = inputsOf(window);
  const before = Math.ceil(window.padding.left / 4);
  const skipped = 4 * before - window.padding.left;
  return indexes(Math.ceil((skipped + count) / 4)).map((i) => `
        let c${i} = group * 4u % p.outW / 4u - ${before}u + ${i}u;
        let t${i} = select(
          vec4f(), load_x(line / 4u + min(c${i}, p.W / 4u - 1u)), inside && c${i} < p.W / 4u);`)
    .join("") +
    indexes(count).map((i) => `
        let x${i} = t${(skipped + i) >> 2}.${"xyzw"[(skipped + i) & 3]};`).join("");
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
