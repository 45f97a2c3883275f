/**
 * WGSL for what all lanes of a software adapter share and read through windows of the uniform
 * address space (`window` of `core/kernel.ts`): how it is loaded, and how its addresses are made.
 *
 * A driver without an analysis of divergence takes an address for different in all lanes unless it
 * is made of constants, and reads lane by lane. But Mesa's llvmpipe (25.0) takes immediate data for the
 * same everywhere, at whatever place they are read. So an address is written in base 4 and each digit
 * looked up among immediates that hold 0, 1, 2 and 3: the sum is the address again, and known to be
 * shared, and what lies there is read once for all lanes.
 *
 * @module
 */

import { WINDOW_BYTES } from "../core/kernel.ts";
import { UNPACK } from "./quantized.ts";

/** Vectors of four in a window, at most: of 8-bit numbers. */
const MOST_VECTORS = WINDOW_BYTES / 4;

/** WGSL: `load_<name>(at)`, four neighbours in a window; addresses count vectors of four. */
export function windowLoader(name: string, { dtype }: { readonly dtype: string }): string {
  if (dtype === "u32") {
    return `${UNPACK}
       fn load_${name}(at: u32) -> vec4f { return unpack(${name}[at / 4u][at % 4u]); }`;
  }
  return dtype === "f16"
    ? `fn load_${name}(at: u32) -> vec4f {
         let i = at % 2u * 2u;
         let low = unpack2x16float(${name}[at / 2u][i]);
         return vec4f(low, unpack2x16float(${name}[at / 2u][i + 1u]));
       }`
    : `fn load_${name}(at: u32) -> vec4f { return ${name}[at]; }`;
}

/** WGSL: `same(x)`, the number `x` below {@link MOST_VECTORS}, known to be the same in all lanes. */
const SAME = (() => {
  const terms: string[] = [];
  for (let place = 1; place < MOST_VECTORS; place *= 4) {
    terms.push(`${place}u * digits[x / ${place}u % 4u]`);
  }
  return `fn same(x: u32) -> u32 { return ${terms.join(" + ")}; }`;
})();

/** WGSL that {@link walk} needs. */
export function walkDeclarations(immediates: boolean): string {
  return immediates ? SAME : "";
}

/** A walk through a window. */
export interface Walk {
  /** Whether addresses are built from immediate data. */
  readonly immediates: boolean;
  /** WGSL: the number of rows. */
  readonly rows: string;
  /** Rows of a round. */
  readonly step: number;
  /** Vectors from a row to the next. */
  readonly stride: number;
  /** What the address of a round's first row is called. */
  readonly address: string;
  /** WGSL: its first value. */
  readonly from: string;
}

/** WGSL: runs `body` for each round, which finds its first row in `k` and where that lies. */
export function walk(
  { immediates, rows, step, stride, address, from }: Walk,
  body: string,
): string {
  const round = `${stride * step}u`;
  if (!immediates) {
    return `
      var ${address} = ${from};
      for (var k = 0u; k < ${rows}; k += ${step}u) {
        ${body}
        ${address} += ${round};
      }`;
  }
  // The last digit changes in a loop of its own: it alone is looked up in each round.
  return `
      let first_${address} = same(${from});
      for (var k = 0u; k < ${rows};) {
        let four_${address} = first_${address} + same(k / ${step}u) * ${round};
        for (var digit = 0u; digit < 4u && k < ${rows}; digit++) {
          let ${address} = four_${address} + digits[digit] * ${round};
          ${body}
          k += ${step}u;
        }
      }`;
}
