/**
 * TensorFlow.js with its WebGPU backend as a contender.
 *
 * @module
 */

import type { Library, Place, Prepared } from "./library.ts";
import { importPackage } from "./packages.ts";
import { EPS, headsAtOnce, joined, noteOn, permuted, type Problem, valuesOf } from "./problems.ts";

interface TfTensor {
  readonly rank: number;
  data(): Promise<Float32Array>;
  dispose(): void;
}

interface Tf {
  setBackend(name: "webgpu"): Promise<boolean>;
  ready(): Promise<void>;
  backend(): { readonly device: GPUDevice };
  slice(x: TfTensor, begin: readonly number[], size: readonly number[]): TfTensor;
  tidy<T extends TfTensor | TfTensor[]>(body: () => T): T;
  tensor(data: Float32Array, shape: readonly number[]): TfTensor;
  reshape(x: TfTensor, shape: readonly number[]): TfTensor;
  matMul(a: TfTensor, b: TfTensor, transposeA?: boolean, transposeB?: boolean): TfTensor;
  softmax(x: TfTensor): TfTensor;
  mul(a: TfTensor, b: TfTensor | number): TfTensor;
  conv2d(x: TfTensor, w: TfTensor, stride: number, padding: "same", format: "NHWC"): TfTensor;
  moments(x: TfTensor, axis: number, keepDims: boolean): { mean: TfTensor; variance: TfTensor };
  sub(a: TfTensor, b: TfTensor): TfTensor;
  add(a: TfTensor, b: TfTensor | number): TfTensor;
  rsqrt(x: TfTensor): TfTensor;
}

/** How tfjs computes a problem. */
interface Plan {
  readonly inputs: readonly TfTensor[];
  readonly compute: () => TfTensor[];
  /** From its layout, the outputs one after another, into that of the problem. */
  readonly arrange: (data: Float32Array) => Float32Array;
  readonly note?: string;
}

/** Loads the library and lets it open a device. */
export async function openTfjs({ folder }: Place): Promise<Library> {
  const { exports: tf, version } = await importPackage<Tf>(folder, "@tensorflow/tfjs-core");
  await importPackage(folder, "@tensorflow/tfjs-backend-webgpu");
  if (!await tf.setBackend("webgpu")) {
    throw new Error("tfjs could not start its WebGPU backend");
  }
  await tf.ready();
  return {
    version,
    prepare: (problem) => Promise.resolve(prepare(tf, problem)),
  };
}

function prepare(tf: Tf, problem: Problem): Prepared {
  const { inputs, compute, arrange, note } = planOf(tf, problem);
  const call = () => tf.tidy(compute);
  return {
    note,
    async result() {
      const outputs = call();
      const parts = await Promise.all(outputs.map((output) => output.data()));
      outputs.forEach((output) => output.dispose());
      return arrange(joined(parts));
    },
    async run(calls) {
      for (let i = 1; i < calls; i++) {
        call().forEach((output) => output.dispose());
      }
      const outputs = call();
      const last = outputs[outputs.length - 1];
      // Only who reads submits what is recorded: one number of the last result comes to the host.
      const first = tf.slice(last, Array(last.rank).fill(0), Array(last.rank).fill(1));
      await first.data();
      for (const tensor of [...outputs, first]) tensor.dispose();
    },
    dispose: () => inputs.forEach((input) => input.dispose()),
  };
}

function planOf(tf: Tf, problem: Problem): Plan {
  const values = valuesOf(problem);
  switch (problem.op) {
    case "matmul": {
      const { tokens, inputs, outputs } = problem;
      const x = tf.tensor(permuted(values[0], [inputs, tokens], [1, 0]), [tokens, inputs]);
      const w = tf.tensor(values[1], [inputs, outputs]);
      return {
        inputs: [x, w],
        compute: () => [tf.matMul(x, w)],
        arrange: (data) => permuted(data, [tokens, outputs], [1, 0]),
      };
    }
    case "conv2d": {
      const { channels: C, side } = problem;
      const pixels = permuted(values[0], [C, side * side], [1, 0]);
      const x = tf.tensor(pixels, [1, side, side, C]);
      const w = tf.tensor(permuted(values[1], [C, C, 9], [2, 1, 0]), [3, 3, C, C]);
      return {
        inputs: [x, w],
        compute: () => [tf.conv2d(x, w, 1, "same", "NHWC")],
        arrange: (data) => permuted(data, [side * side, C], [1, 0]),
      };
    }
    case "attention": {
      const { heads, width, tokens } = problem;
      const count = headsAtOnce(problem, tf.backend().device.limits.maxStorageBufferBindingSize);
      const size = count * width * tokens;
      const [q, k, v] = values.map((data) =>
        Array.from({ length: heads / count }, (_, i) => {
          const part = data.subarray(i * size, (i + 1) * size);
          return tf.tensor(permuted(part, [count, width, tokens], [0, 2, 1]), [
            count,
            tokens,
            width,
          ]);
        })
      );
      const attend = (q: TfTensor, k: TfTensor, v: TfTensor) =>
        tf.tidy(() => {
          const scores = tf.matMul(tf.mul(q, width ** -0.5), k, false, true);
          return tf.matMul(tf.softmax(scores), v);
        });
      return {
        inputs: [q, k, v].flat(),
        compute: () => q.map((part, i) => attend(part, k[i], v[i])),
        arrange: (data) => permuted(data, [heads, tokens, width], [0, 2, 1]),
        note: noteOn(count, heads),
      };
    }
    case "group_norm": {
      const { groups, channels, side } = problem;
      const x = tf.tensor(values[0], [groups, channels / groups * side * side]);
      const [w, b] = values.slice(1).map((data) => tf.tensor(data, [channels, 1, 1]));
      return {
        inputs: [x, w, b],
        compute: () => {
          const { mean, variance } = tf.moments(x, -1, true);
          const scaled = tf.mul(tf.sub(x, mean), tf.rsqrt(tf.add(variance, EPS)));
          return [tf.add(tf.mul(tf.reshape(scaled, [channels, side, side]), w), b)];
        },
        arrange: (data) => data,
      };
    }
  }
}
