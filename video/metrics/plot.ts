/**
 * The measures of a clip over time as an SVG: a curve for each, cuts as dashed lines through all of
 * them, and the spectrum of its flicker.
 *
 * @module
 */

import type { Measures } from "./measure.ts";
import { significant } from "./number.ts";
import { line, svg, tag, text, WIDTH } from "./svg.ts";

/** What stands beside the curves. */
export interface PlotOptions {
  /** The name of the clip. */
  readonly title: string;
  /** Frames a second: labels time in seconds and flicker in Hz. Default: both in frames. */
  readonly fps?: number;
}

interface Curve {
  readonly title: string;
  readonly xs: readonly number[];
  readonly ys: readonly number[];
  /** Places of dashed lines. */
  readonly cuts: readonly number[];
}

const MARGIN = 24;
const LEFT = 72;
const HEIGHT = 72;
const STEP = HEIGHT + 44;
const TOP = 64;

/** Where units stand above the next curve. */
const UNITS = 14;

/** Draws the measures of a clip. */
export function plotMeasures(measures: Measures, { title, fps }: PlotOptions): string {
  const rate = fps ?? 1;
  const over = fps === undefined ? "frame" : "seconds";
  const last = (measures.frames - 1) / rate;
  const cuts = (measures.sceneCuts?.cuts ?? []).map((frame) => frame / rate);
  const curves = overTime(measures).map(({ title, ys }): Curve => {
    const first = measures.frames - ys.length; // pairs belong to their second frame
    return { title, ys, cuts, xs: ys.map((_, i) => (first + i) / rate) };
  });
  const parts = [text(title, MARGIN, 32, { class: "title" })];
  let top = TOP;
  for (const curve of curves) {
    parts.push(...drawCurve(curve, top, [0, last]));
    top += STEP;
  }
  parts.push(text(over, WIDTH - MARGIN, top - UNITS, { class: "muted", "text-anchor": "end" }));
  if (measures.flicker) {
    const { frequencies, blocks } = measures.flicker;
    const xs = frequencies.map((frequency) => frequency * rate);
    const ys = blocks.power.map(Math.sqrt);
    const title = "changes of 64 blocks' brightness by frequency, 8-bit levels";
    top += 16;
    parts.push(...drawCurve({ title, xs, ys, cuts: [] }, top, [0, rate / 2]));
    top += STEP;
    const unit = fps === undefined ? "cycles a frame" : "Hz";
    parts.push(text(unit, WIDTH - MARGIN, top - UNITS, { class: "muted", "text-anchor": "end" }));
  }
  return svg(top + 12, `Measures of ${title}`, parts);
}

function overTime(measures: Measures): Pick<Curve, "title" | "ys">[] {
  const { motion, similarity, sceneCuts, flicker, clip } = measures;
  return [
    { title: "motion, pixels a frame", ys: motion?.lengths },
    { title: "warp error, squared 8-bit levels", ys: motion?.errors },
    { title: "SSIM to the frame before", ys: similarity?.ssims },
    { title: "PSNR to the frame before, dB", ys: similarity?.psnrs },
    { title: "scene change score", ys: sceneCuts?.scores },
    { title: "mean luma, 8-bit levels", ys: flicker?.lumas },
    { title: "CLIP score", ys: clip?.scores },
  ].flatMap(({ title, ys }) => ys ? [{ title, ys }] : []);
}

function drawCurve({ title, xs, ys, cuts }: Curve, top: number, [x0, x1]: number[]): string[] {
  const known = ys.filter(Number.isFinite);
  const low = Math.min(...known, Infinity);
  const high = Math.max(...known, -Infinity);
  const right = WIDTH - MARGIN;
  const bottom = top + HEIGHT;
  const across = (x: number) => LEFT + (right - LEFT) * (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5);
  const up = (y: number) => bottom - HEIGHT * (high > low ? (y - low) / (high - low) : 0.5);
  const parts = [
    text(title, LEFT, top - 6, { class: "head" }),
    line([LEFT, top], [right, top], "grid"),
    line([LEFT, bottom], [right, bottom], "grid"),
    ...cuts.map((x) => line([across(x), top], [across(x), bottom], "cut")),
  ];
  if (known.length) {
    const beside = { "text-anchor": "end", class: "muted" };
    parts.push(text(significant(high), LEFT - 6, top + 4, beside));
    if (high > low) parts.push(text(significant(low), LEFT - 6, bottom + 4, beside));
  }
  for (const run of finiteRuns(ys)) {
    const points = run.map((i) => `${across(xs[i]).toFixed(1)},${up(ys[i]).toFixed(1)}`);
    if (points.length > 1) {
      parts.push(tag("polyline", { points: points.join(" "), class: "curve" }));
    } else {parts.push(
        tag("circle", { cx: across(xs[run[0]]), cy: up(ys[run[0]]), r: 2, class: "ours" }),
      );}
  }
  const ends = { class: "muted" };
  parts.push(
    text(significant(x0), LEFT, bottom + 14, ends),
    text(significant(x1), right, bottom + 14, { ...ends, "text-anchor": "end" }),
  );
  return parts;
}

/** Indexes of values in a row that have a place in the chart. */
function finiteRuns(values: readonly number[]): number[][] {
  const runs: number[][] = [];
  values.forEach((value, i) => {
    if (!Number.isFinite(value)) return;
    if (i > 0 && Number.isFinite(values[i - 1])) runs[runs.length - 1].push(i);
    else runs.push([i]);
  });
  return runs;
}
