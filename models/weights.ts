/**
 * Weights: a cursor that carries its path through a model, so that every checkpoint key is written
 * once, at the place where the tensor is used.
 *
 * A model first declares its tensors while it is being built; {@link Weights.load} then streams them
 * from disk to GPU, one at a time, in the order of the file.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { bf16ArrayToF32, type DType, f16ArrayToF32, f32ArrayToF16 } from "../core/dtype.ts";
import { WeightError } from "../core/errors.ts";
import type { SafetensorsFile, TensorInfo } from "../core/safetensors.ts";
import { sameShape, type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, assign, permute } from "../kernels/mod.ts";

/** Where the tensors of one model lie: name → file and the name inside it. */
export interface WeightSource {
  /** What messages call it. */
  readonly name: string;
  /** All tensors that belong to the model. */
  readonly tensors: ReadonlyMap<string, { readonly file: SafetensorsFile; readonly key: string }>;
  /** Closes the files. */
  close(): Promise<void>;
}

/** Sees outputs of named submodules, as PyTorch's forward hooks do. */
export type Observer = (name: string, output: Tensor) => void;

/** How to load a model. */
export interface ModelOptions {
  /** Device to load to. */
  readonly device: Device;
  /** Type of the weights. Default `"f32"`. */
  readonly dtype?: DType;
}

/**
 * Builds a model on a source and streams its weights in; frees everything if that fails.
 *
 * @throws {WeightError} if tensors are missing, superfluous or of another shape.
 */
export async function loadModel<Model>(
  source: WeightSource,
  { device, dtype = "f32" }: ModelOptions,
  build: (weights: Weights) => Model,
): Promise<Model> {
  const weights = Weights.of(device, source, dtype);
  try {
    const model = build(weights);
    await weights.load();
    return model;
  } catch (error) {
    weights.dispose();
    throw error;
  }
}

/** Names in checkpoints that carry no weights of ours: buffers, and training leftovers. */
const IGNORED = /(^|\.)(position_ids|num_batches_tracked)$/;

/** Bytes uploaded between two waits, so that the host never holds a model. */
const UPLOAD_BYTES = 64 * 2 ** 20;

interface Declared {
  readonly name: string;
  readonly tensor: Tensor;
  /** Stored `[O, …]`, wanted as `[K, O]`. */
  readonly packed: boolean;
}

/** What all cursors into one model share. */
interface Model {
  readonly device: Device;
  readonly source: WeightSource;
  readonly dtype: DType;
  readonly declared: Map<string, Declared>;
  observer: Observer | null;
}

/** A place in a checkpoint. */
export class Weights {
  readonly #model: Model;
  /** Names of the modules above, joined with dots. */
  readonly path: string;

  private constructor(model: Model, path: string) {
    this.#model = model;
    this.path = path;
  }

  /** A cursor at the root of `source`, for a model whose tensors shall be of type `dtype`. */
  static of(device: Device, source: WeightSource, dtype: DType): Weights {
    return new Weights({ device, source, dtype, declared: new Map(), observer: null }, "");
  }

  /** Device that the tensors go to. */
  get device(): Device {
    return this.#model.device;
  }

  /** Type of the tensors. */
  get dtype(): DType {
    return this.#model.dtype;
  }

  /** The module `name` inside this one; dots descend further. */
  at(name: string): Weights {
    return new Weights(this.#model, this.#name(name));
  }

  #name(name: string): string {
    return this.path ? `${this.path}.${name}` : name;
  }

  /** Whether the checkpoint has this tensor. */
  has(name: string): boolean {
    return this.#model.source.tensors.has(this.#name(name));
  }

  /**
   * Declares a tensor as it is stored.
   *
   * @throws {WeightError} if it is missing or of another shape.
   */
  tensor(name: string, shape: Shape): Tensor {
    return this.#declare(name, shape, shape, false);
  }

  /**
   * Declares a weight stored `[O, K…]` and kept as `[K, O]`, the form in which every product of
   * channel-major tensors reads it without a transpose.
   *
   * @throws {WeightError} if it is missing or of another shape.
   */
  packed(name: string, shape: Shape): Tensor {
    return this.#declare(name, shape, [sizeOf(shape) / shape[0], shape[0]], true);
  }

  #declare(name: string, stored: Shape, kept: Shape, packed: boolean): Tensor {
    const { device, source, dtype, declared } = this.#model;
    const full = this.#name(name);
    const entry = source.tensors.get(full);
    if (!entry) {
      throw new WeightError(
        `${source.name}: the tensor ${full} of shape [${stored}] is missing; ` +
          `the file is incomplete or belongs to another model`,
      );
    }
    const { shape } = entry.file.tensors.get(entry.key) as TensorInfo;
    // Linear layers are sometimes stored as 1×1 convolutions, and the other way round.
    const squeeze = (extents: Shape) =>
      [...extents, 0].slice(0, extents.findLastIndex((n) => n !== 1) + 1);
    if (!sameShape(squeeze(shape), squeeze(stored))) {
      throw new WeightError(
        `${source.name}: the tensor ${full} must have shape [${stored}], it has [${shape}]; ` +
          `the configuration does not belong to these weights`,
      );
    }
    const tensor = device.empty(kept, dtype).keep();
    declared.set(full, { name: full, tensor, packed });
    return tensor;
  }

  /**
   * Makes a module of a function: it runs in a scope of its own, and its output can be observed
   * under the cursor's path.
   */
  module<Arguments extends readonly unknown[]>(
    forward: (...args: Arguments) => Tensor,
  ): (...args: Arguments) => Tensor {
    const model = this.#model;
    const { path } = this;
    return (...args) => {
      const output = model.device.scope(() => forward(...args));
      model.observer?.(path, output);
      return output;
    };
  }

  /**
   * Makes a module whose output is added to a residual. The sum is fused into the module's last
   * kernel, except while somebody observes the output alone.
   */
  residual<Arguments extends readonly unknown[]>(
    forward: (residual: Tensor | null, ...args: Arguments) => Tensor,
  ): (residual: Tensor, ...args: Arguments) => Tensor {
    const model = this.#model;
    const { path } = this;
    return (residual, ...args) =>
      model.device.scope(() => {
        if (!model.observer) return forward(residual, ...args);
        const output = forward(null, ...args);
        model.observer(path, output);
        return add(residual, output);
      });
  }

  /** Shows an intermediate result to the observer; `make` runs only while there is one. */
  observe(make: () => Tensor): void {
    const { observer, device } = this.#model;
    if (observer) device.scope(() => observer(this.path, make()));
  }

  /** Sets who sees the outputs of modules. */
  setObserver(observer: Observer | null): void {
    this.#model.observer = observer;
  }

  /**
   * Reads every declared tensor.
   *
   * @throws {WeightError} if the source has tensors that nobody declared, or a file is damaged.
   */
  async load(onProgress?: (done: number, total: number) => void): Promise<void> {
    const { source, declared, device } = this.#model;
    const unused = [...source.tensors.keys()]
      .filter((name) => !declared.has(name) && !IGNORED.test(name));
    if (unused.length) {
      throw new WeightError(
        `${source.name}: ${unused.length} tensor(s) belong to no part of this model: ` +
          `${unused.slice(0, 5).join(", ")}${unused.length > 5 ? ", …" : ""}; ` +
          `the configuration does not belong to these weights`,
      );
    }
    const order = [...declared.values()].map((item) => {
      const { file, key } = source.tensors.get(item.name)!;
      return { ...item, file, key, info: file.tensors.get(key) as TensorInfo };
    }).sort((a, b) => a.info.begin - b.info.begin);
    let uploaded = 0;
    let done = 0;
    for (const { tensor, packed, file, key, info } of order) {
      const data = convert(await read(file, key, info), info.dtype, tensor.dtype);
      device.scope(() => {
        if (!packed) return device.write(tensor, data);
        const [K, O] = tensor.shape;
        assign(tensor, permute(device.tensor(data, [O, K], tensor.dtype), [1, 0]));
      });
      uploaded += tensor.bytes;
      if (uploaded > UPLOAD_BYTES) {
        await device.sync();
        uploaded = 0;
      }
      onProgress?.(++done, order.length);
    }
    await device.sync();
    device.trim();
  }

  /** Frees the tensors. */
  dispose(): void {
    for (const { tensor } of this.#model.declared.values()) tensor.dispose();
    this.#model.declared.clear();
  }
}

async function read(
  file: SafetensorsFile,
  key: string,
  { dtype }: TensorInfo,
): Promise<Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>> {
  if (dtype === "F16" || dtype === "BF16") {
    const bytes = await file.read(key);
    return new Uint16Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.length / 2);
  }
  return await file.readF32(key) as Float32Array<ArrayBuffer>;
}

function convert(
  data: Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>,
  stored: string,
  wanted: DType,
): Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer> {
  if (data instanceof Float32Array) return wanted === "f16" ? f32ArrayToF16(data) : data;
  if (stored === "F16") return wanted === "f16" ? data : f16ArrayToF32(data);
  const values = bf16ArrayToF32(data);
  return wanted === "f16" ? f32ArrayToF16(values) : values;
}
