/**
 * Weights in prompts, clip skip and long prompts: the notation, and the encoded prompts against
 * plain ones and against float64.
 */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { InputError } from "../core/errors.ts";
import type { EncodedPrompts, PromptOptions } from "../models/prompt.ts";
import { applyWeights, looksWeighted, parsePromptWeights } from "../models/prompt_weights.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { textToImage, type TextToImageOptions } from "../video/text_to_image.ts";
import { refused } from "./cli_run.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

const TOKENS = 77;
const ROOM = 75;
const WIDTH = sd.textEncoder.config.hiddenSize;
const ROW = TOKENS * WIDTH;

async function encode(
  prompts: readonly string[],
  options: PromptOptions = {},
): Promise<Omit<EncodedPrompts, "hiddenStates"> & { shape: readonly number[]; z: Float32Array }> {
  const { hiddenStates, ...rest } = sd.encodePrompt(prompts, options);
  try {
    return { ...rest, shape: hiddenStates.shape, z: await hiddenStates.data() };
  } finally {
    hiddenStates.dispose();
  }
}

/** What the text encoder itself makes of rows of ids. */
async function direct(contents: readonly string[]): Promise<Float32Array> {
  const output = sd.textEncoder.forward(contents.map((text) => sd.tokenizer.tokenize(text).ids));
  try {
    return await output.lastHiddenState.data();
  } finally {
    for (const state of [output.lastHiddenState, ...output.hiddenStates]) state.dispose();
    output.pooled.dispose();
    output.textEmbeds?.dispose();
  }
}

/** A1111's rule in float64. */
function weighted(z: Float32Array, weights: readonly number[]): Float64Array {
  const scaled = Float64Array.from(z, (value, i) => value * weights[Math.floor(i / WIDTH)]);
  const sum = (values: Float32Array | Float64Array) => [...values].reduce((a, b) => a + b, 0);
  const factor = sum(z) / sum(scaled);
  return scaled.map((value) => value * factor);
}

function assertClose(got: Float32Array, want: Float64Array): void {
  assert.equal(got.length, want.length);
  const wrong = got.findIndex((value, i) =>
    !(Math.abs(value - want[i]) < 2e-5 * (1 + Math.abs(want[i])))
  );
  assert.equal(wrong, -1, `element ${wrong}: ${got[wrong]}, not ${want[wrong]}`);
}

const parts = (prompt: string) =>
  parsePromptWeights(prompt).parts.map(({ text, weight }) => [text, Number(weight.toFixed(6))]);

describe("the notation of weights", () => {
  it("reads brackets, numbers and nesting", () => {
    const cases: [string, [string, number][]][] = [
      ["", []],
      ["a cat", [["a cat", 1]]],
      ["a (cat) here", [["a ", 1], ["cat", 1.1], [" here", 1]]],
      ["a [cat] here", [["a ", 1], ["cat", 0.909091], [" here", 1]]],
      ["((a)) [[b]]", [["a", 1.21], [" ", 1], ["b", 0.826446]]],
      ["(a:1.3)(b:.5)(c:-2)(d:+1.)", [["a", 1.3], ["b", 0.5], ["c", -2], ["d", 1]]],
      ["( a cat : 1.5 )", [[" a cat ", 1.5]]],
      ["(a (b:1.5) c:2)", [["a ", 2], ["b", 3], [" c", 2]]],
      ["(a:b:1.4)", [["a:b", 1.4]]],
      ["(a: (b:2) c)", [["a: ", 1.1], ["b", 2.2], [" c", 1.1]]],
      ["(a (b:c:2))", [["a ", 1.1], ["b:c", 2.2]]],
      ["[a:1.5]", [["a:1.5", 0.909091]]],
      ["ratio 16:9, (x:0)", [["ratio 16:9, ", 1], ["x", 0]]],
      ["()[](:2)", []],
      ["a (cat:1.0) here", [["a cat here", 1]]],
      [String.raw`\(a\) \[b\] \\ c`, [["(a) [b] \\ c", 1]]],
      [String.raw`(a \(b\):1.2)`, [["a (b)", 1.2]]],
      [String.raw`(a\:2)`, [["a:2", 1.1]]],
      ["𝒳(é:2)😀\\", [["𝒳", 1], ["é", 2], ["😀", 1]]],
    ];
    for (const [prompt, want] of cases) {
      assert.deepEqual(parts(prompt), want, prompt);
      assert.equal(parsePromptWeights(prompt).unbalanced, "", prompt);
    }
  });

  it("takes brackets without a partner literally, and tells", () => {
    const cases: [string, string, [string, number][]][] = [
      ["a :) b", ")", [["a :) b", 1]]],
      ["a (b", "(", [["a (b", 1]]],
      ["a [b", "[", [["a [b", 1]]],
      ["(a (b:1.2)", "(", [["(a ", 1], ["b", 1.2]]],
      ["(a:1.2))", ")", [["a", 1.2], [")", 1]]],
      ["(a [b) c]", "[]", [["a [b", 1.1], [" c]", 1]]],
      ["(a [b:1.2)", "[", [["a [b", 1.2]]],
      ["(a:1.2])", "]", [["a:1.2]", 1.1]]],
    ];
    for (const [prompt, unbalanced, want] of cases) {
      assert.deepEqual(parts(prompt), want, prompt);
      assert.equal(parsePromptWeights(prompt).unbalanced, unbalanced, prompt);
    }
  });

  it("refuses weights that are no numbers, or too large ones", () => {
    for (const wrong of ["high", "", "1.2.3", "1,2", "1e3", "0x2", "NaN", "Infinity", "--1"]) {
      assert.throws(
        () => parsePromptWeights(`a (cat:${wrong})`),
        (error: Error) =>
          error instanceof InputError &&
          error.message.includes(`belongs a number, as in "(word:1.2)", got "${wrong}"`),
      );
    }
    for (const wrong of ["(a:1000.5)", "(a:-1001)", `(a:${"9".repeat(400)})`, "((a:60):60)"]) {
      assert.throws(() => parsePromptWeights(wrong), /must lie between -1000 and 1000/, wrong);
    }
    assert.throws(() => parsePromptWeights("(".repeat(99) + "a" + ")".repeat(99)), InputError);
  });

  it("gives back any text whose brackets and backslashes are escaped", () => {
    fc.assert(fc.property(fc.string({ unit: "grapheme" }), (text) => {
      const { parts, unbalanced } = parsePromptWeights(text.replace(/[\\()[\]]/g, "\\$&"));
      assert.deepEqual(parts, text ? [{ text, weight: 1 }] : []);
      assert.equal(unbalanced, "");
    }));
  });

  it("loses no letter, whatever the brackets, and counts those without a partner", () => {
    fc.assert(fc.property(
      fc.array(fc.constantFrom("(", ")", "[", "]", "a", "b ", "é")).map((list) => list.join("")),
      (text) => {
        const { parts, unbalanced } = parsePromptWeights(text);
        const joined = parts.map((part) => part.text).join("");
        assert.equal(joined.replace(/[()[\]]/g, ""), text.replace(/[()[\]]/g, ""));
        assert.equal(joined.replace(/[^()[\]]/g, ""), unbalanced);
        for (const [i, { weight }] of parts.entries()) {
          assert.ok(weight > 0 && weight !== parts[i + 1]?.weight);
        }
      },
    ));
  });

  it("reads long and deep prompts in no time", () => {
    const n = 50_000;
    const deep = "([".repeat(n) + "a" + "])".repeat(n);
    assert.deepEqual(parts(deep), [["a", 1]]);
    assert.equal(parsePromptWeights("(".repeat(n)).unbalanced.length, n);
    assert.equal(parsePromptWeights(")".repeat(n)).unbalanced.length, n);
    assert.equal(looksWeighted("(a:".repeat(n)), false);
  });
});

describe("weighted prompts", () => {
  it("with every weight 1 are the plain ones, bit for bit", async () => {
    const plain = await encode(["a red heart in a green meadow", ""]);
    const options = { promptWeights: true };
    const same = await encode(["a (red:1.0) heart in (a green:1) meadow", ""], options);
    assert.deepEqual(same.shape, [2, TOKENS, WIDTH]);
    assert.deepEqual(same.z, plain.z);
    assert.deepEqual(plain.z, await direct(["a red heart in a green meadow", ""]));
    const brackets = ["a (red:1.3) heart"];
    assert.deepEqual((await encode(brackets)).z, await direct(brackets));
  });

  it("follow the rule, and leave the other rows alone", async () => {
    const plain = await direct(["", "a red heart"]);
    const { z } = await encode(["", "a (red:1.4) [heart]"], { promptWeights: true });
    assert.deepEqual(z.slice(0, ROW), plain.slice(0, ROW));
    const weights = new Array(TOKENS).fill(1);
    const red = sd.tokenizer.encode("red").length;
    const heart = sd.tokenizer.encode("heart").length;
    const first = 1 + sd.tokenizer.encode("a").length;
    weights.fill(1.4, first, first + red).fill(1 / 1.1, first + red, first + red + heart);
    assertClose(z.slice(ROW), weighted(plain.slice(ROW), weights));
  });

  it("are not brought back to a mean that vanished", async () => {
    const z = device.tensor(new Float32Array([1, 1, 2, 2]), [1, 2, 2]);
    const out = applyWeights(z, [Float32Array.of(2, -1)]);
    assert.deepEqual([...await out.data()], [2, 2, -2, -2]);
    z.dispose();
    out.dispose();
  });

  it("leave no memory behind", async () => {
    const { live } = device.memory();
    await encode(["a (red:1.4) heart"], { promptWeights: true, clipSkip: 1, longPrompts: true });
    assert.equal(device.memory().live, live);
  });
});

describe("clip skip", () => {
  it("is the final norm of an earlier layer's output", async () => {
    const ids = sd.tokenizer.tokenize("a red heart").ids;
    const { lastHiddenState, hiddenStates, pooled } = sd.textEncoder.forward([ids]);
    const layers = sd.textEncoder.config.numHiddenLayers;
    const seen = new Set<string>();
    for (let skip = 0; skip < layers; skip++) {
      const want = sd.textEncoder.finalNorm(hiddenStates[layers - skip]);
      const { z } = await encode(["a red heart"], { clipSkip: skip });
      assert.deepEqual(z, await want.data(), `${skip} layers left out`);
      seen.add(z.join());
      want.dispose();
    }
    assert.equal(seen.size, layers);
    for (const tensor of [lastHiddenState, ...hiddenStates, pooled]) tensor.dispose();
  });

  it("leaves at least one layer", () => {
    for (const clipSkip of [-1, 3, 0.5, NaN]) {
      assert.throws(
        () => sd.encodePrompt(["a"], { clipSkip }),
        /clipSkip must be a whole number from 0 to 2, as the text encoder has 3 layers/,
      );
    }
  });
});

describe("long prompts", () => {
  const longPrompts = true;
  const COLOURS = ["red", "green", "blue", "yellow"];
  const words = (count: number) => Array.from({ length: count }, (_, i) => COLOURS[i % 4]);

  it("that fit are the plain ones, bit for bit", async () => {
    const prompts = ["a red heart in a green meadow", ""];
    const { z, shape, cut } = await encode(prompts, { longPrompts });
    assert.deepEqual([shape, cut], [[2, TOKENS, WIDTH], ["", ""]]);
    assert.deepEqual(z, (await encode(prompts)).z);
    const full = words(ROOM).join(" ");
    assert.deepEqual((await encode([full], { longPrompts })).z, (await encode([full])).z);
  });

  it("are pieces of 75 tokens, and shorter ones get empty pieces", async () => {
    const list = words(ROOM * 2 + 5);
    const text = list.join(" ");
    const { z, shape, cut } = await encode(["blue", text], { longPrompts });
    assert.deepEqual([shape, cut], [[2, 3 * TOKENS, WIDTH], ["", ""]]);
    const pieces = [0, 1, 2].map((i) => list.slice(i * ROOM, (i + 1) * ROOM).join(" "));
    assert.deepEqual(z, await direct(["blue", "", "", ...pieces]));
    const plain = await encode([text]);
    assert.deepEqual(plain.cut, [list.slice(ROOM).join(" ")]);
    assert.deepEqual(plain.z, await direct([text]));
  });

  it("keep words whole where they fit", async () => {
    // A word that takes several tokens, over the seam.
    const odd = "qzxvjk";
    const size = sd.tokenizer.encode(odd).length;
    assert.ok(size > 1 && size < ROOM);
    const start = words(ROOM - 1).join(" ");
    const { z } = await encode([`${start} ${odd}`], { longPrompts });
    assert.deepEqual(z, await direct([start, odd]));
    const huge = "qzxvjk".repeat(40);
    const ids = sd.tokenizer.encode(huge);
    const all = await encode([`red ${huge}`], { longPrompts });
    assert.equal(all.shape[1], (1 + Math.ceil(ids.length / ROOM)) * TOKENS);
  });

  it("have the mean of each piece kept", async () => {
    const [first, second] = [words(ROOM).join(" "), "a heart"];
    const options = { longPrompts, promptWeights: true };
    const { z } = await encode([`${first} (${second}:1.5)`], options);
    const plain = await direct([first, second]);
    assert.deepEqual(z.slice(0, ROW), plain.slice(0, ROW));
    const weights = new Array(TOKENS).fill(1);
    weights.fill(1.5, 1, 1 + sd.tokenizer.encode(second).length);
    assertClose(z.slice(ROW), weighted(plain.slice(ROW), weights));
  });
});

describe("pictures", () => {
  const QUICK = { steps: 1, width: 64, height: 64, seed: 1 };

  async function picture(prompt: string, options: TextToImageOptions = {}) {
    const clip = textToImage(sd, prompt, { ...QUICK, ...options });
    const latents = await (await clip.latents()).data();
    clip.dispose();
    return { latents, warnings: clip.warnings, settings: clip.settings };
  }

  it("record the options and take long prompts", async () => {
    const plain = await picture("a red heart");
    assert.deepEqual(plain.warnings, []);
    const { clipSkip, promptWeights, longPrompts, embeddings } = plain.settings;
    assert.deepEqual([clipSkip, promptWeights, longPrompts, embeddings], [0, false, false, []]);
    const long = `a (red:1.3) heart ${"and a meadow ".repeat(30)}`;
    const options = { clipSkip: 1, promptWeights: true, longPrompts: true };
    const all = await picture(long, options);
    assert.deepEqual(all.warnings, []);
    assert.deepEqual({ ...all.settings, ...options }, all.settings);
    assert.ok(all.latents.every(Number.isFinite));
    assert.notDeepEqual(all.latents, plain.latents);
  });

  it("warn of what was read otherwise than it may be meant", async () => {
    const text = await picture("a (red:1.3) heart");
    assert.match(
      text.warnings.join(),
      /the prompt looks as if.*promptWeights, or --prompt-weights/,
    );
    const negative = { negativePrompt: "(blue:2)" };
    assert.match((await picture("a", negative)).warnings.join(), /the negative prompt looks as if/);
    const odd = await picture("a heart :)", { promptWeights: true });
    assert.match(odd.warnings.join(), /brackets without a partner, read as text: \)/);
    const long = await picture("a ".repeat(80));
    assert.match(
      long.warnings.join(),
      /longer than 75 tokens; left out: "a a a a a" .*--long-prompt/,
    );
  });

  it("refuse at once what cannot be used", () => {
    const wrong = [
      [{ promptWeights: true, negativePrompt: "(a:b)" }, /belongs a number/],
      [{ clipSkip: 3 }, /clipSkip must be/],
    ] as const;
    for (const [options, message] of wrong) {
      assert.throws(
        () => textToImage(sd, "a", options),
        (error: Error) => error instanceof InputError && message.test(error.message),
      );
    }
  });

  it("are refused on the command line with exit code 2", async () => {
    const image = ["image", "a (b:c)", "--quiet", "-o", "unused-by-refusals.png"];
    await refused([...image, "--prompt-weights"], 2, /belongs a number/);
    await refused([...image, "--clip-skip", "9"], 2, /clipSkip must be a whole number from 0 to 2/);
    await refused([...image, "--clip-skip", "x"], 2, /must be a whole number/);
  });
});
