/**
 * Names of single-file (LDM, CompVis) checkpoints of Stable Diffusion 1.x, in diffusers' terms.
 *
 * @module
 */

/** A tensor of a single-file checkpoint: which model it belongs to, and its name there. */
export interface StoredName {
  /** Model folder of a diffusers checkpoint. */
  readonly part: "unet" | "vae" | "text_encoder" | "controlnet";
  /** Name in that model's state dict. */
  readonly name: string;
}

const PREFIXES = [
  ["model.diffusion_model.", "unet", unetName],
  ["first_stage_model.", "vae", vaeName],
  ["cond_stage_model.transformer.", "text_encoder", (name: string) => name],
  ["control_model.", "controlnet", controlNetName],
] as const;

/** Resolutions of SD 1.x, and ResNet blocks on the way down at each. */
const STAGES = 4;
const LAYERS = 2;

/**
 * Translates a key of a single-file checkpoint.
 *
 * @returns `null` for what is no weight of SD 1.x: EMA copies, schedules, training state.
 */
export function ldmToDiffusers(key: string): StoredName | null {
  for (const [prefix, part, translate] of PREFIXES) {
    if (!key.startsWith(prefix)) continue;
    const name = translate(key.slice(prefix.length));
    return name === null ? null : { part, name };
  }
  return null;
}

/** Parts of a ResNet block, in the UNet's numbering. */
const RESNET: Readonly<Record<string, string>> = {
  "in_layers.0": "norm1",
  "in_layers.2": "conv1",
  "emb_layers.1": "time_emb_proj",
  "out_layers.0": "norm2",
  "out_layers.3": "conv2",
  "skip_connection": "conv_shortcut",
};

const TOP: Readonly<Record<string, string>> = {
  "time_embed.0": "time_embedding.linear_1",
  "time_embed.2": "time_embedding.linear_2",
  "input_blocks.0.0": "conv_in",
  "out.0": "conv_norm_out",
  "out.2": "conv_out",
};

function unetName(name: string): string | null {
  for (const [ldm, diffusers] of Object.entries(TOP)) {
    if (name.startsWith(`${ldm}.`)) return diffusers + name.slice(ldm.length);
  }
  const middle = /^middle_block\.([012])\.(.+)$/.exec(name);
  if (middle) {
    const [, layer, rest] = middle;
    return layer === "1"
      ? `mid_block.attentions.0.${rest}`
      : resnet(`mid_block.resnets.${Number(layer) / 2}`, rest);
  }
  const block = /^(input|output)_blocks\.(\d+)\.(\d)\.(.+)$/.exec(name);
  if (!block) return null;
  const [, way, at, part, rest] = block;
  return way === "input"
    ? inputBlock(Number(at) - 1, part, rest)
    : outputBlock(Number(at), part, rest);
}

/** The convolutions that a map passes through; what lies between them has no weights. */
const HINT = [
  "conv_in",
  ...Array.from({ length: 6 }, (_, i) => `blocks.${i}`),
  "conv_out",
];

/** A ControlNet has the UNet's names, and three of its own. */
function controlNetName(name: string): string | null {
  const hint = /^input_hint_block\.(\d+)\.(.+)$/.exec(name);
  if (hint) {
    const layer = HINT[Number(hint[1]) / 2];
    return layer ? `controlnet_cond_embedding.${layer}.${hint[2]}` : null;
  }
  const zero = /^(zero_convs\.(\d+)|middle_block_out)\.0\.(.+)$/.exec(name);
  if (!zero) return unetName(name);
  const [, , at, rest] = zero;
  return at === undefined ? `controlnet_mid_block.${rest}` : `controlnet_down_blocks.${at}.${rest}`;
}

/** On the way down each stage is its ResNet blocks, then the downsampler. */
function inputBlock(at: number, part: string, rest: string): string | null {
  const stage = Math.floor(at / (LAYERS + 1));
  const layer = at % (LAYERS + 1);
  if (part === "1") return `down_blocks.${stage}.attentions.${layer}.${rest}`;
  if (rest.startsWith("op.")) return `down_blocks.${stage}.downsamplers.0.conv${rest.slice(2)}`;
  return resnet(`down_blocks.${stage}.resnets.${layer}`, rest);
}

/** On the way up the upsampler follows the last layer, as part 1 or 2. */
function outputBlock(at: number, part: string, rest: string): string | null {
  const stage = Math.floor(at / (LAYERS + 1));
  const layer = at % (LAYERS + 1);
  if (part === "0") return resnet(`up_blocks.${stage}.resnets.${layer}`, rest);
  if (rest.startsWith("conv.")) return `up_blocks.${stage}.upsamplers.0.${rest}`;
  return `up_blocks.${stage}.attentions.${layer}.${rest}`;
}

function resnet(path: string, rest: string): string | null {
  const at = rest.lastIndexOf(".");
  const part = RESNET[rest.slice(0, at)];
  return part ? `${path}.${part}${rest.slice(at)}` : null;
}

/** Attention of the autoencoder. */
const ATTENTION: Readonly<Record<string, string>> = {
  norm: "group_norm",
  q: "to_q",
  k: "to_k",
  v: "to_v",
  proj_out: "to_out.0",
};

function vaeName(name: string): string | null {
  if (name.startsWith("loss.")) return null; // the discriminator, needed for training only
  return name
    // The decoder counts its stages from the picture, diffusers from the latents.
    .replace(/^decoder\.up\.(\d+)/, (_, i: string) => `decoder.up_blocks.${STAGES - 1 - Number(i)}`)
    .replace(/^encoder\.down\.(\d+)/, "encoder.down_blocks.$1")
    .replace(/\.block\.(\d+)\./, ".resnets.$1.")
    .replace(/\.mid\.block_([12])\./, (_, i: string) => `.mid_block.resnets.${Number(i) - 1}.`)
    .replace(
      /\.mid\.attn_1\.(\w+)\./,
      (_, part: string) => `.mid_block.attentions.0.${ATTENTION[part] ?? part}.`,
    )
    .replace(".downsample.conv.", ".downsamplers.0.conv.")
    .replace(".upsample.conv.", ".upsamplers.0.conv.")
    .replace(".nin_shortcut.", ".conv_shortcut.")
    .replace(".norm_out.", ".conv_norm_out.");
}
