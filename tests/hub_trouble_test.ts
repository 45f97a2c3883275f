/**
 * Downloads that must not happen or cannot: refusals of the Hub, hostile names, no network, no
 * room, no permission. And single files of any server.
 *
 * @module
 */

import assert from "node:assert/strict";
import { readFile, utimes, writeFile } from "node:fs/promises";
import { dirname, posix, relative, win32 } from "node:path";
import { describe, it } from "node:test";
import fc from "fast-check";
import { WeightError } from "../core/errors.ts";
import { downloadFile, downloadModel } from "../models/hub.ts";
import { diskError, sizeText } from "../models/hub/disk.ts";
import { isSafePath } from "../models/hub/names.ts";
import {
  type Answer,
  type ErrorKind,
  filesBelow,
  hubAnswer,
  noise,
  rejectsWith,
  sendFile,
  sha256,
  smallRepo,
  withServer,
} from "./hub_server.ts";

const TOKEN = "hf_TopSecretTopSecret";
const repo = smallRepo();

describe("refusals", () => {
  /** What is said when the listing, or else each file, is answered so. */
  async function says(answer: Answer, message: RegExp, token: string | null = null): Promise<void> {
    for (const place of ["/api/", "/resolve/"]) {
      await withServer(
        (asked) => asked.path.includes(place) ? answer : hubAnswer(repo, asked),
        async ({ options, messages }) => {
          const refused = downloadModel({ ...options, id: repo.id, token });
          await assert.rejects(refused, rejectsWith(message));
          assert.doesNotMatch(messages.join(), /TopSecret/);
        },
      );
    }
  }

  it("name the page to visit", async () => {
    const gated: Answer = { status: 403, headers: { "X-Error-Code": "GatedRepo" } };
    const page = /gated.*visit http:\/\/127.0.0.1:\d+\/artist\/tiny-model, log in and agree/;
    await says(gated, page);
    await says(gated, /agree with the account that your token belongs to/, TOKEN);
    const missing: Answer = { status: 401, headers: { "X-Error-Code": "RepoNotFound" } };
    await says(missing, /no such model, or it is private .*visit http.*HF_TOKEN/);
    await says(missing, /check the spelling, and that your token is valid/, TOKEN);
    await says({ status: 404 }, /no such model/);
    const revision: Answer = { status: 404, headers: { "X-Error-Code": "RevisionNotFound" } };
    await says(revision, /no such branch, tag or commit; visit/);
    await says({ status: 400 }, /answers 400/);
  });

  it("redirects in circles, to files and to nowhere", async () => {
    const to = (Location: string): Answer => ({ status: 302, headers: { Location } });
    await says(to("?again"), /redirects more than 10 times/);
    await says(to("file:///etc/passwd"), /must lead to https addresses, this one leads to file:/);
    await says(to("http://"), /this one leads to none/);
  });

  it("listings that are none", async () => {
    const cases: [string, RegExp][] = [
      ["<html>", /must describe the model in JSON/],
      ["[]", /must have the commit as 40 hexadecimal digits/],
      [JSON.stringify({ sha: "../".repeat(14), siblings: [] }), /40 hexadecimal digits/],
      [
        JSON.stringify({ sha: repo.commit, siblings: [{ rfilename: "a", size: -1 }] }),
        /a name and a length/,
      ],
    ];
    for (const [body, message] of cases) {
      await withServer(() => ({ status: 200, body }), async ({ options }) => {
        const refused = downloadModel({ ...options, id: repo.id });
        await assert.rejects(refused, rejectsWith(message, WeightError));
      });
    }
  });

  it("listings without checksums: the files' own servers are asked, and must know", async () => {
    for (const known of [true, false]) {
      await withServer((asked) => {
        if (!asked.path.startsWith("/api/")) {
          const { headers, ...answer } = hubAnswer(repo, asked);
          return { ...answer, headers: { ...headers, ...(!known && { ETag: '"x"' }) } };
        }
        const siblings = Object.keys(repo.files).map((rfilename) => ({ rfilename }));
        return { status: 200, body: JSON.stringify({ sha: repo.commit, siblings }) };
      }, async ({ options, cache }) => {
        const fetching = downloadModel({ ...options, id: repo.id });
        if (known) return void await fetching;
        const message = /must come with a checksum, the server gives none for model_index.json/;
        await assert.rejects(fetching, rejectsWith(message, WeightError));
        assert.deepEqual(await filesBelow(cache), []);
      });
    }
  });
});

describe("names that would escape", () => {
  it("of files and models are refused before anything is written", async () => {
    const names = [
      "../x",
      "a/../../x",
      "/etc/x",
      "C:/x",
      "a\\..\\x",
      "a//x",
      "./x",
      "x\0",
      "x ",
      "nul",
      "",
      "x".repeat(300),
    ];
    for (const name of names) {
      const files = { [name]: { bytes: noise(10, 1), large: false } };
      const hostile = { ...repo, files };
      await withServer((asked) => hubAnswer(hostile, asked), async ({ options, cache, server }) => {
        const refused = downloadModel({ ...options, id: repo.id, files: (names) => names });
        const message = /could be written outside of the cache; do not use this repository/;
        await assert.rejects(refused, rejectsWith(message));
        assert.deepEqual(await filesBelow(cache), []);
        assert.equal(server.asked.length, 1);
      });
    }
    for (const id of ["..", "../x", "a/..", "a/b/c", "a\\b/c", "a/b--c", "/a", "a/b?x=1"]) {
      await assert.rejects(downloadModel({ id }), rejectsWith(/a model of the Hub is named/));
    }
    const revision = downloadModel({ id: "a/b", revision: "../../x" });
    await assert.rejects(revision, rejectsWith(/a revision is a branch/));
    const files = () => ["other"];
    await withServer((asked) => hubAnswer(repo, asked), async ({ options }) => {
      const refused = downloadModel({ ...options, id: repo.id, files });
      await assert.rejects(refused, rejectsWith(/there is no file "other"/));
    });
  });

  it("no text at all leads out", () => {
    const part = fc.constantFrom("..", ".", "a", "", "/", "\\", "C:", " ", "~", "b.c", "\0", "...");
    const text = fc.array(part, { maxLength: 8 }).map((parts) => parts.join(""));
    fc.assert(
      fc.property(fc.oneof(text, fc.string()), (name) => {
        if (!isSafePath(name)) return;
        for (const { resolve, relative, isAbsolute, sep } of [posix, win32]) {
          const path = relative("/cache", resolve("/cache", name));
          const inside = path !== "" && path.split(sep)[0] !== ".." && !isAbsolute(path);
          assert.ok(inside, JSON.stringify(name));
        }
      }),
      { numRuns: 2000 },
    );
    assert.ok(isSafePath("unet/diffusion_pytorch_model.fp16.safetensors"));
  });
});

describe("no network, no room, no permission", () => {
  it("the copy of before is used where the network is absent or unwanted", async () => {
    let alive = true;
    await withServer((asked) => alive ? hubAnswer(repo, asked) : { status: 503 }, async (bench) => {
      const { options, server, messages } = bench;
      const given = { ...options, id: repo.id };
      const offline = { ...given, offline: true };
      const none = /must not be used \(HF_HUB_OFFLINE\).* holds no complete copy of main/;
      await assert.rejects(downloadModel(offline), rejectsWith(none));
      assert.equal(server.asked.length, 0);
      const { folder } = await downloadModel(given);
      const asked = server.asked.length;
      assert.equal((await downloadModel(offline)).folder, folder);
      assert.equal(server.asked.length, asked);
      const dev = downloadModel({ ...offline, revision: "dev" });
      await assert.rejects(dev, rejectsWith(/no complete copy of dev/));
      alive = false;
      assert.equal((await downloadModel(given)).folder, folder);
      assert.match(messages.join(), /answers 503, 6 times; using the copy in/);
      await writeFile(`${folder}/../../refs/main`, "f".repeat(40));
      await assert.rejects(downloadModel(given), rejectsWith(/503, 6 times; check the network/));
    });
    await withServer(() => ({ status: 200 }), async ({ options, server }) => {
      await server.close();
      const refused = downloadModel({ ...options, id: repo.id });
      await assert.rejects(refused, rejectsWith(/127.0.0.1:\d+ cannot be reached .*6 times/));
    });
  });

  it("a model that does not fit is not begun", async () => {
    await withServer((asked) => {
      const size = 2 ** 52;
      const siblings = [{ rfilename: "x.safetensors", lfs: { size, sha256: "0".repeat(64) } }];
      if (!asked.path.startsWith("/api/")) return { status: 500 };
      return { status: 200, body: JSON.stringify({ sha: repo.commit, siblings }) };
    }, async ({ options, cache, server }) => {
      const refused = downloadModel({ ...options, id: repo.id });
      const message =
        /framezero-hub-\w+\/models--\S+: the disk must have room for 4503.60 TB, only/;
      await assert.rejects(refused, rejectsWith(message));
      assert.deepEqual(await filesBelow(cache), []);
      assert.equal(server.asked.length, 1);
    });
  });

  it("a cache that cannot be written", async () => {
    await withServer((asked) => hubAnswer(repo, asked), async ({ options, cache }) => {
      await writeFile(`${cache}/file`, "");
      const refused = downloadModel({ ...options, id: repo.id, cache: `${cache}/file/hub` });
      await assert.rejects(refused, rejectsWith(/file\/hub\/.*cannot be written .*set HF_HOME/));
    });
    const failed = (code: string) => Object.assign(new Error(code), { code });
    const full = diskError(failed("ENOSPC"), "/disk/x", 4.27e9);
    assert.match(full.message, /^\/disk\/x: the disk is full .* 4\.27 GB more are needed; free/);
    for (const code of ["EROFS", "EACCES", "EPERM"]) {
      assert.match(diskError(failed(code), "/x").message, /must be writable .* HF_HUB_OFFLINE=1/);
    }
    assert.deepEqual([0, 999, 1000, 2.5e6].map(sizeText), [
      "0 bytes",
      "999 bytes",
      "1.00 kB",
      "2.50 MB",
    ]);
  });
});

describe("files of any server", () => {
  const bytes = noise(50_000, 11);

  it("are fetched once for each ETag, and found again without network", async () => {
    let etag = '"one"';
    let content = bytes;
    await withServer((asked) => sendFile(content, asked, { ETag: etag }), async (bench) => {
      const { options, server } = bench;
      const url = `${server.url}/some/checkpoint.safetensors?key=TopSecret`;
      const { path: first, sha256: unknown } = await downloadFile(url, {
        ...options,
        token: TOKEN,
      });
      assert.equal(unknown, null);
      assert.match(first, /\/framezero\/\w{32}\/\w{16}\/checkpoint\.safetensors$/);
      assert.equal(sha256(await readFile(first)), sha256(bytes));
      const asked = server.asked.length;
      assert.equal((await downloadFile(url, options)).path, first);
      assert.equal(server.asked.length, asked + 1, "only a look");
      await utimes(first, 1, 1);
      etag = '"two"';
      content = noise(60_000, 12);
      const { path: second } = await downloadFile(url, options);
      assert.notEqual(dirname(second), dirname(first));
      assert.equal(sha256(await readFile(second)), sha256(content));
      assert.equal((await downloadFile(url, { ...options, offline: true })).path, second);
      const none = downloadFile(`${server.url}/other`, { ...options, offline: true });
      await assert.rejects(none, rejectsWith(/must not be used .*no copy in the cache/));
    });
  });

  it("must be what the caller expects, and stay the same while they are fetched", async () => {
    await withServer((asked) => sendFile(bytes, asked), async ({ options, server, cache }) => {
      const url = `${server.url}/x.safetensors`;
      const wrong = downloadFile(url, { ...options, sha256: "0".repeat(64) });
      await assert.rejects(wrong, rejectsWith(/sha256 of the file must be 0{64}/, WeightError));
      assert.deepEqual(await filesBelow(cache), []);
      const { path } = await downloadFile(url, { ...options, sha256: sha256(bytes).toUpperCase() });
      assert.deepEqual(await filesBelow(cache), [relative(cache, path)]);
      await assert.rejects(downloadFile(url, { ...options, sha256: "12" }), rejectsWith(/64 hex/));
    });
    let count = 0;
    await withServer(
      (asked) => sendFile(bytes, asked, { ETag: `"${count++}"` }),
      async ({ options, server }) => {
        const changing = downloadFile(`${server.url}/x.safetensors`, options);
        await assert.rejects(changing, rejectsWith(/was changed on the server/, WeightError));
      },
    );
  });

  it("of the Hub have a checksum and a page", async () => {
    await withServer((asked) => hubAnswer(repo, asked), async ({ options, server }) => {
      const base = `${server.url}/${repo.id}/resolve/${repo.commit}`;
      const name = "unet/diffusion_pytorch_model.safetensors";
      const found = await downloadFile(`${base}/${name}`, options);
      assert.equal(sha256(await readFile(found.path)), sha256(repo.files[name].bytes));
      assert.equal(found.sha256, sha256(repo.files[name].bytes));
      // Who knows the checksum finds the same copy, also without network.
      const asked = server.asked.length;
      const pinned = { ...options, sha256: found.sha256 };
      assert.deepEqual(await downloadFile(`${base}/${name}`, pinned), found);
      assert.deepEqual(await downloadFile(`${base}/${name}`, { ...pinned, offline: true }), found);
      assert.equal(server.asked.length, asked + 1, "only a look");
      await assert.rejects(downloadFile(`${base}/none`, options), rejectsWith(/visit http/));
    });
  });

  it("are refused when they are pages, pickles, endless or behind a login", async () => {
    const html = { "Content-Type": "text/html; charset=utf-8" };
    const cases: [string, Answer, RegExp, ErrorKind?][] = [
      ["x.safetensors", { status: 200, headers: html, body: "<html>" }, /this is a web page/],
      ["x.ckpt", sendFile(bytes, { path: "", range: null, headers: new Map() }), /Python pickle/],
      [
        "x.safetensors",
        { status: 200, headers: { "Content-Length": undefined }, body: "x" },
        /must say how long the file is/,
      ],
      ["x.safetensors", { status: 403 }, /wants a login: download the file with a browser/],
      ["x.safetensors", { status: 404 }, /answers 404 .*check the address/],
    ];
    for (const [name, answer, message] of cases) {
      await withServer(() => answer, async ({ options, server, cache }) => {
        const refused = downloadFile(`${server.url}/${name}?key=TopSecret`, options);
        await assert.rejects(refused, rejectsWith(message));
        assert.deepEqual(await filesBelow(cache), []);
      });
    }
    await assert.rejects(downloadFile("file:///etc/passwd"), rejectsWith(/only http\(s\)/));
  });

  it("take the name that the server proposes, if it is one", async () => {
    for (const [proposed, name] of [["a.safetensors", "a.safetensors"], ["../a.b", "model."]]) {
      const headers = { "Content-Disposition": `attachment; filename="${proposed}"` };
      await withServer((asked) => sendFile(bytes, asked, headers), async ({ options, server }) => {
        const { path } = await downloadFile(`${server.url}/download/123`, options);
        assert.ok(path.split("/").at(-1)?.startsWith(name), path);
      });
    }
  });
});
