/**
 * Draws measurements: a roofline chart of the kernels, and bars of this project and others.
 *
 * ```sh
 * deno run -A bench/chart.ts --kernels k.json --out docs/kernels.svg
 * ```
 *
 * @module
 */

import { writeFile } from "node:fs/promises";
import process from "node:process";
import { InputError } from "../core/errors.ts";
import { svg, text, WIDTH, wrap } from "../video/metrics/svg.ts";
import { barGeometry, drawBars } from "./chart/bars.ts";
import { costliest, readKernels, readPeers, tasksOf } from "./chart/results.ts";
import { drawRoofline, rooflineGeometry } from "./chart/roofline.ts";
import { type Command, command, path } from "./command.ts";
import type { Results } from "./kernels.ts";
import type { Results as PeerResults } from "./peers/report.ts";
import { describeSetting } from "./setting.ts";

const HELP = `Draws an SVG of measurements. deno run -A bench/chart.ts [options]

  --kernels FILE   what bench/kernels.ts wrote with --json: a roofline chart
  --peers FILE     what bench/peers.ts wrote with --json: bars
  --out FILE       the SVG to write
  --help           this text

At least one of --kernels and --peers is needed.`;

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { kernels: path, peers: path, out: path },
}, async (options) => {
  if (!options.out) throw new InputError("--out must name the SVG to write");
  if (!options.kernels && !options.peers) {
    throw new InputError("nothing to draw: give --kernels, --peers or both");
  }
  const kernels = options.kernels ? await readKernels(options.kernels) : null;
  const peers = options.peers ? await readPeers(options.peers) : null;
  await writeFile(options.out, draw(kernels, peers));
  return 0;
});

const MARGIN = 24;
const LINE = 16;

/** The whole picture: a panel for each of the results that there are. */
export function draw(kernels: Results | null, peers: PeerResults | null): string {
  const panels: Panel[] = [];
  if (kernels) panels.push(rooflinePanel(kernels));
  if (peers) panels.push(barPanel(peers));
  let y = 0;
  const parts: string[] = [];
  const titles: string[] = [];
  for (const { title, notes, body } of panels) {
    const lines = notes.flatMap((note) => wrap(note, WIDTH - 2 * MARGIN));
    parts.push(text(title, MARGIN, y + 32, { class: "title" }));
    lines.forEach((words, i) =>
      parts.push(text(words, MARGIN, y + 52 + i * LINE, { class: "muted" }))
    );
    const drawn = body(y + 52 + lines.length * LINE);
    parts.push(...drawn.parts);
    y = drawn.bottom;
    titles.push(title);
  }
  return svg(y, titles.join("; "), parts);
}

interface Panel {
  readonly title: string;
  readonly notes: readonly string[];
  /** Draws below `top`. */
  readonly body: (top: number) => { parts: string[]; bottom: number };
}

function rooflinePanel(kernels: Results): Panel {
  const rows = costliest(kernels.rows);
  const counted = rows.filter(({ flops }) => flops > 0);
  const idle = rows.filter(({ flops }) => flops === 0).map(({ kernel }) => kernel);
  const marks = counted.map(({ kernel, flops, bytes, gigaflops }) => ({
    name: kernel,
    intensity: flops / bytes,
    gigaflops,
  }));
  const notes = [`${describeSetting(kernels)}, ${kernels.dtype}`];
  if (idle.length) notes.push(`without arithmetic, and so not shown: ${idle.join(", ")}`);
  const body = (top: number) => {
    const frame = { x: 64, y: top, width: WIDTH - 64 - MARGIN, height: 440 };
    return {
      parts: drawRoofline(rooflineGeometry(marks, kernels.peaks, frame)),
      bottom: top + frame.height + 48,
    };
  };
  return { title: "Speed of kernels, and what bounds it", notes, body };
}

function barPanel(peers: PeerResults): Panel {
  const body = (top: number) => {
    const geometry = barGeometry(tasksOf(peers), top);
    return { parts: drawBars(geometry), bottom: geometry.bottom };
  };
  const notes = [
    ...peers.settings.map(describeSetting),
    `median of up to ${peers.runs} runs, and speed as a part of the fastest one's`,
  ];
  return { title: "framezero and others", notes, body };
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
