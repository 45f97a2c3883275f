/**
 * The command `measure`: figures of a clip, and of two clips compared.
 *
 * @module
 */

import { openDevice } from "../../core/device.ts";
import type { GpuChoice } from "../../core/runtime.ts";
import { ClipModel } from "../../models/clip.ts";
import type { Frame } from "../frame.ts";
import { measure, type Measures } from "../metrics/measure.ts";
import { significant } from "../metrics/number.ts";
import { plotMeasures } from "../metrics/plot.ts";
import { compareClips, type Similarity } from "../metrics/similarity.ts";
import { checkFile, writeText } from "../output_file.ts";
import { startProgress } from "../progress.ts";
import { openVideo, type VideoReader } from "../reader.ts";
import { readSettings } from "../writer.ts";
import { showDownload } from "./download.ts";
import type { CommandIo } from "./io.ts";
import { UsageError } from "./request.ts";
import { table } from "./table.ts";

/** The options of `measure`. */
export interface MeasureFlags {
  /** Another clip to compare with, instead of measuring one. */
  readonly against?: string;
  /** Text for the CLIP score; default: the prompt that the clip was made with. */
  readonly prompt?: string;
  /** The CLIP model. */
  readonly clip?: string;
  /** Side of the square that frames are scaled to before motion is measured. */
  readonly side?: number;
  /** Where the chart goes. */
  readonly plot?: string;
  /** Whether a chart that is there may be replaced. */
  readonly overwrite?: boolean;
  /** Whether to print one JSON object. */
  readonly json?: boolean;
  /** Whether to keep progress to oneself. */
  readonly quiet?: boolean;
  /** Which WebGPU. */
  readonly gpu: GpuChoice;
}

/**
 * Measures the clip at `path`, or compares it, and prints the figures.
 *
 * @throws {UsageError} flags that do not go together, no prompt for the CLIP score.
 * @throws {InputError} what cannot be read, measured or written.
 */
export async function measureClip(
  path: string,
  flags: MeasureFlags,
  io: CommandIo,
): Promise<void> {
  const prompt = await checkFlags(path, flags);
  const clip = await openVideo(path);
  try {
    if (flags.against !== undefined) return await compare(path, clip, flags.against, flags, io);
    const measures = await measured(clip, prompt, flags, io);
    if (flags.plot !== undefined) {
      const chart = plotMeasures(measures, { title: path, fps: clip.info.fps });
      await writeText(flags.plot, chart, flags.overwrite ?? false);
    }
    const facts = { source: path, fps: clip.info.fps, prompt, ...measures };
    io.stdout(flags.json ? `${JSON.stringify(facts)}\n` : describe(measures, clip.info.fps));
  } finally {
    await clip.close();
  }
}

/** Refuses what does not go together. Returns the prompt of the CLIP score, if there is to be one. */
async function checkFlags(path: string, flags: MeasureFlags): Promise<string | undefined> {
  const { against, clip, side, plot, prompt, overwrite = false } = flags;
  if (against !== undefined && [clip, side, plot].some((flag) => flag !== undefined)) {
    throw new UsageError("--against only compares two clips; leave --clip, --side and --plot out");
  }
  if (prompt !== undefined && clip === undefined) {
    throw new UsageError(
      "--prompt is for the CLIP score; name a model with --clip, such as " +
        "--clip openai/clip-vit-large-patch14",
    );
  }
  if (plot !== undefined) await checkFile(plot, overwrite);
  if (clip === undefined) return undefined;
  // What is no file of ours has no settings; whether it is a clip at all is found out later.
  const stored = prompt ?? (await readSettings(path).catch(() => null))?.prompt;
  if (typeof stored === "string" && stored.trim() !== "") return stored;
  throw new UsageError("--clip compares with a text; say which with --prompt");
}

async function measured(
  clip: VideoReader,
  prompt: string | undefined,
  flags: MeasureFlags,
  io: CommandIo,
): Promise<Measures> {
  const device = await openDevice({ gpu: flags.gpu });
  try {
    const model = flags.clip === undefined ? null : await loadClip(flags.clip, device, flags, io);
    try {
      return await measure(watched(clip, flags, io), {
        device,
        side: flags.side,
        ...(model && prompt !== undefined && { clip: { model, prompt } }),
      });
    } finally {
      model?.dispose();
    }
  } finally {
    await device.close();
  }
}

async function loadClip(
  name: string,
  device: ClipModel["device"],
  { quiet }: MeasureFlags,
  io: CommandIo,
): Promise<ClipModel> {
  const { hub, end } = showDownload(io, quiet);
  try {
    return await ClipModel.load(name, { device, hub });
  } finally {
    end();
  }
}

/** The frames of a clip, while progress is shown and until the user interrupts. */
async function* watched(
  clip: VideoReader,
  { quiet }: MeasureFlags,
  { stderr, isTTY, columns, signal }: CommandIo,
): AsyncGenerator<Frame> {
  const { frames: count } = clip.info;
  const shown = quiet || count === null
    ? null
    : startProgress("measuring", "frame", { write: stderr, isTTY, columns });
  try {
    let done = 0;
    for await (const frame of clip.frames()) {
      signal.throwIfAborted();
      yield frame;
      if (count !== null) shown?.update(++done, count);
    }
  } finally {
    shown?.end();
  }
}

async function compare(
  path: string,
  clip: VideoReader,
  against: string,
  flags: MeasureFlags,
  io: CommandIo,
): Promise<void> {
  const other = await openVideo(against);
  try {
    const likeness = await compareClips(watched(clip, flags, io), other.frames());
    const facts = { source: path, against, frames: likeness.ssims.length, ...likeness };
    io.stdout(flags.json ? `${JSON.stringify(facts)}\n` : table(likenessRows(likeness)));
  } finally {
    await other.close();
  }
}

type Row = readonly [string, string];

function likenessRows({ psnr, ssim }: Similarity): Row[] {
  return [
    ["PSNR ↑", psnr === Infinity ? "the same pictures" : `${significant(psnr)} dB`],
    ["SSIM ↑", `${significant(ssim)} of 1`],
  ];
}

/** The figures with their units, and whether more (↑) or less (↓) of them is better. */
function describe(measures: Measures, fps: number): string {
  const { frames, width, height, motion, similarity, sceneCuts, flicker, clip } = measures;
  const rows: Row[] = [[
    "frames",
    `${frames} of ${width}x${height}, ${Number(fps.toFixed(3))} a second`,
  ]];
  if (motion) {
    const { opticalFlowScore, warpError, mawe, visible } = motion;
    rows.push(
      ["OFS ↑", `${significant(opticalFlowScore)} pixels a frame of motion`],
      [
        "warp error ↓",
        warpError === null
          ? "none, nothing is seen again"
          : `${significant(warpError)} squared 8-bit levels that motion leaves`,
      ],
      ["MAWE ↓", mawe === null ? "none, nothing moves or is seen again" : significant(mawe)],
      ["seen again ↑", `${percent(visible)} of the pixels in the next frame`],
    );
  }
  if (similarity) {
    const [[, psnr], [, ssim]] = likenessRows(similarity);
    rows.push(["PSNR", `${psnr}, to the frame before`], ["SSIM", `${ssim}, to the frame before`]);
  }
  if (sceneCuts) {
    const at = sceneCuts.count ? `, at frame ${sceneCuts.cuts.join(", ")}` : "";
    rows.push(["scene cuts ↓", `${sceneCuts.count}${at}`]);
  }
  if (flicker) {
    const { whole, blocks } = flicker;
    rows.push(
      ["flicker ↓", `${levels(whole.level)}, ${percent(whole.share)} of the whole frames' changes`],
      ["  in blocks ↓", `${levels(blocks.level)}, ${percent(blocks.share)} of theirs`],
    );
  }
  if (clip) rows.push(["CLIP score ↑", `${significant(clip.score)} of 100`]);
  return table([...rows, ...measures.remarks.map((remark): Row => ["left out", remark])]);
}

function levels(value: number): string {
  return `${significant(value)} 8-bit levels`;
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}
