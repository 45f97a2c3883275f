/**
 * Inputs for ControlNets, what they make of them, and files of them.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";
import { type Device, openDevice } from "../core/device.ts";
import { Generator } from "../core/random.ts";
import { type TensorData, writeSafetensors } from "../core/safetensors.ts";
import type { Tensor } from "../core/tensor.ts";
import type { ControlResiduals } from "../models/control_residuals.ts";
import { ControlNetModel } from "../models/controlnet.ts";
import type { ControlNetOptions } from "../models/controlnet_file.ts";
import { CONTROLNET, controlTensors } from "./control_files.ts";

/** What the tests of a file share. */
export interface ControlNetSetup {
  device: Device;
  /** A folder for what the tests write. */
  root: string;
  /** Writes a single file into it, under a name of its own. */
  write(tensors: readonly TensorData[]): Promise<string>;
  /** The tensors of the tiny net. */
  own: TensorData[];
  /** Its residuals. */
  plain: Float32Array;
}

/** Opens a device and a folder, and takes both away after the file's last test. */
export async function controlNetSetup(): Promise<ControlNetSetup> {
  const device = await openDevice();
  const root = await mkdtemp(join(tmpdir(), "framezero-controlnet-"));
  after(async () => {
    await rm(root, { recursive: true, force: true });
    await device.close();
  });
  let written = 0;
  const write = async (tensors: readonly TensorData[]) => {
    const file = join(root, `net-${written++}.safetensors`);
    await writeSafetensors(file, [...tensors]);
    return file;
  };
  const plain = await withNet(device, CONTROLNET, residualsOf);
  return { device, root, write, own: await controlTensors(), plain };
}

const random = new Generator(3);
const SHAPE = [4, 4, 12, 12];
const latents = random.randn(SHAPE);
const words = random.randn([2, 77, 32]);
const pixels = random.rand([2, 3, 96, 96]);

/** Runs `body` with the inputs above: two guidance rows of two frames. */
export function withInputs<T>(
  device: Device,
  body: (x: Tensor, text: Tensor, maps: Tensor) => T,
): T {
  return device.scope(() =>
    body(
      device.tensor(latents, SHAPE),
      device.tensor(words, [2, 77, 32]),
      device.tensor(pixels, [2, 3, 96, 96]),
    )
  );
}

/** All residuals, one after the other. */
export async function numbersOf({ down, mid }: ControlResiduals): Promise<Float32Array> {
  const tensors = [...down, ...(mid ? [mid] : [])];
  const parts: number[] = [];
  for (const tensor of tensors) parts.push(...await tensor.data());
  for (const tensor of tensors) tensor.dispose();
  return Float32Array.from(parts);
}

/** The residuals of a net for those inputs. */
export async function residualsOf(net: ControlNetModel): Promise<Float32Array> {
  return await numbersOf(
    withInputs(net.device, (x, text, maps) => net.forward(x, 501, text, net.embed(maps))),
  );
}

/** Loads a net, hands it to `body`, and sees that nothing of it is left. */
export async function withNet<T>(
  device: Device,
  location: string,
  body: (net: ControlNetModel) => Promise<T>,
  options: Partial<ControlNetOptions> = {},
): Promise<T> {
  const before = device.memory().live;
  const net = await ControlNetModel.load(location, { device, ...options });
  try {
    return await body(net);
  } finally {
    net.dispose();
    assert.equal(device.memory().live, before, "everything is freed");
  }
}
