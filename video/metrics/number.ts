/**
 * Numbers for people.
 *
 * @module
 */

/** A number with three significant digits, or more where it has them before the point. */
export function significant(value: number): string {
  if (value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(digits, 6));
}
