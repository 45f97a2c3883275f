/**
 * The video codecs: the runtime's own WebCodecs where it has them (browsers), else those of
 * `@napi-rs/webcodecs`, an optional package, loaded on first use.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";

const CLASSES = [
  "VideoEncoder",
  "VideoDecoder",
  "VideoFrame",
  "EncodedVideoChunk",
  "VideoColorSpace",
];

/**
 * Makes the WebCodecs classes that video encoding and decoding need available on `globalThis`,
 * where `mediabunny` looks for them.
 *
 * @param importCodecs how to load the package; tests replace it.
 * @throws {InputError} the package is not installed or its native file cannot be loaded.
 */
export async function loadCodecs(
  importCodecs: () => Promise<object> = () => import("@napi-rs/webcodecs"),
): Promise<void> {
  const missing = CLASSES.filter((name) => !(name in globalThis));
  if (missing.length === 0) return;
  let codecs: object;
  try {
    codecs = await importCodecs();
  } catch (cause) {
    throw new InputError(
      "MP4 and WebM need the package @napi-rs/webcodecs: run `npm install @napi-rs/webcodecs` " +
        "(Deno also wants --allow-ffi and --allow-env), or use .gif, .png or a folder, which " +
        `work without it. Loading it failed: ${cause instanceof Error ? cause.message : cause}`,
      { cause },
    );
  }
  const found = new Map<string, unknown>(Object.entries(codecs));
  for (const name of missing) {
    Object.defineProperty(globalThis, name, {
      value: found.get(name),
      writable: true,
      configurable: true,
    });
  }
}
