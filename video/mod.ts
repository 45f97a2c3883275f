/**
 * Making and writing pictures and videos.
 *
 * @module
 */

export type { Clip, ClipStep } from "./clip.ts";
export { textToImage, type TextToImageOptions } from "./text_to_image.ts";
export { textToVideo, type TextToVideoOptions } from "./text_to_video_zero.ts";
export { readSettings, writeVideo, writeVideos } from "./writer.ts";
