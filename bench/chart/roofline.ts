/**
 * The roofline chart (Williams, Waterman and Patterson 2009): arithmetic intensity against speed on
 * logarithmic axes, below the roofs that copies and multiply-adds were measured to reach.
 *
 * @module
 */

import { line, type Point, tag, TEXT, text, textWidth, wrap } from "../../video/metrics/svg.ts";
import { significant } from "../table.ts";
import type { Peaks } from "../timing.ts";
import { alongLine, type Box, contains, overlap, textBox } from "./boxes.ts";

/** A kernel in the chart. */
export interface Mark {
  /** Its name. */
  readonly name: string;
  /** Floating-point operations for each byte that must move. */
  readonly intensity: number;
  /** 10⁹ operations a second. */
  readonly gigaflops: number;
}

/** A label beside its point, or beside points that touch each other. */
export interface Label {
  /** What it says, in lines. */
  readonly lines: readonly string[];
  /** Centres of the points. */
  readonly points: readonly Point[];
  /** Their middle. */
  readonly at: Point;
  /** Place of the text, `null` if there is none left. */
  readonly box: Box | null;
}

/** Positions of everything in the chart. */
export interface Geometry {
  /** Axes enclose it. */
  readonly frame: Box;
  /** Position of a mark. */
  readonly place: (intensity: number, gigaflops: number) => Point;
  /** Marks on the axis to the right. */
  readonly intensities: readonly number[];
  /** Marks on the axis upwards. */
  readonly speeds: readonly number[];
  /** Lines that speed is bounded by, the lowest first. */
  readonly roofs: readonly Roof[];
  /** The name of the flat part that they share. */
  readonly ceiling: Roof["label"];
  /** The kernels. */
  readonly labels: readonly Label[];
}

/** The bound of one memory and of the arithmetic. */
export interface Roof {
  /** Its corners, from the left. */
  readonly corners: readonly Point[];
  /** What the rising part is called, and where; without a box there was no place. */
  readonly label: { readonly name: string; readonly box: Box | null };
}

const RADIUS = 4;

/** Distance from a text to what stands beside it. */
const GAP = 3;

/** Distance between base lines. */
const LINE = 14;

/** Width of the label of several points. */
const CROWD_WIDTH = 240;

/** Places everything in `frame`; the first marks have the first choice of places for their names. */
export function rooflineGeometry(marks: readonly Mark[], peaks: Peaks, frame: Box): Geometry {
  const bandwidths = bandwidthsOf(peaks);
  const ridges = bandwidths.map(({ speed }) => peaks.gigaflops / speed);
  const x = scale(
    [...marks.map(({ intensity }) => intensity), ...ridges],
    [frame.x, frame.x + frame.width],
  );
  const y = scale([...marks.map(({ gigaflops }) => gigaflops), peaks.gigaflops], [
    frame.y + frame.height,
    frame.y,
  ]);
  const place = (intensity: number, gigaflops: number): Point => [x.at(intensity), y.at(gigaflops)];
  const lines = bandwidths.map(({ name, speed }) => {
    const left = Math.max(x.low, y.low / speed);
    const corners = [
      place(left, left * speed),
      place(peaks.gigaflops / speed, peaks.gigaflops),
      place(x.high, peaks.gigaflops),
    ];
    return { name, corners };
  });
  const points = marks.map(({ intensity, gigaflops }) => place(intensity, gigaflops));
  const flat = `multiply-add ${significant(peaks.gigaflops)} GFLOP/s`;
  const ceiling = textBox(flat, frame.x + frame.width - 4, y.at(peaks.gigaflops) - 6, "end");
  const taken = [
    ceiling,
    ...points.map(([x, y]) => around([x, y], RADIUS + 1)),
    ...lines.flatMap(({ corners: [a, b, c] }) => [...alongLine(a, b), ...alongLine(b, c)]),
  ];
  const free = (box: Box) => {
    const wide = { ...box, x: box.x - GAP, width: box.width + 2 * GAP };
    return contains(frame, box) && !taken.some((other) => overlap(other, wide));
  };
  const roofs = lines.map(({ name, corners }) => {
    const box = besideLine(name, corners).find(free) ?? null;
    if (box) taken.push(box);
    return { corners, label: { name, box } };
  });
  const texts = [ceiling, ...roofs.flatMap(({ label: { box } }) => box ?? [])];
  // Large labels first: they fit into few places.
  const labels = crowds(points).toSorted((a, b) => b.length - a.length).map((crowd) => {
    const names = crowd.map((i) => marks[i].name).join(", ");
    const own = crowd.map((i) => points[i]);
    const at: Point = [mean(own.map(([x]) => x)), mean(own.map(([, y]) => y))];
    const lines = wrap(names, CROWD_WIDTH);
    const others = taken.filter((box) => !own.some((point) => overlap(box, around(point, 1))));
    const boxes = besidePoint(lines, at).filter(free);
    const clear = (obstacles: readonly Box[]) =>
      boxes.find((box) =>
        !leaderOf(at, box).some((step) => obstacles.some((other) => overlap(step, other)))
      );
    // Where it is full, leaders may cross points and each other, at last even texts.
    const box = clear(others) ?? clear(texts) ?? boxes.at(0) ?? null;
    if (box) {
      taken.push(box, ...leaderOf(at, box));
      texts.push(box);
    }
    return { lines, points: own, at, box };
  });
  return {
    frame,
    place,
    intensities: x.ticks,
    speeds: y.ticks,
    roofs,
    ceiling: { name: flat, box: ceiling },
    labels,
  };
}

/** The memory, and what caches add to it if that is worth a line. */
function bandwidthsOf({ copies }: Peaks): { name: string; speed: number }[] {
  const memory = copies[copies.length - 1];
  const fastest = Math.max(...copies.map(({ gigabytesPerSecond }) => gigabytesPerSecond));
  const named = (what: string, speed: number) => ({
    name: `${what} ${significant(speed)} GB/s`,
    speed,
  });
  const roofs = [named("copy", memory.gigabytesPerSecond)];
  if (fastest > 1.2 * memory.gigabytesPerSecond) roofs.push(named("copy in cache", fastest));
  return roofs;
}

/** Pixels between the ends of an axis and the values next to them. */
const INSET = 36;

/** A logarithmic axis that has room for `values` and for labels around them. */
function scale(values: readonly number[], [from, to]: Point) {
  const least = Math.min(...values);
  const decades = Math.max(1, Math.log10(Math.max(...values) / least));
  const length = Math.abs(to - from) - 2 * INSET;
  const direction = Math.sign(to - from);
  const at = (value: number) =>
    from + direction * (INSET + length * Math.log10(value / least) / decades);
  const low = least * 10 ** (-decades * INSET / length);
  const high = least * 10 ** (decades * (1 + INSET / length));
  const ticks: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const digit of decades > 2.5 ? [1] : [1, 2, 5]) {
      const value = Number(`${digit}e${power}`);
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  return { low, high, at, ticks };
}

function around([x, y]: Point, radius: number): Box {
  return { x: x - radius, y: y - radius, width: 2 * radius, height: 2 * radius };
}

/** Indexes of points, those together that touch each other, the upper ones first. */
function crowds(points: readonly Point[]): number[][] {
  const found: number[][] = [];
  points.forEach((point, i) => {
    const touches = (j: number) =>
      Math.hypot(points[j][0] - point[0], points[j][1] - point[1]) < 2 * RADIUS + 2;
    const near = found.filter((crowd) => crowd.some(touches));
    for (const crowd of near) found.splice(found.indexOf(crowd), 1);
    found.push([...near.flat(), i]);
  });
  for (const crowd of found) crowd.sort((i, j) => points[i][1] - points[j][1]);
  return found;
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Boxes for lines of text beside a point, the nearest first. */
function besidePoint(lines: readonly string[], [x, y]: Point): Box[] {
  const width = Math.max(...lines.map((line) => textWidth(line)));
  const height = TEXT + (lines.length - 1) * LINE;
  const boxes: Box[] = [];
  for (let distance = RADIUS + 2 + GAP; distance < 300; distance += 6) {
    for (let i = 0; i < 24; i++) {
      // To the right first, then alternately further up and down.
      const angle = Math.PI / 12 * Math.ceil(i / 2) * (i % 2 ? -1 : 1);
      const [right, down] = [Math.cos(angle), Math.sin(angle)];
      const reach = (part: number) => Math.max(-1, Math.min(1, 1.5 * part));
      const centre = x + right * distance + width / 2 * reach(right);
      const middle = y + down * distance + height / 2 * reach(down);
      boxes.push({ x: centre - width / 2, y: middle - height / 2, width, height });
    }
  }
  return boxes;
}

/** Boxes for a text above or below the rising part of a roof. */
function besideLine(name: string, [a, b]: readonly Point[]): Box[] {
  return [0.75, 0.6, 0.45, 0.3, 0.9, 0.15].flatMap((t) => {
    const [x, y] = [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])];
    return [textBox(name, x - 8, y - 6, "end"), textBox(name, x + 8, y + 6 + TEXT)];
  });
}

/** The end of the line from a point to its label; `null` if they touch. */
function leaderEnd([x, y]: Point, box: Box): Point | null {
  const end: Point = [
    Math.max(box.x, Math.min(box.x + box.width, x)),
    Math.max(box.y, Math.min(box.y + box.height, y)),
  ];
  return Math.hypot(end[0] - x, end[1] - y) > 3 * RADIUS ? end : null;
}

/** What a leader covers, away from the two things that it joins. */
function leaderOf(at: Point, box: Box): Box[] {
  const end = leaderEnd(at, box);
  if (!end) return [];
  return alongLine(at, end)
    .filter((step) => !overlap(step, around(at, RADIUS + 1)) && !overlap(step, box));
}

/** The chart; what it shows was placed by {@link rooflineGeometry}. */
export function drawRoofline(geometry: Geometry): string[] {
  const { frame, place, intensities, speeds, roofs, ceiling, labels } = geometry;
  const [right, bottom] = [frame.x + frame.width, frame.y + frame.height];
  const parts: string[] = [];
  for (const value of intensities) {
    const [x] = place(value, 1);
    parts.push(line([x, frame.y], [x, bottom], "grid"));
    parts.push(text(String(value), x, bottom + 16, { "text-anchor": "middle", class: "muted" }));
  }
  for (const value of speeds) {
    const [, y] = place(1, value);
    parts.push(line([frame.x, y], [right, y], "grid"));
    parts.push(text(String(value), frame.x - 6, y + 4, { "text-anchor": "end", class: "muted" }));
  }
  const middle = frame.y + frame.height / 2;
  parts.push(
    text("arithmetic intensity, FLOP/byte", frame.x + frame.width / 2, bottom + 34, {
      "text-anchor": "middle",
    }),
    text("GFLOP/s", 0, 0, {
      "text-anchor": "middle",
      transform: `translate(16 ${Math.round(middle)}) rotate(-90)`,
    }),
  );
  roofs.forEach(({ corners }, i) => {
    const points = corners.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
    parts.push(tag("polyline", { points, class: i ? "dashed" : "roof" }));
  });
  for (const { name, box } of [...roofs.map(({ label }) => label), ceiling]) {
    if (box) parts.push(text(name, box.x, box.y + 0.8 * TEXT, { class: "muted" }));
  }
  for (const { at, box } of labels) {
    const end = box && leaderEnd(at, box);
    if (end) parts.push(line(at, end, "leader"));
  }
  for (const { points, lines, box } of labels) {
    for (const [cx, cy] of points) parts.push(tag("circle", { cx, cy, r: RADIUS, class: "ours" }));
    if (!box) continue;
    lines.forEach((words, i) => parts.push(text(words, box.x, box.y + 0.8 * TEXT + i * LINE)));
  }
  return parts;
}
