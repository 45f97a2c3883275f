/**
 * Downloads over bad lines: cuts at any byte, servers that lie, break, stall and limit, damaged
 * leftovers, several processes at once.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { mkdir, readFile, truncate, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { InputError, WeightError } from "../core/errors.ts";
import { downloadModel, type HubOptions } from "../models/hub.ts";
import { makeClient } from "../models/hub/http.ts";
import { missingBlocks, partialOf, rangeBytes, readJournal } from "../models/hub/journal.ts";
import { withLock } from "../models/hub/lock.ts";
import {
  type Answer,
  type Asked,
  type Bench,
  blobName,
  type ErrorKind,
  fileAsked,
  filesBelow,
  hubAnswer,
  noise,
  rejectsWith,
  type Repo,
  sendFile,
  sha256,
  withServer,
} from "./hub_server.ts";

const NAME = "model.safetensors";
const COMMIT = "00112233445566778899aabbccddeeff00112233";

function repoOf(bytes: Uint8Array): Repo {
  return { id: "owner/one", commit: COMMIT, files: { [NAME]: { bytes, large: true } } };
}

/** A Hub with one file, whose requests are answered by `answer`. */
function withFile(
  repo: Repo,
  answer: (asked: Asked, good: Answer) => Answer,
  use: (bench: Bench & { fetchIt(more?: Partial<HubOptions>): Promise<string> }) => Promise<void>,
): Promise<void> {
  return withServer((asked) => {
    const good = hubAnswer(repo, asked);
    return fileAsked(repo, asked) === NAME ? answer(asked, good) : good;
  }, (bench) =>
    use({
      ...bench,
      async fetchIt(more = {}) {
        const tuning = { ...bench.options.tuning, ...more.tuning };
        const options = { ...bench.options, ...more, tuning };
        return join((await downloadModel({ id: repo.id, ...options })).folder, NAME);
      },
    }));
}

/** Where the content of the only file lies. */
function blobOf(cache: string, repo: Repo): string {
  return `${cache}/models--owner--one/blobs/${blobName(repo.files[NAME])}`;
}

/** Waits for a condition, and fails if it does not come true. */
async function until(condition: () => Promise<boolean>): Promise<void> {
  const start = performance.now();
  while (!await condition()) {
    assert.ok(performance.now() - start < 30_000, String(condition));
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const lengthOf = (body: Answer["body"] = "") => body.length;

describe("breaks", () => {
  const bytes = noise(50_000, 7);
  const repo = repoOf(bytes);

  it("100 cuts at random bytes: the next run fetches exactly the rest", async () => {
    let state = 12345;
    const random = (below: number) => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return state % below;
    };
    let cut = 0;
    let sent = 0;
    let kept = 0;
    let down = false;
    const answer = (asked: Asked, good: Answer): Answer => {
      if (down) return { status: 503 };
      const first = asked.range?.[0] ?? 0;
      const body = lengthOf(good.body);
      const cutAt = cut - first < body ? Math.max(cut - first, 0) : undefined;
      down = cutAt !== undefined;
      sent += cutAt ?? body;
      return { ...good, cutAt };
    };
    for (let round = 0; round < 100; round++) {
      await withFile(repo, answer, async ({ cache, fetchIt }) => {
        cut = random(bytes.length);
        down = false;
        const tuning = { connections: 1, blockBytes: 2000 + random(2 * bytes.length) };
        const broken = { name: "InputError", message: /answers 503, 6 times.*what has arrived/ };
        await assert.rejects(fetchIt({ tuning }), broken, `cut at ${cut}`);
        const blob = blobOf(cache, repo);
        await assert.rejects(readFile(blob), /ENOENT/);
        const arrived = rangeBytes(await readJournal(partialOf(blob, bytes.length)));
        assert.ok(arrived <= cut);
        kept += arrived / cut || 0;
        cut = Infinity;
        down = false;
        sent = 0;
        assert.equal(sha256(await readFile(await fetchIt({ tuning }))), sha256(bytes));
        assert.equal(sent, bytes.length - arrived, "nothing is fetched twice");
      });
    }
    assert.ok(kept > 90, `of what was sent before the cuts ${kept} % was kept`);
  });

  it("a line that breaks again and again is taken up within one run", async () => {
    let broken = 0;
    const answer = (_: Asked, good: Answer): Answer => {
      const cutAt = lengthOf(good.body) > 700 ? 700 : undefined;
      if (cutAt) broken++;
      return { ...good, cutAt };
    };
    await withFile(repo, answer, async ({ fetchIt }) => {
      const file = await fetchIt({ tuning: { blockBytes: 8000, connections: 3 } });
      assert.equal(sha256(await readFile(file)), sha256(bytes));
      assert.ok(broken > 50, `${broken} breaks`);
    });
  });

  it("several ranges at a time, each asked for once", async () => {
    let open = 0;
    let most = 0;
    const big = repoOf(noise(3_000_000, 1));
    await withServer(async (asked) => {
      if (fileAsked(big, asked) === null) return hubAnswer(big, asked);
      most = Math.max(most, ++open);
      await new Promise((resolve) => setTimeout(resolve, 20));
      open--;
      return hubAnswer(big, asked);
    }, async ({ options, server }) => {
      const tuning = { ...options.tuning, blockBytes: 250_000, connections: 4 };
      const { folder } = await downloadModel({ ...options, id: big.id, tuning });
      assert.equal(sha256(await readFile(join(folder, NAME))), blobName(big.files[NAME]));
      assert.ok(most > 1 && most <= 4, `${most} at a time`);
      const ranges = server.asked.flatMap(({ range }) => range ? [range[0]] : []);
      assert.deepEqual(
        ranges.sort((a, b) => a - b),
        Array.from({ length: 12 }, (_, i) => i * 25e4),
      );
    });
  });

  it("an abort keeps what has arrived", async () => {
    const stop = new AbortController();
    const answer = (asked: Asked, good: Answer): Answer => {
      if ((asked.range?.[0] ?? 0) < 30_000) return good;
      return { ...good, silent: true, cutAt: 5_000 };
    };
    await withFile(repo, answer, async ({ cache, fetchIt }) => {
      const partial = partialOf(blobOf(cache, repo), bytes.length);
      const tuning = { blockBytes: 10_000, connections: 1 };
      const aborted = assert.rejects(fetchIt({ signal: stop.signal, tuning }), /enough/);
      const written = async () => (await readFile(partial.data)).subarray(30_000, 35_000);
      const sent = Buffer.from(bytes.subarray(30_000, 35_000));
      await until(async () => sent.equals(await written().catch(() => sent.subarray(1))));
      stop.abort(new Error("enough"));
      await aborted;
      assert.deepEqual(await readJournal(partial), [{ start: 0, end: 35_000 }]);
      await assert.rejects(fetchIt({ signal: stop.signal }), /enough/);
    });
  });

  it("a journal or file cut at any byte leads to the same content", async () => {
    let good = false;
    const answer = (asked: Asked, whole: Answer): Answer =>
      good || (asked.range?.[0] ?? 0) < 24_000 ? whole : { status: 503 };
    for (const cut of [0, 1, 5, 6, 7, 8, 12, 13, 14, 18, 19, 24, 25, 31]) {
      await withFile(repo, answer, async ({ cache, fetchIt, messages }) => {
        good = false;
        const tuning = { blockBytes: 8000, connections: 1 };
        await assert.rejects(fetchIt({ tuning }), /503/);
        const { data, journal } = partialOf(blobOf(cache, repo), bytes.length);
        assert.equal(await readFile(journal, "utf8"), "50000\n0 8000\n8000 16000\n16000 24000\n");
        await truncate(journal, cut);
        // Odd cuts: the disk lost what the journal speaks of.
        if (cut % 2) await truncate(data, 100).then(() => truncate(data, bytes.length));
        good = true;
        assert.equal(sha256(await readFile(await fetchIt())), sha256(bytes));
        const lost = cut % 2 && cut >= 13;
        assert.equal(messages.some((text) => /was damaged; starting again/.test(text)), !!lost);
      });
    }
  });

  it("gaps are split into blocks", () => {
    const ranges = [{ start: 2, end: 5 }, { start: 6, end: 7 }];
    assert.deepEqual(
      missingBlocks(ranges, 12, 3),
      [[0, 2], [5, 6], [7, 10], [10, 12]].map(([start, end]) => ({ start, end })),
    );
    assert.deepEqual(missingBlocks([{ start: 0, end: 4 }], 4, 3), []);
  });
});

describe("servers that do not keep their word", () => {
  const bytes = noise(30_000, 9);
  const repo = repoOf(bytes);
  const blocks = { tuning: { blockBytes: 10_000 } };

  /** Nothing wrong may be left under the file's name. */
  async function refused(
    answer: (asked: Asked, good: Answer) => Answer,
    message: RegExp,
    kind: ErrorKind = WeightError,
  ): Promise<void> {
    await withFile(repo, answer, async ({ cache, fetchIt }) => {
      await assert.rejects(fetchIt(blocks), rejectsWith(message, kind));
      const left = await filesBelow(cache);
      assert.deepEqual(left.filter((name) => !/framezero\.(incomplete|journal)$/.test(name)), []);
    });
  }

  it("wrong bytes of the right length", async () => {
    const other = noise(30_000, 10);
    const wrong = /sha256 of the file must be \w{64}, what arrived has \w{64} and was deleted/;
    await refused((asked) => sendFile(other, asked), wrong);
  });

  it("lengths other than listed", async () => {
    const message = /must have 30000 bytes, the server now says 29999/;
    await refused((asked) => sendFile(bytes.subarray(1), asked), message);
    const content = { "Content-Length": "29999" };
    await refused((_) => ({ status: 200, headers: content, body: bytes }), message);
  });

  it("more bytes than announced, other ranges, bodies that never come", async () => {
    const chunked = { "Transfer-Encoding": "chunked", "Content-Length": undefined };
    await refused((_, { headers }) => ({
      status: 206,
      headers: { ...headers, ...chunked },
      body: `4e20\r\n${"x".repeat(20_000)}\r\n0\r\n\r\n`,
    }), /sends more bytes than it announced/);
    await refused((_, good) => {
      return { ...good, headers: { ...good.headers, "Content-Range": "bytes 5-9/30000" } };
    }, /must answer a request for bytes \d+-\d+ with those, it answers 206 with "bytes 5-9/);
    await refused(
      (_, good) => ({ ...good, cutAt: 0 }),
      /the connection broke.* 6 times/,
      InputError,
    );
  });

  it("silence is a broken line", async () => {
    let first = true;
    await withFile(repo, (_, good) => {
      const silent = first;
      first = false;
      return silent ? { ...good, cutAt: 1000, silent } : good;
    }, async ({ fetchIt }) => {
      const file = await fetchIt({ tuning: { idleSeconds: 0.2, retrySeconds: 0.001 } });
      assert.equal(sha256(await readFile(file)), sha256(bytes));
    });
  });

  it("no ranges: one stream from the beginning, also after a break", async () => {
    let count = 0;
    const whole = (asked: Asked): Answer => {
      const cutAt = asked.range === null && count++ === 0 ? 11_111 : undefined;
      return { ...sendFile(bytes, { ...asked, range: null }), cutAt };
    };
    await withFile(repo, whole, async ({ fetchIt, messages, server }) => {
      const file = await fetchIt(blocks);
      assert.equal(sha256(await readFile(file)), sha256(bytes));
      assert.match(messages.join(), /sends whole files only/);
      assert.equal(server.asked.length, 4, "listing, a range in vain, a break, the file");
    });
  });

  it("429: waits as long as it is told, within reason", async () => {
    const limitOnce = (retryAfter: string) => {
      let first = true;
      return (_: Asked, good: Answer): Answer => {
        const limited = first;
        first = false;
        return limited ? { status: 429, headers: { "Retry-After": retryAfter } } : good;
      };
    };
    await withFile(repo, limitOnce("1"), async ({ fetchIt, messages }) => {
      const start = performance.now();
      await fetchIt();
      assert.ok(performance.now() - start > 950);
      assert.match(messages.join(), /limits the rate of requests; trying again in 1 s/);
    });
    const inAnHour = new Date(Date.now() + 3600e3).toUTCString();
    const message = /wants to be asked again in (59|60) minutes/;
    await refused(limitOnce(inAnHour), message, InputError);
  });
});

describe("several at once", () => {
  it("two processes end with one good copy, fetched once", async () => {
    const bytes = noise(400_000, 3);
    const repo = repoOf(bytes);
    await withServer(async (asked) => {
      if (asked.range) await new Promise((resolve) => setTimeout(resolve, 50));
      return hubAnswer(repo, asked);
    }, async ({ options: { endpoint, cache }, server, cache: folder }) => {
      const settings = { id: repo.id, endpoint, cache, tuning: { blockBytes: 50_000 } };
      const [one, two] = await Promise.all([childProcess(settings), childProcess(settings)]);
      assert.equal(one, two);
      assert.equal(sha256(await readFile(join(one, NAME))), sha256(bytes));
      const ranges = server.asked.flatMap(({ range }) => range ? [range[0]] : []);
      assert.equal(ranges.length, 8, "each range was asked for once");
      assert.deepEqual(await filesBelow(folder), [
        `models--owner--one/blobs/${sha256(bytes)}`,
        "models--owner--one/refs/main",
        `models--owner--one/snapshots/${COMMIT}/${NAME}`,
      ]);
    });
  });

  it("a killed process leaves what the next one continues with", async () => {
    const bytes = noise(400_000, 4);
    const repo = repoOf(bytes);
    let kill = () => {};
    let killed = false;
    await withServer((asked) => {
      const stall = !killed && (asked.range?.[0] ?? 0) >= 200_000;
      if (stall) setTimeout(() => kill(), 100);
      return { ...hubAnswer(repo, asked), ...(stall && { silent: true, cutAt: 10 }) };
    }, async ({ options, cache }) => {
      const tuning = { ...options.tuning, blockBytes: 50_000, connections: 1 };
      const settings = { id: repo.id, endpoint: options.endpoint, cache, tuning };
      const dead = childProcess(settings, (child) => kill = () => child.kill("SIGKILL"));
      await assert.rejects(dead, /SIGKILL/);
      killed = true;
      const blob = blobOf(cache, repo);
      assert.deepEqual(await readJournal(partialOf(blob, bytes.length)), [{ start: 0, end: 2e5 }]);
      await downloadModel({ ...options, id: repo.id, tuning });
      assert.equal(sha256(await readFile(blob)), sha256(bytes));
    });
  });

  it("locks: waits for a living owner, and says so; takes over from a dead one", async () => {
    await withServer(() => ({ status: 404 }), async ({ cache, options, messages }) => {
      const client = makeClient(
        { cache, endpoint: "http://127.0.0.1", token: null, offline: false },
        options,
      );
      const path = `${cache}/.locks/x/a.lock`;
      const order: string[] = [];
      const hold = (name: string) => () =>
        new Promise<void>((resolve) => {
          order.push(`${name} in`);
          setTimeout(() => resolve(void order.push(`${name} out`)), 50);
        });
      await Promise.all(["a", "b", "c"].map((name) => withLock(path, "f", client, hold(name))));
      assert.ok([0, 2, 4].every((i) => order[i][0] === order[i + 1][0]), order.join());
      assert.match(messages[0], /another process is downloading f; waiting for it/);

      const dead = JSON.stringify({ pid: 2 ** 22 + 1, host: hostname(), id: "x" });
      const elsewhere = JSON.stringify({ pid: process.pid, host: "elsewhere", id: "y" });
      for (const [content, stale] of [[dead, undefined], [elsewhere, 300]] as const) {
        await mkdir(`${cache}/.locks/x`, { recursive: true });
        await writeFile(path, content);
        await utimes(path, 0, 0);
        await Promise.all(
          ["d", "e"].map((name) => withLock(path, "f", client, hold(name), stale)),
        );
        assert.ok(order.at(-1)?.[0] === order.at(-2)?.[0], order.join());
      }
      await assert.rejects(
        withLock(path, "f", client, () => Promise.reject(new Error("own"))),
        /own/,
      );
      assert.deepEqual(await filesBelow(cache), [], "no lock stays behind");
    });
  });
});

/** Runs a download in a process of its own; its result is the folder. */
function childProcess(
  settings: Readonly<Record<string, unknown>>,
  onStart: (child: ReturnType<typeof spawn>) => void = () => {},
): Promise<string> {
  const module = new URL("../models/hub.ts", import.meta.url).href;
  const code = `import { downloadModel } from ${JSON.stringify(module)};
    console.log((await downloadModel({ ...${JSON.stringify(settings)}, token: null })).folder);`;
  const call = process.versions.bun ? ["-e", code] : ["eval", "--ext=ts", code];
  const env = { ...process.env, HF_HUB_OFFLINE: "0" };
  const child = spawn(process.execPath, call, { env, stdio: ["ignore", "pipe", "pipe"] });
  onStart(child);
  let text = "";
  let errors = "";
  child.stdout?.on("data", (bytes) => text += bytes);
  child.stderr?.on("data", (bytes) => errors += bytes);
  return new Promise((resolve, reject) => {
    child.on("error", reject).on("close", (status, signal) => {
      if (status === 0) resolve(text.trim());
      else reject(new Error(`${signal ?? status}: ${errors}`));
    });
  });
}
