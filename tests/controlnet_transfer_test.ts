/**
 * ControlNets moved to another model: `control + (style − base)`.
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { describe, it } from "node:test";
import { diffusersToLdm } from "../bench/ldm_layout.ts";
import { f16ArrayToF32 } from "../core/dtype.ts";
import { WeightError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { TensorData } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import { ControlNetModel } from "../models/controlnet.ts";
import { openControlNet } from "../models/controlnet_file.ts";
import { distance } from "./clips.ts";
import { CONTROLNET, tensorsOf, WIDE_CONTROLNET } from "./control_files.ts";
import { controlNetSetup, residualsOf, withNet } from "./controlnet_setup.ts";
import { TINY } from "./tiny_single_file.ts";

const { device, write, own, plain } = await controlNetSetup();

describe("weights moved to another model", () => {
  const UNET = join(TINY, "unet/diffusion_pytorch_model.safetensors");
  const asNumbers = ({ data }: TensorData) => {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return f16ArrayToF32(new Uint16Array(bytes.slice().buffer));
  };

  it("are control + (style − base), in double precision, where both models have them", async () => {
    const base = await tensorsOf(UNET);
    const drawn = new Generator(8);
    const style = base.map((tensor): TensorData => {
      const step = drawn.randn([sizeOf(tensor.shape)]);
      const data = asNumbers(tensor).map((value, i) => value + 0.1 * step[i]);
      return { ...tensor, dtype: "F32", data };
    });
    const transfer = { base: UNET, style: await write(style) };
    const { source } = await openControlNet(CONTROLNET, { transfer });
    const byName = (tensors: TensorData[]) => new Map(tensors.map((item) => [item.name, item]));
    const [before, after] = [byName(base), byName(style)];
    let moved = 0;
    for (const tensor of own) {
      const { file, key } = source.tensors.get(tensor.name)!;
      const values = await file.readF32(key);
      const from = before.get(tensor.name);
      const to = after.get(tensor.name)?.data as Float32Array | undefined;
      const [w, b] = [asNumbers(tensor), from && asNumbers(from)];
      const want = b && to ? w.map((value, i) => value + (to[i] - b[i])) : w;
      assert.deepEqual(values, want, tensor.name);
      if (from) moved++;
    }
    await source.close();
    assert.equal(moved, own.filter(({ name }) => !name.startsWith("controlnet_")).length);
    const restyled = await withNet(device, CONTROLNET, residualsOf, { transfer });
    assert.ok(distance(restyled, plain) > 0.1);
  });

  it("stay where they are between equal models, whatever layout these have", async () => {
    const tensors = await tensorsOf(UNET);
    const single = await write(tensors.map((tensor) => ({
      ...tensor,
      ...diffusersToLdm("unet", tensor.name, tensor.shape),
    })));
    const transfer = { base: TINY, style: single };
    assert.deepEqual(await withNet(device, CONTROLNET, residualsOf, { transfer }), plain);
  });

  it("need models of the same extents", async () => {
    const before = device.memory().live;
    const load = (transfer: { base: string; style: string }) =>
      ControlNetModel.load(CONTROLNET, { device, transfer });
    const tensors = await tensorsOf(UNET);
    const lacking = await write(tensors.filter(({ name }) => name !== "conv_in.weight"));
    await assert.rejects(load({ base: TINY, style: lacking }), /conv_in\.weight .* is missing/);
    const wide = join(WIDE_CONTROLNET, "diffusion_pytorch_model.safetensors");
    await assert.rejects(
      load({ base: wide, style: TINY }),
      (error) => error instanceof WeightError && /must have its tensor/.test(error.message),
    );
    assert.equal(device.memory().live, before);
  });
});
