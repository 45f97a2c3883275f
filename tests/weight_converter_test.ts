/**
 * Converting weights on the host: vectors and plain JavaScript give the same bits for every type,
 * and both those of the definitions.
 *
 * @module
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import {
  bf16ArrayToF32,
  e4m3ArrayToF32,
  e5m2ArrayToF32,
  f16ArrayToF32,
  f32ArrayToF16,
} from "../core/dtype.ts";
import type { SafetensorsDType } from "../core/safetensors.ts";
import { panelShape } from "../kernels/panels.ts";
import { scalarKernels } from "../models/host_kernels.ts";
import { vectorKernels } from "../models/host_simd.ts";
import { Converter, isConvertible, type Rows } from "../models/weight_converter.ts";

/** The numbers of stored bytes, as `core/dtype.ts` reads them. */
const decoders: Partial<Record<SafetensorsDType, (bytes: ArrayBuffer) => Float32Array>> = {
  F64: (bytes) => new Float32Array(new Float64Array(bytes)),
  F32: (bytes) => new Float32Array(bytes),
  F16: (bytes) => f16ArrayToF32(new Uint16Array(bytes)),
  BF16: (bytes) => bf16ArrayToF32(new Uint16Array(bytes)),
  F8_E4M3: (bytes) => e4m3ArrayToF32(new Uint8Array(bytes)),
  F8_E5M2: (bytes) => e5m2ArrayToF32(new Uint8Array(bytes)),
};

/** Numbers that every type can hold exactly or nearly, with zeros and very small ones. */
function numbers(count: number, seed: number): Float64Array {
  let state = seed;
  return new Float64Array(count).map((_, i) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * 2 ** -(i % 27) * (i % 11 ? 1 : 0);
  });
}

function encoded(stored: SafetensorsDType, count: number, seed: number): Uint8Array<ArrayBuffer> {
  const values = numbers(count, seed);
  if (stored === "F64") return new Uint8Array(values.buffer as ArrayBuffer);
  const f32 = new Float32Array(values);
  if (stored === "F32") return new Uint8Array(f32.buffer);
  if (stored === "F16") return new Uint8Array(f32ArrayToF16(f32).buffer);
  const words = new Uint32Array(f32.buffer);
  if (stored === "BF16") return new Uint8Array(Uint16Array.from(words, (w) => w >>> 16).buffer);
  // Bytes whose exponent is not all ones: finite in both types.
  return Uint8Array.from(words, (w) => (w >>> 24 & 0x80) | (w >>> 9 & 0x77));
}

/** Panels by their definition: output 32p + i of input k lies at [p, k, i]. */
function inPanels(values: ArrayLike<number>, rows: number, columns: number): number[] {
  const [panels, depth, width] = panelShape(rows, columns);
  return Array.from({ length: panels * depth * width }, (_, at) => {
    const [i, k] = [at % width, Math.floor(at / width) % depth];
    const row = Math.floor(at / width / depth) * width + i;
    return row < rows && k < columns ? values[row * columns + k] : 0;
  });
}

function read(converter: Converter, bytes: Uint8Array): Uint8Array {
  const slot = converter.slot(bytes.length);
  slot.set(bytes);
  return slot;
}

const stores = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"] as const;
const shapes = [[1, 1], [32, 8], [7, 3], [40, 36], [33, 27], [96, 64], [320, 1], [1001, 1]];

describe("weights on the host", () => {
  for (const vectors of [true, false]) {
    for (const stored of stores) {
      for (const wanted of ["f16", "f32"] as const) {
        it(`${stored} to ${wanted}, ${vectors ? "vectors" : "plain"}: every bit`, async () => {
          const all = shapes.map(([rows, columns]): Rows => ({ stored, wanted, rows, columns }));
          const converter = await Converter.of(all, vectors);
          for (const [seed, of] of all.entries()) {
            const { rows, columns } = of;
            const bytes = encoded(stored, rows * columns, seed);
            const f32 = decoders[stored]!(bytes.buffer);
            const bits = wanted === "f16" ? f32ArrayToF16(f32) : new Uint32Array(f32.buffer);
            for (const packed of [false, true]) {
              const got = converter.convert(of, read(converter, bytes), packed) ?? assert.fail();
              const gotBits = got instanceof Uint16Array
                ? got
                : new Uint32Array(got.buffer, got.byteOffset, got.length);
              const want = packed ? inPanels(bits, rows, columns) : Array.from(bits);
              assert.deepEqual(Array.from(gotBits), want, `[${rows}, ${columns}]`);
            }
          }
        });
      }
    }

    it(`numbers that are not finite, ${vectors ? "vectors" : "plain"}`, async () => {
      const rows = 65;
      const bad: [SafetensorsDType, number[]][] = [
        ["F16", [0x7c00, 0xfc00, 0x7c01, 0xffff]],
        ["BF16", [0x7f80, 0xff80, 0x7f81, 0xffff]],
      ];
      for (const [stored, patterns] of bad) {
        for (const wanted of ["f16", "f32"] as const) {
          const of = { stored, wanted, rows, columns: 1 };
          const converter = await Converter.of([of], vectors);
          for (const pattern of patterns) {
            for (const at of [0, 7, 8, 31, 64]) {
              const halves = new Uint16Array(rows);
              assert.ok(
                converter.convert(of, read(converter, new Uint8Array(halves.buffer)), true),
              );
              halves[at] = pattern;
              const slot = read(converter, new Uint8Array(halves.buffer));
              assert.equal(converter.convert(of, slot, false), null, `${pattern} at ${at}`);
            }
          }
        }
      }
      const tooLarge = { stored: "F32", wanted: "f16", rows: 1, columns: 1 } as const;
      const converter = await Converter.of([tooLarge], vectors);
      const convert = (value: number) =>
        converter.convert(
          tooLarge,
          read(converter, new Uint8Array(new Float32Array([value]).buffer)),
          false,
        );
      assert.deepEqual(convert(65519), new Uint16Array([0x7bff]));
      for (const value of [65520, -1e30, Infinity, NaN]) assert.equal(convert(value), null);
    });
  }

  it("types that are no floating-point numbers", () => {
    assert.deepEqual(
      ["F16", "I64", "BOOL", "U8"].map((t) => isConvertible(t as SafetensorsDType)),
      [
        true,
        false,
        false,
        false,
      ],
    );
  });

  it("two slots: what is read next does not touch what was read", async () => {
    const of = { stored: "F16", wanted: "f16", rows: 32, columns: 8 } as const;
    const converter = await Converter.of([of]);
    const first = converter.slot(512).fill(1);
    converter.slot(512).fill(2);
    assert.deepEqual(converter.convert(of, first, false), new Uint16Array(256).fill(0x0101));
  });
});

describe("vectors", () => {
  it("widen all halves", async () => {
    const kernels = await vectorKernels(2 ** 19) ?? assert.fail("no WebAssembly");
    const halves = Uint16Array.from({ length: 65536 }, (_, i) => i);
    new Uint16Array(kernels.memory, 0, 65536).set(halves);
    kernels.widenF16(0, 2 ** 17, 2 ** 17);
    const want = new Uint32Array(f16ArrayToF32(halves).buffer);
    const got = new Uint32Array(kernels.memory, 2 ** 17, 65536);
    assert.ok(want.every((word, i) => (i & 0x7c00) === 0x7c00 || word === got[i]));
    kernels.widenBf16(0, 2 ** 17, 2 ** 17);
    assert.ok(got.every((word, i) => word === i << 16 >>> 0));
  });

  it("round any f32 as plain JavaScript does", async () => {
    const kernels = await vectorKernels(2 ** 16) ?? assert.fail("no WebAssembly");
    const words = new Uint32Array(kernels.memory, 0, 32);
    const plain = scalarKernels(new ArrayBuffer(256));
    const finite = fc.integer({ min: 0, max: 0x7f7fffff });
    // Near ties and near the limits of normal and finite halves.
    const edge = fc.constantFrom(0x33000000, 0x38800000, 0x47800000, 0x477ff000, 0x3f801000);
    const near = fc.tuple(edge, fc.integer({ min: -2, max: 2 })).map(([word, by]) => word + by);
    const signed = fc.tuple(fc.oneof(finite, near), fc.boolean())
      .map(([word, minus]) => (word | (minus ? 0x80000000 : 0)) >>> 0);
    fc.assert(
      fc.property(fc.array(signed, { minLength: 32, maxLength: 32 }), (array) => {
        words.set(array);
        new Uint32Array(plain.memory, 0, 32).set(array);
        kernels.narrow(0, 128, 128);
        plain.narrow(0, 128, 128);
        assert.deepEqual(
          new Uint16Array(kernels.memory, 128, 32),
          new Uint16Array(plain.memory, 128, 32),
        );
      }),
      { numRuns: 2000 },
    );
  });
});
