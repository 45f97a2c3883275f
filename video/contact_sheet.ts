/**
 * A contact sheet: all frames side by side in one PNG picture.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";
import type { ByteSink, Frame, FrameEncoder } from "./frame.ts";
import { filterScanlines, PNG_SIGNATURE, pngChunk, pngHeader, pngSettings } from "./png.ts";

/** How a contact sheet is laid out. */
export interface SheetOptions {
  /** Frames side by side; 4 unless told. `Infinity` makes one strip. */
  columns?: number;
  /** Pixels of white between frames; 4 unless told. */
  gap?: number;
  /** Whether each frame carries its number in its upper left corner; no unless told. */
  label?: boolean;
}

const BACKGROUND = 255;

/** Digits of 3×5 dots, 15 bits each, from the upper left; octal, so a row is a digit of it. */
const DIGITS = [
  ...[0o75557, 0o26227, 0o71747, 0o71717, 0o55711],
  ...[0o74717, 0o74757, 0o71111, 0o75757, 0o75717],
];

/** Paints `index` in white on black into the upper left corner of `frame`, in place. */
function paintNumber(frame: Frame, index: number): void {
  const dot = Math.max(1, Math.floor(frame.width / 128));
  Array.from(String(index), Number).forEach((digit, place) => {
    for (let y = 0; y < 7 * dot; y++) {
      for (let x = 0; x < 5 * dot; x++) {
        const column = Math.floor(x / dot) - 1, row = Math.floor(y / dot) - 1;
        const inside = column >= 0 && column < 3 && row >= 0 && row < 5;
        const lit = inside && DIGITS[digit] >> (14 - 3 * row - column) & 1;
        const left = place * 4 * dot + x;
        if (left >= frame.width || y >= frame.height) continue;
        const at = 3 * (y * frame.width + left);
        frame.data.fill(lit ? 255 : 0, at, at + 3);
      }
    }
  });
}

/** Copies `frame` into `sheet`, `left` pixels from its left edge. */
function paste(frame: Frame, sheet: Frame, left: number): void {
  const stride = frame.width * 3;
  for (let y = 0; y < frame.height; y++) {
    const row = frame.data.subarray(y * stride, (y + 1) * stride);
    sheet.data.set(row, (y * sheet.width + left) * 3);
  }
}

/** A running zlib stream whose output goes into IDAT chunks of `sink`. */
function imageDataStream(sink: ByteSink): {
  write(bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  end(): Promise<void>;
  abort(): Promise<void>;
} {
  const zlib = new CompressionStream("deflate");
  const writer = zlib.writable.getWriter();
  let failure: unknown;
  const drained = zlib.readable.pipeTo(
    new WritableStream({ write: (bytes) => sink.write(pngChunk("IDAT", bytes)) }),
  ).catch((error) => {
    failure = error;
  });
  /** Runs `action`; a failure of the sink comes before whatever the stream makes of it. */
  const guarded = async (action: () => Promise<void>): Promise<void> => {
    try {
      await action();
    } catch (error) {
      throw failure ?? error;
    }
    if (failure) throw failure;
  };
  return {
    write: (bytes) => guarded(() => writer.write(bytes)),
    end: () =>
      guarded(async () => {
        await writer.close();
        await drained;
      }),
    abort: () => writer.abort().catch(() => {}),
  };
}

/**
 * Frames → one PNG, row after row of them, with `settings` inside; at most one row is kept in
 * memory. The height of the picture is written into its header at the end. A strip
 * (`columns: Infinity`) is one row and is kept whole.
 *
 * @throws {InputError} `columns` that is no positive integer or infinity, a negative `gap`.
 */
export function sheetEncoder(
  sink: ByteSink,
  options: SheetOptions & { settings?: Record<string, unknown> },
): FrameEncoder {
  const { columns = 4, gap = 4, label = false } = options;
  if (!(columns >= 1 && (Number.isInteger(columns) || columns === Infinity))) {
    throw new InputError(`columns must be a positive integer or Infinity: got ${columns}`);
  }
  if (!(Number.isInteger(gap) && gap >= 0)) {
    throw new InputError(`gap must be a whole number of pixels, 0 or more: got ${gap}`);
  }
  let row: Frame[] = [];
  let index = 0;
  let width = 0, height = 0;
  let last: Uint8Array | undefined;
  let stream: ReturnType<typeof imageDataStream> | undefined;

  /** Compresses `band` behind what is there already. */
  const append = async (band: Frame): Promise<void> => {
    await stream?.write(filterScanlines(band.data, band.width, band.height, last));
    last = band.data.subarray(-3 * band.width);
    height += band.height;
  };
  const blank = (rows: number): Frame => ({
    width,
    height: rows,
    data: new Uint8Array(width * rows * 3).fill(BACKGROUND),
  });
  const writeRow = async (): Promise<void> => {
    const cell = row[0];
    if (!stream) {
      width = row.length * (cell.width + gap) - gap;
      await sink.write(PNG_SIGNATURE);
      await sink.write(pngHeader(width, 1));
      await sink.write(pngSettings(options.settings));
      stream = imageDataStream(sink);
    } else if (gap > 0) {
      await append(blank(gap));
    }
    const band = blank(cell.height);
    row.forEach((frame, column) => paste(frame, band, column * (cell.width + gap)));
    await append(band);
    row = [];
  };

  return {
    async add(frame) {
      const copy = { ...frame, data: frame.data.slice() };
      if (label) paintNumber(copy, index);
      index++;
      row.push(copy);
      if (row.length === columns) await writeRow();
    },
    async end() {
      if (row.length > 0) await writeRow();
      await stream?.end();
      await sink.write(pngChunk("IEND"));
      await sink.write(pngHeader(width, height), PNG_SIGNATURE.length);
    },
    async close() {
      await stream?.abort();
    },
  };
}
