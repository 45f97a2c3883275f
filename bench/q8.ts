/**
 * What rounding the UNet's weights to 8 bits costs: the error of one prediction, and of pictures.
 *
 * ```sh
 * deno run -A bench/q8.ts
 * deno run -A bench/q8.ts /tmp/fullsize --dtype f16 --size 256 --prediction
 * ```
 *
 * Both models compute in the same type, so that the difference is that of the weights. The recipe's
 * weights (`bench/make_fullsize.ts`) are uniform noise, which is the hard case: trained weights are
 * near zero for the most part.
 *
 * @module
 */

import process from "node:process";
import { InputError } from "../core/errors.ts";
import { openDevice } from "../core/device.ts";
import { Generator } from "../core/random.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { textToImage } from "../video/text_to_image.ts";
import { type Command, command, count, flag, floatType, path, writeResults } from "./command.ts";
import { psnrOf } from "./psnr.ts";
import { describeSetting, settingOf } from "./setting.ts";

const HELP = `usage: q8 [model] [options]
  --dtype f32|f16     type of activations (default f32)
  --size PX           side of the pictures (default: the model's)
  --prediction        no pictures
  --tokenizer FOLDER  vocabulary, if the model brings none
  --json FILE         write the results
  --help              this text`;

const PROMPTS = [
  "a red heart in a green meadow",
  "a blue circle on a white background",
  "a yellow star in the sky",
  "a green square on a beach",
  "a purple ring on a black background",
  "an orange triangle in a green meadow",
];

/** Timestep of the single prediction. */
const TIMESTEP = 501;

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { dtype: floatType, size: count, prediction: flag, tokenizer: path, json: path },
  positionals: true,
}, async ({ dtype = "f32", size, prediction, tokenizer, json }, models) => {
  if (models.length > 1) throw new InputError("name one model, or none for the built-in one");
  const device = await openDevice();
  try {
    console.log(`${describeSetting(settingOf(device))}, ${dtype}`);
    const outputs = async (weights?: "q8") => {
      const sd = await StableDiffusion.load(models[0], { device, dtype, weights, tokenizer });
      try {
        return {
          noise: await predict(sd, size),
          pictures: await paint(sd, prediction ? [] : PROMPTS, size),
        };
      } finally {
        sd.dispose();
      }
    };
    const [want, got] = [await outputs(), await outputs("q8")];
    const error = relativeError(got.noise, want.noise);
    console.log(`prediction at t = ${TIMESTEP}: relative L2 error ${error.toExponential(2)}`);
    const psnr = want.pictures.map((picture, i) => psnrOf(got.pictures[i], picture));
    psnr.forEach((decibels, i) => console.log(`"${PROMPTS[i]}": ${decibels.toFixed(1)} dB`));
    await writeResults({ json }, { ...settingOf(device), dtype, model: models[0], error, psnr });
    return 0;
  } finally {
    await device.close();
  }
});

async function predict(sd: StableDiffusion, size = sd.defaultSize): Promise<Float32Array> {
  const { device, factor, unet } = sd;
  const side = size / factor;
  const shape = [1, unet.config.inChannels, side, side];
  const noise = device.scope(() => {
    const latents = device.tensor(new Generator(0).randn(shape), shape);
    const { hiddenStates } = sd.encodePrompt([PROMPTS[0]]);
    return unet.forward(latents, TIMESTEP, hiddenStates);
  });
  try {
    return await noise.data();
  } finally {
    noise.dispose();
  }
}

async function paint(
  sd: StableDiffusion,
  prompts: readonly string[],
  size?: number,
): Promise<Uint8Array[]> {
  const painted: Uint8Array[] = [];
  for (const prompt of prompts) {
    const clip = textToImage(sd, prompt, { width: size, height: size, seed: 1 });
    for await (const { data } of clip) painted.push(data);
    clip.dispose();
  }
  return painted;
}

function relativeError(got: Float32Array, want: Float32Array): number {
  let [error, norm] = [0, 0];
  want.forEach((value, i) => {
    error += (got[i] - value) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(error / norm);
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
