/**
 * Guidance over three rows: the formula of InstructPix2Pix, and what a tiny model predicts by it.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { concat, linearCombination, narrow, std } from "../kernels/mod.ts";
import { guidanceRows, type GuidanceScales } from "../video/guidance.ts";
import { GuidedUNet, type GuidedUNetOptions } from "../video/guided_unet.ts";
import { largest } from "./start_image_setup.ts";
import { editor, INSTRUCTION } from "./tiny_edit_model.ts";

const { device, sd } = await editor();

describe("guidance rows", () => {
  const scale = fc.double({ min: 0, max: 20, noNaN: true });

  it("are the formula of InstructPix2Pix, without those that do not count", () => {
    fc.assert(fc.property(scale, fc.oneof(scale, fc.constant(1)), (s, sI) => {
      const rows = guidanceRows({ guidanceScale: s, imageGuidanceScale: sI });
      const [none, image, both] = [3, 5, 11];
      const noise = (row: typeof rows[number]) =>
        row.text === "prompt" ? both : row.image ? image : none;
      const sum = rows.reduce((total, row) => total + row.weight * noise(row), 0);
      const want = none + s * (both - image) + sI * (image - none);
      assert.ok(Math.abs(sum - want) < 1e-9, `${sum}, ${want}`);
      assert.equal(rows.at(-1)?.text, "prompt");
      assert.ok(rows.slice(0, -1).every(({ weight }) => weight !== 0));
    }));
  });

  it("are those of classifier-free guidance without an image", () => {
    fc.assert(fc.property(scale, (s) => {
      const rows = guidanceRows({ guidanceScale: s });
      assert.deepEqual(rows.map(({ weight }) => weight), s > 1 ? [1 - s, s] : [1]);
      assert.ok(rows.every(({ image }) => image));
    }));
  });

  it("are as many as the scales need", () => {
    const count = (guidanceScale: number, imageGuidanceScale: number) =>
      guidanceRows({ guidanceScale, imageGuidanceScale }).length;
    assert.deepEqual([count(7.5, 1.5), count(7.5, 1), count(1.5, 1.5), count(1, 1)], [3, 2, 2, 1]);
  });
});

describe("the guided noise", () => {
  const cells = [8, 8] as const;
  const shape = [2, 8, ...cells];
  const x = device.tensor(new Generator(1).randn(shape), shape);
  const { hiddenStates: texts } = sd.encodePrompt(["blurry", INSTRUCTION]);
  after(() => [x, texts].forEach((tensor) => tensor.dispose()));

  /** What the model predicts of all frames at once under one condition. */
  function row(text: "prompt" | "negative", image: boolean): Tensor {
    const words = narrow(texts, 0, text === "prompt" ? 1 : 0, 1);
    const shown = linearCombination([image ? 1 : 0], [narrow(x, 1, 4, 4)]);
    const sample = concat([narrow(x, 1, 0, 4), shown], 1);
    return sd.unet.forward(sample, 501, words, { frames: { mode: "first", frames: 2 } });
  }

  async function guided(options: Omit<GuidedUNetOptions, "crossFrame">): Promise<Float32Array> {
    const text = device.scope(() =>
      concat(
        guidanceRows(options).map(({ text }) => narrow(texts, 0, text === "prompt" ? 1 : 0, 1)),
        0,
      )
    );
    const unet = new GuidedUNet(sd.unet, text, cells, { crossFrame: true, ...options });
    text.dispose();
    const noise = await unet.predict(x, 501, 0, () => Promise.resolve());
    try {
      return await noise.data();
    } finally {
      noise.dispose();
      unet.dispose();
    }
  }

  async function formula({ guidanceScale: s, imageGuidanceScale: sI = 1 }: GuidanceScales) {
    const noise = device.scope(() =>
      linearCombination(
        [1 - sI, sI - s, s],
        [row("negative", false), row("negative", true), row("prompt", true)],
      )
    );
    const values = await noise.data();
    noise.dispose();
    return values;
  }

  it("is that of three rows, however they are grouped", async () => {
    for (const [imageGuidanceScale, rows] of [[1.5, undefined], [1.5, 1], [0.5, 6], [1, 3]]) {
      const scales = { guidanceScale: 7.5, imageGuidanceScale };
      const far = largest(await guided({ ...scales, rows }), await formula(scales));
      assert.ok(far < 2e-3, `image guidance ${imageGuidanceScale}, rows ${rows}: ${far}`);
    }
  });

  it("weighs as told where a scale is below one", async () => {
    const scales = { guidanceScale: 0.5, imageGuidanceScale: 0.25 };
    assert.ok(largest(await guided(scales), await formula(scales)) < 2e-3);
  });

  it("with both scales 1 is exactly what the model predicts with text and image", async () => {
    const want = device.scope(() => row("prompt", true));
    const one = await guided({ guidanceScale: 1, imageGuidanceScale: 1 });
    assert.ok(largest(one, await want.data()) < 1e-4);
    const alone = await guided({ guidanceScale: 1 });
    assert.deepEqual(one, alone);
    want.dispose();
  });

  it("gets the spread of the row with text and image when it is rescaled", async () => {
    const scales = { guidanceScale: 7.5, imageGuidanceScale: 1.5, guidanceRescale: 1 };
    const spread = async (values: Float32Array) => {
      const result = device.scope(() =>
        std(device.tensor(Float32Array.from(values), [2, 4, ...cells]), [1, 2, 3])
      );
      try {
        return await result.data();
      } finally {
        result.dispose();
      }
    };
    const positive = device.scope(() => row("prompt", true));
    const want = await spread(await positive.data());
    assert.ok(largest(await spread(await guided(scales)), want) < 1e-3);
    positive.dispose();
  });

  it("needs the text of every row", () => {
    assert.throws(
      () =>
        new GuidedUNet(sd.unet, texts, cells, {
          guidanceScale: 7.5,
          imageGuidanceScale: 1.5,
          crossFrame: true,
        }),
      /texts of 3 rows, got 2/,
    );
  });
});
