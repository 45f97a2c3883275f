/**
 * Immediate data: a few bytes that a pass carries to its shaders without a buffer. Young in WebGPU:
 * Dawn has it, wgpu takes the text of such shaders but has no call that sets the data, and most
 * typings lack all of it.
 *
 * @module
 */

/** What each pass carries, where that can be had: `digits` of a `Dispatch`. */
const DIGITS = new Uint32Array([0, 1, 2, 3]);

/** Bytes of it. */
export const IMMEDIATE_BYTES: number = DIGITS.byteLength;

/** The parts of WebGPU's interface. */
interface Immediates {
  readonly gpu: { readonly wgslLanguageFeatures?: { has(name: string): boolean } };
  readonly limits: { readonly maxImmediateSize?: number };
  readonly pass: { setImmediates(offset: number, data: Uint32Array): void };
}

/** Whether an adapter has room for it, and its shaders the words; devices must ask for the bytes. */
export function hasImmediates(gpu: GPU, adapter: GPUAdapter): boolean {
  const { wgslLanguageFeatures: features } = gpu as Immediates["gpu"];
  const { maxImmediateSize = 0 } = adapter.limits as Immediates["limits"];
  return features?.has("immediate_address_space") === true && maxImmediateSize >= IMMEDIATE_BYTES;
}

/** Gives the data to a pass. */
export function setImmediates(pass: GPUComputePassEncoder): void {
  (pass as unknown as Immediates["pass"]).setImmediates(0, DIGITS);
}
