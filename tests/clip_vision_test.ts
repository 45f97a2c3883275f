/** CLIP's image encoder and whole CLIP models against PyTorch, and what they refuse. */

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError, ShapeError, WeightError } from "../core/errors.ts";
import { encodeSafetensors, openSafetensors, type TensorData } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import { merged } from "../models/checkpoint.ts";
import { ClipModel } from "../models/clip.ts";
import { ClipVisionModel } from "../models/clip_vision.ts";
import { clipVisionConfig, type Json } from "../models/config.ts";
import type { Frame } from "../video/frame.ts";
import { clipPixels, clipScore } from "../video/metrics/clip_score.ts";
import { noise } from "./metrics_setup.ts";

const device = await openDevice();
const root = await mkdtemp(join(tmpdir(), "framezero-clip-"));
after(async () => {
  await device.close();
  await rm(root, { recursive: true });
});

const GOLDEN = new URL("./golden/", import.meta.url);

interface Tower {
  readonly config: Readonly<Record<string, number | string>>;
  readonly last_hidden_state: number[];
  readonly pooled: number[];
  readonly image_embeds: number[];
}

interface Golden {
  readonly towers: readonly Tower[];
  readonly frame: {
    readonly width: number;
    readonly height: number;
    readonly size: number;
    readonly step: number;
    readonly pixels: number[];
    readonly image_embeds: number[];
  };
}

const golden: Golden = JSON.parse(
  await readFile(new URL("clip_vision/tiny.json", GOLDEN), "utf8"),
);

/** Names and shapes of the tensors of an image encoder. */
function shapesOf(config: Json): Map<string, number[]> {
  const { hiddenSize: w, intermediateSize: hidden, ...c } = clipVisionConfig(config, "test");
  const shapes = new Map<string, number[]>();
  const layer = (name: string, outputs: number, inputs?: number) => {
    shapes.set(`${name}.weight`, inputs === undefined ? [outputs] : [outputs, inputs]);
    shapes.set(`${name}.bias`, [outputs]);
  };
  const patches = Math.floor(c.imageSize / c.patchSize) ** 2;
  const embeddings = "vision_model.embeddings";
  shapes.set(`${embeddings}.class_embedding`, [w]);
  shapes.set(`${embeddings}.patch_embedding.weight`, [w, 3, c.patchSize, c.patchSize]);
  shapes.set(`${embeddings}.position_embedding.weight`, [1 + patches, w]);
  layer("vision_model.pre_layrnorm", w);
  for (let i = 0; i < c.numHiddenLayers; i++) {
    const at = `vision_model.encoder.layers.${i}`;
    for (const part of ["q", "k", "v", "out"]) layer(`${at}.self_attn.${part}_proj`, w, w);
    layer(`${at}.layer_norm1`, w);
    layer(`${at}.mlp.fc1`, hidden, w);
    layer(`${at}.mlp.fc2`, w, hidden);
    layer(`${at}.layer_norm2`, w);
  }
  layer("vision_model.post_layernorm", w);
  shapes.set("visual_projection.weight", [c.projectionDim, w]);
  return shapes;
}

/** The values that the reference was computed with. */
function weightsOf(config: Json): TensorData[] {
  return Array.from(shapesOf(config), ([name, shape]) => {
    const isNorm = /norm/.test(name);
    const isVector = shape.length === 1 || name.includes("position");
    const scale = isNorm ? 0.25 : isVector ? 0.5 : 2 / Math.sqrt(sizeOf(shape) / shape[0]);
    const shift = isNorm && name.endsWith("weight") ? 1 : 0;
    const values = Float32Array.from(noise(name, sizeOf(shape)), (v) => shift + scale * v);
    return { name, dtype: "F32", shape, data: new Uint8Array(values.buffer) };
  });
}

async function sourceOf(tensors: readonly TensorData[]) {
  return merged([await openSafetensors(encodeSafetensors(tensors))], "tiny");
}

function close(got: ArrayLike<number>, want: readonly number[], what: string): void {
  assert.equal(got.length, want.length, what);
  const largest = Math.max(...want.map((value, i) => Math.abs(value - got[i])));
  assert.ok(largest < 2e-5, `${what}: largest error ${largest}`);
}

test("image encoders of both activations are those of PyTorch", async () => {
  for (const { config, ...wanted } of golden.towers) {
    const read = clipVisionConfig(config, "tiny.json");
    const model = await ClipVisionModel.load(await sourceOf(weightsOf(config)), read, { device });
    const side = read.imageSize;
    const pixels = Float32Array.from(noise("pixels", 6 * side * side), (value) => 2 * value);
    const output = model.forward(device.tensor(pixels, [2, 3, side, side]));
    close(await output.lastHiddenState.data(), wanted.last_hidden_state, "last hidden state");
    close(await output.pooled.data(), wanted.pooled, "pooled");
    close(await output.imageEmbeds.data(), wanted.image_embeds, "image embeddings");
    assert.throws(() => model.forward(device.empty([1, 3, side, side + 1])), ShapeError);
    model.dispose();
  }
});

test("a missing, an additional and a misshapen tensor are refused by name", async () => {
  const { config } = golden.towers[0];
  const all = weightsOf(config);
  const name = "vision_model.post_layernorm.bias";
  const cases: [TensorData[], RegExp][] = [
    [
      all.filter((tensor) => tensor.name !== name),
      /post_layernorm\.bias of shape \[32\] is missing/,
    ],
    [[...all, { ...all[0], name: "vision_model.more" }], /belong to no part.*vision_model\.more/],
    [
      all.map((tensor) =>
        tensor.name === name ? { ...tensor, shape: [31], data: new Float32Array(31) } : tensor
      ),
      /must have shape \[32\], it has \[31\]/,
    ],
  ];
  for (const [tensors, message] of cases) {
    const source = await sourceOf(tensors);
    await assert.rejects(
      () => ClipVisionModel.load(source, clipVisionConfig(config, "tiny.json"), { device }),
      (error: unknown) => {
        assert.ok(error instanceof WeightError);
        assert.match(error.message, message);
        return true;
      },
    );
  }
});

/** A whole model in a folder: the text encoder of the references, and the first image encoder. */
async function writeModel(folder: string): Promise<void> {
  const text = new URL("clip_tiny/h48_gelu_projection/", GOLDEN);
  const file = await openSafetensors(new URL("model.safetensors", text));
  const tensors: TensorData[] = weightsOf(golden.towers[0].config);
  for (const [name, { shape }] of file.tensors) {
    tensors.push({ name, dtype: "F32", shape, data: await file.read(name) });
  }
  await file.close();
  const scale = new Uint8Array(Float32Array.of(4.6).buffer);
  tensors.push({ name: "logit_scale", dtype: "F32", shape: [], data: scale });
  await writeFile(join(folder, "model.safetensors"), encodeSafetensors(tensors));
  const textConfig = JSON.parse(await readFile(new URL("config.json", text), "utf8"));
  const { projection_dim, ...vision } = golden.towers[0].config;
  const config = { projection_dim, text_config: textConfig, vision_config: vision };
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
  for (const name of ["vocab.json", "merges.txt", "tokenizer_config.json"]) {
    await writeFile(
      join(folder, name),
      await readFile(new URL(`clip_tiny/tokenizer/${name}`, GOLDEN)),
    );
  }
}

test("frames are scaled and scored as PyTorch does it", async () => {
  await writeModel(root);
  const model = await ClipModel.load(root, { device });
  const { width, height, size, step, pixels, image_embeds } = golden.frame;
  const data = Uint8Array.from(noise("frame", 3 * width * height), (value) => 128 * (value + 1));
  const frame: Frame = { width, height, data };
  const scaled = await clipPixels(model, frame, size).data();
  const some = scaled.filter((_, i) =>
    i % size % step === 0 && Math.floor(i / size) % size % step === 0
  );
  close(some, pixels, "pixels");

  const cases = await openSafetensors(new URL("clip_tiny/cases.safetensors", GOLDEN));
  const embeds = await cases.readF32("h48_gelu_projection/77/text_embeds");
  await cases.close();
  const prompt = "a cat playing the guitar on the beach";
  const text = Array.from(embeds.subarray(0, 24));
  const length = (values: readonly number[]) => Math.hypot(...values);
  const dot = text.reduce((sum, value, i) => sum + value * image_embeds[i], 0);
  const wanted = 100 * dot / (length(text) * length(image_embeds));
  const { score, scores } = await clipScore([frame, frame], model, prompt);
  assert.equal(scores.length, 2);
  assert.ok(Math.abs(score - wanted) < 1e-2, `${score} instead of ${wanted}`);
  model.dispose();
});

test("what is no CLIP model is refused", async () => {
  await assert.rejects(
    () => ClipModel.load(join(root, "model.safetensors"), { device }),
    (error: unknown) => {
      assert.ok(error instanceof InputError);
      assert.match(error.message, /a CLIP model is a folder with config\.json/);
      return true;
    },
  );
  await assert.rejects(() => ClipModel.load(join(root, "nothing"), { device }), InputError);
});
