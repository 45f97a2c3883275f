/**
 * UniPC: a multistep predictor and, after the next model call, a corrector of the same kind
 * (arXiv:2302.04867).
 *
 * @module
 */

import type { Tensor } from "../core/tensor.ts";
import { resolveConfig, type SchedulerConfig } from "./config.ts";
import { sum, type Term } from "./prediction.ts";
import { copyOf, matchBatch, RunState, type SchedulerState } from "./run_state.ts";
import { checkSteps, type Scheduler, type StepOutput } from "./schedule.ts";
import { sigmaTable, solverSchedule } from "./sigmas.ts";
import { convertOutput, type Level, levelOf, solverNoise } from "./solver.ts";

const NAME = "UniPCMultistepScheduler";

/** UniPC of order `solver_order`, in x₀ (`predict_x0`) or ε. */
export class UniPCMultistepScheduler implements Scheduler {
  readonly config: SchedulerConfig;
  readonly initNoiseSigma = 1;
  readonly order = 1;
  readonly space = "vp";
  timesteps: readonly number[] = [];
  /** Noise levels σ = √((1−ᾱ)/ᾱ) of the timesteps, and the one after the last step. */
  sigmas: readonly number[] = [];
  readonly #table: readonly number[];
  readonly #run = new RunState();

  /**
   * Completes the settings of a `scheduler_config.json`.
   *
   * @throws {InputError} if a setting cannot be used.
   */
  constructor(config: Partial<SchedulerConfig> = {}) {
    this.config = resolveConfig(NAME, config, {
      timestep_spacing: "linspace",
      solver_order: 2,
      solver_type: "bh2",
      predict_x0: true,
      lower_order_final: true,
      disable_corrector: [],
      solver_p: null,
      use_karras_sigmas: false,
      use_exponential_sigmas: false,
      use_beta_sigmas: false,
      use_flow_sigmas: false,
      final_sigmas_type: "zero",
      thresholding: false,
      sample_max_value: 1,
      rescale_betas_zero_snr: false,
    });
    this.#table = sigmaTable(this.config);
  }

  /** Chooses timesteps and noise levels, and forgets the history. */
  setTimesteps(numInferenceSteps: number): void {
    checkSteps(NAME, numInferenceSteps, this.#table.length - 1);
    const schedule = solverSchedule(this.config, this.#table, numInferenceSteps);
    this.timesteps = schedule.timesteps;
    this.sigmas = schedule.sigmas;
    this.reset();
  }

  /** The sample itself. */
  scaleModelInput(sample: Tensor): Tensor {
    return sample;
  }

  /** Corrects `sample` with the new model output, then predicts the next one. */
  step(modelOutput: Tensor, timestep: number, sample: Tensor): StepOutput {
    const { config } = this;
    const run = this.#run;
    const index = run.seek(NAME, this.timesteps, timestep);
    const prevSample = sample.device.scope(() => {
      const level = levelOf(this.sigmas[index]);
      const output = convertOutput(config, config.predict_x0, level, sample, modelOutput);
      const corrected = this.#correct(index, sample, output);
      run.push(output, config.solver_order);
      run.order = this.#orderAt(index);
      run.setSample(corrected);
      const { ofSample, ofOutputs } = weightsOf(config, this.#levels(index + 1, run.order), false);
      return sum([ofSample, corrected], ...this.#terms(ofOutputs, sample));
    });
    run.position = index + 1;
    return { prevSample };
  }

  #correct(index: number, sample: Tensor, output: Tensor): Tensor {
    const { config } = this;
    const run = this.#run;
    const last = run.sample;
    if (!last || config.disable_corrector.includes(index - 1)) return copyOf(sample);
    const weights = weightsOf(config, this.#levels(index, run.order), true);
    return sum(
      [weights.ofSample, matchBatch(last, sample)],
      [weights.ofCurrent, output],
      ...this.#terms(weights.ofOutputs, sample),
    );
  }

  #terms(weights: readonly number[], like: Tensor): Term[] {
    return weights.map((weight, i): Term => [weight, this.#run.output(i + 1, like)]);
  }

  /** The level at `index` and the `order` levels before it, newest first. */
  #levels(index: number, order: number): Level[] {
    return this.sigmas.slice(index - order, index + 1).map(levelOf).reverse();
  }

  #orderAt(index: number): number {
    // Without noise λ is infinite, and differences over it have no meaning.
    if (this.sigmas[index + 1] === 0) return 1;
    const left = this.config.lower_order_final ? this.timesteps.length - index : Infinity;
    return Math.min(this.#run.count, left);
  }

  /** √ᾱ·x₀ + √(1−ᾱ)·ε at the timestep's noise level. */
  addNoise(original: Tensor, noise: Tensor, timestep: number): Tensor {
    return solverNoise(this, this.#table, original, noise, timestep);
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

interface Weights {
  readonly ofSample: number;
  /** Of the outputs before the target level, newest first. */
  readonly ofOutputs: readonly number[];
  /** Of the output at the target level, which only the corrector has. */
  readonly ofCurrent: number;
}

/**
 * Coefficients of one update from `levels[1]` to `levels[0]` (arXiv:2302.04867, equations 3 and 9).
 *
 * Differences D_k = (m_k − m₀)/r_k enter with ρ_k, which solve Σ_k r_k^{i−1} ρ_k = b_i; the
 * corrector has one more, at the target itself (r = 1).
 */
function weightsOf(config: SchedulerConfig, levels: readonly Level[], correct: boolean): Weights {
  const [to, from, ...earlier] = levels;
  const h = to.lambda - from.lambda;
  const inX0 = config.predict_x0;
  const hh = inX0 ? -h : h;
  const growth = Math.expm1(hh);
  const scale = inX0 ? to.alpha : to.sigma;
  const ratios = earlier.map(({ lambda }) => (lambda - from.lambda) / h);
  const nodes = correct ? [...ratios, 1] : ratios;
  const b = rightSide(nodes.length, hh).map((value) => -scale * value);
  // The two shortest systems are replaced by their limit for small steps, as the authors do.
  const rhos = nodes.length === 1
    ? [-scale * (config.solver_type === "bh1" ? hh : growth) / 2]
    : solve(nodes.map((_, power) => nodes.map((node) => node ** power)), b);
  const ofD = rhos.map((rho, i) => rho / nodes[i]);
  const ofFirst = -scale * growth - ofD.reduce((total, weight) => total + weight, 0);
  return {
    ofSample: inX0 ? to.sigma / from.sigma : to.alpha / from.alpha,
    ofOutputs: [ofFirst, ...ofD.slice(0, ratios.length)],
    ofCurrent: correct ? ofD[ofD.length - 1] : 0,
  };
}

/** i!·φ_{i+1}(hh) for i = 1 … `count`: φ₁ = (e^z − 1)/z, φ_{i+1} = (φ_i − 1/i!)/z, times z. */
function rightSide(count: number, z: number): number[] {
  const values: number[] = [];
  let phi = Math.expm1(z) / z - 1;
  for (let i = 1, factorial = 1; i <= count; i++) {
    values.push(phi * factorial);
    factorial *= i + 1;
    phi = phi / z - 1 / factorial;
  }
  return values;
}

/** Solves a small dense system by Gaussian elimination with pivoting. */
function solve(matrix: readonly (readonly number[])[], right: readonly number[]): number[] {
  const rows = matrix.map((row, i) => [...row, right[i]]);
  const size = rows.length;
  for (let column = 0; column < size; column++) {
    let pivot = column;
    for (let row = column + 1; row < size; row++) {
      if (Math.abs(rows[row][column]) > Math.abs(rows[pivot][column])) pivot = row;
    }
    [rows[column], rows[pivot]] = [rows[pivot], rows[column]];
    for (let row = 0; row < size; row++) {
      if (row === column) continue;
      const factor = rows[row][column] / rows[column][column];
      rows[row] = rows[row].map((value, k) => value - factor * rows[column][k]);
    }
  }
  return rows.map((row, i) => row[size] / row[i]);
}
