/**
 * From a {@link Dispatch} to WGSL text and uniform bytes.
 *
 * @module
 */

import type { Dispatch, Param } from "./kernel.ts";

/** Bytes of the uniform block of one dispatch; also the alignment that every adapter grants. */
export const UNIFORM_BYTES = 256;

/** Identifies the shader of a dispatch: equal keys mean equal text. */
export function shaderKey(kernel: string, dispatch: Dispatch): string {
  let key = `${dispatch.family ?? kernel}${
    dispatch.foldable ? " folded" : ""
  }|${dispatch.variant}|${dispatch.workgroup}`;
  for (const name in dispatch.read) {
    const binding = dispatch.read[name];
    key += `|${name}:${"texture" in binding ? binding.format : binding.type}`;
  }
  for (const name in dispatch.write) key += `|${name}:${dispatch.write[name].type}`;
  return key;
}

/** The whole shader module of a dispatch. */
export function shaderText(dispatch: Dispatch): string {
  const lines: string[] = [];
  let binding = 0;
  const declare = (access: string, arrays: Dispatch["read"]) => {
    for (const [name, array] of Object.entries(arrays)) {
      const place = `@group(0) @binding(${binding++})`;
      if ("texture" in array) {
        lines.push(`${place} var ${name}: texture_storage_2d<${array.format}, read>;`);
        continue;
      }
      lines.push(`alias ${name}_t = ${array.type};`);
      lines.push(`${place} var<storage, ${access}> ${name}: array<${name}_t>;`);
    }
  };
  declare("read", dispatch.read);
  declare("read_write", dispatch.write);
  const params = Object.entries(dispatch.params);
  if (params.length) {
    const fields = params.map(([name, { type }]) => `${name}: ${type}`).join(", ");
    lines.push(`struct Params { ${fields} }`);
    lines.push(`@group(0) @binding(${binding}) var<uniform> p: Params;`);
  }
  if (dispatch.declarations) lines.push(dispatch.declarations());
  const size = dispatch.workgroup.join(", ");
  if (dispatch.foldable) {
    lines.push(
      `fn body(wg: vec3u, lid: vec3u, gid: vec3u, grid: vec3u, lane: u32) {`,
      dispatch.main(),
      `}`,
    );
  }
  lines.push(
    `@compute @workgroup_size(${size})`,
    `fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) lid: vec3u,`,
    `  @builtin(global_invocation_id) gid: vec3u, @builtin(num_workgroups) grid: vec3u,`,
    `  @builtin(local_invocation_index) lane: u32,${dispatch.builtins ?? ""}) {`,
    dispatch.foldable
      ? `for (var i = 0u; i < p.folded; i++) {
          let at = vec3u(wg.x * p.folded + i, wg.yz);
          body(at, lid, at * vec3u(${size}) + lid, vec3u(grid.x * p.folded, grid.yz), lane);
        }`
      : dispatch.main(),
    `}`,
  );
  const text = lines.join("\n");
  const enable = /\bf16\b/.test(text) ? "enable f16;\n" : "";
  return `${enable}${dispatch.directives ?? ""}${text}`;
}

/** Workgroups that are folded into one at most, and those that must be left for all cores. */
const MOST_FOLDED = 16;
const LEAST_WORKGROUPS = 32;

/**
 * The dispatch as the adapter gets it: foldable ones are folded where that pays, else they lose the
 * mark.
 */
export function folded(dispatch: Dispatch, software: boolean): Dispatch {
  if (!dispatch.foldable) return dispatch;
  if (!software) return { ...dispatch, foldable: false };
  const [x, y, z] = dispatch.workgroups;
  const spare = Math.floor(x * y * z / LEAST_WORKGROUPS);
  const count = Math.max(1, Math.min(MOST_FOLDED, x, spare));
  return {
    ...dispatch,
    params: { ...dispatch.params, folded: { type: "u32", value: count } },
    workgroups: [Math.ceil(x / count), y, z],
  };
}

/** Writes parameters in order of their names' declaration into a uniform block. */
export function packParams(params: Readonly<Record<string, Param>>, into: DataView): void {
  let offset = 0;
  for (const name in params) {
    const { type, value } = params[name];
    if (type === "f32") into.setFloat32(offset, value, true);
    else if (type === "i32") into.setInt32(offset, value, true);
    else into.setUint32(offset, value, true);
    offset += 4;
  }
}
