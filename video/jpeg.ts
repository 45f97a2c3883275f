/**
 * What a JPEG file says before its pixels: its size, and how the camera was held (ITU-T T.81,
 * annex B; Exif 2.3, §4.6.4).
 *
 * @module
 */

/** The head of a JPEG file. */
export interface JpegHead {
  /** Pixels in a row, as they are stored. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Exif's tag 0x0112, 1 … 8: how the stored rows have to be turned. 1 is upright. */
  readonly orientation: number;
}

/** Markers of frames: SOF0 … SOF15 without the three that are tables. */
const isFrame = (marker: number) =>
  marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);

/** Reads the head of a JPEG file; `null` if it ends before its frame begins. */
export function readJpegHead(bytes: Uint8Array): JpegHead | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let orientation = 1;
  for (let at = 2; at + 9 <= bytes.length;) {
    if (bytes[at] !== 0xff) return null;
    const marker = bytes[at + 1];
    // Fill bytes may stand before a marker.
    if (marker === 0xff) {
      at++;
      continue;
    }
    const length = view.getUint16(at + 2);
    if (length < 2) return null;
    if (isFrame(marker)) {
      return { width: view.getUint16(at + 7), height: view.getUint16(at + 5), orientation };
    }
    if (marker === 0xe1) orientation = exifOrientation(bytes.subarray(at + 4, at + 2 + length));
    at += 2 + length;
  }
  return null;
}

/** The orientation in an APP1 segment; 1 if it holds none, or something else. */
function exifOrientation(segment: Uint8Array): number {
  const isExif = segment.length >= 14 && String.fromCharCode(...segment.subarray(0, 4)) === "Exif";
  if (!isExif) return 1;
  const tiff = new DataView(segment.buffer, segment.byteOffset + 6, segment.byteLength - 6);
  const little = tiff.getUint16(0) === 0x4949;
  const directory = tiff.getUint32(4, little);
  if (directory + 2 > tiff.byteLength) return 1;
  const entries = tiff.getUint16(directory, little);
  for (let i = 0; i < entries; i++) {
    const entry = directory + 2 + 12 * i;
    if (entry + 12 > tiff.byteLength) return 1;
    if (tiff.getUint16(entry, little) !== 0x0112) continue;
    const value = tiff.getUint16(entry + 8, little);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}
