/**
 * The ControlNets that a command line names, and their maps.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import { ControlNetModel } from "../../models/controlnet.ts";
import type { HubOptions } from "../../models/hub.ts";
import { BUILT_IN, BUILT_IN_NAME, type StableDiffusion } from "../../models/stable_diffusion.ts";
import { CONDITIONS } from "../conditions/kinds.ts";
import type { ControlAttention } from "../controlled_video.ts";
import type { TextToVideoOptions } from "../text_to_video_zero.ts";
import { type ControlMaps, type MapsOptions, type MapsRequest, openMaps } from "./control_maps.ts";
import type { VideoNames } from "./input_video.ts";

/** A ControlNet with its maps, in the words of the command line; what settings hold of it. */
export interface ControlRequest extends MapsRequest {
  /** Folder, file, id or address of the net. */
  readonly model: string;
  /** How strongly it acts. */
  readonly scale: number;
  /** Share of the steps before it acts. */
  readonly start: number;
  /** Share of the steps after which it acts no more. */
  readonly end: number;
  /** Whether it acts without a prompt. */
  readonly guessMode: boolean;
}

/** All controls of a command line. */
export interface ControlsRequest {
  /** At least one. */
  readonly controls: readonly ControlRequest[];
  /** Where frames attend to the first one. */
  readonly controlAttention?: ControlAttention;
  /** The model that the nets were trained with, if they are moved to the one in use. */
  readonly transferFrom?: string;
  /** How maps are made. */
  readonly maps: MapsOptions;
}

/** The flags about controls, as the parser gives them. */
export interface ControlFlags extends MapsOptions {
  /** Maps. */
  control?: MapsRequest[];
  /** The net of each. */
  controlnet?: string[];
  /** How strongly each acts. */
  controlScale?: number[];
  /** Share of the steps before they act. */
  controlStart?: number;
  /** Share of the steps after which they act no more. */
  controlEnd?: number;
  /** Whether they act without a prompt. */
  guessMode?: boolean;
  /** Where frames attend to the first one. */
  controlAttention?: ControlAttention;
  /** The model that the nets were trained with. */
  transferFrom?: string;
}

type ControlFlag = Exclude<keyof ControlFlags, keyof VideoNames>;

/** The control flags, each by the name that is typed. */
const FLAGS: Readonly<Record<ControlFlag, string>> = {
  control: "--control",
  controlnet: "--controlnet",
  controlScale: "--control-scale",
  controlStart: "--control-start",
  controlEnd: "--control-end",
  guessMode: "--guess-mode",
  controlAttention: "--control-attention",
  transferFrom: "--transfer-from",
  controlSource: "--control-source",
  controlShort: "--control-short",
};

/**
 * Puts the controls together: flags over those of a stored clip.
 *
 * @returns `undefined` if there are none.
 * @throws {InputError} flags that do not go together.
 */
export function controlsRequest(
  flags: ControlFlags,
  stored: Partial<ControlsRequest> & { readonly maps?: MapsOptions },
): ControlsRequest | undefined {
  const before = stored.controls ?? [];
  const maps: readonly MapsRequest[] = flags.control ?? before;
  const nets = flags.controlnet ??
    maps.map(({ kind }, i) => before[i]?.model ?? CONDITIONS[kind].model);
  if (maps.length !== nets.length) {
    throw new InputError(
      `--control and --controlnet go in pairs: there are maps for ${maps.length}, and ` +
        `${nets.length} of the nets`,
    );
  }
  const names = Object.keys(FLAGS) as ControlFlag[];
  if (maps.length === 0) {
    const lonely = names.find((name) => flags[name] !== undefined);
    if (lonely === undefined) return undefined;
    throw new InputError(
      `${FLAGS[lonely]} is about a ControlNet; name one with --controlnet and its maps with ` +
        "--control",
    );
  }
  const scales = flags.controlScale ?? before.map(({ scale }) => scale);
  if (scales.length > maps.length) {
    throw new InputError(
      `--control-scale is given ${scales.length} times, for ${maps.length} of --control`,
    );
  }
  const { controlAttention, transferFrom } = { ...stored, ...flags };
  const { start, end, videoFps, resolution, controlSource, controlShort } = {
    ...stored.maps,
    ...flags,
  };
  const how = { start, end, videoFps, resolution, controlSource, controlShort };
  return {
    maps: Object.fromEntries(Object.entries(how).filter(([, value]) => value !== undefined)),
    controls: maps.map(({ kind, file, sha256 }, i) => ({
      kind,
      file,
      ...(sha256 && { sha256 }),
      model: nets[i],
      scale: scales[i] ?? 1,
      start: flags.controlStart ?? before[i]?.start ?? 0,
      end: flags.controlEnd ?? before[i]?.end ?? 1,
      guessMode: flags.guessMode ?? before[i]?.guessMode ?? false,
    })),
    ...(controlAttention && { controlAttention }),
    ...(transferFrom && { transferFrom }),
  };
}

/** Whether a value in settings is a list of controls. */
export function areControls(value: unknown): boolean {
  const types = {
    kind: "string",
    file: "string",
    model: "string",
    scale: "number",
    start: "number",
    end: "number",
    guessMode: "boolean",
  } as const;
  return Array.isArray(value) && value.every((item: unknown) => {
    const control: Record<string, unknown> = Object(item);
    if (!Object.hasOwn(CONDITIONS, String(control.kind))) return false;
    return Object.entries(types).every(([name, type]) => typeof control[name] === type);
  });
}

/** Controls that are ready to act. */
export interface LoadedControls {
  /** The nets, on the device. */
  readonly nets: readonly ControlNetModel[];
  /** Options of the library, besides those that the user has given. */
  readonly options: Partial<TextToVideoOptions>;
  /** What settings hold. */
  readonly settings: Record<string, unknown>;
  /** Frames a second of the maps; absent where they have no rate. */
  readonly fps?: number;
  /** Frees the nets and closes the clips. */
  close(): Promise<void>;
}

/** Frames of a clip that nobody has counted. */
const DEFAULT_FRAMES = 8;

/**
 * Opens maps and loads nets. What the user did not say follows from the maps: the number of frames,
 * and the size of the clip.
 *
 * @param given What the user has said; for a picture `frames` is 1.
 * @throws {InputError} if maps or a net cannot be had.
 * @throws {WeightError} if a net is damaged, or of another kind.
 */
export async function loadControls(
  { controls, controlAttention, transferFrom, maps: how }: ControlsRequest,
  sd: StableDiffusion,
  given: Pick<TextToVideoOptions, "frames" | "frameIds" | "width" | "height">,
  { hub, say }: { readonly hub: HubOptions; readonly say: (text: string) => void },
): Promise<LoadedControls> {
  const { device, unet: { dtype, quantized: quantize }, source: style, factor } = sd;
  const { frameIds, width, height } = given;
  let size = width !== undefined && height !== undefined ? { width, height } : undefined;
  const maps: ControlMaps[] = [];
  const nets: ControlNetModel[] = [];
  const close = async () => {
    for (const net of nets) net.dispose();
    for (const opened of maps) await opened.close();
  };
  try {
    for (const control of controls) {
      const context = { size, factor, resolution: sd.defaultSize, say };
      maps.push(await openMaps(control, how, device, context));
      // The maps of other nets follow the first in size.
      size ??= { width: maps[0].width, height: maps[0].height };
    }
    const transfer = transferFrom === undefined
      ? undefined
      : { base: transferFrom, style: style === BUILT_IN_NAME ? BUILT_IN : style };
    for (const { model } of controls) {
      say(`loading ControlNet ${model} (${dtype})`);
      nets.push(await ControlNetModel.load(model, { device, dtype, quantize, hub, transfer }));
    }
  } catch (error) {
    await close();
    throw error;
  }
  const counts = maps.map(({ count }) => count).filter((count) => count !== null);
  const wanted = given.frames ?? counts[0] ?? DEFAULT_FRAMES;
  const frames = how.controlShort === "stop" ? Math.min(wanted, ...counts) : wanted;
  const numbers = frameIds ? frameIds.reduce((most, id) => Math.max(most, id), 0) + 1 : frames;
  controls.forEach(({ file }, i) => {
    const { count } = maps[i];
    if (count === null || count >= numbers) return;
    say(
      `warning: ${file} has ${count} frames, fewer than the ${numbers} of the clip; ` +
        (how.controlShort === "loop" ? "it begins again" : "its last one is held") +
        " (--control-short hold, loop or stop)",
    );
  });
  return {
    nets,
    options: {
      ...(!frameIds && { frames }),
      ...(width === undefined && height === undefined && size),
      controls: controls.map(({ scale, start, end, guessMode }, i) => {
        return { model: nets[i], frames: maps[i].frames(numbers), scale, start, end, guessMode };
      }),
      ...(controlAttention && { controlAttention }),
    },
    settings: {
      controls: controls.map(({ sha256: _, ...control }, i) => {
        const { sha256 } = maps[i];
        return { ...control, model: nets[i].source, ...(sha256 && { sha256 }) };
      }),
      ...(transferFrom !== undefined && { transferFrom }),
      ...how,
    },
    fps: maps.find(({ fps }) => fps !== undefined)?.fps,
    close,
  };
}
