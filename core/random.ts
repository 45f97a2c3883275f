/**
 * Random numbers as PyTorch draws them, so that a seed gives the same picture here and there: the
 * CPU generator (MT19937, Matsumoto & Nishimura 1998), and the normal numbers of CUDA (Philox
 * 4×32-10, Salmon et al. 2011).
 *
 * @module
 */

import { InputError } from "./errors.ts";
import { checkShape, sizeOf } from "./shape.ts";

/** Whose numbers a generator draws: `"cpu"` is torch's default, `"cuda"` knows only `randn`. */
export type GeneratorKind = "cpu" | "cuda";

/** The state of MT19937: 624 words, and how many of them have been given out. */
type MersenneTwister = { readonly words: Uint32Array; used: number };

let reseed: (generator: Generator, key: readonly number[]) => void;

/**
 * A stream of random numbers like `torch.Generator`; every draw advances it.
 *
 * - `"cpu"`: only the low 32 bits of the seed matter, as in torch. Numbers agree with
 *   `torch.randn(…, generator=torch.Generator().manual_seed(seed))` to rounding.
 * - `"cuda"`: the formula of stable-diffusion-webui's `rng_philox`: element i of call c is made of
 *   Philox at counter (c, 0, i, 0) with the seed as key. It is CUDA's own as long as every element
 *   has its own GPU thread, so for tensors as small as the latents of one picture.
 *
 * @example
 * ```ts
 * import { Generator } from "framezero";
 *
 * const latents = new Generator(42).randn([1, 4, 64, 64]);
 * console.log(latents[0]); // 1.9269…, as torch.manual_seed(42) gives
 * ```
 */
export class Generator {
  /** The seed as it was given. */
  readonly seed: number | bigint;
  /** Whose numbers are drawn. */
  readonly kind: GeneratorKind;
  readonly #twister: MersenneTwister;
  /** The second value of the last pair of the short path, if nobody has had it yet. */
  #cachedNormal: number | undefined;
  #normalCalls = 0;

  static {
    reseed = (generator, key) => seedByArray(generator.#twister, key);
  }

  /**
   * Starts the stream of a seed.
   *
   * @param seed A safe integer or a bigint in [−2⁶³, 2⁶⁴); negative ones count as two's complement.
   * @param kind Whose numbers to draw.
   * @throws {InputError} if the seed is no such integer.
   */
  constructor(seed: number | bigint, kind: GeneratorKind = "cpu") {
    const [low] = seedWords(seed);
    this.seed = seed;
    this.kind = kind;
    this.#twister = { words: new Uint32Array(624), used: 624 };
    seedByWord(this.#twister, low);
  }

  /** Another generator that goes on as this one would, `torch.Generator.clone_state`. */
  clone(): Generator {
    const copy = new Generator(this.seed, this.kind);
    copy.#twister.words.set(this.#twister.words);
    copy.#twister.used = this.#twister.used;
    copy.#cachedNormal = this.#cachedNormal;
    copy.#normalCalls = this.#normalCalls;
    return copy;
  }

  /**
   * Standard normal numbers, drawn as `torch.randn` does for float32: fewer than 16 by pairs in
   * double precision, from 16 on in blocks of 8 cosines and 8 sines (Box & Muller 1958).
   *
   * @throws {ShapeError} if an extent is not a whole number of at least 1.
   */
  randn(shape: readonly number[]): Float32Array<ArrayBuffer> {
    checkShape(shape, "randn");
    const out = new Float32Array(sizeOf(shape));
    if (this.kind === "cuda") fillPhilox(out, this.seed, this.#normalCalls++);
    else this.#fillNormal(out, () => this.#uniform24());
    return out;
  }

  /**
   * Standard normal numbers, drawn as `torch.randn` does for float64 (53-bit uniforms).
   *
   * @throws {ShapeError} if an extent is not a whole number of at least 1.
   * @throws {InputError} if the kind is `"cuda"`.
   */
  randnF64(shape: readonly number[]): Float64Array<ArrayBuffer> {
    this.#needCpu("randnF64");
    checkShape(shape, "randnF64");
    const out = new Float64Array(sizeOf(shape));
    this.#fillNormal(out, () => this.#uniform53());
    return out;
  }

  /**
   * Numbers uniform in [0, 1), multiples of 2⁻²⁴, as `torch.rand` draws them for float32.
   *
   * @throws {ShapeError} if an extent is not a whole number of at least 1.
   * @throws {InputError} if the kind is `"cuda"`.
   */
  rand(shape: readonly number[]): Float32Array<ArrayBuffer> {
    this.#needCpu("rand");
    checkShape(shape, "rand");
    return new Float32Array(sizeOf(shape)).map(() => this.#uniform24());
  }

  /**
   * Whole numbers in [low, high), as `torch.randint` draws them: low + (32 bits mod (high − low)).
   *
   * @throws {ShapeError} if an extent is not a whole number of at least 1.
   * @throws {InputError} if the bounds are not integers with −2³¹ ≤ low < high ≤ 2³¹, or the kind
   * is `"cuda"`.
   */
  randint(low: number, high: number, shape: readonly number[]): Int32Array<ArrayBuffer> {
    this.#needCpu("randint");
    checkShape(shape, "randint");
    const whole = Number.isInteger(low) && Number.isInteger(high);
    if (!whole || low < -(2 ** 31) || low >= high || high > 2 ** 31) {
      throw new InputError(
        "randint: bounds must be whole numbers with -2^31 <= low < high <= 2^31, " +
          `got low ${low}, high ${high}; correct them`,
      );
    }
    return new Int32Array(sizeOf(shape)).map(() => low + nextWord(this.#twister) % (high - low));
  }

  /**
   * The numbers 0 … n − 1 in random order, as `torch.randperm` draws them.
   *
   * @throws {InputError} if n is not a whole number in [0, 2³²/20), the range in which torch draws
   * 32 bits for each, or the kind is `"cuda"`.
   */
  randperm(n: number): Int32Array<ArrayBuffer> {
    this.#needCpu("randperm");
    if (!Number.isInteger(n) || n < 0 || n >= 214_748_364) {
      throw new InputError(
        `randperm: n must be a whole number from 0 to 214748363, got ${n}; correct it`,
      );
    }
    const out = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = 0; i < n - 1; i++) {
      const other = i + nextWord(this.#twister) % (n - i);
      [out[i], out[other]] = [out[other], out[i]];
    }
    return out;
  }

  #needCpu(what: string): void {
    if (this.kind === "cpu") return;
    throw new InputError(
      `${what}: a generator of kind "cuda" draws only randn; use one of kind "cpu"`,
    );
  }

  #fillNormal(out: Float32Array | Float64Array, uniform: () => number): void {
    if (out.length < 16) {
      for (let i = 0; i < out.length; i++) out[i] = this.#nextNormal();
      return;
    }
    for (let i = 0; i < out.length; i++) out[i] = uniform();
    for (let start = 0; start + 16 <= out.length; start += 16) normalBlock(out, start);
    // A tail shorter than a block: the last 16 values are drawn once more.
    if (out.length % 16 !== 0) {
      const start = out.length - 16;
      for (let i = start; i < out.length; i++) out[i] = uniform();
      normalBlock(out, start);
    }
  }

  #nextNormal(): number {
    const cached = this.#cachedNormal;
    this.#cachedNormal = undefined;
    if (cached !== undefined) return cached;
    const angle = 2 * Math.PI * this.#uniform53();
    const radius = Math.sqrt(-2 * Math.log1p(-this.#uniform53()));
    this.#cachedNormal = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  #uniform24(): number {
    return (nextWord(this.#twister) & 0xffffff) * 2 ** -24;
  }

  #uniform53(): number {
    const high = nextWord(this.#twister) & 0x1fffff;
    return (high * 2 ** 32 + nextWord(this.#twister)) * 2 ** -53;
  }
}

/**
 * The generator for one frame's noise: independent for every pair (seed, frame), so that a frame's
 * noise does not depend on which frames are made together with it.
 *
 * It is a `"cpu"` generator whose MT19937 is seeded by the array (seed mod 2³², seed div 2³², frame
 * mod 2³², frame div 2³²) with Matsumoto & Nishimura's `init_by_array` (2002). A mix into one
 * seed would leave 32 bits, so that among many frames two would share their noise by chance; this
 * keeps all 128 bits, and frame 0 differs from `new Generator(seed)`. The raw words are those of
 * NumPy's `RandomState([seedLow, seedHigh, frameLow, frameHigh])`.
 *
 * @param seed As in {@linkcode Generator}; the result's `seed`.
 * @param frameId A whole number from 0 on.
 * @throws {InputError} if one of them is not such a number.
 */
export function generatorForFrame(seed: number | bigint, frameId: number): Generator {
  if (!Number.isSafeInteger(frameId) || frameId < 0) {
    throw new InputError(
      `generatorForFrame: a frame id must be a whole number from 0 on, got ${frameId}; correct it`,
    );
  }
  const generator = new Generator(seed);
  reseed(generator, [...seedWords(seed), frameId >>> 0, Math.floor(frameId / 2 ** 32)]);
  return generator;
}

/** The low and high 32 bits of a seed in two's complement. */
function seedWords(seed: number | bigint): [number, number] {
  const whole = typeof seed === "bigint" || Number.isSafeInteger(seed);
  if (!whole || seed < -(2n ** 63n) || seed >= 2n ** 64n) {
    throw new InputError(
      "a seed must be a whole number: a safe integer, or a bigint from -2^63 to 2^64 - 1, " +
        `got ${seed}; correct it`,
    );
  }
  const bits = BigInt.asUintN(64, BigInt(seed));
  return [Number(bits & 0xffffffffn), Number(bits >> 32n)];
}

/** `init_genrand` of MT19937. */
function seedByWord(twister: MersenneTwister, seed: number): void {
  const { words } = twister;
  words[0] = seed;
  for (let i = 1; i < 624; i++) {
    words[i] = Math.imul(1812433253, words[i - 1] ^ (words[i - 1] >>> 30)) + i;
  }
  twister.used = 624;
}

/** `init_by_array` of MT19937, for keys of up to 624 words. */
function seedByArray(twister: MersenneTwister, key: readonly number[]): void {
  seedByWord(twister, 19650218);
  const { words } = twister;
  let i = 1;
  const mix = (factor: number, add: number) => {
    const before = words[i - 1] ^ (words[i - 1] >>> 30);
    words[i] = (words[i] ^ Math.imul(before, factor)) + add;
    if (++i === 624) {
      words[0] = words[623];
      i = 1;
    }
  };
  for (let k = 0; k < 624; k++) mix(1664525, key[k % key.length] + k % key.length);
  for (let k = 0; k < 623; k++) mix(1566083941, -i);
  words[0] = 0x80000000;
}

/** The next 32 bits. */
function nextWord(twister: MersenneTwister): number {
  const { words } = twister;
  if (twister.used === 624) {
    for (let i = 0; i < 624; i++) {
      const pair = (words[i] & 0x80000000) | (words[(i + 1) % 624] & 0x7fffffff);
      words[i] = words[(i + 397) % 624] ^ (pair >>> 1) ^ (pair & 1 ? 0x9908b0df : 0);
    }
    twister.used = 0;
  }
  let word = words[twister.used++];
  word ^= word >>> 11;
  word ^= (word << 7) & 0x9d2c5680;
  word ^= (word << 15) & 0xefc60000;
  return (word ^ (word >>> 18)) >>> 0;
}

/** Turns 16 uniform numbers into 8 cosines and 8 sines of Box and Muller. */
function normalBlock(values: Float32Array | Float64Array, start: number): void {
  for (let i = start; i < start + 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
    const angle = 2 * Math.PI * values[i + 8];
    values[i] = radius * Math.cos(angle);
    values[i + 8] = radius * Math.sin(angle);
  }
}

/** One normal number per counter: of Philox's four words the first two are used. */
function fillPhilox(out: Float32Array, seed: number | bigint, call: number): void {
  const [keyLow, keyHigh] = seedWords(seed);
  const angleUnit = Math.fround(2.3283064e-10 * 6.2831855); // 2π·2⁻³² as CUDA's header writes it
  for (let i = 0; i < out.length; i++) {
    const [x, y] = philox(call, 0, i, 0, keyLow, keyHigh);
    const radius = Math.sqrt(-2 * Math.log((x + 0.5) * 2 ** -32));
    out[i] = radius * Math.sin((y + 0.5) * angleUnit);
  }
}

/** Philox 4×32 with 10 rounds; the first two words of its output. */
function philox(
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  k0: number,
  k1: number,
): [number, number] {
  for (let round = 0; round < 10; round++) {
    const next0 = highProduct(0xcd9e8d57, c2) ^ c1 ^ k0;
    const next2 = highProduct(0xd2511f53, c0) ^ c3 ^ k1;
    c1 = Math.imul(0xcd9e8d57, c2);
    c3 = Math.imul(0xd2511f53, c0);
    c0 = next0;
    c2 = next2;
    k0 += 0x9e3779b9; // the words of the Weyl sequence: golden ratio, √3 − 1
    k1 += 0xbb67ae85;
  }
  return [c0 >>> 0, c1 >>> 0];
}

/** The upper 32 bits of a 64-bit product; arguments count modulo 2³². */
function highProduct(a: number, b: number): number {
  const aHigh = a >>> 16, aLow = a & 0xffff;
  const bHigh = b >>> 16, bLow = b & 0xffff;
  const middle = aHigh * bLow + (aLow * bLow >>> 16);
  const carry = (middle & 0xffff) + aLow * bHigh;
  return aHigh * bHigh + Math.floor(middle / 65536) + Math.floor(carry / 65536);
}
