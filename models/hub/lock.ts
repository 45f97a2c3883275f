/**
 * A lock between processes: a file that exists while its owner lives. The owner touches it every
 * few seconds, so that one who was killed is noticed, also on another machine.
 *
 * @module
 */

import { fileSystem } from "../../core/byte_source.ts";
import type { Client } from "./http.ts";
import { sleep } from "./http.ts";
import { codeOf, onDisk } from "./disk.ts";

/** Milliseconds between two signs of life. */
const HEARTBEAT = 5000;
/** A lock that was not touched for so many milliseconds has lost its owner. */
const STALE = 30_000;
/** Milliseconds between two looks at somebody else's lock. */
const POLL = 150;

/**
 * Runs `action` while no other process that uses the same `path` does; waits for it, and says so.
 * A lock whose owner has died is taken over.
 *
 * Should two processes ever hold a lock (one was suspended for long), both write the same bytes to
 * the same places and check them before they are used, so that only time is lost.
 *
 * @param what What the lock is for, as the message calls it.
 * @throws {InputError} if the lock cannot be created.
 */
export async function withLock<T>(
  path: string,
  what: string,
  client: Client,
  action: () => Promise<T>,
  stale: number = STALE,
): Promise<T> {
  const fs = await fileSystem();
  const { pid } = (await import("node:process")).default;
  const { hostname } = await import("node:os");
  const content = JSON.stringify({ pid, host: hostname(), id: crypto.randomUUID() });
  await onDisk(path, () => fs.mkdir(path.replace(/[^/]*$/, ""), { recursive: true }));
  let seen = { text: "", touched: 0, since: 0 };
  for (let told = false; !await create(path, content);) {
    client.signal.throwIfAborted();
    const other = await look(path);
    if (!other) continue;
    const now = performance.now();
    if (other.text !== seen.text || other.touched !== seen.touched) seen = { ...other, since: now };
    if (now - seen.since > stale || await isDead(other.text)) {
      await remove(path, other.text);
      continue;
    }
    if (!told) {
      client.notify(`another process is downloading ${what}; waiting for it`);
      told = true;
    }
    await sleep(POLL, client.signal);
  }
  const heart = setInterval(() => {
    const now = new Date();
    // A missed beat is harmless, and a lock that was taken over is not ours to restore.
    fs.utimes(path, now, now).catch(() => {});
  }, HEARTBEAT);
  try {
    return await action();
  } finally {
    clearInterval(heart);
    await remove(path, content);
  }
}

async function create(path: string, content: string): Promise<boolean> {
  const fs = await fileSystem();
  try {
    await fs.writeFile(path, content, { flag: "wx" });
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    await fs.rm(path, { force: true }).catch(() => {}); // created, but no room for its content
    return await onDisk(path, () => Promise.reject(error));
  }
}

async function look(path: string): Promise<{ text: string; touched: number } | undefined> {
  const fs = await fileSystem();
  try {
    return { text: await fs.readFile(path, "utf8"), touched: (await fs.stat(path)).mtimeMs };
  } catch {
    return undefined; // released in between
  }
}

/** Whether the owner was a process of this machine that is no more. */
async function isDead(text: string): Promise<boolean> {
  const [, pid, host] = /^\{"pid":(\d+),"host":("[^"]*")/.exec(text) ?? [];
  if (!pid || JSON.parse(host) !== (await import("node:os")).hostname()) return false;
  try {
    (await import("node:process")).default.kill(+pid, 0);
    return false;
  } catch (error) {
    return codeOf(error) === "ESRCH";
  }
}

/**
 * Removes the lock with that content. Renaming comes first because of several processes that find
 * the same stale lock only one gets it; whoever caught a younger lock puts it back.
 */
async function remove(path: string, content: string): Promise<void> {
  const fs = await fileSystem();
  const aside = `${path}.${crypto.randomUUID()}`;
  try {
    await fs.rename(path, aside);
    if (await fs.readFile(aside, "utf8") !== content) await fs.link(aside, path);
  } catch {
    // Somebody else was faster, which is what was wanted.
  }
  await fs.rm(aside, { force: true }).catch(() => {});
}
