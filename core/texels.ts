/**
 * Texels: what a tensor holds, copied into a texture, four neighbouring numbers each.
 *
 * Adapters that compute on the CPU may read texels faster than buffers. Mesa's llvmpipe (25.0) reads
 * four numbers of a buffer for each of 8 lanes with about 300 instructions, a branch for each lane
 * among them, but fetches 8 texels with a third of that: texels are 16 bytes and have a transposition
 * of their own. Writing texels is slow there, so they are only ever copied.
 *
 * @module
 */

import type { DType } from "./dtype.ts";
import { GpuError } from "./errors.ts";
import { formatShape } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

/** Formats of texels: of f32, of f16, and of whole numbers of 8 bits that lie in u32. */
export type TexelFormat = "rgba32float" | "rgba16float" | "rgba8sint";

/** Bytes of a texel. */
const TEXEL_BYTES: Readonly<Record<TexelFormat, number>> = {
  rgba32float: 16,
  rgba16float: 8,
  rgba8sint: 4,
};

const FORMATS: Readonly<Partial<Record<DType, TexelFormat>>> = {
  f32: "rgba32float",
  f16: "rgba16float",
  u32: "rgba8sint",
};

/** Texels in a row of a texture. */
const WIDTH = 1024;

/**
 * What a row has room for besides: were rows a power of two apart in memory, numbers below each other
 * would compete for the same places in caches.
 */
const SPARE = 16;

/** A texture that holds what a tensor holds. */
export interface Texels {
  /** Row after row of {@link WIDTH} texels. */
  readonly texture: GPUTexture;
  /** What is in a texel. */
  readonly format: TexelFormat;
}

/** What most typings lack of WebGPU's interface. */
interface Language {
  readonly wgslLanguageFeatures?: { has(name: string): boolean };
}

/** Whether shaders can read textures as they read storage. */
export function hasTexels(gpu: GPU): boolean {
  const { wgslLanguageFeatures } = gpu as Language;
  return wgslLanguageFeatures?.has("readonly_and_readwrite_storage_textures") === true;
}

/** Bytes of a texture of `rows` rows. */
export function texelBytes(format: TexelFormat, rows: number): number {
  return rows * (WIDTH + SPARE) * TEXEL_BYTES[format];
}

/**
 * Format and rows of the texels of a tensor.
 *
 * @throws {GpuError} if its elements do not come in fours, or not as numbers that texels can be.
 */
export function texelsOf(tensor: Tensor): { format: TexelFormat; rows: number } {
  const format = FORMATS[tensor.dtype];
  const texels = format && tensor.bytes / TEXEL_BYTES[format];
  if (!texels || !Number.isInteger(texels) || tensor.offset % TEXEL_BYTES[format] !== 0) {
    throw new GpuError(
      `texels: a ${tensor.dtype} tensor of shape ${formatShape(tensor.shape)} at byte ` +
        `${tensor.offset} does not consist of texels of ${format ?? "any format"}`,
    );
  }
  return { format, rows: Math.ceil(texels / WIDTH) };
}

/** Whether the adapter has textures of the size of a tensor. */
export function fitsTexels({ bytes, dtype, device }: Tensor): boolean {
  const format = FORMATS[dtype];
  const { maxTextureDimension2D: most } = device.gpu.limits;
  return format !== undefined && bytes <= most * WIDTH * TEXEL_BYTES[format];
}

/** A texture of `rows` rows. */
export function createTexture(gpu: GPUDevice, format: TexelFormat, rows: number): GPUTexture {
  return gpu.createTexture({
    size: [WIDTH + SPARE, rows],
    format,
    usage: GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_DST,
  });
}

/** Encodes the copy of a tensor's `bytes` at `offset` of a buffer into texels. */
export function copyTexels(
  encoder: GPUCommandEncoder,
  buffer: GPUBuffer,
  offset: number,
  bytes: number,
  { texture, format }: Texels,
): void {
  const bytesPerRow = WIDTH * TEXEL_BYTES[format];
  const rows = Math.floor(bytes / bytesPerRow);
  const rest = (bytes - rows * bytesPerRow) / TEXEL_BYTES[format];
  if (rows) {
    encoder.copyBufferToTexture({ buffer, offset, bytesPerRow }, { texture }, [WIDTH, rows]);
  }
  if (rest) {
    encoder.copyBufferToTexture(
      { buffer, offset: offset + rows * bytesPerRow, bytesPerRow },
      { texture, origin: [0, rows] },
      [rest, 1],
    );
  }
}

/** WGSL: `load_<name>(at)`, the texel at `at` of all, as four floats. */
export function texelLoader(name: string): string {
  return `
    fn load_${name}(at: u32) -> vec4f {
      return vec4f(textureLoad(${name}, vec2u(at % ${WIDTH}u, at / ${WIDTH}u)));
    }`;
}
