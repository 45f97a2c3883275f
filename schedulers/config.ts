/**
 * Settings of schedulers: the keys of `scheduler_config.json`, their defaults and their rules.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";

/** How βₜ grows over the training timesteps. */
export type BetaSchedule = "linear" | "scaled_linear" | "squaredcos_cap_v2";

/** What the model predicts: the noise ε, the clean sample x₀, or the velocity v = αε − σx₀. */
export type PredictionType = "epsilon" | "sample" | "v_prediction";

/** How inference timesteps lie among the training timesteps (table 2 of arXiv:2305.08891). */
export type TimestepSpacing = "leading" | "trailing" | "linspace";

/** Which equation a DPM-Solver integrates: in ε or (`++`) in x₀, as an ODE or (`sde-`) an SDE. */
export type DPMAlgorithm = "dpmsolver" | "dpmsolver++" | "sde-dpmsolver" | "sde-dpmsolver++";

/**
 * All settings, under the names of `scheduler_config.json`. Each scheduler knows some of them and
 * ignores the others, so that one file serves all. Where only one value is typed, the others are
 * refused.
 */
export interface SchedulerConfig {
  /** Number of noise levels that the model was trained with. */
  readonly num_train_timesteps: number;
  /** First β. */
  readonly beta_start: number;
  /** Last β. */
  readonly beta_end: number;
  /** Curve between first and last β. */
  readonly beta_schedule: BetaSchedule;
  /** The βs themselves, instead of a curve. */
  readonly trained_betas: readonly number[] | null;
  /** What the model predicts. */
  readonly prediction_type: PredictionType;
  /** How timesteps are chosen. */
  readonly timestep_spacing: TimestepSpacing;
  /** Added to every timestep of the `leading` spacing. */
  readonly steps_offset: number;
  /** Rescale the βs so that the last level is pure noise (arXiv:2305.08891, algorithm 1). */
  readonly rescale_betas_zero_snr: boolean;
  /** Clamp the predicted x₀ to ±`clip_sample_range`; latent models want `false`. */
  readonly clip_sample: boolean;
  /** Limit of `clip_sample`. */
  readonly clip_sample_range: number;
  /** Clamp the predicted x₀ to ±`sample_max_value` and stretch it to ±1. */
  readonly thresholding: boolean;
  /** Limit of `thresholding`. Above 1 it would depend on a quantile of each sample: refused. */
  readonly sample_max_value: number;
  /** Take 1 for ᾱ before the first timestep; otherwise ᾱ₀. */
  readonly set_alpha_to_one: boolean;
  /** PNDM: leave out the Runge–Kutta warm-up. */
  readonly skip_prk_steps: boolean;
  /** DDPM: posterior variance (`small`) or β (`large`). */
  readonly variance_type: "fixed_small" | "fixed_small_log" | "fixed_large" | "fixed_large_log";
  /** Space the noise levels as Karras et al. do (arXiv:2206.00364, equation 5). */
  readonly use_karras_sigmas: boolean;
  /** Space the logarithms of the noise levels evenly. */
  readonly use_exponential_sigmas: boolean;
  /** Space the noise levels as quantiles of Beta(0.6, 0.6) (arXiv:2407.12173). */
  readonly use_beta_sigmas: boolean;
  /** Not supported; with their ρ of 1 they are the exponential levels. */
  readonly use_lu_lambdas: false;
  /** Flow matching is not supported. */
  readonly use_flow_sigmas: false;
  /** Noise level after the last step: none, or that of timestep 0. */
  readonly final_sigmas_type: "zero" | "sigma_min";
  /** How σ between two timesteps is found. */
  readonly interpolation_type: "linear";
  /** Whether the model is told timesteps or noise levels. */
  readonly timestep_type: "discrete";
  /** Which DPM-Solver. */
  readonly algorithm_type: DPMAlgorithm;
  /** Highest order of a multistep solver. */
  readonly solver_order: number;
  /** Variant of the second-order update; a name of the other solver family means the default. */
  readonly solver_type: "midpoint" | "heun" | "bh1" | "bh2" | "logrho";
  /** Lower the order in the last steps of short runs. */
  readonly lower_order_final: boolean;
  /** Always make the last step of first order. */
  readonly euler_at_final: boolean;
  /** Leave out timesteps whose log signal-to-noise ratio λ is lower; `null`: none. */
  readonly lambda_min_clipped: number | null;
  /** UniPC: integrate in x₀ instead of ε. */
  readonly predict_x0: boolean;
  /** UniPC: steps whose correction is left out. */
  readonly disable_corrector: readonly number[];
  /** UniPC: another scheduler as predictor is not supported. */
  readonly solver_p: null;
  /** LCM: number of steps of the teacher. */
  readonly original_inference_steps: number;
  /** LCM: factor on timesteps in the boundary conditions. */
  readonly timestep_scaling: number;
}

const COMMON = {
  num_train_timesteps: 1000,
  beta_start: 0.0001,
  beta_end: 0.02,
  beta_schedule: "linear",
  trained_betas: null,
  prediction_type: "epsilon",
  timestep_spacing: "leading",
  steps_offset: 0,
} as const;

const DEFAULTS: SchedulerConfig = {
  ...COMMON,
  rescale_betas_zero_snr: false,
  clip_sample: false,
  clip_sample_range: 1,
  thresholding: false,
  sample_max_value: 1,
  set_alpha_to_one: false,
  skip_prk_steps: false,
  variance_type: "fixed_small",
  use_karras_sigmas: false,
  use_exponential_sigmas: false,
  use_beta_sigmas: false,
  use_lu_lambdas: false,
  use_flow_sigmas: false,
  final_sigmas_type: "zero",
  interpolation_type: "linear",
  timestep_type: "discrete",
  algorithm_type: "dpmsolver++",
  solver_order: 2,
  solver_type: "midpoint",
  lower_order_final: true,
  euler_at_final: false,
  lambda_min_clipped: null,
  predict_x0: true,
  disable_corrector: [],
  solver_p: null,
  original_inference_steps: 50,
  timestep_scaling: 10,
};

/** A rule in words, and the test for it. */
type Rule = readonly [words: string, holds: (value: unknown) => boolean];

function oneOf(...allowed: readonly (string | boolean | null)[]): Rule {
  const words = allowed.map((value) => JSON.stringify(value)).join(", ");
  return [
    allowed.length > 1 ? `one of ${words}` : words,
    (value) => allowed.some((a) => a === value),
  ];
}

function whole(least: number, most = Infinity): Rule {
  return [
    `a whole number from ${least}${most < Infinity ? ` to ${most}` : " on"}`,
    (value) => Number.isInteger(value) && Number(value) >= least && Number(value) <= most,
  ];
}

const boolean = oneOf(true, false);
const positive: Rule = ["a number above 0", (value) => isNumber(value) && value > 0];
const beta: Rule = ["a number from 0 to 1", isBeta];

const LEVEL_KEYS = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"] as const;

const RULES: { readonly [Key in keyof SchedulerConfig]: Rule } = {
  num_train_timesteps: whole(1, 1e6),
  beta_start: beta,
  beta_end: beta,
  beta_schedule: oneOf("linear", "scaled_linear", "squaredcos_cap_v2"),
  trained_betas: [
    "null or an array of numbers from 0 to 1",
    (value) => value === null || (Array.isArray(value) && value.length > 0 && value.every(isBeta)),
  ],
  prediction_type: oneOf("epsilon", "sample", "v_prediction"),
  timestep_spacing: oneOf("leading", "trailing", "linspace"),
  steps_offset: whole(0),
  rescale_betas_zero_snr: boolean,
  clip_sample: boolean,
  clip_sample_range: positive,
  thresholding: boolean,
  sample_max_value: positive,
  set_alpha_to_one: boolean,
  skip_prk_steps: boolean,
  variance_type: oneOf("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
  use_karras_sigmas: boolean,
  use_exponential_sigmas: boolean,
  use_beta_sigmas: boolean,
  use_lu_lambdas: oneOf(false),
  use_flow_sigmas: oneOf(false),
  final_sigmas_type: oneOf("zero", "sigma_min"),
  interpolation_type: oneOf("linear"),
  timestep_type: oneOf("discrete"),
  algorithm_type: oneOf("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
  solver_order: whole(1, 6),
  solver_type: oneOf("midpoint", "heun", "bh1", "bh2", "logrho"),
  lower_order_final: boolean,
  euler_at_final: boolean,
  lambda_min_clipped: ["null or a number", (value) => value === null || isNumber(value)],
  predict_x0: boolean,
  disable_corrector: [
    "an array of whole numbers",
    (value) => Array.isArray(value) && value.every(Number.isInteger),
  ],
  solver_p: oneOf(null),
  original_inference_steps: whole(1),
  timestep_scaling: positive,
};

function isNumber(value: unknown): value is number {
  return typeof value === "number" && !Number.isNaN(value);
}

function isBeta(value: unknown): boolean {
  return isNumber(value) && value >= 0 && value <= 1;
}

/**
 * Completes `given` with the defaults of a scheduler.
 *
 * @param scheduler Name for messages.
 * @param own The keys that this scheduler knows besides the common ones, with its defaults. Other
 * keys of `given` are ignored, and so is `null` where it has no meaning.
 * @throws {InputError} naming key, value and what is allowed.
 */
export function resolveConfig(
  scheduler: string,
  given: Partial<SchedulerConfig>,
  own: Partial<SchedulerConfig>,
): SchedulerConfig {
  const defaults: SchedulerConfig = { ...DEFAULTS, ...own };
  const known = Object.keys({ ...COMMON, ...own }) as (keyof SchedulerConfig)[];
  const chosen = known.map((key) => [key, given[key] ?? defaults[key]] as const);
  for (const [key, value] of chosen) checkKey(scheduler, key, value);
  const config: SchedulerConfig = { ...defaults, ...Object.fromEntries(chosen) };
  if (config.thresholding && config.sample_max_value > 1) {
    throw refusal(
      scheduler,
      "sample_max_value",
      config.sample_max_value,
      "at most 1 (a fixed limit)",
    );
  }
  const levels = LEVEL_KEYS.filter((key) => config[key]);
  if (levels.length > 1) {
    throw refusal(scheduler, levels[1], true, `false where ${levels[0]} is true`);
  }
  return config;
}

/** Checks the keys in `given` that decide the βs, for callers that have no scheduler. */
export function betaConfig(given: Partial<SchedulerConfig>): SchedulerConfig {
  return resolveConfig("alphasCumprod", given, { rescale_betas_zero_snr: false });
}

function checkKey(scheduler: string, key: keyof SchedulerConfig, value: unknown): void {
  const [words, holds] = RULES[key];
  if (!holds(value)) throw refusal(scheduler, key, value, words);
}

/** The error for a value that a scheduler cannot use. */
export function refusal(
  scheduler: string,
  key: keyof SchedulerConfig,
  value: unknown,
  allowed: string,
): InputError {
  return new InputError(
    `${scheduler}: ${key} must be ${allowed}, got ${JSON.stringify(value)}; ` +
      `correct scheduler_config.json or choose another scheduler`,
  );
}
