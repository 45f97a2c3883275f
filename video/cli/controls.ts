/**
 * The ControlNets that a command line names, and their maps.
 *
 * @module
 */

import { InvalidArgumentError } from "commander";
import { exists } from "../../models/checkpoint.ts";
import { ControlNetModel } from "../../models/controlnet.ts";
import type { HubOptions } from "../../models/hub.ts";
import { BUILT_IN, BUILT_IN_NAME, type StableDiffusion } from "../../models/stable_diffusion.ts";
import { InputError } from "../../core/errors.ts";
import type { ControlAttention } from "../controlled_video.ts";
import type { Frame } from "../frame.ts";
import { disk } from "../output_file.ts";
import { readPicture } from "../picture.ts";
import type { TextToVideoOptions } from "../text_to_video_zero.ts";

/** Maps, in the words of the command line. */
export interface MapsRequest {
  /** What they show. */
  readonly kind: string;
  /** Where they lie. */
  readonly file: string;
}

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
}

/** The flags about controls, as the parser gives them. */
export interface ControlFlags {
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

/** Maps with their kind in front of a colon: `"canny:edges/"`. */
export function mapsOfKind(text: string): MapsRequest {
  // A single letter is a drive of Windows.
  const [, kind, file] = /^([a-z][a-z0-9_-]+):(.+)$/i.exec(text) ?? [];
  if (kind !== undefined) return { kind: kind.toLowerCase(), file };
  throw new InvalidArgumentError(
    "It must be a kind of map and a file, such as canny:edges/ or pose:dance.png.",
  );
}

/** The control flags, each by the name that is typed. */
const FLAGS: Readonly<Record<keyof ControlFlags, string>> = {
  control: "--control",
  controlnet: "--controlnet",
  controlScale: "--control-scale",
  controlStart: "--control-start",
  controlEnd: "--control-end",
  guessMode: "--guess-mode",
  controlAttention: "--control-attention",
  transferFrom: "--transfer-from",
};

/**
 * Puts the controls together: flags over those of a stored clip.
 *
 * @returns `undefined` if there are none.
 * @throws {InputError} flags that do not go together.
 */
export function controlsRequest(
  flags: ControlFlags,
  stored: Partial<ControlsRequest>,
): ControlsRequest | undefined {
  const before = stored.controls ?? [];
  const maps = flags.control ?? before;
  const nets = flags.controlnet ?? before.map(({ model }) => model);
  if (maps.length !== nets.length) {
    throw new InputError(
      `--control and --controlnet go in pairs: there are maps for ${maps.length}, and ` +
        `${nets.length} of the nets`,
    );
  }
  const names = Object.keys(FLAGS) as (keyof ControlFlags)[];
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
  return {
    controls: maps.map(({ kind, file }, i) => ({
      kind,
      file,
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
    return Object.entries(types).every(([name, type]) => typeof control[name] === type);
  });
}

/** Opened maps. */
interface ControlMaps {
  /** Size of the first. */
  readonly width: number;
  readonly height: number;
  /** How many there are; `null` for a lone picture, which is that of every frame. */
  readonly count: number | null;
  /** The maps for frames 0 … `count` − 1; can be iterated again. */
  frames(count: number): AsyncIterable<Frame>;
}

/**
 * Opens the maps that `--control` names: a folder of PNG and JPEG pictures in the order of the
 * numbers in their names, or one such picture. They are maps of their kind already. Clips, and
 * making maps of ordinary pictures, have their place here.
 *
 * @throws {InputError} if there are none, or they cannot be read.
 */
async function openMaps({ file }: MapsRequest): Promise<ControlMaps> {
  if (await exists(file)) {
    const picture = await readPicture(file);
    return {
      width: picture.width,
      height: picture.height,
      count: null,
      frames: (count) => iterable(count, () => Promise.resolve(picture)),
    };
  }
  const { fs, path } = await disk();
  const found = await fs.readdir(file).catch(() => {
    throw new InputError(`${file}: no such picture, or folder of pictures, with control maps`);
  });
  const names = found.filter((name) => /\.(png|jpe?g)$/i.test(name))
    .sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  if (names.length === 0) {
    throw new InputError(`${file}: there are no PNG or JPEG pictures in this folder`);
  }
  const { width, height } = await readPicture(path.join(file, names[0]));
  return {
    width,
    height,
    count: names.length,
    frames: () => iterable(names.length, (i) => readPicture(path.join(file, names[i]))),
  };
}

function iterable(count: number, get: (i: number) => Promise<Frame>): AsyncIterable<Frame> {
  return {
    async *[Symbol.asyncIterator]() {
      for (let i = 0; i < count; i++) yield await get(i);
    },
  };
}

/** Controls that are ready to act. */
export interface LoadedControls {
  /** The nets, on the device. */
  readonly nets: readonly ControlNetModel[];
  /** Options of the library, besides those that the user has given. */
  readonly options: Partial<TextToVideoOptions>;
  /** What settings hold. */
  readonly settings: Partial<ControlsRequest>;
}

/** Frames of a clip that nobody has counted. */
const DEFAULT_FRAMES = 8;

/**
 * Opens maps and loads nets. What the user did not say follows from the maps: the number of frames,
 * and the size of the clip if it is one that the model can make.
 *
 * @param given What the user has said; for a picture `frames` is 1.
 * @throws {InputError} if maps or a net cannot be had.
 * @throws {WeightError} if a net is damaged, or of another kind.
 */
export async function loadControls(
  { controls, controlAttention, transferFrom }: ControlsRequest,
  sd: StableDiffusion,
  given: Pick<TextToVideoOptions, "frames" | "frameIds" | "width" | "height">,
  { hub, say }: { readonly hub: HubOptions; readonly say: (text: string) => void },
): Promise<LoadedControls> {
  const maps: ControlMaps[] = [];
  for (const control of controls) maps.push(await openMaps(control));
  const { device, unet: { dtype, quantized: quantize }, source: style, factor } = sd;
  const transfer = transferFrom === undefined
    ? undefined
    : { base: transferFrom, style: style === BUILT_IN_NAME ? BUILT_IN : style };
  const nets: ControlNetModel[] = [];
  try {
    for (const { model } of controls) {
      say(`loading ControlNet ${model} (${dtype})`);
      nets.push(await ControlNetModel.load(model, { device, dtype, quantize, hub, transfer }));
    }
  } catch (error) {
    for (const net of nets) net.dispose();
    throw error;
  }
  const { frameIds, width, height } = given;
  const counted = maps.map(({ count }) => count).find((count) => count !== null);
  const frames = given.frames ?? counted ?? DEFAULT_FRAMES;
  const numbers = frameIds ? frameIds.reduce((most, id) => Math.max(most, id), 0) + 1 : frames;
  const [first] = maps;
  const fits = [first.width, first.height].every((side) => side % factor === 0);
  return {
    nets,
    options: {
      ...(!frameIds && { frames }),
      ...(width === undefined && height === undefined && fits && {
        width: first.width,
        height: first.height,
      }),
      controls: controls.map(({ scale, start, end, guessMode }, i) => {
        return { model: nets[i], frames: maps[i].frames(numbers), scale, start, end, guessMode };
      }),
      ...(controlAttention && { controlAttention }),
    },
    settings: {
      controls: controls.map((control, i) => ({ ...control, model: nets[i].source })),
      ...(transferFrom !== undefined && { transferFrom }),
    },
  };
}
