/**
 * Loading checkpoints: every storage type and layout gives the same model, and damaged, incomplete
 * or foreign ones are refused by name.
 */

import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, rename, rm, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { f16ArrayToF32 } from "../core/dtype.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "../core/safetensors.ts";
import { openWeights, readJson } from "../models/checkpoint.ts";
import { type Json, unetConfig, vaeConfig } from "../models/config.ts";
import { type LoadOptions, StableDiffusion } from "../models/stable_diffusion.ts";
import { UNet2DConditionModel } from "../models/unet.ts";
import { AutoencoderKL } from "../models/vae.ts";

const device = await openDevice();
const root = await mkdtemp(join(tmpdir(), "framezero-checkpoint-"));
after(async () => {
  await rm(root, { recursive: true, force: true });
  await device.close();
});

const builtIn = fileURLToPath(new URL("../models/tiny-shapes", import.meta.url));
const STEM = "diffusion_pytorch_model";
await writeFile(join(root, "model.ckpt"), "PK");
let copies = 0;

/** A copy of the built-in model, to be spoilt. */
async function copyOfModel(): Promise<string> {
  const folder = join(root, String(copies++));
  await cp(builtIn, folder, { recursive: true });
  return folder;
}

/** Rewrites a weights file. */
async function rewrite(
  file: string,
  change: (tensors: TensorData[]) => TensorData[],
  to = file,
): Promise<void> {
  const source = await openSafetensors(file);
  const tensors: TensorData[] = [];
  for (const [name, { dtype, shape }] of source.tensors) {
    tensors.push({ name, dtype, shape, data: await source.read(name) });
  }
  await source.close();
  await writeSafetensors(to, change(tensors), { format: "pt" });
}

const values = ({ data }: TensorData) =>
  f16ArrayToF32(new Uint16Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength / 2));

function asF32(tensor: TensorData): TensorData {
  return { ...tensor, dtype: "F32", data: values(tensor) };
}

/** Half-precision weights cut to bfloat16, so that both types hold the same numbers. */
function asBf16(tensor: TensorData): TensorData {
  const words = new Uint32Array(values(tensor).buffer);
  return { ...tensor, dtype: "BF16", data: Uint16Array.from(words, (word) => word >>> 16) };
}

/** What a UNet says to a fixed input. */
async function predictionOf(folder: string, dtype: "f32" | "f16" = "f32"): Promise<Float32Array> {
  const config = unetConfig(await readJson(join(folder, "config.json")), "config.json");
  const source = await openWeights(folder, STEM);
  const unet = await UNet2DConditionModel.load(source, config, { device, dtype });
  await source.close();
  const ramp = (n: number) => Float32Array.from({ length: n }, (_, i) => Math.sin(i));
  const out = device.scope(() =>
    unet.forward(
      device.tensor(ramp(4 * 64), [1, 4, 8, 8]),
      500,
      device.tensor(ramp(5 * 96), [1, 5, 96]),
    )
  );
  const numbers = await out.data();
  out.dispose();
  unet.dispose();
  return numbers;
}

describe("weights", () => {
  it("give the same model in f16, f32, shards and under a variant's name", async () => {
    const before = device.memory().live;
    const model = await copyOfModel();
    const unet = join(model, "unet");
    const file = join(unet, `${STEM}.safetensors`);
    const expected = await predictionOf(unet);

    await rename(file, join(unet, `${STEM}.fp16.safetensors`));
    assert.deepEqual(await predictionOf(unet), expected, "fp16 variant");
    await rename(join(unet, `${STEM}.fp16.safetensors`), file);

    const names: string[] = [];
    await rewrite(file, (tensors) => {
      names.push(...tensors.map(({ name }) => name));
      return tensors.map(asF32);
    });
    assert.deepEqual(await predictionOf(unet), expected, "f32");

    const half = names.length >> 1;
    const shards = [names.slice(0, half), names.slice(half)];
    const map: Record<string, string> = {};
    for (const [i, shard] of shards.entries()) {
      const name = `${STEM}-0000${i + 1}-of-00002.safetensors`;
      for (const key of shard) map[key] = name;
      const keep = (tensors: TensorData[]) => tensors.filter((t) => shard.includes(t.name));
      await rewrite(file, keep, join(unet, name));
    }
    await unlink(file);
    const index = join(unet, `${STEM}.safetensors.index.json`);
    await writeFile(index, JSON.stringify({ weight_map: map }));
    assert.deepEqual(await predictionOf(unet), expected, "shards");

    for (
      const name of [`${STEM}.safetensors.index.fp16.json`, `${STEM}.fp16.safetensors.index.json`]
    ) {
      await rename(index, join(unet, name));
      assert.deepEqual(await predictionOf(unet), expected, name);
      await rename(join(unet, name), index);
    }

    await writeFile(index, JSON.stringify({ weight_map: { x: "../../etc/passwd" } }));
    await assert.rejects(predictionOf(unet), /shards must lie in the same folder/);
    assert.equal(device.memory().live, before);
  });

  it("in several variants: the asked one first, then the plain one, fp16, bf16", async () => {
    const unet = join(await copyOfModel(), "unet");
    const names = ["", ".fp16", ".bf16", ".non_ema"].map((name) => `${STEM}${name}.safetensors`);
    for (const name of names.slice(1)) await cp(join(unet, names[0]), join(unet, name));
    const taken = async (variant?: string) => {
      const source = await openWeights(unet, STEM, variant);
      await source.close();
      return source.name.slice(unet.length + 1);
    };
    assert.equal(await taken("non_ema"), names[3]);
    for (const name of names.slice(0, 3)) {
      assert.equal(await taken(), name);
      assert.equal(await taken("none"), name);
      assert.equal(await taken("bf16"), names[2]);
      await unlink(join(unet, name));
      if (name === names[1]) break;
    }
    assert.equal(await taken("fp16"), names[2]);
  });

  it("are those of the precision computed in, unless another is asked for", async () => {
    if (!device.info.f16) return assert.equal(device.info.f16, false);
    const model = await copyOfModel();
    const unet = join(model, "unet");
    // Whoever opens this file is told so.
    await writeFile(join(unet, `${STEM}.fp16.safetensors`), "");
    const load = (options: LoadOptions) => StableDiffusion.load(model, { device, ...options });
    (await load({})).dispose();
    (await load({ dtype: "f16", variant: "" })).dispose();
    await assert.rejects(load({ dtype: "f16" }), /\.fp16\.safetensors/);
    await assert.rejects(load({ variant: "fp16" }), /\.fp16\.safetensors/);
  });

  it("are read from bfloat16", async () => {
    const model = await copyOfModel();
    const file = join(model, "unet", `${STEM}.safetensors`);
    const cut: TensorData[] = [];
    await rewrite(file, (tensors) =>
      tensors.map((tensor) => {
        const bf16 = asBf16(tensor);
        cut.push(bf16);
        return bf16;
      }));
    const fromBf16 = await predictionOf(join(model, "unet"));
    await rewrite(file, () =>
      cut.map((tensor) => {
        const bits = tensor.data as Uint16Array;
        const words = Uint32Array.from(bits, (word) => word << 16);
        return { ...tensor, dtype: "F32", data: new Float32Array(words.buffer) };
      }));
    assert.deepEqual(await predictionOf(join(model, "unet")), fromBf16);
  });

  it("in half precision predict nearly the same", async () => {
    if (!device.info.f16) return assert.equal(device.info.f16, false);
    const exact = await predictionOf(join(builtIn, "unet"));
    const half = await predictionOf(join(builtIn, "unet"), "f16");
    const norm = (v: Float32Array) => Math.hypot(...v);
    const error = norm(half.map((value, i) => value - exact[i])) / norm(exact);
    assert.ok(error > 0 && error < 1e-2, `relative error ${error}`);
  });

  it("of an autoencoder may have the old names of its attention", async () => {
    const model = await copyOfModel();
    const folder = join(model, "vae");
    const decode = async () => {
      const config = vaeConfig(await readJson(join(folder, "config.json")), "config.json");
      const source = await openWeights(folder, STEM);
      const vae = await AutoencoderKL.load(source, config, { device });
      await source.close();
      const image = device.scope(() =>
        vae.decode(device.tensor(new Float32Array(64).fill(0.3), [1, 4, 4, 4]))
      );
      const pixels = await image.data();
      image.dispose();
      vae.dispose();
      return pixels;
    };
    const expected = await decode();
    const old: [RegExp, string][] = [
      [/\.to_q\./, ".query."],
      [/\.to_k\./, ".key."],
      [/\.to_v\./, ".value."],
      [/\.to_out\.0\./, ".proj_attn."],
    ];
    await rewrite(join(folder, `${STEM}.safetensors`), (tensors) =>
      tensors.map((tensor) => ({
        ...tensor,
        name: old.reduce((name, [now, then]) => name.replace(now, then), tensor.name),
      })));
    assert.deepEqual(await decode(), expected);
  });
});

describe("a spoilt checkpoint", () => {
  const UNET = join("unet", `${STEM}.safetensors`);
  const spoilt: [string, (folder: string) => Promise<void>, RegExp][] = [
    [
      "without one tensor",
      (folder) =>
        rewrite(
          join(folder, UNET),
          (all) => all.filter((t) => t.name !== "mid_block.resnets.1.conv2.weight"),
        ),
      /unet.*the tensor mid_block\.resnets\.1\.conv2\.weight of shape \[96,96,3,3\] is missing/,
    ],
    [
      "with tensors of another model",
      (folder) =>
        rewrite(join(folder, UNET), (all) => [...all, { ...all[0], name: "extra.weight" }]),
      /1 tensor\(s\) belong to no part of this model: extra\.weight/,
    ],
    [
      "with a tensor of another shape",
      (folder) =>
        rewrite(
          join(folder, UNET),
          (all) =>
            all.map((t) =>
              t.name === "conv_out.bias" ? { ...t, shape: [3], data: new Uint16Array(3) } : t
            ),
        ),
      /conv_out\.bias must have shape \[4\], it has \[3\]/,
    ],
    [
      "cut off in the middle",
      async (folder) => {
        const bytes = await readFile(join(folder, UNET));
        await writeFile(join(folder, UNET), bytes.subarray(0, bytes.length >> 1));
      },
      /unet.*safetensors/,
    ],
    [
      "with an empty file",
      (folder) => writeFile(join(folder, UNET), ""),
      /unet.*safetensors/,
    ],
    [
      "with a pickle in the place of weights",
      async (folder) => {
        await unlink(join(folder, UNET));
        await writeFile(join(folder, "unet", `${STEM}.bin`), "PK\x03\x04");
      },
      /only diffusion_pytorch_model\.bin, a Python pickle.*Convert.*save_pretrained/,
    ],
    [
      "without weights",
      (folder) => unlink(join(folder, UNET)),
      /no weights found, looked for diffusion_pytorch_model\.safetensors/,
    ],
    [
      "with a configuration that is no JSON",
      (folder) => writeFile(join(folder, "unet", "config.json"), "{"),
      /not a JSON configuration/,
    ],
    [
      "with parts of two models",
      async (folder) => {
        const golden = new URL("golden/t2v_zero_tiny/pipeline/unet", import.meta.url);
        await cp(fileURLToPath(golden), join(folder, "unet"), { recursive: true, force: true });
      },
      /the UNet wants a text of width 32, the text encoder makes 96/,
    ],
  ];
  for (const [what, spoil, message] of spoilt) {
    it(`${what} is refused, and leaves no memory behind`, async () => {
      const folder = await copyOfModel();
      await spoil(folder);
      const before = device.memory().live;
      await assert.rejects(
        StableDiffusion.load(folder, { device }),
        (error: unknown) => error instanceof WeightError && message.test(error.message),
      );
      assert.equal(device.memory().live, before);
    });
  }

  const places: [string, string, RegExp][] = [
    ["a folder that is not there", join(root, "nowhere"), /is none of them/],
    ["a folder without an index", join(builtIn, "unet"), /no model_index\.json.*config\.json/],
    ["a single file", join(builtIn, UNET), /this is a single file/],
    ["a pickle", join(root, "model.ckpt"), /a Python pickle.*Convert/],
  ];
  for (const [what, path, message] of places) {
    it(`that is ${what} is refused`, async () => {
      await assert.rejects(
        StableDiffusion.load(path, { device }),
        (error: unknown) => error instanceof InputError && message.test(error.message),
      );
    });
  }
});

describe("a configuration", () => {
  const of = async (change: Json) => {
    const json = await readJson(join(builtIn, "unet", "config.json"));
    return () => unetConfig({ ...json, ...change }, "unet/config.json");
  };
  const foreign: [Json, RegExp][] = [
    [{ _class_name: "UNet3DConditionModel" }, /a video UNet \(ModelScope/],
    [{ _class_name: "UNetMotionModel" }, /AnimateDiff/],
    [{ _class_name: "FluxTransformer2DModel" }, /FLUX/],
    [{ _class_name: "Something" }, /this is a Something, not a UNet2DConditionModel/],
    [{ addition_embed_type: "text_time" }, /SDXL/],
    [{ cross_attention_dim: 2048 }, /SDXL/],
    [{ cross_attention_dim: 1024 }, /Stable Diffusion 2/],
    [{ use_linear_projection: true }, /Stable Diffusion 2/],
    [{ time_cond_proj_dim: 256 }, /LCM-distilled/],
    [{ block_out_channels: [48, 0] }, /"block_out_channels" must be a list of whole numbers/],
    [{ block_out_channels: null }, /block_out_channels/],
    [{ layers_per_block: 1.5 }, /"layers_per_block" must be a whole number/],
    [{ norm_eps: "small" }, /"norm_eps" must be a number/],
    [{ act_fn: "mish" }, /"act_fn" must be "silu"/],
    [{ down_block_types: ["DownBlock2D"] }, /"down_block_types" must be 3 of/],
  ];
  for (const [change, message] of foreign) {
    it(`with ${JSON.stringify(change)} is refused: ${message.source}`, async () => {
      assert.throws(
        await of(change),
        (error: unknown) =>
          error instanceof WeightError && message.test(error.message) &&
          error.message.startsWith("unet/config.json"),
      );
    });
  }
});
