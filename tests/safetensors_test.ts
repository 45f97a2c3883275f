/**
 * The safetensors reader: round trips, conversions, and files made to do harm.
 *
 * @module
 */

import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import fc from "fast-check";
import type { ByteSource } from "../core/byte_source.ts";
import { InputError, WeightError } from "../core/errors.ts";
import {
  encodeSafetensors,
  openSafetensors,
  type SafetensorsDType,
  type TensorData,
  writeSafetensors,
} from "../core/safetensors.ts";
import { assertHolds, inFolder, sample, sizes } from "./safetensors_setup.ts";

const utf8 = new TextEncoder();

/** A file of this header text and data, padded by nothing. */
function fileOf(header: string | Uint8Array, data = new Uint8Array(0)): Uint8Array {
  const text = typeof header === "string" ? utf8.encode(header) : header;
  const out = new Uint8Array(8 + text.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(text.length), true);
  out.set(text, 8);
  out.set(data, 8 + text.length);
  return out;
}

function entry(dtype: string, shape: unknown, offsets: unknown): string {
  return JSON.stringify({ dtype, shape, data_offsets: offsets });
}

async function rejects(
  file: Uint8Array | Blob | string | ByteSource,
  message: RegExp,
  kind: typeof WeightError | typeof InputError = WeightError,
): Promise<void> {
  await assert.rejects(openSafetensors(file), (error) => {
    assert.ok(error instanceof kind, `${error}`);
    assert.match(error.message, message);
    assert.ok(error.message.length < 1000, "a message must stay short");
    return true;
  });
}

describe("safetensors: round trips", () => {
  it("bytes, Blob, path, file URL and a caller's source all read the same", async () => {
    const bytes = encodeSafetensors(sample, { format: "pt", note: "y" });
    await inFolder(async (folder) => {
      const path = join(folder, "sample.safetensors");
      await writeSafetensors(path, sample, { format: "pt", note: "y" });
      assert.deepEqual(new Uint8Array(await readFile(path)), bytes);
      assert.deepEqual(await readdir(folder), ["sample.safetensors"]);
      const own: ByteSource = {
        name: "own",
        size: bytes.length,
        read: (offset, length) => Promise.resolve(bytes.subarray(offset, offset + length)),
        close: () => Promise.resolve(),
      };
      const url = pathToFileURL(path);
      for (const source of [bytes, new Blob([bytes.slice()]), path, url, url.href, own]) {
        await assertHolds(source, sample, { format: "pt", note: "y" });
      }
    });
  });

  it("random tensors come back", async () => {
    const dtypes = Object.keys(sizes).filter((key): key is SafetensorsDType => key in sizes);
    const tensor = fc.record({
      name: fc.oneof(fc.string({ unit: "grapheme" }), fc.constantFrom("__proto__", "constructor"))
        .filter((name) => name !== "__metadata__"),
      dtype: fc.constantFrom(...dtypes),
      shape: fc.array(fc.nat(4), { maxLength: 4 }),
      seed: fc.nat(255),
    }).map(({ name, dtype, shape, seed }): TensorData => {
      const count = shape.reduce((product, extent) => product * extent, sizes[dtype]);
      return { name, dtype, shape, data: new Uint8Array(count).map((_, i) => seed + 31 * i) };
    });
    const list = fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 8 });
    const metadata = fc.dictionary(fc.string(), fc.string(), { noNullPrototype: true });
    await fc.assert(
      fc.asyncProperty(list, metadata, async (tensors, meta) => {
        await assertHolds(encodeSafetensors(tensors, meta), tensors, meta);
      }),
      { numRuns: 200 },
    );
  });

  it("a file without tensors, and names that every object has", async () => {
    await assertHolds(fileOf("{}"), [], {});
    const header = `{"__metadata__":{"__proto__":"x"},"__proto__":${entry("U8", [1], [0, 1])}}`;
    const file = await openSafetensors(fileOf(header, new Uint8Array([9])));
    assert.deepEqual([...file.tensors.keys()], ["__proto__"]);
    assert.deepEqual(await file.readInts("__proto__"), new Int32Array([9]));
    assert.deepEqual(Object.keys(file.metadata), ["__proto__"]);
    assert.equal(file.metadata.constructor, undefined);
  });

  it("reads a reference file, offsets absolute", async () => {
    const path = fileURLToPath(new URL("./golden/rng.safetensors", import.meta.url));
    const file = await openSafetensors(path);
    assert.equal(file.name, path);
    assert.equal(file.metadata.format, "pt");
    const bytes = await readFile(path);
    const { begin, end, shape } = file.tensors.get("randn_0_5/y") ?? assert.fail();
    assert.deepEqual(shape, [5]);
    assert.deepEqual(await file.read("randn_0_5/y"), new Uint8Array(bytes.subarray(begin, end)));
    await file.close();
    await assert.rejects(file.read("randn_0_5/y"), InputError);
  });

  it("offsets beyond 4 GiB", async () => {
    const big = 5 * 2 ** 30;
    const head = fileOf(
      `{"big":${entry("U8", [big], [0, big])},"x":${entry("U8", [2], [big, big + 2])}}`,
    );
    const asked: number[][] = [];
    const file = await openSafetensors({
      name: "virtual",
      size: head.length + big + 2,
      read: (offset, length) => {
        asked.push([offset, length]);
        return Promise.resolve(
          offset < head.length ? head.slice(offset, offset + length) : new Uint8Array([3, 4]),
        );
      },
      close: () => Promise.resolve(),
    });
    assert.deepEqual(await file.readInts("x"), new Int32Array([3, 4]));
    assert.deepEqual(asked.at(-1), [head.length + big, 2]);
  });
});

describe("safetensors: conversions", () => {
  const one = async (dtype: SafetensorsDType, data: ArrayBufferView) => {
    const shape = [data.byteLength / sizes[dtype]];
    return await openSafetensors(encodeSafetensors([{ name: "x", dtype, shape, data }]));
  };
  const floats = async (dtype: SafetensorsDType, data: ArrayBufferView) =>
    Array.from(await (await one(dtype, data)).readF32("x"));
  const ints = async (dtype: SafetensorsDType, data: ArrayBufferView) =>
    Array.from(await (await one(dtype, data)).readInts("x"));

  it("every floating-point type", async () => {
    assert.deepEqual(await floats("F32", new Float32Array([1.5, -Infinity])), [1.5, -Infinity]);
    assert.deepEqual(await floats("F64", new Float64Array([0.1, 1e300])), [
      Math.fround(0.1),
      Infinity,
    ]);
    assert.deepEqual(await floats("F16", new Uint16Array([0x3c00, 0xc500, 1])), [1, -5, 2 ** -24]);
    assert.deepEqual(await floats("BF16", new Uint16Array([0x3f80, 0xc0a0])), [1, -5]);
    const e4m3 = new Uint8Array([0x00, 0x01, 0x07, 0x08, 0x38, 0xc4, 0x7e, 0x7f, 0xff]);
    const want = [0, 2 ** -9, 7 * 2 ** -9, 2 ** -6, 1, -3, 448, NaN, NaN];
    assert.deepEqual(await floats("F8_E4M3", e4m3), want);
    const e5m2 = new Uint8Array([0x01, 0x3c, 0xc5, 0x7b, 0x7c, 0x7f]);
    assert.deepEqual(await floats("F8_E5M2", e5m2), [2 ** -16, 1, -5, 57344, Infinity, NaN]);
  });

  it("every integer type", async () => {
    assert.deepEqual(await ints("I64", new BigInt64Array([-1n, 77n])), [-1, 77]);
    assert.deepEqual(await ints("U64", new BigUint64Array([2147483647n])), [2147483647]);
    assert.deepEqual(await ints("I32", new Int32Array([-(2 ** 31)])), [-(2 ** 31)]);
    assert.deepEqual(await ints("U32", new Uint32Array([5])), [5]);
    assert.deepEqual(await ints("I16", new Int16Array([-300])), [-300]);
    assert.deepEqual(await ints("U16", new Uint16Array([65535])), [65535]);
    assert.deepEqual(await ints("I8", new Int8Array([-128])), [-128]);
    assert.deepEqual(await ints("U8", new Uint8Array([200])), [200]);
    assert.deepEqual(await ints("BOOL", new Uint8Array([0, 1])), [0, 1]);
  });

  it("values that do not fit, wrong kinds and unknown names are told", async () => {
    const wide: [SafetensorsDType, ArrayBufferView][] = [
      ["I64", new BigInt64Array([2n ** 31n])],
      ["I64", new BigInt64Array([-(2n ** 62n)])],
      ["U64", new BigUint64Array([2n ** 64n - 1n])],
      ["U32", new Uint32Array([2 ** 31])],
    ];
    for (const [dtype, data] of wide) {
      await assert.rejects(
        ints(dtype, data),
        /tensor "x": values must fit into 32 bits, got -?\d+/,
      );
    }
    const f32 = await one("F32", new Float32Array(1));
    await assert.rejects(f32.readInts("x"), /needs an integer dtype, got F32; use readF32/);
    const i64 = await one("I64", new BigInt64Array(1));
    await assert.rejects(i64.readF32("x"), /needs a floating-point dtype, got I64; use readInts/);
    await assert.rejects(i64.read("y"), (error) => {
      assert.ok(error instanceof WeightError);
      assert.match(error.message, /there is no tensor "y" among its 1 \("x"\)/);
      return true;
    });
  });
});

describe("safetensors: damaged and hostile files", () => {
  const withLength = (length: bigint): Uint8Array => {
    const bytes = encodeSafetensors(sample);
    new DataView(bytes.buffer).setBigUint64(0, length, true);
    return bytes;
  };
  const pair = (a: string, b: string) => `{"a":${a},"b":${b}}`;

  const files: [string, Uint8Array, RegExp][] = [
    ["an empty file", new Uint8Array(0), /8 bytes of header length, got an empty file/],
    ["7 bytes", new Uint8Array(7), /8 bytes of header length, got 7 bytes/],
    ["header length 0", withLength(0n), /between 1 and 100000000 bytes, got a header length of 0/],
    ["header length > 100 MB", withLength(100_000_001n), /between 1 and 100000000/],
    ["header length > 2^53", withLength(2n ** 64n - 1n), /header length of 18446744073709551615/],
    ["header length > file", withLength(99_999_999n), /must end inside the file, which has \d+/],
    ["not UTF-8", fileOf(new Uint8Array([0x7b, 0xff, 0x7d])), /must be UTF-8/],
    ["a byte order mark", fileOf("\ufeff{}"), /must begin with "\{", got "\ufeff"/],
    ["a list", fileOf("[]"), /must begin with "\{", got "\["/],
    ["leading space", fileOf(" {}"), /must begin with "\{", got " "/],
    ["not JSON", fileOf('{"a":}'), /must be JSON \(/],
    ["deep nesting", fileOf('{"a":' + "[".repeat(200_000) + "]".repeat(200_000) + "}"), /./],
    ["a tensor twice", fileOf(`{"a":1,"\\u0061":2}`), /names .* unique, got "a" twice/],
    ["a field twice", fileOf(`{"a":{"shape":[],"shape":[]}}`), /unique, got "shape" twice/],
    [
      "a string for a tensor",
      fileOf('{"a":"b"}'),
      /tensor "a": an entry must be an object, got "b"/,
    ],
    ["null for a tensor", fileOf('{"a":null}'), /an entry must be an object, got null/],
    ["a missing field", fileOf('{"a":{"dtype":"U8","shape":[0]}}'), /data_offsets is needed/],
    [
      "an extra field",
      fileOf('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}}'),
      /has the fields dtype, shape, data_offsets, got "x"/,
    ],
    ["an unknown dtype", fileOf(`{"a":${entry("F4", [0], [0, 0])}}`), /one of F64, .* got "F4"/],
    ["a prototype dtype", fileOf(`{"a":${entry("toString", [0], [0, 0])}}`), /got "toString"/],
    ["a negative extent", fileOf(`{"a":${entry("U8", [-1], [0, 0])}}`), /shape must .* got \[-1\]/],
    ["a fraction", fileOf(`{"a":${entry("U8", [0.5], [0, 0])}}`), /shape must .* got \[0.5\]/],
    ["a shape of text", fileOf(`{"a":${entry("U8", "3", [0, 0])}}`), /shape must .* got "3"/],
    [
      "an overflowing shape",
      fileOf(`{"a":${entry("F32", [2 ** 40, 2 ** 40], [0, 0])}}`),
      /span the more than 2\^53 bytes of F32/,
    ],
    [
      "an infinite extent",
      fileOf('{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,0]}}'),
      /shape must .* got \[Infinity\]/,
    ],
    ["one offset", fileOf(`{"a":${entry("U8", [0], [0])}}`), /two whole numbers.* got \[0\]/],
    ["begin > end", fileOf(`{"a":${entry("U8", [1], [1, 0])}}`), /begin <= end, got \[1, 0\]/],
    ["a negative offset", fileOf(`{"a":${entry("U8", [1], [-1, 0])}}`), /got \[-1, 0\]/],
    [
      "bytes that do not fit the shape",
      fileOf(`{"a":${entry("F32", [2], [0, 4])}}`, new Uint8Array(4)),
      /span the 8 bytes of F32 \[2\], got \[0, 4\]/,
    ],
    [
      "an overlap",
      fileOf(pair(entry("U8", [2], [0, 2]), entry("U8", [2], [1, 3])), new Uint8Array(3)),
      /tensor "b": data must begin where tensor "a" ends, .*an overlap/,
    ],
    [
      "a hole",
      fileOf(pair(entry("U8", [1], [0, 1]), entry("U8", [1], [2, 3])), new Uint8Array(3)),
      /tensor "b": data must begin where tensor "a" ends, .*a hole/,
    ],
    [
      "a hole at the start",
      fileOf(`{"a":${entry("U8", [1], [1, 2])}}`, new Uint8Array(2)),
      /data must begin where the header ends/,
    ],
    [
      "trailing bytes",
      fileOf(`{"a":${entry("U8", [1], [0, 1])}}`, new Uint8Array(2)),
      /bytes that belong to no tensor/,
    ],
    [
      "data cut short",
      fileOf(`{"a":${entry("U8", [9], [0, 9])}}`, new Uint8Array(8)),
      /must end where tensor "a" ends.*cut short/,
    ],
    ["metadata of numbers", fileOf('{"__metadata__":{"a":1}}'), /hold strings, got 1 for "a"/],
    ["a metadata list", fileOf('{"__metadata__":["a"]}'), /object of strings, got \["a"\]/],
    ["a name of a megabyte", fileOf(`{"${"n".repeat(1e6)}":1}`), /tensor "n+"…: an entry/],
    [
      "a zipped pickle",
      utf8.encode("PK\u0003\u0004\0\0\u0008\u0008 archive/data.pkl"),
      /is a pickle .* convert it to safetensors: python -c ".*weights_only=True.*save_file/,
    ],
    ["a bare pickle", new Uint8Array([0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46]), /is a pickle/],
    [
      "a Git LFS pointer",
      utf8.encode("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n"),
      /Git LFS pointer.*git lfs pull/,
    ],
  ];
  for (const [what, bytes, message] of files) {
    it(what, () => rejects(bytes, message));
  }

  it("a header of 0x0280 bytes is no pickle", async () => {
    const header = "{}".padEnd(0x280);
    assert.deepEqual([...fileOf(header).subarray(0, 2)], [0x80, 2]);
    await assertHolds(fileOf(header), [], {});
  });

  it("every truncation is rejected", async () => {
    const bytes = encodeSafetensors(sample, { format: "pt" });
    for (let length = 0; length < bytes.length; length++) {
      await rejects(bytes.subarray(0, length), /bytes in memory: .*; .+/);
    }
  });

  it("random damage gives a WeightError or a sound file, and asks for no huge reads", async () => {
    const bytes = encodeSafetensors(sample, { format: "pt" });
    const header = Number(new DataView(bytes.buffer).getBigUint64(0, true)) + 8;
    const damage = fc.array(fc.tuple(fc.nat(header - 1), fc.nat(255)), {
      minLength: 1,
      maxLength: 3,
    });
    await fc.assert(
      fc.asyncProperty(damage, async (changes) => {
        const damaged = bytes.slice();
        for (const [at, value] of changes) damaged[at] = value;
        const source: ByteSource = {
          name: "damaged",
          size: damaged.length,
          read: (offset, length) => {
            assert.ok(offset >= 0 && offset + length <= damaged.length);
            return Promise.resolve(damaged.slice(offset, offset + length));
          },
          close: () => Promise.resolve(),
        };
        try {
          const file = await openSafetensors(source);
          for (const name of file.tensors.keys()) await file.read(name);
        } catch (error) {
          assert.ok(error instanceof WeightError, `${error}`);
        }
      }),
      { numRuns: 3000 },
    );
  });

  it("a source that gives fewer bytes than asked for", async () => {
    let closed = 0;
    await rejects({
      name: "short",
      size: 100,
      read: () => Promise.resolve(new Uint8Array(3)),
      close: () => Promise.resolve(void closed++),
    }, /short: 64 bytes at 0 are needed, the source gave 3/);
    assert.equal(closed, 1, "a source that cannot be opened is closed");
  });
});
