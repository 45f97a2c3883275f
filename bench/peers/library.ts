/**
 * What a contender offers to the process that times it.
 *
 * @module
 */

import type { GpuChoice } from "../../core/runtime.ts";
import type { Setting } from "../setting.ts";
import type { Problem } from "./problems.ts";

/** A library, open on a device. */
export interface Library {
  /** Its version. */
  readonly version: string;
  /** Where and when framezero runs. */
  readonly setting?: Setting;
  /**
   * Uploads the inputs of a problem.
   *
   * @param plain Whether to avoid a fused operation that {@link Prepared.hasPlain} speaks of.
   */
  prepare(problem: Problem, plain: boolean): Promise<Prepared>;
}

/** A problem with its inputs on the device. */
export interface Prepared {
  /** How the library computes it, where that is not one call of the obvious function. */
  readonly note?: string;
  /** Whether there is a second way, of simpler operations, should the first give wrong results. */
  readonly hasPlain?: boolean;
  /** The result of one call, in the layout of the problem. */
  result(): Promise<Float32Array>;
  /** Calls it so many times, results staying on the device, and waits for the last. */
  run(calls: number): Promise<void>;
  /** Frees the inputs. */
  dispose(): void;
}

/** Where a library is found and what it runs on. */
export interface Place {
  /** Folder of framezero's `package.json`. */
  readonly root: string;
  /** Folder whose `node_modules` holds the other libraries. */
  readonly folder: string;
  /** Which WebGPU. */
  readonly gpu: GpuChoice;
}

/** Opens a library. */
export type OpenLibrary = (place: Place) => Promise<Library>;
