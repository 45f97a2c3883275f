/**
 * Implicit im2col: a convolution as a matrix product whose right operand, the patches of the image,
 * exists only in the tiles of workgroups, which gather it while they stage it.
 *
 * @module
 */

import { scalars, u32 } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";
import type { Gemm, GemmForm, GemmLaunch, Reader } from "./gemm.ts";
import { matrixTiles } from "./gemm_matrix.ts";
import { workgroupTiles } from "./gemm_tiles.ts";
import type { Window } from "./im2col.ts";

/** Whether a form of the product can gather its patches itself. */
export function gathersPatches(form: GemmForm): form is "tiles" | "matrix" {
  return form === "tiles" || form === "matrix";
}

/**
 * Enqueues `out[image] = a · patches(x[image])`, in one dispatch for all images.
 *
 * @param x `[images, C, H, W]`.
 * @param product All of it but the right operand: K is `C·kh·kw`, N the pixels of an output.
 * @param outW Columns of an output.
 */
export function implicitConvolution(
  launch: GemmLaunch,
  form: "tiles" | "matrix",
  x: Tensor,
  window: Window,
  outW: number,
  product: Omit<Gemm, "b" | "form">,
): void {
  // Only its tensor is looked at; where its elements lie, the reader says.
  const b = { tensor: x, offset: 0, major: 1, step: 1, batch: [] };
  const multiply = form === "matrix" ? matrixTiles : workgroupTiles;
  multiply(launch, { ...product, b }, patchReader(x, window, outW));
}

/** Reads the patches of image `z` as `[C·kh·kw, pixels]`. */
function patchReader(x: Tensor, window: Window, outW: number): Reader {
  const [, C, H, W] = x.shape;
  const { kernel: [kh, kw], stride, dilation, padding } = window;
  const inRow = outW % 4 === 0;
  const pixels = [0, 1, 2, 3].map((i) =>
    inRow ? `pixel(line, left + ${i * stride[1]}u)` : `tap(plane, at.y + ${i}u, down, along)`
  );
  return {
    variant: `patches ${kh},${kw} ${stride} ${dilation} ${inRow}`,
    binding: scalars(x),
    params: {
      image: u32(C * H * W),
      H: u32(H),
      W: u32(W),
      outW: u32(outW),
      top: u32(padding.top),
      left: u32(padding.left),
    },
    // Unsigned: what lies before the first row or column wraps to a large number.
    declarations: `
      fn pixel(line: u32, x: u32) -> f32 {
        return select(0.0, f32(b[line + min(x, p.W - 1u)]), x < p.W);
      }
      fn tap(plane: u32, n: u32, down: u32, along: u32) -> f32 {
        let y = n / p.outW * ${stride[0]}u + down;
        let inside = pixel(plane + min(y, p.H - 1u) * p.W, n % p.outW * ${stride[1]}u + along);
        return select(0.0, inside, y < p.H);
      }
      fn load_b(at: vec3u) -> vec4f {
        let plane = at.x + at.z / ${kh * kw}u * (p.H * p.W);
        let down = at.z / ${kw}u % ${kh}u * ${dilation[0]}u - p.top;
        let along = at.z % ${kw}u * ${dilation[1]}u - p.left;
        ${
      inRow
        ? `let y = at.y / p.outW * ${stride[0]}u + down;
        if (y >= p.H) { return vec4f(); }
        let line = plane + y * p.W;
        let left = at.y % p.outW * ${stride[1]}u + along;`
        : ""
    }
        return vec4f(${pixels.join(", ")});
      }`,
    begin: "let offset_b = z * p.image;",
    at: (major, step) => `vec3u(offset_b, ${major}, ${step})`,
    next: (at, i) => `${at} + vec3u(0u, ${4 * i}u, 0u)`,
    step: "vec3u(0u, 0u, 1u)",
  };
}
