/**
 * Reference files of Video Instruct-Pix2Pix, by the authors of Text2Video-Zero.
 *
 * @module
 */

import { StableDiffusion, type Tensor, videoInstructPix2Pix } from "../../mod.ts";
import { interpolate, narrow, stack } from "../../kernels/mod.ts";
import { pictureMean } from "../../video/start_image.ts";
import type { Outputs, Setting, Values } from "./case.ts";
import { number, table, text } from "./params.ts";
import { commonOptions, pictures, pipelineOf, type PipelineOp, promptIds } from "./pipelines.ts";
import { folderOf, readInput, type StoredCase } from "./stored_case.ts";

/** The cases that change videos, by operation. */
export const EDIT_OPS: ReadonlyMap<string, PipelineOp> = new Map([
  ["text_to_video_zero_ip2p", editedVideo],
]);

/** One chunk, whose first picture is dropped. Its noise, of x_T and of each step, is the file's. */
async function editedVideo(test: StoredCase, setting: Setting): Promise<Outputs> {
  const { params: p } = test;
  const { device, models } = setting;
  const base = await pipelineOf(test, setting);
  const unet = await models.unet(await folderOf(test, text(p, "unet")));
  const { tokenizer, schedulerConfig, defaults, textEncoder, vae } = base;
  const sd = StableDiffusion.of({
    ...{ device, tokenizer, schedulerConfig, defaults, textEncoder, vae },
    unet,
  });
  const [frameIds] = table(p, "chunk_frame_ids");
  const scaled = await readInput(test, "x_T_scaled");
  const noises = await readInput(test, "step_noises");
  const xT = Float32Array.from(scaled.data, (value) => value / number(p, "init_noise_sigma"));
  const latents = device.tensor(xT, scaled.shape);
  let drawn = 0;
  const randn = () => {
    const from = drawn++ * xT.length;
    return Float32Array.from(noises.data.subarray(from, from + xT.length));
  };
  const video = await encoded(sd, test);
  const generator = { randn, clone: () => generator };
  const clip = videoInstructPix2Pix(sd, text(p, "prompt"), {
    ...commonOptions(sd, test, latents),
    scheduler: "EulerAncestralDiscreteScheduler",
    imageGuidanceScale: number(p, "image_guidance_scale"),
    ...{ video, frameIds, compat: "original", generator },
  });
  try {
    const final = await clip.latents();
    const shown = frameIds.map((_, place) => place).slice(1);
    return {
      ...promptIds(sd, test),
      image_latents: await shownToRows(video, frameIds),
      final_latents: { data: await final.data(), shape: final.shape },
      frames: await pictures(sd, clip, shown, 1),
    };
  } finally {
    clip.dispose();
    video.dispose();
    latents.dispose();
  }
}

/** The latents of the video, which is stored with one value for each 8×8 pixels. */
async function encoded(sd: StableDiffusion, test: StoredCase): Promise<Tensor> {
  const { device, factor } = sd;
  const { data, shape } = await readInput(test, "video");
  const [frames, , h, w] = shape;
  return device.scope(() => {
    const small = device.tensor(data, shape);
    const pixels = interpolate(small, { size: [h * factor, w * factor], mode: "nearest" });
    const means = Array.from({ length: frames }, (_, k) => {
      const mean = pictureMean(sd, narrow(pixels, 0, k, 1));
      return mean.reshape(mean.shape.slice(1));
    });
    return stack(means, 0);
  });
}

/** What the rows of the model are shown: the frames with either text, and zeros. */
async function shownToRows(video: Tensor, frameIds: readonly number[]): Promise<Values> {
  const latents = await video.data();
  const [frames, ...one] = video.shape;
  const size = latents.length / frames;
  const data = new Float32Array(3 * frameIds.length * size);
  [...frameIds, ...frameIds].forEach((id, row) => {
    data.set(latents.subarray(id * size, (id + 1) * size), row * size);
  });
  return { data, shape: [3 * frameIds.length, ...one] };
}
