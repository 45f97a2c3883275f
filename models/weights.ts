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
import type { DType } from "../core/dtype.ts";
import { WeightError } from "../core/errors.ts";
import type { SafetensorsFile, TensorInfo } from "../core/safetensors.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { panelShape } from "../kernels/panels.ts";
import { add, type QuantizedWeights } from "../kernels/mod.ts";
import { sameWeights } from "./state_dict.ts";
import { fill } from "./weight_stream.ts";

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
  /** Whether weights of products are rounded to 8 bits, with a scale for each output. */
  readonly quantize?: boolean;
  /** Called as tensors arrive on the device: their bytes there, and those of the whole model. */
  readonly onProgress?: (bytes: number, total: number) => void;
}

/**
 * Builds a model on a source and streams its weights in; frees everything if that fails.
 *
 * @throws {WeightError} if tensors are missing, superfluous or of another shape.
 */
export async function loadModel<Model>(
  source: WeightSource,
  { device, dtype = "f32", quantize = false, onProgress }: ModelOptions,
  build: (weights: Weights) => Model,
): Promise<Model> {
  const weights = Weights.of(device, source, dtype, quantize);
  try {
    const model = build(weights);
    await weights.load(onProgress);
    return model;
  } catch (error) {
    weights.dispose();
    throw error;
  }
}

/** Names in checkpoints that carry no weights of ours: buffers, and training leftovers. */
const IGNORED = /(^|\.)(position_ids|num_batches_tracked)$/;

interface Declared {
  readonly name: string;
  readonly tensor: Tensor;
  /** Inputs of each output, if it is kept in panels. */
  readonly inputs: number | null;
  /** Scales of the outputs, if it is rounded to 8 bits. */
  readonly scale: Tensor | null;
}

/** What all cursors into one model share. */
interface Model {
  readonly device: Device;
  readonly source: WeightSource;
  readonly dtype: DType;
  readonly quantize: boolean;
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
  static of(device: Device, source: WeightSource, dtype: DType, quantize = false): Weights {
    return new Weights(
      { device, source, dtype, quantize, declared: new Map(), observer: null },
      "",
    );
  }

  /** Device that the tensors go to. */
  get device(): Device {
    return this.#model.device;
  }

  /** Type of the tensors. */
  get dtype(): DType {
    return this.#model.dtype;
  }

  /** Whether weights of products are rounded to 8 bits. */
  get quantized(): boolean {
    return this.#model.quantize;
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
    const { device, dtype } = this.#model;
    const path = this.#check(name, shape);
    const tensor = device.empty(shape, dtype).keep();
    this.#model.declared.set(path, { name: path, tensor, inputs: null, scale: null });
    return tensor;
  }

  /**
   * Declares a weight stored `[O, K…]` and kept in panels, `[⌈O/32⌉, ⌈K/4⌉·4, 32]`, the form in
   * which every product of channel-major tensors reads it; or rounded to 8 bits, if the model is.
   *
   * @throws {WeightError} if it is missing or of another shape.
   */
  packed(name: string, shape: Shape): Tensor | QuantizedWeights {
    const { device, quantize } = this.#model;
    const path = this.#check(name, shape);
    const inputs = sizeOf(shape) / shape[0];
    const dtype = quantize ? "u32" : this.#model.dtype;
    const kept = panelShape(shape[0], inputs, dtype);
    const tensor = device.empty(kept, dtype).keep();
    const scale = quantize ? device.empty([shape[0]], "f32").keep() : null;
    this.#model.declared.set(path, { name: path, tensor, inputs, scale });
    return scale ? { panels: tensor, scale } : tensor;
  }

  /** The full name of a tensor that the source has in that shape. */
  #check(name: string, stored: Shape): string {
    const { source } = this.#model;
    const full = this.#name(name);
    const entry = source.tensors.get(full);
    if (!entry) {
      throw new WeightError(
        `${source.name}: the tensor ${full} of shape [${stored}] is missing; ` +
          `the file is incomplete or belongs to another model`,
      );
    }
    const { shape } = entry.file.tensors.get(entry.key) as TensorInfo;
    if (!sameWeights(shape, stored)) {
      throw new WeightError(
        `${source.name}: the tensor ${full} must have shape [${stored}], it has [${shape}]; ` +
          `the configuration does not belong to these weights`,
      );
    }
    return full;
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
  ): (residual: Tensor | null, ...args: Arguments) => Tensor {
    const model = this.#model;
    const { path } = this;
    return (residual, ...args) =>
      model.device.scope(() => {
        if (!model.observer) return forward(residual, ...args);
        const output = forward(null, ...args);
        model.observer(path, output);
        return residual ? add(residual, output) : output;
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
  async load(onProgress?: ModelOptions["onProgress"]): Promise<void> {
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
    const fillings = Array.from(declared.values(), ({ name, tensor, inputs, scale }) => {
      return { tensor, inputs, scale, ...source.tensors.get(name)! };
    });
    const total = fillings.reduce((sum, { tensor }) => sum + tensor.bytes, 0);
    let done = 0;
    await fill(device, fillings, ({ bytes }) => onProgress?.(done += bytes, total));
    device.trim();
  }

  /** Frees the tensors. */
  dispose(): void {
    for (const { tensor, scale } of this.#model.declared.values()) {
      tensor.dispose();
      scale?.dispose();
    }
    this.#model.declared.clear();
  }
}
