/**
 * An inspection in words.
 *
 * @module
 */

import { sizeText } from "./hub/disk.ts";
import type { Inspection } from "./inspect.ts";

/** Names shown of a long list. */
const SHOWN = 5;

const LAYOUTS = {
  ldm: "single-file (LDM) names",
  diffusers: "diffusers names",
  other: "names of its own",
} as const;

/** A label and what is said under it. */
export type InspectionRow = [label: string, text: string];

const count = (n: number): string => n.toLocaleString("en");

/** Rows that describe a file. */
export function describeInspection(inspection: Inspection): InspectionRow[] {
  const { title, layout, parts, tensors, ignored } = inspection;
  const rows: InspectionRow[] = [
    ["model", title],
    ["layout", LAYOUTS[layout]],
    ...Array.from(parts, ([part, holding]): InspectionRow => [
      part,
      `${count(holding.tensors)} tensors, ${count(holding.parameters)} parameters`,
    ]),
    ["tensors", count(tensors)],
    ...measures(inspection),
  ];
  if (ignored) rows.push(["ignored", `${count(ignored)} tensors of training or bookkeeping`]);
  const faults = faultRows(inspection);
  rows.push(...faults);
  if (inspection.checked && !faults.length) {
    rows.push(["complete", "every tensor is there, and no other"]);
  }
  return rows;
}

/** Rows that describe the parts of a folder, each named and inspected by itself. */
export function describeParts(parts: ReadonlyMap<string, Inspection>): InspectionRow[] {
  return Array.from(parts, ([part, inspection]): InspectionRow[] => {
    const facts = measures(inspection).map((row) => row.join(" ")).join(", ");
    return [
      [part, `${inspection.title}, tensors ${count(inspection.tensors)}, ${facts}`],
      ...faultRows(inspection).map(([label, text]): InspectionRow => [`  ${label}`, text]),
    ];
  }).flat();
}

function measures({ parameters, dtypes, bytes }: Inspection): InspectionRow[] {
  const types = dtypes.map(([dtype, n]) => dtypes.length > 1 ? `${dtype} (${count(n)})` : dtype);
  return [
    ["parameters", count(parameters)],
    ["dtype", types.join(", ") || "none"],
    ["size", sizeText(bytes)],
  ];
}

function faultRows({ checked, missing, superfluous, misshapen }: Inspection): InspectionRow[] {
  return Object.entries(checked ? { missing, superfluous, misshapen } : {})
    .filter(([, names]) => names.length)
    .map(([label, names]) => [label, some(names)]);
}

/** `12: a, b, …`. */
function some(names: readonly string[]): string {
  const shown = names.slice(0, SHOWN).join(", ");
  return `${names.length}: ${shown}${names.length > SHOWN ? ", …" : ""}`;
}
