/**
 * The errors of framezero: a small closed set. Every message states the rule, what came, and what
 * to do about it.
 *
 * @module
 */

/** A tensor's shape or dtype breaks an operation's rule. The message carries the op and the shapes. */
export class ShapeError extends Error {
  /** Always `"ShapeError"`. */
  override readonly name = "ShapeError";
}

/** A checkpoint is damaged, incomplete, or of another architecture. The message names the tensor. */
export class WeightError extends Error {
  /** Always `"WeightError"`. */
  override readonly name = "WeightError";
}

/** No adapter, a limit exceeded, memory exhausted, the device lost, or a shader refused. */
export class GpuError extends Error {
  /** Always `"GpuError"`. */
  override readonly name = "GpuError";
}

/** The memory budget of a device is used up: a smaller piece of work at a time may still fit. */
export class MemoryError extends GpuError {}

/** A setting, file or argument given by the user cannot be used. */
export class InputError extends Error {
  /** Always `"InputError"`. */
  override readonly name = "InputError";
}
