/**
 * framezero against the reference files under `golden/`, and the runner that compares them against
 * files with known faults.
 */

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { main } from "../bench/parity.ts";
import type { Case, FloatType, Outputs } from "../bench/parity/case.ts";
import { compare } from "../bench/parity/compare.ts";
import { ModelCache } from "../bench/parity/model_cache.ts";
import { openCases } from "../bench/parity/registry.ts";
import { type CaseResult, formatResult, runCase, runPaths } from "../bench/parity/runner.ts";
import { openDevice } from "../core/device.ts";
import { type TensorData, writeSafetensors } from "../core/safetensors.ts";
import type { Tensor } from "../core/tensor.ts";
import { sharedOut } from "./shared_out.ts";

const GOLDEN = fileURLToPath(new URL("./golden", import.meta.url));
const device = await openDevice();
const scratch = await mkdtemp(join(tmpdir(), "parity-"));
after(async () => {
  await device.close();
  await rm(scratch, { recursive: true });
});

/** What later versions have to bring. */
const FUTURE = /grad/;

/** Runs the cases below `path` that a pattern names; fails if there are none, or if one is not ok. */
async function expectOk(
  pattern: RegExp,
  dtype: FloatType = "f32",
  path: string = GOLDEN,
): Promise<void> {
  const results: CaseResult[] = [];
  for await (const result of runPaths([path], { device, dtype, filter: pattern })) {
    if (!FUTURE.test(result.name)) results.push(result);
  }
  assert.notEqual(results.length, 0, `no case matches ${pattern}`);
  const bad = results.filter(({ status }) => status !== "ok");
  assert.deepEqual(bad.map(formatResult), []);
}

const OPS = join(GOLDEN, "ops.safetensors");
const ops = await openCases(OPS);
assert.ok(ops);
const names = Map.groupBy(ops.cases, ({ op }) => op);
await ops.close();

for (const dtype of ["f32", "f16"] as const) {
  if (dtype === "f16" && !device.info.f16) continue;
  describe(`operations against PyTorch in ${dtype}`, () => {
    for (const [op, cases] of names) {
      const list = cases.map(({ name }) => name).join("|");
      it(op, () => expectOk(new RegExp(`^ops\\.safetensors:(${list})$`), dtype, OPS));
    }
  });
}

describe("files of references", () => {
  const files = ["rng", "clip_tiny/", "unet_tiny/", "vae_tiny/"];
  // The schedulers' are those of schedulers_test.ts, here through the runner.
  for (const file of [...files, ...sharedOut(["published", "schedulers"])]) {
    it(file, () => expectOk(new RegExp(`^${file}`)));
  }

  if (device.info.f16) {
    const models =
      /^(clip_tiny.*\/77|unet_tiny.*(basic_t981|frame_first|ip2p|controlnet.*1\.0)|vae_tiny.*code_4x4)$/;
    it("models in f16", () => expectOk(models, "f16"));
    it("a picture in f16", () => expectOk(/^tiny_shapes.*:image_3$/, "f16"));
  }
});

describe("sampling loops against diffusers", () => {
  // Each in one runtime: the arithmetic is the adapter's in both.
  const runs = ["paper_defaults_50", "steps10_t7_t8", "motion_60_m40_neg", "steps10_t5_t8"]
    .concat("eta_half", "nonsquare_192x96", "orig_controlnet", "chunk_frames_0_4_5_6")
    .concat("pndm_default_scheduler");
  for (const run of sharedOut(runs)) {
    it(run, () => expectOk(new RegExp(`^t2v_zero_tiny.*:${run}$`)));
  }
  for (const name of sharedOut(["image_0", "image_1", "image_2", "image_3", "video"])) {
    it(`tiny-shapes ${name}`, () => expectOk(new RegExp(`^tiny_shapes.*:${name}$`)));
  }
});

/** A stored case without its tensors. */
interface Listed {
  name: string;
  op: string;
  inputs: string[];
  outputs: string[];
  tol: object;
  params?: object;
}

function f32(name: string, values: number[]): TensorData {
  return { name, dtype: "F32", shape: [values.length], data: Float32Array.from(values) };
}

const ADD: Listed = {
  name: "sum",
  op: "add",
  inputs: ["a", "b"],
  outputs: ["y"],
  tol: { atol: 1e-6, rtol: 0 },
};

/** Writes a reference file with one `a + b` whose stored result is `y`. */
async function writeSum(file: string, y: TensorData[], listed: Partial<Listed> = {}) {
  const path = join(scratch, file);
  const tensors = [f32("sum/a", [1, 2, 3]), f32("sum/b", [10, 20, 30]), ...y];
  const cases = JSON.stringify([{ ...ADD, ...listed }]);
  await writeSafetensors(path, tensors, { cases });
  return path;
}

/** Calls the command line. */
async function parity(...args: string[]): Promise<{ code: number; out: string[]; log: string[] }> {
  const out: string[] = [];
  const log: string[] = [];
  const own = { log: console.log, error: console.error };
  console.log = (line) => out.push(line);
  console.error = (line) => log.push(line);
  try {
    return { code: await main(args), out, log };
  } finally {
    Object.assign(console, own);
  }
}

describe("the command line", () => {
  it("says what passed, names the adapter, and exits with 0", async () => {
    const path = await writeSum("good.safetensors", [f32("sum/y", [11, 22, 33])]);
    const { code, out, log } = await parity(path);
    assert.deepEqual(out, [
      "ok    good.safetensors:sum  0  0  (worst element: y[0], 11, 11)",
      "1 passed, 0 failed, 0 unsupported",
    ]);
    assert.match(log[0], /, f32$/);
    assert.equal(code, 0);
  });

  it("names the worst element of a wrong output and exits with 1", async () => {
    const path = await writeSum("wrong.safetensors", [f32("sum/y", [11, 22.5, 33.25])]);
    const { code, out } = await parity(path);
    assert.deepEqual(out, [
      "FAIL  wrong.safetensors:sum  5.00e-1  2.22e-2  (worst element: y[1], 22, 22.5)",
      "0 passed, 1 failed, 0 unsupported",
    ]);
    assert.equal(code, 1);
  });

  it("fails when an output is missing, on either side", async () => {
    const y = f32("sum/y", [11, 22, 33]);
    const more = await writeSum("more.safetensors", [y, f32("sum/z", [1])], {
      outputs: ["y", "z"],
    });
    const { code, out } = await parity(more);
    assert.match(out[0], /^FAIL .*z was not produced/);
    assert.equal(code, 1);
    const less = await writeSum("less.safetensors", [y], { outputs: ["y", "z"] });
    assert.match((await parity(less)).out[0], /^FAIL .*z is not stored in the reference file/);
  });

  it("fails at NaN that the reference does not have", async () => {
    const listed = { op: "log", inputs: ["x"], tol: { rel_l2: 1 } };
    const x = f32("sum/x", [1, -1]);
    const bad = await writeSum("nan.safetensors", [x, f32("sum/y", [0, 0])], listed);
    assert.match((await parity(bad)).out[0], /^FAIL .*worst element: y\[1\], NaN, 0/);
    const good = await writeSum("both.safetensors", [x, f32("sum/y", [0, NaN])], listed);
    assert.equal((await parity(good)).code, 0);
  });

  it("fails at another shape", async () => {
    const path = await writeSum("shape.safetensors", [f32("sum/y", [11, 22])]);
    assert.match((await parity(path)).out[0], /y has shape \[3\], the reference \[2\]/);
  });

  it("reports what it does not know as unsupported and exits with 1", async () => {
    const y = [f32("sum/y", [11, 22, 33])];
    const op = await writeSum("unknown.safetensors", y, { op: "teleport" });
    const first = await parity(op);
    assert.equal(first.out[0], 'unsupported  unknown.safetensors:sum  (the operation "teleport")');
    assert.equal(first.out[1], "0 passed, 0 failed, 1 unsupported");
    assert.equal(first.code, 1);
    const gradient = await writeSum("grad.safetensors", y, { outputs: ["y", "d_a"] });
    assert.match((await parity(gradient)).out[0], /^unsupported .*\(gradients\)$/);
    const weights = join(GOLDEN, "vae_tiny/vae/diffusion_pytorch_model.safetensors");
    assert.match((await parity(weights)).out[0], /^unsupported .*\(a file without cases\)$/);
  });

  it("fails, and goes on, where a case or a file is damaged", async () => {
    const y = [f32("sum/y", [11, 22, 33])];
    const input = await writeSum("input.safetensors", y, { inputs: ["a", "c"] });
    const settings = await writeSum("settings.safetensors", y, {
      op: "softmax",
      inputs: ["a"],
      params: { axis: "last" },
    });
    const file = join(scratch, "broken.safetensors");
    await writeFile(file, "nothing");
    const { out, code } = await parity(input, settings, file);
    assert.match(out[0], /FAIL .*the case sum needs the tensor sum\/c/);
    assert.match(out[1], /FAIL .*the case's parameter "axis" must be a number, got "last"/);
    assert.match(out[2], /^FAIL {2}broken\.safetensors:\* {2}\(WeightError/);
    assert.equal(out[3], "0 passed, 3 failed, 0 unsupported");
    assert.equal(code, 1);
  });

  it("filters by file and case, relative to the path, and writes JSON", async () => {
    const json = join(scratch, "results");
    const filter = "^vae_tiny/cases\\.safetensors:decode_4x4$";
    const { code, out } = await parity(GOLDEN, "--filter", filter, "--json", json);
    assert.equal(code, 0);
    assert.match(out[0], /^ok {4}vae_tiny\/cases\.safetensors:decode_4x4 /);
    assert.equal(out[1], "1 passed, 0 failed, 0 unsupported");
    const { passed, results } = JSON.parse(await readFile(json, "utf8"));
    assert.equal(passed, 1);
    assert.deepEqual([results[0].name, results[0].op], ["decode_4x4", "vae_decode"]);
    assert.equal(results[0].comparisons.length, 11);
  });

  it("explains wrong calls and exits with 2", async () => {
    const calls: [RegExp, ...string[]][] = [
      [/at least one reference file/],
      [/--dtype must be f32 or f16, got "f64"/, GOLDEN, "--dtype", "f64"],
      [/--gpu must be/, GOLDEN, "--gpu", "abacus"],
      [/nowhere: no such file or folder/, "nowhere"],
      [/--filter must be a regular expression, got "\("/, GOLDEN, "--filter", "("],
      [/--unknown/, GOLDEN, "--unknown"],
    ];
    for (const [message, ...args] of calls) {
      const { code, log, out } = await parity(...args);
      assert.match(log.join("\n"), message);
      assert.equal(code, 2, args.join(" "));
      assert.deepEqual(out, []);
    }
  });
});

describe("running a case", () => {
  const models = new ModelCache(device, "f32");
  const setting = { device, dtype: "f32", models, weights: null } as const;
  const one = (run: () => Outputs): Case => ({
    name: "one",
    op: "test",
    family: "op",
    outputs: ["y"],
    tolerance: {},
    want: (role) => Promise.resolve(role === "y" ? { data: [1], integer: false } : null),
    run: () => Promise.resolve().then(run),
  });

  it("fails if bytes stay on the device, and frees outputs that nobody asked for", async () => {
    const before = device.memory().live;
    const kept: Tensor[] = [];
    const leak = await runCase(
      one(() => {
        kept.push(device.tensor([1]));
        return { y: kept[0].reshape([1]) };
      }),
      setting,
    );
    assert.equal(leak.status, "FAIL");
    assert.match(leak.message ?? "", /^it leaves \d+ bytes on the device$/);
    kept[0].dispose();
    const clean = await runCase(
      one(() => ({ y: device.tensor([1]), more: device.tensor([2]) })),
      setting,
    );
    assert.equal(clean.status, "ok");
    assert.equal(device.memory().live, before);
  });

  it("fails with the message of an error", async () => {
    const result = await runCase(
      one(() => {
        throw new RangeError("too far");
      }),
      setting,
    );
    assert.equal(formatResult({ ...result, file: "f" }), "FAIL  f:one  (RangeError: too far)");
  });
});

describe("comparing", () => {
  const host = { family: "host", dtype: "f32" } as const;
  const floats = (data: number[]) => ({ data, integer: false });
  const passes = (
    got: number[],
    want: number[],
    tolerance: Parameters<typeof compare>[3],
    precision: Parameters<typeof compare>[4] = host,
  ) => compare("y", { data: got }, floats(want), tolerance, precision).passed;

  it("limits elements by atol + rtol·|want|", () => {
    assert.ok(passes([1.5, -10.25], [1, -10], { atol: 0.25, rtol: 0.25 }));
    assert.ok(!passes([1.5], [1], { atol: 0.25, rtol: 0.125 }));
    assert.ok(passes([1], [1], {}));
    assert.ok(!passes([1.0000001], [1], {}));
    assert.ok(passes([], [], {}));
  });

  it("limits outputs by rel_l2 and mae, and single outputs by their own", () => {
    assert.ok(passes([3, 4.5], [3, 4], { rel_l2: 0.1 }));
    assert.ok(!passes([3, 4.5], [3, 4], { rel_l2: 0.09 }));
    assert.ok(passes([3, 4.5], [3, 4], { mae: 0.25 }));
    assert.ok(!passes([3, 4.5], [3, 4], { rel_l2: 1, mae: 0.2 }));
    assert.ok(passes([3, 4.5], [3, 4], { rel_l2: 0.01, per_output: { y: { mae: 0.3 } } }));
    assert.ok(passes([3, 4.5], [3, 4], { atol: 0.5, per_output: { z: { atol: 0 } } }));
    assert.ok(!passes([3, 4.5], [3, 4], { atol: 0.5, per_output: { y: { atol: 0.1 } } }));
  });

  it("lets infinities and NaN pass only where the reference has the same", () => {
    const special = [Infinity, -Infinity, NaN];
    assert.ok(passes(special, special, {}));
    for (const value of special) {
      assert.ok(!passes([value], [1], { atol: Infinity }));
      assert.ok(!passes([1], [value], { rel_l2: Infinity }));
    }
  });

  it("compares integers without a relative tolerance", () => {
    const want = { data: [999], integer: true };
    const tolerance = { atol: 0.5, rtol: 0.1 };
    assert.ok(compare("y", { data: [999] }, want, tolerance, host).passed);
    assert.ok(!compare("y", { data: [998] }, want, tolerance, host).passed);
    assert.ok(!compare("y", { data: [998] }, want, { rel_l2: 0.1 }, host).passed);
  });

  it("gives half precision room by what the case computes", () => {
    const op = { family: "op", dtype: "f16" } as const;
    const exact = { atol: 0, rtol: 0 };
    assert.ok(passes([1.0009765625, Infinity], [1.001, 1e6], exact, op), "moved data");
    assert.ok(!passes([1.001953125], [1.001], exact, op));
    assert.ok(passes([100.1, 0.15], [100, 0], { atol: 1e-6, rtol: 1e-5 }, op));
    assert.ok(!passes([101, 0], [100, 0], { atol: 1e-6, rtol: 1e-5 }, op));
    const model = { family: "model", dtype: "f16" } as const;
    assert.ok(passes([1.01], [1], { atol: 1e-6, rtol: 1e-6 }, model));
    assert.ok(!passes([1.03], [1], { atol: 1e-6, rtol: 1e-6 }, model));
    assert.ok(!passes([1.01], [1], { rel_l2: 1e-3, rel_l2_f16: 5e-3 }, model));
    const pipeline = { family: "pipeline", dtype: "f16" } as const;
    assert.ok(passes([1.03], [1], { rel_l2: 1e-3 }, pipeline));
    assert.ok(passes([1.009], [1], { mae: 1e-3 }, pipeline));
    assert.ok(!passes([1.05], [1], { mae: 1e-3 }, pipeline));
    assert.ok(!passes([1.01], [1], { atol: 1e-3 }, { family: "host", dtype: "f16" }));
  });

  it("finds the worst element of a tensor by its indexes", () => {
    const want = { data: [1, 2, 3, 4, 5, 6], shape: [2, 3], integer: false };
    const got = { data: [1, 2, 3, 4, 5.5, 6], shape: [2, 3] };
    const { worst, maxAbs, maxRel } = compare("y", got, want, { atol: 1 }, host);
    assert.deepEqual(worst, { index: [1, 1], got: 5.5, want: 5 });
    assert.deepEqual([maxAbs, maxRel], [0.5, 0.1]);
  });
});
