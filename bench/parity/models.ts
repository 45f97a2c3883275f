/**
 * Reference files of single models: text encoder, UNet, autoencoder.
 *
 * @module
 */

import { join } from "node:path";
import {
  type AutoencoderKL,
  type ControlResiduals,
  InputError,
  ops,
  type Shape,
  type Tensor,
} from "../../mod.ts";
import { type FrameAttention, SELF } from "../../models/attention.ts";
import type { Observer } from "../../models/weights.ts";
import type { Outputs, Setting } from "./case.ts";
import { weightsFolder } from "./fullsize.ts";
import { choice, flag, number, text } from "./params.ts";
import { folderOf, readInput, type StoredCase, storedCases } from "./stored_case.ts";

/** Runs one case of a model. */
export type ModelOp = (test: StoredCase, setting: Setting) => Promise<Outputs>;

/** The cases of models, by operation. */
export const MODEL_OPS: ReadonlyMap<string, ModelOp> = new Map(
  [
    ["clip_text_model", clipTextModel],
    ["unet2d_condition", unet],
    ["controlnet", controlNet],
    ["unet2d_condition+controlnet", controlledUNet],
    ["vae_encode", vaeEncode],
    ["vae_decode", vaeDecode],
  ] satisfies [string, ModelOp][],
);

/** The folder of the case's model: a small one beside the references, or a full-size one. */
async function modelFolder(test: StoredCase, setting: Setting, part: string): Promise<string> {
  const { params } = test;
  if (params.model !== undefined) return await folderOf(test, text(params, "model"));
  return join(weightsFolder(setting), part);
}

async function upload(test: StoredCase, { device }: Setting, role: string): Promise<Tensor> {
  const { data, shape } = await readInput(test, role);
  return device.tensor(data, shape);
}

/** Inputs as tensors; `null` for those that the case does not have. */
async function uploads<Role extends string>(
  test: StoredCase,
  setting: Setting,
  roles: readonly Role[],
): Promise<Record<Role, Tensor | null>> {
  const made: Partial<Record<Role, Tensor | null>> = {};
  for (const role of roles) {
    made[role] = test.inputs.includes(role) ? await upload(test, setting, role) : null;
  }
  return made as Record<Role, Tensor | null>;
}

function needed(tensor: Tensor | null, role: string): Tensor {
  if (tensor) return tensor;
  throw new InputError(`the case has no input "${role}"`);
}

/** Runs `body`, then frees `inputs`; what it returns lives on. */
function consuming(
  inputs: Readonly<Record<string, Tensor | null>>,
  body: () => Record<string, Tensor>,
): Outputs {
  const { device } = Object.values(inputs).find((tensor) => tensor !== null)!;
  try {
    const outputs = device.scope(body);
    for (const tensor of Object.values(outputs)) tensor.keep();
    return outputs;
  } finally {
    for (const tensor of Object.values(inputs)) tensor?.dispose();
  }
}

/** The intermediate results `act.…` that a case names, in the references' layout. */
function collector(
  { outputs }: StoredCase,
): { seen: Record<string, Tensor>; observer: Observer } {
  const seen: Record<string, Tensor> = {};
  const observer: Observer = (name, output) => {
    const role = `act.${name}`;
    if (!outputs.includes(role)) return;
    // Tokens are kept channel-major, [B, C, N]; the references have [B, N, C].
    const theirs = output.shape.length === 3
      ? ops.permute(output, [0, 2, 1])
      : output.reshape(output.shape);
    seen[role] = theirs.keep();
  };
  return { seen, observer };
}

/** Calls `body` while the outputs of a model's parts are collected, if the case wants them. */
function observing(
  test: StoredCase,
  model: { observe(observer: Observer | null): void },
  body: () => Record<string, Tensor>,
): Record<string, Tensor> {
  const { seen, observer } = collector(test);
  const wanted = test.outputs.some((role) => role.startsWith("act."));
  if (!wanted) return body();
  model.observe(observer);
  try {
    return { ...body(), ...seen };
  } finally {
    model.observe(null);
  }
}

async function clipTextModel(test: StoredCase, setting: Setting): Promise<Outputs> {
  const model = await setting.models.textEncoder(
    await modelFolder(test, setting, "text_encoder"),
  );
  const { data, shape: [rows, length] } = await readInput(test, "input_ids");
  const ids = Array.from({ length: rows }, (_, i) => data.slice(i * length, (i + 1) * length));
  const skip = test.outputs.includes("clip_skip1");
  return setting.device.scope(() => {
    const { lastHiddenState, hiddenStates, pooled, textEmbeds } = model.forward(ids);
    const before = hiddenStates[hiddenStates.length - 2];
    const outputs = {
      last_hidden_state: lastHiddenState,
      hidden_states_m2: before,
      embeddings: hiddenStates[0],
      pooled,
      ...(skip ? { clip_skip1: model.finalNorm(before) } : {}),
      ...(textEmbeds ? { text_embeds: textEmbeds } : {}),
    };
    for (const tensor of Object.values(outputs)) tensor.keep();
    return outputs;
  });
}

const MODES = ["self", "first", "previous", "first+previous", "all"] as const;

function framesOf({ params: p }: StoredCase): FrameAttention {
  if (p.mode === undefined) return SELF;
  return { mode: choice(p, "mode", MODES), frames: number(p, "frames") };
}

async function unet(test: StoredCase, setting: Setting): Promise<Outputs> {
  const model = await setting.models.unet(await modelFolder(test, setting, "unet"));
  const timestep = await readInput(test, "timestep");
  const inputs = await uploads(test, setting, ["sample", "encoder_hidden_states"]);
  return consuming(inputs, () => {
    const t = timestep.data.length === 1
      ? timestep.data[0]
      : setting.device.tensor(Float32Array.from(timestep.data), timestep.shape);
    const sample = needed(inputs.sample, "sample");
    const words = needed(inputs.encoder_hidden_states, "encoder_hidden_states");
    return observing(test, model, () => ({
      y: model.forward(sample, t, words, { frames: framesOf(test) }),
    }));
  });
}

const CONTROL_ROLES = ["sample", "timestep", "encoder_hidden_states", "cond"] as const;

/**
 * Inputs of a case of a ControlNet. What it does not store is that of the first case with the same
 * model that does.
 */
async function controlInputs(
  test: StoredCase,
  { device }: Setting,
): Promise<Record<typeof CONTROL_ROLES[number], Tensor>> {
  const { file, path, name, op, params } = test;
  const alike = (storedCases(file, path) ?? [])
    .filter((other) => other.op === op && other.params.model === params.model);
  const entries = await Promise.all(CONTROL_ROLES.map(async (role) => {
    const holder = [test, ...alike].find((other) => other.inputs.includes(role));
    if (!holder) throw new InputError(`${path}: no case like ${name} stores its ${role}`);
    const { data, shape } = await readInput(holder, role);
    return [role, device.tensor(Float32Array.from(data), shape)] as const;
  }));
  return Object.fromEntries(entries) as Record<typeof CONTROL_ROLES[number], Tensor>;
}

/** The residuals of a case of a ControlNet, and what the net makes of the maps. */
async function controlOf(test: StoredCase, setting: Setting) {
  const { params: p } = test;
  const model = await setting.models.controlNet(await modelFolder(test, setting, "controlnet"));
  const inputs = await controlInputs(test, setting);
  const run = (): { residuals: ControlResiduals; embedded: Tensor } => {
    const embedded = model.embed(inputs.cond);
    const { sample, timestep, encoder_hidden_states: words } = inputs;
    const residuals = model.forward(sample, timestep, words, embedded, {
      frames: framesOf(test),
      scale: number(p, "conditioning_scale", 1),
      guessMode: flag(p, "guess_mode", false),
    });
    return { residuals, embedded };
  };
  return { inputs, run };
}

async function controlNet(test: StoredCase, setting: Setting): Promise<Outputs> {
  const { inputs, run } = await controlOf(test, setting);
  return consuming(inputs, () => {
    const { residuals: { down, mid }, embedded } = run();
    const skips = Object.fromEntries(down.map((tensor, i) => [`down_${i}`, tensor]));
    return { ...skips, ...(mid && { mid }), cond_embedding: embedded };
  });
}

/** A UNet with the residuals of another case of the same file, for the inputs of that. */
async function controlledUNet(test: StoredCase, setting: Setting): Promise<Outputs> {
  const name = text(test.params, "controlnet");
  const other = storedCases(test.file, test.path)?.find((found) => found.name === name);
  if (!other) throw new InputError(`${test.path}: there is no case ${name}`);
  const model = await setting.models.unet(await modelFolder(test, setting, "unet"));
  const { inputs, run } = await controlOf(other, setting);
  return consuming(inputs, () => {
    const { residuals: control } = run();
    const { sample, timestep, encoder_hidden_states: words } = inputs;
    return { y: model.forward(sample, timestep, words, { frames: framesOf(test), control }) };
  });
}

/** Pixels that one value of the input `image_blocks` stands for, along each side. */
const BLOCK = 8;

async function vaeEncode(test: StoredCase, setting: Setting): Promise<Outputs> {
  const model = await setting.models.vae(await modelFolder(test, setting, "vae"));
  const inputs = await uploads(test, setting, ["image", "image_blocks", "noise"]);
  return consuming(inputs, () => {
    const image = inputs.image ??
      ops.interpolate(needed(inputs.image_blocks, "image"), { scaleFactor: BLOCK });
    return observing(test, model, () => {
      const { moments, mean, logvar } = model.encode(image);
      return { moments, mean, logvar, ...drawn(model, mean, logvar, inputs.noise) };
    });
  });
}

/** `x = μ + σ·ε` with `σ = exp(½ log σ²)`, where the case gives ε. */
function drawn(
  { config }: AutoencoderKL,
  mean: Tensor,
  logvar: Tensor,
  noise: Tensor | null,
): Record<string, Tensor> {
  if (!noise) return {};
  const sample = ops.add(mean, ops.mul(ops.exp(ops.mul(logvar, 0.5)), noise));
  return { sample, scaled_sample: ops.mul(sample, config.scalingFactor) };
}

async function vaeDecode(test: StoredCase, setting: Setting): Promise<Outputs> {
  const model = await setting.models.vae(await modelFolder(test, setting, "vae"));
  const inputs = await uploads(test, setting, ["latents"]);
  const scale = number(test.params, "scaling_factor", 1);
  return consuming(inputs, () => {
    const latents = ops.mul(needed(inputs.latents, "latents"), 1 / scale);
    return observing(test, model, () => {
      const y = model.decode(latents);
      const size = y.shape.slice(2);
      const patch = test.file.tensors.get(`${test.name}/y_patch`)?.shape;
      return {
        y,
        ...(patch ? { y_patch: centre(y, patch) } : {}),
        image01: ops.clamp(ops.add(ops.mul(y, 0.5), 0.5), 0, 1),
        y_every4: ops.slice(y, [0, 0], size, [2, 3], [4, 4]),
        y_row_means: ops.mean(y, [3]),
      };
    });
  });
}

/** The middle of pictures, of the size of `shape`. */
function centre(pictures: Tensor, shape: Shape): Tensor {
  const from = [2, 3].map((axis) => (pictures.shape[axis] - shape[axis]) >> 1);
  return ops.slice(pictures, from, from.map((at, k) => at + shape[2 + k]), [2, 3]);
}
