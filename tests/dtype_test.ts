/** Element types on the host. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { f16BitsToF32, f32ToF16Bits } from "../core/dtype.ts";

describe("half precision on the host", () => {
  it("rounds as the hardware does, to the nearest and ties to even", () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = f16BitsToF32(bits);
      if (Number.isNaN(value)) continue;
      assert.equal(f32ToF16Bits(value), bits);
    }
    fc.assert(fc.property(fc.float({ noNaN: true, min: -70000, max: 70000 }), (value) => {
      const near = f16BitsToF32(f32ToF16Bits(value));
      const bits = f32ToF16Bits(Math.abs(value));
      if (bits >= 0x7bff) return; // at the edge of the range
      const step = Math.min(
        Math.abs(f16BitsToF32(bits + 1) - Math.abs(value)),
        bits ? Math.abs(f16BitsToF32(bits - 1) - Math.abs(value)) : Infinity,
      );
      assert.ok(Math.abs(near - value) <= step);
    }));
    assert.equal(f32ToF16Bits(65520), 0x7c00);
    assert.equal(f32ToF16Bits(65519), 0x7bff);
    assert.equal(f32ToF16Bits(2 ** -25), 0);
    assert.equal(f32ToF16Bits(2 ** -25 * 1.001), 1);
    assert.ok(Number.isNaN(f16BitsToF32(f32ToF16Bits(NaN))));
  });
});
