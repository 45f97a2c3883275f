/**
 * Rounding as shaders, NumPy and OpenCV do it, where `Math.round` takes halves upwards.
 *
 * @module
 */

/** The nearest whole number; of two the even one (IEEE 754, roundTiesToEven). */
export function roundToEven(x: number): number {
  const up = Math.round(x);
  return up - x === 0.5 && up % 2 !== 0 ? up - 1 : up;
}
