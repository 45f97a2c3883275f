/**
 * CLIP's tokenizer: ids of the built-in model's tokenizer as transformers gave them, the clean-up
 * of text, properties that hold for any text, and the errors.
 *
 * @module
 */

import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { InputError, WeightError } from "../core/errors.ts";
import { cleanText, ClipTokenizer } from "../models/clip_tokenizer.ts";

const FOLDER = fileURLToPath(new URL("../models/tiny-shapes/tokenizer", import.meta.url));
const tiny = await ClipTokenizer.load(FOLDER);
const START = 1159;
const END = 1160;

/** Content ids from transformers' CLIPTokenizer with the same files. */
const REFERENCE: [string, number[]][] = [
  ["", []],
  ["a red circle on a blue background", [320, 557, 569, 591, 320, 547, 588]],
  ["two yellow squares on a green background", [682, 561, 573, 591, 320, 540, 588]],
  [
    "a green triangle above a purple square on a white background",
    [320, 540, 570, 699, 320, 556, 567, 591, 320, 544, 588],
  ],
  [
    "a large orange ring in front of snowy mountains",
    [320, 639, 553, 565, 592, 605, 590, 707, 690],
  ],
  ["a red heart in a green meadow", [320, 557, 568, 592, 320, 540, 735]],
];

/** "a", "b", "c" alone and at a word's end, three merges and the usual special tokens. */
const SMALL = {
  vocab: {
    "a": 0,
    "b": 1,
    "c": 2,
    "a</w>": 3,
    "b</w>": 4,
    "c</w>": 5,
    "aa": 6,
    "ab": 7,
    "abc</w>": 8,
    "!": 9,
    "!</w>": 10,
    "<|startoftext|>": 11,
    "<|endoftext|>": 12,
  },
  merges: "#version: 0.2\na a\na b\nab c</w>\n",
};

test("prompts give the ids that transformers gives", () => {
  for (const [prompt, ids] of REFERENCE) {
    assert.deepEqual(tiny.encode(prompt), ids, prompt);
    const padding = Array<number>(77 - 1 - ids.length).fill(END);
    const got = tiny.tokenize(prompt);
    assert.deepEqual(Array.from(got.ids), [START, ...ids, ...padding]);
    assert.equal(got.tokens, ids.length);
    assert.equal(got.cut, "");
    assert.equal(tiny.decode(ids), prompt);
  }
});

test("special tokens and length come from the folder", () => {
  assert.deepEqual(
    [tiny.maxLength, tiny.startId, tiny.endId, tiny.padId],
    [77, START, END, END],
  );
});

test("words split at contractions, single digits, and other characters", () => {
  const words = (text: string) => text.split(" ").flatMap((word) => tiny.encode(word));
  assert.deepEqual(tiny.encode("DON'T we'll you're I've I'm he'd it's"), [
    ...words("don 't we 'll you 're i 've i 'm he 'd it 's"),
  ]);
  assert.deepEqual(tiny.encode("1990s, f/1.8!"), words("1 9 9 0 s , f / 1 . 8 !"));
  assert.deepEqual(tiny.encode("it'ſ"), [...tiny.encode("it"), ...tiny.encode("'ſ")]);
});

test("special tokens in a prompt are one id each, in any case", () => {
  const a = tiny.encode("a");
  assert.deepEqual(tiny.encode("a <|ENDOFTEXT|> a<|startoftext|>"), [...a, END, ...a, START]);
  assert.equal(tiny.decode([START, ...a, END]), "<|startoftext|>a <|endoftext|>");
});

test("pairs merge by rank, all occurrences from left to right", () => {
  const small = ClipTokenizer.from(SMALL);
  assert.deepEqual(small.encode("abc"), [8]);
  assert.deepEqual(small.encode("aaab aac"), [6, 0, 4, 6, 5]);
  assert.deepEqual(small.encode("aaaaabc aabab"), [6, 6, 8, 6, 1, 0, 4]);
});

test("a byte that the vocabulary lacks becomes the unknown token", () => {
  const small = ClipTokenizer.from({ ...SMALL, config: { unk_token: "!" } });
  assert.deepEqual(small.encode("abx"), [7, 9]);
  assert.deepEqual(ClipTokenizer.from(SMALL).encode("x"), [12]);
});

test("the configuration's own padding and length, and any header of merges, are honoured", () => {
  const config = { pad_token: { content: "!" }, eos_token: null, model_max_length: 6 };
  const small = ClipTokenizer.from({ ...SMALL, config });
  assert.deepEqual(Array.from(small.tokenize("abc!").ids), [11, 8, 10, 12, 9, 9]);
  const merges = SMALL.merges.replace("#version", '"bpe_simple_vocab.txt#version');
  const long = ClipTokenizer.from({ ...SMALL, merges, config: { model_max_length: 1e30 } });
  assert.equal(long.maxLength, 77);
  assert.deepEqual(long.encode("abc"), [8]);
});

test("special_tokens_map.json wins over tokenizer_config.json", async () => {
  const folder = await mkdtemp(join(tmpdir(), "tokenizer-"));
  try {
    await writeFile(join(folder, "vocab.json"), JSON.stringify(SMALL.vocab));
    await writeFile(join(folder, "merges.txt"), SMALL.merges.replaceAll("\n", "\r\n"));
    const bare = await ClipTokenizer.load(folder);
    assert.deepEqual([bare.padId, bare.maxLength], [12, 77]);
    const config = { pad_token: "<|endoftext|>", model_max_length: 9 };
    await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify(config));
    await writeFile(join(folder, "special_tokens_map.json"), '{"pad_token": "!"}');
    const both = await ClipTokenizer.load(`${folder}/`);
    assert.deepEqual([both.padId, both.maxLength], [9, 9]);
    assert.deepEqual(both.encode("abc"), [8]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("what does not fit is cut, and told", () => {
  const exact = tiny.tokenize("red ".repeat(75));
  assert.deepEqual([exact.tokens, exact.cut, exact.ids[75], exact.ids[76]], [75, "", 557, END]);
  const long = tiny.tokenize("red ".repeat(75) + "blue circle");
  assert.deepEqual([long.tokens, long.cut, long.ids[76]], [75, "blue circle", END]);
});

/** Text, and the text that CLIP reads, checked against ftfy 6.3.1 and Python's html.unescape. */
const CLEANED: [string, string][] = [
  ["  A\tRed \n\u3000\u00a0Circle\u2028 ", "a red circle"],
  ["ΟΔΥΣΣΕΎΣ İ ẞ", "οδυσσεύς i̇ ß"],
  ["cafe\u0301", "café"],
  ["“it’s” ‛x‟ ʼn", "\"it's\" 'x\" 'n"],
  ["ﬁ ﬃ Ǆ Ĳ ﬅ", "fi ffi dž ij ſt"],
  ["ＦＵＬＬ　width！ ｶﾞ", "full width! ガ"],
  ["\x1b[1;31mred\x1b[0m \0a\x07\x7f\ufeffb\ufffc", "red ab"],
  ["\x93wait\x85\x94", '"wait…"'],
  ["Tom &amp;amp;amp; Jerry &lt;3", "tom & jerry <3"],
  ["&Eacute;&EACUTE;&eacute; &SZLIG; &#39;&#x1F600; &amp x", "ééé ss '😀 & x"],
  ["&bogus; AT&T", "&bogus; at&t"],
  ["<b>&EACUTE; &amp;amp;amp;</b>", "<b>&eacute; &amp;</b>"],
  ["L&AMP;AMP;ATILDE;&AMP;AMP;SUP3;PEZ", "lópez"],
  ["\ud83d\ude00 \ud83d \ude00", "😀 � �"],
];

test("text is cleaned as OpenAI's CLIP cleans it", () => {
  for (const [text, cleaned] of CLEANED) assert.equal(cleanText(text), cleaned);
});

/** UTF-8 read as Windows-1252 or Latin-1, and its repair. */
const MISREAD: [string, string][] = [
  ["Ã©tÃ© et cafÃ©", "été et café"],
  ["itâ€™s â€œquotedâ€\x9d", 'it\'s "quoted"'],
  ["sch\xc3\xb6n \xe2\x9c\x93", "schön ✓"],
  ["zaÅ¼Ã³Å‚Ä‡ gÄ™Å›lÄ… jaÅºÅ„", "zażółć gęślą jaźń"],
  ["ÐœÐ¾ÑÐºÐ²Ð°", "моñква"],
  ["ðŸ˜€ â†’ ï¼¡", "😀 → a"],
  ["The Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t", "the mona lisa doesn't"],
  ["wÅ›ród ąę", "wśród ąę"],
];

/** Honest text with the same sequences of characters. */
const HONEST: [string, string][] = [
  ["«CAFÉ», CAFÉ… CAFÉ— NESTLÉ® ZZAJÉ’s", "«café», café… café— nestlé® zzajé's"],
  ["“café’” víš… máš”", '"café\'" víš… máš"'],
  ["3×½ 4288×… QUEM É¿ NÃO MANHÃ…", "3×½ 4288×… quem é¿ não manhã…"],
  ["parlé\x85 Tu sais, ça", "parlé… tu sais, ça"],
  ["frataraká§ 141 ¯\\_(ツ)_/¯ naïve", "frataraká§ 141 ¯\\_(ツ)_/¯ naïve"],
  ["overlong \xf0\x82\x82\xac", "overlong ð''¬"],
];

test("misread UTF-8 is repaired, honest text is not", () => {
  for (const [text, cleaned] of [...MISREAD, ...HONEST]) assert.equal(cleanText(text), cleaned);
});

test("basic clean-up is that of transformers without ftfy", async () => {
  const cases: [string, string][] = [
    ["it’s &amp; Ã©", "it’s &amp; ã©"],
    ["一只猫 x\u2028y", "一 只 猫 x y"],
    ["a\u200bb\x07\ufffd\x0cc\u00add cafe\u0301", "abcd café"],
    ["\ud83d x", "x"],
  ];
  for (const [text, cleaned] of cases) assert.equal(cleanText(text, "basic"), cleaned);
  const basic = await ClipTokenizer.load(FOLDER, "basic");
  assert.deepEqual(basic.encode("猫猫"), [...basic.encode("猫"), ...basic.encode("猫")]);
  assert.notDeepEqual(basic.encode("&amp;"), tiny.encode("&amp;"));
});

test("decoding gives back the cleaned text, spaces between words apart", () => {
  const squeeze = (text: string) => text.replaceAll(" ", "");
  fc.assert(fc.property(fc.string({ unit: "grapheme-ascii", maxLength: 200 }), (text) => {
    assert.equal(squeeze(tiny.decode(tiny.encode(text))), squeeze(cleanText(text)));
  }));
  fc.assert(fc.property(fc.array(fc.stringMatching(/^[a-z]{1,12}$/)), (words) => {
    assert.equal(tiny.decode(tiny.encode(words.join(" "))), words.join(" "));
  }));
});

test("any text gives maxLength ids of the vocabulary", () => {
  const codeUnits = fc.array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 200 })
    .map((units) => String.fromCharCode(...units));
  const anything = fc.oneof(codeUnits, fc.string({ unit: "binary", maxLength: 200 }));
  fc.assert(fc.property(anything, (text) => {
    const { ids, tokens, cut } = tiny.tokenize(text);
    assert.equal(ids.length, 77);
    assert.ok(tokens <= 75 && ids.every((id) => id >= 0 && id <= END));
    assert.equal(ids[tokens + 1], END);
    if (tokens < 75) assert.equal(cut, "");
    assert.ok(cleanText(text, "basic").isWellFormed());
  }));
});

test("cleaning cleaned text changes nothing", () => {
  fc.assert(fc.property(fc.string({ unit: "grapheme", maxLength: 100 }), (text) => {
    const once = cleanText(text);
    fc.pre(!once.includes("&"));
    assert.equal(cleanText(once), once);
  }));
});

test("long prompts are quick", () => {
  const letters = Array.from({ length: 10_000 }, (_, i) => "aeinorstlc"[(i * i + 3 * i) % 97 % 10]);
  const prompts = [
    letters.join(""),
    "&" + "amp;".repeat(2500),
    "ÃƒÂ©".repeat(2500),
    "'".repeat(10_000),
  ];
  for (const prompt of prompts) {
    const start = performance.now();
    tiny.tokenize(prompt);
    assert.ok(performance.now() - start < 5000, prompt.slice(0, 20));
  }
});

test("decoding an id outside the vocabulary is refused", () => {
  assert.throws(() => tiny.decode([5000]), (error: unknown) => {
    assert.ok(error instanceof InputError);
    assert.match(error.message, /vocabulary of 1161 tokens, but 5000 is not in it/);
    return true;
  });
});

test("files that do not belong together are refused, with the line", () => {
  const build = (change: object) => () => ClipTokenizer.from({ ...SMALL, ...change });
  const lacks = { ...SMALL.vocab, "ab": undefined };
  const twice = { ...SMALL.vocab, "ab": 6 };
  const cases: [object, RegExp][] = [
    [{ merges: "#version: 0.2\na b\n\na b c\n" }, /merges\.txt, line 4: .*"a b c"/],
    [{ merges: "a  b" }, /merges\.txt, line 1: a merge is two tokens/],
    [{ merges: "a c\n" }, /line 1: .*"ac" is not in it; use the two files/],
    [{ merges: "é a\n" }, /"é" is not in it/],
    [{ merges: 3 }, /merges are given as text/],
    [{ vocab: lacks }, /"ab" has undefined/],
    [{ vocab: twice }, /13 tokens share 12 ids/],
    [{ vocab: [1] }, /a JSON object of tokens/],
    [{ vocab: { a: 0, b: 1, ab: 2, c: 3.5 } }, /"c" has 3\.5/],
    [{ vocab: { a: 0 }, merges: "" }, /"<\|startoftext\|>" is not in the vocabulary of 1 tokens/],
    [{ config: { pad_token: "<pad>" } }, /"<pad>" is not in the vocabulary/],
  ];
  for (const [change, message] of cases) {
    assert.throws(build(change), (error: unknown) => {
      assert.ok(error instanceof WeightError, String(error));
      assert.match(error.message, message);
      return true;
    });
  }
});

test("a configuration that cannot be used is refused", () => {
  const cases: [object, RegExp][] = [
    [{ model_max_length: 1 }, /at least 2 .* is 1; SD 1\.5 has 77/],
    [{ model_max_length: "77" }, /is "77"/],
    [{ bos_token: { text: "x" } }, /bos_token is a text or an object/],
    [{ eos_token: "" }, /eos_token/],
  ];
  for (const [config, message] of cases) {
    assert.throws(() => ClipTokenizer.from({ ...SMALL, config }), (error: unknown) => {
      assert.ok(error instanceof InputError, String(error));
      assert.match(error.message, message);
      return true;
    });
  }
});

test("missing and malformed files are refused by path", async () => {
  await assert.rejects(ClipTokenizer.load("no/such/folder"), (error: unknown) => {
    assert.ok(error instanceof InputError);
    assert.match(error.message, /no\/such\/folder\/(vocab\.json|merges\.txt) cannot be read/);
    return true;
  });
  const folder = await mkdtemp(join(tmpdir(), "tokenizer-"));
  try {
    await writeFile(join(folder, "merges.txt"), "");
    for (const [text, message] of [["{", /vocab\.json: not JSON/], ["[]", /object belongs here/]]) {
      await writeFile(join(folder, "vocab.json"), String(text));
      await assert.rejects(ClipTokenizer.load(folder), (error: unknown) => {
        assert.ok(error instanceof WeightError);
        assert.match(error.message, new RegExp(message));
        return true;
      });
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});
