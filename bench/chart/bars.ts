/**
 * Bars: how fast the contenders are at each task, the fastest one's bar as long as there is room.
 *
 * @module
 */

import { tag, text, textWidth, WIDTH } from "../../video/metrics/svg.ts";
import { percent, significant } from "../table.ts";

/** A contender's time for a task. */
export interface Bar {
  /** Who. */
  readonly name: string;
  /** Median. */
  readonly milliseconds: number;
  /** Whether it is this project's. */
  readonly ours: boolean;
}

/** A task and all who did it. */
export interface Task {
  /** What was done. */
  readonly name: string;
  /** Who did it. */
  readonly bars: readonly Bar[];
}

/** Position and size of one bar. */
export interface PlacedBar extends Bar {
  /** Left edge. */
  readonly x: number;
  /** Upper edge. */
  readonly y: number;
  /** Its length: speed. */
  readonly width: number;
  /** Speed as a part of the fastest one's. */
  readonly share: number;
}

/** All bars of a chart. */
export interface BarGeometry {
  /** Names of tasks, above their bars. */
  readonly heads: readonly { readonly name: string; readonly y: number }[];
  /** The bars, the fastest of a task first. */
  readonly bars: readonly PlacedBar[];
  /** Height of one bar. */
  readonly thickness: number;
  /** Lower end of the chart. */
  readonly bottom: number;
}

const MARGIN = 24;
const THICKNESS = 14;
const STEP = 20;

/** Places the bars of all tasks, the first one below `top`. */
export function barGeometry(tasks: readonly Task[], top: number): BarGeometry {
  const all = tasks.flatMap(({ bars }) => bars);
  const left = MARGIN + 8 + Math.max(...all.map(({ name }) => textWidth(name)));
  const values = Math.max(...all.map((bar) => textWidth(valueOf({ ...bar, share: 1 }))));
  const room = WIDTH - MARGIN - left - values - 8;
  const heads: { name: string; y: number }[] = [];
  const bars: PlacedBar[] = [];
  let y = top;
  for (const task of tasks) {
    heads.push({ name: task.name, y: y + 14 });
    y += 24;
    const least = Math.min(...task.bars.map(({ milliseconds }) => milliseconds));
    for (const bar of task.bars.toSorted((a, b) => a.milliseconds - b.milliseconds)) {
      const share = least / bar.milliseconds;
      bars.push({ ...bar, x: left, y, width: room * share, share });
      y += STEP;
    }
    y += 12;
  }
  return { heads, bars, thickness: THICKNESS, bottom: y };
}

function valueOf({ milliseconds, share }: Pick<PlacedBar, "milliseconds" | "share">): string {
  return `${significant(milliseconds)} ms, ${percent(share)}`;
}

/** The chart; what it shows was placed by {@link barGeometry}. */
export function drawBars({ heads, bars, thickness }: BarGeometry): string[] {
  return [
    ...heads.map(({ name, y }) => text(name, MARGIN, y, { class: "head" })),
    ...bars.flatMap((bar) => {
      const { name, ours, x, y, width } = bar;
      const base = y + thickness - 3;
      const style = ours ? "ours" : "other";
      return [
        text(name, x - 8, base, { "text-anchor": "end" }),
        tag("rect", { x, y, width: Math.max(1, width), height: thickness, rx: 2, class: style }),
        text(valueOf(bar), x + width + 6, base, { class: "muted" }),
      ];
    }),
  ];
}
