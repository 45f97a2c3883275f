/**
 * Samplers by the names that people know them by.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { SchedulerConfig } from "./config.ts";
import { DDIMInverseScheduler, DDIMScheduler } from "./ddim.ts";
import { DDPMScheduler } from "./ddpm.ts";
import { DPMSolverMultistepScheduler } from "./dpm_solver.ts";
import { EulerAncestralDiscreteScheduler, EulerDiscreteScheduler } from "./euler.ts";
import { HeunDiscreteScheduler } from "./heun.ts";
import { LCMScheduler } from "./lcm.ts";
import { LMSDiscreteScheduler } from "./lms.ts";
import { PNDMScheduler } from "./pndm.ts";
import type { Scheduler } from "./schedule.ts";
import { UniPCMultistepScheduler } from "./unipc.ts";

type Config = Partial<SchedulerConfig>;

/** A sampler as it is offered to people. */
export interface SamplerInfo {
  /** Its short name. */
  readonly name: string;
  /** What it is called elsewhere, besides the class name. */
  readonly aliases: readonly string[];
  /** Steps that usually make a good picture. */
  readonly usualSteps: number;
}

interface Entry extends SamplerInfo {
  readonly Class: new (config: Config) => Scheduler;
  /** What makes it differ from others of its class. */
  readonly config?: Config;
}

const MULTISTEP = { Class: DPMSolverMultistepScheduler, usualSteps: 20 };
const KARRAS: Config = {
  use_karras_sigmas: true,
  use_exponential_sigmas: false,
  use_beta_sigmas: false,
};

const ENTRIES: readonly Entry[] = [
  { name: "ddim", aliases: [], Class: DDIMScheduler, usualSteps: 25 },
  { name: "ddpm", aliases: [], Class: DDPMScheduler, usualSteps: 50 },
  { name: "pndm", aliases: ["plms"], Class: PNDMScheduler, usualSteps: 50 },
  { name: "euler", aliases: [], Class: EulerDiscreteScheduler, usualSteps: 25 },
  {
    name: "euler-a",
    aliases: ["euler ancestral"],
    Class: EulerAncestralDiscreteScheduler,
    usualSteps: 25,
  },
  { name: "lms", aliases: [], Class: LMSDiscreteScheduler, usualSteps: 50 },
  { name: "heun", aliases: [], Class: HeunDiscreteScheduler, usualSteps: 12 },
  { ...MULTISTEP, name: "dpm++", aliases: ["dpm++ 2m", "dpmpp_2m"] },
  { ...MULTISTEP, name: "dpm++-karras", aliases: ["dpm++ 2m karras"], config: KARRAS },
  {
    ...MULTISTEP,
    name: "dpm++-2m-sde",
    aliases: ["dpmpp_2m_sde"],
    config: { algorithm_type: "sde-dpmsolver++" },
    usualSteps: 40,
  },
  { name: "unipc", aliases: ["uni_pc"], Class: UniPCMultistepScheduler, usualSteps: 25 },
  { name: "lcm", aliases: [], Class: LCMScheduler, usualSteps: 4 },
];

/** All samplers, in the order in which they are offered. */
export const samplers: readonly SamplerInfo[] = ENTRIES;

const CLASSES: Readonly<Record<string, Entry["Class"]>> = {
  DDIMScheduler,
  DDIMInverseScheduler,
  DDPMScheduler,
  PNDMScheduler,
  EulerDiscreteScheduler,
  EulerAncestralDiscreteScheduler,
  LMSDiscreteScheduler,
  HeunDiscreteScheduler,
  DPMSolverMultistepScheduler,
  UniPCMultistepScheduler,
  LCMScheduler,
};

/** Names that {@link createScheduler} knows: the short ones, then the classes. */
export const schedulerNames: readonly string[] = [
  ...ENTRIES.map(({ name }) => name),
  ...Object.keys(CLASSES),
];

/** A name without case, gaps and the word "scheduler": spellings differ in these. */
function plain(name: string): string {
  return name.toLowerCase().replace(/[\s_-]/g, "").replace(/scheduler$/, "")
    .replace(/^dpmpp/, "dpm++");
}

const KNOWN: ReadonlyMap<string, Pick<Entry, "Class" | "config">> = new Map([
  ...Object.entries(CLASSES).map(([name, Class]) => [plain(name), { Class }] as const),
  ...ENTRIES.flatMap((entry) =>
    [entry.name, ...entry.aliases].map((name) => [plain(name), entry] as const)
  ),
]);

/** Ends of names that say how the noise levels are spaced. */
const LEVELS = {
  karras: KARRAS,
  exponential: { ...KARRAS, use_karras_sigmas: false, use_exponential_sigmas: true },
  beta: { ...KARRAS, use_karras_sigmas: false, use_beta_sigmas: true },
} as const;

/**
 * A scheduler by its short name, an alias, or its class name with or without "Scheduler"; case,
 * spaces, hyphens and underscores do not matter. "karras", "exponential" or "beta" at the end space
 * the noise levels so, where the method has noise levels of its own.
 *
 * @param config Contents of `scheduler_config.json`, of any scheduler.
 * @throws {InputError} for an unknown name, or a setting that cannot be used.
 */
export function createScheduler(name: string, config: Partial<SchedulerConfig>): Scheduler {
  const [, base, end] = /^(.*?)(karras|exponential|beta)?$/.exec(plain(name)) ?? [];
  const found = KNOWN.get(base);
  if (!found) {
    throw new InputError(
      `there is no scheduler ${JSON.stringify(name)}; choose one of ${schedulerNames.join(", ")}`,
    );
  }
  const levels = end === undefined ? {} : LEVELS[end as keyof typeof LEVELS];
  const scheduler = new found.Class({ ...config, ...found.config, ...levels });
  const { use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas } = scheduler.config;
  if (end === undefined || use_karras_sigmas || use_exponential_sigmas || use_beta_sigmas) {
    return scheduler;
  }
  throw new InputError(
    `${
      JSON.stringify(name)
    }: this method takes its noise levels from timesteps, so they cannot be ` +
      `spaced; leave "${end}" out, or choose euler, lms, heun, dpm++ or unipc`,
  );
}

/** Whether the steps of a scheduler draw fresh noise; `eta` as in its step options. */
export function drawsNoise(scheduler: Scheduler, eta: number): boolean {
  if (scheduler instanceof DDIMScheduler) return eta > 0;
  const always = [DDPMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler];
  return always.some((Class) => scheduler instanceof Class) ||
    scheduler.config.algorithm_type.startsWith("sde-");
}
