/**
 * ControlNets: what they add to a UNet, the files that they come in, and those that are none.
 */

import assert from "node:assert/strict";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { diffusersToLdm } from "../bench/ldm_layout.ts";
import { openDevice } from "../core/device.ts";
import { f16ArrayToF32 } from "../core/dtype.ts";
import { InputError, MemoryError, ShapeError, WeightError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { narrow } from "../kernels/mod.ts";
import { addRows, type ControlResiduals, sumResiduals } from "../models/control_residuals.ts";
import { ControlNetModel } from "../models/controlnet.ts";
import { type ControlNetOptions, openControlNet } from "../models/controlnet_file.ts";
import { neededFiles } from "../models/hub.ts";
import { inspectTensors } from "../models/inspect.ts";
import { SD15_CONTROLNET } from "../models/sd15.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { controlNetStateDict } from "../models/state_dict.ts";
import { CONTROLNET, controlTensors, tensorsOf, WIDE_CONTROLNET } from "./control_files.ts";
import { TINY } from "./tiny_single_file.ts";

const device = await openDevice();
const root = await mkdtemp(join(tmpdir(), "framezero-controlnet-"));
const own = await controlTensors();
after(async () => {
  await rm(root, { recursive: true, force: true });
  await device.close();
});

let written = 0;

/** Writes a single file. */
async function write(tensors: readonly TensorData[]): Promise<string> {
  const file = join(root, `net-${written++}.safetensors`);
  await writeSafetensors(file, [...tensors]);
  return file;
}

const random = new Generator(3);
const SHAPE = [4, 4, 12, 12];
const latents = random.randn(SHAPE);
const words = random.randn([2, 77, 32]);
const pixels = random.rand([2, 3, 96, 96]);

/** Runs `body` with the inputs above: two guidance rows of two frames. */
function withInputs<T>(body: (x: Tensor, text: Tensor, maps: Tensor) => T): T {
  return device.scope(() =>
    body(
      device.tensor(latents, SHAPE),
      device.tensor(words, [2, 77, 32]),
      device.tensor(pixels, [2, 3, 96, 96]),
    )
  );
}

/** All residuals, one after the other. */
async function numbersOf({ down, mid }: ControlResiduals): Promise<Float32Array> {
  const tensors = [...down, ...(mid ? [mid] : [])];
  const parts: number[] = [];
  for (const tensor of tensors) parts.push(...await tensor.data());
  for (const tensor of tensors) tensor.dispose();
  return Float32Array.from(parts);
}

async function residualsOf(net: ControlNetModel): Promise<Float32Array> {
  return await numbersOf(
    withInputs((x, text, maps) => net.forward(x, 501, text, net.embed(maps))),
  );
}

/** Loads a net, hands it to `body`, and sees that nothing of it is left. */
async function using<T>(
  location: string,
  body: (net: ControlNetModel) => Promise<T>,
  options: Partial<ControlNetOptions> = {},
): Promise<T> {
  const before = device.memory().live;
  const net = await ControlNetModel.load(location, { device, ...options });
  try {
    return await body(net);
  } finally {
    net.dispose();
    assert.equal(device.memory().live, before, "everything is freed");
  }
}

function distance(a: Float32Array, b: Float32Array): number {
  assert.equal(a.length, b.length);
  let [error, size] = [0, 0];
  a.forEach((value, i) => {
    error += (value - b[i]) ** 2;
    size += b[i] ** 2;
  });
  return Math.sqrt(error / size);
}

const plain = await using(CONTROLNET, residualsOf);

describe("a ControlNet", () => {
  it("of SD 1.5 has its published size", () => {
    const shapes = [...controlNetStateDict(SD15_CONTROLNET).values()];
    assert.equal(shapes.length, 340);
    assert.equal(shapes.reduce((sum, shape) => sum + sizeOf(shape), 0), 361_279_120);
  });

  it("repeats maps for the guidance rows, and texts for the frames", async () => {
    const apart = await using(CONTROLNET, async (net) => {
      const rows = withInputs((x, text, maps) =>
        [0, 1, 2, 3].map((row) => {
          const one = (tensor: Tensor, i: number) => narrow(tensor, 0, i, 1);
          const embedded = net.embed(one(maps, row & 1));
          return net.forward(one(x, row), 501, one(text, row >> 1), embedded);
        })
      );
      return await Promise.all(rows.map(numbersOf));
    });
    const whole = await using(CONTROLNET, async (net) => {
      const made = withInputs((x, text, maps) => net.forward(x, 501, text, net.embed(maps)));
      return await Promise.all([...made.down, made.mid!].map((tensor) => tensor.data()))
        .finally(() => [...made.down, made.mid!].forEach((tensor) => tensor.dispose()));
    });
    for (let row = 0; row < 4; row++) {
      const part = whole.flatMap((values) => {
        const size = values.length / 4;
        return [...values.subarray(row * size, (row + 1) * size)];
      });
      assert.ok(distance(apart[row], Float32Array.from(part)) < 1e-5, `row ${row}`);
    }
  });

  it("scales its residuals; in guess mode from a tenth to all", async () => {
    await using(CONTROLNET, async (net) => {
      const scaled = (options: { scale?: number; guessMode?: boolean }) =>
        withInputs((x, text, maps) => net.forward(x, 501, text, net.embed(maps), options));
      const half = await numbersOf(scaled({ scale: 0.5 }));
      assert.deepEqual(half, plain.map((value) => value / 2));
      const { down, mid } = scaled({ scale: 2, guessMode: true });
      const all = [...down, mid!];
      let at = 0;
      for (const [i, tensor] of all.entries()) {
        const values = await tensor.data();
        const factor = 2 * 10 ** (i / 12 - 1);
        const want = plain.subarray(at, at += values.length).map((value) => factor * value);
        assert.ok(distance(values, want) < 1e-6, `residual ${i}`);
        tensor.dispose();
      }
      assert.equal(at, plain.length);
    });
  });

  it("makes its first residual without timestep and text", async () => {
    await using(CONTROLNET, async (net) => {
      const options = { scale: 0.7, guessMode: true };
      const [alone, first] = withInputs((x, text, maps) => {
        const embedded = net.embed(maps);
        const [{ down: [one] }, { down: [other] }] = [
          net.outermost(x, embedded, options),
          net.forward(x, 501, text, embedded, options),
        ];
        return [one, other];
      });
      const outermost = await numbersOf({ down: [alone] });
      assert.deepEqual(outermost, await numbersOf({ down: [first] }));
    });
  });

  it("with zero convolutions of zero changes nothing", async () => {
    const zeros = own.map((tensor) =>
      /^controlnet_(down_blocks|mid_block)/.test(tensor.name)
        ? { ...tensor, data: new Uint16Array(sizeOf(tensor.shape)) }
        : tensor
    );
    const sd = await StableDiffusion.load(TINY, { device });
    await using(await write(zeros), async (net) => {
      const [controlled, free] = withInputs((x, text, maps) => {
        const control = net.forward(x, 501, text, net.embed(maps));
        return [sd.unet.forward(x, 501, text, { control }), sd.unet.forward(x, 501, text)];
      });
      assert.deepEqual(await controlled.data(), await free.data());
      [controlled, free].forEach((tensor) => tensor.dispose());
    }, { config: CONTROLNET });
    sd.dispose();
  });

  it("runs in f16 and with weights of 8 bits", async () => {
    const eight = await using(CONTROLNET, residualsOf, { quantize: true });
    const far = distance(eight, plain);
    assert.ok(far > 1e-4 && far < 0.05, `${far}`);
    if (!device.info.f16) return;
    const half = distance(await using(CONTROLNET, residualsOf, { dtype: "f16" }), plain);
    assert.ok(half < 0.02, `${half}`);
  });

  it("refuses inputs of other shapes", async () => {
    await using(CONTROLNET, (net) => {
      withInputs((x, text, maps) => {
        const embedded = net.embed(maps);
        const small = device.empty([2, 16, 11, 12]);
        const three = device.empty([3, 16, 12, 12]);
        for (
          const call of [
            () => net.embed(device.empty([1, 3, 90, 96])),
            () => net.embed(device.empty([1, 1, 96, 96])),
            () => net.forward(device.empty([2, 9, 12, 12]), 1, text, embedded),
            () => net.forward(x, 1, text, small),
            () => net.forward(x, 1, text, three),
            () => net.forward(x, 1, device.empty([2, 77, 48]), embedded),
            () => net.forward(x, 1, text, embedded, { frames: { mode: "first", frames: 3 } }),
          ]
        ) assert.throws(call, ShapeError);
      });
      return Promise.resolve();
    });
  });
});

describe("residuals", () => {
  const three = Float32Array.of(1, 2, 3);

  it("with fewer rows belong to the last ones", async () => {
    const sum = device.scope(() =>
      addRows(device.tensor(three, [3, 1, 1, 1]), device.tensor([10, 20], [2, 1, 1, 1]))
    );
    assert.deepEqual([...await sum.data()], [1, 12, 23]);
    sum.dispose();
    device.scope(() => {
      const [x, other] = [device.empty([2, 3, 4, 4]), device.empty([2, 3, 4, 5])];
      assert.throws(() => addRows(x, other), /it belongs to another UNet/);
      assert.throws(() => addRows(x, device.empty([3, 3, 4, 4])), ShapeError);
    });
  });

  it("of several nets are added, whichever has more rows", async () => {
    assert.equal(sumResiduals([]), null);
    const { down: [down], mid } = device.scope(() => {
      const of = (values: number[]) => device.tensor(values, [values.length, 1, 1, 1]);
      return sumResiduals([
        { down: [of([10])], mid: of([1, 2]) },
        { down: [of([1, 2])], mid: of([10]) },
      ])!;
    });
    assert.deepEqual([...await down.data()], [1, 12]);
    assert.deepEqual([...await mid!.data()], [1, 12]);
    [down, mid!].forEach((tensor) => tensor.dispose());
  });
});

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
      assert.deepEqual(await using(await write(tensors), residualsOf, { config }), plain);
    }
  });

  it("may be a folder whose weights have a variant", async () => {
    const folder = join(root, "variant");
    await mkdir(folder);
    await cp(join(CONTROLNET, "config.json"), join(folder, "config.json"));
    const weights = await readFile(join(CONTROLNET, "diffusion_pytorch_model.safetensors"));
    await writeFile(join(folder, "diffusion_pytorch_model.fp16.safetensors"), weights);
    await using(folder, async (net) => {
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
    const restyled = await using(CONTROLNET, residualsOf, { transfer });
    assert.ok(distance(restyled, plain) > 0.1);
  });

  it("stay where they are between equal models, whatever layout these have", async () => {
    const tensors = await tensorsOf(UNET);
    const single = await write(tensors.map((tensor) => ({
      ...tensor,
      ...diffusersToLdm("unet", tensor.name, tensor.shape),
    })));
    const transfer = { base: TINY, style: single };
    assert.deepEqual(await using(CONTROLNET, residualsOf, { transfer }), plain);
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
