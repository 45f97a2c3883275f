/**
 * How normalisations walk through their input: by workgroups or by lanes, and where they read it,
 * which they do more than once.
 *
 * @module
 */

import { type Binding, type Launch, scalars, vectors } from "../core/kernel.ts";
import type { Tensor } from "../core/tensor.ts";
import { fitsTexels, texelLoader, type Texels } from "../core/texels.ts";
import { type RowForm, variantsOf } from "./variants.ts";

/** What a kernel of rows may be told. */
export interface RowAttributes {
  /** Workgroups as wide as on a GPU or not, whatever the adapter. For tests. */
  readonly wide?: boolean;
}

/** How an adapter reduces rows. */
export function rowForm({ device, attributes }: Launch<RowAttributes>): RowForm {
  const { rows } = variantsOf(device);
  if (attributes.wide === undefined) return rows;
  if (attributes.wide) return "wide";
  return rows === "wide" ? "lanes" : rows;
}

/** An input as a shader reads it. */
export interface Elements {
  readonly binding: Binding | Texels;
  /** Names the text below. */
  readonly variant: string;
  /** WGSL: `V`, the float type of an element, and `load_x(at)`. */
  readonly declarations: string;
}

/** The elements of `x`, numbers or vectors of four; of a part of it, if it is larger than a binding. */
export function elementsOf(
  launch: Launch<RowAttributes>,
  x: Tensor,
  width: 1 | 4,
  range?: Binding["range"],
): Elements {
  const V = `alias V = ${width === 4 ? "vec4f" : "f32"};`;
  if (rowForm(launch) === "texels" && width === 4 && !range && fitsTexels(x)) {
    return { binding: launch.texels(x), variant: "texels", declarations: V + texelLoader("x") };
  }
  return {
    binding: { ...(width === 4 ? vectors(x) : scalars(x)), range },
    variant: "",
    declarations: `${V} fn load_x(at: u32) -> V { return V(x[at]); }`,
  };
}
