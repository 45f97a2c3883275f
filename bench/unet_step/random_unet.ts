/**
 * A UNet without a checkpoint: its values are computed when a tensor is read.
 *
 * @module
 */

import type { UNetConfig } from "../../models/config.ts";
import { generatedWeights } from "../../models/generated_weights.ts";
import { unetStateDict } from "../../models/state_dict.ts";
import type { WeightSource } from "../../models/weights.ts";
import { fillF16 } from "../recipe.ts";

/**
 * Half-precision weights of the right names and shapes, the same in every run, one tensor in memory
 * at a time. `name` is what messages call them.
 */
export function randomUNet(config: UNetConfig, name: string): WeightSource {
  return generatedWeights(
    name,
    unetStateDict(config),
    (values, key, shape, from) => fillF16(values, "unet", key, shape, from),
  );
}
