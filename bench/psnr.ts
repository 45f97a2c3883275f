/**
 * How much pictures differ.
 *
 * @module
 */

/** Peak signal-to-noise ratio of bytes, in decibels; infinite for equal ones. */
export function psnrOf(got: Uint8Array, want: Uint8Array): number {
  const squares = want.reduce((sum, value, i) => sum + (got[i] - value) ** 2, 0);
  return 10 * Math.log10(255 ** 2 * want.length / squares);
}
