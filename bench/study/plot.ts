/**
 * The study as a picture: for each variant a dot a seed, and their mean, of how MAWE and flicker
 * compare with the reference's.
 *
 * @module
 */

import { line, svg, tag, text, textWidth, WIDTH } from "../../video/metrics/svg.ts";
import { type Figure, type Row, spreadOf } from "./report.ts";

const MARGIN = 24;
const TOP = 64;
const STEP = 24;
const GAP = 32;

const PANELS: readonly (readonly [Figure, string])[] = [
  ["mawe", "MAWE (lower is better)"],
  ["flicker", "flicker (lower is better)"],
];

/** Ratios that a line may stand for: where little changes, finer ones. */
const TICKS = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8];
const FINE_TICKS = [0.7, 1, 1.4];

/** The plot, without the reference, which is its middle. */
export function studyPlot(rows: readonly Row[], heading: string): string {
  const compared = rows.filter(({ figures }) => figures.mawe.ratios.length > 0);
  const left = MARGIN + 8 + Math.max(0, ...compared.map(({ name }) => textWidth(name)));
  const width = (WIDTH - MARGIN - left - GAP * (PANELS.length - 1)) / PANELS.length;
  const bottom = TOP + STEP * compared.length;
  const parts = [
    text("How settings change the measures, against those of the method's code", MARGIN, 26, {
      class: "title",
    }),
    ...compared.map(({ name }, i) =>
      text(name, left - 10, TOP + STEP * (i + 0.5) + 4, { "text-anchor": "end" })
    ),
    ...PANELS.flatMap(([figure, title], i) =>
      panel(compared, figure, title, { x: left + i * (width + GAP), width, bottom })
    ),
    text(heading, MARGIN, bottom + 44, { class: "muted" }),
  ];
  return svg(bottom + 60, "Measures of the study's variants against the reference", parts);
}

function panel(
  rows: readonly Row[],
  figure: Figure,
  title: string,
  { x, width, bottom }: { readonly x: number; readonly width: number; readonly bottom: number },
): string[] {
  const all = rows.flatMap(({ figures }) => figures[figure].ratios);
  const farthest = Math.max(Math.log(1.5), ...all.map((ratio) => Math.abs(Math.log(ratio))));
  // The reference is in the middle, and twice is as far from it as half.
  const at = (ratio: number) => x + width / 2 * (1 + Math.log(ratio) / (1.05 * farthest));
  const ticks = (farthest < Math.log(2) ? FINE_TICKS : TICKS).filter((tick) =>
    Math.abs(Math.log(tick)) <= farthest
  );
  return [
    text(title, x + width / 2, TOP - 14, { class: "head", "text-anchor": "middle" }),
    ...ticks.flatMap((tick) => [
      line([at(tick), TOP], [at(tick), bottom], tick === 1 ? "dashed" : "grid"),
      text(labelOf(tick), at(tick), bottom + 16, { class: "muted", "text-anchor": "middle" }),
    ]),
    ...rows.flatMap(({ figures }, i) => {
      const { ratios } = figures[figure];
      const y = TOP + STEP * (i + 0.5);
      const reach = ratios.map(at);
      return [
        line([Math.min(...reach), y], [Math.max(...reach), y], "leader"),
        ...reach.map((cx) => tag("circle", { cx, cy: y, r: 3, class: "other" })),
        tag("circle", { cx: at(spreadOf(ratios).mean), cy: y, r: 5, class: "ours" }),
      ];
    }),
  ];
}

function labelOf(ratio: number): string {
  const change = Math.round(100 * (ratio - 1));
  if (change === 0) return "same";
  return `${change < 0 ? "−" : "+"}${Math.abs(change)} %`;
}
