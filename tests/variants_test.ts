/**
 * The variant table: which row an adapter gets, what replaces parts of it, where tuned choices are
 * kept, and whether every candidate computes the same.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it, test } from "node:test";
import type { DeviceInfo } from "../core/adapter.ts";
import { openDevice } from "../core/device.ts";
import {
  cacheFolder,
  describeChoice,
  loadTunedVariants,
  saveTunedVariants,
  tuningKey,
  VARIANT_CANDIDATES,
} from "../kernels/tuned_variants.ts";
import {
  overrideVariants,
  type Tile,
  VARIANT_TABLE,
  type VariantChoices,
  variantsOf,
  variantSources,
} from "../kernels/variants.ts";
import type { Kernel } from "../core/kernel.ts";
import { channelLinearKernel } from "../kernels/channel_linear.ts";
import { panelShape } from "../kernels/panels.ts";
import { SD15 } from "../models/sd15.ts";
import { type Decision, decisionsFor, someCases, type Way } from "../bench/tune/decisions.ts";
import { qualify, shadersOf } from "../bench/tune/trial.ts";
import { judge } from "../bench/tune/verdict.ts";
import { findError, type Workload } from "../bench/workload.ts";
import { whyImplementation } from "../video/cli/describe.ts";

const device = await openDevice();
const root = await mkdtemp(join(tmpdir(), "framezero-variants-"));
after(async () => {
  await device.close();
  await rm(root, { recursive: true, force: true });
});

/** A device that exists only by what it says of itself. */
function madeUp(info: Partial<DeviceInfo>): { info: DeviceInfo } {
  return {
    info: {
      implementation: "dawn",
      software: false,
      description: "",
      vendor: "",
      architecture: "",
      f16: true,
      timestamps: true,
      subgroups: true,
      subgroupSize: null,
      texels: true,
      subgroupMatrix: null,
      ...info,
    },
  };
}

const LLVMPIPE = { software: true, description: "llvmpipe (LLVM 15.0.6, 256 bits)" };

test("adapters get the first row that fits them", () => {
  const rows: [Partial<DeviceInfo>, RegExp][] = [
    [LLVMPIPE, /^software/],
    [
      { software: true, description: "SwiftShader Device (Subzero)", vendor: "google" },
      /^software/,
    ],
    [{ vendor: "nvidia", architecture: "ampere" }, /^NVIDIA/],
    [{ vendor: "4318", description: "NVIDIA GeForce RTX 4090" }, /^NVIDIA/],
    [{ vendor: "apple", architecture: "metal-3" }, /^Apple/],
    [{ description: "Apple M3" }, /^Apple/],
    [{ vendor: "amd", architecture: "rdna-3" }, /^AMD/],
    [{ vendor: "intel", architecture: "xe" }, /^Intel/],
    [{ description: "Frobnicator 3000" }, /^any GPU$/],
    [{}, /^any GPU$/],
  ];
  for (const [info, name] of rows) {
    const adapter = madeUp(info);
    const first = VARIANT_TABLE.find(({ matches }) => matches(adapter.info));
    assert.match(variantsOf(adapter).name, name, JSON.stringify(info));
    assert.equal(variantsOf(adapter), first?.variants);
  }
});

test("software adapters get no workgroup memory, and unknown ones nothing experimental", () => {
  const { gemm, attention } = variantsOf(madeUp(LLVMPIPE));
  assert.deepEqual([gemm, attention], ["texels", "texels"]);
  const unknown = variantsOf(madeUp({}));
  assert.deepEqual([unknown.gemm, unknown.attention], ["tiles", "tiles"]);
  assert.equal(
    new Set(VARIANT_TABLE.map(({ variants }) => variants.name)).size,
    VARIANT_TABLE.length,
  );
});

test("overrides go before tuned choices, and those before the table", () => {
  const adapter = madeUp(LLVMPIPE);
  const table = variantsOf(adapter);
  overrideVariants(adapter, { gemm: "tiles", attention: "lanes" }, "tuned");
  overrideVariants(adapter, { gemm: "registers" });
  assert.deepEqual(variantsOf(adapter), { ...table, gemm: "registers", attention: "lanes" });
  const sources = variantSources(adapter);
  assert.equal(sources.gemm, "overridden");
  assert.equal(sources.attention, "tuned");
  assert.equal(sources.winograd, "table");
  assert.deepEqual(Object.keys(sources).sort(), Object.keys(VARIANT_CANDIDATES).sort());
  overrideVariants(adapter, { rows: "wide" });
  assert.deepEqual(variantsOf(adapter), {
    ...table,
    gemm: "tiles",
    attention: "lanes",
    rows: "wide",
  });
  overrideVariants(adapter, {});
  overrideVariants(adapter, {}, "tuned");
  assert.deepEqual(variantsOf(adapter), table);
  assert.equal(variantsOf(madeUp(LLVMPIPE)), table, "other devices keep their row");
});

let files = 0;
const newFile = () => join(root, String(files++), "framezero", "variants.json");

/** Loads, and returns what was said. */
async function load(adapter: { info: DeviceInfo }, file: string): Promise<[boolean, string[]]> {
  const warnings: string[] = [];
  const loaded = await loadTunedVariants(adapter, (line) => warnings.push(line), file);
  return [loaded, warnings];
}

test("tuned choices are kept by adapter, and read back", async () => {
  const file = newFile();
  const choices: Partial<VariantChoices> = {
    gemm: "texels",
    block: [16, 8],
    winograd: { two: 256, four: Infinity },
    tiles: VARIANT_CANDIDATES.tiles[VARIANT_CANDIDATES.tiles.length - 1],
    rows: "wide",
  };
  assert.equal(await saveTunedVariants(madeUp(LLVMPIPE), choices, file), file);
  await saveTunedVariants(madeUp({ vendor: "apple" }), { attention: "lanes" }, file);
  assert.deepEqual(await readdir(join(file, "..")), ["variants.json"], "nothing temporary stays");

  const again = madeUp(LLVMPIPE);
  const table = variantsOf(again);
  assert.deepEqual(await load(again, file), [true, []]);
  assert.deepEqual(variantsOf(again), { ...table, ...choices });
  assert.equal(variantSources(again).block, "tuned");

  for (
    const other of [{ f16: false }, { subgroups: false }, { implementation: "native" }] as const
  ) {
    const unlike = madeUp({ ...LLVMPIPE, ...other });
    assert.deepEqual(await load(unlike, file), [false, []], tuningKey(unlike));
    assert.equal(variantsOf(unlike), table);
  }

  await saveTunedVariants(madeUp(LLVMPIPE), {}, file);
  assert.deepEqual(await load(again, file), [true, []]);
  assert.deepEqual(variantsOf(again), table, "a new result replaces the old one");
});

test("what cannot be used of the file is left alone, with one line that says so", async () => {
  const file = newFile();
  assert.deepEqual(await load(madeUp(LLVMPIPE), file), [false, []], "no file");
  await saveTunedVariants(madeUp(LLVMPIPE), { gemm: "registers" }, file);
  const [[key, entry]] = Object.entries<object>(JSON.parse(await readFile(file, "utf8")));
  const withEntry = (changed: unknown) => JSON.stringify({ [key]: changed });
  const contents: [string, RegExp][] = [
    ["", /no list/],
    ["{", /no list/],
    ["[]", /no list/],
    ["null", /no list/],
    [withEntry(null), /another version/],
    [withEntry("texels"), /another version/],
    [withEntry({ ...entry, version: 0 }), /another version/],
    [withEntry({ ...entry, version: "1" }), /another version/],
    [withEntry({ ...entry, choices: null }), /unknown/],
    [withEntry({ ...entry, choices: { gemm: "quantum" } }), /unknown/],
    [withEntry({ ...entry, choices: { block: [5, 3] } }), /unknown/],
    [withEntry({ ...entry, choices: { name: "mine" } }), /unknown/],
    [withEntry({ ...entry, choices: { constructor: "x" } }), /unknown/],
  ];
  for (const [content, why] of contents) {
    await writeFile(file, content);
    const adapter = madeUp(LLVMPIPE);
    const [loaded, warnings] = await load(adapter, file);
    assert.equal(loaded, false, content);
    assert.equal(warnings.length, 1, content);
    assert.match(warnings[0], why);
    assert.doesNotMatch(warnings[0], /\n/);
    assert.equal(variantsOf(adapter).gemm, "texels");
  }
  await writeFile(file, "{");
  await saveTunedVariants(madeUp(LLVMPIPE), { gemm: "registers" }, file);
  assert.deepEqual(await load(madeUp(LLVMPIPE), file), [true, []], "a broken file is replaced");
});

test("a place that cannot be written to is named", async () => {
  const folder = join(root, "file");
  await writeFile(folder, "");
  await assert.rejects(
    saveTunedVariants(madeUp(LLVMPIPE), {}, join(folder, "variants.json")),
    /^InputError: tuned variants must be written to .*variants\.json: .*XDG_CACHE_HOME/,
  );
});

test("the cache lies where each system keeps such files", () => {
  const home = join(root, "home");
  const xdg = join(root, "xdg");
  assert.equal(cacheFolder("linux", {}, home), join(home, ".cache"));
  assert.equal(cacheFolder("linux", { XDG_CACHE_HOME: xdg }, home), xdg);
  assert.equal(cacheFolder("linux", { XDG_CACHE_HOME: "relative" }, home), join(home, ".cache"));
  assert.equal(cacheFolder("darwin", {}, home), join(home, "Library", "Caches"));
  assert.equal(cacheFolder("win32", { LOCALAPPDATA: "C:\\Local" }, home), "C:\\Local");
  assert.equal(cacheFolder("win32", {}, home), join(home, "AppData", "Local"));
});

test("choices and the chosen WebGPU are put into words", () => {
  assert.equal(describeChoice([32, 8]), "32×8");
  assert.equal(describeChoice({ two: 64, four: Infinity }), "two 64, four never");
  const tile = { rows: 64, columns: 32, depth: 16, own: [8, 4], least: 0 };
  assert.equal(describeChoice([tile, tile]), "64×32×16 by 8×4 | 64×32×16 by 8×4");
  assert.equal(describeChoice(false), "no");
  assert.equal(whyImplementation("dawn", "dawn", true), "asked for by --gpu dawn");
  assert.equal(whyImplementation("auto", "native", true), "it comes first, and has an adapter");
  assert.equal(whyImplementation("auto", "dawn", true), "the runtime's own has no adapter");
  assert.match(whyImplementation("software", "dawn", true), /no adapter that computes on the CPU/);
  assert.equal(whyImplementation("auto", "dawn", false), "this runtime has no WebGPU of its own");
});

test("tuning leaves the table only for what beats it in every round", () => {
  const workloads = someCases("silu", 1);
  const [table, better, unsteady, broken] = (["texels", "registers", "tiles", "matrix"] as const)
    .map((gemm) => ({ name: gemm, choices: { gemm } }));
  const decide = (...ways: (typeof table)[]) => {
    const [first, ...rest] = ways.map((way) => ({ choices: way.choices, ways: [way] }));
    const decision = { title: "t", ways, workloads, values: [first, ...rest] as const, cases: [] };
    const times = new Map([
      [table, [10, 20, 10]],
      [better, [9, 17, 9]],
      [unsteady, [11, 2, 2]],
    ].filter(([way]) => ways.includes(way as typeof table)) as [typeof table, number[]][]);
    return judge({ ...decision, values: [first, ...rest] }, [times], new Map([[broken, "wrong"]]));
  };
  assert.equal(decide(table, unsteady, broken).better, null);
  const verdict = decide(table, unsteady, better, broken);
  assert.deepEqual(verdict.better, { gemm: "registers" });
  assert.equal(verdict.ratio, 0.9);
  assert.deepEqual(verdict.dropped, [{ way: "matrix", why: "wrong" }]);
  assert.equal(verdict.calls[0].milliseconds, 10);
  assert.deepEqual(decide(broken, better).better, { gemm: "registers" }, "a table that is wrong");
});

const extent = { model: SD15.unet, side: 8, calls: 1, cases: 2, everything: true };
const decisions = decisionsFor(variantsOf(device), extent);

/** A product of `M × 36` weights and `36 × N` inputs. */
function product(M: number, N: number): Workload {
  const input = {
    shapes: [[1, 36, N], panelShape(M, 36), [M], [1, M, N]],
    attributes: { outputs: M, activation: "silu" },
  };
  return { kernel: channelLinearKernel as Kernel<unknown>, input, calls: 1 };
}

/** Fills the largest tiles, and more than one. */
const large = product(130, 132);

/** Has as many multiply-adds as the largest blocks of registers are kept for. */
const huge = product(520, 3600);

/** Lets tiles be used for small products too, for which they are too large. */
function forSmall({ tiles, ...choices }: Partial<VariantChoices>): Partial<VariantChoices> {
  return tiles ? { ...choices, tiles: tiles.map((tile) => ({ ...tile, least: 0 })) } : choices;
}

/** What the keys of shaders say of a way that this adapter can go. */
function markOf({ gemm, block, tiles }: Partial<VariantChoices>): string {
  if (gemm === "texels" && block) return `texels ${block.join("x")} `;
  if (gemm !== "tiles" || !tiles) return gemm === "registers" ? "registers " : "";
  const [{ rows, columns, depth, own }] = tiles;
  return `tiles ${rows}x${columns}x${depth} ${own} `;
}

/** The cases to run a way on: all for the first way of a form, else a product that shows it. */
function casesFor({ title, ways, cases }: Decision, way: Way): readonly Workload[] {
  if (title !== "products") return cases;
  const first = ways.find(({ choices }) => choices.gemm === way.choices.gemm);
  return way === first ? cases : [];
}

describe("every way agrees with the float64 references", () => {
  after(() => overrideVariants(device, {}));
  const check = async (cases: readonly Workload[]) => {
    for (const { kernel, input } of cases) {
      const error = await findError(device, kernel, input, "f32");
      assert.equal(error, null, `${kernel.name} ${JSON.stringify(input)}`);
    }
  };
  for (const decision of decisions) {
    for (const way of decision.ways) {
      it(`${decision.title}: ${way.name}`, async () => {
        overrideVariants(device, way.choices);
        await check(casesFor(decision, way));
        if (decision.title !== "products") return;
        overrideVariants(device, forSmall(way.choices));
        const telling = way.choices.gemm === "texels" ? huge : large;
        await check([telling]);
        const shaders = shadersOf(device, telling, "f32");
        assert.ok(shaders.includes(markOf(way.choices)), `${way.name} is what ran: ${shaders}`);
      });
    }
  }
});

test("large products take smaller blocks where lanes of the larger would be idle", () => {
  overrideVariants(device, { gemm: "texels", block: [16, 16] });
  // Blocks of 16 columns in 8 lanes cover 128, 256 and 2048; those of 8 cover 64, 192 and 1984.
  const blocks = [64, 192, 1984].map((N) => {
    const shaders = shadersOf(device, product(Math.ceil(2 ** 21 / N), N), "f32");
    return /texels (\w+) /.exec(shaders)?.[1];
  });
  overrideVariants(device, {});
  assert.deepEqual(blocks, ["16x8", "16x8", "16x16"]);
});

test("every choice changes what runs", () => {
  for (const { title, ways, cases } of decisions) {
    const shaders = ways.map((way) => {
      overrideVariants(device, way.choices);
      return cases.map((call) => shadersOf(device, call, "f32")).join();
    });
    overrideVariants(device, {});
    assert.ok(new Set(shaders).size > 1, title);
  }
});

test("tuning leaves out what is refused, wrong, or nothing new, and goes on", async () => {
  const bench = { device: await openDevice(), open: () => openDevice() };
  const before = bench.device;
  const way = (name: string, tile: Partial<Tile>) => ({
    name,
    choices: {
      gemm: "tiles" as const,
      tiles: [{ rows: 32, columns: 32, depth: 16, own: [4, 4] as const, least: 0, ...tile }],
    },
  });
  const ways = [
    way("right", {}),
    way("4096 threads", { rows: 256, columns: 256 }),
    way("too few vectors for its threads", { depth: 4 }),
    way("nothing new", { least: 1 }),
    way("another", { rows: 64, own: [8, 4] }),
  ];
  // Values that mix ways: nothing is left out for being slow, which would depend on the machine.
  const [first, ...rest] = ways.map((way) => ({ choices: way.choices, ways: [ways[0], way] }));
  const failures = await qualify(
    bench,
    { title: "", ways, workloads: [large, large], values: [first, ...rest], cases: [large] },
    { base: {}, dtype: "f32" },
  );
  await bench.device.close();
  assert.notEqual(bench.device, before, "a device that has refused something is replaced");
  assert.deepEqual([...failures.keys()].map(({ name }) => name), [
    "4096 threads",
    "too few vectors for its threads",
    "nothing new",
  ]);
  assert.match(failures.get(ways[2]) ?? "", /^channel_linear .*: differs by .* from the first way/);
  assert.equal(failures.get(ways[3]), "does the same as right");
});
