/**
 * Facts for people.
 *
 * @module
 */

/** Rows of a label and a text, the texts below each other. */
export function table(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}\n`).join("");
}
