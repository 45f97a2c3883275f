/**
 * Models from the Hub: what people may write, which files are fetched, how the cache looks
 * afterwards, what is said when it does not work, and that tokens stay secret.
 *
 * @module
 */

import assert from "node:assert/strict";
import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readFile,
  readlink,
  rm,
  stat,
  writeFile,
} from "node:fs/promises";
import * as fileSystem from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { pathToFileURL } from "node:url";
import {
  downloadModel,
  type DownloadProgress,
  neededFiles,
  parseModelReference,
} from "../models/hub.ts";
import { linkIntoSnapshot, modelCache } from "../models/hub/cache.ts";
import { hubSettings } from "../models/hub/environment.ts";
import {
  blobName,
  filesBelow,
  hubAnswer,
  rejectsWith,
  sendFile,
  serve,
  sha256,
  smallRepo,
  withServer,
} from "./hub_server.ts";

const TOKEN = "hf_TopSecretTopSecret";

describe("references", () => {
  it("folders and files on disk, addresses, models of the Hub", async () => {
    const folder = await mkdtemp(join(tmpdir(), "framezero-hub-"));
    const file = join(folder, "a b.safetensors");
    await writeFile(file, "");
    const hub = { kind: "hub", id: "owner/name", revision: "main" };
    const cases: [string, object][] = [
      [folder, { kind: "folder", path: folder }],
      [file, { kind: "file", path: file }],
      [pathToFileURL(file).href, { kind: "file", path: file }],
      ["owner/name", hub],
      ["owner/name@v1.0", { ...hub, revision: "v1.0" }],
      ["owner/name@refs/pr/3", { ...hub, revision: "refs/pr/3" }],
      ["https://huggingface.co/owner/name", hub],
      ["https://huggingface.co/owner/name/tree/dev", { ...hub, revision: "dev" }],
      ["https://huggingface.co/owner/name/blob/main/x.safetensors", {
        kind: "url",
        url: "https://huggingface.co/owner/name/resolve/main/x.safetensors",
      }],
      ["https://example.org/x?id=1", { kind: "url", url: "https://example.org/x?id=1" }],
    ];
    for (const [text, expected] of cases) {
      assert.deepEqual(await parseModelReference(text), expected, text);
    }
    assert.deepEqual(await parseModelReference("owner/name", { variant: "fp16" }), {
      ...hub,
      variant: "fp16",
    });
    await rm(folder, { recursive: true });
  });

  it("a folder on disk wins over the Hub", async () => {
    const reference = await parseModelReference("models/tiny-shapes");
    assert.deepEqual(reference, { kind: "folder", path: "models/tiny-shapes" });
  });

  it("everything else is refused with the rule", async () => {
    for (
      const text of ["", "name", "../x/y", "/none/x", "a/b/c", "a/b--c", "a/none.ckpt", "a/.."]
    ) {
      await assert.rejects(parseModelReference(text), rejectsWith(/is none of them/), text);
    }
    await assert.rejects(parseModelReference("a/b@../c"), rejectsWith(/a revision is a branch/));
    await assert.rejects(
      parseModelReference("https://me:TopSecret@example.org/x"),
      rejectsWith(/https:\/\/example.org\/x: an address must be valid and without user name/),
    );
  });
});

describe("selection", () => {
  const base = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
  ];
  const weights = (suffix: string) => [
    `text_encoder/model${suffix}`,
    `unet/diffusion_pytorch_model${suffix}`,
    `vae/diffusion_pytorch_model${suffix}`,
  ];
  const noisy = [
    ...base,
    ...weights(".safetensors"),
    ...weights(".fp16.safetensors"),
    ...weights(".bin"),
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_flax_model.msgpack",
    "unet/model.onnx",
    "safety_checker/model.safetensors",
    "feature_extractor/preprocessor_config.json",
    "tokenizer/special_tokens_map.json",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "v1-5-pruned-emaonly.safetensors",
  ];
  const sorted = (names: readonly string[]) => [...names].sort();
  const small = [...base, "tokenizer/special_tokens_map.json"];

  it("each part of a pipeline once, in the wanted precision", () => {
    assert.deepEqual(
      sorted(neededFiles(noisy)),
      sorted([...small, ...weights(".safetensors")]),
    );
    assert.deepEqual(
      sorted(neededFiles(noisy, "fp16")),
      sorted([...small, ...weights(".fp16.safetensors")]),
    );
    const full = noisy.filter((name) => name !== "vae/diffusion_pytorch_model.fp16.safetensors");
    assert.ok(neededFiles(full, "fp16").includes("vae/diffusion_pytorch_model.safetensors"));
    const half = [...base, ...weights(".fp16.safetensors")];
    assert.deepEqual(sorted(neededFiles(half)), sorted(half));
  });

  it("shards, if they are complete", () => {
    const stem = "unet/diffusion_pytorch_model";
    const shards = [1, 2].map((i) => `${stem}-0000${i}-of-00002.safetensors`);
    const half = [1, 2].map((i) => `${stem}.fp16-0000${i}-of-00002.safetensors`);
    const index = `${stem}.safetensors.index.json`;
    const halfIndex = `${stem}.safetensors.index.fp16.json`;
    const others = [...base, ...weights(".safetensors").filter((name) => !name.startsWith("unet"))];
    const all = [...others, ...shards, index, ...half, halfIndex];
    assert.deepEqual(sorted(neededFiles(all)), sorted([...others, ...shards, index]));
    assert.deepEqual(sorted(neededFiles(all, "fp16")), sorted([...others, ...half, halfIndex]));
    const cut = [...others, shards[0], index];
    assert.throws(() => neededFiles(cut), rejectsWith(/for unet\/ there are none/));
  });

  it("single checkpoints and single parts", () => {
    const one = ["README.md", "x.safetensors", "x.ckpt", "sub/y.safetensors"];
    assert.deepEqual(neededFiles(one), ["x.safetensors"]);
    assert.deepEqual(neededFiles([...base, ...weights(".bin"), ...one]), ["x.safetensors"]);
    const several = ["a.safetensors", "a-fp16.safetensors"];
    assert.deepEqual(neededFiles(several, "fp16"), ["a-fp16.safetensors"]);
    assert.throws(
      () => neededFiles(several),
      rejectsWith(/must hold one checkpoint.*give the addr/),
    );
    const control = ["config.json", "diffusion_pytorch_model.safetensors"];
    assert.deepEqual(neededFiles([...control, "diffusion_pytorch_model.bin"]), control);
  });

  it("pickles are refused with the way to convert them; so is what is no model", () => {
    const pickles = rejectsWith(/only Python pickles .*save_pretrained/);
    assert.throws(() => neededFiles([...base, ...weights(".bin")]), pickles);
    assert.throws(() => neededFiles(["x.ckpt"]), pickles);
    assert.throws(
      () => neededFiles(["README.md"]),
      rejectsWith(/there are none \(found README.md/),
    );
    const rest = noisy.filter((name) => name !== "tokenizer/vocab.json");
    assert.throws(() => neededFiles(rest), rejectsWith(/must have tokenizer\/vocab.json/));
  });
});

describe("the cache", () => {
  const repo = smallRepo();

  it("is what Python's tools make: blobs, relative links, refs; nothing comes twice", async () => {
    const storage = await serve((asked) => {
      const file = Object.values(repo.files).find((file) => asked.path.includes(blobName(file)));
      return file ? sendFile(file.bytes, asked) : { status: 404 };
    });
    const all: DownloadProgress[] = [];
    await withServer((asked) => hubAnswer(repo, asked, storage.url), async (bench) => {
      const { options, cache, server, messages } = bench;
      const given = {
        ...options,
        id: repo.id,
        token: TOKEN,
        onProgress: (progress: DownloadProgress) => all.push(progress),
      };
      const { folder, commit, files } = await downloadModel(given);
      const model = `${cache}/models--artist--tiny-model`;
      assert.equal(folder, `${model}/snapshots/${repo.commit}`);
      assert.equal(commit, repo.commit);
      assert.equal(await readFile(`${model}/refs/main`, "utf8"), repo.commit);
      const names = neededFiles(Object.keys(repo.files));
      assert.deepEqual(files, names);
      assert.deepEqual(await filesBelow(folder), [...names].sort());
      for (const name of names) {
        const file = repo.files[name];
        const up = name.includes("/") ? "../../../" : "../../";
        assert.equal(await readlink(join(folder, name)), `${up}blobs/${blobName(file)}`);
        assert.equal(sha256(await readFile(join(folder, name))), sha256(file.bytes), name);
      }
      const blobs = names.map((name) => blobName(repo.files[name]));
      assert.deepEqual(await filesBelow(`${model}/blobs`), [...new Set(blobs)].sort());

      const total = names.reduce((sum, name) => sum + repo.files[name].bytes.length, 0);
      assert.deepEqual({ ...all.at(-1), file: 0, bytesPerSecond: 0 }, {
        file: 0,
        bytes: total,
        total,
        bytesPerSecond: 0,
        etaSeconds: 0,
      });
      assert.ok(all.every(({ bytes }, i) => bytes >= (all[i - 1]?.bytes ?? 0)));

      assert.ok(
        server.asked.every(({ headers }) => headers.get("authorization") === `Bearer ${TOKEN}`),
      );
      assert.ok(storage.asked.length >= 3);
      assert.ok(storage.asked.every(({ headers }) => !headers.has("authorization")));
      assert.doesNotMatch(messages.join() + JSON.stringify(all), /TopSecret|signature/);

      const before = server.asked.length;
      const pinned = await downloadModel({ ...given, revision: repo.commit });
      assert.deepEqual(pinned, { folder, commit, files });
      assert.deepEqual(await downloadModel(given), { folder, commit, files });
      assert.equal(server.asked.length, before + 2, "only the listings");
      await downloadModel({ ...given, variant: "fp16" });
      assert.equal(server.asked.length, before + 4, "a listing and one file");
    });
    await storage.close();
  });

  it("a complete cache is only read", async () => {
    await withServer((asked) => hubAnswer(repo, asked), async ({ options, cache }) => {
      const given = { ...options, id: repo.id };
      await downloadModel(given);
      const folders = [
        cache,
        ...["", "/blobs", "/refs", "/snapshots"].map((name) =>
          `${cache}/models--artist--tiny-model${name}`
        ),
      ];
      const times = async () =>
        await Promise.all(folders.map(async (path) => (await stat(path)).mtimeMs));
      const before = await times();
      for (const folder of folders) await chmod(folder, 0o555);
      await downloadModel(given);
      await downloadModel({ ...given, offline: true });
      for (const folder of folders) await chmod(folder, 0o755);
      assert.deepEqual(await times(), before);
    });
  });

  it("without symbolic links there are hard links, without those copies", async () => {
    const cache = await mkdtemp(join(tmpdir(), "framezero-hub-"));
    const model = modelCache(cache, "a/b");
    await mkdir(`${model.folder}/blobs`, { recursive: true });
    await writeFile(`${model.folder}/blobs/1`, "abc");
    const fail = () => Promise.reject(new Error("not here"));
    const linking = { ...fileSystem, symlink: fail };
    await linkIntoSnapshot(model, "c", "unet/hard", "1", 3, linking);
    await linkIntoSnapshot(model, "c", "copy", "1", 3, { ...linking, link: fail });
    const links = async (name: string) =>
      (await lstat(`${model.folder}/snapshots/c/${name}`)).nlink;
    assert.deepEqual([await links("unet/hard"), await links("copy")], [2, 1]);
    assert.equal(await readFile(`${model.folder}/snapshots/c/copy`, "utf8"), "abc");
    await rm(cache, { recursive: true });
  });

  it("lies where the environment says, and so do endpoint, token and offline mode", async () => {
    const home = await mkdtemp(join(tmpdir(), "framezero-hub-"));
    await writeFile(join(home, "token"), `${TOKEN}\n`);
    const names = ["HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH"];
    const before = { ...process.env };
    const settings = (env: Record<string, string>) => {
      for (const name of [...names, "HF_HUB_OFFLINE"]) delete process.env[name];
      Object.assign(process.env, env);
      return hubSettings({});
    };
    try {
      assert.deepEqual(await settings({ HF_HOME: home }), {
        cache: `${home}/hub`,
        endpoint: "https://huggingface.co",
        token: TOKEN,
        offline: false,
      });
      assert.deepEqual(
        await settings({
          HF_HOME: home,
          HF_HUB_CACHE: "/some/where/",
          HF_ENDPOINT: "https://mirror.example/hf/",
          HF_TOKEN: "hf_other",
          HF_HUB_OFFLINE: "1",
        }),
        {
          cache: "/some/where",
          endpoint: "https://mirror.example/hf",
          token: "hf_other",
          offline: true,
        },
      );
      const token = rejectsWith(/an access token consists of ASCII/);
      await assert.rejects(settings({ HF_TOKEN: "hf_TopSecret\nX: y" }), token);
      const endpoint = rejectsWith(/HF_ENDPOINT must be an address/);
      await assert.rejects(settings({ HF_ENDPOINT: "https://me:TopSecret@x/" }), endpoint);
    } finally {
      await settings({});
      Object.assign(process.env, before);
      await rm(home, { recursive: true });
    }
  });
});
