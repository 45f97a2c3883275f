/**
 * The engine: tensors, scopes, the pool, recording, profiling, errors.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { type Device, openDevice } from "../core/device.ts";
import { GpuError, ShapeError } from "../core/errors.ts";
import type { TapeEntry } from "../core/kernel.ts";
import { sizeClass } from "../core/buffer_pool.ts";
import { Generator } from "../core/random.ts";
import { add, assign, linearCombination, matmul, mul, narrow } from "../kernels/mod.ts";

const device = await openDevice();
after(() => device.close());

const MiB = 2 ** 20;

describe("tensors", () => {
  it("keep f32, i32, u32 and f16 elements", async () => {
    const f = device.tensor([1.5, -2, 3], [3]);
    assert.deepEqual(await f.data(), Float32Array.of(1.5, -2, 3));
    const i = device.tensor(Int32Array.of(-7, 8), [2, 1]);
    assert.deepEqual(await i.raw(), Int32Array.of(-7, 8));
    const u = device.tensor(Uint32Array.of(4e9), []);
    assert.deepEqual(await u.raw(), Uint32Array.of(4e9));
    for (const t of [f, i, u]) t.dispose();
    if (!device.info.f16) return;
    const h = device.tensor([0.1, 65504, 2 ** -24], [3], "f16");
    assert.deepEqual([...await h.data()], [0.0999755859375, 65504, 2 ** -24]);
    h.dispose();
  });

  it("share memory with their reshapes", async () => {
    const before = device.memory().live;
    const a = device.tensor([1, 2, 3, 4, 5, 6], [2, 3]);
    const b = a.reshape([3, -1]);
    assert.deepEqual(b.shape, [3, 2]);
    a.dispose();
    assert.deepEqual([...await b.data()], [1, 2, 3, 4, 5, 6]);
    b.dispose();
    assert.equal(device.memory().live, before);
  });

  it("can be written in the order of the work", async () => {
    const x = device.tensor([1, 2, 3, 4], [4]);
    const doubled = mul(x, 2);
    device.write(x, [5, 6, 7, 8]); // the product above must still see the old elements
    const tripled = mul(x, 3);
    assert.deepEqual([...await doubled.data()], [2, 4, 6, 8]);
    assert.deepEqual([...await tripled.data()], [15, 18, 21, 24]);
    for (const t of [x, doubled, tripled]) t.dispose();
  });

  it("of odd half-precision length are written and read whole", async () => {
    if (!device.info.f16) return assert.equal(device.info.f16, false);
    for (const n of [1, 3, 5]) {
      const values = Array.from({ length: n }, (_, i) => i + 0.5);
      const t = device.tensor(values, [n], "f16");
      assert.deepEqual([...await t.data()], values);
      t.dispose();
    }
  });

  it("refuse shapes that do not hold their elements", () => {
    assert.throws(() => device.tensor([1, 2, 3], [2, 2]), ShapeError);
    assert.throws(() => device.empty([0, 3]), /at least 1/);
    assert.throws(() => device.empty([1.5]), ShapeError);
    assert.throws(() => device.empty([NaN]), ShapeError);
    const t = device.tensor([1, 2, 3, 4], [4]);
    assert.throws(() => t.reshape([3, -1]), /cannot hold the tensor's 4 elements/);
    assert.throws(() => device.write(t, [1]), /takes 4 elements, but 1 came/);
    t.dispose();
  });

  it("cannot be used after their end", async () => {
    const t = device.tensor([1], [1]);
    t.dispose();
    t.dispose(); // twice is harmless
    assert.throws(() => add(t, 1), /was disposed of/);
    await assert.rejects(t.data(), GpuError);
  });
});

describe("scopes", () => {
  it("free what was made inside, except the result", async () => {
    const before = device.memory().live;
    const kept = device.scope(() => {
      const a = device.tensor([1, 2], [2]);
      return { sum: add(a, 1), list: [mul(a, 3)] };
    });
    assert.deepEqual([...await kept.sum.data()], [2, 3]);
    assert.deepEqual([...await kept.list[0].data()], [3, 6]);
    kept.sum.dispose();
    kept.list[0].dispose();
    assert.equal(device.memory().live, before);
  });

  it("nest, and pass results outwards", () => {
    const before = device.memory().live;
    device.scope(() => {
      const inner = device.scope(() => add(device.tensor([1], [1]), 1));
      assert.equal(inner.disposed, false);
    });
    assert.equal(device.memory().live, before);
  });

  it("free everything when their body throws", () => {
    const before = device.memory().live;
    assert.throws(() =>
      device.scope(() => {
        device.tensor([1], [1]);
        throw new Error("stop");
      }), /stop/);
    assert.equal(device.memory().live, before);
  });

  it("work with using, and keep() takes a tensor out", async () => {
    const before = device.memory().live;
    const kept = (() => {
      using scope = device.scope();
      const a = device.tensor([1], [1]);
      const b = add(a, 1);
      scope.keep(b);
      return b;
    })();
    using own = device.scope(() => device.tensor([4], [1]).keep());
    assert.deepEqual([...await kept.data()], [2]);
    assert.deepEqual([...await own.data()], [4]);
    kept.dispose();
    own.dispose();
    assert.equal(device.memory().live, before);
  });

  it("refuse asynchronous bodies and crossed ends", () => {
    assert.throws(() => device.scope(() => Promise.resolve()), /must not be asynchronous/);
    const outer = device.scope();
    const inner = device.scope();
    assert.throws(() => outer[Symbol.dispose](), /reverse order/);
    inner[Symbol.dispose]();
    outer[Symbol.dispose]();
  });
});

describe("the pool", () => {
  it("rounds sizes up by at most an eighth", () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 2 ** 31 }), (bytes) => {
      const size = sizeClass(bytes);
      assert.ok(size >= bytes && size % 256 === 0);
      assert.ok(bytes <= 4096 || size <= bytes * 1.125 + 256);
      assert.equal(sizeClass(size), size);
    }));
  });

  it("reuses buffers, and gives idle ones back beyond its cap", async () => {
    using small = await openDevice({ poolBytes: MiB });
    const a = small.empty([MiB / 8]);
    const { buffer } = a.storage;
    a.dispose();
    const b = small.empty([MiB / 8]);
    assert.equal(b.storage.buffer, buffer);
    b.dispose();
    const many = Array.from({ length: 4 }, () => small.empty([MiB / 8]));
    for (const t of many) t.dispose();
    assert.ok(small.memory().pooled <= MiB);
    assert.equal(small.memory().live, 0);
    small.trim();
    assert.deepEqual([small.memory().pooled, small.memory().buffers], [0, 0]);
  });

  it("keeps a budget: idle buffers go first, then an error says what is missing", async () => {
    using tight = await openDevice({ memoryBudget: 4 * MiB });
    tight.empty([3 * MiB / 4]).dispose(); // 3 MiB idle
    const a = tight.empty([MiB / 2]); // 2 MiB fit only after the idle ones are gone
    assert.equal(tight.memory().pooled, 0);
    assert.throws(() => tight.empty([MiB]), /f32 tensor of shape 1048576.*4\.0 MiB.*budget/s);
    a.dispose();
    tight.empty([MiB]).dispose();
  });

  it("refuses buffers and bindings beyond the adapter's limits, naming both", () => {
    const { maxBufferSize, maxStorageBufferBindingSize } = device.gpu.limits;
    assert.throws(
      () => device.empty([Math.floor(maxBufferSize / 4) + 1]),
      /needs a buffer of .* and this adapter allows/,
    );
    if (maxBufferSize < maxStorageBufferBindingSize + MiB) return;
    const big = device.empty([maxStorageBufferBindingSize / 4 + 4]);
    assert.throws(() => linearCombination([1], [big]), /larger than the \d+ bytes/);
    big.dispose();
    device.trim();
  });
});

describe("work near the limit of a binding", () => {
  it("is right up to the last element", async () => {
    const n = Math.min(device.gpu.limits.maxStorageBufferBindingSize, 128 * MiB) / 4;
    const x = device.empty([n]);
    const last = device.tensor([41], [1]);
    assign(x, last, n - 1);
    const y = linearCombination([1], [x]);
    const end = narrow(y, 0, n - 1, 1);
    assert.deepEqual([...await add(end, 1).data()], [42]);
    for (const t of [x, last, y]) t.dispose();
    device.trim();
  });
});

describe("recording", () => {
  it("replays work on changed inputs, with the same result as running it", async () => {
    const random = new Generator(3);
    const weight = device.tensor(random.randn([24, 24]), [24, 24]);
    const input = device.tensor(random.randn([24, 24]), [24, 24]);
    const work = () => {
      const h = matmul(input, weight);
      return add(matmul(h, weight), mul(h, 0.5));
    };
    const before = device.memory();
    const plan = device.record(work);
    for (let i = 0; i < 3; i++) {
      device.write(input, random.randn([24, 24]));
      plan.run();
      const replayed = await plan.result.data();
      const direct = device.scope(work);
      assert.deepEqual(replayed, await direct.data());
      direct.dispose();
    }
    plan.dispose();
    assert.equal(device.memory().live, before.live);
    assert.equal(plan.result.disposed, true);
    for (const t of [weight, input]) t.dispose();
  });

  it("keeps what it uses alive, and shares buffers through an arena", async () => {
    const x = device.tensor([1, 2], [2]);
    const arena = device.arena();
    const first = device.record(() => add(mul(x, 2), 1), arena);
    const second = device.record(() => add(mul(x, 3), 1), arena);
    x.dispose(); // the plans still hold it
    first.run();
    assert.deepEqual([...await first.result.data()], [3, 5]);
    second.run();
    assert.deepEqual([...await second.result.data()], [4, 7]);
    first.dispose();
    second.dispose();
  });

  it("leaves nothing behind when it fails", () => {
    const before = device.memory().live;
    assert.throws(() =>
      device.record(() => {
        device.empty([4]);
        throw new Error("stop");
      }), /stop/);
    assert.throws(() => device.record(() => device.record(() => null)), /being recorded/);
    assert.equal(device.memory().live, before);
  });
});

describe("the device", () => {
  it("tells the tape every operation", () => {
    const seen: TapeEntry[] = [];
    device.tape = (entry) => seen.push(entry);
    device.scope(() => {
      const a = device.tensor([1, 2, 3, 4], [2, 2]);
      matmul(add(a, a), a);
    });
    device.tape = null;
    assert.deepEqual(seen.map(({ kernel }) => kernel.name), ["add", "matmul"]);
    assert.equal(seen[1].inputs[0], seen[0].output);
  });

  it("profiles by operation", async () => {
    const a = device.tensor(new Float32Array(64 * 64), [64, 64]);
    const rows = await device.profile(() => {
      device.scope(() => {
        matmul(a, a);
        matmul(a, a);
        add(a, a);
      });
    });
    const row = rows.find(({ name }) => name === "matmul");
    assert.equal(row?.calls, 2);
    assert.equal(row?.flops, 2 * 2 * 64 ** 3);
    assert.equal(row?.bytes, 2 * 3 * 64 * 64 * 4);
    if (device.info.timestamps) assert.ok((row?.milliseconds ?? 0) > 0);
    else assert.equal(row?.milliseconds, null);
    a.dispose();
  });

  it("compiles a pipeline once for all shapes", () => {
    device.scope(() => {
      const pipelines = () => device.counts().pipelines;
      const of = (n: number) => device.tensor(new Float32Array(n), [n]);
      linearCombination([1, 2], [of(8), of(8)]);
      const before = pipelines();
      linearCombination([3, 4], [of(4096), of(4096)]);
      assert.equal(pipelines(), before);
    });
  });

  it("reports a shader that does not compile, with the kernel's name", async () => {
    using broken = await openDevice();
    const out = broken.empty([4]);
    broken.dispatch("broken", {
      variant: "",
      read: {},
      write: { out: { tensor: out, type: "f32" } },
      params: {},
      workgroup: [1, 1, 1],
      workgroups: [1, 1, 1],
      main: () => "this is no shader",
    });
    await assert.rejects(broken.sync(), /broken/);
  });

  it("reports its loss to whoever waits or works", async () => {
    const lost: Device = await openDevice();
    const t = lost.tensor([1], [1]);
    const waiting = assert.rejects(t.data(), GpuError);
    lost.gpu.destroy();
    await waiting;
    await assert.rejects(lost.sync(), /lost|closed/);
    assert.throws(() => lost.empty([1]), GpuError);
  });

  it("keeps tensors of two devices apart", async () => {
    using other = await openDevice();
    const a = device.tensor([1], [1]);
    const b = other.tensor([1], [1]);
    assert.throws(() => linearCombination([1, 1], [a, b]), /same device/);
    a.dispose();
  });
});
