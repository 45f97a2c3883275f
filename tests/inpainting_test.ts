/**
 * Inpainting, other autoencoders, and the command line of start images, on the built-in model.
 */

import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { diffusersToLdm } from "../bench/ldm_layout.ts";
import { openDevice } from "../core/device.ts";
import { WeightError } from "../core/errors.ts";
import { encodeSafetensors, openSafetensors, type TensorData } from "../core/safetensors.ts";
import { BUILT_IN, StableDiffusion } from "../models/stable_diffusion.ts";
import type { Frame } from "../video/frame.ts";
import { readPicture } from "../video/picture.ts";
import { encodePng } from "../video/png.ts";
import { textToImage, type TextToImageOptions } from "../video/text_to_image.ts";
import { textToVideo } from "../video/text_to_video_zero.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import {
  encodedPicture,
  framesOf,
  largest,
  SMALL,
  SMALL_MASK as MASK,
  SMALL_PICTURE as PICTURE,
} from "./start_image_setup.ts";
import { latentsOf } from "./clips.ts";
import { setVariables } from "./environment.ts";
import { TINY, tinySingleFile } from "./tiny_single_file.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
const root = await mkdtemp(join(tmpdir(), "framezero-inpainting-"));
const restore = setVariables({ HF_HUB_OFFLINE: "1" });
after(async () => {
  restore();
  sd.dispose();
  await device.close();
  await rm(root, { recursive: true });
});

const PROMPT = "a red circle on a white background";
const image = (options: TextToImageOptions = {}, model = sd) =>
  latentsOf(textToImage(model, PROMPT, { steps: 3, seed: 5, ...SMALL, ...options }));

/** The built-in model with five more input channels, whose weights are zero but where `has`. */
async function inpaintingModel(has: (channel: number) => boolean): Promise<StableDiffusion> {
  const folder = await mkdtemp(join(root, "inpainting-"));
  await cp(fileURLToPath(BUILT_IN), folder, { recursive: true });
  const config = join(folder, "unet", "config.json");
  const json = JSON.parse(await readFile(config, "utf8"));
  await writeFile(config, JSON.stringify({ ...json, in_channels: 9 }));
  const path = join(folder, "unet", "diffusion_pytorch_model.safetensors");
  const file = await openSafetensors(path);
  const tensors: TensorData[] = [];
  for (const [name, { dtype, shape }] of file.tensors) {
    const data = await file.read(name);
    if (name !== "conv_in.weight") {
      tensors.push({ name, dtype, shape, data });
      continue;
    }
    // The weights of an input repeat those of the first channels.
    const [outputs, inputs] = shape;
    const bytes = data.length / outputs / inputs;
    const wider = new Uint8Array(outputs * 9 * bytes);
    for (let o = 0; o < outputs; o++) {
      for (let c = 0; c < 9; c++) {
        if (c >= inputs && !has(c)) continue;
        const from = (o * inputs + c % inputs) * bytes;
        wider.set(data.subarray(from, from + bytes), (o * 9 + c) * bytes);
      }
    }
    tensors.push({ name, dtype, shape: [outputs, 9, ...shape.slice(2)], data: wider });
  }
  await file.close();
  await writeFile(path, encodeSafetensors(tensors));
  return await StableDiffusion.load(folder, { device });
}

describe("a mask", () => {
  const paint = { image: PICTURE, mask: MASK };
  /** The picture with something else where the mask is light, or dark. */
  const changed = (light: boolean): Frame => ({
    ...PICTURE,
    data: PICTURE.data.map((value, i) => (MASK.data[i] > 0) === light ? 255 - value : value),
  });

  it("keeps what it leaves dark, with a model for text to image", async () => {
    const clean = await encodedPicture(sd, PICTURE);
    const free = await image();
    const painted = await image(paint);
    let moved = 0;
    painted.forEach((value, i) => {
      if (i % 8 >= 4) assert.equal(value, clean[i], `cell ${i}`);
      else moved = Math.max(moved, Math.abs(value - clean[i]));
    });
    assert.ok(moved > 0.1, `${moved}`);
    assert.notDeepEqual(painted, free);
  });

  it("is the fifth channel of an inpainting model, the picture without it the rest", async () => {
    const far = async (model: StableDiffusion, light: boolean) =>
      largest(
        await image({ ...paint, image: changed(light) }, model),
        await image(paint, model),
      );
    const deaf = await inpaintingModel(() => false);
    // A sum over more channels may be taken in another order.
    assert.ok(largest(await image(paint, deaf), await image()) < 1e-3);
    assert.throws(() => textToImage(deaf, PROMPT), /an inpainting model.*give both/);
    assert.throws(() => textToVideo(deaf, PROMPT), /an inpainting model/);
    deaf.dispose();
    const seesMask = await inpaintingModel((channel) => channel === 4);
    assert.equal(await far(seesMask, false), 0);
    const black = { ...MASK, data: MASK.data.map((value) => 255 - value) };
    const other = await image({ ...paint, mask: black }, seesMask);
    assert.ok(largest(other, await image(paint, seesMask)) > 0.01);
    seesMask.dispose();
    const seesPicture = await inpaintingModel((channel) => channel > 4);
    assert.equal(await far(seesPicture, true), 0);
    assert.ok(await far(seesPicture, false) > 0.01);
    seesPicture.dispose();
  });
});

describe("an inpainting model in a single file", () => {
  it("is loaded with its nine channels", async () => {
    const tensors = (await tinySingleFile()).map((tensor): TensorData => {
      if (tensor.name !== "model.diffusion_model.input_blocks.0.0.weight") return tensor;
      const shape = tensor.shape.with(1, 9);
      const size = shape.reduce((product, extent) => product * extent);
      return { ...tensor, shape, dtype: "F16", data: new Uint16Array(size) };
    });
    const path = join(root, "inpainting.safetensors");
    await writeFile(path, encodeSafetensors(tensors));
    const model = await StableDiffusion.load(path, { device, config: TINY });
    const given = { image: PICTURE, mask: MASK, steps: 1 };
    const latents = await image(given, model);
    assert.ok(latents.length > 0 && latents.every(Number.isFinite));
    assert.equal(model.unet.config.inChannels, 9);
    model.dispose();
  });
});

describe("another autoencoder", () => {
  const folder = fileURLToPath(new URL("vae/", BUILT_IN));
  const load = (vae: string) => StableDiffusion.load(BUILT_IN, { device, vae });

  it("is loaded from a folder, a model's folder, or a file with LDM's names", async () => {
    const [want] = await framesOf(
      textToImage(sd, PROMPT, { steps: 1, image: PICTURE, strength: 0, ...SMALL }),
    );
    const weights = join(folder, "diffusion_pytorch_model.safetensors");
    const file = await openSafetensors(weights);
    const tensors: TensorData[] = [];
    for (const [name, { dtype, shape }] of file.tensors) {
      const ldm = diffusersToLdm("vae", name, shape);
      tensors.push({ dtype, ...ldm, data: await file.read(name) });
    }
    await file.close();
    const bare = tensors.map((tensor) => {
      return { ...tensor, name: tensor.name.replace("first_stage_model.", "") };
    });
    const training = { name: "loss.logvar", dtype: "F32", shape: [1], data: new Float32Array(1) };
    const [whole, plain] = [join(root, "whole.safetensors"), join(root, "bare.safetensors")];
    await writeFile(whole, encodeSafetensors(tensors));
    await writeFile(plain, encodeSafetensors([...bare, training as TensorData]));
    for (const vae of [folder, fileURLToPath(BUILT_IN), weights, whole, plain]) {
      const other = await load(vae);
      const [got] = await framesOf(
        textToImage(other, PROMPT, { steps: 1, image: PICTURE, strength: 0, ...SMALL }),
      );
      assert.deepEqual(got, want, vae);
      other.dispose();
    }
    await writeFile(plain, encodeSafetensors(bare.slice(1)));
    await assert.rejects(load(plain), /lacks \(1\): vae\//);
  });

  it("is refused if it is none", async () => {
    const unet = fileURLToPath(new URL("unet/diffusion_pytorch_model.safetensors", BUILT_IN));
    await assert.rejects(load(unet), /must hold an encoder and a decoder alone, this is/);
    await assert.rejects(load(root), /there is no config\.json here/);
    const wrong = await mkdtemp(join(root, "vae-"));
    await cp(folder, wrong, { recursive: true });
    const config = JSON.parse(await readFile(join(folder, "config.json"), "utf8"));
    await writeFile(
      join(wrong, "config.json"),
      JSON.stringify({ ...config, latent_channels: 16 }),
    );
    await assert.rejects(
      load(wrong),
      (error: unknown) => error instanceof WeightError && /of 16 channels.* 4/.test(error.message),
    );
  });
});

describe("the command line", () => {
  const start = join(root, "start.png");
  const mask = join(root, "mask.png");

  it("makes pictures and videos from a picture, and makes them again", async () => {
    await writeFile(start, await encodePng(PICTURE));
    await writeFile(mask, await encodePng(MASK));
    const vae = fileURLToPath(new URL("vae", BUILT_IN));
    const model = ["--model", fileURLToPath(BUILT_IN), "--vae", vae];
    const [one, two] = [join(root, "one.png"), join(root, "two.png")];
    const size = ["--width", "64", "--height", "64"];
    const args = [
      ...size,
      "--init",
      start,
      "--mask",
      mask,
      "--strength",
      "0.5",
      "--steps",
      "4",
      ...model,
    ];
    const made = await run(["image", PROMPT, ...args, "-o", one]);
    assert.equal(made.code, 0, made.stderr);
    const settings = await readSettings(one);
    assert.equal(settings?.init, start);
    assert.match(String(settings?.initSha256), /^[0-9a-f]{64}$/);
    assert.equal(settings?.mask, mask);
    assert.equal(settings?.strength, 0.5);
    assert.equal(settings?.vae, vae);
    const again = await run(["image", "--from", one, "-o", two]);
    assert.equal(again.code, 0, again.stderr);
    assert.deepEqual(await readPicture(two), await readPicture(one));

    const frames = join(root, "frames");
    const clip = [...size, "--frames", "2", "--steps", "4", "--t0", "0", "--t1", "1"];
    const filmed = await run([PROMPT, "--init", start, ...clip, "-o", `${frames}/`]);
    assert.equal(filmed.code, 0, filmed.stderr);
    const settingsOfVideo = await readSettings(frames);
    assert.equal(settingsOfVideo?.initSha256, settings?.initSha256);

    await writeFile(start, await encodePng(MASK));
    await refused(["image", "--from", one, "-o", two, "--overwrite"], 1, /made with a picture of/);
  });

  it("refuses what is no start image", async () => {
    const target = join(root, "a.png");
    const text = join(root, "a.jpg");
    await writeFile(text, "not a picture");
    await refused(["image", PROMPT, "--init", text, "-o", target], 1, /must be a PNG or JPEG/);
    await refused([PROMPT, "--init", join(root, "none.png"), "-o", target], 1, /none\.png/);
    await refused([PROMPT, "--strength", "1", "-o", target], 2, /unknown option '--strength'/);
    await refused(["image", PROMPT, "--strength", "2", "-o", target], 2, /at most 1/);
    await refused([PROMPT, "--vae", "x", "-o", target], 2, /--vae is about the files of a model/);
  });
});
