/**
 * LoRA files of every naming, written from one description, and what they must do to a weight.
 *
 * @module
 */

import { diffusersToLdm } from "../bench/ldm_layout.ts";
import { encodeSafetensors, type TensorData } from "../core/safetensors.ts";
import type { Shape } from "../core/shape.ts";
import { readConfigs } from "../models/checkpoint.ts";
import type { AdaptedPart } from "../models/lora_names.ts";
import type { PartConfigs } from "../models/sd15.ts";
import { stateDicts } from "../models/state_dict.ts";
import { TINY } from "./tiny_single_file.ts";

/** A tiny model with the blocks of SD 1.x, which the LoRAs are for. */
export const configs: PartConfigs = await readConfigs(TINY);

/** A transformer block of its UNet. */
export const BLOCK = "up_blocks.1.attentions.2.transformer_blocks.0";

/** A layer of its text encoder. */
export const TEXT = "text_model.encoder.layers.1";

/** The change of one weight. */
export interface Layer {
  readonly part: AdaptedPart;
  /** Path in diffusers' names, without `.weight`. */
  readonly module: string;
  /** Shape of the weight. */
  readonly weight: Shape;
  readonly rank: number;
  readonly down: Float32Array<ArrayBuffer>;
  readonly up: Float32Array<ArrayBuffer>;
  /** `[r, r, h, w]`; `down` is then `[r, I]`. */
  readonly mid?: Float32Array<ArrayBuffer>;
  readonly alpha?: number;
}

/** Numbers without a pattern, the same for the same seed. */
export function numbers(count: number, seed: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: count }, (_, i) => {
    const wave = Math.sin((i + 1) * 12.9898 + seed * 78.233) * 43758.5453;
    return 0.2 * (wave - Math.floor(wave)) - 0.1;
  });
}

/** A change with arbitrary factors. */
export function layer(
  part: AdaptedPart,
  module: string,
  weight: Shape,
  { rank = 3, alpha, cp = false, seed = 1 }: {
    rank?: number;
    alpha?: number;
    cp?: boolean;
    seed?: number;
  } = {},
): Layer {
  const [outputs, inputs, ...kernel] = weight;
  const cells = kernel.reduce((product, n) => product * n, 1);
  return {
    part,
    module,
    weight,
    rank,
    alpha,
    up: numbers(outputs * rank, seed),
    down: numbers(rank * inputs * (cp ? 1 : cells), seed + 1),
    ...(cp && { mid: numbers(rank * rank * cells, seed + 2) }),
  };
}

const dicts = stateDicts(configs);

/** A change of a weight of the tiny model. */
export function tinyLayer(
  part: AdaptedPart,
  module: string,
  options?: Parameters<typeof layer>[3],
): Layer {
  return layer(part, module, dicts[part].get(`${module}.weight`) ?? [], options);
}

/** How a tool names the tensors of a change. */
export type Naming = (layer: Layer, role: "down" | "up" | "mid" | "alpha") => string;

const flat = (path: string) => path.replaceAll(".", "_");
const SHORT = { unet: "unet", text_encoder: "te" } as const;
const kohya = (prefix: string, role: string) =>
  `${prefix}.${role === "alpha" ? role : `lora_${role}.weight`}`;

/** `lora_A` is down, `lora_B` is up. */
const PEFT = { down: "lora_A.weight", up: "lora_B.weight", mid: "lora_mid.weight", alpha: "alpha" };

/** All namings; those of attention processors know attention layers only. */
export const NAMINGS: Readonly<Record<string, Naming>> = {
  kohya: ({ part, module }, role) => kohya(`lora_${SHORT[part]}_${flat(module)}`, role),
  "kohya with LDM blocks": ({ part, module, weight }, role) => {
    if (part === "text_encoder") return kohya(`lora_te_${flat(module)}`, role);
    const { name } = diffusersToLdm(part, `${module}.weight`, weight);
    const path = name.replace(/^model\.diffusion_model\.|\.weight$/g, "");
    return kohya(`lora_unet_${flat(path)}`, role);
  },
  "LDM with dots": ({ part, module, weight }, role) => {
    const { name } = diffusersToLdm(part, `${module}.weight`, weight);
    return `${name.replace(/^model\./, "").replace(/\.weight$/, "")}.${PEFT[role]}`;
  },
  diffusers: ({ part, module }, role) =>
    role === "alpha"
      ? `${part}.${module}.alpha`
      : `${part}.${module}.${part === "unet" ? "lora" : "lora_linear_layer"}.${role}.weight`,
  PEFT: ({ part, module }, role) => `${part}.${module}.${PEFT[role]}`,
  "PEFT, wrapped": ({ part, module }, role) => `${part}.base_model.model.${module}.${PEFT[role]}`,
  "PEFT, alone": ({ module }, role) =>
    `base_model.model.${module}.${PEFT[role].replace(".weight", ".default.weight")}`,
  "text encoder without its first level": ({ part, module }, role) =>
    `${part}.${module.replace(/^text_model\./, "")}.${PEFT[role]}`,
};

/** Names of attention processors, which only attention layers have. */
export const processors: Naming = ({ part, module }, role) => {
  const path = part === "unet"
    ? module.replace(/\.(to_[qkv]|to_out)(\.0)?$/, ".processor.$1")
    : `text_encoder.${module.replace(/\.(q|k|v|out)_proj$/, ".to_$1")}`;
  return role === "alpha" ? `${path}_lora.alpha` : `${path}_lora.${role}.weight`;
};

/** The tensors of a LoRA file. */
export function loraTensors(layers: readonly Layer[], naming: Naming): TensorData[] {
  return layers.flatMap((layer): TensorData[] => {
    const { weight: [outputs, inputs, ...kernel], rank, down, up, mid, alpha } = layer;
    const ones = kernel.map(() => 1);
    const tensor = (role: "down" | "up" | "mid", shape: Shape, data: typeof up): TensorData => {
      return { name: naming(layer, role), dtype: "F32", shape, data };
    };
    return [
      tensor("down", [rank, inputs, ...(mid ? ones : kernel)], down),
      tensor("up", [outputs, rank, ...ones], up),
      ...(mid ? [tensor("mid", [rank, rank, ...kernel], mid)] : []),
      ...(alpha === undefined ? [] : [{
        name: naming(layer, "alpha"),
        dtype: "F32" as const,
        shape: [],
        data: Float32Array.of(alpha),
      }]),
    ];
  });
}

/** A LoRA file. */
export function loraFile(
  layers: readonly Layer[],
  naming: Naming = NAMINGS.kohya,
  metadata: Record<string, string> = {},
): Uint8Array<ArrayBuffer> {
  return new Uint8Array(encodeSafetensors(loraTensors(layers, naming), metadata));
}

/** `(α / r) · up · down` in float64, element by element. */
export function changeOf({ weight, rank, down, up, mid, alpha = rank }: Layer): Float64Array {
  const [outputs, inputs, ...kernel] = weight;
  const cells = kernel.reduce((product, n) => product * n, 1);
  const out = new Float64Array(outputs * inputs * cells);
  for (let o = 0; o < outputs; o++) {
    for (let i = 0; i < inputs; i++) {
      for (let x = 0; x < cells; x++) {
        let sum = 0;
        for (let p = 0; p < rank; p++) {
          let inner = 0;
          if (!mid) inner = down[(p * inputs + i) * cells + x];
          for (let q = 0; mid && q < rank; q++) {
            inner += mid[(p * rank + q) * cells + x] * down[q * inputs + i];
          }
          sum += up[o * rank + p] * inner;
        }
        out[(o * inputs + i) * cells + x] = alpha / rank * sum;
      }
    }
  }
  return out;
}
