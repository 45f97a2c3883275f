/**
 * Textual inversion: files in every layout, and prompts with learnt words against prompts with the
 * words whose embeddings they were given.
 */

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { encodeSafetensors, openSafetensors, type TensorData } from "../core/safetensors.ts";
import { f32ArrayToF16 } from "../core/dtype.ts";
import type { PromptOptions } from "../models/prompt.ts";
import { BUILT_IN, StableDiffusion } from "../models/stable_diffusion.ts";
import { addedTokens, readTextualInversion } from "../models/textual_inversion.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";

const device = await openDevice();
const folder = await mkdtemp(join(tmpdir(), "framezero-words-"));
const plain = await StableDiffusion.load(undefined, { device });
const encoder = await openSafetensors(new URL("text_encoder/model.safetensors", BUILT_IN));
const table = await encoder.readF32("text_model.embeddings.token_embedding.weight");
await encoder.close();
after(async () => {
  plain.dispose();
  await device.close();
  await rm(folder, { recursive: true });
});

const WIDTH = plain.textEncoder.config.hiddenSize;
const VOCAB = plain.textEncoder.config.vocabSize;

/** The embeddings of a text's tokens, one after the other. */
function embeddingsOf(text: string): Float32Array {
  const ids = plain.tokenizer.encode(text);
  return Float32Array.from(ids.flatMap((id) => [...table.slice(id * WIDTH, (id + 1) * WIDTH)]));
}

function tensor(name: string, data: Float32Array, width = WIDTH): TensorData {
  return { name, dtype: "F32", shape: [data.length / width, width], data };
}

async function fileOf(name: string, ...tensors: TensorData[]): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, encodeSafetensors(tensors, { format: "pt" }));
  return path;
}

/** The built-in model's text encoder, to learn words. */
function pupil(): StableDiffusion {
  const { tokenizer, textEncoder, unet, vae, schedulerConfig, defaults } = plain;
  const parts = { device, tokenizer, textEncoder, unet, vae, schedulerConfig, defaults };
  return StableDiffusion.of(parts);
}

async function encode(
  sd: StableDiffusion,
  prompt: string,
  options: PromptOptions = {},
): Promise<Float32Array> {
  const { hiddenStates } = sd.encodePrompt([prompt], options);
  try {
    return await hiddenStates.data();
  } finally {
    hiddenStates.dispose();
  }
}

describe("files of textual inversion", () => {
  const vectors = embeddingsOf("red heart");
  const count = vectors.length / WIDTH;

  it("are read in the layouts of A1111, diffusers and kohya", async () => {
    const cases: [string, TensorData, string][] = [
      ["EasyStyle.safetensors", tensor("emb_params", vectors), "EasyStyle"],
      ["learned.safetensors", tensor("<cat-toy>", vectors), "<cat-toy>"],
      ["plain.safetensors", tensor("midjourney-style", vectors), "midjourney-style"],
      ["style v1.5.safetensors", tensor("clip_l", vectors), "style v1.5"],
      ["converted.safetensors", tensor("*", vectors), "converted"],
      ["half.safetensors", {
        ...tensor("emb_params", vectors),
        dtype: "F16",
        data: f32ArrayToF16(vectors),
      }, "half"],
    ];
    for (const [name, one, token] of cases) {
      const path = await fileOf(name, one);
      const got = await readTextualInversion(path, WIDTH);
      assert.deepEqual(got, { token, count, vectors, source: path });
      const named = await readTextualInversion(path, WIDTH, { token: "  my   word " });
      assert.deepEqual([named.token, named.source], ["my word", `${path}:  my   word `]);
    }
    const single = { ...tensor("<x>", vectors.slice(0, WIDTH)), shape: [WIDTH] };
    const got = await readTextualInversion(encodeSafetensors([single]), WIDTH);
    assert.deepEqual([got.token, got.count, got.vectors], ["<x>", 1, vectors.slice(0, WIDTH)]);
  });

  it("are refused if they are something else", async () => {
    const zeros = (width: number) => new Float32Array(2 * width);
    const cases: [TensorData[], RegExp][] = [
      [[tensor("emb_params", zeros(1024), 1024)], /must be 96 wide.*\[2,1024\].*Diffusion 2\.x/],
      [[tensor("emb_params", zeros(768), 768)], /must be 96 wide.*as for Stable Diffusion 1\.x/],
      [[tensor("emb_params", zeros(95), 95)], /must be 96 wide.*has shape \[2,95\]; use an/],
      [[{ ...tensor("emb_params", zeros(96)), shape: [1, 2, 96] }], /has shape \[1,2,96\]/],
      [[{ ...tensor("emb_params", zeros(0)), shape: [0, 96] }], /has shape \[0,96\]/],
      [[tensor("emb_params", vectors), tensor("step", vectors)], /has 2: emb_params, step/],
      [[tensor("lora_te.down.weight", vectors)], /is one tensor, named emb_params.*has 1: lora_te/],
      [[tensor("clip_l", vectors), tensor("clip_g", vectors)], /an embedding for SDXL/],
      [[], /the file has 0/],
      [[tensor("emb_params", vectors.map((x, i) => i === 7 ? NaN : x))], /holds NaN or infinity/],
      [[{ name: "emb_params", dtype: "I32", shape: [1, 96], data: new Int32Array(96) }], /I32/],
    ];
    for (const [tensors, message] of cases) {
      const path = await fileOf("refused.safetensors", ...tensors);
      await assert.rejects(readTextualInversion(path, WIDTH), (error: Error) => {
        assert.match(error.message, message);
        return error instanceof WeightError && error.message.startsWith(path);
      });
    }
    for (const name of ["style.pt", "learned_embeds.bin"]) {
      const message = /a Python pickle, which can run code.*Convert it with Python.*emb_params/;
      await assert.rejects(readTextualInversion(join(folder, name), WIDTH), message);
      await assert.rejects(readTextualInversion(new File(["PK"], name), WIDTH), message);
    }
    await assert.rejects(readTextualInversion(join(folder, "no.safetensors"), WIDTH), InputError);
    const file = await fileOf("---.safetensors", tensor("emb_params", vectors));
    await assert.rejects(readTextualInversion(file, WIDTH), /needs at least one letter or digit/);
  });
});

describe("learnt words", () => {
  it("are found regardless of case, as whole words, the longest first", () => {
    const word = (token: string, count: number) => ({
      token,
      count,
      vectors: new Float32Array(count),
      source: token,
    });
    const { split } = addedTokens([word("cat", 2), word("<cat>", 1), word("big cat", 1)], 100);
    const show = (text: string) =>
      split(text).map((piece) => typeof piece === "string" ? piece : piece.ids);
    assert.deepEqual(show("a CAT, catalog"), ["a ", [100, 101], ", catalog"]);
    assert.deepEqual(show("(<Cat>)bobcat cat_2"), ["(", [102], ")bobcat cat_2"]);
    assert.deepEqual(show("cat_1 cat-nap"), [[101], " ", [100, 101], "-nap"]);
    assert.deepEqual(show("Big\n cat"), [[103]]);
    assert.deepEqual(show(""), []);
    assert.deepEqual(addedTokens([], 5).split("a cat"), ["a cat"]);
  });

  it("with the embeddings of ordinary words are these, bit for bit", async () => {
    const sd = pupil();
    const options = { token: "mytoken" };
    await sd.loadTextualInversion(encodeSafetensors([tensor("x", embeddingsOf("green"))]), options);
    const several = await fileOf(
      "thing.safetensors",
      tensor("emb_params", embeddingsOf("red heart")),
    );
    const { token, count } = await sd.loadTextualInversion(several);
    assert.deepEqual([token, count], ["thing", plain.tokenizer.encode("red heart").length]);
    const pairs: [string, string, PromptOptions?][] = [
      ["a thing in a MyToken meadow", "a red heart in a green meadow"],
      ["a (thing:1.3), mytoken", "a (red heart:1.3), green", { promptWeights: true }],
      ["thing", "red heart", { clipSkip: 1 }],
      ["a circle", "a circle"],
    ];
    for (const [learnt, ordinary, how] of pairs) {
      assert.deepEqual(await encode(sd, learnt, how), await encode(plain, ordinary, how), learnt);
    }
    assert.notDeepEqual(await encode(plain, "a thing"), await encode(sd, "a thing"));
  });

  it("stay whole in long prompts, and are named where they do not fit", async () => {
    const sd = pupil();
    const bytes = encodeSafetensors([tensor("<two>", embeddingsOf("red heart"))]);
    await sd.loadTextualInversion(bytes);
    const start = "blue ".repeat(74);
    const long = { longPrompts: true };
    const [got, first, second] = await Promise.all([
      encode(sd, `${start}<two>`, long),
      encode(plain, start),
      encode(plain, "red heart"),
    ]);
    assert.deepEqual(got, Float32Array.of(...first, ...second));
    const { hiddenStates, cut } = sd.encodePrompt([`${start}<two> circle`]);
    hiddenStates.dispose();
    assert.deepEqual(cut, ["<two> circle"]);
  });

  it("do not count as the end of a prompt", async () => {
    const red = embeddingsOf("red");
    const { textEncoder, tokenizer } = plain;
    const pooledOf = async (row: Int32Array, added?: Float32Array<ArrayBuffer>) => {
      const output = device.scope(() => textEncoder.forward([row], added).pooled);
      const values = await output.data();
      output.dispose();
      return values;
    };
    const ids = tokenizer.tokenize("a red heart").ids;
    const [id] = tokenizer.encode("red");
    const others = ids.map((one) => one === id ? VOCAB : one);
    assert.deepEqual(await pooledOf(others, Float32Array.from(red)), await pooledOf(ids));
    assert.throws(() => textEncoder.forward([others]), InputError);
    assert.throws(
      () => textEncoder.forward([ids], new Float32Array(5)),
      /must have 96 values each/,
    );
  });

  it("have a name of their own", async () => {
    const sd = pupil();
    const file = encodeSafetensors([tensor("<x1>", embeddingsOf("red"))]);
    await sd.loadTextualInversion(file);
    await assert.rejects(
      sd.loadTextualInversion(file, { token: "<X1>" }),
      /the word "<X1>" stands for bytes in memory already; give one of them another/,
    );
    assert.deepEqual(sd.inversions.map(({ token }) => token), ["<x1>"]);
  });
});

describe("the command line", () => {
  const QUICK = ["--steps", "1", "--width", "64", "--height", "64", "--overwrite"];

  it("loads embeddings, stores them in the picture, and finds them again", async () => {
    const file = await fileOf("shape.safetensors", tensor("emb_params", embeddingsOf("red heart")));
    const [a, b, c] = ["a", "b", "c"].map((name) => join(folder, `${name}.png`));
    const made = await run(["image", "a blob", ...QUICK, "--embedding", `${file}:blob`, "-o", a]);
    assert.equal(made.code, 0, made.stderr);
    assert.match(made.stderr, /embedding "blob" \(\d+ vectors\)/);
    const settings = await readSettings(a);
    assert.deepEqual(settings?.embeddings, [`${file}:blob`]);
    const again = await run(["image", "--from", a, "--overwrite", "-o", b]);
    assert.equal(again.code, 0, again.stderr);
    assert.deepEqual(await readFile(b), await readFile(a));
    const other = await run(["image", "a red heart", ...QUICK, "--clip-skip", "1", "-o", c]);
    assert.equal(other.code, 0, other.stderr);
    assert.equal((await readSettings(c))?.clipSkip, 1);
  });

  it("refuses files that are no embedding", async () => {
    const file = await fileOf("wide.safetensors", tensor("emb_params", new Float32Array(768), 768));
    const image = ["image", "a", "--quiet", "-o", join(folder, "no.png"), "--embedding"];
    await refused([...image, file], 1, /vectors must be 96 wide/);
    await refused([...image, join(folder, "x.pt")], 1, /a Python pickle/);
  });
});
