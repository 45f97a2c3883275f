/**
 * Gaussian blur of 8-bit pictures in whole numbers:
 * `out = ⌊(Σⱼ Σᵢ wⱼ wᵢ x[row + j, column + i] + 2¹⁵) / 2¹⁶⌋` for each channel, with weights
 * that sum to 2⁸. Beyond the picture its pixels come back in reverse; the border is not repeated.
 *
 * A picture is u32 `[H, W]`, red + 2⁸·green + 2¹⁶·blue in an element. Columns are summed first; a
 * row's sums have 16 bits, so that two channels share one multiplication.
 *
 * Source: the fixed-point path of OpenCV's `GaussianBlur`, whose results are the same.
 *
 * @module
 */

import { InputError, ShapeError } from "../core/errors.ts";
import { defineKernel, type Kernel, run, scalars, u32 } from "../core/kernel.ts";
import { roundToEven } from "../core/rounding.ts";
import { formatShape, sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { FLAT_INDEX, flatGrid } from "./wgsl.ts";

type NoAttributes = Readonly<Record<string, never>>;

/** Largest σ, in pixels: the weights of one are 0 to 3, and of a larger one hardly a bell. */
const MOST_SIGMA = 32;

/** WGSL: where `k` comes to lie when what stands out of `0 … extent − 1` is reflected. */
const REFLECTED = `
  fn reflected(k: i32, extent: u32) -> u32 {
    var t = u32(abs(k));
    if (t >= extent) {
      let period = max(2u * (extent - 1u), 1u);
      t %= period;
      t = min(t, period - t);
    }
    return t;
  }`;

/** The kernel behind {@link gaussianBlur}. */
export const gaussianBlurKernel: Kernel<NoAttributes> = defineKernel<NoAttributes>({
  name: "gaussian_blur",
  inputs: ["x", "weights"],
  output([x, weights]) {
    const fits = x!.shape.length === 2 && x!.dtype === "u32" && weights!.dtype === "u32" &&
      weights!.shape.length === 1 && weights!.shape[0] % 2 === 1;
    if (!fits) {
      throw new ShapeError(
        `gaussian_blur: takes a u32 picture [H, W] and an odd number of u32 weights, got ` +
          `${x!.dtype} ${formatShape(x!.shape)} and ${weights!.dtype} ` +
          formatShape(weights!.shape),
      );
    }
    return { shape: x!.shape, dtype: "u32" };
  },
  launch({ inputs, output, dispatch, temporary }) {
    const [x, weights] = inputs as readonly Tensor[];
    const [height, width] = x.shape;
    const sums = temporary([height, width, 2], "u32");
    const params = {
      count: u32(output.size),
      height: u32(height),
      width: u32(width),
      taps: u32(weights.size),
    };
    const pairs = { tensor: sums, type: "vec2u" };
    dispatch({
      variant: "columns",
      read: { x: scalars(x), weights: scalars(weights) },
      write: { sums: pairs },
      params,
      ...flatGrid(output.size),
      declarations: () => REFLECTED,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let column = i % p.width;
        let row = i - column;
        let first = i32(column) - i32(p.taps / 2u);
        var redBlue = 0u;
        var green = 0u;
        for (var k = 0u; k < p.taps; k++) {
          let pixel = x[row + reflected(first + i32(k), p.width)];
          redBlue += weights[k] * (pixel & 0xff00ffu);
          green += weights[k] * ((pixel >> 8u) & 0xffu);
        }
        sums[i] = vec2u(redBlue, green);`,
    });
    dispatch({
      variant: "rows",
      read: { sums: pairs, weights: scalars(weights) },
      write: { out: scalars(output) },
      params,
      ...flatGrid(output.size),
      declarations: () => REFLECTED,
      main: () => `
        ${FLAT_INDEX}
        if (i >= p.count) { return; }
        let column = i % p.width;
        let first = i32(i / p.width) - i32(p.taps / 2u);
        var total = vec3u(1u << 15u);
        for (var k = 0u; k < p.taps; k++) {
          let pair = sums[reflected(first + i32(k), p.height) * p.width + column];
          total += weights[k] * vec3u(pair.x & 0xffffu, pair.y, pair.x >> 16u);
        }
        total >>= vec3u(16u);
        out[i] = total.x | (total.y << 8u) | (total.z << 16u);`,
    });
  },
  flops: ([, weights], { shape }) => 2 * 3 * 2 * weights!.shape[0] * sizeOf(shape),
  reference([x, weights], [shape]) {
    const [height, width] = shape!;
    const radius = (weights!.length - 1) / 2;
    return x!.map((_, i) => {
      const [row, column] = [Math.floor(i / width), i % width];
      const sums = [0, 0, 0];
      weights!.forEach((vertical, j) =>
        weights!.forEach((horizontal, k) => {
          const y = referenceReflected(row + j - radius, height);
          const pixel = x![y * width + referenceReflected(column + k - radius, width)];
          [pixel, pixel / 256, pixel / 65536].forEach((value, c) => {
            sums[c] += vertical * horizontal * (Math.floor(value) % 256);
          });
        })
      );
      const [red, green, blue] = sums.map((sum) => Math.floor((sum + 2 ** 15) / 2 ** 16));
      return red + 256 * green + 65536 * blue;
    });
  },
  cases: [
    blurred(1, 1, 1),
    blurred(5, 7, 0.8),
    blurred(3, 4, 2),
    blurred(23, 19, 1.4),
    blurred(40, 33, 3),
  ],
  tolerance: { atol: 0, rtol: 0 },
});

function referenceReflected(k: number, extent: number): number {
  let at = k;
  while (at < 0 || at >= extent) at = extent === 1 ? 0 : at < 0 ? -at : 2 * (extent - 1) - at;
  return at;
}

function blurred(height: number, width: number, sigma: number) {
  const weights = gaussianWeights(sigma);
  const pixels = Array.from({ length: height * width }, (_, i) => (i + 7) * 2654435 % 2 ** 24);
  return {
    shapes: [[height, width], [weights.length]],
    dtypes: ["u32", "u32"] as const,
    values: [pixels, weights],
    attributes: {},
  };
}

/**
 * The weights exp(−k²/2σ²) as whole numbers that sum to 2⁸; what rounding one leaves over goes to
 * the next one towards the middle. There are 6σ + 1 of them, rounded to an odd number.
 *
 * @throws {InputError} if σ is not above 0, or above 32 pixels.
 */
export function gaussianWeights(sigma: number): number[] {
  if (!(sigma > 0 && sigma <= MOST_SIGMA)) {
    throw new InputError(
      `the blur's sigma must be a number of pixels above 0, at most ${MOST_SIGMA}: got ${sigma}`,
    );
  }
  const radius = Math.floor(roundToEven(6 * sigma + 1) / 2);
  const bell = Array.from(
    { length: 2 * radius + 1 },
    (_, k) => Math.exp(-((k - radius) ** 2) / (2 * sigma * sigma)),
  );
  const total = bell.reduce((a, b) => a + b);
  const weights = bell.map(() => 0);
  let left = 0;
  let given = 0;
  for (let k = 0; k < radius; k++) {
    const wanted = 256 * bell[k] / total + left;
    weights[k] = weights[2 * radius - k] = roundToEven(wanted);
    left = wanted - weights[k];
    given += 2 * weights[k];
  }
  weights[radius] = 256 - given;
  return weights;
}

/**
 * A picture blurred by a Gaussian of standard deviation `sigma` pixels.
 *
 * @param x u32 `[H, W]`, red + 2⁸·green + 2¹⁶·blue in an element.
 * @throws {ShapeError} if it is not such a picture.
 * @throws {InputError} if σ is not above 0, or above 32 pixels.
 */
export function gaussianBlur(x: Tensor, sigma: number): Tensor {
  const { device } = x;
  return device.scope(() => {
    const weights = gaussianWeights(sigma);
    return run(gaussianBlurKernel, [x, device.tensor(weights, [weights.length], "u32")], {});
  });
}
