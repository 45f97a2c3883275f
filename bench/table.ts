/**
 * Tables of measurements, for terminals and in Markdown.
 *
 * @module
 */

import { formatShape, type Shape } from "../core/shape.ts";

export { significant } from "../video/metrics/number.ts";

/** A column of a table. */
export interface Column {
  /** Its head. */
  readonly title: string;
  /** Characters that it takes in a terminal. */
  readonly width: number;
  /** Side to which its cells are set. */
  readonly align: "left" | "right";
}

/** A line of a table in a terminal; what does not fit is cut off. */
export function textRow(columns: readonly Column[], cells: readonly string[]): string {
  return columns.map(({ width, align }, i) => {
    const cell = cells[i].length > width ? `${cells[i].slice(0, width - 1)}…` : cells[i];
    return align === "left" ? cell.padEnd(width) : cell.padStart(width);
  }).join("  ").trimEnd();
}

/** The titles, and a line below them. */
export function textHead(columns: readonly Column[]): string {
  const rule = columns.map(({ width }) => "-".repeat(width)).join("  ");
  return `${textRow(columns, columns.map(({ title }) => title))}\n${rule}`;
}

/** A whole table for a terminal. */
export function textTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string {
  return [textHead(columns), ...rows.map((row) => textRow(columns, row))].join("\n");
}

/** A whole table in Markdown. */
export function markdownTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string {
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [
    line(columns.map(({ title }) => title)),
    line(columns.map(({ align }) => align === "left" ? "---" : "---:")),
    ...rows.map(line),
  ].join("\n");
}

/** `[2, 3] [3, 4]`: the shapes of the inputs that there are. */
export function formatShapes(shapes: readonly (Shape | null)[]): string {
  return shapes.flatMap((shape) => shape ? [formatShape(shape)] : []).join(" ");
}

/** `12 %`. */
export function percent(share: number): string {
  return `${(100 * share).toFixed(0)} %`;
}
