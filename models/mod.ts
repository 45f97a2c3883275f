/**
 * The models of Stable Diffusion 1.x.
 *
 * @module
 */

export { ClipTextModel, type ClipTextOutput } from "./clip_text.ts";
export { ClipTokenizer, type TokenizedPrompt } from "./clip_tokenizer.ts";
export { UNet2DConditionModel, type UNetOptions } from "./unet.ts";
export { AutoencoderKL, type LatentDistribution } from "./vae.ts";
export { BUILT_IN, type LoadOptions, StableDiffusion } from "./stable_diffusion.ts";
