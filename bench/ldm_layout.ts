/**
 * The way back from diffusers' names to those of single-file (LDM, CompVis) checkpoints, for writing
 * such files. `models/ldm_names.ts` reads them.
 *
 * @module
 */

import type { Shape } from "../core/shape.ts";
import type { InspectedPart } from "../models/inspect.ts";

/** A tensor as a single file stores it. */
export interface LdmTensor {
  /** Its key. */
  readonly name: string;
  /** Its shape: the autoencoder's attention has 1×1 convolutions in the place of linear layers. */
  readonly shape: Shape;
}

/** Translates a tensor of SD 1.x, `name` and `shape` being diffusers'. */
export function diffusersToLdm(part: InspectedPart, name: string, shape: Shape): LdmTensor {
  if (part === "text_encoder") return { name: `cond_stage_model.transformer.${name}`, shape };
  if (part === "unet") return { name: `model.diffusion_model.${unetKey(name)}`, shape };
  if (part === "controlnet") return { name: `control_model.${controlNetKey(name)}`, shape };
  const key = vaeKey(name);
  const squeezed = /attn_1\.(q|k|v|proj_out)\.weight$/.test(key);
  return { name: `first_stage_model.${key}`, shape: squeezed ? [...shape, 1, 1] : shape };
}

/** Blocks of a stage in the flat lists of LDM: two layers and a sampler, or three layers. */
const PER_STAGE = 3;

const RESNET: Readonly<Record<string, string>> = {
  norm1: "in_layers.0",
  conv1: "in_layers.2",
  time_emb_proj: "emb_layers.1",
  norm2: "out_layers.0",
  conv2: "out_layers.3",
  conv_shortcut: "skip_connection",
};

const TOP: Readonly<Record<string, string>> = {
  "time_embedding.linear_1": "time_embed.0",
  "time_embedding.linear_2": "time_embed.2",
  conv_in: "input_blocks.0.0",
  conv_norm_out: "out.0",
  conv_out: "out.2",
};

function unetKey(name: string): string {
  const at = name.lastIndexOf(".");
  const top = TOP[name.slice(0, at)];
  if (top) return top + name.slice(at);
  return name
    .replace(/^mid_block\.resnets\.(\d)\./, (_, j: string) => `middle_block.${2 * Number(j)}.`)
    .replace(/^mid_block\.attentions\.0\./, "middle_block.1.")
    .replace(
      /^(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\./,
      (_, way: string, i: string, kind: string, j: string) => {
        const block = PER_STAGE * Number(i) + Number(j);
        const list = way === "down" ? `input_blocks.${block + 1}` : `output_blocks.${block}`;
        return `${list}.${kind === "resnets" ? 0 : 1}.`;
      },
    )
    .replace(
      /^down_blocks\.(\d)\.downsamplers\.0\.conv\./,
      (_, i: string) => `input_blocks.${PER_STAGE * (Number(i) + 1)}.0.op.`,
    )
    .replace(
      // The first stage upwards has no attention, so its upsampler comes one place earlier.
      /^up_blocks\.(\d)\.upsamplers\.0\./,
      (_, i: string) => `output_blocks.${PER_STAGE * Number(i) + 2}.${i === "0" ? 1 : 2}.`,
    )
    .replace(
      /\.(norm1|conv1|time_emb_proj|norm2|conv2|conv_shortcut)\.(weight|bias)$/,
      (found, layer: string, kind: string) =>
        name.includes(".resnets.") ? `.${RESNET[layer]}.${kind}` : found,
    );
}

/** The layers of a map's embedding; between two of them lies an activation. */
const HINT = ["conv_in", ...Array.from({ length: 6 }, (_, i) => `blocks.${i}`), "conv_out"];

function controlNetKey(name: string): string {
  const [, hint, rest] = /^controlnet_cond_embedding\.(.+)\.(weight|bias)$/.exec(name) ?? [];
  if (hint !== undefined) return `input_hint_block.${2 * HINT.indexOf(hint)}.${rest}`;
  return unetKey(name)
    .replace(/^controlnet_down_blocks\.(\d+)\./, "zero_convs.$1.0.")
    .replace(/^controlnet_mid_block\./, "middle_block_out.0.");
}

const ATTENTION: Readonly<Record<string, string>> = {
  group_norm: "norm",
  to_q: "q",
  to_k: "k",
  to_v: "v",
  "to_out.0": "proj_out",
};

/** Stages of SD 1.x's autoencoder. */
const STAGES = 4;

function vaeKey(name: string): string {
  return name
    .replace(/^decoder\.up_blocks\.(\d)/, (_, i: string) => `decoder.up.${STAGES - 1 - Number(i)}`)
    .replace(/^encoder\.down_blocks\.(\d)/, "encoder.down.$1")
    .replace(/\.mid_block\.resnets\.(\d)\./, (_, j: string) => `.mid.block_${Number(j) + 1}.`)
    .replace(
      /\.mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)\./,
      (_, layer: string) => `.mid.attn_1.${ATTENTION[layer]}.`,
    )
    .replace(/\.resnets\.(\d)\./, ".block.$1.")
    .replace(".downsamplers.0.conv.", ".downsample.conv.")
    .replace(".upsamplers.0.conv.", ".upsample.conv.")
    .replace(".conv_shortcut.", ".nin_shortcut.")
    .replace(".conv_norm_out.", ".norm_out.");
}
