/**
 * framezero: zero-shot text to video with any Stable Diffusion 1.5 checkpoint, in pure TypeScript on
 * WebGPU.
 *
 * @example
 * ```ts
 * import { StableDiffusion, textToVideo, writeVideo } from "framezero";
 *
 * const sd = await StableDiffusion.load(); // the small built-in model
 * const clip = textToVideo(sd, "a red heart in a green meadow", { frames: 8, seed: 0 });
 * for await (const { step, total } of clip.steps) console.log(`step ${step} of ${total}`);
 * await writeVideo(clip, "heart.mp4", { fps: 4 });
 * ```
 *
 * @module
 */

export * from "./core/mod.ts";
export * as ops from "./kernels/mod.ts";
export * from "./models/mod.ts";
export * from "./schedulers/mod.ts";
export * from "./video/mod.ts";

if (import.meta.main) import("./video/cli.ts").then(({ run }) => run());
