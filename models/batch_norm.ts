/**
 * Batch norm at inference, `y = (x − μ)/√(σ² + ε)·γ + β` with stored statistics, is a scale and a
 * shift of each channel: they go into the convolution before it while weights are loaded.
 *
 * @module
 */

import type { SafetensorsFile } from "../core/safetensors.ts";
import type { TensorInfo } from "../core/safetensors_header.ts";
import { sizeOf } from "../core/shape.ts";
import { merged } from "./checkpoint.ts";
import type { WeightSource } from "./weights.ts";

/** `torch.nn.BatchNorm2d`'s default. */
const EPSILON = 1e-5;

/** The tensors of a batch norm that has statistics. */
const PARTS = ["weight", "bias", "running_mean", "running_var"] as const;

/**
 * Weights in which every batch norm `….<norm>` has gone into the convolution `….<conv>`:
 * `W′ = W·s`, `b′ = (b − μ)·s + β` with `s = γ/√(σ² + ε)`. Where there is no norm, nothing changes.
 */
export function foldBatchNorms(source: WeightSource, conv: string, norm: string): WeightSource {
  const has = (name: string) => source.tensors.has(name);
  const normOf = (name: string): string | null => {
    const [, module] = /^(.*)\.(?:weight|bias)$/.exec(name) ?? [];
    if (!module?.endsWith(`.${conv}`)) return null;
    const path = module.slice(0, -conv.length) + norm;
    return PARTS.every((part) => has(`${path}.${part}`)) ? path : null;
  };
  const folded = new Map<string, string>();
  for (const name of source.tensors.keys()) {
    const path = normOf(name);
    if (path) folded.set(name, path);
  }
  const gone = new Set([...folded.values()].flatMap((path) => PARTS.map((p) => `${path}.${p}`)));
  const values = (name: string): Promise<Float32Array> => {
    const { file, key } = source.tensors.get(name) as { file: SafetensorsFile; key: string };
    return file.readF32(key);
  };
  const fold = async (name: string): Promise<Float32Array> => {
    const path = folded.get(name) as string;
    const [gamma, beta, mean, variance] = await Promise.all(
      PARTS.map((part) => values(`${path}.${part}`)),
    );
    const own = await values(name);
    const scale = gamma.map((g, o) => g / Math.sqrt(variance[o] + EPSILON));
    const inputs = own.length / scale.length;
    return name.endsWith(".bias")
      ? own.map((b, o) => (b - mean[o]) * scale[o] + beta[o])
      : own.map((w, i) => w * scale[Math.floor(i / inputs)]);
  };
  const made = foldedFile(source, [...folded.keys()], fold);
  const rest = [...source.tensors].filter(([name]) => !folded.has(name) && !gone.has(name));
  const { tensors } = merged([made], source.name);
  return { ...source, tensors: new Map([...tensors, ...rest]), close: () => source.close() };
}

/** Tensors that are made when they are read. */
function foldedFile(
  source: WeightSource,
  names: readonly string[],
  make: (name: string) => Promise<Float32Array>,
): SafetensorsFile {
  const tensors = new Map<string, TensorInfo>();
  let begin = 0;
  for (const name of names) {
    const { file, key } = source.tensors.get(name) as { file: SafetensorsFile; key: string };
    const { shape } = file.tensors.get(key) as TensorInfo;
    const end = begin + sizeOf(shape) * Float32Array.BYTES_PER_ELEMENT;
    tensors.set(name, { dtype: "F32", shape, begin, end });
    begin = end;
  }
  // A tensor is read in pieces, but made as a whole: it waits here until its end has been read.
  const waiting = new Map<string, Promise<Float32Array>>();
  const whole = (name: string): Promise<Float32Array> => {
    const values = waiting.get(name) ?? make(name);
    waiting.set(name, values);
    return values;
  };
  const readPart = async (name: string, offset: number, length: number): Promise<Uint8Array> => {
    const { buffer, byteLength } = await whole(name);
    if (offset + length === byteLength) waiting.delete(name);
    return new Uint8Array(buffer.slice(offset, offset + length));
  };
  return {
    name: source.name,
    metadata: {},
    tensors,
    read: async (name) => new Uint8Array((await make(name)).buffer),
    readPart,
    readF32: make,
    readInts: (name) => Promise.reject(new TypeError(`${name} holds floating-point numbers`)),
    close: () => Promise.resolve(),
  };
}
