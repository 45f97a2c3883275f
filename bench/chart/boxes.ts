/**
 * Boxes of text, and whether they find places where nothing else is.
 *
 * @module
 */

import { type Point, TEXT, textWidth } from "../../video/metrics/svg.ts";

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
