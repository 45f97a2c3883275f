/**
 * A tiny model with the blocks of SD 1.x, as a folder and as a single file.
 *
 * @module
 */

import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { diffusersToLdm } from "../bench/ldm_layout.ts";
import { openSafetensors, type TensorData } from "../core/safetensors.ts";
import { stemOf } from "../models/checkpoint.ts";
import { PARTS } from "../models/sd15.ts";

/** Its folder in diffusers' layout. */
export const TINY = fileURLToPath(new URL("golden/t2v_zero_tiny/pipeline", import.meta.url));

/** All tensors of such a folder, under the names that the original code gives them. */
export async function tinySingleFile(folder = TINY): Promise<TensorData[]> {
  const tensors: TensorData[] = [];
  for (const part of PARTS) {
    const source = await openSafetensors(join(folder, part, `${stemOf(part)}.safetensors`));
    for (const [name, { dtype, shape }] of source.tensors) {
      const data = await source.read(name);
      tensors.push({ dtype, data, ...diffusersToLdm(part, name, shape) });
    }
    await source.close();
  }
  return tensors;
}
