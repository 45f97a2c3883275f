/**
 * Reference files in JSON: values printed in the tests of other projects, prompts with their token
 * ids, names of tensors.
 *
 * @module
 */

import { readFile } from "node:fs/promises";
import { dirname } from "node:path";
import {
  alphasCumprod,
  createScheduler,
  DDPMScheduler,
  type Device,
  Generator,
  InputError,
  ldmToDiffusers,
  ops,
  type Scheduler,
  type SchedulerConfig,
} from "../../mod.ts";
import { ClipTokenizer } from "../../models/clip_tokenizer.ts";
import { PARTS } from "../../models/sd15.ts";
import { type Case, type CaseFile, type Outputs, Unsupported, type Wanted } from "./case.ts";
import type { Tolerance } from "./compare.ts";
import {
  countChecksums,
  countStateDicts,
  recipeValues,
  wantedCounts,
  wantedValues,
} from "./fullsize.ts";
import { isRecord, number, numbers, type Params, record, table, text } from "./params.ts";

/** Opens a JSON file; `null` if it is none of the reference files. */
export async function openJson(path: string): Promise<CaseFile | null> {
  const content: unknown = JSON.parse(await readFile(path, "utf8"));
  if (!isRecord(content)) return null;
  const cases = casesOf(content, path);
  return cases && { cases, close: () => Promise.resolve() };
}

function casesOf(content: Params, path: string): Case[] | null {
  if (Array.isArray(content.full_loops)) return publishedCases(content);
  if (Array.isArray(content.prompts) && content.prompts.every(isRecord)) {
    return promptCases(content.prompts, path);
  }
  if (isRecord(content.prefixes)) return [ldmCase(content)];
  if (["parameters", "counts", "unet"].every((key) => key in content)) {
    const want = { tensors: integers(wantedCounts(content)) };
    const run = () => Promise.resolve(countStateDicts(content));
    return [fixedCase("state_dicts", "state_dicts", want, {}, run)];
  }
  if (["unet", "vae", "text_encoder"].every((part) => isRecord(content[part]))) {
    const counts = PARTS.map((part) => Object.keys(record(content, part)).length);
    const want = { tensors: integers(counts) };
    const run: Case["run"] = (setting) => countChecksums(content, setting);
    return [fixedCase("weights_crc32", "weights_crc32", want, {}, run)];
  }
  if ("unet/conv_in.weight" in content) {
    const want = { values: floats(wantedValues(content)) };
    const run = () => Promise.resolve(recipeValues(content));
    return [fixedCase("recipe", "recipe", want, {}, run)];
  }
  return null;
}

function unsupported(op: string, what: string): Case {
  return fixedCase(op, op, {}, {}, () => Promise.reject(new Unsupported(what)));
}

/** A case whose reference values are at hand. */
function fixedCase(
  name: string,
  op: string,
  want: Readonly<Record<string, Wanted>>,
  tolerance: Tolerance,
  run: Case["run"],
): Case {
  return {
    name,
    op,
    family: "host",
    outputs: Object.keys(want),
    tolerance,
    want: (role) => Promise.resolve(want[role] ?? null),
    run,
  };
}

const floats = (data: readonly number[]): Wanted => ({ data, integer: false });
const integers = (data: readonly number[]): Wanted => ({ data, integer: true });

/** Counts, part by part, the names of a single-file checkpoint that are translated rightly. */
function ldmCase(content: Params): Case {
  const parts = Object.keys(record(content, "prefixes"));
  const counts = parts.map((part) => list(content, part).length);
  return fixedCase("ldm_keys", "ldm_keys", { translated: integers(counts) }, {}, () => {
    const right = parts.map((part) =>
      list(content, part).filter((row) => {
        const found = ldmToDiffusers(text(row, "ldm"));
        return found?.part === part && found.name === text(row, "diffusers");
      }).length
    );
    return Promise.resolve({ translated: right });
  });
}

/** `…/test_scheduler_ddim.py::test_variance` without the folders. */
function nameOf(item: Params): string {
  return text(item, "source").split("/").slice(-1)[0];
}

function list(content: Params, key: string): readonly Params[] {
  const value = content[key] ?? [];
  if (Array.isArray(value) && value.every(isRecord)) return value;
  throw new InputError(`"${key}" must be a list of objects`);
}

function publishedCases(content: Params): Case[] {
  const philox = isRecord(content.philox) ? [philoxCase(content.philox)] : [];
  return [
    ...list(content, "full_loops").map(loopCase),
    ...list(content, "closed_forms").map(closedFormCase),
    ...philox,
  ];
}

function loopCase(loop: Params): Case {
  const sum = loop.expected_abs_sum;
  const want = {
    ...(typeof sum === "number" ? { abs_sum: floats([sum]) } : {}),
    abs_mean: floats([number(loop, "expected_abs_mean")]),
  };
  const per_output = {
    abs_sum: { atol: number(loop, "tolerance_sum") },
    abs_mean: { atol: number(loop, "tolerance_mean") },
  };
  return fixedCase(
    nameOf(loop),
    "full_loop",
    want,
    { per_output },
    ({ device }) => fullLoop(loop, device),
  );
}

const IMAGE = [4, 3, 8, 8];
const PIXELS = 768;

/** The sample that the loops begin with or, counted backwards, their noise. */
function ramp(device: Device, backwards: boolean) {
  const values = Float32Array.from({ length: PIXELS }, (_, i) => {
    const at = (i % 192) * 4 + Math.floor(i / 192);
    return (backwards ? PIXELS - 1 - at : at) / PIXELS;
  });
  return device.tensor(values, IMAGE);
}

/** A loop with the model `x·t / (t + 1)`; the file's note says what the modes mean. */
async function fullLoop(loop: Params, device: Device): Promise<Outputs> {
  const config = record(loop, "config") as Partial<SchedulerConfig>;
  const scheduler: Scheduler = createScheduler(text(loop, "scheduler"), config);
  scheduler.setTimesteps(number(loop, "num_inference_steps"));
  const mode = text(loop, "mode");
  const scaled = mode.startsWith("scaled");
  const skip = Number(/:(\d+)/.exec(mode)?.[1] ?? 0) * scheduler.order;
  const timesteps = scheduler.timesteps.slice(skip);
  const generator = new Generator(0);
  let x = device.scope(() => {
    const sample = ops.mul(ramp(device, false), scaled ? scheduler.initNoiseSigma : 1);
    return skip ? scheduler.addNoise(sample, ramp(device, true), timesteps[0]) : sample;
  });
  for (const t of timesteps) {
    const next = device.scope(() => {
      const input = scaled ? scheduler.scaleModelInput(x, t) : x;
      const output = ops.linearCombination([t / (t + 1)], [input]);
      return scheduler.step(output, t, input, { generator }).prevSample;
    });
    x.dispose();
    x = next;
  }
  const values = await x.data();
  x.dispose();
  scheduler.reset();
  const sum = values.reduce((total, value) => total + Math.abs(value), 0);
  return { abs_sum: [sum], abs_mean: [sum / values.length] };
}

/** Posterior variances by timestep, or timesteps: told apart by the form of the values. */
function closedFormCase(item: Params): Case {
  const name = nameOf(item);
  const tolerance = { atol: number(item, "tolerance", 0) };
  const config = record(item, "config") as Partial<SchedulerConfig>;
  const settings = /set_timesteps\((\d+)\) with steps_offset=(\d+)/.exec(text(item, "what"));
  if (settings) {
    const want = { timesteps: integers(numbers(item, "values")) };
    return fixedCase(name, "timesteps", want, tolerance, () => {
      const scheduler = createScheduler("ddim", { steps_offset: Number(settings[2]) });
      scheduler.setTimesteps(Number(settings[1]));
      return Promise.resolve({ timesteps: scheduler.timesteps });
    });
  }
  const rows = table(item, "values");
  const want = { variance: floats(rows.map((row) => row[row.length - 1])) };
  return fixedCase(name, "variance", want, tolerance, () => {
    const alphas = alphasCumprod(config);
    const ddpm = new DDPMScheduler(config);
    const variance = rows.map(([t, before, ...given]) => {
      if (!given.length) return ddpm.variance(t);
      return (1 - alphas[before]) / (1 - alphas[t]) * (1 - alphas[t] / alphas[before]);
    });
    return Promise.resolve({ variance });
  });
}

function philoxCase(item: Params): Case {
  const found = /seed (\d+), shape \(([\d, ]+)\)/.exec(text(item, "what"));
  if (!found) return unsupported("philox", "random numbers whose seed and shape are not stated");
  const shape = found[2].split(",").map(Number);
  const want = { y: floats(table(item, "values").flat()) };
  const tolerance = { atol: number(item, "tolerance") };
  return fixedCase(
    "philox",
    "cuda_philox_randn",
    want,
    tolerance,
    () => Promise.resolve({ y: new Generator(Number(found[1]), "cuda").randn(shape) }),
  );
}

/**
 * Prompts with the ids that OpenAI's tokenizer gives (`openai`), transformers' without ftfy
 * (`hf_basic`, where it differs), or the whole 77 ids (`input_ids`, as transformers). Other
 * variants of transformers are not imitated.
 */
function promptCases(prompts: readonly Params[], path: string): Case[] {
  const folder = dirname(path);
  const loaded = new Map<"basic" | "ftfy", Promise<ClipTokenizer>>();
  const tokenizer = (cleanup: "basic" | "ftfy") => {
    const found = loaded.get(cleanup) ?? ClipTokenizer.load(folder, cleanup);
    loaded.set(cleanup, found);
    return found;
  };
  return prompts.map((item, i) => {
    const prompt = text(item, "prompt");
    if (item.input_ids !== undefined) {
      const want = { input_ids: integers(numbers(item, "input_ids")) };
      return fixedCase(`${i}`, "clip_tokenizer", want, {}, async () => ({
        input_ids: (await tokenizer("basic")).tokenize(prompt).ids,
      }));
    }
    const openai = numbers(item, "openai");
    const basic = item.hf_basic === undefined ? openai : numbers(item, "hf_basic");
    const want = { openai: integers(openai), hf_basic: integers(basic) };
    return fixedCase(`${i}`, "clip_tokenizer", want, {}, async () => ({
      openai: (await tokenizer("ftfy")).encode(prompt),
      hf_basic: (await tokenizer("basic")).encode(prompt),
    }));
  });
}
