/**
 * Single-file checkpoints: the same numbers as from a folder, in every storage type; where the
 * vocabulary is looked for; what is refused, and that the message names it.
 */

import assert from "node:assert/strict";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import {
  allFinite,
  e4m3ArrayToF32,
  f16ArrayToF32,
  f32ArrayToF16,
  type HostArray,
} from "../core/dtype.ts";
import { InputError, WeightError } from "../core/errors.ts";
import {
  encodeSafetensors,
  openSafetensors,
  type TensorData,
  writeSafetensors,
} from "../core/safetensors.ts";
import { panelShape } from "../kernels/panels.ts";
import { PARTS } from "../models/sd15.ts";
import { type LoadOptions, StableDiffusion } from "../models/stable_diffusion.ts";
import { fill } from "../models/weight_stream.ts";
import { setVariables } from "./environment.ts";
import { TINY, tinySingleFile } from "./tiny_single_file.ts";

const device = await openDevice();
const root = await mkdtemp(join(tmpdir(), "framezero-single-"));
// No vocabulary may come from the network or the cache of whoever runs the tests.
const restore = setVariables({ HF_HUB_CACHE: join(root, "hub"), HF_HUB_OFFLINE: "1" });
after(async () => {
  restore();
  await rm(root, { recursive: true, force: true });
  await device.close();
});

/** The whole model under the names of a single file. */
const ldm = await tinySingleFile();

let written = 0;

/** A single file in a folder of its own. */
async function write(tensors: TensorData[]): Promise<string> {
  const folder = join(root, String(written++));
  await mkdir(folder);
  const file = join(folder, "model.safetensors");
  await writeSafetensors(file, tensors, { format: "pt" });
  return file;
}

/** What the text encoder, the UNet and the autoencoder make of fixed inputs. */
async function numbersOf(location: string, options: LoadOptions = {}): Promise<Float32Array[]> {
  const before = device.memory().live;
  const sd = await StableDiffusion.load(location, { device, ...options });
  const ramp = (n: number) => Float32Array.from({ length: n }, (_, i) => Math.sin(i));
  const { hiddenStates } = sd.encodePrompt(["a horse"]);
  const outputs = [
    hiddenStates,
    device.scope(() => sd.unet.forward(device.tensor(ramp(256), [1, 4, 8, 8]), 500, hiddenStates)),
    device.scope(() => sd.vae.decode(device.tensor(ramp(64), [1, 4, 4, 4]))),
    device.scope(() => sd.vae.encode(device.tensor(ramp(768), [1, 3, 16, 16])).moments),
  ];
  const numbers: Float32Array[] = [];
  for (const output of outputs) {
    numbers.push(await output.data());
    output.dispose();
  }
  sd.dispose();
  assert.equal(device.memory().live, before, "everything is freed");
  assert.ok(numbers.every(allFinite));
  return numbers;
}

const asF32 = ({ dtype, data }: TensorData): Float32Array<ArrayBuffer> => {
  const buffer = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice().buffer;
  return dtype === "F32" ? new Float32Array(buffer) : f16ArrayToF32(new Uint16Array(buffer));
};

/** Numbers rounded to a type, in that type and as f32. */
interface Rounded {
  readonly stored: ArrayBufferView;
  readonly values: Float32Array;
}

function toBf16(values: Float32Array): Rounded {
  const stored = Uint16Array.from(new Uint32Array(values.slice().buffer), (word) => word >>> 16);
  const words = Uint32Array.from(stored, (word) => word << 16);
  return { stored, values: new Float32Array(words.buffer) };
}

const E4M3 = e4m3ArrayToF32(Uint8Array.from({ length: 127 }, (_, i) => i));

function toE4m3(values: Float32Array): Rounded {
  const stored = Uint8Array.from(values, (value) => {
    const next = E4M3.findIndex((level) => level >= Math.abs(value));
    return (next < 0 ? 126 : next) | (value < 0 ? 0x80 : 0);
  });
  return { stored, values: e4m3ArrayToF32(stored) };
}

const config = TINY;

describe("a single file", () => {
  let ofFolder: Promise<Float32Array[]> | undefined;
  const expected = () => ofFolder ??= numbersOf(TINY);

  it("gives the same numbers as the folder, bit for bit", async () => {
    const want = await expected();
    assert.deepEqual(await numbersOf(await write(ldm), { config }), want);
  });

  it("may hold EMA copies, schedules and position ids", async () => {
    const ones = (length: number) => new Float32Array(length).fill(1);
    const extra: TensorData[] = [
      { name: "model_ema.decay", dtype: "F32", shape: [], data: ones(1) },
      { name: "model_ema.diffusion_modelout2bias", dtype: "F32", shape: [4], data: ones(4) },
      { name: "alphas_cumprod", dtype: "F32", shape: [1000], data: ones(1000) },
      {
        name: "cond_stage_model.transformer.text_model.embeddings.position_ids",
        dtype: "I64",
        shape: [1, 77],
        data: new BigInt64Array(77),
      },
    ];
    const file = await write([...extra, ...ldm]);
    assert.deepEqual(await numbersOf(file, { config }), await expected());
  });

  it("may have the text encoder's names of old", async () => {
    const old = ldm.map((tensor) => {
      return { ...tensor, name: tensor.name.replace("transformer.text_model.", "transformer.") };
    });
    const file = await write(old);
    assert.deepEqual(await numbersOf(file, { config }), await expected());
  });

  const types = [["BF16", toBf16], ["F8_E4M3", toE4m3]] as const;
  for (const [dtype, round] of types) {
    it(`is read from ${dtype}`, async () => {
      const rounded = ldm.map((tensor) => ({ tensor, ...round(asF32(tensor)) }));
      const stored = await write(
        rounded.map(({ tensor, stored }) => ({ ...tensor, dtype, data: stored })),
      );
      const f32 = await write(
        rounded.map(({ tensor, values }) => ({ ...tensor, dtype: "F32", data: values })),
      );
      assert.deepEqual(await numbersOf(stored, { config }), await numbersOf(f32, { config }));
      if (!device.info.f16) return;
      const half = { config, dtype: "f16" } as const;
      assert.deepEqual(await numbersOf(stored, half), await numbersOf(f32, half));
    });
  }

  it("is read from f32 and f16 alike, and from both at once", async () => {
    const mixed = ldm.map((tensor, i): TensorData => {
      const values = asF32(tensor);
      return i % 2
        ? { ...tensor, dtype: "F32", data: values }
        : { ...tensor, dtype: "F16", data: f32ArrayToF16(values) };
    });
    const halves = ldm.map((tensor): TensorData => {
      return { ...tensor, dtype: "F16", data: f32ArrayToF16(asF32(tensor)) };
    });
    const whole = halves.map((tensor): TensorData => {
      return { ...tensor, dtype: "F32", data: asF32(tensor) };
    });
    const want = await numbersOf(await write(whole), { config });
    assert.deepEqual(await numbersOf(await write(halves), { config }), want);
    assert.equal((await numbersOf(await write(mixed), { config })).length, want.length);
  });

  it("tells how far it is", async () => {
    const file = await write(ldm);
    const seen: [string, number, number][] = [];
    const onProgress = (...step: [string, number, number]) => seen.push(step);
    (await StableDiffusion.load(file, { device, config, onProgress })).dispose();
    for (const part of PARTS) {
      const steps = seen.filter(([name]) => name === part);
      assert.ok(steps.every(([, bytes], i) => i === 0 || bytes >= steps[i - 1][1]));
      const [, bytes, total] = steps[steps.length - 1];
      assert.equal(bytes, total);
    }
  });
});

describe("weights on their way to the device", () => {
  it("are packed alike by the host and by the device", async () => {
    const shapes: [outputs: number, inputs: number][] = [[64, 36], [32, 8], [33, 27], [4, 320]];
    const tensors = shapes.map(([O, K], i): TensorData => {
      const data = Float32Array.from({ length: O * K }, (_, at) => Math.sin(at + i));
      return { name: `w${i}`, dtype: "F32", shape: [O, K], data };
    });
    const file = await openSafetensors(encodeSafetensors(tensors));
    const dtypes = device.info.f16 ? ["f32", "f16"] as const : ["f32"] as const;
    for (const dtype of dtypes) {
      const packed = async (onHost: boolean) => {
        const fillings = shapes.map(([O, K], i) => {
          const tensor = device.empty(panelShape(O, K), dtype);
          return { tensor, inputs: K, file, key: `w${i}` };
        });
        await fill(device, fillings, () => {}, onHost);
        const values: HostArray[] = [];
        for (const { tensor } of fillings) {
          values.push(await tensor.raw());
          tensor.dispose();
        }
        return values;
      };
      assert.deepEqual(await packed(true), await packed(false), dtype);
    }
  });
});

describe("the vocabulary of a single file", () => {
  const vocabulary = join(TINY, "tokenizer");
  // Its configurations, and no tokenizer.
  const bare = async () => {
    const folder = join(root, `config-${written++}`);
    for (const part of PARTS) {
      await mkdir(join(folder, part), { recursive: true });
      await cp(join(TINY, part, "config.json"), join(folder, part, "config.json"));
    }
    return folder;
  };
  const loads = async (file: string, options: LoadOptions) =>
    (await StableDiffusion.load(file, { device, ...options })).dispose();

  it("is missed with advice", async () => {
    const file = await write(ldm);
    const live = device.memory().live;
    await assert.rejects(
      loads(file, { config: await bare() }),
      (error: unknown) =>
        error instanceof WeightError &&
        /holds no vocabulary.*cannot be fetched.*put vocab\.json and merges\.txt .* next to the file/
          .test(
            error.message,
          ),
    );
    assert.equal(device.memory().live, live);
  });

  it("is found where the option says, beside the file, or in tokenizer/", async () => {
    const file = await write(ldm);
    const plain = await bare();
    await loads(file, { config: plain, tokenizer: vocabulary });
    await loads(file, { config: plain, tokenizer: TINY });
    await cp(vocabulary, join(file, "../tokenizer"), { recursive: true });
    await loads(file, { config: plain });
    const other = await write(ldm);
    for (const name of ["vocab.json", "merges.txt", "special_tokens_map.json"]) {
      await cp(join(vocabulary, name), join(other, "..", name));
    }
    await loads(other, { config: plain });
  });

  it("is found in the cache of Hugging Face", async () => {
    const repository = join(root, "hub", "models--runwayml--stable-diffusion-v1-5");
    const commit = "0123456789abcdef0123456789abcdef01234567";
    await mkdir(join(repository, "refs"), { recursive: true });
    await writeFile(join(repository, "refs", "main"), commit);
    await cp(vocabulary, join(repository, "snapshots", commit, "tokenizer"), { recursive: true });
    await loads(await write(ldm), { config: await bare() });
    await rm(repository, { recursive: true });
  });

  it("must be the text encoder's", async () => {
    const builtIn = fileURLToPath(new URL("../models/tiny-shapes", import.meta.url));
    await assert.rejects(
      loads(await write(ldm), { config, tokenizer: builtIn }),
      /the text encoder knows 1000 tokens, the tokenizer's last is number 1160; .* belong together/,
    );
  });
});

describe("a single file is refused", () => {
  const KEY = "model.diffusion_model.middle_block.0.in_layers.2.weight";
  const change = (key: RegExp, make: (tensor: TensorData) => Partial<TensorData>) =>
    ldm.map((tensor) => key.test(tensor.name) ? { ...tensor, ...make(tensor) } : tensor);
  const wider = (extents: [number, number]) => (tensor: TensorData): Partial<TensorData> => {
    const shape = tensor.shape.with(...extents);
    const size = shape.reduce((product, n) => product * n, 1);
    return { shape, dtype: "F16", data: new Uint16Array(size) };
  };
  const faults: [string, () => TensorData[], RegExp][] = [
    ["without one tensor", () => ldm.filter(({ name }) => name !== KEY), /lacks \(1\): unet\/mid_/],
    [
      "without a VAE",
      () => ldm.filter(({ name }) => !name.startsWith("first_stage_model.")),
      /lacks \(244\): vae\/.*the file is incomplete/,
    ],
    [
      "with tensors of another shape",
      () => change(/middle_block\.0\.in_layers\.2\.bias/, wider([0, 33])),
      /another shape \(1\): unet\/mid_block\.resnets\.0\.conv1\.bias \[33\] instead of \[32\]/,
    ],
    [
      "with tensors of no part",
      () => [...ldm, { ...ldm[0], name: "model.diffusion_model.input_blocks.1.9.weight" }],
      /belong to no part \(1\): model\.diffusion_model\.input_blocks\.1\.9\.weight/,
    ],
    [
      "if it is SDXL",
      () => change(/attn2\.to_[kv]\.weight$/, wider([1, 2048])),
      /this is Stable Diffusion XL/,
    ],
    [
      "if it is Stable Diffusion 2",
      () => change(/attn2\.to_[kv]\.weight$/, wider([1, 1024])),
      /this is Stable Diffusion 2\.x/,
    ],
    [
      "with NaN",
      () =>
        change(/^model\.diffusion_model\.middle_block\.0\.in_layers\.2\.weight$/, ({ shape }) => {
          const size = shape.reduce((product, n) => product * n, 1);
          return { dtype: "F16", data: new Uint16Array(size).fill(0x7e00, size - 1) };
        }),
      /the tensor model\.diffusion_model\.middle_block\.0\.in_layers\.2\.weight must hold finite/,
    ],
    [
      "with integers for weights",
      () =>
        change(/middle_block\.0\.in_layers\.2\.weight$/, ({ shape }) => {
          const size = shape.reduce((product, n) => product * n, 1);
          return { dtype: "I8", data: new Int8Array(size) };
        }),
      /in_layers\.2\.weight must hold floating-point numbers, it holds I8/,
    ],
  ];
  for (const [what, tensors, message] of faults) {
    it(what, async () => {
      const file = await write(tensors());
      const live = device.memory().live;
      await assert.rejects(
        StableDiffusion.load(file, { device, config }),
        (error: unknown) =>
          error instanceof WeightError && error.message.startsWith(file) &&
          message.test(error.message),
      );
      assert.equal(device.memory().live, live);
    });
  }

  it("cut short, naming the tensor", async () => {
    const file = await write(ldm);
    const bytes = await readFile(file);
    const source = await openSafetensors(file);
    const [name, { end }] = [...source.tensors][500];
    await source.close();
    await writeFile(file, bytes.subarray(0, end - 1));
    await assert.rejects(
      StableDiffusion.load(file, { device, config }),
      (error: unknown) =>
        error instanceof WeightError && error.message.includes(`cut short in tensor "${name}"`),
    );
  });

  it("if it is a pickle under another name", async () => {
    for (const start of [[0x50, 0x4b, 3, 4], [0x80, 2, 0x8a, 0x0a]]) {
      const file = await write(ldm.slice(0, 1));
      await writeFile(file, new Uint8Array([...start, ...new Array(20).fill(0)]));
      await assert.rejects(
        StableDiffusion.load(file, { device, config }),
        (error: unknown) =>
          error instanceof WeightError &&
          /by its content a Python pickle.*Convert/.test(error.message),
      );
    }
  });

  it("if it holds only a part in diffusers' names, or something else", async () => {
    const others: [string, RegExp][] = [
      [
        join(TINY, "vae/diffusion_pytorch_model.safetensors"),
        /a single file that holds VAE; .* part of a diffusers folder/,
      ],
      [
        await write([{
          name: "x.lora_up.weight",
          dtype: "F16",
          shape: [1],
          data: new Uint16Array(1),
        }]),
        /a single file that holds LoRA/,
      ],
    ];
    for (const [file, message] of others) {
      await assert.rejects(
        StableDiffusion.load(file, { device, config }),
        (error: unknown) => error instanceof InputError && message.test(error.message),
      );
    }
  });
});
