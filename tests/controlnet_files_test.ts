/**
 * The files that ControlNets come in, those that are none, and what inspection says of them.
 */

import assert from "node:assert/strict";
import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, it } from "node:test";
import { diffusersToLdm } from "../bench/ldm_layout.ts";
import { openDevice } from "../core/device.ts";
import { InputError, MemoryError, WeightError } from "../core/errors.ts";
import { openSafetensors, type TensorData } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import { ControlNetModel } from "../models/controlnet.ts";
import { openControlNet } from "../models/controlnet_file.ts";
import { neededFiles } from "../models/hub.ts";
import { inspectTensors } from "../models/inspect.ts";
import { CONTROLNET } from "./control_files.ts";
import { controlNetSetup, residualsOf, withNet } from "./controlnet_setup.ts";
import { TINY } from "./tiny_single_file.ts";

const { device, root, write, own, plain } = await controlNetSetup();

const ldm = own.map((tensor): TensorData => ({
  ...tensor,
  ...diffusersToLdm("controlnet", tensor.name, tensor.shape),
}));
const config = CONTROLNET;

describe("the files of a ControlNet", () => {
  it("have the names of diffusers or of the original code, with its prefix or without", async () => {
    assert.ok(ldm.every(({ name }) => name.startsWith("control_model.")));
    const bare = ldm.map((tensor) => {
      return { ...tensor, name: tensor.name.replace("control_model.", "") };
    });
    const others: TensorData[] = [
      "model.diffusion_model.out.2.bias",
      "first_stage_model.quant_conv.bias",
    ]
      .map((name) => ({ name, dtype: "F32", shape: [1], data: new Float32Array(1) }));
    for (const tensors of [own, ldm, bare, [...others, ...ldm]]) {
      assert.deepEqual(await withNet(device, await write(tensors), residualsOf, { config }), plain);
    }
  });

  it("may be a folder whose weights have a variant", async () => {
    const folder = join(root, "variant");
    await mkdir(folder);
    await cp(join(CONTROLNET, "config.json"), join(folder, "config.json"));
    const weights = await readFile(join(CONTROLNET, "diffusion_pytorch_model.safetensors"));
    await writeFile(join(folder, "diffusion_pytorch_model.fp16.safetensors"), weights);
    await withNet(device, folder, async (net) => {
      assert.equal(net.source, folder);
      assert.deepEqual(await residualsOf(net), plain);
    });
  });

  it("are what is fetched of a repository", () => {
    const repository = [
      ...["README.md", "config.json", "images/bird.png", "diffusion_pytorch_model.bin"],
      ...["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"],
    ];
    const [config, half, whole] = [1, 4, 5].map((i) => repository[i]);
    assert.deepEqual(neededFiles(repository), [config, whole]);
    assert.deepEqual(neededFiles(repository, "fp16"), [config, half]);
  });

  it("say how much memory they take when it is too little", async () => {
    const small = await openDevice({ memoryBudget: 2 ** 20 });
    await assert.rejects(
      ControlNetModel.load(CONTROLNET, { device: small }),
      (error) =>
        error instanceof MemoryError && /controlnet: its weights take 1\.3 MiB in f32/
          .test(error.message),
    );
    await small.close();
  });
});

describe("what is no ControlNet for Stable Diffusion 1.x is refused by name", () => {
  const marked = (...names: string[]): TensorData[] =>
    names.map((name) => ({ name, dtype: "F16", shape: [1], data: new Uint16Array(1) }));
  const wider = (tensors: TensorData[], width: number) =>
    tensors.map((tensor): TensorData => {
      if (!/attn2\.to_[kv]\.weight$/.test(tensor.name)) return tensor;
      const shape = [tensor.shape[0], width];
      return { ...tensor, shape, dtype: "F16", data: new Uint16Array(sizeOf(shape)) };
    });
  const files: [string, TensorData[], typeof InputError | typeof WeightError, RegExp][] = [
    ["SDXL's", wider(own, 2048), WeightError, /ControlNet for Stable Diffusion XL/],
    ["SD 2's", wider(ldm, 1024), WeightError, /ControlNet for Stable Diffusion 2\.x/],
    ["any other's", wider(ldm, 96), WeightError, /ControlNet for texts of width 96/],
    [
      "one without a tensor",
      own.filter(({ name }) => name !== "conv_in.weight"),
      WeightError,
      /lacks \(1\): controlnet\/conv_in\.weight/,
    ],
    ["one with more", [...ldm, ...marked("control_model.extra")], WeightError, /belong to no part/],
    ["differences", [...ldm, ...marked("difference")], InputError, /a ControlNet of differences/],
    [
      "a Control-LoRA",
      marked("lora_controlnet", "input_hint_block.0.weight"),
      InputError,
      /Control-LoRA/,
    ],
    ["LLLite", marked("lllite_unet_input_blocks_4_1.down.0.weight"), InputError, /LLLite/],
    ["a T2I-Adapter", marked("adapter.body.0.resnets.0.block1.weight"), InputError, /T2I-Adapter/],
    ["an old one", marked("body.0.block1.weight", "conv_in.weight"), InputError, /T2I-Adapter/],
    ["a LoRA", marked("x.lora_up.weight"), InputError, /this is LoRA/],
    ["anything", marked("hidden.weight"), InputError, /this is nothing known/],
  ];
  for (const [what, tensors, type, message] of files) {
    it(what, async () => {
      const file = await write(tensors);
      const before = device.memory().live;
      await assert.rejects(
        ControlNetModel.load(file, { device, config }),
        (error) =>
          error instanceof type && error.message.startsWith(file) && message.test(error.message),
      );
      assert.equal(device.memory().live, before);
    });
  }

  it("folders, pickles and configurations of something else", async () => {
    const folder = join(root, "folder");
    await mkdir(folder);
    const load = () => ControlNetModel.load(folder, { device });
    await assert.rejects(load(), /a ControlNet is a folder with config\.json .* no config\.json/);
    await writeFile(join(root, "net.pth"), "PK");
    await assert.rejects(
      ControlNetModel.load(join(root, "net.pth"), { device }),
      /Python pickle.*ControlNetModel/,
    );
    await assert.rejects(ControlNetModel.load(TINY, { device }), /this is a whole model/);
    const json = JSON.parse(await readFile(join(CONTROLNET, "config.json"), "utf8"));
    const changes: [object, RegExp][] = [
      [{ _class_name: "T2IAdapter" }, /this is a T2I-Adapter/],
      [{ _class_name: "UNet2DConditionModel" }, /not a ControlNetModel/],
      [{ cross_attention_dim: 2048 }, /this is SDXL/],
      [{ cross_attention_dim: 1024 }, /this is Stable Diffusion 2\.x/],
      [{ global_pool_conditions: true }, /"global_pool_conditions" must be false/],
      [{ conditioning_embedding_out_channels: "wide" }, /must be a list of whole numbers/],
      [{}, /there is only diffusion_pytorch_model\.bin, a Python pickle/],
    ];
    await writeFile(join(folder, "diffusion_pytorch_model.bin"), "PK");
    for (const [change, message] of changes) {
      await writeFile(join(folder, "config.json"), JSON.stringify({ ...json, ...change }));
      await assert.rejects(load(), message);
    }
  });
});

describe("inspection", () => {
  it("measures a ControlNet by its own extents", async () => {
    const file = await openSafetensors(await write(ldm));
    const { config } = await openControlNet(CONTROLNET, {}).then(async (found) => {
      await found.source.close();
      return found;
    });
    const found = inspectTensors(file.tensors, undefined, config);
    assert.deepEqual([found.kind, found.layout, found.title], ["controlnet", "ldm", "ControlNet"]);
    assert.deepEqual([...found.parts.keys()], ["controlnet"]);
    assert.deepEqual([found.missing, found.superfluous, found.misshapen], [[], [], []]);
    await file.close();
  });
});
