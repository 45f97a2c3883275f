/**
 * A tiny model of InstructPix2Pix, as a folder, and a clip for it to change.
 *
 * @module
 */

import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import { type Device, openDevice } from "../core/device.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import type { Frame } from "../video/frame.ts";
import { TINY } from "./tiny_single_file.ts";

/** What it is told to change. */
export const INSTRUCTION = "a horse on a street";

const UNET = fileURLToPath(new URL("golden/t2v_zero_tiny/unet_ip2p", import.meta.url));

/** Writes the model into a folder that does not exist yet. */
export async function writeEditModel(folder: string): Promise<void> {
  await cp(TINY, folder, { recursive: true });
  await cp(UNET, join(folder, "unet"), { recursive: true, force: true });
}

/** What the tests of a file share. */
export interface Editor {
  device: Device;
  sd: StableDiffusion;
  /** The model's folder. */
  folder: string;
  /** A folder for what the tests write. */
  root: string;
}

/** Loads that model, and frees it with all files after the file's last test. */
export async function editor(): Promise<Editor> {
  const device = await openDevice();
  const root = await mkdtemp(join(tmpdir(), "framezero-edit-"));
  const folder = join(root, "model");
  await writeEditModel(folder);
  const sd = await StableDiffusion.load(folder, { device });
  after(async () => {
    sd.dispose();
    await device.close();
    await rm(root, { recursive: true });
  });
  return { device, sd, folder, root };
}

/** A light bar, further to the right in every frame, on a dark ramp. */
export function barFrame(id: number, width = 64, height = 64): Frame {
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    const column = i % width;
    const light = Math.abs(column - 10 * id - 12) < 6;
    data.set(light ? [230, 210, 40] : [40, 60 + column, 130], 3 * i);
  }
  return { width, height, data };
}

/** The first frames of that clip. */
export function barClip(count: number, width = 64, height = 64): Frame[] {
  return Array.from({ length: count }, (_, id) => barFrame(id, width, height));
}
