/**
 * The comparison with other libraries, without them: what it computes, checks, counts and says.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { main } from "../bench/peers.ts";
import { startChild } from "../bench/peers/child.ts";
import { encodeModel } from "../bench/peers/onnx.ts";
import { headsAtOnce, permuted, SMALL_CASES, valuesOf } from "../bench/peers/problems.ts";
import { errorOf, flopsOf, referenceOf } from "../bench/peers/references.ts";
import { markdown, type Row, textSummary } from "../bench/peers/report.ts";

describe("problems", () => {
  it("have the same values in every process, and a reference", () => {
    for (const { name, problem } of SMALL_CASES) {
      assert.deepEqual(valuesOf(problem), valuesOf(problem), name);
      const want = referenceOf(problem);
      assert.equal(errorOf(Float32Array.from(want), want) < 1e-6, true, name);
      assert.ok(flopsOf(problem) > 0, name);
    }
  });

  it("compute products of weights and tokens", () => {
    const problem = { op: "matmul", tokens: 3, inputs: 2, outputs: 4 } as const;
    const [x, w] = valuesOf(problem);
    const want = referenceOf(problem);
    assert.equal(want[3 * 3 + 1], w[3] * x[1] + w[4 + 3] * x[3 + 1]);
    assert.equal(flopsOf(problem), 2 * 3 * 2 * 4);
  });

  it("refuse what is no number, too short, or wrong", () => {
    const want = Float64Array.of(1, -4);
    assert.equal(errorOf(Float32Array.of(1, -3), want), 0.25);
    assert.equal(errorOf(Float32Array.of(1, NaN), want), Infinity);
    assert.equal(errorOf(Float32Array.of(1), want), Infinity);
  });

  it("are laid out as each library wants them", () => {
    const data = Float32Array.of(0, 1, 2, 3, 4, 5);
    assert.deepEqual(permuted(data, [2, 3], [1, 0]), Float32Array.of(0, 3, 1, 4, 2, 5));
    assert.deepEqual(permuted(data, [1, 2, 3], [2, 0, 1]), Float32Array.of(0, 3, 1, 4, 2, 5));
    assert.equal(headsAtOnce({ heads: 8, tokens: 4096 }, 2 ** 27), 2);
    assert.equal(headsAtOnce({ heads: 6, tokens: 256 }, 5 * 2 ** 18), 3);
    assert.equal(headsAtOnce({ heads: 8, tokens: 4096 }, 1), 1);
  });
});

it("models are protobuf messages", () => {
  const x = { name: "x", shape: [300] };
  const bytes = encodeModel({
    inputs: [x],
    outputs: [{ ...x, name: "y" }],
    nodes: [{ op: "Neg", inputs: ["x"], outputs: ["y"], attributes: { a: -1n } }],
  });
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const node = "0a0178" + "120179" + "22034e6567" + // x, y, Neg
    "2a11" + "0a0161" + "18ffffffffffffffffff01" + "a00102" + "3a00"; // a = −1, an integer
  assert.ok(hex.startsWith("0808" + "3a"), "format version 8, then the graph");
  assert.ok(hex.includes(`0a${(node.length / 2).toString(16)}${node}`), hex);
  assert.ok(hex.includes("1205" + "0a03" + "08ac02"), "the extent 300 takes two bytes");
});

describe("processes", () => {
  it("that cannot be started, or end, say why", async () => {
    const missing = startChild(["framezero-no-such-command"]);
    await assert.rejects(missing.ask({ ask: "run", calls: 1 }), /could not be started/);
    const ends = startChild(["sh", "-c", "read line; echo 'some error' >&2; exit 3"]);
    await assert.rejects(ends.ask({ ask: "run", calls: 1 }), /ended \(code 3\): some error/);
    await assert.rejects(ends.ask({ ask: "run", calls: 1 }), /has ended/);
  });

  it("answer on marked lines, whatever else they print", async () => {
    const script = `while read line; do echo noise; echo 'peer> {"milliseconds":7}'; done`;
    const child = startChild(["sh", "-c", script]);
    assert.deepEqual(await child.ask({ ask: "run", calls: 1 }), { milliseconds: 7 });
    assert.deepEqual(await child.ask({ ask: "run", calls: 1 }), { milliseconds: 7 });
    child.stop();
    const fails = startChild(["sh", "-c", `read line; echo 'peer> {"error":"no"}'; read line`]);
    await assert.rejects(fails.ask({ ask: "run", calls: 1 }), /^Error: no$/);
    fails.stop();
  });
});

describe("tables", () => {
  const row = (library: string, over: Partial<Row>): Row => ({
    case: "matmul",
    library,
    version: "1.0",
    runtime: "Bun 1.4.5 on linux x64",
    family: "dawn",
    adapter: "",
    milliseconds: 10,
    spread: 0,
    runs: 3,
    calls: 1,
    gigaflops: 20,
    error: 1e-7,
    ratio: 1,
    note: "",
    ...over,
  });
  const rows = [
    row("framezero", {}),
    row("slow", { milliseconds: 40, gigaflops: 5, ratio: 4 }),
    row("fast", { milliseconds: 20, gigaflops: 10, ratio: 2 }),
    row("wrong", { milliseconds: null, gigaflops: 0, error: 0.5, ratio: null, note: "is wrong" }),
  ];

  it("name the fastest peer among those that agree", () => {
    const [line] = textSummary(rows).split("\n").slice(2);
    assert.match(line, /matmul +Dawn +fast 1\.0, Bun +10\.0 +20\.0 +2\.00/);
  });

  it("list who was not timed, and why", () => {
    const text = markdown({ settings: [], runs: 3, tolerance: 1e-4, rows });
    assert.match(
      text,
      /\| wrong 1\.0 \| Bun 1\.4\.5 \| Dawn \| – \| – \| – \| 5e-1 \| – \| is wrong/,
    );
    assert.match(text, /\| slow 1\.0 .*\| 4\.00 \|/);
  });
});

it("options that make no sense end with 2", async () => {
  assert.equal(await main(["--filter", "nothing such"]), 2);
  assert.equal(await main(["--runs", "0"]), 2);
  assert.equal(await main(["--gpu", "both"]), 2);
  assert.equal(await main(["--help"]), 0);
});
