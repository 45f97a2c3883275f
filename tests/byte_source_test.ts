/**
 * Reading by position: files that vanish or shrink, servers that do not keep to the protocol.
 *
 * @module
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { join } from "node:path";
import { describe, it } from "node:test";
import { openByteSource } from "../core/byte_source.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { encodeSafetensors, openSafetensors, type TensorData } from "../core/safetensors.ts";
import { inFolder } from "./safetensors_setup.ts";

const tensors: TensorData[] = [
  { name: "a.weight", dtype: "F32", shape: [2, 2], data: new Float32Array([1, -2, 3.5, 0]) },
];

async function rejects(
  source: string | URL,
  message: RegExp,
  kind: typeof WeightError | typeof InputError = WeightError,
): Promise<void> {
  await assert.rejects(openSafetensors(source), (error) => {
    assert.ok(error instanceof kind, `${error}`);
    assert.match(error.message, message);
    return true;
  });
}

describe("bytes from files and memory", () => {
  it("memory and Blob give fresh copies of a range, also from Node's Buffer", async () => {
    const bytes = Buffer.from([1, 2, 3, 4]);
    for (const source of [bytes, new Blob([new Uint8Array(bytes)])]) {
      const opened = await openByteSource(source);
      assert.equal(opened.size, 4);
      const part = await opened.read(1, 2);
      part[0] = 99;
      assert.deepEqual(await opened.read(1, 2), new Uint8Array([2, 3]));
      await opened.close();
    }
  });

  it("a file is read to where the caller wants it", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x");
      await writeFile(path, new Uint8Array([1, 2, 3, 4]));
      const source = await openByteSource(path);
      const room = new Uint8Array(8).fill(9);
      const got = await source.read(1, 2, room.subarray(4));
      assert.equal(got.buffer, room.buffer);
      assert.deepEqual(got, new Uint8Array([2, 3]));
      assert.deepEqual(room, new Uint8Array([9, 9, 9, 9, 2, 3, 9, 9]));
      await source.close();
    });
  });

  it("parts of a tensor, read to a place or alone", async () => {
    const own = await openByteSource(encodeSafetensors(tensors));
    await inFolder(async (folder) => {
      const path = join(folder, "x.safetensors");
      await writeFile(path, encodeSafetensors(tensors));
      // A source that makes arrays of its own, and one that reads to where it is told.
      for (const source of [own, path]) {
        const file = await openSafetensors(source);
        const room = new Uint8Array(12);
        const part = await file.readPart("a.weight", 4, 8, room);
        assert.deepEqual(part, new Uint8Array(new Float32Array([-2, 3.5]).buffer));
        assert.equal(part.buffer === room.buffer, source === path);
        const alone = await file.readPart("a.weight", 4, 8);
        assert.equal(alone.buffer.byteLength, 8);
        await assert.rejects(file.readPart("a.weight", 12, 8, room), /has 16 bytes, but 8 from/);
        await file.close();
      }
    });
  });

  it("a File has its name", async () => {
    assert.equal((await openByteSource(new File(["x"], "a.safetensors"))).name, "a.safetensors");
  });

  it("paths that are no files, and URLs of no kind we open", async () => {
    await inFolder(async (folder) => {
      await rejects(join(folder, "none"), /cannot be opened .*check the path/, InputError);
      await rejects(folder, /a file is needed/, InputError);
    });
    const url = new URL("data:text/plain,x");
    await assert.rejects(openSafetensors(url), /only file:, http: and https: URLs/);
  });

  it("a file that is cut while it is open", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.safetensors");
      await writeFile(path, encodeSafetensors(tensors));
      const file = await openSafetensors(path);
      await writeFile(path, "");
      await assert.rejects(file.read("a.weight"), /the file ended at byte \d+, it had \d+/);
      await file.close();
    });
  });
});

describe("bytes over HTTP", () => {
  const bytes = encodeSafetensors(tensors);

  /** Answers ranges as a server should. */
  function serveRange(request: IncomingMessage, response: ServerResponse): void {
    const [, first, last] = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? assert.fail();
    response.writeHead(206, { "Content-Range": `bytes ${first}-${last}/${bytes.length}` });
    response.end(bytes.subarray(+first, +last + 1));
  }

  async function serving(
    answer: (request: IncomingMessage, response: ServerResponse) => void,
    use: (url: string) => Promise<void>,
  ): Promise<void> {
    const server = createServer(answer);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    assert.ok(typeof address === "object" && address !== null);
    try {
      await use(`http://127.0.0.1:${address.port}/model.safetensors`);
    } finally {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  it("reads ranges, and never the whole file", async () => {
    const ranges: string[] = [];
    const answer = (request: IncomingMessage, response: ServerResponse) => {
      ranges.push(request.headers.range ?? "none");
      serveRange(request, response);
    };
    await serving(answer, async (url) => {
      const file = await openSafetensors(`${url}?token=secret`);
      assert.equal(file.name, url, "the query may hold a secret");
      ranges.length = 0;
      assert.deepEqual(await file.readF32("a.weight"), new Float32Array([1, -2, 3.5, 0]));
      const { begin, end } = file.tensors.get("a.weight") ?? assert.fail();
      assert.deepEqual(ranges, [`bytes=${begin}-${end - 1}`]);
      const room = new Uint8Array(20);
      const part = await file.readPart("a.weight", 8, 4, room);
      assert.equal(part.buffer, room.buffer);
      assert.deepEqual(part, new Uint8Array(new Float32Array([3.5]).buffer));
    });
  });

  it("tells what is wrong with a server", async () => {
    const reply =
      (status: number, range: string, body: Uint8Array) =>
      (_: IncomingMessage, response: ServerResponse) => {
        response.writeHead(status, range ? { "Content-Range": range } : {});
        response.end(body);
      };
    const wrong: [ReturnType<typeof reply>, RegExp][] = [
      [reply(200, "", bytes), /must answer .* status 206 .* got 200/],
      [reply(206, "", bytes), /got 206 and ""/],
      [reply(206, `bytes 5-5/${bytes.length}`, bytes.subarray(0, 1)), /got 206 and "bytes 5-5/],
      [reply(206, `bytes 9-0/${bytes.length}`, bytes.subarray(0, 1)), /got 206 and "bytes 9-0/],
      [reply(206, "bytes 0-0/*", bytes.subarray(0, 1)), /got 206 and "bytes 0-0\/\*/],
      [reply(404, "", new Uint8Array(0)), /the server answered 404/],
    ];
    for (const [answer, message] of wrong) {
      await serving(answer, (url) => rejects(url, message, InputError));
    }
    await serving(reply(416, "bytes */0", new Uint8Array(0)), (url) => rejects(url, /empty file/));
    await rejects("http://", /not a valid URL/, InputError);
  });

  it("bodies of a wrong length, a changed file, a server that is gone", async () => {
    let change = 0;
    const answer = (request: IncomingMessage, response: ServerResponse) => {
      if (change === 0) return serveRange(request, response);
      const [, first, last] = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
      const total = change === 3 ? 1e6 : bytes.length;
      response.writeHead(206, { "Content-Range": `bytes ${first}-${last}/${total}` });
      response.end(bytes.subarray(0, +last - +first + 1 + (change === 1 ? 5 : -5)));
    };
    await serving(answer, async (url) => {
      const file = await openSafetensors(url);
      change = 1;
      await assert.rejects(file.read("a.weight"), /announced 16 bytes and sent more/);
      change = 2;
      await assert.rejects(file.read("a.weight"), /announced 16 bytes and sent only 11/);
      change = 3;
      await assert.rejects(file.read("a.weight"), WeightError);
    });
    await rejects("http://127.0.0.1:9/x", /cannot be reached/, InputError);
  });
});
