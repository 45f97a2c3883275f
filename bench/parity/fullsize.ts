/**
 * Reference files of SD 1.5's full size: names and shapes, the recipe that makes its weights, their
 * checksums, and the checkpoint that `bench/make_fullsize.ts` writes.
 *
 * @module
 */

import { dirname, join } from "node:path";
import { crc32 } from "node:zlib";
import { ClipTokenizer, InputError, openWeights, StableDiffusion } from "../../mod.ts";
import { f16ArrayToF32 } from "../../core/dtype.ts";
import { openSafetensors } from "../../core/safetensors.ts";
import { modelDefaults } from "../../models/config.ts";
import { type Part, PARTS, SD15, SD15_SCHEDULER } from "../../models/sd15.ts";
import { stateDicts } from "../../models/state_dict.ts";
import { fillF16, fnv1a, scaleOf, uniform } from "../recipe.ts";
import { type Outputs, type Setting, Unsupported } from "./case.ts";
import { isRecord, number, numbers, type Params, record } from "./params.ts";
import { readInput, type StoredCase } from "./stored_case.ts";

/** The folder with full-size weights. @throws {Unsupported} if none was given. */
export function weightsFolder({ weights }: Setting): string {
  if (weights !== null) return weights;
  throw new Unsupported("full-size weights, given by --weights");
}

/** `state_dicts.json`: how many tensors of each part have the name and shape stated, and no others. */
export function countStateDicts(content: Params): Outputs {
  const ours = stateDicts(SD15);
  const right = PARTS.map((part) => {
    const list = content[part];
    if (!Array.isArray(list)) throw new InputError(`"${part}" must be a list of names and shapes`);
    const same = list.filter(([name, shape]) => String(ours[part].get(name)) === String(shape));
    return ours[part].size === list.length ? same.length : 0;
  });
  return { tensors: right };
}

/** What {@link countStateDicts} must find. */
export function wantedCounts(content: Params): number[] {
  return PARTS.map((part) => number(record(content, "counts"), part));
}

/** Bytes read at once. */
const PIECE = 4 * 2 ** 20;

/** `weights_crc32.json`: how many tensors of each part, as they are on disk, have that checksum. */
export async function countChecksums(content: Params, setting: Setting): Promise<Outputs> {
  const weights = weightsFolder(setting);
  const right: number[] = [];
  for (const part of PARTS) {
    const stem = part === "text_encoder" ? "model" : "diffusion_pytorch_model";
    const source = await openWeights(join(weights, part), stem);
    try {
      let same = 0;
      for (const [name, wanted] of Object.entries(record(content, part))) {
        const entry = source.tensors.get(name);
        const info = entry?.file.tensors.get(entry.key);
        if (!entry || !info) continue;
        let checksum = 0;
        for (let at = 0; at < info.end - info.begin; at += PIECE) {
          const length = Math.min(PIECE, info.end - info.begin - at);
          checksum = crc32(await entry.file.readPart(entry.key, at, length), checksum);
        }
        if (checksum === wanted) same++;
      }
      right.push(same);
    } finally {
      await source.close();
    }
  }
  return { tensors: right };
}

/** `recipe_examples.json`: the values that our recipe gives for the tensors listed. */
export function recipeValues(content: Params): Outputs {
  const values: number[] = [];
  for (const { part, name, example } of examplesOf(content)) {
    const seed = fnv1a(`${part}/${name}`);
    const shape = stateDicts(SD15)[part].get(name) ?? [];
    const { gain } = scaleOf(name, shape);
    const uniforms = numbers(example, "uniform_first4").map((_, i) => uniform(seed, i));
    const halves = new Uint16Array(numbers(example, "float16_first4").length);
    fillF16(halves, part, name, shape, 0);
    values.push(seed, gain, ...uniforms, ...f16ArrayToF32(halves));
  }
  return { values };
}

/** What {@link recipeValues} must give. */
export function wantedValues(content: Params): number[] {
  return examplesOf(content).flatMap(({ example }) => [
    number(example, "fnv1a"),
    number(example, "gain_float32"),
    ...numbers(example, "uniform_first4"),
    ...numbers(example, "float16_first4"),
  ]);
}

function examplesOf(content: Params): { part: Part; name: string; example: Params }[] {
  return Object.entries(content).flatMap(([key, example]) => {
    const part = PARTS.find((part) => key.startsWith(`${part}/`));
    return part && isRecord(example) ? [{ part, name: key.slice(part.length + 1), example }] : [];
  });
}

/** Words that stand for the tokens of {@link idsTokenizer}. */
const WORDS = "abcdefghijklmnopqrstuvwxyz0123456789";

/**
 * A tokenizer under which a prompt becomes given ids: its vocabulary has a letter for each of them.
 *
 * @param ids Start, content, end, padding.
 */
function idsTokenizer(ids: readonly number[]): { tokenizer: ClipTokenizer; prompt: string } {
  const [start] = ids;
  const end = ids[ids.length - 1];
  const content = ids.slice(1, ids.indexOf(end));
  const distinct = [...new Set(content)];
  if (distinct.length > WORDS.length) {
    throw new InputError(`at most ${WORDS.length} different tokens, got ${distinct.length}`);
  }
  const vocab: Record<string, number> = { "<|startoftext|>": start, "<|endoftext|>": end };
  distinct.forEach((id, i) => vocab[`${WORDS[i]}</w>`] = id);
  const tokenizer = ClipTokenizer.from({ vocab, merges: "" });
  return { tokenizer, prompt: content.map((id) => WORDS[distinct.indexOf(id)]).join(" ") };
}

/** The full-size checkpoint, and a prompt that becomes the ids of `clip.safetensors`, row 0. */
export async function fullsizePipeline(
  test: StoredCase,
  setting: Setting,
): Promise<{ sd: StableDiffusion; prompt: string }> {
  const weights = weightsFolder(setting);
  const { device, models } = setting;
  const clip = await openSafetensors(join(dirname(test.path), "clip.safetensors"));
  try {
    const { data, shape } = await readInput({ ...test, file: clip, name: "clip" }, "input_ids");
    const { tokenizer, prompt } = idsTokenizer(Array.from(data.slice(0, shape[1])));
    const sd = StableDiffusion.of({
      device,
      tokenizer,
      textEncoder: await models.textEncoder(join(weights, "text_encoder")),
      unet: await models.unet(join(weights, "unet")),
      vae: await models.vae(join(weights, "vae")),
      schedulerConfig: SD15_SCHEDULER,
      defaults: modelDefaults({}, "defaults"),
    });
    return { sd, prompt };
  } finally {
    await clip.close();
  }
}
