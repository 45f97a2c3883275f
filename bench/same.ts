/**
 * Whether checkpoints are the same: outputs of all their parts for fixed inputs, bit for bit.
 *
 * ```sh
 * deno run -A bench/same.ts /tmp/fullsize /tmp/fullsize/sd15-recipe.safetensors --dtype f16
 * ```
 *
 * @module
 */

import { createHash } from "node:crypto";
import process from "node:process";
import { type Device, openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import type { Tensor } from "../core/tensor.ts";
import { type LoadOptions, StableDiffusion } from "../models/stable_diffusion.ts";
import { type Command, command, floatType, path } from "./command.ts";

const HELP = `usage: same <checkpoint> <checkpoint>… [options]
  --dtype f32|f16     type on the device (default f32)
  --tokenizer FOLDER  vocabulary, for those that bring none
  --help              this text
Exit code 1 if one of them differs from the first.`;

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { dtype: floatType, tokenizer: path },
  positionals: true,
}, async (options, checkpoints) => {
  if (checkpoints.length < 2) throw new InputError("name two checkpoints or more");
  const device = await openDevice();
  try {
    let first: string | undefined;
    let different = 0;
    for (const checkpoint of checkpoints) {
      const digest = await digestOf(checkpoint, { device, ...options });
      first ??= digest;
      if (digest !== first) different++;
      console.log(`${digest.slice(0, 16)}  ${checkpoint}`);
    }
    console.log(different ? `${different} differ from the first` : "all the same");
    return different ? 1 : 0;
  } finally {
    await device.close();
  }
});

async function digestOf(
  checkpoint: string,
  options: LoadOptions & { device: Device },
): Promise<string> {
  const { device } = options;
  const sd = await StableDiffusion.load(checkpoint, options);
  const random = new Generator(0);
  const draw = (shape: readonly number[]) => device.tensor(random.randn(shape), shape);
  try {
    const { hiddenStates } = sd.encodePrompt(["a horse galloping on a street"]);
    const outputs: Tensor[] = [
      hiddenStates,
      device.scope(() => sd.unet.forward(draw([1, 4, 16, 16]), 501, hiddenStates)),
      device.scope(() => sd.vae.decode(draw([1, 4, 8, 8]))),
      device.scope(() => sd.vae.encode(draw([1, 3, 64, 64])).moments),
    ];
    const hash = createHash("sha256");
    for (const output of outputs) {
      hash.update(await output.data());
      output.dispose();
    }
    return hash.digest("hex");
  } finally {
    sd.dispose();
  }
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
