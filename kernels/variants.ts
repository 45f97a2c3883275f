/**
 * The variant table: which form of an operation an adapter gets. Data, matched from top to bottom
 * against what the adapter says of itself; the last row fits every adapter.
 *
 * @module
 */

import type { DeviceInfo } from "../core/adapter.ts";
import type { Device } from "../core/device.ts";

/**
 * How a matrix product is computed.
 *
 * - `texels`: 8 lanes hold a block of sums in registers; both operands are read from textures.
 * - `registers`: the same, both operands from storage.
 * - `tiles`: 256 threads stage tiles of both operands in workgroup memory.
 * - `matrix`: the same, but whole subgroups multiply matrices from there (experimental in Dawn);
 *   where the adapter has no matrix units for the types at hand, `tiles`.
 */
export type GemmForm = "texels" | "registers" | "tiles" | "matrix";

/** How attention is computed; see `attention.ts`. */
export type AttentionForm = "texels" | "lanes" | "tiles" | "matrix";

/**
 * How rows are reduced: by a workgroup together; by each lane alone; the same, read from textures by
 * normalisations.
 */
export type RowForm = "wide" | "lanes" | "texels";

/** How a product is cut for the workgroups of a GPU. */
export interface Tile {
  /** Rows of sums of a workgroup; a multiple of 4. */
  readonly rows: number;
  /** Columns of sums of a workgroup; a multiple of 4. */
  readonly columns: number;
  /** Terms of the sums that are staged at once. */
  readonly depth: number;
  /**
   * Rows and columns of sums of a thread (`tiles`), multiples of 4, or of a subgroup (`matrix`),
   * multiples of its matrices.
   */
  readonly own: readonly [rows: number, columns: number];
  /** Least number of workgroups, as many as keep the adapter busy: with fewer the next is taken. */
  readonly least: number;
}

/** What an adapter gets. */
export interface Variants {
  /** What the row was measured on, for people. */
  readonly name: string;
  /** Form of matrix products and convolutions. */
  readonly gemm: GemmForm;
  /** Tiles of the form `tiles`, from the largest to one for all products. */
  readonly tiles: readonly Tile[];
  /** Tiles of the form `matrix`, likewise. */
  readonly matrices: readonly Tile[];
  /** Rows and columns of sums in a lane (`texels`). */
  readonly block: readonly [rows: number, columns: number];
  /**
   * Whether the forms `texels` have each lane of a subgroup of 8 fetch a part of what all share, and
   * broadcast it, rather than each fetch all of it.
   */
  readonly broadcast: boolean;
  /** Least number of outputs of an image from which 3×3 convolutions use F(2×2) and F(4×4). */
  readonly winograd: { readonly two: number; readonly four: number };
  /** Form of attention. */
  readonly attention: AttentionForm;
  /** How rows are reduced. */
  readonly rows: RowForm;
}

/** What can be overridden and tuned: all of a row but its name. */
export type VariantChoices = Omit<Variants, "name">;

/** Who decided a choice: the table, a measurement on this very adapter, or a call. */
export type VariantSource = "table" | "tuned" | "overridden";

/** A row of the table. */
export interface VariantRow {
  /** Whether the row is for this adapter. */
  matches(info: DeviceInfo): boolean;
  /** What such an adapter gets. */
  readonly variants: Variants;
}

/** The tile of last resort: 64 threads, for products that few workgroups cover. */
const SMALL: Tile = { rows: 32, columns: 32, depth: 16, own: [4, 4], least: 0 };

/** 256 threads of moderate appetite for registers, then fewer or smaller ones. */
const TILES: readonly Tile[] = [
  { rows: 128, columns: 64, depth: 16, own: [8, 4], least: 128 },
  { rows: 64, columns: 64, depth: 16, own: [4, 4], least: 32 },
  SMALL,
];

const MATRICES: readonly Tile[] = [
  { rows: 128, columns: 64, depth: 16, own: [64, 32], least: 128 },
  { rows: 64, columns: 64, depth: 16, own: [32, 32], least: 0 },
];

/** What all GPUs have in common; none of it has been measured on one. */
const GPU: Omit<Variants, "name"> = {
  gemm: "tiles",
  tiles: TILES,
  matrices: MATRICES,
  block: [16, 8],
  broadcast: false,
  winograd: { two: Infinity, four: Infinity },
  attention: "tiles",
  rows: "wide",
};

/** What adapters have in common that compute on the CPU. */
const SOFTWARE: Omit<Variants, "name"> = {
  gemm: "texels",
  tiles: TILES,
  matrices: MATRICES,
  block: [16, 16],
  broadcast: false,
  winograd: { two: 256, four: 256 },
  attention: "texels",
  rows: "texels",
};

/** Whether an adapter was made by a vendor, given its names and its number in the PCI registry. */
function madeBy(names: RegExp, pci: number): VariantRow["matches"] {
  return ({ vendor, description }) =>
    vendor === String(pci) || names.test(vendor) || (vendor === "" && names.test(description));
}

/** The table. */
export const VARIANT_TABLE: readonly VariantRow[] = [
  {
    matches: ({ software, texels, subgroupSize }) => software && texels && subgroupSize === 8,
    variants: {
      ...SOFTWARE,
      name: "software, subgroups of 8 lanes (llvmpipe through Dawn)",
      // What lanes share costs little there.
      block: [32, 8],
      broadcast: true,
    },
  },
  {
    matches: ({ software, texels }) => software && texels,
    variants: { ...SOFTWARE, name: "software, SIMD vectors of 8 lanes (llvmpipe, SwiftShader)" },
  },
  {
    matches: ({ software }) => software,
    variants: {
      ...SOFTWARE,
      name: "software without textures that are read like storage",
      gemm: "registers",
      attention: "lanes",
      rows: "lanes",
    },
  },
  {
    matches: ({ subgroupMatrix }) => subgroupMatrix !== null,
    variants: { ...GPU, name: "GPU with matrix units", gemm: "matrix", attention: "matrix" },
  },
  {
    matches: madeBy(/nvidia|geforce|quadro|tesla/i, 0x10de),
    variants: {
      ...GPU,
      name: "NVIDIA: registers for 64 sums a thread",
      tiles: [{ rows: 128, columns: 128, depth: 8, own: [8, 8], least: 256 }, ...TILES],
    },
  },
  {
    matches: madeBy(/\bamd\b|radeon/i, 0x1002),
    variants: { ...GPU, name: "AMD" },
  },
  {
    matches: madeBy(/intel/i, 0x8086),
    variants: {
      ...GPU,
      name: "Intel: few units, registers for 32 sums a thread",
      tiles: [{ rows: 64, columns: 64, depth: 16, own: [8, 4], least: 16 }, SMALL],
    },
  },
  {
    matches: madeBy(/apple/i, 0x106b),
    variants: {
      ...GPU,
      name: "Apple: caches in place of large tiles",
      tiles: [{ rows: 64, columns: 64, depth: 16, own: [8, 4], least: 32 }, SMALL],
    },
  },
  {
    matches: () => true,
    variants: { ...GPU, name: "any GPU" },
  },
];

/** A device's row, what replaces parts of it, and the two merged. */
interface Selection {
  readonly row: Variants;
  readonly tuned: Partial<VariantChoices>;
  readonly overridden: Partial<VariantChoices>;
  readonly merged: Variants;
}

// Every product asks, so the table is walked once a device.
const selections = new WeakMap<Pick<Device, "info">, Selection>();

function selectionOf(device: Pick<Device, "info">): Selection {
  let selection = selections.get(device);
  if (!selection) {
    const { variants: row } = VARIANT_TABLE.find(({ matches }) => matches(device.info))!;
    selection = { row, tuned: {}, overridden: {}, merged: row };
    selections.set(device, selection);
  }
  return selection;
}

/** What the device's adapter gets: its row of the table, and what replaces parts of it. */
export function variantsOf(device: Pick<Device, "info">): Variants {
  return selectionOf(device).merged;
}

/**
 * Replaces parts of a device's row for the operations enqueued from now on; what was recorded stays
 * as it is. Overrides go before tuned choices, and those before the table.
 *
 * @param choices All overrides of this source: those of an earlier call end, `{}` ends them all.
 */
export function overrideVariants(
  device: Pick<Device, "info">,
  choices: Partial<VariantChoices>,
  source: Exclude<VariantSource, "table"> = "overridden",
): void {
  const selection = { ...selectionOf(device), [source]: choices };
  const { row, tuned, overridden } = selection;
  selections.set(device, { ...selection, merged: { ...row, ...tuned, ...overridden } });
}

/** Who decided each choice of {@link variantsOf}. */
export function variantSources(
  device: Pick<Device, "info">,
): Record<keyof VariantChoices, VariantSource> {
  const { row, tuned, overridden } = selectionOf(device);
  const { name: _name, ...choices } = row;
  const sourceOf = (choice: string): VariantSource =>
    choice in overridden ? "overridden" : choice in tuned ? "tuned" : "table";
  const sources = Object.keys(choices).map((choice) => [choice, sourceOf(choice)]);
  return Object.fromEntries(sources);
}
