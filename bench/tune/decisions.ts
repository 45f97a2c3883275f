/**
 * What there is to decide about an adapter: for each choice of the variant table the ways to
 * compute, the calls that show which is best, and the cases that a way must get right first.
 *
 * @module
 */

import { type KernelCase, registeredKernels } from "../../core/kernel.ts";
import "../../kernels/mod.ts";
import { describeChoice, VARIANT_CANDIDATES } from "../../kernels/tuned_variants.ts";
import type { GemmForm, VariantChoices, Variants } from "../../kernels/variants.ts";
import { winogradFor } from "../../kernels/winograd.ts";
import type { UNetConfig } from "../../models/config.ts";
import { convolution, unetWorkloads } from "../shapes.ts";
import { costOf, type Workload } from "../workload.ts";

/** A way to compute. */
export interface Way {
  /** What tables call it. */
  readonly name: string;
  /** What brings it about. */
  readonly choices: Partial<VariantChoices>;
}

/** What can be written into the table. */
export interface Value {
  /** The choices that it consists of. */
  readonly choices: Partial<VariantChoices>;
  /** The way that it takes for each workload. */
  readonly ways: readonly Way[];
}

/** A choice, or a few that belong together. */
export interface Decision {
  /** What tables call it. */
  readonly title: string;
  /** Ways to compute; what the first that works gives, the others must give. */
  readonly ways: readonly Way[];
  /** Calls that are timed. */
  readonly workloads: readonly Workload[];
  /** Values to decide between; the first is the table's. */
  readonly values: readonly [Value, ...Value[]];
  /** Cases with references. */
  readonly cases: readonly Workload[];
}

/** The parameter that a form of products has. */
const PARAMETERS: Partial<Record<GemmForm, "block" | "tiles" | "matrices">> = {
  texels: "block",
  tiles: "tiles",
  matrix: "matrices",
};

/** How much is tried. */
export interface Extent {
  /** The model whose calls are timed, */
  readonly model: UNetConfig;
  /** and the side of its latents. */
  readonly side: number;
  /** Calls of a kernel that are timed. */
  readonly calls: number;
  /** Cases of a kernel that are checked. */
  readonly cases: number;
  /** Whether forms that the table does not name are tried with all their parameters. */
  readonly everything: boolean;
}

/** All that there is to decide about an adapter with this row of the table. */
export function decisionsFor(row: Variants, extent: Extent): Decision[] {
  const { model, side } = extent;
  const calls = unetWorkloads(model, { rows: 1, textRows: 1, side });
  const costliest = (...names: string[]) =>
    names.flatMap((name) => costliestOf(calls, name, extent.calls));
  const cases = (...names: string[]) => names.flatMap((name) => someCases(name, extent.cases));
  const products = ["channel_linear", "conv2d", "matmul"];
  const norms = ["group_norm", "layer_norm"];
  return [
    simple(
      "products",
      productWays(row, extent.everything),
      costliest(...products),
      cases(...products),
    ),
    winogradDecision(row, extent),
    // Where the table does not name it, the adapter lacks it.
    ...(row.broadcast
      ? [simple(
        "broadcast",
        candidatesOf("broadcast", row),
        costliest(...products, "attention"),
        cases(...products, "attention"),
      )]
      : []),
    simple("attention", candidatesOf("attention", row), costliest("attention"), cases("attention")),
    simple("rows", candidatesOf("rows", row), costliest(...norms), cases(...norms)),
  ];
}

/** A decision whose values take the same way for every call. */
function simple(
  title: string,
  ways: readonly Way[],
  workloads: readonly Workload[],
  cases: readonly Workload[],
): Decision {
  const [first, ...rest] = ways.map((way): Value => ({
    choices: way.choices,
    ways: workloads.map(() => way),
  }));
  return { title, ways, workloads, values: [first, ...rest], cases };
}

/** The table's value and all candidates, equal ones once. */
function withFirst<T>(first: T, candidates: readonly T[]): [T, ...T[]] {
  const own = JSON.stringify(first);
  return [first, ...candidates.filter((candidate) => JSON.stringify(candidate) !== own)];
}

function candidatesOf(name: keyof VariantChoices, row: Variants): Way[] {
  return withFirst<unknown>(row[name], VARIANT_CANDIDATES[name]).map((value) => ({
    name: describeChoice(value),
    choices: { [name]: value },
  }));
}

/** Forms of products, each with the values of its parameter; the table's first. */
function productWays(row: Variants, everything: boolean): Way[] {
  return withFirst(row.gemm, VARIANT_CANDIDATES.gemm).flatMap((gemm): Way[] => {
    const parameter = PARAMETERS[gemm];
    if (!parameter) return [{ name: gemm, choices: { gemm } }];
    const ways = candidatesOf(parameter, row).map(({ name, choices }) => ({
      name: `${gemm} ${name}`,
      choices: { gemm, ...choices },
    }));
    return gemm === row.gemm || everything ? ways : ways.slice(0, 1);
  });
}

/** Sides of images; the model's blocks have them at the usual size, the last first. */
const IMAGES = [8, 16, 32, 64];

/** The three ways of 3×3 convolutions are timed by size of image; thresholds follow. */
function winogradDecision(row: Variants, { model, cases }: Extent): Decision {
  const tiles = [null, 2, 4] as const;
  const ways: Way[] = [
    { name: "im2col", choices: { winograd: { two: Infinity, four: Infinity } } },
    { name: "F(2×2)", choices: { winograd: { two: 0, four: Infinity } } },
    { name: "F(4×4)", choices: { winograd: { two: Infinity, four: 0 } } },
  ];
  const widths = [...model.blockOutChannels].reverse();
  const workloads = IMAGES.map((side, i) => convolution([1, widths[i], side, side], widths[i], 3));
  const [first, ...rest] = withFirst(row.winograd, VARIANT_CANDIDATES.winograd).map(
    (winograd): Value => ({
      choices: { winograd },
      ways: workloads.map(({ input: { shapes: [x] } }) =>
        ways[tiles.indexOf(winogradFor(winograd, x ?? [], x ?? []))]
      ),
    }),
  );
  const suitable = someCases("conv2d", Infinity).filter(({ input }) => {
    const { kernel, stride } = input.attributes as { kernel: number[]; stride: number[] };
    const [, channels, , width] = input.shapes[0] ?? [];
    return kernel.join() === "3,3" && stride.join() === "1,1" && channels >= 8 && width % 16 === 0;
  });
  return {
    title: "winograd",
    ways,
    workloads,
    values: [first, ...rest],
    cases: suitable.slice(0, cases),
  };
}

/** The calls of a kernel that cost a model most. */
function costliestOf(calls: readonly Workload[], name: string, count: number): Workload[] {
  const cost = (workload: Workload) => {
    const { flops, bytes } = costOf(workload, "f32");
    return workload.calls * (flops + bytes);
  };
  return calls.filter(({ kernel }) => kernel.name === name)
    .sort((a, b) => cost(b) - cost(a)).slice(0, count);
}

/** Cases of a kernel, spread over all it has, with no form of their own. */
export function someCases(name: string, count: number): Workload[] {
  const kernel = registeredKernels().find((kernel) => kernel.name === name);
  const cases = new Map(
    kernel?.cases.map(unforced).map((input) => [JSON.stringify(input), input]),
  );
  const all = [...cases.values()];
  const step = Math.max(1, all.length / count);
  return kernel
    ? Array.from({ length: Math.min(count, all.length) }, (_, i) => ({
      kernel,
      input: all[Math.floor(i * step)],
      calls: 1,
    }))
    : [];
}

/** The case without what forces a form of its kernel. */
function unforced(input: KernelCase<unknown>): KernelCase<unknown> {
  const { form: _form, wide: _wide, ...attributes } = input.attributes as Record<string, unknown>;
  return { ...input, attributes };
}
