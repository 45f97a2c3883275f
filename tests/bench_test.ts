/**
 * The benchmark's own arithmetic: what it times, how it counts, what it says.
 */

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { command, count, flag, floatType, path, pattern, severalOf } from "../bench/command.ts";
import { main as endToEnd } from "../bench/end_to_end.ts";
import { main as kernels, type Results } from "../bench/kernels.ts";
import { textWorkloads, unetWorkloads, vaeWorkloads } from "../bench/shapes.ts";
import { markdownTable, significant, textHead, textRow } from "../bench/table.ts";
import { enoughCalls, leastTime, median, time } from "../bench/timing.ts";
import { costOf, everyKernel, findError, upload, type Workload } from "../bench/workload.ts";
import { openDevice } from "../core/device.ts";
import { registeredKernels, run, type TapeEntry } from "../core/kernel.ts";
import { sizeOf } from "../core/shape.ts";
import "../kernels/mod.ts";
import { unaryKernels } from "../kernels/unary.ts";
import { disposeCache } from "../models/attention.ts";
import { SD15 } from "../models/sd15.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";

const device = await openDevice();
after(() => device.close());

/** GFLOP of the products and sums of products, which published totals count alone. */
function gigaflops(workloads: readonly Workload[]): number {
  const counted = workloads.filter(({ kernel: { name } }) =>
    ["matmul", "channel_linear", "conv2d", "attention"].includes(name)
  );
  return counted.reduce((sum, work) => sum + work.calls * costOf(work, "f32").flops, 0) / 1e9;
}

describe("workloads", () => {
  it("of Stable Diffusion 1.5 add up to the published totals", () => {
    const one = { rows: 1, textRows: 1, side: 64 };
    const unet = gigaflops(unetWorkloads(SD15.unet, one));
    const text = gigaflops(textWorkloads(SD15, 1));
    const clip = 12 * (24 * 77 * 768 ** 2 + 4 * 77 ** 2 * 768) / 1e9;
    assert.equal((unet + text - clip).toFixed(1), "803.3");
    assert.equal(gigaflops(vaeWorkloads(SD15.vae, 64)).toFixed(1), "2514.5");
    const large = unetWorkloads(SD15.unet, { ...one, side: 96 });
    assert.equal((gigaflops(large) + text - clip).toFixed(0), "2148");
  });

  it("of the built-in model are the calls that it makes", async () => {
    const sd = await StableDiffusion.load(undefined, { device });
    const traced = (body: () => unknown): Map<string, number[]> => {
      const entries: TapeEntry[] = [];
      device.tape = (entry) => entries.push(entry);
      // A plan records the calls without running them.
      device.record(body).dispose();
      device.tape = null;
      return sums(entries.map(({ kernel, inputs, attributes }) => {
        const shapes = inputs.map((input) => input?.shape ?? null);
        const dtypes = inputs.map((input) => input?.dtype ?? null);
        return { kernel, input: { shapes, dtypes, attributes }, calls: 1 };
      }));
    };
    const sums = (workloads: readonly Workload[]): Map<string, number[]> => {
      const all = new Map<string, number[]>();
      for (const work of workloads) {
        // The tape turns views into copies.
        if (work.kernel.name === "strided_copy") continue;
        const { flops, bytes } = costOf(work, "f32");
        const [calls, f, b] = all.get(work.kernel.name) ?? [0, 0, 0];
        const { calls: n } = work;
        all.set(work.kernel.name, [calls + n, f + n * flops, b + n * bytes]);
      }
      return all;
    };
    try {
      const text = sd.unet.encodeText(device.empty([2, 77, 96]));
      const sample = device.empty([8, 4, 16, 16]);
      assert.deepEqual(
        traced(() => sd.unet.forward(sample, device.empty([1]), text)),
        sums(unetWorkloads(sd.unet.config, { rows: 8, textRows: 2, side: 16 })),
      );
      disposeCache(text);
      assert.deepEqual(
        traced(() => sd.vae.decode(device.empty([1, 4, 16, 16]))),
        sums(vaeWorkloads(sd.vae.config, 16)),
      );
    } finally {
      sd.dispose();
    }
  });

  it("exist for every kernel, about as large as wanted", () => {
    const workloads = everyKernel([], 2 ** 14);
    assert.deepEqual(workloads.map(({ kernel }) => kernel), registeredKernels());
    for (const { kernel, input } of workloads) {
      input.values?.forEach((values, i) => {
        if (values) assert.equal(values.length, sizeOf(input.shapes[i] ?? []), kernel.name);
      });
    }
    const exp = workloads.find(({ kernel }) => kernel.name === "exp");
    assert.ok(sizeOf(exp?.input.shapes[0] ?? []) >= 2 ** 14);
    const unet = unetWorkloads(SD15.unet, { rows: 1, textRows: 1, side: 64 });
    const attention = everyKernel(unet, 2 ** 14)
      .find(({ kernel }) => kernel.name === "attention");
    assert.deepEqual(attention?.input.shapes[0], [1, 320, 4096]);
  });

  it("are refused if their values are wrong", async () => {
    const { silu } = unaryKernels;
    const input = silu.cases[0];
    assert.equal(await findError(device, silu, input, "f32"), null);
    const wrong = { ...silu, reference: () => Float64Array.of(7) };
    assert.match(String(await findError(device, wrong, input, "f32")), /element 0 is .* of 7/);
  });
});

describe("timing", () => {
  it("makes runs of as many calls as last long enough", async () => {
    const asked: number[] = [];
    const each = (milliseconds: number, wait = 0) => (calls: number) => {
      asked.push(calls);
      return Promise.resolve(wait + calls * milliseconds);
    };
    assert.equal(await enoughCalls(5, 4096, each(5)), 1);
    assert.equal(await enoughCalls(5, 4096, each(0)), 4096);
    assert.equal(await enoughCalls(5, 4096, each(1e-6)), 4096);
    asked.length = 0;
    // A call alone seems to take 11 ms.
    const calls = await enoughCalls(100, 4096, each(1, 10));
    assert.ok(calls >= 90 && calls < 200, `${calls}`);
    assert.ok(asked.length < 8, `${asked}`);
  });

  it("takes the median of runs, and frees what they made", async () => {
    assert.equal(median([5, 1, 3]), 3);
    assert.equal(median([4, 1, 3, 2]), 2.5);
    const { silu } = unaryKernels;
    const before = device.memory().live;
    const scope = device.scope();
    const inputs = upload(device, { shapes: [[4096]], attributes: {} }, "f32");
    const call = () => device.scope(() => void run(silu, inputs, {}));
    for (const method of ["wall clock", "timestamps"] as const) {
      if (method === "timestamps" && !device.info.timestamps) continue;
      const timing = await time(device, method, call, 3);
      assert.ok(timing.shortest > 0 && timing.milliseconds >= timing.shortest, method);
      assert.ok(timing.calls >= 1 && timing.spread >= 0, method);
    }
    scope[Symbol.dispose]();
    assert.equal(device.memory().live, before);
  });

  it("knows the least time that peaks allow", () => {
    const copies = [{ bytes: 1000, gigabytesPerSecond: 20 }, {
      bytes: 1e6,
      gigabytesPerSecond: 10,
    }];
    const peaks = { method: "timestamps", gigaflops: 100, copies } as const;
    assert.equal(leastTime(peaks, { flops: 1e9, bytes: 1e6 }), 10);
    assert.equal(leastTime(peaks, { flops: 0, bytes: 1000 }), 1000 / 20 / 1e6);
    assert.equal(leastTime(peaks, { flops: 0, bytes: 2e6 }), 2e6 / 10 / 1e6);
  });
});

describe("tables", () => {
  const columns = [
    { title: "name", width: 6, align: "left" },
    { title: "ms", width: 5, align: "right" },
  ] as const;

  it("are set in columns", () => {
    assert.equal(textHead(columns), "name       ms\n------  -----");
    assert.equal(textRow(columns, ["softmax", "1.20"]), "softm…   1.20");
  });

  it("are Markdown where wanted", () => {
    const table = markdownTable(columns, [["a|b", "3"]]);
    assert.equal(table, "| name | ms |\n| --- | ---: |\n| a\\|b | 3 |");
  });

  it("show three significant digits", () => {
    const shown = [1234.5, 12.345, 1.2345, 0.012345, 0].map(significant);
    assert.deepEqual(shown, ["1235", "12.3", "1.23", "0.0123", "0"]);
  });
});

describe("options", () => {
  const options = {
    json: path,
    quick: flag,
    runs: count,
    filter: pattern,
    dtype: floatType,
    size: severalOf(["256", "512"]),
  };
  /** What a command gets from `args`, or its exit code. */
  const read = async (...args: string[]) => {
    let got: object | undefined;
    const code = await command({ help: "", options }, (values) => {
      got = values;
      return Promise.resolve(0);
    })(args);
    return got ?? code;
  };

  it("are read as what they stand for, the last one counts", async () => {
    const none = { json: undefined, quick: false, runs: undefined, filter: undefined };
    assert.deepEqual(await read(), { ...none, dtype: undefined, size: [] });
    assert.deepEqual(
      await read(..."--quick --runs 3 --runs 5 --dtype=f16 --size 512 --size 256".split(" ")),
      { ...none, quick: true, runs: 5, dtype: "f16", size: ["512", "256"] },
    );
    assert.deepEqual(await read("--json", "a b", "--filter", "^c"), {
      ...none,
      json: "a b",
      filter: /^c/,
      dtype: undefined,
      size: [],
    });
  });

  it("end a command that does not understand them with exit code 2", async () => {
    for (const value of ["0", "1.5", "x", ""]) assert.equal(await read("--runs", value), 2);
    for (const args of ["--filter (", "--dtype f64", "--size 256 --size 1", "--fast", "file"]) {
      assert.equal(await read(...args.split(" ")), 2);
    }
    assert.equal(await read("--runs"), 2);
    assert.equal(await read("--help"), 0);
  });

  it("leave an error of another kind as exit code 1", async () => {
    const failing = command({ help: "", options: {} }, () => Promise.reject(new Error("broken")));
    assert.equal(await failing([]), 1);
  });
});

describe("commands", () => {
  it("refuse wrong options with exit code 2", async () => {
    for (const command of [kernels, endToEnd]) {
      assert.equal(await command(["--dtype", "f64"]), 2);
      assert.equal(await command(["--gpu", "quantum"]), 2);
      assert.equal(await command(["--fast"]), 2);
    }
    assert.equal(await kernels(["--runs", "0"]), 2);
    assert.equal(await kernels(["--sd15", "768"]), 2);
    assert.equal(await kernels(["--filter", "("]), 2);
    assert.equal(await kernels(["--quick", "--filter", "nothing like this"]), 2);
    assert.equal(await endToEnd(["--steps", "1.5"]), 2);
  });

  it("time a kernel and write what they found", async () => {
    const folder = await mkdtemp(join(tmpdir(), "framezero-bench-"));
    try {
      const [json, markdown] = [join(folder, "k.json"), join(folder, "k.md")];
      const filter = ["--filter", "^(silu|concat)$"];
      const code = await kernels(["--quick", ...filter, "--json", json, "--markdown", markdown]);
      assert.equal(code, 0);
      const results: Results = JSON.parse(await readFile(json, "utf8"));
      assert.deepEqual(results.rows.map(({ kernel }) => kernel).sort(), ["concat", "silu"]);
      for (const { milliseconds, shareOfPeak } of results.rows) {
        assert.ok(milliseconds > 0 && shareOfPeak > 0);
      }
      assert.ok(results.peaks.gigaflops > 0 && results.adapter && results.runtime);
      assert.match(await readFile(markdown, "utf8"), /\| silu \|/);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
