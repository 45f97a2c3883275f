/**
 * Convolution in groups: one invocation sums one output, for groups have few channels, and no
 * product of theirs is large.
 *
 * @module
 */

import { type Launch, scalars, u32 } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";
import type { ConvAttributes } from "./conv_geometry.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

/**
 * Enqueues a convolution of x `[B, C, H, W]` with a weight `[O, C/groups, kh, kw]`; bias, embedding
 * and residual are optional.
 */
export function directConvolution(
  { inputs, output, attributes, dispatch }: Launch<ConvAttributes>,
): void {
  const { kernel: [kh, kw], stride, dilation, padding, groups, activation } = attributes;
  const [x, weight, bias, embedding, residual] = inputs as [Tensor, Tensor, ...(Tensor | null)[]];
  const [B, C, H, W] = x.shape;
  const [, O, outH, outW] = output.shape;
  const extras = Object.entries({ bias, embedding, residual }).filter(([, tensor]) => tensor);
  const count = B * O * outH * outW;
  dispatch({
    variant: `direct ${extras.map(([name]) => name)} ${activation}`,
    read: {
      x: scalars(x),
      weight: scalars(weight),
      ...Object.fromEntries(extras.map(([name, tensor]) => [name, scalars(tensor as Tensor)])),
    },
    write: { out: scalars(output) },
    params: {
      count: u32(count),
      inputs: u32(C / groups),
      outputs: u32(O / groups),
      C: u32(C),
      O: u32(O),
      H: u32(H),
      W: u32(W),
      outH: u32(outH),
      outW: u32(outW),
      kh: u32(kh),
      kw: u32(kw),
      strideY: u32(stride[0]),
      strideX: u32(stride[1]),
      dilationY: u32(dilation[0]),
      dilationX: u32(dilation[1]),
      top: u32(padding.top),
      left: u32(padding.left),
    },
    ...flatGrid(count),
    main: () => `
      ${FLAT_INDEX}
      if (i >= p.count) { return; }
      let j = i % p.outW;
      let y = i / p.outW % p.outH;
      let o = i / (p.outW * p.outH) % p.O;
      let b = i / (p.outW * p.outH * p.O);
      var v = ${bias ? `f32(bias[o])` : `0.0`} ${embedding ? `+ f32(embedding[b * p.O + o])` : ``};
      for (var c = 0u; c < p.inputs; c++) {
        let base = (b * p.C + o / p.outputs * p.inputs + c) * p.H * p.W;
        for (var u = 0u; u < p.kh; u++) {
          let iy = y * p.strideY + u * p.dilationY - p.top;
          if (iy >= p.H) { continue; }
          for (var w = 0u; w < p.kw; w++) {
            let ix = j * p.strideX + w * p.dilationX - p.left;
            if (ix < p.W) {
              v += f32(x[base + iy * p.W + ix])
                * f32(weight[((o * p.inputs + c) * p.kh + u) * p.kw + w]);
            }
          }
        }
      }
      ${residual ? `v += f32(residual[i]);` : ``}
      ${activation === "silu" ? `v = v / (1.0 + exp(-v));` : ``}
      out[i] = out_t(v);`,
  });
}
