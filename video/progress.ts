/**
 * Progress of long work for people: one line that redraws itself on a terminal, a line every tenth
 * of the way elsewhere.
 *
 * @module
 */

/** Where progress is shown. */
export interface ProgressTarget {
  /** Takes text, such as `process.stderr.write`. */
  write(text: string): void;
  /** Whether `\r` moves to the start of the line there. */
  readonly isTTY: boolean;
  /** Characters in a line of the terminal. */
  readonly columns: number;
  /** Milliseconds from any start. Default: `performance.now`. */
  now?(): number;
}

/** Shows how far one piece of work has come. */
export interface Progress {
  /** Tells that `done` of `total` parts are done, and how many seconds other work will take yet. */
  update(done: number, total: number, others?: number): void;
  /** Seconds that the other parts will take, as far as can be told by the last update. */
  readonly left: number;
  /** Ends the line that redraws itself, so that other text can follow. */
  end(): void;
}

const BAR = 24;
/** Parts that the speed is measured over: recent ones, because later steps may have more to do. */
const RECENT = 8;
/** Milliseconds between two drawings: terminals over slow lines must keep up. */
const REDRAW = 100;
const CLEAR = "\r\x1b[K";

/**
 * Starts to show work called `label`, whose parts are `unit`s, such as `"it"`.
 * Speed is the mean over recent parts; the first one, which compiles shaders, is left out of it as
 * soon as there is a second.
 */
export function startProgress(label: string, unit: string, target: ProgressTarget): Progress {
  const now = target.now ?? (() => performance.now());
  const start = now();
  const recent: { done: number; time: number }[] = [];
  let drawn = -Infinity;
  let tenth = 0;
  let open = false;
  let left = 0;

  const state = (done: number, total: number, rate: number, others: number): string =>
    `${done}/${total}  ${formatRate(rate, unit)}` +
    (done < total
      ? `  ${formatDuration(left + others)} left`
      : `  ${formatDuration((now() - start) / 1e3)}`);
  return {
    get left() {
      return left;
    },
    update(done, total, others = 0) {
      const time = now();
      recent.push({ done, time });
      if (recent.length > RECENT) recent.shift();
      const from = recent.length > 1 ? recent[0] : { done: 0, time: start };
      const rate = 1000 * (done - from.done) / Math.max(1, time - from.time);
      left = (total - done) / rate;
      if (target.isTTY) {
        if (done < total && time - drawn < REDRAW) return;
        drawn = time;
        open = true;
        const full = Math.round(BAR * done / total);
        const bar = `[${"█".repeat(full)}${"·".repeat(BAR - full)}]`;
        const line = `${label} ${bar} ${state(done, total, rate, others)}`;
        target.write(CLEAR + line.slice(0, Math.max(1, target.columns - 1)));
        return;
      }
      const reached = Math.floor(10 * done / total);
      if (reached === tenth) return;
      tenth = reached;
      target.write(`${label} ${state(done, total, rate, others)}\n`);
    },
    end() {
      if (open) target.write("\n");
      open = false;
    },
  };
}

/** Parts a second, or seconds a part where that says more: `"2.5 it/s"`, `"4.0 s/it"`. */
export function formatRate(rate: number, unit: string): string {
  return rate >= 1 || rate === 0
    ? `${rate.toFixed(1)} ${unit}/s`
    : `${(1 / rate).toFixed(1)} s/${unit}`;
}

/** Seconds as `m:ss`, or `h:mm:ss`. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n: number) => String(n).padStart(2, "0");
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** Bytes in the largest unit that keeps the number above 1: `"48.3 kB"`. */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = bytes;
  for (; value >= 1000 && unit < units.length - 1; unit++) value /= 1000;
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
