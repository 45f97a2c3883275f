/** Arithmetic of shapes. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { ShapeError } from "../core/errors.ts";
import {
  broadcastShapes,
  broadcastStrides,
  inferShape,
  normalizeAxis,
  sizeOf,
  stridesOf,
} from "../core/shape.ts";

describe("shapes", () => {
  const shape = fc.array(fc.integer({ min: 1, max: 5 }), { maxLength: 5 });

  it("broadcast with themselves, with ones, and commutatively", () => {
    fc.assert(fc.property(shape, (extents) => {
      assert.deepEqual(broadcastShapes("t", extents, extents), [...extents]);
      assert.deepEqual(broadcastShapes("t", extents.map(() => 1), extents), [...extents]);
    }));
    fc.assert(fc.property(shape, shape, (a, b) => {
      const of = (...shapes: number[][]) => {
        try {
          return broadcastShapes("t", ...shapes);
        } catch (error) {
          assert.ok(error instanceof ShapeError);
          return null;
        }
      };
      assert.deepEqual(of(a, b), of(b, a));
    }));
  });

  it("have broadcast strides that stay inside the tensor", () => {
    fc.assert(
      fc.property(shape, fc.array(fc.integer({ min: 2, max: 3 }), { maxLength: 2 }), (a, lead) => {
        const target = [...lead, ...a];
        const strides = broadcastStrides(a, target);
        const last = target.reduce((at, extent, i) => at + (extent - 1) * strides[i], 0);
        assert.equal(last, sizeOf(a) - 1);
        assert.deepEqual(strides.slice(lead.length), stridesOf(a));
      }),
    );
  });

  it("infer one open extent, or say why not", () => {
    fc.assert(fc.property(shape, fc.nat(4), (extents, at) => {
      const open = extents.map((extent, i) => i === at ? -1 : extent);
      assert.deepEqual(inferShape(open, sizeOf(extents)), [...extents]);
    }));
    assert.throws(() => inferShape([-1, -1], 4), ShapeError);
    assert.throws(() => inferShape([-1, 3], 4), ShapeError);
  });

  it("refuse axes outside the rank", () => {
    assert.equal(normalizeAxis("t", -1, 3), 2);
    for (const axis of [3, -4, 0.5, NaN]) {
      assert.throws(() => normalizeAxis("t", axis, 3), ShapeError);
    }
  });
});
