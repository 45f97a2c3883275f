/**
 * `@jax-js/jax` as a contender: compiled functions of its NumPy and `nn` interfaces.
 *
 * @module
 */

import type { Library, Place, Prepared } from "./library.ts";
import { importPackage } from "./packages.ts";
import { EPS, headsAtOnce, joined, noteOn, permuted, type Problem, valuesOf } from "./problems.ts";

/** An array; functions consume their arguments, `ref` keeps one alive. */
interface JaxArray {
  readonly ref: JaxArray;
  add(other: JaxArray): JaxArray;
  mul(other: JaxArray): JaxArray;
  reshape(shape: readonly number[]): JaxArray;
  data(): Promise<Float32Array>;
  gpuBuffer(): Promise<GPUBuffer>;
  blockUntilReady(): Promise<JaxArray>;
  dispose(): void;
}

type Compute = (...inputs: JaxArray[]) => JaxArray;

interface Jax {
  init(device: "webgpu"): Promise<readonly string[]>;
  defaultDevice(device: "webgpu"): void;
  getWebGPUDevice(): GPUDevice;
  jit(compute: Compute): Compute;
  readonly numpy: {
    array(data: Float32Array, options: { shape: readonly number[] }): JaxArray;
    matmul(a: JaxArray, b: JaxArray): JaxArray;
  };
  readonly nn: {
    standardize(x: JaxArray, axis: number, options: { epsilon: number }): JaxArray;
    dotProductAttention(q: JaxArray, k: JaxArray, v: JaxArray): JaxArray;
  };
  readonly lax: {
    conv(x: JaxArray, w: JaxArray, strides: readonly number[], padding: "SAME"): JaxArray;
  };
}

/** How jax-js computes a problem. */
interface Plan {
  /** Arguments of each call of `compute`. */
  readonly calls: readonly (readonly JaxArray[])[];
  readonly compute: Compute;
  /** From its layout, the outputs one after another, into that of the problem. */
  readonly arrange: (data: Float32Array) => Float32Array;
  readonly note?: string;
}

/** Loads the library and lets it open a device. */
export async function openJax({ folder }: Place): Promise<Library> {
  const { exports: jax, version } = await importPackage<Jax>(folder, "@jax-js/jax");
  await jax.init("webgpu");
  jax.defaultDevice("webgpu");
  return { version, prepare: (problem) => prepare(jax, problem) };
}

async function prepare(jax: Jax, problem: Problem): Promise<Prepared> {
  const { calls: inputs, compute, arrange, note } = planOf(jax, problem);
  await Promise.all(inputs.flat().map((input) => input.blockUntilReady()));
  const compiled = jax.jit(compute);
  const call = (args: readonly JaxArray[]) => compiled(...args.map((input) => input.ref));
  const { queue } = jax.getWebGPUDevice();
  return {
    note,
    async result() {
      const parts: Float32Array[] = [];
      for (const args of inputs) parts.push(await call(args).data());
      return arrange(joined(parts));
    },
    async run(calls) {
      for (let i = 0; i < calls; i++) {
        // Arrays are lazy: only who asks for the buffer has it computed.
        for (const args of inputs) await call(args).gpuBuffer();
      }
      await queue.onSubmittedWorkDone();
    },
    dispose: () => inputs.flat().forEach((input) => input.dispose()),
  };
}

function planOf(jax: Jax, problem: Problem): Plan {
  const { numpy, nn, lax } = jax;
  const values = valuesOf(problem);
  const array = (data: Float32Array, shape: readonly number[]) => numpy.array(data, { shape });
  const same = (data: Float32Array) => data;
  switch (problem.op) {
    case "matmul": {
      const { tokens, inputs, outputs } = problem;
      const x = permuted(values[0], [inputs, tokens], [1, 0]);
      return {
        calls: [[array(x, [tokens, inputs]), array(values[1], [inputs, outputs])]],
        compute: (x, w) => numpy.matmul(x, w),
        arrange: (data) => permuted(data, [tokens, outputs], [1, 0]),
      };
    }
    case "conv2d": {
      const { channels: C, side } = problem;
      return {
        calls: [[array(values[0], [1, C, side, side]), array(values[1], [C, C, 3, 3])]],
        compute: (x, w) => lax.conv(x, w, [1, 1], "SAME"),
        arrange: same,
      };
    }
    case "attention": {
      const { heads, width, tokens } = problem;
      const count = headsAtOnce(problem, jax.getWebGPUDevice().limits.maxStorageBufferBindingSize);
      const size = count * width * tokens;
      const part = (data: Float32Array, at: number) =>
        permuted(data.subarray(at, at + size), [count, width, tokens], [2, 0, 1]);
      return {
        calls: Array.from(
          { length: heads / count },
          (_, i) => values.map((data) => array(part(data, i * size), [tokens, count, width])),
        ),
        compute: (q, k, v) => nn.dotProductAttention(q, k, v),
        arrange: (data) => permuted(data, [heads / count, tokens, count, width], [0, 2, 3, 1]),
        note: noteOn(count, heads),
      };
    }
    case "group_norm": {
      const { groups, channels, side } = problem;
      const [x, w, b] = values;
      return {
        calls: [[
          array(x, [groups, channels / groups * side * side]),
          array(w, [channels, 1, 1]),
          array(b, [channels, 1, 1]),
        ]],
        compute: (x, w, b) =>
          nn.standardize(x, -1, { epsilon: EPS }).reshape([channels, side, side]).mul(w).add(b),
        arrange: same,
      };
    }
  }
}
