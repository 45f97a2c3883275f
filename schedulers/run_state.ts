/**
 * History of a run: how far it is, and the tensors that a multistep method needs again.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { broadcastTo, linearCombination } from "../kernels/mod.ts";

/** A saved history; opaque. Comes from a scheduler's `snapshot`. */
export interface SchedulerState {
  /** The same history of other tensors: a part of each, for instance. */
  map(change: (kept: Tensor) => Tensor): SchedulerState;
  /** Frees its tensors. */
  dispose(): void;
}

/** History of one run. It owns its tensors: no scope frees them. */
export class RunState implements SchedulerState {
  /** Steps done, which is the index of the next one in the schedule. */
  position = 0;
  /** Order of the latest update of a predictor-corrector method. */
  order = 0;
  /** Earlier model outputs (as the method stores them), oldest first. */
  #outputs: Tensor[] = [];
  #sample: Tensor | null = null;

  /** Number of outputs kept. */
  get count(): number {
    return this.#outputs.length;
  }

  /** Sample kept for a later step; `null` if none. */
  get sample(): Tensor | null {
    return this.#sample;
  }

  /** The output kept `age` steps ago, 1 being the newest, with the batch of `like`. */
  output(age: number, like: Tensor): Tensor {
    return matchBatch(this.#outputs[this.#outputs.length - age], like);
  }

  /** Keeps `output`, and of the outputs no more than the newest `most`. Takes ownership. */
  push(output: Tensor, most: number): void {
    this.#outputs.push(output.keep());
    while (this.#outputs.length > most) this.#outputs.shift()?.dispose();
  }

  /** Forgets the newest `count` outputs. */
  dropNewest(count: number): void {
    for (const output of this.#outputs.splice(-count)) output.dispose();
  }

  /** Keeps a sample instead of the one before. Takes ownership. */
  setSample(sample: Tensor | null): void {
    this.#sample?.dispose();
    this.#sample = sample?.keep() ?? null;
  }

  /** Forgets outputs and sample. */
  forget(): void {
    for (const output of this.#outputs) output.dispose();
    this.#outputs = [];
    this.setSample(null);
    this.order = 0;
  }

  /** Back to the beginning of a run. */
  dispose(): void {
    this.forget();
    this.position = 0;
  }

  /** The same history with tensors of its own; nothing is copied on the device. */
  copy(): RunState {
    return this.map(share);
  }

  /** The same history of what `change` makes of its tensors, which it owns. */
  map(change: (kept: Tensor) => Tensor): RunState {
    const mapped = new RunState();
    mapped.#become(this, change);
    return mapped;
  }

  /**
   * Becomes equal to a saved history.
   *
   * @throws {InputError} if `state` does not come from a scheduler.
   */
  restore(state: SchedulerState): void {
    if (!(state instanceof RunState)) {
      throw new InputError("restore: takes what a scheduler's snapshot() returned");
    }
    if (state !== this) this.#become(state);
  }

  #become(other: RunState, change = share): void {
    this.forget();
    const changed = (tensor: Tensor) => change(tensor).keep();
    this.#outputs = other.#outputs.map(changed);
    this.#sample = other.#sample && changed(other.#sample);
    this.position = other.position;
    this.order = other.order;
  }

  /**
   * Index of `timestep` in the schedule. In turn it is the next one; out of turn the history is
   * forgotten, and where a timestep occurs twice its second place counts, so that the run begins
   * with a whole step.
   *
   * @throws {InputError} if the schedule has no such timestep.
   */
  seek(scheduler: string, timesteps: readonly number[], timestep: number): number {
    const index = this.find(scheduler, timesteps, timestep);
    if (index !== this.position) this.forget();
    this.position = index;
    return index;
  }

  /** As {@link RunState.seek}, without changing anything. */
  find(scheduler: string, timesteps: readonly number[], timestep: number): number {
    if (timesteps[this.position] === timestep) return this.position;
    const first = timesteps.indexOf(timestep);
    if (first >= 0) return Math.max(first, timesteps.indexOf(timestep, first + 1));
    throw new InputError(
      `${scheduler}: timestep must be one of this schedule's, got ${timestep}; call setTimesteps ` +
        `first and pass its timesteps (now ${timesteps.length}: ${timesteps.slice(0, 3)} …)`,
    );
  }
}

/** A second owner of the same memory. */
function share(tensor: Tensor): Tensor {
  return tensor.reshape(tensor.shape);
}

/** A private copy of a tensor that belongs to somebody else, who may overwrite it. */
export function copyOf(tensor: Tensor): Tensor {
  return linearCombination([1], [tensor]);
}

/** Repeats a tensor with batch 1 over the batch of `like`. */
export function matchBatch(tensor: Tensor, like: Tensor): Tensor {
  return tensor.shape[0] === like.shape[0] ? tensor : broadcastTo(tensor, like.shape);
}
