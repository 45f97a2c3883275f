/**
 * A folder of pictures: `frame_0000.png`, `frame_0001.png`, … and `settings.json`.
 *
 * @module
 */

import type { FrameEncoder } from "./frame.ts";
import type { OutputFolder } from "./output_file.ts";
import { encodePng } from "./png.ts";
import { SETTINGS_FILE, settingsText } from "./settings.ts";

/** The names that a folder of pictures consists of. */
export const FRAME_FOLDER_NAMES: RegExp = /^(frame_\d{4,}\.png|settings\.json)$/;

/** Frames → one PNG file each, every one with `settings`, which also get a file of their own. */
export function frameFolderEncoder(
  folder: OutputFolder,
  options: { settings?: Record<string, unknown> },
): FrameEncoder {
  const { settings } = options;
  let index = 0;
  return {
    async add(frame) {
      const name = `frame_${String(index++).padStart(4, "0")}.png`;
      await folder.writeFile(name, await encodePng(frame, settings));
    },
    async end() {
      if (!settings) return;
      await folder.writeFile(
        SETTINGS_FILE,
        new TextEncoder().encode(`${settingsText(settings)}\n`),
      );
    },
    async close() {},
  };
}
