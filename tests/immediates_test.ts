/** Immediate data: where they are, and that passes and plans have them. */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { hasImmediates, IMMEDIATE_BYTES } from "../core/immediates.ts";
import { u32 } from "../core/kernel.ts";

const device = await openDevice();
after(() => device.close());

describe("immediate data", () => {
  const has = (features: string[] | undefined, maxImmediateSize: number | undefined) =>
    hasImmediates(
      { wgslLanguageFeatures: features && new Set(features) } as unknown as GPU,
      { limits: { maxImmediateSize } } as unknown as GPUAdapter,
    );

  it("are used where both the language and the adapter have them", () => {
    assert.equal(has(["immediate_address_space"], 64), true);
    assert.equal(has(["immediate_address_space"], IMMEDIATE_BYTES), true);
    assert.equal(has(["subgroup_id"], 64), false);
    assert.equal(has(undefined, 64), false);
    for (const size of [undefined, 0, IMMEDIATE_BYTES - 4]) {
      assert.equal(has(["immediate_address_space"], size), false);
    }
  });

  it("are there after other passes, and in plans", async () => {
    if (!device.info.immediates) return assert.equal(device.info.implementation, "native");
    const out = device.empty([4], "u32");
    const ask = () =>
      device.dispatch("digits", {
        variant: "test",
        read: {},
        write: { out: { tensor: out, type: "u32" } },
        params: { times: u32(10) },
        workgroup: [4, 1, 1],
        workgroups: [1, 1, 1],
        immediates: true,
        main: () => `out[lane] = p.times * digits[lane];`,
      });
    ask();
    assert.deepEqual(await out.raw(), Uint32Array.of(0, 10, 20, 30));
    using plan = device.record(ask);
    for (let run = 0; run < 2; run++) {
      device.write(out, Uint32Array.of(1, 1, 1, 1));
      plan.run();
      assert.deepEqual(await out.raw(), Uint32Array.of(0, 10, 20, 30));
    }
    out.dispose();
  });
});
