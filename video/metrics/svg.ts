/**
 * SVG by hand: escaping, tags, lines of text, and the style that all charts share.
 *
 * @module
 */

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
  .curve { stroke: #0969da; stroke-width: 1.5; fill: none; }
  .cut { stroke: #cf222e; stroke-width: 1; stroke-dasharray: 3 3; }
  .ours { fill: #0969da; }
  .other { fill: #afb8c1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .paper { fill: #0d1117; }
    .muted { fill: #9198a1; }
    .grid { stroke: #2f3742; }
    .roof, .dashed { stroke: #9198a1; }
    .leader { stroke: #656c76; }
    .curve { stroke: #4493f8; }
    .cut { stroke: #f85149; }
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
