/**
 * Charts and tables of measurements: everything in its frame, nothing on top of anything else.
 */

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import fc from "fast-check";
import { draw, main as chart } from "../bench/chart.ts";
import { barGeometry } from "../bench/chart/bars.ts";
import { type Box, contains, overlap } from "../bench/chart/boxes.ts";
import { costliest, duelsOf, tasksOf } from "../bench/chart/results.ts";
import { rooflineGeometry } from "../bench/chart/roofline.ts";
import type { Results as KernelResults, Row } from "../bench/kernels.ts";
import type { Results as PeerResults, Row as PeerRow } from "../bench/peers/report.ts";
import { main as readme, replaceMarked } from "../bench/readme.ts";
import type { Peaks } from "../bench/timing.ts";
import { escape, WIDTH, wrap } from "../video/metrics/svg.ts";

const frame = { x: 64, y: 100, width: 712, height: 440 };

const peaks: Peaks = {
  method: "timestamps",
  gigaflops: 52,
  copies: [{ bytes: 2 ** 20, gigabytesPerSecond: 9 }, { bytes: 2 ** 26, gigabytesPerSecond: 4.7 }],
};

const setting = {
  date: "2026-11-21T07:50:29.982Z",
  adapter: "an adapter <of 256 bits>",
  implementation: "native",
  runtime: "Deno 2 on linux",
  commit: null,
} as const;

function row(kernel: string, part: Partial<Row>): Row {
  const { flops = 1e9, bytes = 1e8, milliseconds = 10 } = part;
  return {
    suite: "suite",
    kernel,
    shapes: [[2, 3], null],
    attributes: {},
    calls: 1,
    spread: 0.1,
    gigaflops: flops / milliseconds / 1e6,
    gigabytesPerSecond: bytes / milliseconds / 1e6,
    shareOfPeak: 0.5,
    ...part,
    flops,
    bytes,
    milliseconds,
  };
}

const kernels: KernelResults = {
  ...setting,
  dtype: "f32",
  runs: 3,
  peaks,
  problems: [],
  rows: [row("conv2d", {}), row("a<b", { flops: 1e6 }), row("concat", { flops: 0 })],
};

function peerRow(name: string, library: string, part: Partial<PeerRow>): PeerRow {
  return {
    case: name,
    library,
    version: "1.2",
    runtime: "Deno 2 on linux",
    family: "native",
    adapter: "an adapter",
    milliseconds: 10,
    spread: 0.1,
    runs: 5,
    calls: 1,
    gigaflops: 1,
    error: 1e-6,
    ratio: 1,
    note: "",
    ...part,
  };
}

const peers: PeerResults = {
  settings: [setting],
  runs: 5,
  tolerance: 1e-3,
  rows: [
    peerRow("matmul", "framezero", {}),
    peerRow("matmul", "jax & co", { milliseconds: 20 }),
    peerRow("matmul", "tfjs", { milliseconds: null }),
    peerRow("matmul", "framezero", { family: "dawn", runtime: "Bun 1 on linux", milliseconds: 8 }),
    peerRow("matmul", "framezero", { family: "dawn", runtime: "Node 20", milliseconds: 7 }),
  ],
};

/** Tags are closed in the order in which they were opened. */
function assertWellFormed(svg: string): void {
  const open: string[] = [];
  for (const [, close, name, self] of svg.matchAll(/<(\/?)(\w+)(?:\s[^<>]*?)?(\/?)>/g)) {
    if (close) assert.equal(open.pop(), name);
    else if (!self) open.push(name);
  }
  assert.deepEqual(open, []);
  assert.doesNotMatch(svg, /NaN|undefined|Infinity|&(?!(amp|lt|gt|quot|#39);)/);
}

function assertApart(boxes: readonly Box[]): void {
  boxes.forEach((a, i) => {
    for (const b of boxes.slice(i + 1)) assert.ok(!overlap(a, b), JSON.stringify([a, b]));
  });
}

describe("the roofline chart", () => {
  const positive = (low: number, high: number) =>
    fc.double({ min: Math.log(low), max: Math.log(high), noNaN: true }).map(Math.exp);

  it("keeps all points in the frame and texts apart", () => {
    const mark = fc.record({
      name: fc.stringMatching(/^[a-z_]{2,18}$/),
      intensity: positive(0.01, 1000),
      gigaflops: positive(0.001, 1e5),
    });
    const memory = fc.record({ small: positive(0.5, 5000), large: positive(0.5, 5000) });
    const marks = fc.array(mark, { minLength: 1, maxLength: 24 });
    fc.assert(
      fc.property(marks, memory, positive(10, 1e5), (marks, { small, large }, gigaflops) => {
        const copies = [small, large].map((gigabytesPerSecond, i) => ({
          bytes: 2 ** (20 + i),
          gigabytesPerSecond,
        }));
        const { labels, roofs, ceiling, ...rest } = rooflineGeometry(
          marks,
          { method: "timestamps", gigaflops, copies },
          frame,
        );
        const inside = ([x, y]: readonly [number, number]) =>
          contains(
            { x: frame.x - 0.01, y: frame.y - 0.01, width: 712.02, height: 440.02 },
            { x, y, width: 0, height: 0 },
          );
        assert.equal(labels.flatMap(({ points }) => points).length, marks.length);
        assert.ok(labels.every(({ points }) => points.every(inside)));
        assert.ok(roofs.every(({ corners }) => corners.every(inside)));
        const texts = [ceiling, ...roofs.map(({ label }) => label), ...labels]
          .flatMap(({ box }) => box ?? []);
        for (const box of texts) assert.ok(contains(frame, box), JSON.stringify(box));
        assertApart(texts);
        const ticks = [...rest.intensities, ...rest.speeds];
        assert.ok(rest.intensities.length > 1 && ticks.every((tick) => tick > 0));
      }),
      { numRuns: 40, seed: 1 },
    );
  });

  it("names every kernel, those together that lie on each other", () => {
    const marks = Array.from({ length: 40 }, (_, i) => ({
      name: `kernel_${i}`,
      intensity: i < 20 ? 0.125 : 0.2 * 1.3 ** (i - 20),
      gigaflops: i < 20 ? 0.1 * 1.03 ** i : 0.3 * 1.2 ** (i - 20),
    }));
    const { labels } = rooflineGeometry(marks, peaks, frame);
    assert.ok(labels.every(({ box }) => box));
    const names = labels.flatMap(({ lines }) => lines.join(" ").split(", "));
    assert.deepEqual(names.toSorted(), marks.map(({ name }) => name).toSorted());
    assert.ok(labels.length < marks.length);
    assertApart(labels.flatMap(({ box }) => box ?? []));
  });

  it("shows a roof for the cache where it is much faster", () => {
    const { roofs } = rooflineGeometry([{ name: "a", intensity: 1, gigaflops: 1 }], peaks, frame);
    const names = roofs.map(({ label }) => label.name);
    assert.deepEqual(names, ["copy 4.70 GB/s", "copy in cache 9.00 GB/s"]);
  });
});

describe("bars", () => {
  it("have lengths that stand for speed, and stay within the picture", () => {
    const task = (name: string, times: readonly number[]) => ({
      name,
      bars: times.map((milliseconds, i) => ({ name: `no. ${i}`, milliseconds, ours: i === 0 })),
    });
    const { bars, heads, bottom } = barGeometry([task("a", [20, 10, 40]), task("b", [3])], 50);
    assert.deepEqual(bars.map(({ name }) => name), ["no. 1", "no. 0", "no. 2", "no. 0"]);
    assert.deepEqual(bars.map(({ share }) => share), [1, 0.5, 0.25, 1]);
    assert.equal(bars[1].width, bars[0].width / 2);
    for (const { x, y, width } of bars) {
      assert.ok(x > 0 && width > 0 && x + width < WIDTH && y > 50 && y < bottom);
    }
    assert.deepEqual(heads.map(({ name }) => name), ["a", "b"]);
    assert.ok(heads[1].y > bars[2].y);
  });

  it("show each library once for each kind of WebGPU, in its fastest runtime", () => {
    const [{ name, bars }] = tasksOf(peers);
    assert.equal(name, "matmul");
    assert.deepEqual(bars.map((bar) => [bar.name, bar.milliseconds, bar.ours]), [
      ["framezero 1.2, Deno", 10, true],
      ["jax & co 1.2, Deno", 20, false],
      ["framezero 1.2, Node", 7, true],
    ]);
    assert.deepEqual(duelsOf(peers), [
      { name: "matmul", family: "native", ours: 10, peer: "jax & co 1.2, Deno", theirs: 20 },
    ]);
  });
});

describe("pictures", () => {
  it("are well-formed and readable on light and dark", () => {
    const svg = draw(kernels, peers);
    assertWellFormed(svg);
    assert.match(svg, /prefers-color-scheme: dark/);
    assert.match(svg, /a&lt;b/);
    assert.match(svg, /jax &amp; co/);
    assert.match(svg, /without arithmetic, and so not shown: concat/);
    assert.match(svg, /width="800"/);
    assertWellFormed(draw(null, peers));
  });

  it("are made of escaped text in lines that fit", () => {
    assert.equal(escape(`<a href="x">'&'`), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;");
    assert.deepEqual(wrap("one two three", 60, 10), ["one two", "three"]);
    assert.deepEqual(wrap("unbreakable", 10, 10), ["unbreakable"]);
  });

  it("show of each kernel the call on which most time is spent", () => {
    const rows = [
      row("silu", { milliseconds: 5 }),
      row("silu", { milliseconds: 1, calls: 50 }),
      row("conv2d", { milliseconds: 60 }),
    ];
    assert.deepEqual(costliest(rows).map(({ kernel, calls }) => [kernel, calls]), [
      ["conv2d", 1],
      ["silu", 50],
    ]);
  });
});

describe("marked text", () => {
  const marks = (inside: string) => `a <!-- bench:start -->${inside}<!-- bench:end --> b`;

  it("is replaced, however often", () => {
    const once = replaceMarked(marks("old"), "bench", "$& new", "f");
    assert.equal(once, marks("\n\n$& new\n\n"));
    assert.equal(replaceMarked(once, "bench", "$& new", "f"), once);
  });

  it("needs both marks once, in order", () => {
    const wrong = ["nothing", "<!-- bench:start -->", marks("") + marks("")];
    for (const text of [...wrong, "<!-- bench:end --><!-- bench:start -->"]) {
      assert.throws(
        () => replaceMarked(text, "bench", "x", "R.md"),
        /R\.md must contain the lines/,
      );
    }
  });
});

describe("commands", () => {
  it("refuse wrong usage with exit code 2", async () => {
    for (const args of [[], ["--out", "x.svg"], ["--fast"], ["--kernels", "none", "--out", "x"]]) {
      assert.equal(await chart(args), 2);
    }
    for (const args of [[], ["none.md"], ["a.md", "b.md"], ["--fast"]]) {
      assert.equal(await readme(args), 2);
    }
  });

  it("write what they are asked for", async () => {
    const folder = await mkdtemp(join(tmpdir(), "framezero-chart-"));
    const at = (name: string) => join(folder, name);
    try {
      await writeFile(at("k.json"), JSON.stringify(kernels));
      await writeFile(at("p.json"), JSON.stringify(peers));
      await writeFile(at("r.md"), "<!-- bench:start --><!-- bench:end -->");
      const files = ["--kernels", at("k.json"), "--peers", at("p.json")];
      assert.equal(await chart([...files, "--out", at("k.svg")]), 0);
      assertWellFormed(await readFile(at("k.svg"), "utf8"));
      assert.equal(await readme([...files, at("r.md")]), 0);
      const text = await readFile(at("r.md"), "utf8");
      assert.match(text, /\| conv2d \| 2×3 \| 10\.0 \| 100 \|/);
      assert.match(
        text,
        /\| matmul \| native \| 10\.0 \| jax & co 1\.2, Deno \| 20\.0 \| 2\.00 \|/,
      );
      // A file of another command.
      assert.equal(await readme(["--kernels", at("p.json"), at("r.md")]), 2);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
