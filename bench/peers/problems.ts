/**
 * What all contenders compute: shapes and values, in framezero's layouts. Loads no kernels.
 *
 * @module
 */

import { Generator } from "../../core/random.ts";
import { sizeOf } from "../../core/shape.ts";

/** A computation on f32 tensors; batches are 1. */
export type Problem =
  /** x `[inputs, tokens]`, w `[inputs, outputs]` → wᵀ x, `[outputs, tokens]`. */
  | {
    readonly op: "matmul";
    readonly tokens: number;
    readonly inputs: number;
    readonly outputs: number;
  }
  /** x `[channels, side, side]`, w `[channels, channels, 3, 3]`, stride 1, padding 1. */
  | { readonly op: "conv2d"; readonly channels: number; readonly side: number }
  /** q, k and v `[heads · width, tokens]` → softmax(qᵀk / √width) vᵀ, head by head. */
  | {
    readonly op: "attention";
    readonly heads: number;
    readonly width: number;
    readonly tokens: number;
  }
  /** x `[channels, side, side]`, weight and bias `[channels]`. */
  | {
    readonly op: "group_norm";
    readonly groups: number;
    readonly channels: number;
    readonly side: number;
  };

/** A problem and its name. */
export interface Case {
  /** What tables and `--filter` call it. */
  readonly name: string;
  /** What is computed. */
  readonly problem: Problem;
}

/** Added to the variance in group norm. */
export const EPS = 1e-5;

/** Calls that cost most in Stable Diffusion 1.5 at 512 × 512, and a square product. */
export const CASES: readonly Case[] = [
  {
    name: "matmul 1024 × 1024 × 1024",
    problem: { op: "matmul", tokens: 1024, inputs: 1024, outputs: 1024 },
  },
  {
    name: "matmul 4096 × 320 × 320",
    problem: { op: "matmul", tokens: 4096, inputs: 320, outputs: 320 },
  },
  {
    name: "conv2d 3 × 3, 320 → 320, 64 × 64",
    problem: { op: "conv2d", channels: 320, side: 64 },
  },
  {
    name: "attention, 4096 tokens, 8 × 40",
    problem: { op: "attention", heads: 8, width: 40, tokens: 4096 },
  },
  {
    name: "group_norm, 320 × 64 × 64 in 32",
    problem: { op: "group_norm", groups: 32, channels: 320, side: 64 },
  },
];

/** The same on small tensors, which show that a contender runs, not how fast. */
export const SMALL_CASES: readonly Case[] = [
  {
    name: "matmul, small",
    problem: { op: "matmul", tokens: 256, inputs: 64, outputs: 128 },
  },
  { name: "conv2d, small", problem: { op: "conv2d", channels: 32, side: 16 } },
  {
    name: "attention, small",
    problem: { op: "attention", heads: 2, width: 40, tokens: 256 },
  },
  {
    name: "group_norm, small",
    problem: { op: "group_norm", groups: 8, channels: 32, side: 16 },
  },
];

/** Inputs, the same in every process: normal numbers, those of weights as small as trained ones. */
export function valuesOf(problem: Problem): Float32Array<ArrayBuffer>[] {
  const generator = new Generator(2303);
  const draw = (shape: readonly number[], deviation = 1) =>
    generator.randn(shape).map((value) => value * deviation);
  switch (problem.op) {
    case "matmul": {
      const { tokens, inputs, outputs } = problem;
      return [draw([inputs, tokens]), draw([inputs, outputs], inputs ** -0.5)];
    }
    case "conv2d": {
      const { channels, side } = problem;
      const deviation = (9 * channels) ** -0.5;
      return [draw([channels, side, side]), draw([channels, channels, 3, 3], deviation)];
    }
    case "attention": {
      const shape = [problem.heads * problem.width, problem.tokens];
      return [draw(shape), draw(shape), draw(shape)];
    }
    case "group_norm": {
      const { channels, side } = problem;
      return [draw([channels, side, side]), draw([channels]), draw([channels])];
    }
  }
}

/**
 * Heads whose scores a library that stores them can hold in one binding of so many bytes: a divisor
 * of all heads.
 */
export function headsAtOnce(
  { heads, tokens }: { readonly heads: number; readonly tokens: number },
  bytes: number,
): number {
  for (let count = heads; count > 1; count--) {
    if (heads % count === 0 && 4 * count * tokens ** 2 <= bytes) return count;
  }
  return 1;
}

/** What tables say of attention with so many heads at once. */
export function noteOn(count: number, heads: number): string | undefined {
  if (count === heads) return undefined;
  return `${count} of ${heads} heads at a time: more scores than a binding holds`;
}

/** Arrays one after another. */
export function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Elements of a tensor with its axes in another order, as `torch.permute`. */
export function permuted(
  data: Float32Array,
  shape: readonly number[],
  order: readonly number[],
): Float32Array<ArrayBuffer> {
  const strides = shape.map((_, axis) => sizeOf(shape.slice(axis + 1)));
  const out = new Float32Array(data.length);
  let at = 0;
  const fill = (depth: number, from: number) => {
    const axis = order[depth];
    if (axis === undefined) {
      out[at++] = data[from];
      return;
    }
    for (let i = 0; i < shape[axis]; i++) {
      fill(depth + 1, from + i * strides[axis]);
    }
  };
  fill(0, 0);
  return out;
}
