/**
 * Cleaning a prompt as CLIP's own code does before it is split into tokens: repair of text that was
 * decoded wrongly (what ftfy does there), HTML entities, white space, lower case.
 *
 * @module
 */

import { decodeHTML, decodeHTMLStrict } from "entities";

/**
 * How text is cleaned: `"ftfy"` as OpenAI's CLIP does, and transformers where ftfy is installed;
 * `"basic"` as transformers' CLIPTokenizer does without it. Ordinary prompts come out the same.
 */
export type TextCleanup = "ftfy" | "basic";

/** Layers of damage that are undone; also keeps nested entities from costing quadratic time. */
const MAX_REPAIRS = 16;

/**
 * Text as CLIP reads it: cleaned, white space collapsed, lower case.
 *
 * `"ftfy"` decodes HTML entities and repairs UTF-8 that was read as Windows-1252 or Latin-1 ("Ã©"
 * for "é"; mix-ups with other encodings stay), C1 and other control characters, terminal colours,
 * Latin ligatures, full- and half-width forms, curly quotes and lone surrogates.
 * `"basic"` drops invisible characters and sets CJK ideographs apart. Both compose (NFC).
 */
export function cleanText(text: string, cleanup: TextCleanup = "ftfy"): string {
  return (cleanup === "ftfy" ? repairText(text) : separateIdeographs(text)).toWellFormed()
    .replace(/\p{White_Space}+/gu, " ").replace(/^ | $/g, "").toLowerCase();
}

/** The blocks that BERT's basic tokenizer counts as Chinese characters. */
const IDEOGRAPH = new RegExp(
  "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff" +
    "\u{20000}-\u{2a6df}\u{2a700}-\u{2ceaf}\u{2f800}-\u{2fa1f}]",
  "gu",
);

function separateIdeographs(text: string): string {
  const visible = text.replace(/(?![\t\n\r])[\p{C}\ufffd]/gu, "");
  return visible.replace(IDEOGRAPH, " $& ").normalize("NFC");
}

function repairText(text: string): string {
  // A "<" says that this is markup, whose entities are left to the decoding at the end.
  const entities = !text.includes("<");
  for (let pass = 0, before = ""; pass < MAX_REPAIRS && text !== before; pass++) {
    before = text;
    text = repairOnce(entities ? text.replace(/&#?[0-9A-Za-z]{1,24};/g, decodeEntity) : text);
  }
  return decodeHTML(decodeHTML(text.normalize("NFC")));
}

const STRICT_TEXT = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });

/** Bytes 0x80 … 0xFF as Windows-1252; its five holes stay C1 control characters. */
const WINDOWS_1252 = Array.from(
  new TextDecoder("windows-1252").decode(Uint8Array.from({ length: 128 }, (_, i) => 0x80 + i)),
);

/** The byte that each character was, if Latin-1 or Windows-1252 was read. */
const MISREAD_BYTES = new Map<string, number>(
  WINDOWS_1252.flatMap((char, i) => [[char, 0x80 + i], [String.fromCharCode(0x80 + i), 0x80 + i]]),
);

const TAIL = `[\\x80-\\x9f${WINDOWS_1252.slice(0, 64).join("")}]`;
const SEQUENCE = `[Â-ß]${TAIL}|[à-ï]${TAIL}{2}|ð${TAIL}{3}`;
const MISREAD = new RegExp(`(?:${SEQUENCE})+`, "g");
/** What can follow an accented letter in honest text: "CAFÉ…", "«été»", "víš…", "NESTLÉ®". */
const AFTER_LETTER = "[\\xa0\\xad‚„…Š‹Ž‘’“”•–—™š›ž£©«®²³´·¹»]";
/** A lone sequence that honest text may hold as well. Others hardly occur there. */
const HONEST = new RegExp(
  `^(?:[ÂÃÎÐ][…’]|[Ò-×Ù-Ûß].|[Ä-ÍÏÑ-Þ](?:${AFTER_LETTER}|¿)|[à-ï]${AFTER_LETTER}{2})$`,
);

/**
 * Decodes sequences that can only be misread UTF-8, and all of them if the text has nothing else
 * beyond ASCII: then the whole text went through the same mistake.
 */
function repairMisread(text: string): string {
  const runs = text.match(MISREAD);
  if (!runs) return text;
  const certain = runs.some((run) => !HONEST.test(run)) &&
    /^\p{ASCII}*$/u.test(text.replace(MISREAD, ""));
  return text.replace(MISREAD, (run, at: number) => {
    // A capital between small letters is suspect by itself, but not before an apostrophe.
    const inWord = /^[Ä-ÑØ-Þ][^\xa0’]$/.test(run) && /[a-z]/.test(text.charAt(at + 2));
    if (!certain && !inWord && HONEST.test(run)) return run;
    try {
      return STRICT_TEXT.decode(Uint8Array.from(run, (char) => MISREAD_BYTES.get(char) ?? 0));
    } catch {
      return run; // overlong, a surrogate, or beyond Unicode
    }
  });
}

/** One round of repairs, in ftfy's order. */
function repairOnce(text: string): string {
  // deno-lint-ignore no-control-regex
  text = text.replace(/\x1b\[[0-9;]*[A-Za-z]/g, "");
  for (let before = ""; text !== before;) text = repairMisread(before = text);
  return text
    .replace(/[\x80-\x9f]/g, (char) => WINDOWS_1252[char.charCodeAt(0) - 0x80])
    // NFKC would also modernise the long s of this one.
    .replaceAll("\ufb05", "\u017ft")
    .replace(/[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06]/g, compatible)
    .replace(/[\u3000\uff01-\uffef]/g, compatible)
    .replace(/[\u02bc\u2018-\u201b]/g, "'")
    .replace(/[\u201c-\u201f]/g, '"')
    .toWellFormed()
    // deno-lint-ignore no-control-regex
    .replace(/[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g, "");
}

function compatible(char: string): string {
  return char.normalize("NFKC");
}

/** A named or numbered entity; names in capitals mean capitals (`&EACUTE;`). */
function decodeEntity(entity: string): string {
  const decoded = decodeHTMLStrict(entity);
  if (decoded !== entity || entity !== entity.toUpperCase()) return decoded;
  const small = entity.toLowerCase();
  const char = decodeHTMLStrict(small);
  return char === small ? entity : char.toUpperCase();
}
