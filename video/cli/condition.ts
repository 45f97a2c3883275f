/**
 * The command `condition`: what a ControlNet would be shown of a clip, as a file.
 *
 * @module
 */

import { openDevice } from "../../core/device.ts";
import type { GpuChoice } from "../../core/runtime.ts";
import { formatBytes } from "../progress.ts";
import { writeVideos } from "../writer.ts";
import { type MapsOptions, type MapsRequest, openMaps } from "./control_maps.ts";
import type { CommandIo } from "./io.ts";
import { asUsage, checkTargets, DEFAULT_FPS, UsageError } from "./request.ts";

/** The options of `condition`. */
export interface ConditionFlags extends Omit<MapsOptions, "controlShort"> {
  /** Where to. */
  readonly output?: string[];
  /** Pixels in a row. */
  readonly width?: number;
  /** Rows. */
  readonly height?: number;
  /** Frames a second of the result. */
  readonly fps?: number;
  /** Whether files may be replaced. */
  readonly overwrite?: boolean;
  /** Whether to keep results to oneself. */
  readonly quiet?: boolean;
  /** Which WebGPU. */
  readonly gpu: GpuChoice;
}

/** Side of a clip where nothing says otherwise, and the pixels of a latent cell of SD 1.x. */
const RESOLUTION = 512, CELL = 8;

/**
 * Makes the maps of a clip and writes them.
 *
 * @throws {UsageError} no target, half a size.
 * @throws {InputError} what cannot be read or written.
 */
export async function writeCondition(
  request: MapsRequest,
  flags: ConditionFlags,
  io: CommandIo,
): Promise<void> {
  const { output = [], width, height, fps, overwrite = false, quiet, gpu, ...options } = flags;
  if (!output.length) throw new UsageError("say where the maps go with -o, such as -o edges.mp4");
  if ((width === undefined) !== (height === undefined)) {
    throw new UsageError("--width and --height go together; give both, or --resolution");
  }
  await checkTargets(output, overwrite);
  const size = width !== undefined && height !== undefined ? { width, height } : undefined;
  const say = (text: string) => {
    if (!quiet) io.stderr(`${text}\n`);
  };
  const device = await openDevice({ gpu });
  try {
    const context = { size, factor: CELL, resolution: RESOLUTION, say };
    const maps = await asUsage(() => openMaps(request, options, device, context));
    try {
      const written = await writeVideos(maps.frames(maps.count ?? 1), output, {
        fps: fps ?? maps.fps ?? DEFAULT_FPS,
        settings: { condition: request.kind, source: request.file },
        overwrite,
        signal: io.signal,
      });
      if (quiet) return;
      for (const { path, bytes } of written) io.stdout(`${path}  ${formatBytes(bytes)}\n`);
    } finally {
      await maps.close();
    }
  } finally {
    await device.close();
  }
}
