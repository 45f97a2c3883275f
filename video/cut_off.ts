/**
 * Whether the end of an MP4, MOV, WebM or MKV file is missing, from the sizes that its outermost
 * parts announce (ISO/IEC 14496-12, §4.2; RFC 8794, §6; RFC 9559, §5.1). Readers of these formats
 * take a missing end for the end.
 *
 * @module
 */

import type { ByteSource } from "../core/byte_source.ts";

/** Whether an MP4 or MOV file ends inside one of its boxes. */
export async function isBoxFileCutOff(source: ByteSource): Promise<boolean> {
  let at = 0;
  while (at < source.size) {
    const head = await source.read(at, Math.min(16, source.size - at));
    const view = new DataView(head.buffer, head.byteOffset, head.length);
    if (head.length < 8) return true;
    const size = view.getUint32(0);
    // 0 reaches to the end of the file; 1 stands for a size of 64 bits behind the name.
    if (size === 0) return false;
    if (size === 1 && head.length < 16) return true;
    at += Math.max(8, size === 1 ? Number(view.getBigUint64(8)) : size);
  }
  return at > source.size;
}

/** Whether a WebM or MKV file is shorter than its segment says; a live recording does not say. */
export async function isSegmentFileCutOff(source: ByteSource): Promise<boolean> {
  const head = await source.read(0, Math.min(source.size, 4096));
  const header = elementSize(head, 4);
  if (!header) return true;
  const segment = header.end + header.value;
  const body = elementSize(head, segment + 4);
  if (!body) return true;
  return !body.isUnknown && body.end + body.value > source.size;
}

/** The size field of an element: as many bytes as its first has leading zeros, and one. */
function elementSize(
  bytes: Uint8Array,
  at: number,
): { value: number; end: number; isUnknown: boolean } | undefined {
  const length = Math.clz32(bytes[at] ?? 0) - 23;
  const end = at + length;
  if (length > 8 || end > bytes.length) return undefined;
  let value = bytes[at] - (1 << 8 - length);
  let ones = value === (1 << 8 - length) - 1;
  for (const byte of bytes.subarray(at + 1, end)) {
    value = 256 * value + byte;
    ones &&= byte === 255;
  }
  return { value, end, isUnknown: ones };
}
