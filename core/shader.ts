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
  let key = `${kernel}|${dispatch.variant}|${dispatch.workgroup}`;
  for (const name in dispatch.read) key += `|${name}:${dispatch.read[name].type}`;
  for (const name in dispatch.write) key += `|${name}:${dispatch.write[name].type}`;
  return key;
}

/** The whole shader module of a dispatch. */
export function shaderText(dispatch: Dispatch): string {
  const lines: string[] = [];
  let binding = 0;
  const declare = (access: string, arrays: Dispatch["read"]) => {
    for (const [name, { type }] of Object.entries(arrays)) {
      lines.push(`alias ${name}_t = ${type};`);
      lines.push(
        `@group(0) @binding(${binding++}) var<storage, ${access}> ${name}: array<${name}_t>;`,
      );
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
  lines.push(
    `@compute @workgroup_size(${dispatch.workgroup.join(", ")})`,
    `fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) lid: vec3u,`,
    `  @builtin(global_invocation_id) gid: vec3u, @builtin(num_workgroups) grid: vec3u,`,
    `  @builtin(local_invocation_index) lane: u32) {`,
    dispatch.main(),
    `}`,
  );
  const text = lines.join("\n");
  return /\bf16\b/.test(text) ? `enable f16;\n${text}` : text;
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
