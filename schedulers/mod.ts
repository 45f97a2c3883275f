/**
 * Schedulers: from model outputs to samples.
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

export {
  DDIMInverseScheduler,
  DDIMScheduler,
  DDPMScheduler,
  DPMSolverMultistepScheduler,
  EulerAncestralDiscreteScheduler,
  EulerDiscreteScheduler,
  HeunDiscreteScheduler,
  LCMScheduler,
  LMSDiscreteScheduler,
  PNDMScheduler,
  UniPCMultistepScheduler,
};
export type {
  BetaSchedule,
  DPMAlgorithm,
  PredictionType,
  SchedulerConfig,
  TimestepSpacing,
} from "./config.ts";
export type { SchedulerState } from "./run_state.ts";
export type { Scheduler, StepOptions, StepOutput } from "./schedule.ts";
export { SigmaScheduler } from "./sigmas.ts";
export { alphasCumprod, betas, forwardAlphaProduct } from "./schedule.ts";

type Config = Partial<SchedulerConfig>;
type Make = (config: Config) => Scheduler;

const CLASSES = {
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

const SHORT: Readonly<Record<string, Make>> = {
  "ddim": (config) => new DDIMScheduler(config),
  "ddpm": (config) => new DDPMScheduler(config),
  "pndm": (config) => new PNDMScheduler(config),
  "euler": (config) => new EulerDiscreteScheduler(config),
  "euler-a": (config) => new EulerAncestralDiscreteScheduler(config),
  "lms": (config) => new LMSDiscreteScheduler(config),
  "heun": (config) => new HeunDiscreteScheduler(config),
  "dpm++": (config) => new DPMSolverMultistepScheduler(config),
  "dpm++-karras": (config) =>
    new DPMSolverMultistepScheduler({ ...config, use_karras_sigmas: true }),
  "unipc": (config) => new UniPCMultistepScheduler(config),
  "lcm": (config) => new LCMScheduler(config),
};

const MAKERS: ReadonlyMap<string, Make> = new Map([
  ...Object.entries(SHORT),
  ...Object.entries(CLASSES).flatMap(([name, Class]): [string, Make][] => {
    const make: Make = (config) => new Class(config);
    return [[name, make], [name.replace(/Scheduler$/, ""), make]];
  }),
]);

/** Names that {@link createScheduler} knows: the short ones, then the classes. */
export const schedulerNames: readonly string[] = [...Object.keys(SHORT), ...Object.keys(CLASSES)];

/**
 * A scheduler by its short name, or by its class name with or without "Scheduler".
 *
 * @param config Contents of `scheduler_config.json`, of any scheduler.
 * @throws {InputError} for an unknown name, or a setting that cannot be used.
 */
export function createScheduler(name: string, config: Partial<SchedulerConfig>): Scheduler {
  const make = MAKERS.get(name);
  if (make) return make(config);
  throw new InputError(
    `there is no scheduler ${JSON.stringify(name)}; choose one of ${schedulerNames.join(", ")}`,
  );
}
