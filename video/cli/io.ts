/**
 * What a command may touch of the world besides files and the GPU: two streams and an interrupt. So
 * that tests can run commands in their own process.
 *
 * @module
 */

import type { PictureProtocol } from "../terminal_picture.ts";

/** The streams of a command. */
export interface CommandIo {
  /** Results. */
  stdout(text: string): void;
  /** Progress, remarks and errors. */
  stderr(text: string): void;
  /** Whether stderr is a terminal. */
  readonly isTTY: boolean;
  /** Characters in a line of that terminal. */
  readonly columns: number;
  /** How that terminal takes pictures; absent or `null` if it does not, and in pipes. */
  readonly pictures?: PictureProtocol | null;
  /** Aborts when the user interrupts, with an {@link Interrupted} as its reason. */
  readonly signal: AbortSignal;
  /** Whether errors are shown with their stack traces. */
  readonly debug: boolean;
}

/** The reason of an interrupt by the user. */
export class Interrupted extends Error {
  /** Always `"Interrupted"`. */
  override readonly name = "Interrupted";

  /** An interrupt that leaves no unfinished output behind. */
  constructor() {
    super("interrupted; no output was written");
  }
}
