/**
 * What ControlNets add to a UNet (Zhang, Rao and Agrawala 2023, arXiv:2302.05543), and how the
 * contributions of several are put together.
 *
 * @module
 */

import { ShapeError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, cast, concat, narrow } from "../kernels/mod.ts";

/** What ControlNets add to a UNet: to each skip connection, and to the middle. */
export interface ControlResiduals {
  /**
   * One for each skip connection, in the order in which the way down makes them; those of the
   * outermost layers alone are the first.
   */
  readonly down: readonly Tensor[];
  /** For the output of the middle, unless they are those of the outermost layers alone. */
  readonly mid?: Tensor;
  /**
   * Whether the last of `down` is added to the input of the middle besides. diffusers 0.14, which
   * the code of Text2Video-Zero is written for, did so by overwriting that tensor.
   */
  readonly intoMiddle?: boolean;
}

/**
 * `x + residual`, in the type of `x`. A residual with fewer rows belongs to the last of them: what
 * is not guided stays as it is.
 *
 * @throws {ShapeError} if the residual has more rows than `x`, or other extents.
 */
export function addRows(x: Tensor, residual: Tensor): Tensor {
  const [rows, ...extents] = x.shape;
  const [guided, ...theirs] = residual.shape;
  if (guided > rows || String(extents) !== String(theirs)) {
    throw new ShapeError(
      `ControlNet: a residual for features of shape [${x.shape}] must have their channels and ` +
        `size and at most their rows, got [${residual.shape}]; it belongs to another UNet`,
    );
  }
  return x.device.scope(() => {
    const addend = cast(residual, x.dtype);
    if (guided === rows) return add(x, addend);
    const others = rows - guided;
    return concat([narrow(x, 0, 0, others), add(narrow(x, 0, others, guided), addend)], 0);
  });
}

/** The sum of the contributions of several ControlNets; `null` if there are none. */
export function sumResiduals(parts: readonly ControlResiduals[]): ControlResiduals | null {
  if (parts.length === 0) return null;
  const plus = (a: Tensor, b: Tensor) => a.shape[0] >= b.shape[0] ? addRows(a, b) : addRows(b, a);
  return parts.reduce((sum, part) => ({
    down: sum.down.map((tensor, i) => plus(tensor, part.down[i])),
    ...(sum.mid && part.mid && { mid: plus(sum.mid, part.mid) }),
  }));
}
