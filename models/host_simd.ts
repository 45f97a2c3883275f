/**
 * The kernels of the host as a WebAssembly module with vectors of 128 bits, put together here from
 * its instructions: JavaScript, which has no vectors, takes several times as long.
 *
 * The encoding is that of the WebAssembly core specification, chapter "Binary Format",
 * https://webassembly.github.io/spec/core/binary/index.html.
 *
 * @module
 */

import { PANEL } from "../kernels/panels.ts";
import type { HostKernels } from "./host_kernels.ts";

/** Columns that the packing of this module works in: it takes multiples of them only. */
export const PACK_COLUMNS = 8;

type Code = readonly (number | Code)[];

const flat = (code: Code): number[] =>
  code.flatMap((item) => typeof item === "number" ? [item] : flat(item));

/** An unsigned number in LEB128. */
const leb = (value: number): number[] =>
  value < 128 ? [value] : [value % 128 + 128, ...leb(Math.floor(value / 128))];

const sized = (code: Code): Code => {
  const bytes = flat(code);
  return [leb(bytes.length), bytes];
};
const list = (items: readonly Code[]): Code => [leb(items.length), items];
const section = (id: number, items: readonly Code[]): Code => [id, sized(list(items))];
const text = (name: string): Code => sized([...new TextEncoder().encode(name)]);

const I32 = 0x7f;
const V128 = 0x7b;

const get = (local: number): Code => [0x20, local];
const set = (local: number, value: Code): Code => [value, 0x21, local];
/** A constant below 2^31; its LEB128 is signed. */
const int = (value: number): Code => {
  const digits = leb(value);
  const last = digits.pop()!;
  return [0x41, digits, last < 64 ? [last] : [last + 128, 0]];
};
const add = (a: Code, b: Code): Code => [a, b, 0x6a];
const times = (a: Code, b: Code): Code => [a, b, 0x6c];
const below = (a: Code, b: Code): Code => [a, b, 0x49];
/** Runs `body` as long as `condition` holds, at least once. */
const loop = (body: Code, condition: Code): Code => [0x03, 0x40, body, condition, 0x0d, 0, 0x0b];

const simd = (operation: number) => (...operands: Code[]): Code => [
  operands,
  0xfd,
  leb(operation),
];
const load = (at: Code, offset = 0): Code => [at, 0xfd, 0x00, 0, leb(offset)];
const store = (at: Code, value: Code, offset = 0): Code => [at, value, 0xfd, 0x0b, 0, leb(offset)];
const shuffle = (a: Code, b: Code, bytes: readonly number[]): Code => [a, b, 0xfd, 0x0d, bytes];
const bits = { and: simd(0x4e), or: simd(0x50), select: simd(0x52), any: simd(0x53) };
const i16x8 = { add: simd(0x8e), narrow: simd(0x86) };
const i32x4 = {
  add: simd(0xae),
  sub: simd(0xb1),
  min: simd(0xb7),
  greater: simd(0x3b),
  low: simd(0xa7),
  high: simd(0xa8),
  left: (value: Code, by: number): Code => simd(0xab)(value, int(by)),
  right: (value: Code, by: number): Code => simd(0xad)(value, int(by)),
};
const f32x4 = { add: simd(0xe4), mul: simd(0xe6) };

/** A function while it is written: its locals follow its parameters. */
interface Writer {
  /** A new local. */
  readonly local: (type: number) => number;
  /** A word in all places of a vector. In a local: inside a loop V8 makes it anew each time. */
  readonly constant: (word: number) => Code;
}

/** Locals and body of a function. */
function written(parameters: number, write: (writer: Writer) => Code): Code {
  const types: number[] = [];
  const constants: Code[] = [];
  const local = (type: number) => parameters + types.push(type) - 1;
  const body = write({
    local,
    constant(word) {
      const bytes = [0, 8, 16, 24].map((shift) => (word >>> shift) & 255);
      const place = local(V128);
      constants.push(set(place, [0xfd, 0x0c, bytes, bytes, bytes, bytes]));
      return get(place);
    },
  });
  return sized([list(types.map((type) => [1, type])), constants, body, 0x0b]);
}

/** Checks numbers: adding one to an exponent of all ones carries into the place of the sign. */
const infinite = (sum: typeof i16x8.add, exponents: number, one: number, signs: number): Code =>
  written(2, ({ local, constant }) => {
    const [from, end, seen] = [0, 1, local(V128)];
    const [mask, last, carries] = [constant(exponents), constant(one), constant(signs)];
    const carried = (value: Code) => sum(bits.and(value, mask), last);
    return [
      loop([
        set(
          seen,
          bits.or(get(seen), bits.or(carried(load(get(from))), carried(load(get(from), 16)))),
        ),
        set(from, add(get(from), int(32))),
      ], below(get(from), get(end))),
      bits.any(bits.and(get(seen), carries)),
    ];
  });

/** Reads and writes so many bytes at a time. */
function convert(read: number, write: number, body: (from: Code, to: Code) => Code): Code {
  const [from, end, to] = [0, 1, 2];
  return loop([
    body(get(from), get(to)),
    set(from, add(get(from), int(read))),
    set(to, add(get(to), int(write))),
  ], below(get(from), get(end)));
}

/** Eight 16-bit numbers, of which `make(…)` makes f32 when they lie in words. */
const widen = (make: (writer: Writer) => (halves: Code) => Code): Code =>
  written(3, (writer) => {
    const four = make(writer);
    return convert(16, 32, (from, to) => [
      store(to, four(i32x4.low(load(from)))),
      store(to, four(i32x4.high(load(from))), 16),
    ]);
  });

const widenBf16 = widen(() => (halves) => i32x4.left(halves, 16));

/** Sign-extended words keep their sign; scaling by 2^112 moves the exponent, exactly. */
const widenF16 = widen(({ constant }) => {
  const [mask, scale] = [constant(0x8fffe000), constant(0x77800000)];
  return (halves) => f32x4.mul(bits.and(i32x4.left(halves, 13), mask), scale);
});

/**
 * Rounds f32. Normal halves: the exponent is moved and the mantissa cut, to which half of its last
 * place was added, or a little less if it is even. Smaller ones: when 1/2 is added, the addition
 * itself rounds to multiples of 2^-24, their spacing.
 */
const narrow = written(3, ({ local, constant }) => {
  const [value, magnitude] = [local(V128), local(V128)];
  const [all, one, shift, most] = [0x7fffffff, 1, 0xc8000fff, 0x7c00].map(constant);
  const [half, least, sign] = [0x3f000000, 0x387fffff, 0x8000].map(constant);
  const four = (numbers: Code): Code => {
    const even = bits.and(i32x4.right(get(magnitude), 13), one);
    const rounded = i32x4.right(i32x4.add(i32x4.add(get(magnitude), shift), even), 13);
    const small = i32x4.sub(f32x4.add(get(magnitude), half), half);
    const isNormal = i32x4.greater(get(magnitude), least);
    return [
      set(value, numbers),
      set(magnitude, bits.and(get(value), all)),
      bits.or(
        bits.select(i32x4.min(rounded, most), small, isNormal),
        bits.and(i32x4.right(get(value), 16), sign),
      ),
    ];
  };
  return convert(
    32,
    16,
    (from, to) => store(to, i16x8.narrow(four(load(from)), four(load(from, 16)))),
  );
});

/** Puts numbers of two vectors side by side in turns, from byte `start` of each on. */
const zip = (a: Code, b: Code, size: number, start: number): Code =>
  shuffle(
    a,
    b,
    Array.from({ length: 16 }, (_, byte) => {
      const number = Math.floor(byte / size);
      return number % 2 * 16 + start + (number >> 1) * size + byte % size;
    }),
  );

/**
 * Packs a panel. Squares of n×n numbers, a vector a row, are transposed by zipping vector i with
 * vector i + n/2, log₂ n times.
 */
const pack = (size: 2 | 4): Code =>
  written(3, ({ local }) => {
    const [from, to, columns] = [0, 1, 2];
    const [pitch, end, row, place] = [local(I32), local(I32), local(I32), local(I32)];
    const n = 16 / size;
    const line = PANEL * size;
    const vectors = () => Array.from({ length: n }, () => local(V128));
    const rows = vectors();
    const zips: Code[] = [];
    let lines = rows;
    for (let width = 1; width < n; width *= 2) {
      const before = lines;
      lines = vectors();
      zips.push(lines.map((to, i) => {
        const [a, b] = [before[i >> 1], before[(i >> 1) + n / 2]];
        return set(to, zip(get(a), get(b), size, i % 2 * 8));
      }));
    }
    const square: Code = [
      rows.map((to) => [set(to, load(get(row))), set(row, add(get(row), get(pitch)))]),
      zips,
      lines.map((from, i) => store(get(place), get(from), i * line)),
      set(place, add(get(place), int(16))),
    ];
    return [
      set(pitch, times(get(columns), int(size))),
      set(end, add(get(from), get(pitch))),
      loop([
        set(row, get(from)),
        set(place, get(to)),
        loop(square, below(get(place), add(get(to), int(line)))),
        set(from, add(get(from), int(16))),
        set(to, add(get(to), int(n * line))),
      ], below(get(from), get(end))),
    ];
  });

/** Type (below) and code of each function. */
const FUNCTIONS: Readonly<Record<Exclude<keyof HostKernels, "memory">, readonly [0 | 1, Code]>> = {
  infinite32: [0, infinite(i32x4.add, 0x7f800000, 0x00800000, 0x80000000)],
  infinite16: [0, infinite(i16x8.add, 0x7c007c00, 0x04000400, 0x80008000)],
  widenF16: [1, widenF16],
  widenBf16: [1, widenBf16],
  narrow: [1, narrow],
  pack32: [1, pack(4)],
  pack16: [1, pack(2)],
};

const TYPES: readonly Code[] = [
  [0x60, list([[I32], [I32]]), list([[I32]])],
  [0x60, list([[I32], [I32], [I32]]), list([])],
];

function moduleBytes(): Uint8Array<ArrayBuffer> {
  const functions = Object.entries(FUNCTIONS);
  return Uint8Array.from(flat([
    [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    section(1, TYPES),
    section(2, [[text("host"), text("memory"), 2, 0, 0]]),
    section(3, functions.map(([, [type]]) => [type])),
    section(7, functions.map(([name], i) => [text(name), 0, i])),
    section(10, functions.map(([, [, code]]) => code)),
  ]));
}

let compiled: Promise<WebAssembly.Module | null> | undefined;

/**
 * The kernels on a fresh memory of at least `bytes`; packing takes multiples of
 * {@link PACK_COLUMNS} columns only. `null` where the runtime has no vectors, or the security
 * policy of a page forbids WebAssembly.
 */
export async function vectorKernels(bytes: number): Promise<HostKernels | null> {
  compiled ??= (async () => await WebAssembly.compile(moduleBytes()))().catch(() => null);
  const module = await compiled;
  if (!module) return null;
  const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) });
  const { exports } = await WebAssembly.instantiate(module, { host: { memory } });
  const functions = exports as unknown as Omit<HostKernels, "memory">;
  return { ...functions, memory: memory.buffer as ArrayBuffer };
}
