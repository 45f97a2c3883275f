/**
 * Pictures in terminals that show them: the graphics protocol of kitty, and the inline images of
 * iTerm2. Both take a PNG file in base 64, within an escape sequence.
 *
 * @module
 */

/** How a terminal is given a picture. */
export type PictureProtocol = "kitty" | "iterm2";

const BY_PROGRAM: Readonly<Record<string, PictureProtocol>> = {
  "iTerm.app": "iterm2",
  WezTerm: "iterm2",
  ghostty: "kitty",
};

/** Characters of base 64 in one of kitty's sequences at most. */
const KITTY_CHUNK = 4096;

/** One number for all pictures, so that each takes the place of the last. */
const KITTY_ID = 7270;

/** What the variables of the environment say that the terminal understands; `null`: nothing. */
export function pictureProtocol(
  { TERM, TERM_PROGRAM }: Readonly<Record<string, string | undefined>>,
): PictureProtocol | null {
  if (TERM === "xterm-kitty") return "kitty";
  return BY_PROGRAM[TERM_PROGRAM ?? ""] ?? null;
}

/**
 * The text that shows a PNG file over `rows` lines from the cursor's on, wherever it leaves the
 * cursor then.
 */
export function pictureSequence(
  png: Uint8Array,
  protocol: PictureProtocol,
  rows: number,
): string {
  const base64 = toBase64(png);
  if (protocol === "iterm2") {
    const settings = `inline=1;size=${png.length};height=${rows};preserveAspectRatio=1`;
    return `\x1b]1337;File=${settings}:${base64}\x07`;
  }
  const settings = `a=T,f=100,i=${KITTY_ID},p=1,r=${rows},C=1,q=2,`;
  let text = "";
  for (let at = 0; at < base64.length; at += KITTY_CHUNK) {
    const more = at + KITTY_CHUNK < base64.length ? 1 : 0;
    const part = base64.slice(at, at + KITTY_CHUNK);
    text += `\x1b_G${at ? "" : settings}m=${more};${part}\x1b\\`;
  }
  return text;
}

/**
 * A place in a terminal for pictures that replace each other: lines that are made room for once,
 * above the line of the cursor.
 *
 * @param write Takes text for the terminal.
 * @returns Shows a PNG file.
 */
export function picturePlace(
  protocol: PictureProtocol,
  rows: number,
  write: (text: string) => void,
): (png: Uint8Array) => void {
  let room = "\n".repeat(rows);
  const up = `\x1b[${rows}A`;
  const [save, restore] = ["\x1b7", "\x1b8"];
  return (png) => {
    const picture = pictureSequence(png, protocol, rows);
    write(`\r\x1b[K${room}${up}${save}${picture}${restore}\x1b[${rows}B`);
    room = "";
  };
}

function toBase64(bytes: Uint8Array): string {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
}
