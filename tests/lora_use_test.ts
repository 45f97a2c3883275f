/**
 * LoRA at work: the effect on a model is the expected one and can be taken back exactly, and a
 * picture is made again from its own settings.
 */

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it, test } from "node:test";
import { pathToFileURL } from "node:url";
import { openDevice } from "../core/device.ts";
import { openWeights, stemOf } from "../models/checkpoint.ts";
import { closeAdapters, openAdapters } from "../models/lora.ts";
import { SD15 } from "../models/sd15.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { loraWithWeight } from "../video/cli/options.ts";
import { textToImage } from "../video/text_to_image.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { sendFile, serve, sha256 } from "./hub_server.ts";
import { type Layer, layer, loraFile, NAMINGS, numbers } from "./lora_files.ts";

const device = await openDevice();
const root = await mkdtemp(join(tmpdir(), "framezero-lora-"));
after(async () => {
  await rm(root, { recursive: true, force: true });
  await device.close();
});

const UNET_STEM = stemOf("unet");

/** A LoRA for SD 1.5. */
const SMALL = loraFile([layer("unet", "conv_in", [320, 4, 3, 3], { rank: 1 })]);

/** Takes the rows `rows` of the last convolution away. */
function erasing(weight: Float32Array, [outputs, ...rest]: readonly number[], rows: number): Layer {
  const columns = weight.length / outputs;
  const up = new Float32Array(outputs * rows);
  for (let o = 0; o < rows; o++) up[o * rows + o] = -1;
  const down = weight.slice(0, rows * columns) as Float32Array<ArrayBuffer>;
  return { part: "unet", module: "conv_out", weight: [outputs, ...rest], rank: rows, up, down };
}

async function lastLayer(rows: number): Promise<{ file: Uint8Array; bias: Float32Array }> {
  const source = await openWeights(
    new URL("../models/tiny-shapes/unet/", import.meta.url),
    UNET_STEM,
  );
  const { file, key } = source.tensors.get("conv_out.weight")!;
  const weight = await file.readF32(key);
  const bias = await file.readF32("conv_out.bias");
  const { shape } = file.tensors.get(key)!;
  await source.close();
  return { file: loraFile([erasing(weight, shape, rows)]), bias };
}

async function prediction({ unet }: StableDiffusion): Promise<Float32Array> {
  const out = device.scope(() =>
    unet.forward(
      device.tensor(numbers(4 * 64, 1).map((x) => 10 * x), [1, 4, 8, 8]),
      500,
      device.tensor(numbers(5 * 96, 2).map((x) => 10 * x), [1, 5, 96]),
    ).keep()
  );
  return await out.data().finally(() => out.dispose());
}

async function encoding(sd: StableDiffusion): Promise<Float32Array> {
  const { hiddenStates } = sd.encodePrompt(["a red heart"]);
  return await hiddenStates.data().finally(() => hiddenStates.dispose());
}

test("an adapter that erases a channel leaves its bias and the others, and comes off", async () => {
  const { file, bias } = await lastLayer(1);
  const before = device.memory().live;
  const sd = await StableDiffusion.load(undefined, { device });
  const live = device.memory().live;
  const plain = await prediction(sd);
  const { unet, vae, textEncoder } = sd;

  await sd.setLoras([{ file }]);
  assert.equal(device.memory().live, live);
  assert.notEqual(sd.unet, unet);
  assert.deepEqual([sd.vae, sd.textEncoder], [vae, textEncoder]);
  assert.match(sd.loras[0].sha256, /^[0-9a-f]{64}$/);
  assert.deepEqual(sd.loras.map(({ file, weight }) => [file, weight]), [["bytes in memory", 1]]);
  const erased = await prediction(sd);
  assert.deepEqual(new Set(erased.subarray(0, 64)), new Set([bias[0]]));
  assert.deepEqual(erased.subarray(64), plain.subarray(64));

  await sd.setLoras([{ file, weight: -1 }]);
  const doubled = await prediction(sd);
  for (let i = 0; i < 64; i++) {
    assert.ok(Math.abs(doubled[i] - bias[0] - 2 * (plain[i] - bias[0])) < 1e-5, `element ${i}`);
  }

  await assert.rejects(sd.setLoras([{ file, sha256: "0".repeat(64) }]), /sha256 of the LoRA must/);
  await assert.rejects(sd.setLoras([{ file, weight: NaN }]), /must be a number, got NaN/);
  assert.deepEqual(await prediction(sd), doubled, "a refused adapter changes nothing");

  await sd.setLoras([{ file }, { file, weight: -1 }]);
  assert.deepEqual(await prediction(sd), plain, "weights that cancel");
  await sd.setLoras([]);
  assert.deepEqual(sd.loras, []);
  assert.deepEqual(await prediction(sd), plain, "taken off");
  sd.dispose();
  assert.equal(device.memory().live, before);
});

test("an adapter of the text encoder changes the prompt in f16, and leaves the UNet", async () => {
  const module = "text_model.encoder.layers.2.mlp.fc2";
  const file = loraFile([layer("text_encoder", module, [96, 384], { rank: 4 })], NAMINGS.diffusers);
  const dtype = device.info.f16 ? "f16" : "f32";
  const sd = await StableDiffusion.load(undefined, {
    device,
    dtype,
    loras: [{ file, weight: 20 }],
  });
  const { unet } = sd;
  const changed = await encoding(sd);
  await sd.setLoras([]);
  assert.equal(sd.unet, unet);
  const plain = await encoding(sd);
  assert.ok(changed.some((value, i) => Math.abs(value - plain[i]) > 0.01));
  await sd.setLoras([{ file, weight: 20 }]);
  assert.deepEqual(await encoding(sd), changed);
  sd.dispose();
});

test("LCM with little guidance: a UNet that says nothing makes every prompt alike", async () => {
  const { file } = await lastLayer(4);
  const sd = await StableDiffusion.load(undefined, { device, loras: [{ file }] });
  const latents = async (prompt: string, guidanceScale: number) => {
    const options = { scheduler: "lcm", steps: 4, guidanceScale, width: 64, height: 64 };
    const clip = textToImage(sd, prompt, options);
    let last = new Float32Array();
    for await (const step of clip.steps) last = await step.latents.data();
    assert.deepEqual(clip.settings.loras, sd.loras.length ? sd.loras : undefined);
    clip.dispose();
    assert.ok(last.length === 256 && last.every(Number.isFinite));
    return last;
  };
  const [heart, star] = ["a red heart", "a blue star"];
  const alone = await latents(heart, 1);
  assert.deepEqual(await latents(star, 1), alone);
  for (const guidance of [1.5, 2]) {
    const guided = await latents(star, guidance);
    assert.ok(guided.every((value, i) => Math.abs(value - alone[i]) < 1e-4), `${guidance}`);
  }
  await sd.setLoras([]);
  const plain = await latents(heart, 1.5);
  const other = await latents(star, 1.5);
  assert.ok(plain.some((value, i) => Math.abs(value - other[i]) > 0.05));
  sd.dispose();
});

test("models put together of parts keep their weights", async () => {
  const sd = await StableDiffusion.load(undefined, { device });
  await assert.rejects(StableDiffusion.of(sd).setLoras([]), /load it with StableDiffusion\.load/);
  sd.dispose();
});

describe("--lora", () => {
  const PROMPT = "a red heart";
  const path = join(root, "style: my own.safetensors");

  it("takes a weight behind the last colon", () => {
    const cases: readonly (readonly [string, string, number])[] = [
      ["a.safetensors", "a.safetensors", 1],
      ["a.safetensors:0.8", "a.safetensors", 0.8],
      ["a.safetensors:-1.5e-1", "a.safetensors", -0.15],
      ["C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1],
      ["C:\\loras\\a.safetensors:2", "C:\\loras\\a.safetensors", 2],
      ["C:a.safetensors", "C:a.safetensors", 1],
      ["https://host:8080/a.safetensors", "https://host:8080/a.safetensors", 1],
      ["https://host/a.safetensors:+.5", "https://host/a.safetensors", 0.5],
      ["dir:1/a", "dir:1/a", 1],
    ];
    for (const [text, file, weight] of cases) {
      assert.deepEqual(loraWithWeight(text), { file, weight });
    }
  });

  it("refuses what is no number, and files that are missing or do not fit", async () => {
    const target = join(root, "refused.png");
    const base = ["image", PROMPT, "-o", target, "--quiet"];
    for (const bad of ["a.safetensors:x", "a.safetensors:", "a:NaN", "a:1e999", ":1", "a:0x10"]) {
      await refused([...base, "--lora", bad], 2, /with a number behind a colon/);
    }
    await refused([...base, "--lora", join(root, "none.safetensors")], 1, /cannot be opened/);
    await writeFile(
      join(root, "xl.safetensors"),
      loraFile([layer("unet", "mid_block.x.attn2.to_k", [32, 2048])]),
    );
    await refused([...base, "--lora", join(root, "xl.safetensors")], 1, /Stable Diffusion XL/);
  });

  it("changes the picture, which is made again from its own settings", async () => {
    await writeFile(path, (await lastLayer(1)).file);
    const at = (name: string) => join(root, name);
    const make = async (name: string, ...args: string[]) => {
      const made = await run(["image", ...args, "-o", at(name), "--json"]);
      assert.equal(made.code, 0, made.stderr);
      return await readFile(at(name));
    };
    const settings = ["--steps", "2", "--scheduler", "lcm", "--guidance", "1.5"];
    const plain = await make("plain.gif", PROMPT, ...settings);
    const half = await make("half.gif", PROMPT, ...settings, "--lora", `${path}:0.5`);
    assert.notDeepEqual(half, plain);
    const [stored] = (await readSettings(at("half.gif")))?.loras as { weight: number }[];
    assert.equal(stored.weight, 0.5);
    assert.deepEqual(await make("again.gif", "--from", at("half.gif")), half);
    const twice = ["--lora", `${path}:0.75`, "--lora", `${path}:-0.25`];
    await make("twice.gif", PROMPT, ...settings, ...twice);
    assert.equal(((await readSettings(at("twice.gif")))?.loras as unknown[]).length, 2);

    await writeFile(path, (await lastLayer(2)).file);
    await refused(
      ["image", "--from", at("half.gif"), "-o", at("x.gif"), "--quiet"],
      1,
      /sha256 of the LoRA must be [0-9a-f]{64}, it is/,
    );
  });
});

test("an address is fetched once into the cache, and recorded without its query", async () => {
  const bytes = SMALL;
  const server = await serve((asked) => sendFile(bytes, asked, { ETag: '"1"' }));
  const hub = { cache: join(root, "cache") };
  const file = `${server.url}/style.safetensors?key=secret`;
  const [{ applied, file: open }] = await openAdapters([{ file }], SD15, hub);
  await open.close();
  assert.deepEqual(applied, {
    file: `${server.url}/style.safetensors`,
    weight: 1,
    sha256: sha256(bytes),
  });
  await server.close();
  const offline = { ...hub, offline: true };
  await closeAdapters(await openAdapters([{ file }], SD15, offline));
});

test("blobs and URLs are read in place, under their own names", async () => {
  const path = join(root, "blob.safetensors");
  await writeFile(path, SMALL);
  const url = pathToFileURL(path);
  const files = [new File([SMALL], "style.safetensors"), url];
  const adapters = await openAdapters(files.map((file) => ({ file })), SD15);
  const names = adapters.map(({ applied }) => applied.file);
  assert.deepEqual(names, ["style.safetensors", url.href]);
  assert.equal(adapters[0].applied.sha256, adapters[1].applied.sha256);
  await closeAdapters(adapters);
});
