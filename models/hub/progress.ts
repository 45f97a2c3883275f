/**
 * How far a download is, how fast it goes, and how long it will take.
 *
 * @module
 */

/** A moment of a download. */
export interface DownloadProgress {
  /** The file that bytes arrived for. */
  readonly file: string;
  /** Bytes on disk, of all files of this download. */
  readonly bytes: number;
  /** Bytes of all files of this download; files that were in the cache before do not count. */
  readonly total: number;
  /** Bytes per second over the last few seconds; what earlier calls had fetched does not count. */
  readonly bytesPerSecond: number;
  /** Seconds that the rest takes at that speed, `null` as long as nothing has arrived. */
  readonly etaSeconds: number | null;
}

/** Sees the progress of a download. */
export type ProgressListener = (progress: DownloadProgress) => void;

/** Counts the bytes of one download. */
export interface Tracker {
  /** `file` has now `bytes` on disk. */
  at(file: string, bytes: number): void;
  /** `bytes` more of `file` came over the network and are on disk. */
  received(file: string, bytes: number): void;
}

/** Speed is measured over so many milliseconds. */
const WINDOW = 5000;
/** Milliseconds between two reports. */
const INTERVAL = 100;

/** Counts towards `total` bytes and tells `report` at most ten times a second, and at the end. */
export function trackProgress(total: number, report: ProgressListener = () => {}): Tracker {
  const onDisk = new Map<string, number>();
  const samples = [{ time: performance.now(), received: 0 }];
  let bytes = 0;
  let received = 0;
  let reported = -Infinity;

  function at(file: string, now: number): void {
    bytes += now - (onDisk.get(file) ?? 0);
    onDisk.set(file, now);
    const time = performance.now();
    if (time - reported < INTERVAL && bytes !== total) return;
    reported = time;
    samples.push({ time, received });
    while (samples.length > 2 && samples[0].time < time - WINDOW) samples.shift();
    const [first] = samples;
    const seconds = (time - first.time) / 1000;
    const bytesPerSecond = seconds > 0 ? (received - first.received) / seconds : 0;
    const etaSeconds = bytesPerSecond > 0 ? (total - bytes) / bytesPerSecond : null;
    report({ file, bytes, total, bytesPerSecond, etaSeconds });
  }

  return {
    at,
    received(file, more) {
      received += more;
      at(file, (onDisk.get(file) ?? 0) + more);
    },
  };
}
