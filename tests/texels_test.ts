/** Texels: what a texture holds after a copy, in passes and plans, and what cannot be copied. */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { shadersOf } from "../bench/tune/trial.ts";
import { type Device, openDevice } from "../core/device.ts";
import { GpuError } from "../core/errors.ts";
import { type Kernel, u32 } from "../core/kernel.ts";
import { openNullDevice } from "../core/null_gpu.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { fitsTexels, hasTexels, texelLoader, type Texels } from "../core/texels.ts";
import { attentionKernel } from "../kernels/attention.ts";
import { conv2dKernel } from "../kernels/conv2d.ts";
import { groupNormKernel } from "../kernels/group_norm.ts";
import { layerNormKernel } from "../kernels/layer_norm.ts";
import { matmulKernel } from "../kernels/matmul.ts";
import { overrideVariants } from "../kernels/variants.ts";

const device = await openDevice();
after(() => device.close());

/** Enqueues what reads all texels of a tensor back into `out`, a vector each. */
function readBack(texels: Texels, out: Tensor): void {
  device.dispatch("texels", {
    variant: "test",
    read: { x: texels },
    write: { out: { tensor: out, type: "vec4<f32>" } },
    params: { count: u32(out.size / 4) },
    workgroup: [64, 1, 1],
    workgroups: [Math.ceil(out.size / 4 / 64), 1, 1],
    declarations: () => texelLoader("x"),
    main: () => `if (gid.x < p.count) { out[gid.x] = load_x(gid.x); }`,
  });
}

/** What the texels of a tensor hold. */
async function contentOf(tensor: Tensor, count = tensor.size): Promise<Float32Array> {
  using out = device.empty([count]);
  const copy = device.texels(tensor);
  readBack(copy.texels, out);
  copy.dispose();
  return await out.data();
}

const ramp = (count: number) => Float32Array.from({ length: count }, (_, i) => i % 1021 - 500);

describe("texels", () => {
  it("hold less than a row, whole rows, and rows with a rest", async () => {
    for (const count of [4, 4092, 4096, 4100, 12 * 4096, 3 * 4096 + 1024]) {
      using x = device.tensor(ramp(count), [count]);
      assert.deepEqual(await contentOf(x), ramp(count), `${count} numbers`);
    }
  });

  it("hold what a view shows", async () => {
    using x = device.tensor(ramp(3 * 5000), [3, 5000]);
    using row = device.view(x, [5000], 4 * 5000);
    assert.deepEqual(await contentOf(row), ramp(15000).subarray(5000, 10000));
  });

  it("hold half precision, and whole numbers of 8 bits", async () => {
    if (device.info.f16) {
      using x = device.tensor(ramp(5000), [5000], "f16");
      assert.deepEqual(await contentOf(x), ramp(5000));
    }
    const bytes = Int8Array.from({ length: 4 * 1500 }, (_, i) => i % 255 - 127);
    using words = device.tensor(new Uint32Array(bytes.buffer), [1500], "u32");
    assert.deepEqual(await contentOf(words, 6000), Float32Array.from(bytes));
  });

  it("are copied anew by each run of a plan", async () => {
    using x = device.tensor(ramp(8), [8]);
    using out = device.empty([8]);
    using plan = device.record(() => {
      const copy = device.texels(x);
      readBack(copy.texels, out);
      copy.dispose();
    });
    assert.equal(plan.dispatches, 1);
    for (const first of [1, 5]) {
      const values = Float32Array.from({ length: 8 }, (_, i) => first + i);
      device.write(x, values);
      plan.run();
      assert.deepEqual(await out.data(), values);
    }
  });

  it("see a tensor as it was when they were asked for", async () => {
    using x = device.tensor(ramp(8), [8]);
    using out = device.empty([8]);
    const copy = device.texels(x);
    device.write(x, new Float32Array(8));
    readBack(copy.texels, out);
    copy.dispose();
    assert.deepEqual(await out.data(), ramp(8));
  });

  it("count as memory, and their textures are used again", () => {
    using x = device.tensor(ramp(3 * 4096), [3, 4096]);
    const { live } = device.memory();
    const first = device.texels(x);
    const held = device.memory().live - live;
    assert.ok(held >= x.bytes && held < 2 * x.bytes, `${held} bytes for ${x.bytes}`);
    first.dispose();
    assert.equal(device.memory().live, live);
    const second = device.texels(x);
    assert.equal(second.texels.texture, first.texels.texture);
    second.dispose();
  });

  it("are refused where elements are no texels", () => {
    using odd = device.tensor(ramp(6), [6]);
    assert.throws(
      () => device.texels(odd),
      (error) =>
        error instanceof GpuError &&
        /f32 tensor of shape 6 at byte 0 .* texels of rgba32float/.test(error.message),
    );
    using whole = device.tensor(ramp(12), [3, 4]);
    using shifted = device.view(whole, [4], 8);
    assert.throws(() => device.texels(shifted), /at byte 8/);
    using signed = device.tensor(Int32Array.of(1, 2, 3, 4), [4], "i32");
    assert.throws(() => device.texels(signed), /i32 .* any format/);
  });

  it("are refused where the adapter has no texture of that size", () => {
    using small = withTextures(4);
    using x = small.empty([5, 4096]);
    assert.equal(fitsTexels(x), false);
    using less = small.empty([4, 4096]);
    assert.equal(fitsTexels(less), true);
    assert.throws(
      () => small.texels(x),
      /copy of a f32 tensor of shape 5×4096 needs a texture of 5 rows, .* allows 4/,
    );
  });

  it("are not asked for by kernels that do not fit into them", () => {
    const kernels = [attentionKernel, conv2dKernel, groupNormKernel, layerNormKernel, matmulKernel];
    for (const kernel of kernels as Kernel<unknown>[]) {
      // The largest case, so that it needs more than a row of texels.
      const sizes = kernel.cases.map(({ shapes }) => sizeOf(shapes[0] ?? []));
      const input = { ...kernel.cases[sizes.indexOf(Math.max(...sizes))] };
      input.attributes = { ...input.attributes as object, form: "texels", wide: false };
      const [large, small] = [16384, 1].map((rows) => {
        using device = withTextures(rows);
        overrideVariants(device, { rows: "texels", winograd: { two: Infinity, four: Infinity } });
        return shadersOf(device, { kernel, input, calls: 1 }, "f32");
      });
      assert.match(large, /rgba32float/, kernel.name);
      assert.doesNotMatch(small, /\bx:rgba32float|\b[bq]:rgba32float/, kernel.name);
    }
  });

  it("are found by a feature of the language", () => {
    const gpu = (features?: string[]) =>
      ({ wgslLanguageFeatures: features && new Set(features) }) as unknown as GPU;
    assert.equal(hasTexels(gpu(["readonly_and_readwrite_storage_textures"])), true);
    assert.equal(hasTexels(gpu(["subgroup_id"])), false);
    assert.equal(hasTexels(gpu()), false);
  });
});

/** A device that computes nothing, whose textures have so many rows. */
function withTextures(maxTextureDimension2D: number): Device {
  const { gpu: { features }, info } = device;
  const limits = { ...limitsOf(device.gpu), maxTextureDimension2D };
  return openNullDevice({ gpu: { limits, features }, info });
}

/** Limits as a plain object: they are getters of a prototype. */
function limitsOf({ limits }: GPUDevice): GPUSupportedLimits {
  const plain: Record<string, unknown> = {};
  for (const name in limits) plain[name] = limits[name as keyof GPUSupportedLimits];
  return plain as unknown as GPUSupportedLimits;
}
