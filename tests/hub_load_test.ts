/**
 * From what names a model to a picture: a folder, a file, an address, a model of the Hub; each made
 * again from the picture itself. The Hub is on this machine.
 */

import assert from "node:assert/strict";
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { decode } from "fast-png";
import { openDevice } from "../core/device.ts";
import { encodeSafetensors } from "../core/safetensors.ts";
import type { DownloadProgress } from "../models/hub.ts";
import { locateModel } from "../models/hub/locate.ts";
import { PARTS } from "../models/sd15.ts";
import { BUILT_IN, StableDiffusion } from "../models/stable_diffusion.ts";
import { showDownload } from "../video/cli/download.ts";
import { Interrupted } from "../video/cli/io.ts";
import { readSettings } from "../video/writer.ts";
import { run } from "./cli_run.ts";
import {
  fileAsked,
  filesBelow,
  hubAnswer,
  type Repo,
  repoOf,
  sendFile,
  sha256,
  withHub,
} from "./hub_server.ts";
import { TINY, tinySingleFile } from "./tiny_single_file.ts";

const root = await mkdtemp(join(tmpdir(), "framezero-load-"));
const device = await openDevice();
after(async () => {
  await rm(root, { recursive: true, force: true });
  await device.close();
});

const BUILT_IN_FOLDER = fileURLToPath(BUILT_IN);
const PROMPT = "a red heart";

const repo = await repoOf(BUILT_IN_FOLDER, "artist/tiny-shapes");
const ldm = encodeSafetensors(await tinySingleFile(), { format: "pt" });

/** An empty folder for output. */
const newFolder = () => mkdtemp(join(root, "out-"));

/** Makes a picture and returns a hash of its pixels, its settings, and what was said. */
async function picture(path: string, args: string[]) {
  const { code, stderr } = await run(["image", ...args, "--overwrite", "-o", path]);
  assert.equal(code, 0, stderr);
  const settings = await readSettings(path);
  assert.ok(settings);
  const { data } = decode(await readFile(path));
  return { pixels: sha256(new Uint8Array(data)), settings, stderr };
}

/** The options of a quick picture. */
const QUICK = ["--steps", "1", "--width", "64", "--height", "64", "--dtype", "f32"];

describe("one picture", () => {
  it("with the autoencoder of another repository", async () => {
    const vae = await repoOf(join(BUILT_IN_FOLDER, "vae"), "artist/vae");
    await withHub((asked) => hubAnswer(vae, asked), async () => {
      const out = join(await newFolder(), "a.png");
      const plain = await picture(out, [PROMPT, ...QUICK, "--model", BUILT_IN_FOLDER]);
      const model = ["--model", BUILT_IN_FOLDER, "--vae", vae.id];
      const other = await picture(out, [PROMPT, ...QUICK, ...model]);
      assert.equal(other.pixels, plain.pixels);
      assert.equal(other.settings.vae, `${vae.id}@${vae.commit}`);
    });
  });

  it("of a model of the Hub: fetched, shown, kept, pinned, and made again offline", async () => {
    await withHub((asked) => hubAnswer(repo, asked), async ({ server }) => {
      const folder = await newFolder();
      const out = join(folder, "a.png");
      const first = await picture(out, [PROMPT, ...QUICK, "--model", `${repo.id}@main`]);
      assert.match(first.stderr, /downloading 8\.0 MB of 8\.0 MB {2}\d.*B\/s/);
      assert.match(first.stderr, /loading unet \(f32\)/);
      assert.equal(first.settings.model, `${repo.id}@${repo.commit}`);
      const folderMade = await picture(out, [PROMPT, ...QUICK, "--model", BUILT_IN_FOLDER]);
      assert.equal(folderMade.pixels, first.pixels);
      assert.equal(folderMade.settings.guidanceScale, first.settings.guidanceScale);

      await picture(out, [PROMPT, ...QUICK, "--model", repo.id]);
      const asked = server.asked.length;
      process.env.HF_HUB_OFFLINE = "1";
      const again = await picture(join(folder, "b.png"), ["--from", out]);
      assert.equal(server.asked.length, asked);
      assert.deepEqual(again.pixels, first.pixels);
      assert.deepEqual(again.settings, first.settings);

      const list = await run(["models", "list"]);
      assert.match(list.stdout, /\nartist\/tiny-shapes +diffusers folder in .*snapshots/);
    });
  });

  it("of a file at an address: pinned by its checksum where the server tells it", async () => {
    const checkpoint: Repo = {
      id: "artist/one-file",
      commit: repo.commit,
      files: { "one.safetensors": { bytes: ldm, large: true } },
    };
    await withHub((asked) => {
      const other = asked.path.startsWith("/other/one.safetensors");
      return other ? sendFile(ldm, asked) : hubAnswer(checkpoint, asked);
    }, async ({ server, cache }) => {
      const folder = await newFolder();
      const out = join(folder, "a.png");
      const config = ["--config", TINY];
      const url = `${server.url}/artist/one-file/resolve/${repo.commit}/one.safetensors`;
      const made = await picture(out, [PROMPT, ...QUICK, ...config, "--model", url]);
      assert.deepEqual(
        [made.settings.model, made.settings.modelSha256, made.settings.config],
        [url, sha256(ldm), TINY],
      );
      const again = await picture(join(folder, "b.png"), ["--from", out]);
      assert.deepEqual(again.pixels, made.pixels);

      const elsewhere = `${server.url}/other/one.safetensors`;
      const secret = [PROMPT, ...QUICK, ...config, "--model", `${elsewhere}?key=TopSecret`];
      const plain = await picture(out, secret);
      assert.equal(plain.settings.model, elsewhere, "no key in a file that is passed on");
      assert.doesNotMatch(plain.stderr, /TopSecret/);
      assert.equal(plain.settings.modelSha256, undefined);
      assert.deepEqual((await picture(join(folder, "c.png"), ["--from", out])).pixels, made.pixels);

      const byId = [PROMPT, ...QUICK, ...config, "--model", "artist/one-file"];
      assert.deepEqual((await picture(out, byId)).pixels, made.pixels);
      const pulled = await run(["models", "pull", "artist/one-file"]);
      assert.equal(
        pulled.stdout,
        `${cache}/models--artist--one-file/snapshots/${repo.commit}/one` +
          ".safetensors\n",
      );
    });
  });

  it("of a file and of a folder on disk, which win over the Hub", async () => {
    await withHub(() => ({ status: 500 }), async ({ server }) => {
      const folder = await newFolder();
      const file = join(folder, "one.safetensors");
      await writeFile(file, ldm);
      const out = join(folder, "a.png");
      const files = ["--config", TINY, "--tokenizer", join(TINY, "tokenizer")];
      const single = await picture(out, [PROMPT, ...QUICK, ...files, "--model", file]);
      assert.equal(single.settings.tokenizer, join(TINY, "tokenizer"));
      const again = await picture(join(folder, "b.png"), ["--from", out]);
      assert.deepEqual(again.pixels, single.pixels);
      const whole = await picture(out, [PROMPT, ...QUICK, "--model", TINY]);
      assert.deepEqual(whole.pixels, single.pixels);
      assert.equal(whole.settings.model, TINY);
      // Another model than the stored one does not inherit that one's files.
      const other = await picture(join(folder, "c.png"), [
        ...["--from", join(folder, "b.png"), "--model", TINY],
      ]);
      assert.equal(other.settings.config, undefined);
      assert.equal(server.asked.length, 0);
    });
  });

  it("of a folder on a web server, read in place", async () => {
    await withHub((asked) => {
      const name = asked.path.slice("/tiny/".length);
      const file = asked.path.startsWith("/tiny/") && repo.files[name];
      return file ? sendFile(file.bytes, asked) : { status: 404 };
    }, async ({ server, cache }) => {
      for (const model of [`${server.url}/tiny/`, new URL(`${server.url}/tiny/`)]) {
        const sd = await StableDiffusion.load(model, { device });
        assert.equal(sd.source, `${server.url}/tiny/`);
        sd.dispose();
      }
      assert.deepEqual(await filesBelow(cache), []);
    });
  });
});

const CLIP = "openai/clip-vit-large-patch14";

describe("a single file without a vocabulary", () => {
  it("gets it from the Hub, once", async () => {
    const vocabulary = await repoOf(join(TINY, "tokenizer"), CLIP);
    await withHub((asked) => hubAnswer(vocabulary, asked), async ({ server }) => {
      const folder = await newFolder();
      const bare = join(folder, "config");
      for (const part of PARTS) {
        await mkdir(join(bare, part), { recursive: true });
        await cp(join(TINY, part, "config.json"), join(bare, part, "config.json"));
      }
      const file = join(folder, "one.safetensors");
      await writeFile(file, ldm);
      for (let time = 1; time <= 2; time++) {
        (await StableDiffusion.load(file, { device, config: bare })).dispose();
        assert.ok(server.asked.some((asked) => fileAsked(vocabulary, asked) === "merges.txt"));
        assert.equal(server.asked.length, 3, "a listing and two files");
      }
    });
  });
});

describe("the library", () => {
  it("tells how a download goes, takes the variant asked for, stops when told", async () => {
    const unet = "unet/diffusion_pytorch_model";
    const both = { [`${unet}.fp16.safetensors`]: repo.files[`${unet}.safetensors`] };
    const half: Repo = { ...repo, files: { ...repo.files, ...both } };
    await withHub((asked) => hubAnswer(half, asked), async ({ options, cache }) => {
      const seen: DownloadProgress[] = [];
      const hub = { ...options, onProgress: (now: DownloadProgress) => seen.push(now) };
      const sd = await StableDiffusion.load(repo.id, { device, hub });
      assert.equal(sd.source, `${repo.id}@${repo.commit}`);
      sd.dispose();
      const last = seen[seen.length - 1];
      assert.equal(last.bytes, last.total);
      const snapshot = join(cache, "models--artist--tiny-shapes/snapshots", repo.commit);
      const weights = async () =>
        (await readdir(join(snapshot, "unet"))).filter((name) => name.endsWith(".safetensors"));
      assert.deepEqual(await weights(), ["diffusion_pytorch_model.safetensors"]);
      await locateModel(repo.id, { ...options, variant: "fp16" });
      assert.equal((await weights()).length, 2);
      const signal = AbortSignal.abort(new Error("enough"));
      await assert.rejects(
        StableDiffusion.load("artist/other", { device, hub: { ...options, signal } }),
        /enough/,
      );
    });
  });
});

describe("an interrupt", () => {
  it("while a model is fetched keeps what has arrived, and says so", async () => {
    let slow = true;
    await withHub(async (asked) => {
      // Long enough for a report of the file before.
      const large = fileAsked(repo, asked)?.endsWith(".safetensors");
      if (slow && large) await new Promise((resolve) => setTimeout(resolve, 200));
      return hubAnswer(repo, asked);
    }, async ({ server, cache }) => {
      const stopped = await run(["models", "pull", repo.id], (text, abort) => {
        if (/^downloading [1-9]/.test(text)) abort.abort(new Interrupted());
      });
      assert.equal(stopped.code, 130, stopped.stderr);
      assert.match(stopped.stderr, /what has arrived is kept: the same command continues there\n/);
      assert.ok((await filesBelow(cache)).length > 0);
      slow = false;
      const before = server.asked.length;
      const whole = await run(["models", "download", repo.id]);
      assert.equal(whole.code, 0, whole.stderr);
      assert.match(whole.stdout, new RegExp(`snapshots/${repo.commit}\n$`));
      const again = server.asked.slice(before).map((asked) => fileAsked(repo, asked));
      assert.ok(!again.includes("model_index.json"), "complete files are not fetched again");
    });
  });
});

describe("inspect", () => {
  it("reads only headers of what is on the Hub or at an address", async () => {
    await withHub((asked) => hubAnswer(repo, asked), async ({ server, cache }) => {
      const model = await run(["models", "inspect", repo.id]);
      assert.equal(model.code, 0, model.stderr);
      assert.match(model.stdout, /^pipeline +StableDiffusionPipeline/);
      assert.match(model.stdout, /parameters 2,529,924/);
      assert.deepEqual(await filesBelow(cache), []);
      const stem = "unet/diffusion_pytorch_model.safetensors";
      const url = `${server.url}/${repo.id}/resolve/${repo.commit}/${stem}`;
      const file = await run(["models", "inspect", url]);
      assert.match(file.stdout, /\nparameters +2,529,924\n/);
      const sent = server.asked.filter((asked) => fileAsked(repo, asked) === stem)
        .reduce((sum, { range }) => sum + (range ? range[1] - range[0] + 1 : Infinity), 0);
      assert.ok(sent < repo.files[stem].bytes.length / 4, `${sent} bytes`);
      await run(["models", "pull", repo.id]);
      const asked = server.asked.length;
      assert.equal((await run(["models", "inspect", repo.id])).stdout, model.stdout);
      assert.equal(server.asked.length, asked, "the cache is enough");
    });
  });
});

describe("progress of a download", () => {
  const shown = (isTTY: boolean, quiet = false) => {
    const texts: string[] = [];
    const { hub, end } = showDownload({
      stdout() {},
      stderr: (text) => texts.push(text),
      isTTY,
      columns: 60,
      signal: new AbortController().signal,
      debug: false,
    }, quiet);
    for (let i = 0; i <= 40; i++) {
      const [bytes, total, bytesPerSecond] = [i * 1e8, 4e9, i ? 5e7 : 0];
      const etaSeconds = i ? (total - bytes) / bytesPerSecond : null;
      hub.onProgress?.({ file: "unet/x.safetensors", bytes, total, bytesPerSecond, etaSeconds });
      if (i === 20) hub.onMessage?.("the server is slow; trying again in 2 s");
    }
    end();
    return texts;
  };

  it("is one line on a terminal, eleven lines elsewhere, nothing if quiet", () => {
    const lines = shown(false).filter((text) => !text.startsWith("the server"));
    assert.equal(lines.length, 11);
    assert.equal(lines[0], "downloading 0 B of 4.0 GB  unet/x.safetensors\n");
    const first = "downloading 400.0 MB of 4.0 GB  50.0 MB/s  1:12 left  unet/x.safetensors\n";
    assert.equal(lines[1], first);
    assert.equal(lines[10], "downloading 4.0 GB of 4.0 GB  50.0 MB/s  unet/x.safetensors\n");
    const drawn = shown(true);
    const line = "downloading 100.0 MB of 4.0 GB  50.0 MB/s  1:18 left  unet/x.safetensors";
    assert.equal(drawn[1], `\r\x1b[K${line.slice(0, 59)}`);
    assert.deepEqual(drawn.slice(21, 23), ["\n", "the server is slow; trying again in 2 s\n"]);
    assert.equal(drawn.at(-1), "\n");
    assert.equal(drawn.filter((text) => text === "\n").length, 2);
    assert.deepEqual(shown(false, true), []);
  });
});
