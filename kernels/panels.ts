/**
 * Panels: how weights are kept. A matrix of M outputs and K inputs becomes
 * `[⌈M/32⌉, ⌈K/4⌉·4, 32]`, filled up with zeros: 32 outputs lie side by side, panel after panel. A
 * product then reads its weights in the order of their addresses, whatever its tiles are. Weights of
 * 8 bits lie in the same order,
 * four in a word (`quantized.ts`).
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import {
  defineKernel,
  type Kernel,
  type Launch,
  run,
  scalars,
  u32,
  vectors,
} from "../core/kernel.ts";
import { formatShape, sizeOf } from "../core/shape.ts";
import type { DType } from "../core/dtype.ts";
import type { Tensor } from "../core/tensor.ts";
import type { Operand } from "./gemm.ts";

/** Outputs in a panel of weights. */
export const PANEL = 32;

/** Lines that an invocation packs: launching a workgroup costs as much as packing a few. */
const ROUNDS = 16;

/** Shape of `outputs × inputs` weights in panels; those of 8 bits lie in `u32`, four in each. */
export function panelShape(
  outputs: number,
  inputs: number,
  dtype: DType = "f32",
): [number, number, number] {
  const width = dtype === "u32" ? PANEL / 4 : PANEL;
  return [Math.ceil(outputs / PANEL), Math.ceil(inputs / 4) * 4, width];
}

/**
 * Enqueues the packing of matrices, `panels[z][p][k][i] = source(z, 32p + i, k)`, into panels
 * `[matrices, ⌈extent/width⌉, K4, width]` for a width that is a multiple of 4.
 *
 * @param batch Extents of the batch axes of the source; their product is the number of matrices.
 */
export function pack(
  dispatch: Launch<unknown>["dispatch"],
  { tensor, offset, major, step, batch: strides }: Operand,
  { extent, K, batch }: { extent: number; K: number; batch: readonly number[] },
  panels: Tensor,
): void {
  const [, count, depth, width] = panels.shape;
  const whole = major === 1 && extent % 4 === 0 &&
    [step, offset, ...strides].every((n) => n % 4 === 0);
  // Lanes follow the axis along which the source is contiguous.
  const along = major <= step ? "major" : "step";
  const lanes = 8;
  const wide = width / 4;
  const [across, down] = along === "major" ? [count * wide, depth] : [depth, count * wide];
  dispatch({
    family: "panels",
    variant: `pack ${along} ${whole} ${batch.length}`,
    read: { source: whole ? vectors(tensor) : scalars(tensor) },
    write: { panels: vectors(panels) },
    params: {
      offset: u32(offset),
      major: u32(major),
      step: u32(step),
      extent: u32(extent),
      K: u32(K),
      depth: u32(depth),
      wide: u32(wide),
      across: u32(across),
      down: u32(down),
      rounds: u32(ROUNDS),
      plane: u32(count * depth * wide),
      ...Object.fromEntries(batch.map((n, i) => [`extent${i}`, u32(n)])),
      ...Object.fromEntries(strides.map((n, i) => [`stride${i}`, u32(n)])),
    },
    workgroup: [lanes, 1, 1],
    workgroups: [Math.ceil(across / lanes), Math.ceil(down / ROUNDS), panels.shape[0]],
    main: () => `
      let column = wg.x * ${lanes}u + lane;
      if (column >= p.across) { return; }
      var base = p.offset;
      var rest = wg.z;
      ${
      batch.map((_, i) => `base += rest % p.extent${i} * p.stride${i}; rest /= p.extent${i};`)
        .reverse().join("\n")
    }
      for (var round = 0u; round < p.rounds; round++) {
        let line = wg.y * p.rounds + round;
        if (line >= p.down) { break; }
        let vector = ${along === "major" ? "column" : "line"};
        let k = ${along === "major" ? "line" : "column"};
        let at = base + k * p.step;
        let i = vector * 4u;
        var v = panels_t();
        ${
      whole
        ? `if (k < p.K && i < p.extent) { v = panels_t(source[(at + i) / 4u]); }`
        : `if (k < p.K) {
          for (var n = 0u; n < 4u; n++) {
            if (i + n < p.extent) { v[n] = panels_scalar(source[at + (i + n) * p.major]); }
          }
        }`
    }
        panels[wg.z * p.plane + (vector / p.wide * p.depth + k) * p.wide + vector % p.wide] = v;
      }`,
    declarations: () => `alias panels_scalar = ${panels.dtype};`,
  });
}

/**
 * Enqueues the packing of matrices, as {@link pack} does it, into a temporary: `[matrices, ⌈extent/width⌉, K4, width]`.
 */
export function panelsOf(
  { dispatch, temporary }: Pick<Launch<unknown>, "dispatch" | "temporary">,
  source: Operand,
  extents: { extent: number; K: number; batch: readonly number[] },
  width: number,
): Tensor {
  const { extent, K, batch } = extents;
  const shape = [sizeOf(batch), Math.ceil(extent / width), Math.ceil(K / 4) * 4, width];
  const { dtype } = source.tensor;
  const panels = temporary(shape, dtype);
  pack(dispatch, source, extents, panels);
  return panels;
}

/** The kernel behind {@link packPanels}. */
export const packPanelsKernel: Kernel<Record<never, never>> = defineKernel<Record<never, never>>({
  name: "pack_panels",
  inputs: ["weight"],
  output([weight]) {
    if (!weight || weight.shape.length < 2) {
      throw new ShapeError(
        `pack_panels: the weight must have axes [outputs, inputs, …], got ` +
          formatShape(weight?.shape ?? []),
      );
    }
    const [outputs] = weight.shape;
    return { shape: panelShape(outputs, sizeOf(weight.shape) / outputs), dtype: weight.dtype };
  },
  launch({ inputs, output, dispatch }) {
    const [weight] = inputs as [Tensor];
    const [extent] = weight.shape;
    const K = weight.size / extent;
    const source = { tensor: weight, offset: 0, major: K, step: 1, batch: [] };
    const panels = output.reshape([1, ...output.shape]);
    pack(dispatch, source, { extent, K, batch: [] }, panels);
    panels.dispose();
  },
  flops: () => 0,
  reference([weight], [shape], _, output) {
    const [outputs] = shape!;
    const K = sizeOf(shape!) / outputs;
    const [, depth] = output;
    const out = new Float64Array(sizeOf(output));
    for (let o = 0; o < outputs; o++) {
      const panel = Math.floor(o / PANEL) * depth * PANEL + o % PANEL;
      for (let k = 0; k < K; k++) out[panel + k * PANEL] = weight![o * K + k];
    }
    return out;
  },
  cases: [
    { shapes: [[64, 36]], attributes: {} },
    { shapes: [[5, 3, 3, 3]], attributes: {} },
    { shapes: [[70, 130]], attributes: {} },
  ],
});

/**
 * A weight as the products of the models take it: `[outputs, inputs, …]`, PyTorch's layout, becomes
 * `[⌈outputs/32⌉, ⌈inputs·…/4⌉·4, 32]`.
 *
 * @throws {ShapeError} if the weight has fewer than two axes.
 */
export function packPanels(weight: Tensor): Tensor {
  return run(packPanelsKernel, [weight], {});
}
