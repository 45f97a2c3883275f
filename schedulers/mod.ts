/**
 * Schedulers: from model outputs to samples.
 *
 * @module
 */

export { DDIMInverseScheduler, DDIMScheduler } from "./ddim.ts";
export { DDPMScheduler } from "./ddpm.ts";
export { DPMSolverMultistepScheduler } from "./dpm_solver.ts";
export { EulerAncestralDiscreteScheduler, EulerDiscreteScheduler } from "./euler.ts";
export { HeunDiscreteScheduler } from "./heun.ts";
export { LCMScheduler } from "./lcm.ts";
export { LMSDiscreteScheduler } from "./lms.ts";
export { PNDMScheduler } from "./pndm.ts";
export { UniPCMultistepScheduler } from "./unipc.ts";
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
export {
  createScheduler,
  drawsNoise,
  type SamplerInfo,
  samplers,
  schedulerNames,
} from "./names.ts";
