/**
 * The pictures that a command line names: read, and named so that settings find them again.
 *
 * @module
 */

import { openByteSource } from "../../core/byte_source.ts";
import { InputError } from "../../core/errors.ts";
import { sha256Of } from "../../core/sha256.ts";
import { decodePicture } from "../picture.ts";
import type { StartImageOptions } from "../start_image.ts";

/** Start image and mask in settings: where they lie, and the sha256 of the files. */
export interface PictureNames {
  /** File of the start image. */
  readonly init?: string;
  /** Its sha256. */
  readonly initSha256?: string;
  /** File of the mask. */
  readonly mask?: string;
  /** Its sha256. */
  readonly maskSha256?: string;
}

/** Pictures, and their names. */
export interface NamedPictures {
  /** What the library is given. */
  readonly options: Pick<StartImageOptions, "image" | "mask">;
  /** What settings hold. */
  readonly names: PictureNames;
}

/**
 * Reads start image and mask.
 *
 * @throws {InputError} if one cannot be read, or is not the file that settings were made with.
 */
export async function readPictures(
  { init, initSha256, mask, maskSha256 }: PictureNames,
): Promise<NamedPictures> {
  const image = init === undefined ? null : await read("init", init, initSha256);
  const masking = mask === undefined ? null : await read("mask", mask, maskSha256);
  return {
    options: {
      ...(image && { image: image.picture }),
      ...(masking && { mask: masking.picture }),
    },
    names: {
      ...(image && { init, initSha256: image.sha256 }),
      ...(masking && { mask, maskSha256: masking.sha256 }),
    },
  };
}

async function read(option: string, path: string, wanted: string | undefined) {
  const source = await openByteSource(path);
  try {
    const bytes = await source.read(0, source.size);
    const sha256 = await sha256Of(bytes);
    if (wanted !== undefined && wanted !== sha256) {
      throw new InputError(
        `${source.name}: the settings were made with a picture of sha256 ${wanted}, this one has ` +
          `${sha256}; give the right one with --${option}`,
      );
    }
    return { picture: decodePicture(bytes, source.name), sha256 };
  } finally {
    await source.close();
  }
}
