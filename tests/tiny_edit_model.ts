/**
 * A tiny model of InstructPix2Pix, as a folder, and a clip for it to change.
 *
 * @module
 */

import { cp } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
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
