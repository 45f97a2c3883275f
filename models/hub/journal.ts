/**
 * What has been written of a file, kept next to it, so that a download can continue after any kind
 * of end. A line is added only after its bytes are in the file.
 *
 * @module
 */

import { fileSystem } from "../../core/byte_source.ts";
import { fileSize, onDisk } from "./disk.ts";

/** Bytes from `start` up to but excluding `end`. */
export interface ByteRange {
  /** First byte. */
  start: number;
  /** The byte after the last one. */
  end: number;
}

/** An unfinished file and its journal. */
export interface PartialFile {
  /** The unfinished file: full length, with holes. */
  readonly data: string;
  /** Its journal: a line with the length, then a line `start end` for each range written. */
  readonly journal: string;
  /** Length of the finished file. */
  readonly size: number;
}

/**
 * Where the unfinished form of `target` lies. Not in Python's `….incomplete`: its tools take the
 * length of that file for what has arrived, and these have holes.
 */
export function partialOf(target: string, size: number): PartialFile {
  return {
    data: `${target}.framezero.incomplete`,
    journal: `${target}.framezero.journal`,
    size,
  };
}

/** Ranges that have arrived, merged and in order; none if file and journal do not fit together. */
export async function readJournal({ data, journal, size }: PartialFile): Promise<ByteRange[]> {
  const fs = await fileSystem();
  if (await fileSize(data) !== size) return [];
  const text = await fs.readFile(journal, "utf8").catch(() => "");
  // A line without its end may have lost digits, so what follows the last line break is left out.
  const [header, ...lines] = text.split("\n").slice(0, -1);
  if (header !== String(size)) return [];
  const ranges: ByteRange[] = [];
  for (const line of lines) {
    const [, start, end] = /^(\d+) (\d+)$/.exec(line) ?? [];
    if (start && +start < +end && +end <= size) ranges.push({ start: +start, end: +end });
  }
  ranges.sort((a, b) => a.start - b.start);
  const merged: ByteRange[] = [];
  for (const range of ranges) {
    const last = merged.at(-1);
    if (last && range.start <= last.end) last.end = Math.max(last.end, range.end);
    else merged.push(range);
  }
  return merged;
}

/** Writes the journal anew: what an interrupted line left behind must not meet the next one. */
export async function writeJournal(
  { journal, size }: PartialFile,
  ranges: readonly ByteRange[],
): Promise<void> {
  const fs = await fileSystem();
  const lines = [String(size), ...ranges.map(({ start, end }) => `${start} ${end}`)];
  await onDisk(journal, async () => {
    await fs.writeFile(`${journal}.new`, lines.join("\n") + "\n");
    await fs.rename(`${journal}.new`, journal);
  });
}

/** Notes that a range is in the file. */
export async function noteRange(
  { journal }: PartialFile,
  { start, end }: ByteRange,
): Promise<void> {
  const fs = await fileSystem();
  await onDisk(journal, () => fs.appendFile(journal, `${start} ${end}\n`));
}

/** Sum of lengths. */
export function rangeBytes(ranges: readonly ByteRange[]): number {
  return ranges.reduce((sum, { start, end }) => sum + end - start, 0);
}

/** What is missing between `ranges` (merged, in order), in pieces of at most `block` bytes. */
export function missingBlocks(
  ranges: readonly ByteRange[],
  size: number,
  block: number,
): ByteRange[] {
  const blocks: ByteRange[] = [];
  let from = 0;
  for (const { start, end } of [...ranges, { start: size, end: size }]) {
    for (; from < start; from = Math.min(from + block, start)) {
      blocks.push({ start: from, end: Math.min(from + block, start) });
    }
    from = end;
  }
  return blocks;
}

/** Removes both. */
export async function discard({ data, journal }: PartialFile): Promise<void> {
  const fs = await fileSystem();
  await onDisk(data, () => fs.rm(data, { force: true }));
  await onDisk(journal, () => fs.rm(journal, { force: true }));
}
