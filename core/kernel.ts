/**
 * What a kernel is, and the one door that every operation passes through.
 *
 * A kernel is data: shape rule, launch, cost, float64 reference and test cases stand together in
 * one file of `kernels/`. {@link run} applies the shape rule, takes a buffer for the output,
 * launches, and tells the tape. Tests and benchmarks loop over {@link registeredKernels}.
 *
 * @module
 */

import type { Device } from "./device.ts";
import type { DType } from "./dtype.ts";
import { GpuError, ShapeError } from "./errors.ts";
import { checkShape, type Shape } from "./shape.ts";
import type { Tensor } from "./tensor.ts";
import type { Texels } from "./texels.ts";

/** Shape and element type of a tensor. */
export interface TensorSpec {
  /** Extent of each axis. */
  readonly shape: Shape;
  /** Element type. */
  readonly dtype: DType;
}

/** A scalar in the uniform buffer of a dispatch. */
export interface Param {
  /** WGSL type. */
  readonly type: "u32" | "i32" | "f32";
  /** Value. */
  readonly value: number;
}

/** An unsigned parameter. */
export function u32(value: number): Param {
  return { type: "u32", value };
}

/** A signed parameter. */
export function i32(value: number): Param {
  return { type: "i32", value };
}

/** A floating-point parameter. */
export function f32(value: number): Param {
  return { type: "f32", value };
}

/** A tensor as a shader sees it. */
export interface Binding {
  /** Tensor, or `null` for an absent optional input: any tensor then stands in, unread. */
  readonly tensor: Tensor;
  /** WGSL element type of the array. */
  readonly type: string;
  /**
   * The bytes of the tensor that the shader sees, for tensors larger than a binding may be; default:
   * all. The offset must be a multiple of 256, and `size` a multiple of the element type.
   */
  readonly range?: { readonly offset: number; readonly size: number };
}

/** Binds a tensor as an array of its scalars. */
export function scalars(tensor: Tensor): Binding {
  return { tensor, type: tensor.dtype };
}

/** Binds a tensor as an array of 4-vectors. Its number of elements should be a multiple of 4. */
export function vectors(tensor: Tensor): Binding {
  return { tensor, type: `vec4<${tensor.dtype}>` };
}

/**
 * One shader run. The door writes the declarations: each binding `x` becomes an array `x` of
 * elements `x_t`, the parameters a uniform `p`, and `main` has `wg`, `lid`, `gid` (workgroup, local
 * and global id), `grid` (number of workgroups) and `lane` (local index).
 */
export interface Dispatch {
  /** Whose text it is, where several kernels share it. Default: the kernel's own. */
  readonly family?: string;
  /** Everything that the shader's text depends on, besides names and types of its bindings. */
  readonly variant: string;
  /** Inputs by name; texels become textures that `load_<name>` of `texelLoader` reads. */
  readonly read: Readonly<Record<string, Binding | Texels>>;
  /** Outputs by name. */
  readonly write: Readonly<Record<string, Binding>>;
  /** Uniform parameters by name; at most 64. */
  readonly params: Readonly<Record<string, Param>>;
  /** Invocations of a workgroup. */
  readonly workgroup: readonly [number, number, number];
  /** Workgroups. */
  readonly workgroups: readonly [number, number, number];
  /** WGSL directives that the text needs, one a line; `enable f16;` is added by the door. */
  readonly directives?: string;
  /** Built-in values that the text needs besides those above: parameters of the entry point. */
  readonly builtins?: string;
  /**
   * Whether one workgroup may do the work of several that follow it along x, as software adapters
   * like it: launching a workgroup costs them as much as a few hundred elements.
   */
  readonly foldable?: boolean;
  /** Functions, constants and workgroup variables. */
  readonly declarations?: () => string;
  /** Body of the entry point. */
  readonly main: () => string;
}

/** What a kernel's `launch` may use. */
export interface Launch<Attributes> {
  /** Device to run on: features and limits decide variants. */
  readonly device: Device;
  /** The inputs in the kernel's order; `null` for an absent optional one. */
  readonly inputs: readonly (Tensor | null)[];
  /** The output, to be filled. */
  readonly output: Tensor;
  /** Settings of the operation. */
  readonly attributes: Attributes;
  /** Enqueues a shader run. */
  dispatch(dispatch: Dispatch): void;
  /** A tensor that lives until the launch has returned. */
  temporary(shape: Shape, dtype: DType): Tensor;
  /** Enqueues a copy of a tensor into texels that live until the launch has returned. */
  texels(tensor: Tensor): Texels;
}

/** A test case: shapes of the inputs (values are drawn from a seeded generator) and settings. */
export interface KernelCase<Attributes> {
  /** Shapes in the order of the inputs; `null` for an absent optional one. */
  readonly shapes: readonly (Shape | null)[];
  /** Settings. */
  readonly attributes: Attributes;
  /** Element types of the inputs that are not floating point. */
  readonly dtypes?: readonly (DType | null)[];
  /** Values of inputs that must not be random (indexes, grids). */
  readonly values?: readonly (readonly number[] | null)[];
}

/** A kernel: everything there is to know about an operation on the GPU. */
export interface Kernel<Attributes> {
  /** Name in PyTorch's terms, unique. */
  readonly name: string;
  /** Names of the inputs, for messages. */
  readonly inputs: readonly string[];
  /**
   * The shape rule.
   *
   * @throws {ShapeError} if the inputs break it.
   */
  output(inputs: readonly (TensorSpec | null)[], attributes: Attributes): TensorSpec;
  /** Enqueues the shaders that fill the output. */
  launch(launch: Launch<Attributes>): void;
  /** Floating-point operations (a multiply-add is two). */
  flops(inputs: readonly (TensorSpec | null)[], output: TensorSpec, attributes: Attributes): number;
  /** Bytes that must move at least; default: every input and the output once. */
  bytes?(
    inputs: readonly (TensorSpec | null)[],
    output: TensorSpec,
    attributes: Attributes,
  ): number;
  /** The same in float64, as plainly as possible. */
  reference(
    inputs: readonly (Float64Array | null)[],
    shapes: readonly (Shape | null)[],
    attributes: Attributes,
    output: Shape,
  ): Float64Array;
  /** Cases that the tests run: sizes that no tile divides, one element, and typical ones. */
  readonly cases: readonly KernelCase<Attributes>[];
  /** Largest error that the tests accept in f32: |got − want| ≤ atol + rtol·|want|. */
  readonly tolerance?: { readonly atol: number; readonly rtol: number };
}

/** An operation as the tape sees it. */
export interface TapeEntry {
  /** What ran. */
  readonly kernel: Kernel<unknown>;
  /** Its inputs. */
  readonly inputs: readonly (Tensor | null)[];
  /** Its settings. */
  readonly attributes: unknown;
  /** Its result. */
  readonly output: Tensor;
}

const registry = new Map<string, Kernel<unknown>>();

/** Declares a kernel, so that tests and benchmarks find it. */
export function defineKernel<Attributes>(kernel: Kernel<Attributes>): Kernel<Attributes> {
  if (registry.has(kernel.name)) throw new Error(`a kernel named ${kernel.name} exists already`);
  registry.set(kernel.name, kernel);
  return kernel;
}

/** All kernels, in the order of their declaration. */
export function registeredKernels(): Kernel<unknown>[] {
  return [...registry.values()];
}

/**
 * The door: applies a kernel to tensors. Enqueues work and returns at once.
 *
 * @throws {ShapeError} if the inputs break the kernel's rule.
 * @throws {GpuError} if an input was disposed of, lives on another device, or memory is short.
 */
export function run<Attributes>(
  kernel: Kernel<Attributes>,
  inputs: readonly (Tensor | null)[],
  attributes: Attributes,
): Tensor {
  const first = inputs.find((input) => input !== null);
  if (!first) throw new ShapeError(`${kernel.name}: needs at least one tensor`);
  const { device } = first;
  for (const input of inputs) {
    input?.checkAlive(kernel.name);
    if (input && input.device !== device) {
      throw new GpuError(`${kernel.name}: all tensors must live on the same device`);
    }
  }
  const spec = kernel.output(inputs, attributes);
  checkShape(spec.shape, kernel.name);
  const output = device.empty(spec.shape, spec.dtype);
  device.beginOp({
    name: kernel.name,
    flops: () => kernel.flops(inputs, spec, attributes),
    bytes: () => kernel.bytes?.(inputs, spec, attributes) ?? plainBytes(inputs, output),
  });
  const temporaries: { dispose(): void }[] = [];
  try {
    kernel.launch({
      device,
      inputs,
      output,
      attributes,
      dispatch: (dispatch) => device.dispatch(kernel.name, dispatch),
      temporary(shape, dtype) {
        const tensor = device.empty(shape, dtype);
        temporaries.push(tensor);
        return tensor;
      },
      texels(tensor) {
        const made = device.texels(tensor);
        temporaries.push(made);
        return made.texels;
      },
    });
  } finally {
    for (const temporary of temporaries) temporary.dispose();
  }
  device.tape?.({ kernel, inputs, attributes, output });
  return output;
}

function plainBytes(inputs: readonly (Tensor | null)[], output: Tensor): number {
  return inputs.reduce((sum, input) => sum + (input?.bytes ?? 0), output.bytes);
}
