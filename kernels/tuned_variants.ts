/**
 * What tuning may choose from, and the file that its results are kept in, one entry an adapter.
 * For programs: the library itself neither reads nor writes that file.
 *
 * @module
 */

import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, isAbsolute, join } from "node:path";
import process from "node:process";
import type { Device } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import { overrideVariants, type Tile, VARIANT_TABLE, type VariantChoices } from "./variants.ts";

/** Values, equal ones once. */
function distinct<T>(values: readonly T[]): T[] {
  return [...new Map(values.map((value) => [JSON.stringify(value), value])).values()];
}

/** The table's lists of tiles; also each of their tiles, or another, before the last resort. */
function tileLists(name: "tiles" | "matrices", others: readonly Tile[]): (readonly Tile[])[] {
  const lists = distinct(VARIANT_TABLE.map(({ variants }) => variants[name]));
  const last = lists[0][lists[0].length - 1];
  const tiles = distinct([...lists.flat(), ...others]).filter((tile) => tile !== last);
  return distinct([...lists, ...tiles.map((tile) => [tile, last])]);
}

/**
 * Outputs of an image from which Winograd's method may pay: never, 64², 32², 16², 8². Of values
 * that measure alike the first is taken, and that is the least daring one.
 */
const THRESHOLDS = [Infinity, 4096, 1024, 256, 64];

/** The values that tuning tries, and the only ones that are read back from the file. */
export const VARIANT_CANDIDATES: {
  readonly [Name in keyof VariantChoices]: readonly VariantChoices[Name][];
} = {
  gemm: ["texels", "registers", "tiles", "matrix"],
  tiles: tileLists("tiles", [
    { rows: 128, columns: 64, depth: 16, own: [8, 8], least: 64 },
    { rows: 64, columns: 64, depth: 32, own: [8, 4], least: 32 },
  ]),
  matrices: tileLists("matrices", [
    { rows: 64, columns: 64, depth: 16, own: [32, 32], least: 32 },
  ]),
  block: [[4, 4], [8, 8], [16, 8], [32, 8], [16, 16], [32, 16]],
  broadcast: [true, false],
  winograd: THRESHOLDS.flatMap((two) => THRESHOLDS.map((four) => ({ two, four }))),
  attention: ["texels", "lanes", "tiles", "matrix"],
  rows: ["texels", "lanes", "wide"],
};

/** Raised when a choice comes to mean something else: entries of other versions are not used. */
const VERSION = 2;

/** What is kept for an adapter. */
interface Entry {
  readonly version: number;
  /** ISO 8601; for people. */
  readonly date: string;
  readonly choices: Partial<VariantChoices>;
}

/** What tells adapters apart: a driver with another name or other features is another. */
export function tuningKey({ info }: Pick<Device, "info">): string {
  const { description, implementation, vendor, architecture } = info;
  const features = [
    info.f16 && "f16",
    info.subgroups && "subgroups",
    info.texels && "texels",
    info.subgroupMatrix && "matrix",
  ].filter((feature) => feature);
  return [description, implementation, vendor, architecture, features.join(" ")].join(" | ");
}

/**
 * Folder of files that can be made again: `XDG_CACHE_HOME`, else what the system's custom is.
 *
 * @param platform In Node's words: `linux`, `darwin`, `win32`, …
 * @param home The user's folder.
 */
export function cacheFolder(
  platform: string,
  env: Readonly<Record<string, string | undefined>>,
  home: string,
): string {
  const { XDG_CACHE_HOME: xdg, LOCALAPPDATA: local } = env;
  // Relative ones count for nothing, says the XDG Base Directory Specification.
  if (xdg && isAbsolute(xdg)) return xdg;
  if (platform === "win32") return local || join(home, "AppData", "Local");
  return platform === "darwin" ? join(home, "Library", "Caches") : join(home, ".cache");
}

/** The file that tuned choices are kept in. */
export function tunedVariantsFile(): string {
  const folder = cacheFolder(process.platform, process.env, homedir());
  return join(folder, "framezero", "variants.json");
}

/**
 * Puts choices tuned on this adapter into effect, if there are any that can be read and used.
 *
 * @param warn Told in one line why a file or an entry that is there is not used.
 * @param file Default: {@link tunedVariantsFile}.
 * @returns Whether there were.
 */
export async function loadTunedVariants(
  device: Pick<Device, "info">,
  warn: (line: string) => void,
  file?: string,
): Promise<boolean> {
  let path: string, text: string;
  try {
    path = file ?? tunedVariantsFile();
    text = await readFile(path, "utf8");
  } catch {
    // Nothing was tuned, or the program may not look: no reason to stop.
    return false;
  }
  const ignore = (why: string) => {
    warn(`${path}: ${why}, so the built-in table is used; bench/tune.ts --save makes it anew`);
    return false;
  };
  const entries = parseEntries(text);
  if (!entries) return ignore("this is no list of tuned variants");
  const entry = entries[tuningKey(device)];
  if (entry === undefined) return false;
  if (!isRecord(entry) || entry.version !== VERSION) {
    return ignore("what was tuned on this adapter is of another version");
  }
  const choices = knownChoices(entry.choices);
  if (!choices) return ignore("what was tuned on this adapter is unknown");
  overrideVariants(device, choices, "tuned");
  return true;
}

/**
 * Keeps choices for this adapter, in place of earlier ones; other adapters' stay.
 *
 * @param file Default: {@link tunedVariantsFile}. It appears whole or not at all.
 * @returns The file.
 * @throws {InputError} if it cannot be written.
 */
export async function saveTunedVariants(
  device: Pick<Device, "info">,
  choices: Partial<VariantChoices>,
  file: string = tunedVariantsFile(),
): Promise<string> {
  const entry: Entry = { version: VERSION, date: new Date().toISOString(), choices };
  const others = parseEntries(await readFile(file, "utf8").catch(() => "")) ?? {};
  const entries = { ...others, [tuningKey(device)]: entry };
  const temporary = `${file}.${process.pid}.part`;
  try {
    await mkdir(dirname(file), { recursive: true });
    await writeFile(temporary, `${JSON.stringify(entries, null, 1)}\n`);
    await rename(temporary, file);
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => {/* the first error says more */});
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new InputError(
      `tuned variants must be written to ${file}: ${reason}; XDG_CACHE_HOME can name another place`,
      { cause },
    );
  }
  return file;
}

/** A choice for people: `32×8`, `two 64, four 1024`, `texels`; lists of tiles by their sizes. */
export function describeChoice(value: unknown): string {
  if (Array.isArray(value)) {
    return value.map(describeChoice).join(value.every(isRecord) ? " | " : "×");
  }
  if (isRecord(value)) {
    const { rows, columns, depth, own } = value;
    if (own) return `${rows}×${columns}×${depth} by ${describeChoice(own)}`;
    return Object.entries(value).map(([name, part]) => `${name} ${describeChoice(part)}`).join(
      ", ",
    );
  }
  if (typeof value === "boolean") return value ? "yes" : "no";
  return value === Infinity ? "never" : String(value);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parseEntries(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text);
    return isRecord(value) ? value : null;
  } catch {
    return null;
  }
}

/** The candidates that stored choices name, `null` if one is none. JSON writes infinity as null. */
function knownChoices(stored: unknown): Partial<VariantChoices> | null {
  if (!isRecord(stored)) return null;
  const candidates: Readonly<Record<string, readonly unknown[]>> = VARIANT_CANDIDATES;
  const choices: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(stored)) {
    const wanted = JSON.stringify(value);
    const all = Object.hasOwn(candidates, name) ? candidates[name] : [];
    const known = all.find((candidate) => JSON.stringify(candidate) === wanted);
    if (known === undefined) return null;
    choices[name] = known;
  }
  return choices;
}
