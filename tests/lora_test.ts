/**
 * LoRA: merged weights equal the formula in float64, whatever the file's naming.
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, describe, it, test } from "node:test";
import { openDevice } from "../core/device.ts";
import { encodeSafetensors, type TensorData } from "../core/safetensors.ts";
import { openWeights, stemOf } from "../models/checkpoint.ts";
import { closeAdapters, type LoraChoice, mergedWeights, openAdapters } from "../models/lora.ts";
import { ADAPTED_PARTS, loraPlaces } from "../models/lora_names.ts";
import { SD15 } from "../models/sd15.ts";
import { stateDicts } from "../models/state_dict.ts";
import {
  BLOCK,
  changeOf,
  configs,
  type Layer,
  loraFile,
  loraTensors,
  NAMINGS,
  numbers,
  processors,
  TEXT,
  tinyLayer,
} from "./lora_files.ts";
import { TINY } from "./tiny_single_file.ts";

const device = await openDevice();
after(() => device.close());

const ATTENTION = [
  tinyLayer("unet", `${BLOCK}.attn1.to_q`, { alpha: 1.5, seed: 1 }),
  tinyLayer("unet", `${BLOCK}.attn1.to_out.0`, { rank: 1, seed: 2 }),
  tinyLayer("unet", `${BLOCK}.attn2.to_k`, { rank: 8, alpha: 8, seed: 3 }),
];
const TEXT_ATTENTION = [
  tinyLayer("text_encoder", `${TEXT}.self_attn.out_proj`, { alpha: 2, seed: 4 }),
];
const UNET = [
  ...ATTENTION,
  tinyLayer("unet", `${BLOCK}.ff.net.0.proj`, { seed: 5 }),
  tinyLayer("unet", `${BLOCK}.ff.net.2`, { seed: 6 }),
  tinyLayer("unet", "up_blocks.1.attentions.2.proj_in", { seed: 7 }),
  tinyLayer("unet", "mid_block.resnets.1.conv2", { alpha: 0.5, seed: 8 }),
  tinyLayer("unet", "down_blocks.1.resnets.0.conv_shortcut", { seed: 9 }),
  tinyLayer("unet", "up_blocks.3.resnets.2.time_emb_proj", { seed: 10 }),
  tinyLayer("unet", "down_blocks.0.downsamplers.0.conv", { seed: 11 }),
  tinyLayer("unet", "up_blocks.0.upsamplers.0.conv", { rank: 2, seed: 12 }),
  tinyLayer("unet", "conv_in", { seed: 13 }),
  tinyLayer("unet", "conv_out", { seed: 14 }),
  tinyLayer("unet", "time_embedding.linear_2", { seed: 15 }),
];
const ALL = [
  ...UNET,
  ...TEXT_ATTENTION,
  tinyLayer("text_encoder", `${TEXT}.mlp.fc1`, { seed: 16 }),
  tinyLayer("text_encoder", "text_model.encoder.layers.0.self_attn.v_proj", { seed: 17 }),
];

/** Weight names → what must be added to them. */
function sums(parts: readonly (readonly [readonly Layer[], number])[]): Map<string, Float64Array> {
  const all = new Map<string, Float64Array>();
  for (const [layers, weight] of parts) {
    for (const one of layers) {
      const name = `${one.part}/${one.module}.weight`;
      const change = changeOf(one);
      const before = all.get(name);
      all.set(name, change.map((value, i) => weight * value + (before?.[i] ?? 0)));
    }
  }
  return all;
}

/** Checks every weight of the model with adapters against the formula. */
async function checkMerged(
  choices: readonly LoraChoice[],
  changes: ReadonlyMap<string, Float64Array>,
): Promise<void> {
  const adapters = await openAdapters(choices, configs);
  let changed = 0;
  for (const part of ADAPTED_PARTS) {
    const stored = await openWeights(join(TINY, part), stemOf(part));
    const merged = mergedWeights(stored, part, adapters, device);
    for (const [name, { file, key }] of merged.tensors) {
      const change = changes.get(`${part}/${name}`);
      const base = stored.tensors.get(name)!;
      if (!change) {
        assert.deepEqual(await file.read(key), await base.file.read(base.key), name);
        continue;
      }
      changed++;
      const before = await base.file.readF32(base.key);
      const after = await file.readF32(key);
      for (let i = 0; i < after.length; i++) {
        const wanted = before[i] + change[i];
        if (
          Math.abs(after[i] - wanted) <= 3e-7 * (Math.abs(before[i]) + Math.abs(change[i]) + 0.1)
        ) continue;
        assert.fail(`${name}[${i}]: got ${after[i]}, want ${wanted}`);
      }
      const bytes = new Uint8Array(after.buffer);
      const piece = await file.readPart(key, 8, 12);
      assert.deepEqual(piece, bytes.slice(8, 20), name);
      assert.deepEqual(await file.read(key), bytes, name);
    }
    await merged.close();
  }
  await closeAdapters(adapters);
  assert.equal(changed, changes.size);
}

describe("merged weights equal W + α/r · up · down", () => {
  const parts: Readonly<Record<string, readonly Layer[]>> = {
    "LDM with dots": UNET,
    "text encoder without its first level": ALL.filter(({ part }) => part === "text_encoder"),
  };
  for (const [name, naming] of Object.entries(NAMINGS)) {
    it(`in the names of ${name}`, async () => {
      const layers = parts[name] ?? ALL;
      await checkMerged([{ file: loraFile(layers, naming) }], sums([[layers, 1]]));
    });
  }

  it("in the names of attention processors", async () => {
    const layers = [...ATTENTION, ...TEXT_ATTENTION];
    await checkMerged([{ file: loraFile(layers, processors) }], sums([[layers, 1]]));
  });

  it("for convolutions decomposed with lora_mid", async () => {
    const layers = [
      tinyLayer("unet", "mid_block.resnets.1.conv2", { cp: true, alpha: 6 }),
      tinyLayer("unet", "conv_in", { cp: true, rank: 5, seed: 9 }),
    ];
    await checkMerged([{ file: loraFile(layers) }], sums([[layers, 1]]));
  });

  it("for several files with weights, also negative ones and zero", async () => {
    const other = UNET.slice(2, 8).map(({ module }, i) =>
      tinyLayer("unet", module, { rank: 2 + i, alpha: 1, seed: 40 + i })
    );
    await checkMerged([
      { file: loraFile(ALL), weight: 0.75 },
      { file: loraFile(other, NAMINGS.PEFT), weight: -1.5 },
      { file: loraFile(TEXT_ATTENTION), weight: 0 },
    ], sums([[ALL, 0.75], [other, -1.5]]));
  });

  it("with α in diffusers' metadata", async () => {
    const [q, out, k] = ATTENTION.map(({ module, rank }, i) =>
      tinyLayer("unet", module, { rank, seed: 60 + i })
    );
    const file = (settings: unknown) =>
      loraFile([q, out, k], NAMINGS.PEFT, { lora_adapter_metadata: JSON.stringify(settings) });
    const plain = file({ "unet.lora_alpha": 6, "unet.alpha_pattern": { "attn1.to_q": 12 } });
    await checkMerged(
      [{ file: plain }],
      sums([[[{ ...q, alpha: 12 }], 1], [[
        { ...out, alpha: 6 },
        { ...k, alpha: 6 },
      ], 1]]),
    );
    const stabilised = file({ "unet.lora_alpha": 6, "unet.use_rslora": true });
    const roots = [q, out, k].map((one) => ({ ...one, alpha: 6 * Math.sqrt(one.rank) }));
    await checkMerged([{ file: stabilised }], sums([[roots, 1]]));
  });

  it("for half-precision factors and an integer α", async () => {
    const [one] = ATTENTION;
    const eighths = (values: Float32Array) => values.map((value) => Math.round(value * 80) / 8);
    const exact = { ...one, up: eighths(one.up), down: eighths(one.down), alpha: 2 };
    const tensors = loraTensors([exact], NAMINGS.kohya).map((tensor): TensorData => {
      if (tensor.name.endsWith("alpha")) {
        return { ...tensor, dtype: "I64", data: BigInt64Array.of(2n) };
      }
      const words = new Uint32Array(
        Float32Array.from(tensor.data as unknown as Float32Array).buffer,
      );
      return { ...tensor, dtype: "BF16", data: Uint16Array.from(words, (word) => word >>> 16) };
    });
    await checkMerged([{ file: new Uint8Array(encodeSafetensors(tensors)) }], sums([[[exact], 1]]));
  });
});

test("every matrix of SD 1.5 has a name of its own in every naming", () => {
  const place = loraPlaces(SD15);
  const namings = Object.entries(NAMINGS);
  for (const part of ADAPTED_PARTS) {
    for (const [name, weight] of stateDicts(SD15)[part]) {
      if (weight.length < 2) continue;
      const module = name.replace(/\.weight$/, "");
      const one = { part, module, weight, rank: 1, up: numbers(1, 1), down: numbers(1, 1) };
      for (const [title, naming] of namings) {
        if (title === "LDM with dots" && part === "text_encoder") continue;
        const key = naming(one, "down");
        assert.deepEqual(place(key), { part, module, role: "down" }, `${title}: ${key}`);
      }
    }
  }
});
