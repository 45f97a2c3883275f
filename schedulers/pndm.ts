/**
 * Pseudo numerical methods for diffusion models (arXiv:2202.09778): linear multistep (PLMS), with
 * or without a Runge–Kutta warm-up (PRK). Stable Diffusion 1.5 names it in its own settings.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import { roundToEven } from "../core/rounding.ts";
import type { Tensor } from "../core/tensor.ts";
import { refusal, resolveConfig, type SchedulerConfig } from "./config.ts";
import { noised } from "./ddim.ts";
import { predictEpsilon, sum, type Term } from "./prediction.ts";
import { copyOf, matchBatch, RunState, type SchedulerState } from "./run_state.ts";
import {
  alphaAt,
  alphasCumprod,
  checkSteps,
  type Scheduler,
  spacedTimesteps,
  type StepOutput,
} from "./schedule.ts";

const NAME = "PNDMScheduler";

/** Adams–Bashforth weights by number of outputs, the newest first (equation 12). */
const ADAMS_BASHFORTH = [
  [1],
  [3 / 2, -1 / 2],
  [23 / 12, -16 / 12, 5 / 12],
  [55 / 24, -59 / 24, 37 / 24, -9 / 24],
] as const;

/** Runge–Kutta weights of the four stages, the newest first. */
const RUNGE_KUTTA = [1 / 6, 1 / 3, 1 / 3, 1 / 6] as const;

/** PNDM. The second timestep of a PLMS run occurs twice: the first step is made again with both. */
export class PNDMScheduler implements Scheduler {
  readonly config: SchedulerConfig;
  readonly initNoiseSigma = 1;
  readonly order = 1;
  readonly space = "vp";
  timesteps: readonly number[] = [];
  /** The part of `timesteps` that the Runge–Kutta warm-up takes; empty for PLMS alone. */
  prkTimesteps: readonly number[] = [];
  /** All places except those within a Runge–Kutta step, or of a first step that is made again. */
  stepStarts: readonly number[] = [];
  readonly #alphas: Float64Array;
  readonly #run = new RunState();
  #stride = 1;

  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    this.config = resolveConfig(NAME, config, { skip_prk_steps: false, set_alpha_to_one: false });
    if (this.config.prediction_type === "sample") {
      throw refusal(NAME, "prediction_type", "sample", '"epsilon" or "v_prediction"');
    }
    this.#alphas = alphasCumprod(this.config);
  }

  /** Chooses timesteps: one more than steps (PLMS), or nine more (with warm-up). */
  setTimesteps(numInferenceSteps: number): void {
    const warmUp = this.config.skip_prk_steps ? 0 : 3;
    checkSteps(NAME, numInferenceSteps, this.#alphas.length, warmUp + 1);
    const spaced = spacedTimesteps(this.config, numInferenceSteps).map(roundToEven);
    this.#stride = Math.floor(this.#alphas.length / numInferenceSteps);
    if (this.config.skip_prk_steps) {
      this.prkTimesteps = [];
      this.timesteps = [...spaced.slice(0, 2), ...spaced.slice(1)];
    } else {
      const half = Math.floor(this.#stride / 2);
      const middles = spaced.slice(0, 4).flatMap((t) => [t + half, t]).slice(1);
      this.prkTimesteps = middles.flatMap((t) => [t, t]).slice(1, -1);
      this.timesteps = [...this.prkTimesteps, ...spaced.slice(3)];
    }
    const warm = this.prkTimesteps.length;
    this.stepStarts = [...this.timesteps.keys()]
      .filter((i) => warm ? i >= warm || i % 4 === 0 : i !== 1 || numInferenceSteps === 1);
    this.reset();
  }

  /** The sample itself. */
  scaleModelInput(sample: Tensor): Tensor {
    return sample;
  }

  /** One stage of the warm-up, or one multistep update. */
  step(modelOutput: Tensor, timestep: number, sample: Tensor): StepOutput {
    alphaAt(this.#alphas, timestep, NAME);
    const index = this.#run.seek(NAME, this.timesteps, timestep);
    const prevSample = sample.device.scope(() =>
      index < this.prkTimesteps.length
        ? this.#stepPrk(index, timestep, sample, modelOutput)
        : this.#stepPlms(index, timestep, sample, modelOutput)
    );
    this.#run.position = index + 1;
    return { prevSample };
  }

  #stepPrk(index: number, timestep: number, sample: Tensor, output: Tensor): Tensor {
    const run = this.#run;
    const stage = index % 4;
    if (stage > 0 && !run.sample) {
      throw new InputError(
        `${NAME}: a run must not begin inside a Runge–Kutta step; begin at one of ` +
          `${this.prkTimesteps.filter((_, i) => i % 4 === 0)}, or at a later timestep`,
      );
    }
    if (stage === 0) run.setSample(copyOf(sample));
    run.push(copyOf(output), 6);
    const start = this.prkTimesteps[index - stage];
    const end = timestep - (stage % 2 ? 0 : Math.floor(this.#stride / 2));
    const from = matchBatch(run.sample ?? sample, sample);
    if (stage < 3) return this.#transfer(start, end, from, [[1, output]]);
    const used = RUNGE_KUTTA.map((weight, i): Term => [weight, run.output(i + 1, sample)]);
    const next = this.#transfer(start, end, from, used);
    run.dropNewest(3);
    return next;
  }

  #stepPlms(index: number, timestep: number, sample: Tensor, output: Tensor): Tensor {
    const run = this.#run;
    const again = index === 1 && this.config.skip_prk_steps && run.sample;
    if (again) {
      const from = matchBatch(again, sample);
      const mean: Term[] = [[0.5, output], [0.5, run.output(1, sample)]];
      const next = this.#transfer(timestep + this.#stride, timestep, from, mean);
      run.setSample(null);
      return next;
    }
    run.push(copyOf(output), 4);
    if (index === 0 && this.config.skip_prk_steps) run.setSample(copyOf(sample));
    const weights = ADAMS_BASHFORTH[run.count - 1];
    const terms = weights.map((weight, i): Term => [weight, run.output(i + 1, sample)]);
    return this.#transfer(timestep, timestep - this.#stride, sample, terms);
  }

  /** The transfer part (equation 11): from one noise level to another along a mean ε. */
  #transfer(start: number, end: number, sample: Tensor, outputs: readonly Term[]): Tensor {
    const from = this.#alphaOrFinal(start);
    const to = this.#alphaOrFinal(end);
    const { prediction_type } = this.config;
    const epsilon = predictEpsilon(prediction_type, Math.sqrt(from), Math.sqrt(1 - from));
    const ofEpsilon = (from - to) /
      (from * Math.sqrt(1 - to) + Math.sqrt(from * (1 - from) * to));
    const ofSample = Math.sqrt(to / from) + ofEpsilon * epsilon.sample;
    const factor = ofEpsilon * epsilon.output;
    const scaled = outputs.map(([weight, output]): Term => [factor * weight, output]);
    return sum([ofSample, sample], ...scaled);
  }

  #alphaOrFinal(timestep: number): number {
    if (timestep >= 0) return this.#alphas[Math.min(timestep, this.#alphas.length - 1)];
    return this.config.set_alpha_to_one ? 1 : this.#alphas[0];
  }

  /** √ᾱ·x₀ + √(1−ᾱ)·ε. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return noised(alphaAt(this.#alphas, timestep, NAME), original, noise);
  }

  /** Forgets the earlier model outputs. */
  reset(): void {
    this.#run.dispose();
  }

  /** Copies the earlier model outputs. */
  snapshot(): SchedulerState {
    return this.#run.copy();
  }

  /** Continues from a snapshot. */
  restore(state: SchedulerState): void {
    this.#run.restore(state);
  }
}
