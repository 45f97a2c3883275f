/**
 * The models of Stable Diffusion 1.x, and how they are found and loaded.
 *
 * @module
 */

export {
  type CrossAttentionObserver,
  disposeCache,
  type FrameAttention,
  type KeyValue,
  type KeyValueCache,
  type LookBack,
} from "./attention.ts";
export type { AttentionMode } from "../kernels/mod.ts";
export { type Location, openWeights, readJson, type WeightStem } from "./checkpoint.ts";
export { type ClipLoadOptions, ClipModel } from "./clip.ts";
export { ClipTextModel, type ClipTextOutput } from "./clip_text.ts";
export {
  ClipTokenizer,
  type ClipTokenizerConfig,
  type ClipTokenizerFiles,
  type SpecialToken,
  type TextCleanup,
  type TokenizedPrompt,
} from "./clip_tokenizer.ts";
export { ClipVisionModel, type ClipVisionOutput } from "./clip_vision.ts";
export {
  type ClipTextConfig,
  clipTextConfig,
  type ClipVisionConfig,
  clipVisionConfig,
  type ControlNetConfig,
  controlNetConfig,
  type EncoderConfig,
  type Json,
  type ModelDefaults,
  type UNetConfig,
  unetConfig,
  type VaeConfig,
  vaeConfig,
} from "./config.ts";
export { type ControlNetForwardOptions, ControlNetModel } from "./controlnet.ts";
export type { ControlNetOptions, ControlTransfer } from "./controlnet_file.ts";
export type { ControlResiduals } from "./control_residuals.ts";
export {
  browseModel,
  type DownloadedFile,
  type DownloadedModel,
  downloadFile,
  downloadModel,
  type DownloadProgress,
  type FileDownload,
  type HubOptions,
  type ModelDownload,
  type ModelReference,
  neededFiles,
  parseModelReference,
  type ProgressListener,
  type TransferTuning,
} from "./hub.ts";
export { type LocatedModel, locateModel, type LocateOptions } from "./hub/locate.ts";
export { ldmToDiffusers, type StoredName } from "./ldm_names.ts";
export {
  type Header,
  type Holding,
  type InspectedPart,
  type Inspection,
  inspectTensors,
  type ModelKind,
} from "./inspect.ts";
export { describeInspection, describeParts, type InspectionRow } from "./inspect_text.ts";
export type { AppliedLora, LoraChoice } from "./lora.ts";
export type { EncodedPrompts, PromptOptions } from "./prompt.ts";
export { type ParsedPrompt, parsePromptWeights, type WeightedText } from "./prompt_weights.ts";
export type { Part, PartConfigs } from "./sd15.ts";
export type { SingleFileOptions } from "./single_file.ts";
export {
  BUILT_IN,
  type LoadOptions,
  StableDiffusion,
  type StableDiffusionParts,
} from "./stable_diffusion.ts";
export type { TextualInversion, TextualInversionOptions } from "./textual_inversion.ts";
export type { TokenMap } from "./token_map.ts";
export { TaesdDecoder } from "./taesd.ts";
export { drawOrder, sourcesOf, type TokenMerging } from "./token_merging.ts";
export { U2Net } from "./u2net.ts";
export { type DeepFeature, UNet2DConditionModel, type UNetOptions } from "./unet.ts";
export { AutoencoderKL, type LatentDistribution, type VaeOptions } from "./vae.ts";
export type { ModelOptions, Observer, WeightSource } from "./weights.ts";
