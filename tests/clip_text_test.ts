/** The text encoder where parity has no reference: rows of other lengths than 77. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { StableDiffusion } from "../models/mod.ts";

const sd = await StableDiffusion.load();
after(() => sd.device.close());

test("a token's state depends on what stands before it only", async () => {
  const ids = [3, 14, 15, 92, 65, 35, 89, 79, 32];
  const states = async (rows: number[][]) => {
    const output = sd.textEncoder.forward(rows);
    assert.deepEqual(
      output.hiddenStates.map(({ shape }) => shape[1]),
      output.hiddenStates.map(() => rows[0].length),
    );
    return await output.lastHiddenState.data() as Float32Array;
  };
  const whole = await states([ids, ids.toReversed()]);
  const width = whole.length / (2 * ids.length);
  for (let length = 1; length < ids.length; length++) {
    const part = await states([ids.slice(0, length)]);
    assert.equal(part.length, length * width);
    const error = part.reduce((most, x, i) => Math.max(most, Math.abs(x - whole[i])), 0);
    assert.ok(error < 1e-4, `${length} tokens: ${error}`);
  }
});
