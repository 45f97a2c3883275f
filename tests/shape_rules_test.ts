/**
 * The shape rule of every kernel, on its own cases and on what random changes make of them: it
 * answers with a legal shape, or with a ShapeError that names the kernel.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { ShapeError } from "../core/errors.ts";
import { type Kernel, registeredKernels, type TensorSpec } from "../core/kernel.ts";
import "../kernels/mod.ts";

type Specs = (TensorSpec | null)[];

/** A change of one extent, one rank, or one input. */
const change = fc.record({
  input: fc.nat(5),
  kind: fc.constantFrom("extent", "longer", "shorter", "absent", "scalar"),
  axis: fc.nat(5),
  extent: fc.integer({ min: 1, max: 9 }),
});

interface Change {
  readonly input: number;
  readonly kind: string;
  readonly axis: number;
  readonly extent: number;
}

/** `optional[i]`: whether some case leaves input i out. */
function changed(specs: Specs, optional: readonly boolean[], changes: Change[]): Specs {
  const out = [...specs];
  for (const { input, kind, axis, extent } of changes) {
    const at = input % out.length;
    const spec = out[at];
    if (!spec) continue;
    const shape = [...spec.shape];
    if (kind === "extent" && shape.length) shape[axis % shape.length] = extent;
    if (kind === "longer") shape.splice(axis % (shape.length + 1), 0, extent);
    if (kind === "shorter") shape.splice(axis % Math.max(1, shape.length), 1);
    if (kind === "scalar") shape.length = 0;
    if (kind !== "absent") out[at] = { shape, dtype: spec.dtype };
    else if (optional[at]) out[at] = null;
  }
  return out;
}

function answer(
  kernel: Kernel<unknown>,
  specs: Specs,
  attributes: unknown,
): readonly number[] | null {
  try {
    return kernel.output(specs, attributes).shape;
  } catch (error) {
    assert.ok(error instanceof ShapeError, `${kernel.name} threw ${error}`);
    assert.ok(error.message.length > 20, error.message);
    return null;
  }
}

describe("the shape rule", () => {
  for (const kernel of registeredKernels()) {
    it(`of ${kernel.name} accepts its cases and stands random changes`, () => {
      assert.ok(kernel.cases.length > 0, "a kernel has cases");
      const optional = kernel.cases[0].shapes.map((_, i) =>
        kernel.cases.some(({ shapes }) => shapes[i] === null)
      );
      for (const { shapes, attributes, dtypes } of kernel.cases) {
        const specs = shapes.map((shape, i): TensorSpec | null =>
          shape && { shape, dtype: dtypes?.[i] ?? "f32" }
        );
        const shape = answer(kernel, specs, attributes);
        assert.ok(shape, "its own cases are legal");
        const flops = kernel.flops(specs, { shape, dtype: "f32" }, attributes);
        assert.ok(Number.isFinite(flops) && flops >= 0, `FLOPs ${flops}`);
        fc.assert(
          fc.property(fc.array(change, { minLength: 1, maxLength: 3 }), (changes) => {
            const out = answer(kernel, changed(specs, optional, changes), attributes);
            assert.ok(
              out === null || out.every((n) => Number.isSafeInteger(n) && n >= 1),
              `${JSON.stringify(changed(specs, optional, changes))} gives [${out}]`,
            );
          }),
          { numRuns: 60, seed: 7 },
        );
      }
    });
  }
});
