/**
 * The commands `video`, `image` and `edit`: from a request to files.
 *
 * @module
 */

import type { DeviceInfo } from "../../core/adapter.ts";
import { type Device, openDevice } from "../../core/device.ts";
import type { DType } from "../../core/dtype.ts";
import { MemoryError } from "../../core/errors.ts";
import { loadTunedVariants } from "../../kernels/tuned_variants.ts";
import { describeRuntime } from "../../core/runtime.ts";
import { parseModelReference } from "../../models/hub.ts";
import { locateModel } from "../../models/hub/locate.ts";
import { StableDiffusion } from "../../models/stable_diffusion.ts";
import type { Clip, ClipEvent } from "../clip.ts";
import { deflicker } from "../deflicker.ts";
import type { Frame } from "../frame.ts";
import { memoryNeeded, outlineOf } from "../memory.ts";
import { formatBytes, formatDuration, type Progress, startProgress } from "../progress.ts";
import { type Frames, writeVideos, type WrittenVideo } from "../writer.ts";
import { clipMaker } from "./clip_maker.ts";
import { loadControls, type LoadedControls } from "./controls.ts";
import { showDownload } from "./download.ts";
import { type InputVideo, openInputVideo } from "./input_video.ts";
import type { CommandIo } from "./io.ts";
import type { DtypeChoice, GenerateFlags } from "./options.ts";
import { checkTerminal, openPreview, type Preview } from "./preview.ts";
import {
  asUsage,
  DEFAULT_FPS,
  type Kind,
  type ModelRequest,
  readRequest,
  type Request,
} from "./request.ts";
import { openSmoothing } from "./smoothing.ts";

/** What is said about the built-in model, which knows little. */
const BUILT_IN_NOTE = "Using the built-in tiny-shapes model: it draws circles, squares, " +
  "triangles, stars, rings and hearts in ten colours on plain grounds, in a meadow, on a beach, " +
  "in the sky. For anything else: --model stable-diffusion-v1-5/stable-diffusion-v1-5.";

/** Makes pictures. Resolves when all files are there. */
export async function generate(
  kind: Kind,
  prompt: string | undefined,
  flags: GenerateFlags,
  io: CommandIo,
): Promise<void> {
  checkTerminal(flags, io);
  const request = await readRequest(kind, prompt, flags);
  const nets = request.controls?.controls.map(({ model }) => model) ?? [];
  const { transferFrom } = request.controls ?? {};
  for (const named of [request.model?.model, request.model?.vae, transferFrom, ...nets]) {
    if (named !== undefined) await parseModelReference(named);
  }
  const say = (text: string) => {
    if (!flags.quiet) io.stderr(`${text}\n`);
  };
  const { gpu, experimental, memory: memoryBudget } = flags;
  const device = await openDevice({ gpu, experimental, memoryBudget });
  try {
    await loadTunedVariants(device, (line) => io.stderr(`${line}\n`));
    io.signal.throwIfAborted();
    const { video, options: { width, height } } = request;
    const fit = width !== undefined && height !== undefined ? { width, height } : undefined;
    const input = video && await openInputVideo(video, device, () => fit);
    try {
      const loaded = await loadModel(request, device, flags, io, say);
      const owned: { close(): void | Promise<void> }[] = [];
      try {
        await loadEmbeddings(request, loaded.sd, say);
        const controls = await withControls(request, loaded.sd, flags, io, say);
        if (controls) owned.push(controls);
        const smoothing = request.smoothing && await openSmoothing(request.smoothing, device);
        if (smoothing) owned.push(smoothing);
        const options = {
          ...request.options,
          ...controls?.options,
          smoothing: smoothing?.options,
        };
        await make({ ...request, options }, input, loaded, controls, flags, io, say);
      } finally {
        for (const item of owned) await item.close();
        loaded.sd.dispose();
      }
    } finally {
      await input?.close();
    }
  } finally {
    await device.close();
  }
}

/** A model, and what belongs into the settings so that it can be found again. */
interface Loaded {
  readonly sd: StableDiffusion;
  readonly origin: Partial<ModelRequest>;
  /** What the user did not ask for in so many words. */
  readonly remarks: string[];
}

async function loadModel(
  { model: asked, loras, dtype: askedType, weights }: Request,
  device: Device,
  flags: GenerateFlags,
  io: CommandIo,
  say: (text: string) => void,
): Promise<Loaded> {
  const remarks: string[] = [];
  const dtype = chooseDtype(askedType, asked === undefined, device.info, remarks);
  if (asked === undefined) say(BUILT_IN_NOTE);
  const { hub, end } = showDownload(io, flags.quiet);
  const shared = { device, dtype, weights, hub, loras };
  try {
    if (asked === undefined) {
      return { sd: await StableDiffusion.load(undefined, shared), origin: {}, remarks };
    }
    const { model, modelSha256, ...files } = asked;
    const variant = asked.variant ?? (dtype === "f16" ? "fp16" : undefined);
    const found = await locateModel(model, { ...hub, variant, sha256: modelSha256 });
    const { source, sha256 } = found;
    const vae = asked.vae === undefined ? null : await locateModel(asked.vae, { ...hub, variant });
    const sd = await StableDiffusion.load(found.location, {
      ...files,
      ...shared,
      vae: vae?.location,
      variant,
      onPart(part) {
        io.signal.throwIfAborted();
        say(`loading ${part} (${dtype})`);
      },
    });
    const origin = {
      ...asked,
      model: source,
      ...(sha256 && { modelSha256: sha256 }),
      ...(vae && { vae: vae.source }),
    };
    return { sd, origin, remarks };
  } finally {
    end();
  }
}

/** Loads what `--embedding` names: `FILE`, or `FILE:word`. */
async function loadEmbeddings(
  { embeddings }: Request,
  sd: StableDiffusion,
  say: (text: string) => void,
): Promise<void> {
  for (const named of embeddings) {
    const [, file, token] = /^(.+):([^:/\\]+)$/.exec(named) ?? [, named];
    const { count, ...word } = await sd.loadTextualInversion(file, { token });
    say(`embedding "${word.token}" (${count === 1 ? "1 vector" : `${count} vectors`})`);
  }
}

async function withControls(
  { kind, controls, options }: Request,
  sd: StableDiffusion,
  flags: GenerateFlags,
  io: CommandIo,
  say: (text: string) => void,
): Promise<LoadedControls | undefined> {
  if (!controls) return undefined;
  const { hub, end } = showDownload(io, flags.quiet);
  const given = kind === "image" ? { ...options, frames: 1 } : options;
  try {
    return await loadControls(controls, sd, given, { hub, say });
  } finally {
    end();
  }
}

/** The precision to use. Adds a remark if it is not what was asked for. */
export function chooseDtype(
  asked: DtypeChoice,
  builtIn: boolean,
  adapter: Pick<DeviceInfo, "f16" | "description">,
  remarks: string[],
): DType {
  if (asked === "f16" && !adapter.f16) {
    remarks.push(`${adapter.description} has no half precision; computing in f32`);
  }
  const wanted = asked === "auto" ? (builtIn ? "f32" : "f16") : asked;
  return adapter.f16 ? wanted : "f32";
}

async function make(
  request: Request,
  input: InputVideo | null,
  { sd, origin, remarks }: Loaded,
  controls: LoadedControls | undefined,
  flags: GenerateFlags,
  io: CommandIo,
  say: (text: string) => void,
): Promise<void> {
  const { prompt, targets, overwrite } = request;
  const shown = request.fps ?? input?.fps ?? controls?.fps ?? DEFAULT_FPS;
  const fps = shown * (request.options.double ? 2 : 1);
  const { signal } = io;
  const start = performance.now();
  const toClip = clipMaker(request, input);
  const options = { ...request.options, ...controls?.options };
  const clip = await asUsage(() => toClip(sd, prompt, { ...options, signal }));
  const settings: Record<string, unknown> = {
    ...clip.settings,
    ...origin,
    ...request.pictures,
    ...input?.names,
    ...controls?.settings,
    ...request.smoothing,
    fps: shown,
    ...(request.deflicker && { deflicker: true }),
  };
  say(`"${prompt}", ${describe(clip)}`);
  const preview = await openPreview({ ...request, fps }, sd, flags, io);
  const work = tracked(watch(clip, preview, flags, io));
  let outputs: WrittenVideo[];
  try {
    const frames = request.deflicker ? deflicker(work.frames) : work.frames;
    outputs = await writeVideos(frames, targets, { fps, settings, overwrite, signal });
  } catch (error) {
    if (!(error instanceof MemoryError)) throw error;
    const least = await memoryNeeded(
      outlineOf(sd, controls?.nets),
      sd.device,
      (zeros, nets) =>
        toClip(zeros, prompt, {
          ...options,
          controls: options.controls?.map((control, i) => ({ ...control, model: nets[i] })),
          rows: 1,
        }),
    );
    throw new MemoryError(
      `${error.message}. With --memory ${Math.ceil(least / 1e6)}MB` +
        `${request.options.rows === undefined ? "" : " and without --rows"} it would fit`,
      { cause: error },
    );
  } finally {
    await work.idle();
    preview?.dispose();
    clip.dispose();
  }
  const warnings = [...remarks, ...clip.warnings];
  for (const warning of warnings) say(`warning: ${warning}`);
  const seconds = (performance.now() - start) / 1000;
  if (flags.json) {
    const result = {
      outputs,
      seconds,
      steps: settings.steps,
      frames: clip.frameIds.length,
      width: clip.width,
      height: clip.height,
      seed: settings.seed,
      settings,
      memory: sd.device.memory(),
      adapter: sd.device.info,
      runtime: describeRuntime(),
      warnings,
    };
    io.stdout(`${JSON.stringify(result)}\n`);
  } else if (!flags.quiet) {
    for (const { path, bytes } of outputs) io.stdout(`${path}  ${formatBytes(bytes)}\n`);
  }
  const peak = formatBytes(sd.device.memory().peak);
  const budget = flags.memory === undefined ? "" : `, of ${formatBytes(flags.memory)} allowed`;
  say(`done in ${formatDuration(seconds)}, ${peak} of GPU memory at most${budget}`);
}

function describe({ frameIds, width, height, settings }: Clip): string {
  const count = frameIds.length === 1 ? "1 frame" : `${frameIds.length} frames`;
  const steps = settings.steps === 1 ? "1 step" : `${settings.steps} steps`;
  return `${count} of ${width}x${height}, ${steps}, seed ${settings.seed}`;
}

/** The frames of a clip, while progress and preview are shown. */
async function* watch(
  clip: Clip,
  preview: Preview | null,
  flags: GenerateFlags,
  io: CommandIo,
): AsyncGenerator<Frame, void> {
  const target = { write: io.stderr, isTTY: io.isTTY, columns: io.columns };
  // A long clip goes from one to the other again and again; what an event took is its kind's time.
  const spent: Record<ClipEvent["kind"], number> = { step: 0, frame: 0 };
  const show = (kind: ClipEvent["kind"], label: string, unit: string): Progress =>
    flags.quiet
      ? { update() {}, left: 0, end() {} }
      : startProgress(label, unit, { ...target, now: () => spent[kind] });
  const denoising = show("step", "denoising", "it");
  const decoding = show("frame", "decoding ", "frame");
  let last = performance.now();
  let done = 0;
  try {
    for await (const event of clip.events) {
      const now = performance.now();
      spent[event.kind] += now - last;
      last = now;
      if (event.kind === "frame") {
        decoding.update(++done, clip.frameIds.length, denoising.left);
        yield event.frame;
        continue;
      }
      const { step, total, latents } = event.step;
      denoising.update(step, total, decoding.left);
      if (step === total) denoising.end();
      const every = Math.max(1, Math.round(total / 10));
      if (preview && step % every === 0) await preview.show(latents);
    }
  } finally {
    denoising.end();
    decoding.end();
  }
}

/**
 * `frames`, and a way to wait for the piece of work that an interrupt leaves running: only then may
 * what it works on be freed.
 */
function tracked(
  frames: AsyncGenerator<Frame, void>,
): { frames: Frames; idle(): Promise<void> } {
  let running: Promise<unknown> = Promise.resolve();
  const next = () => {
    const result = frames.next();
    running = result;
    return result;
  };
  const iterator = { next, return: () => frames.return() };
  return {
    frames: { [Symbol.asyncIterator]: () => iterator },
    idle: () => running.then(() => {}, () => {}),
  };
}
