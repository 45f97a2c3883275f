/**
 * What elementwise kernels of several inputs share: one dispatch, and one reference, for NumPy's
 * broadcasting.
 *
 * @module
 */

import { type Dispatch, type Param, scalars, u32, vectors } from "../core/kernel.ts";
import { broadcastStrides, mergeAxes, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  FLAT_INDEX,
  flatGrid,
  flatPieces,
  laneTypes,
  listParams,
  stridedIndex,
  unravel,
} from "./wgsl.ts";

/** The elementwise function of a kernel, one and the same for equal types of its inputs. */
export interface Elementwise {
  /** WGSL: the value; the inputs' names are values of type `F` (`f32` or `vec4f`). */
  readonly expression: string;
  /** Functions that the expression calls, over the types of `laneTypes`. */
  readonly declarations?: string;
  /** Parameters that they read. */
  readonly params?: Readonly<Record<string, Param>>;
}

/**
 * Dispatches of `output = expression` for inputs that broadcast to the output's shape.
 *
 * Axes are merged as far as possible. Four neighbours are computed at once where they lie side by
 * side in the innermost axis; an input that repeats along it is read once and spread.
 */
export function broadcastDispatches(
  inputs: Readonly<Record<string, Tensor>>,
  output: Tensor,
  { expression, declarations = "", params = {} }: Elementwise,
): Dispatch[] {
  const names = Object.keys(inputs);
  const { extents, strides } = mergeAxes(
    output.shape,
    names.map((name) => broadcastStrides(inputs[name].shape, output.shape)),
  );
  const rank = extents.length;
  const last = rank - 1;
  const width = rank < 2 || extents[last] % 4 === 0 ? 4 : 1;
  const runs = (k: number) => strides[k][last] === 1;
  // A single axis is a flat run, which can be cut where a tensor is larger than a binding may be.
  const whole = rank < 2 ? [...names.filter((_, k) => runs(k)).map((n) => inputs[n]), output] : [];
  const pieces = whole.length
    ? flatPieces(whole)
    : [{ count: output.size, range: () => undefined }];
  const steps = strides.map((list, k) =>
    list.map((step, axis) => width === 4 && runs(k) && axis < last ? step / 4 : step)
  );
  const shape = rank ? extents.with(last, Math.ceil(extents[last] / width)) : extents;
  const pattern = names.map((_, k) => runs(k) ? "r" : "s").join("");
  return pieces.map(({ count, range }) => {
    const lanes = Math.ceil(count / width);
    const bind = (tensor: Tensor, run: boolean) => ({
      ...(run && width === 4 ? vectors(tensor) : scalars(tensor)),
      range: whole.includes(tensor) ? range(tensor) : undefined,
    });
    return {
      variant: `${rank} ${pattern}`,
      read: Object.fromEntries(names.map((name, k) => [`in_${name}`, bind(inputs[name], runs(k))])),
      write: { out: bind(output, true) },
      params: {
        lanes: u32(lanes),
        start: u32(0),
        ...params,
        ...listParams("e", shape),
        ...Object.assign({}, ...names.map((name, k) => listParams(`${name}_`, steps[k]))),
      },
      ...flatGrid(lanes),
      declarations: () => laneTypes(width) + declarations,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.lanes) { return; }
        ${unravel(rank)}
        ${
        names.map((name, k) => {
          const element = `in_${name}[${stridedIndex(rank, "start", `${name}_`)}]`;
          return `let ${name} = F(${runs(k) ? element : `f32(${element})`});`;
        }).join("\n")
      }
        out[i] = out_t(${expression});`,
    };
  });
}

/** `f` of the inputs' elements at every place of the output, by NumPy's broadcasting. */
export function broadcastReference(
  inputs: readonly (Float64Array | null)[],
  shapes: readonly (Shape | null)[],
  output: Shape,
  f: (...values: number[]) => number,
): Float64Array {
  const strides = shapes.map((shape) => broadcastStrides(shape ?? [], output));
  return Float64Array.from({ length: sizeOf(output) }, (_, i) => {
    const at = inputs.map(() => 0);
    let rest = i;
    for (let axis = output.length - 1; axis >= 0; axis--) {
      at.forEach((_, k) => at[k] += rest % output[axis] * strides[k][axis]);
      rest = Math.floor(rest / output[axis]);
    }
    return f(...inputs.map((x, k) => x?.[at[k]] ?? 0));
  });
}
