/**
 * Writing safetensors, into memory or into a file.
 *
 * @module
 */

import { fileSystem, MAX_TRANSFER, reasonOf } from "./byte_source.ts";
import { InputError } from "./errors.ts";
import {
  byteLength,
  describe,
  encodeHeader,
  type TensorData,
  type TensorStream,
} from "./safetensors_header.ts";

/**
 * A safetensors file in memory: tensors in the order given, without gaps between them.
 *
 * @throws {InputError} if a name comes twice or is reserved, a dtype is unknown, or `data` has not
 * the bytes that dtype and shape ask for.
 */
export function encodeSafetensors(
  tensors: Iterable<TensorData>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array {
  const list = [...tensors];
  const header = encodeHeader(list, metadata);
  const size = list.reduce((sum, { data }) => sum + data.byteLength, header.byteLength);
  const out = new Uint8Array(size);
  out.set(header);
  let offset = header.byteLength;
  for (const { data } of list) {
    out.set(bytesOf(data), offset);
    offset += data.byteLength;
  }
  return out;
}

/**
 * Writes a safetensors file, tensor by tensor in the order given. The file appears under its name
 * only when it is complete; whatever fails, no part of it is left behind. A tensor given in pieces is
 * never in memory as a whole; a piece may be overwritten when the next one is asked for.
 *
 * @throws {InputError} as {@linkcode encodeSafetensors} does, if the pieces of a tensor have not its
 * bytes, or if the file cannot be written.
 *
 * @example
 * ```ts
 * import { writeSafetensors } from "framezero";
 *
 * const data = new Float32Array([1, 2, 3, 4]);
 * await writeSafetensors("out.safetensors", [{ name: "x", dtype: "F32", shape: [2, 2], data }]);
 * ```
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorData | TensorStream>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const list = [...tensors];
  const header = encodeHeader(list, metadata);
  const fs = await fileSystem();
  const { pid } = (await import("node:process")).default;
  const temporary = `${path}.${pid}.tmp`;
  try {
    const handle = await fs.open(temporary, "w");
    try {
      let position = 0;
      const write = async (bytes: Uint8Array) => {
        for (let done = 0; done < bytes.length;) {
          const length = Math.min(bytes.length - done, MAX_TRANSFER);
          const { bytesWritten } = await handle.write(bytes, done, length, position + done);
          done += bytesWritten;
        }
        position += bytes.length;
      };
      await write(header);
      let due = position;
      for (const tensor of list) {
        const pieces = "data" in tensor ? [tensor.data] : tensor.pieces();
        due += byteLength(tensor.dtype, tensor.shape);
        for (const piece of pieces) await write(bytesOf(piece));
        if (position === due) continue;
        throw new InputError(
          `safetensors: tensor ${describe(tensor.name)}: its pieces must have the bytes of its ` +
            `dtype and shape, they have ${Math.abs(position - due)} ` +
            `too ${position < due ? "few" : "many"}; correct one of them`,
        );
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.rename(temporary, path);
  } catch (cause) {
    // The first failure is the one to tell.
    await fs.rm(temporary, { force: true }).catch(() => undefined);
    if (cause instanceof InputError) throw cause;
    throw new InputError(
      `${path}: the file cannot be written (${reasonOf(cause)}); ` +
        "check the folder, its permissions and the space on the disk",
      { cause },
    );
  }
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}
