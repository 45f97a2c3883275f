/**
 * A tiny ControlNet for the model of `tiny_single_file.ts`, and files and maps made for it.
 *
 * @module
 */

import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openSafetensors, type TensorData } from "../core/safetensors.ts";
import type { Frame } from "../video/frame.ts";

/** Its folder in diffusers' layout. */
export const CONTROLNET = fileURLToPath(
  new URL("golden/t2v_zero_tiny/controlnet", import.meta.url),
);

/** Another one, for a UNet of other widths. */
export const WIDE_CONTROLNET = fileURLToPath(
  new URL("golden/unet_tiny/controlnet", import.meta.url),
);

/** The tensors of a safetensors file. */
export async function tensorsOf(file: string): Promise<TensorData[]> {
  const source = await openSafetensors(file);
  const tensors: TensorData[] = [];
  for (const [name, { dtype, shape }] of source.tensors) {
    tensors.push({ name, dtype, shape, data: await source.read(name) });
  }
  await source.close();
  return tensors;
}

/** The tensors of the tiny ControlNet. */
export function controlTensors(): Promise<TensorData[]> {
  return tensorsOf(join(CONTROLNET, "diffusion_pytorch_model.safetensors"));
}

/** A map with stripes whose place and colour depend on `n`. */
export function stripes(n: number, width = 96, height = width): Frame {
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    const [x, y] = [i % width, Math.floor(i / width)];
    const lit = Math.floor((x + 2 * y + 20 * n) / 24) % 2 === 0;
    for (let c = 0; c < 3; c++) data[3 * i + c] = lit ? 255 - 40 * ((n + c) % 3) : 0;
  }
  return { width, height, data };
}
