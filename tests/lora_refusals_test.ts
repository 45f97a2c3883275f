/**
 * LoRA files that do not fit are refused, and the message says what they are.
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { encodeSafetensors } from "../core/safetensors.ts";
import { openWeights, stemOf } from "../models/checkpoint.ts";
import { closeAdapters, mergedWeights, openAdapters } from "../models/lora.ts";
import {
  BLOCK,
  configs,
  type Layer,
  layer,
  loraFile,
  loraTensors,
  type Naming,
  NAMINGS,
  processors,
  TEXT,
  tinyLayer,
} from "./lora_files.ts";
import { TINY } from "./tiny_single_file.ts";

const device = await openDevice();
after(() => device.close());

const UNET_STEM = stemOf("unet");
const Q = tinyLayer("unet", `${BLOCK}.attn1.to_q`, { alpha: 1.5 });
const changedNames = (naming: Naming, change: (key: string) => string) =>
  new Uint8Array(encodeSafetensors(
    loraTensors([Q], naming).map((tensor) => ({ ...tensor, name: change(tensor.name) })),
  ));
const withTensor = (name: string, shape: number[], value = 0) =>
  new Uint8Array(encodeSafetensors([
    ...loraTensors([Q], NAMINGS.kohya),
    {
      name,
      dtype: "F32",
      shape,
      data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value),
    },
  ]));
const textLayer = (width: number, part: Layer["part"] = "unet") =>
  part === "unet"
    ? layer(part, `${BLOCK}.attn2.to_k`, [32, width])
    : layer(part, `${TEXT}.self_attn.q_proj`, [width, width]);
const QKEY = NAMINGS.kohya(Q, "alpha").replace(/\.alpha$/, "");

const REFUSED: readonly (readonly [string, Uint8Array, RegExp])[] = [
  ["SD 2 by its UNet", loraFile([textLayer(1024)]), /made for Stable Diffusion 2\.x;/],
  ["SD 2 by its text encoder", loraFile([textLayer(1024, "text_encoder")], processors), /2\.x;/],
  ["SDXL by its UNet", loraFile([textLayer(2048)], NAMINGS.PEFT), /for Stable Diffusion XL;/],
  [
    "SDXL by its names",
    withTensor("lora_te2_x.lora_up.weight", [1, 1]),
    /for Stable Diffusion XL;/,
  ],
  ["another width", loraFile([textLayer(80)]), /a model that reads texts of width 80/],
  [
    "FLUX",
    withTensor("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", [4, 8]),
    /FLUX or another diffusion transformer/,
  ],
  [
    "AnimateDiff",
    withTensor("unet.down_blocks.0.motion_modules.0.to_q.lora_A.weight", [4, 8]),
    /a motion LoRA/,
  ],
  ["DoRA by kohya", withTensor(`${QKEY}.dora_scale`, [1]), /this is a DoRA .*framezero merges/],
  [
    "DoRA by PEFT",
    withTensor("unet.x.lora_magnitude_vector.default.weight", [1]),
    /this is a DoRA/,
  ],
  ["LoHa", withTensor(`${QKEY}.hada_w1_a`, [1]), /this is a LoHa .*hada_w1_a/],
  ["LoKr", withTensor(`${QKEY}.lokr_w2`, [1]), /this is a LoKr/],
  ["biases", withTensor("unet.x.lora_B.bias", [1]), /this is a LoRA with biases/],
  [
    "names that match nothing",
    changedNames(NAMINGS.kohya, (key) => key.replace("attn1", "attn7")),
    /3 of 3 match none: lora_unet_up_blocks_1_\w+_attn7_to_q\.lora_down\.weight, /,
  ],
  ["a stray tensor", withTensor("emb_params", [1]), /1 of 4 match none: emb_params;/],
  ["a lone factor", withTensor("unet.conv_in.lora.up.weight", [8, 3]), /there is only unet\.conv/],
  [
    "a weight twice",
    withTensor(NAMINGS.diffusers(Q, "up"), [32, 3]),
    /changed once, but .* mean the same/,
  ],
  [
    "another shape",
    loraFile([layer("unet", "conv_in", [8, 4, 1, 1])]),
    /must have shape \[3,4,3,3\] for a rank of 3 and a weight of \[\d+,4,3,3\], it has \[3,4,1,1\]/,
  ],
  ["a vector as α", withTensor("unet.conv_in.alpha", [2]), /only unet\.conv_in\.alpha/],
  [
    "metadata that is no JSON",
    loraFile([Q], NAMINGS.kohya, { lora_adapter_metadata: "{" }),
    /must be a JSON object/,
  ],
  [
    "an α that is no number",
    loraFile([Q], NAMINGS.kohya, { lora_adapter_metadata: '{"unet.lora_alpha": "8"}' }),
    /lora_alpha of .* must be a number, it is "8"/,
  ],
  ["no safetensors file", new Uint8Array(40), /header length/],
];

describe("refused are", () => {
  for (const [title, file, message] of REFUSED) {
    it(title, async () => {
      await assert.rejects(openAdapters([{ file }], configs), (error: Error) => {
        assert.ok(error instanceof WeightError, String(error));
        assert.match(error.message, message);
        return true;
      });
    });
  }

  it("a whole model", async () => {
    const file = join(TINY, "unet", `${UNET_STEM}.safetensors`);
    await assert.rejects(
      openAdapters([{ file }], configs),
      (error: Error) =>
        error instanceof InputError && /the UNet alone.*--model/.test(error.message),
    );
  });

  it("factors that are not finite", async () => {
    const file = loraFile([{ ...Q, up: Q.up.map(() => NaN) }]);
    const adapters = await openAdapters([{ file }], configs);
    const source = await openWeights(join(TINY, "unet"), UNET_STEM);
    const merged = mergedWeights(source, "unet", adapters, device);
    const entry = merged.tensors.get(`${Q.module}.weight`)!;
    await assert.rejects(entry.file.readF32(entry.key), /lora_up\.weight must hold finite numbers/);
    await merged.close();
    await closeAdapters(adapters);
  });
});
