/**
 * onnxruntime as a contender: onnxruntime-web in WebAssembly on the runtime's WebGPU, and
 * onnxruntime-node with its own Dawn or on the CPU. Models are made in memory.
 *
 * @module
 */

import type { Library, Place, Prepared } from "./library.ts";
import { encodeModel, type Model, type Value } from "./onnx.ts";
import { importPackage } from "./packages.ts";
import { EPS, permuted, type Problem, valuesOf } from "./problems.ts";

interface OrtTensor {
  readonly data: Float32Array;
  dispose(): void;
}

interface Session {
  run(feeds: Readonly<Record<string, OrtTensor>>): Promise<Readonly<Record<string, OrtTensor>>>;
  release(): Promise<void>;
}

interface SessionOptions {
  readonly executionProviders: readonly string[];
  readonly preferredOutputLocation?: "cpu" | "gpu-buffer";
  readonly graphOptimizationLevel?: "disabled" | "all";
}

interface Ort {
  readonly env: { readonly wasm: { numThreads?: number; proxy?: boolean } };
  readonly InferenceSession: {
    create(model: Uint8Array, options: SessionOptions): Promise<Session>;
  };
  readonly Tensor: {
    new (type: "float32", data: Float32Array, shape: readonly number[]): OrtTensor;
  };
}

type Provider = "webgpu" | "cpu";

/** How onnxruntime computes a problem. */
interface Plan extends Model {
  /** Values of the model's inputs. */
  readonly feeds: readonly Float32Array[];
  /** From its layout into that of the problem. */
  readonly arrange: (data: Float32Array) => Float32Array;
  readonly note?: string;
  readonly hasPlain?: boolean;
}

/** onnxruntime-web, on `navigator.gpu`. */
export async function openOnnxruntimeWeb({ folder }: Place): Promise<Library> {
  const entry = "dist/ort.webgpu.bundle.min.mjs";
  const { exports: ort, version } = await importPackage<Ort>(folder, "onnxruntime-web", entry);
  ort.env.wasm.numThreads = 1;
  return libraryOf(ort, version, "webgpu");
}

/** onnxruntime-node's WebGPU provider, which has a Dawn of its own. */
export function openOnnxruntimeNode({ folder }: Place): Promise<Library> {
  return native(folder, "webgpu");
}

/** onnxruntime-node on the CPU. */
export function openOnnxruntimeCpu({ folder }: Place): Promise<Library> {
  return native(folder, "cpu");
}

async function native(folder: string, provider: Provider): Promise<Library> {
  const { exports: ort, version } = await importPackage<Ort>(folder, "onnxruntime-node");
  return libraryOf(ort, version, provider);
}

function libraryOf(ort: Ort, version: string, provider: Provider): Library {
  return {
    version,
    prepare: (problem, plain) =>
      prepare(ort, provider, plain ? plainPlanOf(problem) : planOf(problem)),
  };
}

async function prepare(ort: Ort, provider: Provider, plan: Plan): Promise<Prepared> {
  const [output] = plan.outputs;
  const sessions: Session[] = [];
  const open = async (model: Model, location: "cpu" | "gpu-buffer", optimised = false) => {
    const session = await ort.InferenceSession.create(encodeModel(model), {
      executionProviders: [provider],
      preferredOutputLocation: provider === "cpu" ? "cpu" : location,
      graphOptimizationLevel: optimised ? "all" : "disabled",
    });
    sessions.push(session);
    return session;
  };
  const session = await open(plan, "gpu-buffer", true);
  const feeds: Record<string, OrtTensor> = {};
  for (const [i, input] of plan.inputs.entries()) {
    const tensor = new ort.Tensor("float32", plan.feeds[i], input.shape);
    if (provider === "cpu") {
      feeds[input.name] = tensor;
    } else {
      // A copy that stays where it was made puts the input on the device.
      const upload = await open(copyOf(input), "gpu-buffer");
      feeds[input.name] = (await upload.run({ [input.name]: tensor })).copy;
    }
  }
  const download = await open(copyOf(output), "cpu");
  const first = await open(firstOf(output), "cpu");
  const call = async () => (await session.run(feeds))[output.name];
  return {
    note: plan.note,
    hasPlain: plan.hasPlain,
    async result() {
      const tensor = await call();
      const { copy } = await download.run({ [output.name]: tensor });
      const data = plan.arrange(copy.data);
      tensor.dispose();
      return data;
    },
    async run(calls) {
      for (let i = 1; i < calls; i++) (await call()).dispose();
      const last = await call();
      // One number of the last result comes to the host: nothing else waits for the device.
      if (provider === "webgpu") await first.run({ [output.name]: last });
      last.dispose();
    },
    dispose() {
      for (const tensor of Object.values(feeds)) tensor.dispose();
      for (const session of sessions) session.release();
    },
  };
}

function copyOf(value: Value): Model {
  return {
    inputs: [value],
    outputs: [{ name: "copy", shape: value.shape }],
    nodes: [{ op: "Identity", inputs: [value.name], outputs: ["copy"] }],
  };
}

function firstOf(value: Value): Model {
  const rank = value.shape.length;
  const axes = (name: string, item: (axis: number) => number) => ({
    name,
    shape: [rank],
    data: BigInt64Array.from(value.shape, (_, axis) => BigInt(item(axis))),
  });
  return {
    inputs: [value],
    outputs: [{ name: "first", shape: value.shape.map(() => 1) }],
    constants: [axes("starts", () => 0), axes("ends", () => 1), axes("axes", (axis) => axis)],
    nodes: [{
      op: "Slice",
      inputs: [value.name, "starts", "ends", "axes"],
      outputs: ["first"],
    }],
  };
}

/** Attention without the fused operator, whose results depend on the adapter. */
function plainPlanOf(problem: Problem): Plan {
  if (problem.op !== "attention") return planOf(problem);
  const { heads, width, tokens } = problem;
  const shape = [1, heads, tokens, width];
  const across = [1, heads, width, tokens];
  const [q, k, v] = valuesOf(problem);
  return {
    inputs: [{ name: "q", shape }, { name: "k", shape: across }, {
      name: "v",
      shape,
    }],
    outputs: [{ name: "y", shape }],
    constants: [{
      name: "scale",
      shape: [],
      data: Float32Array.of(width ** -0.5),
    }],
    nodes: [
      { op: "Mul", inputs: ["q", "scale"], outputs: ["scaled"] },
      { op: "MatMul", inputs: ["scaled", "k"], outputs: ["scores"] },
      { op: "Softmax", inputs: ["scores"], outputs: ["weights"] },
      { op: "MatMul", inputs: ["weights", "v"], outputs: ["y"] },
    ],
    feeds: [permuted(q, across.slice(1), [0, 2, 1]), k, permuted(v, across.slice(1), [0, 2, 1])],
    arrange: (data) => permuted(data, shape.slice(1), [0, 2, 1]),
    note: "MatMul, Softmax, MatMul",
  };
}

function planOf(problem: Problem): Plan {
  const values = valuesOf(problem);
  switch (problem.op) {
    case "matmul": {
      const { tokens, inputs, outputs } = problem;
      return {
        inputs: [{ name: "x", shape: [tokens, inputs] }],
        outputs: [{ name: "y", shape: [tokens, outputs] }],
        constants: [{ name: "w", shape: [inputs, outputs], data: values[1] }],
        nodes: [{ op: "MatMul", inputs: ["x", "w"], outputs: ["y"] }],
        feeds: [permuted(values[0], [inputs, tokens], [1, 0])],
        arrange: (data) => permuted(data, [tokens, outputs], [1, 0]),
      };
    }
    case "conv2d": {
      const { channels: C, side } = problem;
      const image = [1, C, side, side];
      return {
        inputs: [{ name: "x", shape: image }],
        outputs: [{ name: "y", shape: image }],
        constants: [{ name: "w", shape: [C, C, 3, 3], data: values[1] }],
        nodes: [{
          op: "Conv",
          inputs: ["x", "w"],
          outputs: ["y"],
          attributes: { kernel_shape: [3n, 3n], pads: [1n, 1n, 1n, 1n] },
        }],
        feeds: [values[0]],
        arrange: (data) => data,
      };
    }
    case "attention": {
      const { heads, width, tokens } = problem;
      const shape = [1, tokens, heads * width];
      return {
        inputs: ["q", "k", "v"].map((name) => ({ name, shape })),
        outputs: [{ name: "y", shape }],
        nodes: [{
          op: "MultiHeadAttention",
          domain: "com.microsoft",
          inputs: ["q", "k", "v"],
          outputs: ["y"],
          attributes: { num_heads: BigInt(heads) },
        }],
        feeds: values.map((data) => permuted(data, [heads * width, tokens], [1, 0])),
        arrange: (data) => permuted(data, [tokens, heads * width], [1, 0]),
        hasPlain: true,
      };
    }
    case "group_norm": {
      const { groups, channels, side } = problem;
      const x = { name: "x", shape: [1, channels, side, side] };
      const integers = (name: string, items: readonly number[]) => ({
        name,
        shape: [items.length],
        data: BigInt64Array.from(items, BigInt),
      });
      return {
        inputs: [x],
        outputs: [{ name: "y", shape: x.shape }],
        constants: [
          integers("grouped", [1, groups, channels / groups * side * side]),
          integers("shape", x.shape),
          {
            name: "ones",
            shape: [groups],
            data: new Float32Array(groups).fill(1),
          },
          { name: "zeros", shape: [groups], data: new Float32Array(groups) },
          { name: "w", shape: [channels, 1, 1], data: values[1] },
          { name: "b", shape: [channels, 1, 1], data: values[2] },
        ],
        nodes: [
          { op: "Reshape", inputs: ["x", "grouped"], outputs: ["rows"] },
          {
            op: "InstanceNormalization",
            inputs: ["rows", "ones", "zeros"],
            outputs: ["normal"],
            attributes: { epsilon: EPS },
          },
          { op: "Reshape", inputs: ["normal", "shape"], outputs: ["image"] },
          { op: "Mul", inputs: ["image", "w"], outputs: ["scaled"] },
          { op: "Add", inputs: ["scaled", "b"], outputs: ["y"] },
        ],
        feeds: [values[0]],
        arrange: (data) => data,
        note: "InstanceNormalization on groups, as PyTorch exports it",
      };
    }
  }
}
