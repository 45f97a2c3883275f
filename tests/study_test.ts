/** The study's arithmetic, with made-up figures. */

import assert from "node:assert/strict";
import test from "node:test";
import { studyPlot } from "../bench/study/plot.ts";
import { type Result, spreadOf, summarize, tableOf } from "../bench/study/report.ts";
import { PROMPTS, STEPS, VARIANTS } from "../bench/study/variants.ts";

/** A clip all of whose figures are `value`. */
function clip(variant: string, prompt: string, seed: number, value: number): Result {
  const figures = { ofs: value, warpError: value, mawe: value, ssim: value, flicker: value };
  return { variant, prompt, seed, frames: 8, steps: 8, ...figures };
}

test("variants are compared by medians, seed by seed", () => {
  const rows = summarize([
    // A clip that jumps does not count more than others.
    ...[1, 2, 900].map((value, i) => clip("reference", `p${i}`, 0, value)),
    ...[4, 4, 4].map((value, i) => clip("reference", `p${i}`, 1, value)),
    ...[1, 1, 1].map((value, i) => clip("smoothing", `p${i}`, 0, value)),
    ...[3, 3, 3].map((value, i) => clip("smoothing", `p${i}`, 1, value)),
  ]);
  assert.deepEqual(rows.map(({ name, clips }) => [name, clips]), [["reference", 6], [
    "smoothing",
    6,
  ]]);
  assert.deepEqual(rows[0].figures.mawe, { middle: 4, ratios: [] });
  assert.deepEqual(rows[1].figures.mawe, { middle: 2, ratios: [0.5, 0.75] });
  assert.deepEqual(tableOf(rows)[1].slice(0, 3), ["smoothing", "6", "2.00 (−38 ± 18 %)"]);
});

test("seeds count when all their clips are there", () => {
  const rows = summarize([
    ...[1, 2].flatMap((seed) => ["p", "q"].map((prompt) => clip("reference", prompt, seed, 1))),
    ...["p", "q"].map((prompt) => clip("smoothing", prompt, 1, 2)),
    clip("smoothing", "p", 2, 100),
    clip("sub-cell motion", "p", 1, 100),
  ]);
  assert.deepEqual(rows.map(({ name, clips }) => [name, clips]), [["reference", 4], [
    "smoothing",
    2,
  ]]);
  assert.deepEqual(rows[1].figures.flicker, { middle: 2, ratios: [2] });
  assert.equal(tableOf(rows)[1][2], "2.00 (+100 %)");
});

test("what has no figure is left out of the median", () => {
  const still = { ...clip("reference", "p2", 0, 0), mawe: null, warpError: null };
  const [row] = summarize([still, clip("reference", "p0", 0, 3), clip("reference", "p1", 0, 3)]);
  assert.equal(row.figures.mawe.middle, 3);
  assert.equal(row.clips, 3);
});

test("a spread needs two seeds", () => {
  assert.deepEqual(spreadOf([2]), { mean: 2, deviation: null });
  assert.deepEqual(spreadOf([1, 3]), { mean: 2, deviation: Math.SQRT2 });
});

test("the plot names all variants that are compared, and lies within its frame", () => {
  const results = VARIANTS.flatMap(({ name }, i) =>
    [0, 1].map((seed) => clip(name, "p", seed, (i + 1) * (seed + 1)))
  );
  const rows = summarize(results);
  const picture = studyPlot(rows, "where & when");
  for (const { name } of rows.slice(1)) assert.ok(picture.includes(`>${name}<`), name);
  assert.ok(picture.includes("where &amp; when"));
  const places = [...picture.matchAll(/c[xy]="([^"]+)"/g)].map(([, value]) => Number(value));
  assert.equal(places.length, 2 * 2 * 3 * (rows.length - 1));
  assert.ok(places.every((place) => place > 0 && place < 800));
});

test("jumps of all variants fit the steps, and every prompt has its subject", () => {
  for (const { name, options: { t0 = 0, t1 = 0 } } of VARIANTS) {
    assert.ok(0 < t0 && t0 < t1 && t1 < STEPS, name);
  }
  assert.equal(new Set(VARIANTS.map(({ name }) => name)).size, VARIANTS.length);
  assert.equal(new Set(PROMPTS.map(({ text }) => text)).size, 20);
  for (const { text, subject } of PROMPTS) assert.ok(text.split(" ").includes(subject), text);
});
