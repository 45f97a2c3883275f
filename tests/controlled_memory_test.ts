/**
 * Videos under control where memory is short, and the memory that they will take.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { MemoryError } from "../core/errors.ts";
import { ControlNetModel } from "../models/controlnet.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { memoryNeeded, outlineOf } from "../video/memory.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { distance, latentsOf } from "./clips.ts";
import { CONTROLNET, stripes } from "./control_files.ts";
import { controlled, PROMPT, QUICK } from "./controlled_setup.ts";
import { TINY } from "./tiny_single_file.ts";

const { device, sd, model } = await controlled();

describe("memory", () => {
  const options = { ...QUICK, frames: 5 };
  const five = [0, 1, 2, 3, 4].map((n) => stripes(n));

  async function on(memoryBudget?: number) {
    const other = await openDevice({ memoryBudget, poolBytes: 0 });
    const parts = await StableDiffusion.load(TINY, { device: other });
    const net = await ControlNetModel.load(CONTROLNET, { device: other });
    const { live: loaded } = other.memory();
    other.resetPeak();
    try {
      const controls = [{ model: net, frames: five }];
      const latents = await latentsOf(textToVideo(parts, PROMPT, { ...options, controls }));
      return { latents, peak: other.memory().peak, loaded };
    } finally {
      await parts.restoreTextEncoder();
      assert.equal(other.memory().live, loaded);
      net.dispose();
      parts.dispose();
      await other.close();
    }
  }

  it("that is short gives up kept maps, then makes groups smaller: not other frames", async () => {
    const { latents, peak, loaded } = await on();
    const tight = await on(Math.floor(0.86 * peak));
    assert.ok(tight.peak <= 0.86 * peak);
    assert.ok(distance(tight.latents, latents) < 1e-4);
    await assert.rejects(on(loaded + 2 ** 20), MemoryError);
  });

  it("is found in advance, with the nets", async () => {
    const outline = outlineOf(sd, [model]);
    const make = (parts: StableDiffusion, nets: readonly ControlNetModel[]) =>
      textToVideo(parts, PROMPT, {
        ...options,
        rows: 2,
        controls: nets.map((net) => ({ model: net, frames: five })),
      });
    const needed = await memoryNeeded(outline, device, make);
    const without = await memoryNeeded(
      outlineOf(sd),
      device,
      (parts) => textToVideo(parts, PROMPT, { ...options, rows: 2, motion: false }),
    );
    assert.ok(needed > without + 1e6, `${needed} and ${without}`);
    const exact = await openDevice({ memoryBudget: needed, poolBytes: 0 });
    const parts = await StableDiffusion.load(TINY, { device: exact });
    const net = await ControlNetModel.load(CONTROLNET, { device: exact });
    const clip = make(parts, [net]);
    for await (const _ of clip) break;
    clip.dispose();
    assert.ok(exact.memory().peak <= needed);
    await exact.close();
  });
});
