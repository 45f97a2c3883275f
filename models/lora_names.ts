/**
 * Names in LoRA files, whoever wrote them: kohya's scripts, diffusers old and new, PEFT. All of
 * them spell the path of a module, with dots or underscores between its parts; so paths are compared
 * with every dot written as an underscore.
 *
 * @module
 */

import { ldmToDiffusers } from "./ldm_names.ts";
import type { PartConfigs } from "./sd15.ts";
import { stateDicts } from "./state_dict.ts";

/** The parts of a checkpoint that adapters change. */
export type AdaptedPart = "unet" | "text_encoder";

/** Names of {@linkcode AdaptedPart}. */
export const ADAPTED_PARTS: readonly AdaptedPart[] = ["unet", "text_encoder"];

/** What a tensor of a LoRA is: one of the factors of its product, or the scale of that. */
export type LoraRole = "down" | "up" | "mid" | "alpha";

/** A tensor of a LoRA file: which weight it changes, and how. */
export interface LoraKey {
  /** Part of the checkpoint. */
  readonly part: AdaptedPart;
  /** The weight's module there, in diffusers' names, such as `"mid_block.resnets.0.conv1"`. */
  readonly module: string;
  /** Its role. */
  readonly role: LoraRole;
}

/** Endings of keys. PEFT may put the name of the adapter between; A is down, B is up. */
const ROLES: readonly (readonly [RegExp, LoraRole])[] = [
  [/([._]lora[._]down|\.lora_linear_layer\.down|\.lora_A(\.\w+)?)\.weight$/, "down"],
  [/([._]lora[._]up|\.lora_linear_layer\.up|\.lora_B(\.\w+)?)\.weight$/, "up"],
  [/\.lora_mid\.weight$/, "mid"],
  [/([._]lora|\.lora_linear_layer)?\.alpha$/, "alpha"],
];

/** What a key is called before the path of its module. */
const PREFIXES: readonly (readonly [RegExp, AdaptedPart])[] = [
  [/^(lora_unet_|unet\.|(model\.)?diffusion_model\.)/, "unet"],
  [/^(lora_te1?_|text_encoder\.|cond_stage_model\.transformer\.)/, "text_encoder"],
];

/** PEFT's wrapping of a model, which stands before or behind the name of the part. */
const WRAPPER = /^base_model\.model\./;

/** Adapters that are no plain LoRA, by a key that only they have. */
const OTHERS: readonly (readonly [RegExp, string])[] = [
  [/\.(dora_scale|lora_magnitude_vector(\.\w+)*)$/, "a DoRA"],
  [/\.hada_[wt]\d/, "a LoHa"],
  [/\.lokr_[wt]\d/, "a LoKr"],
  [/[._]oft_(blocks|diag|R)|\.oft_R\./, "an OFT adapter"],
  [/\.[ab][12]\.weight$/, "a GLoRA"],
  [/\.(diff|diff_b|set_weight|w_norm|b_norm)$/, "an adapter of full weights"],
  [/\.lora_B(\.\w+)?\.bias$/, "a LoRA with biases"],
];

/** The kind of an adapter that is no plain LoRA, judged by one of its keys. */
export function otherAdapter(key: string): string | undefined {
  return OTHERS.find(([pattern]) => pattern.test(key))?.[1];
}

/** What a key is in a LoRA, whatever it belongs to. */
export function roleOf(key: string): LoraRole | undefined {
  return ROLES.find(([pattern]) => pattern.test(key))?.[1];
}

const mangled = (path: string) => path.replaceAll(".", "_");

/**
 * Makes the function that places the keys of LoRA files in a model.
 *
 * @returns From a key to its place; `null` if it names no weight of the model.
 */
export function loraPlaces(configs: PartConfigs): (key: string) => LoraKey | null {
  const dicts = stateDicts(configs);
  const modules = Object.fromEntries(ADAPTED_PARTS.map((part) => {
    const matrices = [...dicts[part]].filter(([name, { length }]) =>
      length > 1 && name.endsWith(".weight")
    );
    const paths = matrices.map(([name]) => name.slice(0, -".weight".length));
    return [part, new Map(paths.map((path) => [mangled(path), path]))];
  }));
  return (key) => {
    const [ending, role] = ROLES.find(([pattern]) => pattern.test(key)) ?? [];
    if (!ending || !role) return null;
    let path = key.replace(ending, "").replace(WRAPPER, "");
    const [prefix, part] = PREFIXES.find(([pattern]) => pattern.test(path)) ?? [];
    if (prefix) path = path.replace(prefix, "").replace(WRAPPER, "");
    for (const where of part ? [part] : ADAPTED_PARTS) {
      for (const name of SPELLINGS[where](path)) {
        const module = modules[where].get(name);
        if (module !== undefined) return { part: where, module, role };
      }
    }
    return null;
  };
}

/** What a path may mean, mangled: as it stands, then what old or other tools mean by it. */
const SPELLINGS: Readonly<Record<AdaptedPart, (path: string) => string[]>> = {
  unet(path) {
    // Attention processors held the LoRA layers once, and their output layer was not in a list.
    const plain = mangled(path.replace(".processor.", ".")).replace(/_to_out$/, "_to_out_0");
    return [plain, fromLdm(plain)];
  },
  text_encoder(path) {
    const plain = mangled(path).replace(
      /(_self_attn)_to_(q|k|v|out)$/,
      (_, module: string, layer: string) => `${module}_${layer}_proj`,
    );
    return [plain, `text_model_${plain}`];
  },
};

/** The mangled diffusers name of a mangled path in the original code's names. */
function fromLdm(path: string): string {
  const dotted = path
    .replace(/^(input|output)_blocks_(\d+)_(\d)_/, "$1_blocks.$2.$3.")
    .replace(/^middle_block_(\d)_/, "middle_block.$1.")
    .replace(/^input_blocks_0_0$/, "input_blocks.0.0")
    .replace(/^(time_embed|out)_(\d)$/, "$1.$2")
    .replace(/\b(in_layers|emb_layers|out_layers)_(\d)$/, "$1.$2");
  const placed = ldmToDiffusers(`model.diffusion_model.${dotted}.weight`);
  return placed ? mangled(placed.name.slice(0, -".weight".length)) : path;
}
