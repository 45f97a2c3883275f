/**
 * What a target's name means: the format by its extension, a folder of pictures, a contact sheet.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import { FRAME_FOLDER_NAMES } from "./frame_folder.ts";
import { checkFile, checkFolder, disk, isFolder } from "./output_file.ts";
import { loadCodecs } from "./webcodecs.ts";

/** What is written to a target. */
export type TargetFormat = "mp4" | "webm" | "gif" | "png" | "folder" | "sheet";

const FORMATS: Record<string, TargetFormat> = {
  ".mp4": "mp4",
  ".webm": "webm",
  ".gif": "gif",
  ".png": "png",
  ".apng": "png",
};

const SHEET = /^sheet:/;

/**
 * The format and the place that `target` names: `sheet:` before a PNG file's name asks for a
 * contact sheet; a name that ends with `/`, has no extension, or is an existing folder's asks for
 * a folder of PNG files; any other goes by its extension.
 *
 * @throws {InputError} an extension that is not known.
 */
export async function parseTarget(
  target: string,
): Promise<{ format: TargetFormat; path: string }> {
  const path = target.replace(SHEET, "").replace(/(?<=.)[/\\]+$/, "");
  const extension = (await disk()).path.extname(path).toLowerCase();
  if (path === "") throw new InputError("a video must have a name to be written to: got none");
  if (SHEET.test(target)) {
    if (extension === ".png") return { format: "sheet", path };
    throw new InputError(`a contact sheet is a PNG picture: name it sheet:NAME.png, not ${target}`);
  }
  if (/[/\\]$/.test(target) || extension === "" || await isFolder(path)) {
    return { format: "folder", path };
  }
  const format = FORMATS[extension];
  if (format) return { format, path };
  throw new InputError(
    `videos are written as ${Object.keys(FORMATS).join(", ")}, as a folder of pictures (a name ` +
      `that ends with /), or as a contact sheet (sheet:NAME.png): got ${target}`,
  );
}

/**
 * Refuses a target that could not be written, so that nobody computes a video in vain.
 *
 * @throws {InputError} unknown extension, missing folder, no permission, something there already
 * that must not be overwritten, or a codec that is not installed.
 */
export async function checkTarget(
  target: string,
  options: { overwrite?: boolean } = {},
): Promise<void> {
  const { overwrite = false } = options;
  const { format, path } = await parseTarget(target);
  if (format === "folder") await checkFolder(path, overwrite, FRAME_FOLDER_NAMES);
  else await checkFile(path, overwrite);
  if (format === "mp4" || format === "webm") await loadCodecs();
}
