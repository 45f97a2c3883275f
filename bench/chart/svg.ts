/**
 * SVG by hand: escaping, boxes of text, and places for labels where nothing else is.
 *
 * @module
 */

/** A rectangle in pixels. */
export interface Box {
  /** Left edge. */
  readonly x: number;
  /** Upper edge. */
  readonly y: number;
  /** Extent to the right. */
  readonly width: number;
  /** Extent downwards. */
  readonly height: number;
}

/** A position in pixels. */
export type Point = readonly [x: number, y: number];

/** Width of every chart. */
export const WIDTH = 800;

/** Height of the letters of ordinary text. */
export const TEXT = 12;

/** Letters of the fonts that browsers choose are seldom wider than this part of their height. */
const LETTER = 0.6;

/** Width that a text takes at most. */
export function textWidth(text: string, size: number = TEXT): number {
  return text.length * size * LETTER;
}

/** The box of a text that starts at `x` (or ends there) with its base line at `y`. */
export function textBox(
  text: string,
  x: number,
  y: number,
  anchor: "start" | "end" = "start",
  size: number = TEXT,
): Box {
  const width = textWidth(text, size);
  return { x: anchor === "start" ? x : x - width, y: y - 0.8 * size, width, height: size };
}

/** Whether two boxes share an area. */
export function overlap(a: Box, b: Box): boolean {
  return a.x < b.x + b.width && b.x < a.x + a.width &&
    a.y < b.y + b.height && b.y < a.y + a.height;
}

/** Whether `inner` lies within `outer`. */
export function contains(outer: Box, inner: Box): boolean {
  return inner.x >= outer.x && inner.x + inner.width <= outer.x + outer.width &&
    inner.y >= outer.y && inner.y + inner.height <= outer.y + outer.height;
}

/** Small boxes along a line, so that labels keep off it. */
export function alongLine([x0, y0]: Point, [x1, y1]: Point): Box[] {
  const size = 3;
  const steps = Math.ceil(Math.hypot(x1 - x0, y1 - y0) / size);
  return Array.from({ length: steps + 1 }, (_, i) => {
    const t = steps ? i / steps : 0;
    const [x, y] = [x0 + t * (x1 - x0), y0 + t * (y1 - y0)];
    return { x: x - size / 2, y: y - size / 2, width: size, height: size };
  });
}

/** Text as it may stand in SVG, between tags and in attributes. */
export function escape(text: string): string {
  const entities: Readonly<Record<string, string>> = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&#39;",
  };
  return text.replace(/[&<>"']/g, (letter) => entities[letter]);
}

/** A tag; numbers are rounded to tenths of a pixel. */
export function tag(
  name: string,
  attributes: Readonly<Record<string, string | number>>,
  content = "",
): string {
  const list = Object.entries(attributes).map(([key, value]) => {
    const text = typeof value === "number" ? String(Math.round(10 * value) / 10) : escape(value);
    return ` ${key}="${text}"`;
  });
  return content ? `<${name}${list.join("")}>${content}</${name}>` : `<${name}${list.join("")}/>`;
}

/** A line of text with its base line at `y`. */
export function text(
  content: string,
  x: number,
  y: number,
  attributes: Readonly<Record<string, string | number>> = {},
): string {
  return tag("text", { x, y, ...attributes }, escape(content));
}

/** A straight line. */
export function line([x1, y1]: Point, [x2, y2]: Point, style: string): string {
  return tag("line", { x1, y1, x2, y2, class: style });
}

/** Words in lines no wider than `width`. */
export function wrap(words: string, width: number, size: number = TEXT): string[] {
  const lines: string[] = [];
  for (const word of words.split(" ")) {
    const longer = lines.length ? `${lines[lines.length - 1]} ${word}` : word;
    if (lines.length && textWidth(longer, size) <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

const STYLE = `
  text { font: ${TEXT}px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .paper { fill: #ffffff; }
  .title { font-size: 15px; font-weight: 600; }
  .head { font-weight: 600; }
  .muted { fill: #59636e; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .roof { stroke: #59636e; stroke-width: 2; fill: none; }
  .dashed { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 5 4; fill: none; }
  .leader { stroke: #818b98; stroke-width: 0.75; }
  .ours { fill: #0969da; }
  .other { fill: #afb8c1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .paper { fill: #0d1117; }
    .muted { fill: #9198a1; }
    .grid { stroke: #2f3742; }
    .roof, .dashed { stroke: #9198a1; }
    .leader { stroke: #656c76; }
    .ours { fill: #4493f8; }
    .other { fill: #656c76; }
  }`;

/** A whole image. `title` is what screen readers say. */
export function svg(height: number, title: string, parts: readonly string[]): string {
  const size = { width: WIDTH, height, viewBox: `0 0 ${WIDTH} ${Math.round(height)}` };
  const head = [
    tag("title", {}, escape(title)),
    tag("style", {}, STYLE),
    tag("rect", { class: "paper", width: WIDTH, height, rx: 6 }),
  ];
  const content = `\n${[...head, ...parts].join("\n")}\n`;
  return `${tag("svg", { xmlns: "http://www.w3.org/2000/svg", ...size, role: "img" }, content)}\n`;
}
