/**
 * Weights some of which are not those of the file: they are computed while the file is read.
 *
 * @module
 */

import type { SafetensorsFile, TensorInfo } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import type { WeightSource } from "./weights.ts";

/**
 * The weights of a source with others in the place of some. These are read as f32, so that loading
 * rounds them once; the rest is read as it is stored. One changed tensor is in memory at a time.
 *
 * @param isChanged Whether a tensor is another, by its name.
 * @param compute The elements of such a tensor, in the shape of the file's.
 */
export function changedWeights(
  source: WeightSource,
  isChanged: (name: string) => boolean,
  compute: (name: string) => Promise<Float32Array>,
): WeightSource {
  // Key of a changed tensor → its name.
  const changed = new Map<SafetensorsFile, Map<string, string>>();
  for (const [name, { file, key }] of source.tensors) {
    const names = changed.get(file) ?? new Map<string, string>();
    changed.set(file, isChanged(name) ? names.set(key, name) : names);
  }
  const files = new Map(
    Array.from(changed, ([file, names]) => [file, changedFile(file, names, compute)]),
  );
  const tensors = new Map(
    Array.from(source.tensors, ([name, { file, key }]) => {
      return [name, { file: files.get(file) as SafetensorsFile, key }];
    }),
  );
  return { ...source, tensors, close: () => source.close() };
}

/** A file in which some tensors are f32, and computed. */
function changedFile(
  file: SafetensorsFile,
  names: ReadonlyMap<string, string>,
  compute: (name: string) => Promise<Float32Array>,
): SafetensorsFile {
  const tensors = new Map(file.tensors);
  for (const key of names.keys()) {
    const info = tensors.get(key) as TensorInfo;
    const end = info.begin + sizeOf(info.shape) * Float32Array.BYTES_PER_ELEMENT;
    tensors.set(key, { ...info, dtype: "F32", end });
  }
  // A tensor is read in pieces, but computed as a whole: it waits here until its end has been read.
  const waiting = new Map<string, Promise<Float32Array>>();
  const valuesOf = (key: string, name: string): Promise<Float32Array> => {
    const values = waiting.get(key) ?? compute(name);
    waiting.set(key, values);
    return values;
  };
  const readPart = async (key: string, offset: number, length: number): Promise<Uint8Array> => {
    const name = names.get(key);
    if (name === undefined) return await file.readPart(key, offset, length);
    const { buffer, byteLength } = await valuesOf(key, name);
    if (offset + length === byteLength) waiting.delete(key);
    return new Uint8Array(buffer.slice(offset, offset + length));
  };
  const whole = (key: string) => {
    const { begin, end } = tensors.get(key) as TensorInfo;
    return readPart(key, 0, end - begin);
  };
  return {
    ...file,
    tensors,
    readPart,
    read: (key) => names.has(key) ? whole(key) : file.read(key),
    async readF32(key) {
      return names.has(key) ? new Float32Array((await whole(key)).buffer) : file.readF32(key);
    },
  };
}
