/**
 * What a case of a reference file is, whatever kind of file it comes from.
 *
 * @module
 */

import type { Device, Shape, Tensor } from "../../mod.ts";
import type { Tolerance } from "./compare.ts";
import type { ModelCache } from "./model_cache.ts";

/** Numbers of one output on the host. Without a shape only their count is compared. */
export interface Values {
  /** Elements, row-major. */
  readonly data: ArrayLike<number>;
  /** Extents, outermost first. */
  readonly shape?: Shape;
}

/** What a reference says of one output. */
export interface Wanted extends Values {
  /** Whether it was stored as integers, which are compared without a relative tolerance. */
  readonly integer: boolean;
}

/** What a run produced, by role. Tensors are read and disposed of by the runner. */
export type Outputs = Readonly<Record<string, Tensor | Values | ArrayLike<number>>>;

/** Types in which activations can be computed. */
export type FloatType = "f32" | "f16";

/**
 * How much half precision touches a case: a single operation, a model, a whole sampling loop, or
 * nothing (`"host"`: integers, random numbers and schedulers are computed in f32 in any mode).
 */
export type Family = "op" | "model" | "pipeline" | "host";

/** With what a case is run. */
export interface Setting {
  /** Where it is computed. */
  readonly device: Device;
  /** Type of weights and activations. */
  readonly dtype: FloatType;
  /** Models of the current file. */
  readonly models: ModelCache;
  /** Folder with the full-size models `unet`, `vae` and `text_encoder`, if one was given. */
  readonly weights: string | null;
}

/** One case, ready to run. */
export interface Case {
  /** Name, unique in its file. */
  readonly name: string;
  /** What is computed. */
  readonly op: string;
  /** What half precision touches. */
  readonly family: Family;
  /** Roles that the run must produce. Stored roles that it produces besides are compared too. */
  readonly outputs: readonly string[];
  /** How far outputs may be off. */
  readonly tolerance: Tolerance;
  /** The reference's values of a role, or `null` if none are stored. */
  want(role: string): Promise<Wanted | null>;
  /**
   * Computes the outputs, which are the caller's.
   *
   * @throws {Unsupported} if framezero cannot run the case.
   */
  run(setting: Setting): Promise<Outputs>;
}

/** The cases of one file. */
export interface CaseFile {
  /** All of them, in the order of the file. */
  readonly cases: readonly Case[];
  /** Closes the file. */
  close(): Promise<void>;
}

/** Thrown by a case that asks for something that framezero does not have. */
export class Unsupported extends Error {
  /** Name of the class. */
  override readonly name = "Unsupported";
}
