/**
 * The generators against numbers drawn by PyTorch, and against published test vectors.
 *
 * @module
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { InputError, ShapeError } from "../core/errors.ts";
import { Generator, generatorForFrame } from "../core/random.ts";
import { openSafetensors } from "../core/safetensors.ts";

type Case = {
  name: string;
  op: string;
  params: {
    seed: number;
    shape: number[];
    low: number;
    high: number;
    n: number;
    order: string[];
    call_index: number;
  };
  outputs: string[];
  tol: { atol: number; rtol: number };
};

type Values = Float32Array | Float64Array | Int32Array;

const golden = await openSafetensors(
  fileURLToPath(new URL("./golden/rng.safetensors", import.meta.url)),
);
const cases: Case[] = JSON.parse(golden.metadata.cases);

function shapeOf(test: Case, output: string): readonly number[] {
  const info = golden.tensors.get(`${test.name}/${output}`);
  assert.ok(info, `${test.name}/${output} is missing`);
  return info.shape;
}

/** Draws what a step of a sequence is called after: `randn20`, `rand5`, `randint7`, or `a`, `b`. */
function drawStep(generator: Generator, step: string, shape: readonly number[]): Values {
  if (step.startsWith("randint")) return generator.randint(0, 50, shape);
  if (step.startsWith("rand") && !step.startsWith("randn")) return generator.rand(shape);
  return generator.randn(shape);
}

function draw(test: Case): Map<string, Values> {
  const { seed, shape, low, high, n, order, call_index } = test.params;
  const generator = new Generator(seed, test.op === "cuda_philox_randn" ? "cuda" : "cpu");
  switch (test.op) {
    case "randn":
      return new Map([["y", generator.randn(shape)]]);
    case "randn_float64":
      return new Map([["y__f64", generator.randnF64(shape)]]);
    case "rand":
      return new Map([["y", generator.rand(shape)]]);
    case "randint":
      return new Map([["y", generator.randint(low, high, shape)]]);
    case "randperm":
      return new Map([["y", generator.randperm(n)]]);
    case "cuda_philox_randn":
      for (let call = 0; call < call_index; call++) generator.randn(shape);
      return new Map([["y", generator.randn(shape)]]);
    case "sequence":
      return new Map(order.map((step) => [step, drawStep(generator, step, shapeOf(test, step))]));
    default:
      throw new Error(`no such op: ${test.op}`);
  }
}

async function wanted(tensor: string): Promise<Values> {
  const dtype = golden.tensors.get(tensor)?.dtype;
  if (dtype === "F64") return new Float64Array((await golden.read(tensor)).buffer);
  return dtype === "I64" ? await golden.readInts(tensor) : await golden.readF32(tensor);
}

function assertClose(got: Values, want: ArrayLike<number>, atol: number, rtol: number): void {
  assert.equal(got.length, want.length);
  for (let i = 0; i < want.length; i++) {
    const error = Math.abs(got[i] - want[i]);
    assert.ok(
      error <= atol + rtol * Math.abs(want[i]),
      `element ${i}: got ${got[i]}, want ${want[i]}`,
    );
  }
}

/** The low 24 bits of the next words: what `rand` keeps of them. */
function words24(generator: Generator, count: number): number[] {
  return Array.from(generator.rand([count]), (value) => value * 2 ** 24);
}

describe("random numbers of torch", () => {
  it("the reference file has all kinds of cases", () => {
    assert.equal(cases.length, 76);
    assert.equal(new Set(cases.map(({ op }) => op)).size, 7);
  });

  for (const test of cases) {
    it(test.name, async () => {
      const got = draw(test);
      assert.deepEqual([...got.keys()].sort(), [...test.outputs].sort());
      for (const [output, values] of got) {
        const want = await wanted(`${test.name}/${output}`);
        assertClose(values, want, test.tol.atol, test.tol.rtol);
      }
    });
  }

  it("cuda randn gives the numbers printed in stable-diffusion-webui's rng_philox", () => {
    const want = [
      [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
      [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
      [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ];
    assertClose(new Generator(0, "cuda").randn([3, 4]), want.flat(), 1e-6, 0);
  });
});

describe("seeds", () => {
  it("numbers and bigints are the same seed, negative ones are two's complement", () => {
    const pairs: [number | bigint, number | bigint][] = [
      [7, 7n],
      [-1, 2n ** 64n - 1n],
      [-(2n ** 63n), 2n ** 63n],
      [Number.MAX_SAFE_INTEGER, BigInt(Number.MAX_SAFE_INTEGER)],
    ];
    for (const [a, b] of pairs) {
      assert.deepEqual(new Generator(a).randn([20]), new Generator(b).randn([20]));
      const cuda = new Generator(a, "cuda").randn([20]);
      assert.deepEqual(cuda, new Generator(b, "cuda").randn([20]));
    }
  });

  it("cpu keeps the low 32 bits of a seed as torch does, cuda all 64", () => {
    const high = 5n + 2n ** 32n;
    assert.deepEqual(new Generator(5).randn([4]), new Generator(high).randn([4]));
    const cuda = new Generator(5, "cuda").randn([4]);
    assert.notDeepEqual(cuda, new Generator(high, "cuda").randn([4]));
  });

  it("whatever is no whole number of 64 bits is refused", () => {
    const wrong = [NaN, Infinity, 0.5, 2 ** 53, 2n ** 64n, -(2n ** 63n) - 1n];
    for (const seed of wrong) {
      assert.throws(() => new Generator(seed), (error) => {
        assert.ok(error instanceof InputError);
        assert.match(error.message, /a seed must be a whole number.*got .*correct it/);
        return true;
      });
    }
  });
});

describe("arguments", () => {
  it("cuda draws randn only", () => {
    const generator = new Generator(0, "cuda");
    const draws = [
      () => generator.rand([1]),
      () => generator.randnF64([1]),
      () => generator.randint(0, 2, [1]),
      () => generator.randperm(2),
    ];
    for (const drawIt of draws) assert.throws(drawIt, InputError);
  });

  it("shapes, bounds and counts are checked, and a refusal draws nothing", () => {
    const generator = new Generator(3);
    assert.throws(() => generator.randn([2, -1]), ShapeError);
    assert.throws(() => generator.rand([1.5]), ShapeError);
    assert.throws(() => generator.randint(3, 3, [1]), InputError);
    assert.throws(() => generator.randint(0, 2 ** 32, [1]), InputError);
    assert.throws(() => generator.randint(0.5, 2, [1]), InputError);
    assert.throws(() => generator.randperm(-1), InputError);
    assert.throws(() => generator.randperm(NaN), InputError);
    assert.deepEqual(generator.rand([3]), new Generator(3).rand([3]));
  });

  it("a scalar is one number; randint reaches the ends of 32 bits", () => {
    assert.equal(new Generator(0).randn([]).length, 1);
    const values = new Generator(0).randint(-(2 ** 31), 2 ** 31, [1000]);
    assert.ok(Math.min(...values) < -2e9 && Math.max(...values) > 2e9);
    assert.equal(new Generator(0).randperm(0).length, 0);
  });
});

describe("generatorForFrame", () => {
  it("gives the published numbers of init_by_array {0x123, 0x234, 0x345, 0x456}", () => {
    const generator = generatorForFrame(0x234_00000123n, 0x456 * 2 ** 32 + 0x345);
    const published = [1067595299, 955945823, 477289528, 4107218783, 4228976476];
    assert.deepEqual(words24(generator, 5), published.map((word) => word % 2 ** 24));
  });

  it("does not collide for near seeds and frames, nor with plain generators", () => {
    const seen = new Map<string, string>();
    const enter = (who: string, generator: Generator) => {
      const key = words24(generator, 4).join();
      assert.equal(seen.get(key), undefined, `${who} collides with ${seen.get(key)}`);
      seen.set(key, who);
    };
    for (const seed of [0, 1, 2, 3, -1, -2, 2 ** 32, 2 ** 32 + 1]) {
      for (const frame of [0, 1, 2, 3, 4, 7, 8, 1000, 2 ** 32, 2 ** 32 + 1]) {
        enter(`seed ${seed}, frame ${frame}`, generatorForFrame(seed, frame));
      }
    }
    for (const seed of [0, 1, 2, 3, -1, -2]) enter(`plain seed ${seed}`, new Generator(seed));
  });

  it("is the same for the same pair, keeps the seed, and its noise is normal", () => {
    const values = generatorForFrame(42, 5).randn([100, 100]);
    assert.deepEqual(values, generatorForFrame(42n, 5).randn([100, 100]));
    assert.equal(generatorForFrame(42, 5).seed, 42);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    assert.ok(Math.abs(mean) < 0.05 && Math.abs(variance - 1) < 0.05, `${mean}, ${variance}`);
  });

  it("neighbouring frames are uncorrelated", () => {
    const n = 10_000;
    const a = generatorForFrame(0, 0).randn([n]);
    const b = generatorForFrame(0, 1).randn([n]);
    const correlation = a.reduce((sum, value, i) => sum + value * b[i], 0) / n;
    assert.ok(Math.abs(correlation) < 0.05, `correlation ${correlation}`);
  });

  it("refuses what is no frame id", () => {
    for (const frame of [-1, 0.5, NaN]) {
      assert.throws(() => generatorForFrame(0, frame), InputError);
    }
  });
});

describe("a clone", () => {
  it("goes on as the original does, from any place in the stream", () => {
    for (const start of [() => new Generator(4), () => generatorForFrame(4, 2)]) {
      const generator = start();
      generator.randn([700]);
      generator.randn([3]); // leaves the second normal number of a pair behind
      const copy = generator.clone();
      const drawn = [generator.randn([1]), generator.randn([20]), generator.randperm(9)];
      assert.deepEqual([copy.randn([1]), copy.randn([20]), copy.randperm(9)], drawn);
    }
    const cuda = new Generator(4, "cuda");
    const first = cuda.randn([8]);
    assert.deepEqual(cuda.clone().randn([8]), cuda.randn([8]));
    assert.notDeepEqual(cuda.clone().randn([8]), first);
  });
});
