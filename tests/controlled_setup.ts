/**
 * The model, prompt, size and maps of the tests of videos under control.
 *
 * @module
 */

import { after } from "node:test";
import { type Device, openDevice } from "../core/device.ts";
import { ControlNetModel } from "../models/controlnet.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { CONTROLNET, stripes } from "./control_files.ts";
import { TINY } from "./tiny_single_file.ts";

/** What the tests of a file share. */
export interface Controlled {
  device: Device;
  sd: StableDiffusion;
  model: ControlNetModel;
}

/** Loads the tiny model and its ControlNet, and frees them after the file's last test. */
export async function controlled(): Promise<Controlled> {
  const device = await openDevice();
  const sd = await StableDiffusion.load(TINY, { device });
  const model = await ControlNetModel.load(CONTROLNET, { device });
  after(async () => {
    model.dispose();
    sd.dispose();
    await device.close();
  });
  return { device, sd, model };
}

/** What all of them show. */
export const PROMPT = "a horse on a street";
/** As large as the maps. */
export const SIZE = { width: 96, height: 96 } as const;
/** A clip in one step, from noise alone. */
export const QUICK = {
  steps: 1,
  timestepSpacing: "trailing",
  frames: 2,
  seed: 5,
  ...SIZE,
} as const;
/** A map for each of its frames. */
export const MAPS = [0, 1].map((n) => stripes(n));
