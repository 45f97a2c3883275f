/**
 * ControlNets: what they add to a UNet.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import { narrow } from "../kernels/mod.ts";
import { addRows, sumResiduals } from "../models/control_residuals.ts";
import { SD15_CONTROLNET } from "../models/sd15.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { controlNetStateDict } from "../models/state_dict.ts";
import { distance } from "./clips.ts";
import { CONTROLNET } from "./control_files.ts";
import {
  controlNetSetup,
  numbersOf,
  residualsOf,
  withInputs,
  withNet,
} from "./controlnet_setup.ts";
import { TINY } from "./tiny_single_file.ts";

const { device, write, own, plain } = await controlNetSetup();

describe("a ControlNet", () => {
  it("of SD 1.5 has its published size", () => {
    const shapes = [...controlNetStateDict(SD15_CONTROLNET).values()];
    assert.equal(shapes.length, 340);
    assert.equal(shapes.reduce((sum, shape) => sum + sizeOf(shape), 0), 361_279_120);
  });

  it("repeats maps for the guidance rows, and texts for the frames", async () => {
    const apart = await withNet(device, CONTROLNET, async (net) => {
      const rows = withInputs(device, (x, text, maps) =>
        [0, 1, 2, 3].map((row) => {
          const one = (tensor: Tensor, i: number) => narrow(tensor, 0, i, 1);
          const embedded = net.embed(one(maps, row & 1));
          return net.forward(one(x, row), 501, one(text, row >> 1), embedded);
        }));
      return await Promise.all(rows.map(numbersOf));
    });
    const whole = await withNet(device, CONTROLNET, async (net) => {
      const made = withInputs(
        device,
        (x, text, maps) => net.forward(x, 501, text, net.embed(maps)),
      );
      return await Promise.all([...made.down, made.mid!].map((tensor) => tensor.data()))
        .finally(() => [...made.down, made.mid!].forEach((tensor) => tensor.dispose()));
    });
    for (let row = 0; row < 4; row++) {
      const part = whole.flatMap((values) => {
        const size = values.length / 4;
        return [...values.subarray(row * size, (row + 1) * size)];
      });
      assert.ok(distance(apart[row], Float32Array.from(part)) < 1e-5, `row ${row}`);
    }
  });

  it("scales its residuals; in guess mode from a tenth to all", async () => {
    await withNet(device, CONTROLNET, async (net) => {
      const scaled = (options: { scale?: number; guessMode?: boolean }) =>
        withInputs(device, (x, text, maps) => net.forward(x, 501, text, net.embed(maps), options));
      const half = await numbersOf(scaled({ scale: 0.5 }));
      assert.deepEqual(half, plain.map((value) => value / 2));
      const { down, mid } = scaled({ scale: 2, guessMode: true });
      const all = [...down, mid!];
      let at = 0;
      for (const [i, tensor] of all.entries()) {
        const values = await tensor.data();
        const factor = 2 * 10 ** (i / 12 - 1);
        const want = plain.subarray(at, at += values.length).map((value) => factor * value);
        assert.ok(distance(values, want) < 1e-6, `residual ${i}`);
        tensor.dispose();
      }
      assert.equal(at, plain.length);
    });
  });

  it("makes its first residual without timestep and text", async () => {
    await withNet(device, CONTROLNET, async (net) => {
      const options = { scale: 0.7, guessMode: true };
      const [alone, first] = withInputs(device, (x, text, maps) => {
        const embedded = net.embed(maps);
        const [{ down: [one] }, { down: [other] }] = [
          net.outermost(x, embedded, options),
          net.forward(x, 501, text, embedded, options),
        ];
        return [one, other];
      });
      const outermost = await numbersOf({ down: [alone] });
      assert.deepEqual(outermost, await numbersOf({ down: [first] }));
    });
  });

  it("with zero convolutions of zero changes nothing", async () => {
    const zeros = own.map((tensor) =>
      /^controlnet_(down_blocks|mid_block)/.test(tensor.name)
        ? { ...tensor, data: new Uint16Array(sizeOf(tensor.shape)) }
        : tensor
    );
    const sd = await StableDiffusion.load(TINY, { device });
    await withNet(device, await write(zeros), async (net) => {
      const [controlled, free] = withInputs(device, (x, text, maps) => {
        const control = net.forward(x, 501, text, net.embed(maps));
        return [sd.unet.forward(x, 501, text, { control }), sd.unet.forward(x, 501, text)];
      });
      assert.deepEqual(await controlled.data(), await free.data());
      [controlled, free].forEach((tensor) => tensor.dispose());
    }, { config: CONTROLNET });
    sd.dispose();
  });

  it("runs in f16 and with weights of 8 bits", async () => {
    const eight = await withNet(device, CONTROLNET, residualsOf, { quantize: true });
    const far = distance(eight, plain);
    assert.ok(far > 1e-4 && far < 0.05, `${far}`);
    if (!device.info.f16) return;
    const half = distance(await withNet(device, CONTROLNET, residualsOf, { dtype: "f16" }), plain);
    assert.ok(half < 0.02, `${half}`);
  });

  it("refuses inputs of other shapes", async () => {
    await withNet(device, CONTROLNET, (net) => {
      withInputs(device, (x, text, maps) => {
        const embedded = net.embed(maps);
        const small = device.empty([2, 16, 11, 12]);
        const three = device.empty([3, 16, 12, 12]);
        for (
          const call of [
            () => net.embed(device.empty([1, 3, 90, 96])),
            () => net.embed(device.empty([1, 1, 96, 96])),
            () => net.forward(device.empty([2, 9, 12, 12]), 1, text, embedded),
            () => net.forward(x, 1, text, small),
            () => net.forward(x, 1, text, three),
            () => net.forward(x, 1, device.empty([2, 77, 48]), embedded),
            () => net.forward(x, 1, text, embedded, { frames: { mode: "first", frames: 3 } }),
          ]
        ) assert.throws(call, ShapeError);
      });
      return Promise.resolve();
    });
  });
});

describe("residuals", () => {
  const three = Float32Array.of(1, 2, 3);

  it("with fewer rows belong to the last ones", async () => {
    const sum = device.scope(() =>
      addRows(device.tensor(three, [3, 1, 1, 1]), device.tensor([10, 20], [2, 1, 1, 1]))
    );
    assert.deepEqual([...await sum.data()], [1, 12, 23]);
    sum.dispose();
    device.scope(() => {
      const [x, other] = [device.empty([2, 3, 4, 4]), device.empty([2, 3, 4, 5])];
      assert.throws(() => addRows(x, other), /it belongs to another UNet/);
      assert.throws(() => addRows(x, device.empty([3, 3, 4, 4])), ShapeError);
    });
  });

  it("of several nets are added, whichever has more rows", async () => {
    assert.equal(sumResiduals([]), null);
    const { down: [down], mid } = device.scope(() => {
      const of = (values: number[]) => device.tensor(values, [values.length, 1, 1, 1]);
      return sumResiduals([
        { down: [of([10])], mid: of([1, 2]) },
        { down: [of([1, 2])], mid: of([10]) },
      ])!;
    });
    assert.deepEqual([...await down.data()], [1, 12]);
    assert.deepEqual([...await mid!.data()], [1, 12]);
    [down, mid!].forEach((tensor) => tensor.dispose());
  });
});
