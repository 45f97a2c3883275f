/**
 * Pictures as clips: a folder of PNG and JPEG files, or one picture.
 *
 * @module
 */

import { type ByteSource, openByteSource } from "../core/byte_source.ts";
import { InputError } from "../core/errors.ts";
import type { FrameStream, Shot } from "./frame_stream.ts";
import { readJpegHead } from "./jpeg.ts";
import { readSettings } from "./metadata.ts";
import { disk, diskError } from "./output_file.ts";
import { decodePicture, readPicture, type Size } from "./picture.ts";
import { PNG_SIGNATURE } from "./png.ts";

/** Frames a second of a folder that does not say: ffmpeg's for numbered pictures. */
const FOLDER_FPS = 25;

/** Bytes at the beginning of a file that nearly always hold the size of its picture. */
const HEAD = 1 << 17;

const isPictureName = (name: string): boolean => /^[^.].*\.(png|jpe?g)$/i.test(name);

/** The size of a picture, upright, without decoding it where its head tells. */
async function pictureSize(path: string): Promise<Size> {
  const source = await openByteSource(path);
  try {
    const head = await source.read(0, Math.min(HEAD, source.size));
    if (head.length >= 24 && PNG_SIGNATURE.every((byte, i) => head[i] === byte)) {
      const view = new DataView(head.buffer, head.byteOffset);
      return { width: view.getUint32(16), height: view.getUint32(20) };
    }
    const jpeg = readJpegHead(head);
    if (!jpeg) return decodePicture(await source.read(0, source.size), path);
    const { width, height, orientation } = jpeg;
    return orientation >= 5 ? { width: height, height: width } : { width, height };
  } finally {
    await source.close();
  }
}

/**
 * Opens a folder of pictures, in the natural order of their names (2 before 10). Files with other
 * names and hidden ones do not count. Its rate is that of framezero's `settings.json`, else 25.
 *
 * @throws {InputError} if there are none, or pictures of different sizes.
 */
export async function openPictureFolder(folder: string): Promise<FrameStream> {
  const { fs, path } = await disk();
  const names = await fs.readdir(folder).catch((error) => {
    throw diskError(error, folder);
  });
  const natural = new Intl.Collator("en", { numeric: true });
  const paths = names.filter(isPictureName).sort(natural.compare).map((name) =>
    path.join(folder, name)
  );
  if (paths.length === 0) {
    throw new InputError(
      `${folder}: a folder must hold pictures (.png, .jpg, .jpeg), this one has none; ` +
        "name another folder, or a file",
    );
  }
  const { width, height } = await pictureSize(paths[0]);
  for (const path of paths) {
    const size = await pictureSize(path);
    if (size.width === width && size.height === height) continue;
    throw new InputError(
      `${folder}: all pictures must have one size, ${paths[0]} has ${width}x${height} and ` +
        `${path} ${size.width}x${size.height}; resize them, or take the odd ones out`,
    );
  }
  const stored = (await readSettings(folder))?.fps;
  const fps = typeof stored === "number" && stored > 0 ? stored : FOLDER_FPS;

  async function* shots(from: number): AsyncGenerator<Shot, void> {
    for (let i = Math.min(Math.floor(from * fps), paths.length - 1); i < paths.length; i++) {
      yield { time: i / fps, rgb: () => readPicture(paths[i]), close() {} };
    }
  }
  return {
    info: {
      ...{ name: folder, kind: "folder", width, height, fps },
      duration: paths.length / fps,
      frames: paths.length,
      hasVariableFrameRate: false,
    },
    shots,
    close: () => Promise.resolve(),
  };
}

/**
 * Opens one picture: a clip of one frame, which is shown for a second.
 *
 * @throws {InputError} as {@link decodePicture}.
 */
export async function openPicture(source: ByteSource): Promise<FrameStream> {
  const bytes = await source.read(0, source.size);
  const { width, height, data } = decodePicture(bytes, source.name);
  async function* shots(): AsyncGenerator<Shot, void> {
    yield await Promise.resolve({
      time: 0,
      rgb: () => ({ width, height, data: data.slice() }),
      close() {},
    });
  }
  return {
    info: {
      ...{ name: source.name, kind: "picture", width, height },
      ...{ fps: 1, duration: 1, frames: 1, hasVariableFrameRate: false },
    },
    shots,
    close: () => source.close(),
  };
}
