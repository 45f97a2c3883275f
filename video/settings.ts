/**
 * The settings that made a video, as the JSON text that is stored inside its file.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";

/** Longest settings, in bytes of ASCII JSON. Bounds what has to be read of an unknown file. */
export const SETTINGS_LIMIT: number = 1 << 16;

/** The name of the settings file in a folder of pictures. */
export const SETTINGS_FILE = "settings.json";

/**
 * `settings` as JSON text.
 *
 * @throws {InputError} values that JSON cannot hold, or more than 64 KiB of them.
 */
export function settingsText(settings: Record<string, unknown>): string {
  let text: string;
  try {
    text = JSON.stringify(settings);
  } catch (cause) {
    throw new InputError(`settings must be plain JSON values: ${cause}`, { cause });
  }
  const { length } = asciiJson(text);
  if (length > SETTINGS_LIMIT) {
    throw new InputError(
      `settings hold at most ${SETTINGS_LIMIT} bytes of JSON, these hold ${length}; ` +
        "leave the long ones out",
    );
  }
  return text;
}

/** The same JSON with every character beyond ASCII escaped, for formats that allow only ASCII. */
export function asciiJson(json: string): string {
  return json.replace(
    /[^\0-\x7f]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** The JSON object in `text`; `null` for anything else, such as another program's comment. */
export function parseSettings(text: string | undefined): Record<string, unknown> | null {
  if (!text?.trimStart().startsWith("{")) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
