/**
 * The benchmark of one UNet evaluation: its sums, its weights, its report.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { unetWorkloads } from "../bench/shapes.ts";
import { alone, evaluate } from "../bench/unet_step/evaluation.ts";
import { byKind, type CallTime, kindOf } from "../bench/unet_step/kinds.ts";
import { randomUNet } from "../bench/unet_step/random_unet.ts";
import { markdown, plainText, type Results } from "../bench/unet_step/report.ts";
import { main } from "../bench/unet_step.ts";
import { openDevice } from "../core/device.ts";
import type { ProfileRow } from "../core/profiler.ts";
import { sizeOf } from "../core/shape.ts";
import { unetConfig } from "../models/config.ts";
import { SD15 } from "../models/sd15.ts";
import { UNet2DConditionModel } from "../models/unet.ts";

const device = await openDevice();
after(() => device.close());

/** The structure of Stable Diffusion 1.5, as small as it goes. */
const small = unetConfig({
  block_out_channels: [8, 16],
  layers_per_block: 1,
  cross_attention_dim: 8,
  attention_head_dim: 2,
  norm_num_groups: 4,
}, "small");

function call(kernel: string, attributes: unknown, calls: number, best: number): CallTime {
  return { kernel, shapes: [], attributes, calls, flops: 100, bytes: 10, best };
}

function profiled(name: string, milliseconds: number | null): ProfileRow {
  return { name, calls: 1, dispatches: 1, milliseconds, flops: 7, bytes: 5 };
}

const wide = call("conv2d", { kernel: [3, 3] }, 3, 2);
const pointwise = call("conv2d", { kernel: [1, 1] }, 2, 1);
const linear = call("channel_linear", {}, 1, 5);

describe("kinds of work", () => {
  it("tell convolutions apart by their window", () => {
    assert.equal(kindOf("conv2d", { kernel: [3, 3] }), "conv 3×3");
    assert.equal(kindOf("conv2d", { kernel: [1, 1] }), kindOf("matmul", {}));
    assert.equal(kindOf("layer_norm", {}), kindOf("group_norm", {}));
    assert.equal(kindOf("geglu", {}), "elementwise");
  });

  it("share a kernel's time as their times alone do", () => {
    const calls = [wide, pointwise, linear];
    const kinds = byKind(calls, [profiled("conv2d", 16), profiled("channel_linear", 6)]);
    assert.deepEqual(kinds, [
      { kind: "conv 3×3", calls: 3, flops: 300, bytes: 30, milliseconds: 12, alone: 6 },
      { kind: "linear, conv 1×1", calls: 3, flops: 300, bytes: 30, milliseconds: 10, alone: 7 },
    ]);
  });

  it("include what was profiled but not timed alone", () => {
    const kinds = byKind([linear], [profiled("channel_linear", 6), profiled("strided_copy", 1)]);
    assert.deepEqual(kinds.map(({ kind, milliseconds, alone }) => [kind, milliseconds, alone]), [
      ["linear, conv 1×1", 6, 5],
      ["copies, resizing", 1, 1],
    ]);
  });

  it("are ordered by times alone where there are no timestamps", () => {
    const kinds = byKind([wide, linear], [
      profiled("conv2d", null),
      profiled("channel_linear", null),
    ]);
    assert.deepEqual(kinds.map(({ milliseconds, alone }) => [milliseconds, alone]), [
      [null, 6],
      [null, 5],
    ]);
  });
});

describe("a random UNet", () => {
  it("has as many parameters as Stable Diffusion 1.5", async () => {
    const source = randomUNet(SD15.unet, "random");
    const sizes = [...source.tensors.values()].map(({ file, key }) =>
      sizeOf(file.tensors.get(key)?.shape ?? [])
    );
    assert.equal(sizes.reduce((a, b) => a + b), 859_520_964);
    await source.close();
  });

  it("is the same in every run, whole and in parts", async () => {
    const name = "conv_in.weight";
    const [a, b] = [small, small].map((config) => randomUNet(config, "random"));
    const [x, y] = [a, b].map(({ tensors }) => tensors.get(name)?.file);
    assert.ok(x && y);
    const values = await x.readF32(name);
    assert.deepEqual(values, await y.readF32(name));
    assert.ok(values.every((value) => Math.abs(value) < 1) && new Set(values).size > 100);
    const bytes = await x.read(name);
    assert.deepEqual(await x.readPart(name, 10, 6), bytes.slice(10, 16));
    await assert.rejects(x.readInts(name), /floating-point/);
    await assert.rejects(x.readF32("nothing"), /there is no tensor nothing/);
  });
});

describe("an evaluation", () => {
  it("is measured, and leaves nothing behind", async () => {
    const source = randomUNet(small, "random");
    const unet = await UNet2DConditionModel.load(source, small, { device });
    const { live } = device.memory();
    const method = device.info.timestamps ? "timestamps" : "wall clock";
    const measuring = { rows: 2, textRows: 2, side: 8, method, runs: 1 } as const;
    const { evaluation, profile } = await evaluate(unet, measuring);
    assert.equal(evaluation.syncs, 1);
    assert.ok(evaluation.dispatches > 50 && evaluation.submissions >= 1);
    assert.ok(evaluation.pipelines > 5 && evaluation.peakBytes > live);
    assert.ok(evaluation.encode > 0 && evaluation.submit > 0);
    assert.ok(evaluation.wall >= evaluation.encode + evaluation.submit);
    const workloads = unetWorkloads(small, measuring);
    assert.deepEqual(
      profile.map(({ name }) => name).filter((name) => name !== "strided_copy").toSorted(),
      [...new Set(workloads.map(({ kernel }) => kernel.name))].toSorted(),
    );
    const calls = await alone(device, workloads.slice(0, 2), { ...measuring, dtype: "f32" });
    assert.ok(calls.every(({ best, flops }) => best > 0 && best < Infinity && flops > 0));
    assert.equal(device.memory().live, live);
    unet.dispose();
  });
});

const results: Results = {
  date: "2026-11-21T07:50:29.982Z",
  adapter: "an adapter",
  implementation: "native",
  runtime: "a runtime",
  commit: null,
  model: "a model",
  size: 256,
  rows: 2,
  dtype: "f32",
  runs: 3,
  parameters: 859_520_964,
  load: 2000,
  peaks: {
    method: "timestamps",
    gigaflops: 50,
    copies: [{ bytes: 1, gigabytesPerSecond: 5 }],
  },
  evaluation: {
    dispatches: 551,
    submissions: 5,
    syncs: 1,
    pipelines: 39,
    record: 100,
    first: 900,
    encode: 4,
    submit: 3,
    wall: 100,
    spread: 0.02,
    busy: 90,
    hostShare: 0.1,
    peakBytes: 2 ** 30,
  },
  kinds: [{ kind: "conv 3×3", calls: 3, flops: 1e9, bytes: 1e6, milliseconds: 90, alone: 80 }],
  calls: [],
};

describe("the report", () => {
  it("says what was measured", () => {
    const text = plainText(results);
    assert.match(text, /one evaluation: 100 ms \(median of 3, spread 2 %\) for 1\.00 GFLOP/);
    assert.match(text, /551 dispatches, 5 submissions, 1 wait of the host, 39 pipelines/);
    assert.match(text, /GPU busy for 90\.0 ms, host share 10 %/);
    assert.match(text, /80\.0 ms ÷ 100 ms = 80 %$/);
    assert.match(
      markdown(results),
      /\| conv 3×3 \| 3 \| 1\.00 \| 90\.0 \| 100 % \| 11\.1 \| 22 % \|/,
    );
  });

  it("says so where the GPU's time is not known", () => {
    const evaluation = { ...results.evaluation, busy: null, hostShare: null };
    const kinds = results.kinds.map((kind) => ({ ...kind, milliseconds: null }));
    assert.match(plainText({ ...results, evaluation, kinds }), /no timestamps to trust/);
    const slower = { ...results.evaluation, hostShare: -0.05 };
    assert.match(plainText({ ...results, evaluation: slower }), /too small to be measured/);
  });
});

describe("the command", () => {
  it("refuses wrong options with exit code 2", async () => {
    for (const args of [["--size", "300"], ["--tiny", "--size", "256"], ["--rows", "0"], ["-x"]]) {
      assert.equal(await main(args), 2);
    }
  });
});
