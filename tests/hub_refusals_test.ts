/**
 * Models that cannot be had or cannot be run: one clear sentence each, and nothing left behind.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { openDevice } from "../core/device.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { BUILT_IN, StableDiffusion } from "../models/stable_diffusion.ts";
import {
  type Answer,
  type Asked,
  type ErrorKind,
  fileAsked,
  hubAnswer,
  rejectsWith,
  type RepoFile,
  repoOf,
  withHub,
} from "./hub_server.ts";

const device = await openDevice();
after(() => device.close());

const repo = await repoOf(fileURLToPath(BUILT_IN), "artist/tiny-shapes");
const PROMPT = "a red heart";

describe("what goes wrong", () => {
  const UNET = "unet/diffusion_pytorch_model.safetensors";
  const listed = (files: Record<string, RepoFile>) => (asked: Asked) =>
    hubAnswer({ ...repo, files }, asked);
  const without = (pattern: RegExp): Record<string, RepoFile> =>
    Object.fromEntries(Object.entries(repo.files).filter(([name]) => !pattern.test(name)));
  const changed = (name: string, bytes: Uint8Array) =>
    listed({ ...repo.files, [name]: { bytes, large: false } });
  const text = (value: string) => new TextEncoder().encode(value);
  const unet = repo.files[UNET].bytes;
  const inUnet = (change: (asked: Asked, good: Answer) => Answer) => (asked: Asked): Answer => {
    const good = hubAnswer(repo, asked);
    return fileAsked(repo, asked) === UNET ? change(asked, good) : good;
  };
  const huge = JSON.stringify({
    sha: repo.commit,
    siblings: [{ rfilename: "x.safetensors", lfs: { size: 2 ** 52, sha256: "0".repeat(64) } }],
  });
  const sdxl = text('{"_class_name": "UNet2DConditionModel", "cross_attention_dim": 2048}');
  const cases: [string, (asked: Asked) => Answer, RegExp, ErrorKind][] = [
    [
      "a gated repository",
      () => ({ status: 403, headers: { "X-Error-Code": "GatedRepo" } }),
      /gated.*visit http:\S+\/artist\/tiny-shapes/,
      InputError,
    ],
    [
      "a repository that is not there",
      () => ({ status: 404, headers: { "X-Error-Code": "RepoNotFound" } }),
      /no such model, or it is private.*visit http:\S+\/artist\/tiny-shapes/,
      InputError,
    ],
    [
      "a revision that is not there",
      () => ({ status: 404, headers: { "X-Error-Code": "RevisionNotFound" } }),
      /no such branch, tag or commit; visit http/,
      InputError,
    ],
    [
      "a download that breaks off for good",
      inUnet((_, good) => good.status === 404 ? good : { ...good, cutAt: 0 }),
      /unet.*the connection broke.*6 times; check the network, .* what has arrived is kept/,
      InputError,
    ],
    [
      "a wrong checksum",
      inUnet((_, good) => ({ ...good, body: new Uint8Array(unet.length).fill(7) })),
      /unet.*sha256 of the file must be \w{64}, what arrived has \w{64} and was deleted/,
      WeightError,
    ],
    [
      "a disk without room",
      () => ({ status: 200, body: huge }),
      /the disk must have room for 4503\.60 TB, only .* are free/,
      InputError,
    ],
    [
      "a repository of pickles",
      listed({ ...without(/\.safetensors$/), "unet/model.bin": { bytes: unet, large: true } }),
      /safetensors, .*only Python pickles \(unet\/model\.bin\).*Convert/,
      InputError,
    ],
    [
      "a repository of nothing known",
      listed({ "README.md": repo.files["MODEL_CARD.md"] }),
      /must have weights as safetensors, there are none \(found README\.md\)/,
      InputError,
    ],
    [
      "a checkpoint cut short",
      changed(UNET, unet.subarray(0, unet.length - 1)),
      /unet.*cut short in tensor "[\w.]+"/,
      WeightError,
    ],
    [
      "a checkpoint whose header is damaged",
      changed(UNET, unet.with(8, 0)),
      /unet.*the header must begin with "\{"/,
      WeightError,
    ],
    [
      "parts of different models",
      changed(
        "text_encoder/config.json",
        text(
          new TextDecoder().decode(repo.files["text_encoder/config.json"].bytes)
            .replace(/"hidden_size": \d+/, '"hidden_size": 48'),
        ),
      ),
      /the UNet wants a text of width 96, the text encoder makes 48; .* do not belong together/,
      WeightError,
    ],
    ["another architecture", changed("unet/config.json", sdxl), /this is SDXL/, WeightError],
  ];
  for (const [what, answer, message, kind] of cases) {
    it(`${what} is one clear sentence`, async () => {
      await withHub(answer, async ({ options: hub }) => {
        const live = device.memory().live;
        const loading = StableDiffusion.load(repo.id, { device, hub });
        await assert.rejects(loading, rejectsWith(message, kind));
        assert.equal(device.memory().live, live);
      });
    });
  }

  it("no network, no place to write", async () => {
    await withHub((asked) => hubAnswer(repo, asked), async ({ options, cache, server }) => {
      await writeFile(join(cache, "file"), "");
      const hub = { ...options, cache: join(cache, "file", "hub") };
      const unwritable = StableDiffusion.load(repo.id, { device, hub });
      await assert.rejects(unwritable, rejectsWith(/cannot be written .*set HF_HOME/));
      const offline = StableDiffusion.load(repo.id, { device, hub: { ...options, offline: true } });
      await assert.rejects(offline, rejectsWith(/must not be used.*no complete copy of main/));
      await server.close();
      const cutOff = StableDiffusion.load(repo.id, { device, hub: options });
      await assert.rejects(cutOff, rejectsWith(/cannot be reached .*check the network/));
    });
  });

  it("a process of its own says it in one line and ends with 1", async () => {
    const gated = { status: 401, headers: { "X-Error-Code": "GatedRepo" } };
    await withHub(() => gated, async () => {
      const folder = await mkdtemp(join(tmpdir(), "framezero-refused-"));
      const entry = fileURLToPath(new URL("../mod.ts", import.meta.url));
      const start = process.versions.bun ? [entry] : ["run", "-A", entry];
      const child = spawn(
        process.execPath,
        [...start, PROMPT, "--model", repo.id, "-o", join(folder, "a.gif")],
        { stdio: ["ignore", "ignore", "pipe"], env: { ...process.env } },
      );
      let stderr = "";
      child.stderr.on("data", (chunk) => stderr += chunk);
      const code = await new Promise((resolve) => child.on("close", resolve));
      // Dawn may say something about the adapter first.
      const lines = stderr.replaceAll(/^Warning: .*\n/gm, "");
      assert.match(lines, /^framezero: artist\/tiny-shapes: this model is gated[^\n]+\n$/);
      assert.doesNotMatch(stderr, /TopSecret/);
      assert.equal(code, 1);
      assert.deepEqual(await readdir(folder), []);
      await rm(folder, { recursive: true });
    });
  });
});
