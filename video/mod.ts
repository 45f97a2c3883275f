/**
 * Making and writing pictures and videos.
 *
 * @module
 */

export type { Mask, SmoothingBlend } from "./background_smoothing.ts";
export type { Clip, ClipEvent, ClipStep } from "./clip.ts";
export * from "./conditions/mod.ts";
export type { CameraOptions } from "./camera.ts";
export type { CanvasExtent } from "./canvas.ts";
export type { SheetOptions } from "./contact_sheet.ts";
export { deflicker } from "./deflicker.ts";
export type { ControlAttention, ControlOptions } from "./controlled_video.ts";
export { type MaskDetector, type MaskSource, salientObjects, type Subject } from "./foreground.ts";
export type { Frame } from "./frame.ts";
export type { FrameAttentionChoice } from "./frame_attention.ts";
export type { GenerationOptions } from "./generation.ts";
export {
  encodeVideo,
  type EncodeVideoOptions,
  videoInstructPix2Pix,
  type VideoInstructPix2PixOptions,
} from "./instruct_pix2pix.ts";
export {
  chunkFrameIds,
  inChunks,
  inWindows,
  type PartMaker,
  windowFrameIds,
} from "./long_video.ts";
export { memoryNeeded, type Outline, outlineOf } from "./memory.ts";
export { type ClipScore, clipScore } from "./metrics/clip_score.ts";
export { type Flicker, flicker, type Spectrum } from "./metrics/flicker.ts";
export { measure, type MeasureOptions, type Measures } from "./metrics/measure.ts";
export { opticalFlow, visiblePixels, warpByFlow } from "./metrics/optical_flow.ts";
export { plotMeasures, type PlotOptions } from "./metrics/plot.ts";
export { type SceneCuts, sceneCuts } from "./metrics/scene_cuts.ts";
export { compareClips, psnr, type Similarity, similarity, ssim } from "./metrics/similarity.ts";
export { type WarpErrors, warpErrors, type WarpOptions } from "./metrics/warp.ts";
export {
  type KeyFrame,
  type MotionPath,
  motionText,
  type Move,
  type MoveKind,
  parseMotion,
} from "./motion.ts";
export type { Affine } from "./motion_field.ts";
export { motionAt } from "./motion_path.ts";
export type { VideoQuality } from "./mp4.ts";
export {
  extendFrames,
  type ExtendRule,
  type PreparedVideo,
  type PrepareOptions,
  prepareVideo,
} from "./prepare_video.ts";
export { linearColours, previewFrames, type PreviewKind } from "./preview.ts";
export { openVideo, type VideoInfo, type VideoReader } from "./reader.ts";
export type { AtFrames, ChangingText } from "./prompt_travel.ts";
export { readPicture, type Size } from "./picture.ts";
export type { NoiseOrder, NormalSource } from "./noise.ts";
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
