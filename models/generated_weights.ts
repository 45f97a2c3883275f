/**
 * Weights without a file: their values are made when they are read.
 *
 * @module
 */

import { f16ArrayToF32 } from "../core/dtype.ts";
import { WeightError } from "../core/errors.ts";
import type { SafetensorsFile } from "../core/safetensors.ts";
import type { TensorInfo } from "../core/safetensors_header.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import { merged } from "./checkpoint.ts";
import type { WeightSource } from "./weights.ts";

/** Writes values of the tensor `name`, from the `from`-th on, as half-precision bits. */
export type Generate = (values: Uint16Array, name: string, shape: Shape, from: number) => void;

/** Half-precision weights of given names and shapes. `name` is what messages call them. */
export function generatedWeights(
  name: string,
  shapes: ReadonlyMap<string, Shape>,
  generate: Generate,
): WeightSource {
  const tensors = new Map<string, TensorInfo>();
  let begin = 0;
  for (const [key, shape] of shapes) {
    const end = begin + 2 * sizeOf(shape);
    tensors.set(key, { dtype: "F16", shape, begin, end });
    begin = end;
  }
  const bits = (key: string, from: number, count: number) => {
    const info = tensors.get(key);
    if (!info) return Promise.reject(new WeightError(`${name}: there is no tensor ${key}`));
    const values = new Uint16Array(count);
    generate(values, key, info.shape, from);
    return Promise.resolve(values);
  };
  const all = (key: string) => bits(key, 0, sizeOf(tensors.get(key)?.shape ?? []));
  const file: SafetensorsFile = {
    name,
    metadata: {},
    tensors,
    read: async (key) => new Uint8Array((await all(key)).buffer),
    readPart: async (key, offset, length) =>
      new Uint8Array((await bits(key, offset / 2, length / 2)).buffer),
    readF32: async (key) => f16ArrayToF32(await all(key)),
    readInts: (key) =>
      Promise.reject(new WeightError(`${name}: ${key} holds floating-point numbers; use readF32`)),
    close: () => Promise.resolve(),
  };
  return merged([file], name);
}
