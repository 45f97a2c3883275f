/**
 * An inspection in words.
 *
 * @module
 */

import type { Inspection } from "./inspect.ts";

/** Names shown of a long list. */
const SHOWN = 5;

const LAYOUTS = {
  ldm: "single-file (LDM) names",
  diffusers: "diffusers names",
  other: "names of its own",
} as const;

/** Rows of label and text that describe a file. */
export function describeInspection(inspection: Inspection): [label: string, text: string][] {
  const { title, layout, parts, parameters, bytes, dtypes, ignored, checked } = inspection;
  const count = (n: number) => n.toLocaleString("en");
  const rows: [string, string][] = [
    ["model", title],
    ["layout", LAYOUTS[layout]],
    ...Array.from(parts, ([part, { tensors, parameters }]): [string, string] => [
      part,
      `${count(tensors)} tensors, ${count(parameters)} parameters`,
    ]),
    ["parameters", count(parameters)],
    [
      "dtype",
      dtypes.map(([dtype, n]) => dtypes.length > 1 ? `${dtype} (${count(n)})` : dtype)
        .join(", ") || "none",
    ],
    ["size", `${(bytes / 2 ** 20).toFixed(1)} MiB`],
  ];
  if (ignored) rows.push(["ignored", `${count(ignored)} tensors of training or bookkeeping`]);
  if (!checked) return rows;
  const { missing, superfluous, misshapen } = inspection;
  for (const [label, names] of Object.entries({ missing, superfluous, misshapen })) {
    if (names.length) rows.push([label, some(names)]);
  }
  const complete = !missing.length && !superfluous.length && !misshapen.length;
  if (complete) rows.push(["complete", "every tensor is there, and no other"]);
  return rows;
}

/** `12: a, b, …`. */
function some(names: readonly string[]): string {
  const shown = names.slice(0, SHOWN).join(", ");
  return `${names.length}: ${shown}${names.length > SHOWN ? ", …" : ""}`;
}
