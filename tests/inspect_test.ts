/**
 * What files are, told from headers alone: no file is written and no device opened.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { diffusersToLdm } from "../bench/ldm_layout.ts";
import type { SafetensorsDType, TensorInfo } from "../core/safetensors.ts";
import type { Shape } from "../core/shape.ts";
import { inspectTensors, type ModelKind } from "../models/inspect.ts";
import { describeInspection } from "../models/inspect_text.ts";
import { type Part, PARTS, SD15, SD15_CONTROLNET } from "../models/sd15.ts";
import { controlNetStateDict, stateDicts } from "../models/state_dict.ts";

const FULL = stateDicts(SD15);
const BYTES: Partial<Record<SafetensorsDType, number>> = { F32: 4, F16: 2, BF16: 2, F8_E4M3: 1 };

type Entry = readonly [name: string, shape: Shape];

function header(entries: Iterable<Entry>, dtype: SafetensorsDType = "F16") {
  const tensors = new Map<string, TensorInfo>();
  let end = 0;
  for (const [name, shape] of entries) {
    const begin = end;
    end += shape.reduce((product, n) => product * n, BYTES[dtype] ?? 8);
    tensors.set(name, { dtype, shape, begin, end });
  }
  return tensors;
}

const part = (name: Part): Entry[] => [...FULL[name]];
const ldmPart = (name: Part): Entry[] =>
  part(name).map(([key, shape]) => {
    const stored = diffusersToLdm(name, key, shape);
    return [stored.name, stored.shape];
  });
const SINGLE = PARTS.flatMap(ldmPart);
const FIRST = SINGLE.findIndex(([name]) => name.endsWith("input_blocks.0.0.weight"));
const replaced = (entries: Entry[], change: (name: string, shape: Shape) => Shape): Entry[] =>
  entries.map(([name, shape]) => [name, change(name, shape)]);

/** The UNet for texts of another width, or with more input channels. */
const unetOf = (entries: Entry[], { text = 768, channels = 4 }): Entry[] =>
  replaced(entries, (name, shape) => {
    if (/attn2\.to_[kv]\.weight$/.test(name)) return [shape[0], text];
    if (/(input_blocks\.0\.0|^conv_in)\.weight$/.test(name)) return shape.with(1, channels);
    return shape;
  });

describe("the names and shapes of SD 1.5", () => {
  it("are as many as its files have", () => {
    const parameters = (name: Part) =>
      part(name).reduce((sum, [, shape]) => sum + shape.reduce((p, n) => p * n, 1), 0);
    assert.deepEqual(PARTS.map((name) => FULL[name].size), [196, 686, 248]);
    assert.deepEqual(PARTS.map(parameters), [123_060_480, 859_520_964, 83_653_863]);
  });
});

describe("a complete single file", () => {
  it("is recognised, with nothing missing and nothing superfluous", () => {
    const found = inspectTensors(header(SINGLE));
    assert.equal(found.kind, "sd1");
    assert.equal(found.layout, "ldm");
    assert.equal(found.parameters, 1_066_235_307);
    assert.equal(found.bytes, 2 * 1_066_235_307);
    assert.deepEqual(found.dtypes, [["F16", 1_066_235_307]]);
    assert.deepEqual([...found.parts.keys()], PARTS);
    assert.deepEqual([found.missing, found.superfluous, found.misshapen], [[], [], []]);
    const text = new Map(describeInspection(found));
    assert.equal(text.get("model"), "Stable Diffusion 1.x");
    assert.equal(text.get("unet"), "686 tensors, 859,520,964 parameters");
    assert.match(text.get("complete") ?? "", /every tensor/);
  });

  it("may hold training state and old names", () => {
    const old = SINGLE.map(([name, shape]): Entry => [
      name.replace("transformer.text_model.", "transformer."),
      shape,
    ]);
    const found = inspectTensors(header([
      ...old,
      ["model_ema.diffusion_modeltime_embed0weight", [1280, 320]],
      ["cond_stage_model.transformer.text_model.embeddings.position_ids", [1, 77]],
      ["alphas_cumprod", [1000]],
      ["first_stage_model.loss.logvar", []],
    ]));
    assert.equal(found.kind, "sd1");
    assert.equal(found.ignored, 4);
    assert.deepEqual([found.missing, found.superfluous, found.misshapen], [[], [], []]);
    assert.match(String(describeInspection(found)), /ignored,4 tensors/);
  });

  it("names whatever is taken away, added or of another shape", () => {
    const index = fc.integer({ min: 0, max: SINGLE.length - 1 });
    fc.assert(
      fc.property(index, index, (lost, bent) => {
        fc.pre(lost !== bent);
        const [bentName] = SINGLE[bent];
        const entries = SINGLE.map(([name, shape]): Entry =>
          name === bentName ? [name, [...shape, 7]] : [name, shape]
        ).filter((_, i) => i !== lost);
        const extra = "model.diffusion_model.input_blocks.1.9.weight";
        const found = inspectTensors(header([...entries, [extra, [1]]]));
        assert.equal(found.missing.length, 1);
        assert.equal(found.misshapen.length, 1);
        assert.deepEqual(found.superfluous, [extra]);
        const text = String(describeInspection(found));
        assert.ok(text.includes(`missing,1: ${found.missing[0]}`));
        assert.ok(!text.includes("complete"));
      }),
      // Whatever is random, the first layer is among what is lost or bent.
      { numRuns: 25, examples: [[FIRST, 0], [0, FIRST]] },
    );
  });

  it("without its VAE lacks all of it", () => {
    const found = inspectTensors(header([...ldmPart("unet"), ...ldmPart("text_encoder")]));
    assert.equal(found.kind, "sd1");
    assert.equal(found.missing.length, 248);
    assert.match(new Map(describeInspection(found)).get("missing") ?? "", /^248: vae\/.*, …$/);
  });
});

describe("a file is", () => {
  const ldmUNet = ldmPart("unet");
  const files: [string, Entry[], ModelKind, RegExp][] = [
    ["the UNet of a folder", part("unet"), "sd1", /Stable Diffusion 1\.x, the UNet alone/],
    ["SD 2.x", unetOf(ldmUNet, { text: 1024 }), "sd2", /Stable Diffusion 2\.x/],
    ["the UNet of SD 2.x", unetOf(part("unet"), { text: 1024 }), "sd2", /2\.x, the UNet alone/],
    ["SDXL", unetOf(ldmUNet, { text: 2048 }), "sdxl", /Stable Diffusion XL/],
    ["inpainting", unetOf(ldmUNet, { channels: 9 }), "inpainting", /inpainting/],
    ["InstructPix2Pix", unetOf(SINGLE, { channels: 8 }), "instruct-pix2pix", /InstructPix2Pix/],
    ["its UNet", unetOf(part("unet"), { channels: 8 }), "instruct-pix2pix", /the UNet alone/],
    [
      "a ControlNet",
      [...controlNetStateDict(SD15_CONTROLNET)],
      "controlnet",
      /ControlNet/,
    ],
    [
      "a ControlNet of the original code",
      Array.from(controlNetStateDict(SD15_CONTROLNET), ([name, shape]): Entry => [
        diffusersToLdm("controlnet", name, shape).name,
        shape,
      ]),
      "controlnet",
      /ControlNet/,
    ],
    [
      "a LoRA by kohya",
      [["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", [4, 1280, 1, 1]]],
      "lora",
      /LoRA/,
    ],
    [
      "a LoRA by diffusers",
      [["unet.mid_block.attentions.0.proj_in.lora.up.weight", [1280, 4]]],
      "lora",
      /LoRA/,
    ],
    ["a LoRA by PEFT", [["base_model.model.unet.x.to_q.lora_A.weight", [4, 320]]], "lora", /LoRA/],
    ["a LoHa", [["lora_unet_x.hada_w1_a", [320, 4]]], "lora", /LoRA/],
    ["an embedding", [["emb_params", [3, 768]]], "textual-inversion", /textual inversion/],
    ["an embedding by its token", [["<cat-toy>", [768]]], "textual-inversion", /an embedding/],
    ["a VAE", part("vae"), "vae", /VAE/],
    ["a VAE of the original code", ldmPart("vae"), "vae", /VAE/],
    [
      "a VAE without prefixes",
      ldmPart("vae").map(([name, shape]) => [name.replace("first_stage_model.", ""), shape]),
      "vae",
      /VAE/,
    ],
    ["a text encoder", part("text_encoder"), "text-encoder", /CLIP text encoder/],
    [
      "another text encoder",
      [["text_model.embeddings.token_embedding.weight", [49408, 1280]]],
      "text-encoder",
      /width 1280, not SD 1\.x's/,
    ],
    ["FLUX", [["double_blocks.0.img_mod.lin.weight", [4, 4]]], "unknown", /FLUX/],
    ["AnimateDiff", [["down_blocks.0.motion_modules.0.x", [4]]], "unknown", /AnimateDiff/],
    ["of another width", unetOf(ldmUNet, { text: 96 }), "unknown", /texts of width 96/],
    ["anything", [["hidden.weight", [10, 10]]], "unknown", /nothing known/],
    ["empty", [], "unknown", /nothing known/],
  ];
  for (const [what, entries, kind, title] of files) {
    it(`${kind}: ${what}`, () => {
      const found = inspectTensors(header(entries));
      assert.equal(found.kind, kind);
      assert.match(found.title, title);
      assert.equal(
        found.parameters,
        header(entries).values().reduce(
          (sum, { shape }) => sum + shape.reduce((p, n) => p * n, 1),
          0,
        ),
      );
      if (found.checked && found.kind !== "inpainting" && found.kind !== "instruct-pix2pix") {
        assert.deepEqual([found.missing, found.superfluous, found.misshapen], [[], [], []]);
      }
      assert.ok(describeInspection(found).length >= 5);
    });
  }

  it("measured in several types", () => {
    const mixed = new Map([
      ...header(part("text_encoder"), "F32"),
      ...header([["text_model.embeddings.position_ids", [1, 77]]], "I64"),
    ]);
    const found = inspectTensors(mixed);
    assert.deepEqual(found.dtypes, [["F32", 123_060_480], ["I64", 77]]);
    assert.equal(found.ignored, 1);
    const text = new Map(describeInspection(found));
    assert.equal(text.get("dtype"), "F32 (123,060,480), I64 (77)");
  });

  it("a VAE by old names of its attention, too", () => {
    const old: [RegExp, string][] = [
      [/\.to_q\./, ".query."],
      [/\.to_k\./, ".key."],
      [/\.to_v\./, ".value."],
      [/\.to_out\.0\./, ".proj_attn."],
    ];
    const entries = part("vae").map(([name, shape]): Entry => [
      old.reduce((key, [now, then]) => key.replace(now, then), name),
      shape,
    ]);
    const found = inspectTensors(header(entries));
    assert.equal(found.kind, "vae");
    assert.deepEqual([found.missing, found.superfluous], [[], []]);
  });
});
