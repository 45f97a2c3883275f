/**
 * What the study found: figures of each variant, how they differ from the reference's, and how much
 * that depends on the seed.
 *
 * @module
 */

import { type Column, significant } from "../table.ts";
import { median } from "../timing.ts";
import { VARIANTS } from "./variants.ts";

/** The measures of one clip. */
export interface Result {
  /** Name of the variant. */
  readonly variant: string;
  /** Text of the prompt. */
  readonly prompt: string;
  /** Seed. */
  readonly seed: number;
  /** Frames of the clip. */
  readonly frames: number;
  /** Denoising steps. */
  readonly steps: number;
  /** Pixels a frame. */
  readonly ofs: number;
  /** Squared 8-bit levels; `null` if no pixel is seen again. */
  readonly warpError: number | null;
  /** Warp error relative to motion; `null` where one of the two is missing. */
  readonly mawe: number | null;
  /** Of consecutive frames. */
  readonly ssim: number;
  /** 8-bit levels, of blocks. */
  readonly flicker: number;
}

/** A measure of the table. */
export type Figure = "mawe" | "warpError" | "flicker" | "ofs" | "ssim";

/** The measures, and what tables call them; the arrow says which way is better. */
export const FIGURES: readonly (readonly [Figure, string])[] = [
  ["mawe", "MAWE ↓"],
  ["warpError", "warp error ↓"],
  ["flicker", "flicker ↓"],
  ["ofs", "OFS"],
  ["ssim", "SSIM ↑"],
];

/** One measure of a variant. */
export interface Summary {
  /** Median over its clips. */
  readonly middle: number;
  /** The ratio to the reference's median, a number for each seed; none for the reference. */
  readonly ratios: readonly number[];
}

/** All measures of a variant. */
export interface Row {
  /** Name of the variant. */
  readonly name: string;
  /** Clips that were made of it. */
  readonly clips: number;
  /** Its measures. */
  readonly figures: Readonly<Record<Figure, Summary>>;
}

/**
 * A row for each variant of which a seed is there with all prompts. Medians, not means: now and then
 * a picture jumps, whatever the settings, and one such clip outweighs all others.
 */
export function summarize(results: readonly Result[]): Row[] {
  const [{ name: reference }] = VARIANTS;
  const clipsOf = (name: string, seed?: number) =>
    results.filter((clip) => clip.variant === name && (seed ?? clip.seed) === clip.seed);
  const names = VARIANTS.flatMap(({ name, steadied }) => steadied ? [name, steadied] : [name]);
  return names.flatMap((name) => {
    const base = name === reference ? [] : clipsOf(reference);
    // Half a seed would be compared with other prompts.
    const own = clipsOf(name)
      .filter(({ seed }) => clipsOf(name, seed).length === clipsOf(reference, seed).length);
    if (!own.length) return [];
    const of = (figure: Figure) => [figure, summaryOf(own, base, figure)] as const;
    const figures = Object.fromEntries(FIGURES.map(([figure]) => of(figure)));
    return [{ name, clips: own.length, figures: figures as Row["figures"] }];
  });
}

function summaryOf(own: readonly Result[], base: readonly Result[], figure: Figure): Summary {
  const ofSeed = (clips: readonly Result[], seed: number) =>
    medianOf(clips.filter((clip) => clip.seed === seed), figure);
  const seeds = base.length ? [...new Set(own.map(({ seed }) => seed))] : [];
  const ratios = seeds.map((seed) => ofSeed(own, seed) / ofSeed(base, seed));
  return { middle: medianOf(own, figure), ratios };
}

function medianOf(results: readonly Result[], figure: Figure): number {
  return median(results.map((result) => result[figure]).filter((value) => value !== null));
}

/** Mean of the ratios, and their standard deviation; `null` for fewer than two. */
export function spreadOf(ratios: readonly number[]): { mean: number; deviation: number | null } {
  const n = ratios.length;
  const mean = ratios.reduce((sum, ratio) => sum + ratio, 0) / n;
  const squares = ratios.reduce((sum, ratio) => sum + (ratio - mean) ** 2, 0);
  return { mean, deviation: n < 2 ? null : Math.sqrt(squares / (n - 1)) };
}

/** Columns of the table. */
export const COLUMNS: readonly Column[] = [
  { title: "settings", width: 35, align: "left" },
  { title: "clips", width: 5, align: "right" },
  ...FIGURES.map(([, title]) => ({ title, width: 20, align: "right" as const })),
];

/** The table's cells: `12.3 (−8 ± 3 %)` is a median, its change, and that one's deviation. */
export function tableOf(rows: readonly Row[]): string[][] {
  return rows.map(({ name, clips, figures }) => [
    name,
    String(clips),
    ...FIGURES.map(([figure]) => cell(figures[figure])),
  ]);
}

function cell({ middle, ratios }: Summary): string {
  if (!ratios.length) return significant(middle);
  const { mean, deviation } = spreadOf(ratios);
  const change = 100 * (mean - 1);
  const signed = `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(0)}`;
  const about = deviation === null ? "" : ` ± ${(100 * deviation).toFixed(0)}`;
  return `${significant(middle)} (${signed}${about} %)`;
}
