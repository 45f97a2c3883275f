/**
 * Making and writing pictures and videos.
 *
 * @module
 */

export type { Mask, SmoothingBlend } from "./background_smoothing.ts";
export type { Clip, ClipStep } from "./clip.ts";
export type { SheetOptions } from "./contact_sheet.ts";
export { type MaskDetector, type MaskSource, salientObjects, type Subject } from "./foreground.ts";
export type { Frame } from "./frame.ts";
export type { GenerationOptions } from "./generation.ts";
export { memoryNeeded, type Outline, outlineOf } from "./memory.ts";
export type { VideoQuality } from "./mp4.ts";
export { readPicture } from "./picture.ts";
export { linearColours, previewFrames, type PreviewKind } from "./preview.ts";
export type { BackgroundSmoothing } from "./smoothed_pass.ts";
export type { StartImageOptions } from "./start_image.ts";
export { textToImage, type TextToImageOptions } from "./text_to_image.ts";
export { type Intermediate, textToVideo, type TextToVideoOptions } from "./text_to_video_zero.ts";
export {
  type Frames,
  readSettings,
  type WriteOptions,
  writeVideo,
  writeVideos,
  type WrittenVideo,
} from "./writer.ts";
