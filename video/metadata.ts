/**
 * Reads back the settings that a video was made with: from the comment tag of MP4 and WebM, the
 * iTXt chunk of PNG, the comment extension of GIF, `settings.json` in a folder of pictures.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import { disk, diskError } from "./output_file.ts";
import { PNG_KEYWORD, PNG_SIGNATURE } from "./png.ts";
import { parseSettings, SETTINGS_FILE, SETTINGS_LIMIT } from "./settings.ts";

/** Bytes at the start of a PNG or GIF file within which its settings lie. */
const HEAD = SETTINGS_LIMIT + 4096;

/**
 * The settings stored in a file or folder that framezero wrote; `null` if it holds none.
 *
 * @throws {InputError} nothing is there, it cannot be read, or it is no format framezero writes.
 */
export async function readSettings(path: string): Promise<Record<string, unknown> | null> {
  const { fs } = await disk();
  const head = new Uint8Array(HEAD);
  let length: number;
  try {
    if ((await fs.stat(path)).isDirectory()) {
      if (!(await fs.readdir(path)).includes(SETTINGS_FILE)) return null;
      return parseSettings(await fs.readFile(`${path}/${SETTINGS_FILE}`, "utf8"));
    }
    const file = await fs.open(path, "r");
    length = (await file.read(head, 0, HEAD, 0).finally(() => file.close())).bytesRead;
  } catch (error) {
    throw diskError(error, path);
  }
  const start = head.subarray(0, length);
  if (PNG_SIGNATURE.every((byte, i) => byte === start[i])) return parseSettings(pngComment(start));
  if (String.fromCharCode(...start.subarray(0, 4)) === "GIF8") {
    return parseSettings(gifComment(start));
  }
  return parseSettings(await containerComment(path));
}

/** Text of the first iTXt or tEXt chunk with our keyword; both begin `keyword NUL`. */
function pngComment(bytes: Uint8Array): string | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const decoder = new TextDecoder();
  for (let at = PNG_SIGNATURE.length; at + 8 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = decoder.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    const [keyword, ...rest] = decoder.decode(data).split("\0");
    if (type === "IDAT") return undefined;
    if (keyword === PNG_KEYWORD && type === "tEXt") return rest.join("\0");
    if (keyword === PNG_KEYWORD && type === "iTXt") return rest.slice(4).join("\0");
    at += length + 12;
  }
  return undefined;
}

/** Text of the first comment extension before the first picture. */
function gifComment(bytes: Uint8Array): string | undefined {
  const COMMENT = 0xfe, EXTENSION = 0x21, HEADER = 13;
  const packed = bytes[10];
  let at = HEADER + (packed & 0x80 ? 3 << ((packed & 7) + 1) : 0);
  while (bytes[at] === EXTENSION) {
    const label = bytes[at + 1];
    let text = "";
    for (at += 2; bytes[at] > 0; at += bytes[at] + 1) {
      text += String.fromCharCode(...bytes.subarray(at + 1, at + 1 + bytes[at]));
    }
    at++;
    if (label === COMMENT) return text;
  }
  return undefined;
}

/** The comment tag of an MP4 or WebM file. */
async function containerComment(path: string): Promise<string | undefined> {
  const { FilePathSource, Input, MP4, WEBM } = await import("mediabunny");
  const input = new Input({ formats: [MP4, WEBM], source: new FilePathSource(path) });
  try {
    return (await input.getMetadataTags()).comment;
  } catch (cause) {
    throw new InputError(
      `settings can be read from MP4, WebM, GIF and PNG files and from folders of PNG files: ` +
        `${path} is none of these, or is damaged`,
      { cause },
    );
  } finally {
    input.dispose();
  }
}
