/**
 * How downloads look on the command line.
 *
 * @module
 */

import type { DownloadProgress, HubOptions } from "../../models/hub.ts";
import { formatBytes, formatDuration } from "../progress.ts";
import type { CommandIo } from "./io.ts";

/** Options for downloads, and the end of what they show. */
export interface ShownDownload {
  /** Stop with the command, and tell how far they are. */
  readonly hub: HubOptions;
  /** Ends the line that redraws itself, and tells what an interrupt leaves. */
  end(): void;
}

/**
 * Shows downloads: bytes, speed and time left on one line that redraws itself on a terminal, on a
 * line at the beginning and for every tenth elsewhere. `quiet` shows nothing.
 */
export function showDownload(io: CommandIo, quiet = false): ShownDownload {
  const { signal } = io;
  if (quiet) return { hub: { signal }, end() {} };
  let open = false;
  let tenth = -1;
  let unfinished = false;
  const closeLine = () => {
    if (open) io.stderr("\n");
    open = false;
  };
  const end = () => {
    closeLine();
    if (!unfinished || !signal.aborted) return;
    io.stderr("what has arrived is kept: the same command continues there\n");
  };
  const onProgress = (progress: DownloadProgress) => {
    const { bytes, total } = progress;
    unfinished = bytes < total;
    if (io.isTTY) {
      open = true;
      io.stderr(`\r\x1b[K${line(progress).slice(0, Math.max(1, io.columns - 1))}`);
      if (bytes === total) closeLine();
      return;
    }
    const reached = Math.floor(10 * bytes / Math.max(total, 1));
    if (reached > tenth) io.stderr(`${line(progress)}\n`);
    tenth = reached;
  };
  const onMessage = (text: string) => {
    closeLine();
    io.stderr(`${text}\n`);
  };
  return { hub: { signal, onProgress, onMessage }, end };
}

function line({ file, bytes, total, bytesPerSecond, etaSeconds }: DownloadProgress): string {
  const left = bytes < total && etaSeconds !== null ? `  ${formatDuration(etaSeconds)} left` : "";
  const speed = bytesPerSecond > 0 ? `  ${formatBytes(Math.round(bytesPerSecond))}/s` : "";
  return `downloading ${formatBytes(bytes)} of ${formatBytes(total)}${speed}${left}  ${file}`;
}
