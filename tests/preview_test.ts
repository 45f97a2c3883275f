/** Previews: colours of latents, TAESD's decoder, and pictures in terminals. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { mkdtemp, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { openDevice } from "../core/device.ts";
import { f16ArrayToF32, f32ArrayToF16 } from "../core/dtype.ts";
import { MemoryError, ShapeError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { encodeSafetensors } from "../core/safetensors.ts";
import { sizeOf } from "../core/shape.ts";
import { generatedWeights } from "../models/generated_weights.ts";
import { BUILT_IN, StableDiffusion } from "../models/stable_diffusion.ts";
import { TaesdDecoder } from "../models/taesd.ts";
import { main } from "../video/cli.ts";
import { encodePng, PNG_SIGNATURE } from "../video/png.ts";
import { linearColours, previewFrames, sideBySide } from "../video/preview.ts";
import { picturePlace, pictureProtocol, pictureSequence } from "../video/terminal_picture.ts";
import { refused } from "./cli_run.ts";

const device = await openDevice();
after(() => device.close());

const PROMPT = "a red heart";
const ESC = "\x1b";
const MODEL = fileURLToPath(BUILT_IN);

/** Names and shapes of TAESD's decoder: convolutions by number, blocks of three of them. */
function taesdShapes(): Map<string, number[]> {
  const shapes = new Map<string, number[]>();
  const conv = (name: string, outputs: number, inputs: number, bias = true) => {
    shapes.set(`${name}.weight`, [outputs, inputs, 3, 3]);
    if (bias) shapes.set(`${name}.bias`, [outputs]);
  };
  conv("1", 64, 4);
  for (const i of [3, 4, 5, 8, 9, 10, 13, 14, 15, 18]) {
    for (const part of [0, 2, 4]) conv(`${i}.conv.${part}`, 64, 64);
  }
  for (const i of [7, 12, 17]) conv(String(i), 64, 64, false);
  conv("19", 3, 64);
  return shapes;
}

const shapes = taesdShapes();
const random = new Generator(12);
/** Random weights, rounded to half precision, by TAESD's names. */
const weights = new Map([...shapes].map(([name, shape]) => {
  const scale = shape.length > 1 ? 1 / Math.sqrt(sizeOf(shape) / shape[0]) : 0.1;
  return [name, f32ArrayToF16(random.randn(shape).map((value) => scale * value))];
}));

/** A source with other names for the same weights. */
function source(rename: (name: string) => string) {
  const names = new Map([...shapes.keys()].map((name) => [rename(name), name]));
  const renamed = new Map([...names].map(([name, own]) => [name, shapes.get(own) as number[]]));
  return generatedWeights("taesd", renamed, (values, name, _shape, from) => {
    const all = weights.get(names.get(name) as string) as Uint16Array;
    values.set(all.subarray(from, from + values.length));
  });
}

interface Planes {
  readonly h: number;
  readonly w: number;
  readonly data: readonly Float64Array[];
}

const map = ({ h, w, data }: Planes, change: (value: number) => number): Planes => ({
  h,
  w,
  data: data.map((plane) => plane.map(change)),
});

/** A 3×3 convolution with zeros around, in float64. */
function convolve({ h, w, data }: Planes, name: string): Planes {
  const weight = f16ArrayToF32(weights.get(`${name}.weight`) as Uint16Array);
  const bits = weights.get(`${name}.bias`);
  const [outputs, inputs] = shapes.get(`${name}.weight`) as number[];
  const bias = bits ? f16ArrayToF32(bits) : new Float32Array(outputs);
  const planes = Array.from({ length: outputs }, (_, o) => {
    const plane = new Float64Array(h * w).fill(bias[o]);
    for (let i = 0; i < inputs; i++) {
      for (let tap = 0; tap < 9; tap++) {
        const [dy, dx] = [Math.floor(tap / 3) - 1, tap % 3 - 1];
        const factor = weight[(o * inputs + i) * 9 + tap];
        for (let y = Math.max(0, -dy); y < Math.min(h, h - dy); y++) {
          for (let x = Math.max(0, -dx); x < Math.min(w, w - dx); x++) {
            plane[y * w + x] += factor * data[i][(y + dy) * w + x + dx];
          }
        }
      }
    }
    return plane;
  });
  return { h, w, data: planes };
}

function twice({ h, w, data }: Planes): Planes {
  const enlarged = data.map((plane) =>
    Float64Array.from(
      { length: 4 * h * w },
      (_, i) => plane[(Math.floor(i / (2 * w)) >> 1) * w + ((i % (2 * w)) >> 1)],
    )
  );
  return { h: 2 * h, w: 2 * w, data: enlarged };
}

/** TAESD's decoder as its author wrote it down, layer by layer. */
function decoded(latents: Planes): Planes {
  const relu = (x: Planes) => map(x, (value) => Math.max(0, value));
  const block = (x: Planes, i: number) => {
    const inner = relu(convolve(relu(convolve(x, `${i}.conv.0`)), `${i}.conv.2`));
    const h = convolve(inner, `${i}.conv.4`);
    const sum = h.data.map((plane, c) => plane.map((value, k) => value + x.data[c][k]));
    return relu({ ...h, data: sum });
  };
  let h = relu(convolve(map(latents, (value) => 3 * Math.tanh(value / 3)), "1"));
  for (const first of [3, 8, 13]) {
    for (let i = 0; i < 3; i++) h = block(h, first + i);
    h = convolve(twice(h), String(first + 4));
  }
  return convolve(block(h, 18), "19");
}

test("TAESD decodes as its formula says, by either set of names", async () => {
  const shape = [1, 4, 2, 3];
  const values = new Generator(4).randn(shape).map((value) => 2 * value);
  const planes = Array.from(
    { length: 4 },
    (_, c) => Float64Array.from(values.subarray(6 * c, 6 * c + 6)),
  );
  const want = decoded({ h: 2, w: 3, data: planes }).data.flatMap((plane) => [...plane]);
  const tiny = (name: string) => {
    const [number, ...rest] = name.split(".");
    return ["decoder.layers", Number(number) - 1, ...rest].join(".");
  };
  const largest = want.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  for (const rename of [(name: string) => name, tiny]) {
    const decoder = await TaesdDecoder.load(source(rename), { device });
    const latents = device.tensor(values, shape);
    const picture = decoder.decode(latents);
    assert.deepEqual(picture.shape, [1, 3, 16, 24]);
    const got = await picture.data();
    const worst = got.reduce((most, value, i) => Math.max(most, Math.abs(value - want[i])), 0);
    assert.ok(worst < 1e-4 * largest, `largest error ${worst} of ${largest}`);
    assert.throws(() => decoder.decode(device.empty([1, 3, 2, 2])), ShapeError);
    const huge = device.empty([1, 4, 1024, 1024]);
    assert.throws(() => decoder.decode(huge), MemoryError);
    for (const tensor of [latents, picture, huge]) tensor.dispose();
    decoder.dispose();
  }
});

test("colours are a linear map of latents, enlarged and within bounds", async () => {
  const latents = device.tensor(
    [1, 0, 0, 0, 9, -9, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0],
    [1, 4, 2, 3],
  );
  const [same, large] = [linearColours(latents, [2, 3]), linearColours(latents, [16, 24])];
  assert.deepEqual(large.shape, [1, 3, 16, 24]);
  const got = await same.data();
  const cell = (i: number) => [0, 1, 2].map((c) => got[6 * c + i]);
  const near = (values: number[], want: number[]) =>
    values.forEach((value, i) => assert.ok(Math.abs(value - want[i]) < 1e-6, `${values}`));
  near(cell(0), [0.649, 0.6035, 0.604]);
  near(cell(1), [0.5935, 0.643, 0.5865]);
  near(cell(2), [0.421, 0.5945, 0.632]);
  near(cell(3), [0.408, 0.3645, 0.2635]);
  near(cell(4), [1, 1, 1]);
  near(cell(5), [0, 0, 0]);
  for (const tensor of [latents, same, large]) tensor.dispose();
});

test("previews show first and last frames, and do with colours where memory is short", async () => {
  const load = async (memoryBudget?: number) => {
    const other = await openDevice({ memoryBudget, poolBytes: 0 });
    const sd = await StableDiffusion.load(undefined, { device: other });
    const decoder = await TaesdDecoder.load(source((name) => name), { device: other });
    const one = new Generator(3).randn([1, 4, 8, 8]);
    const values = [0, 1, 2, 3, 4, 5, 6].flatMap((k) => [...one.map((value) => value * k)]);
    const latents = other.tensor(values, [7, 4, 8, 8]);
    const pictures = async (kind: "linear" | "exact" | TaesdDecoder) => {
      const frames = [];
      for await (const frame of previewFrames(sd, latents, kind)) frames.push(frame);
      return frames;
    };
    return { other, sd, decoder, pictures };
  };
  const roomy = await load();
  const linear = await roomy.pictures("linear");
  assert.deepEqual(linear.map(({ width, height }) => [width, height]), Array(4).fill([64, 64]));
  assert.ok(linear[0].data.every((value) => value === 128), "frame 0 is grey");
  const fine = await roomy.pictures(roomy.decoder);
  assert.notDeepEqual(fine, linear);
  const exact = await roomy.pictures("exact");
  assert.notDeepEqual(exact, linear);
  const { live } = roomy.other.memory();
  roomy.sd.dispose();
  await roomy.other.close();

  const tight = await load(live + 2 ** 21);
  assert.deepEqual(await tight.pictures(tight.decoder), linear);
  tight.sd.dispose();
  await tight.other.close();
});

test("frames side by side, with rows and columns left out", () => {
  const frame = (base: number) => ({
    width: 4,
    height: 4,
    data: Uint8Array.from({ length: 48 }, (_, i) => base + Math.floor(i / 3)),
  });
  const joined = sideBySide([frame(0), frame(100)], 2);
  assert.deepEqual([joined.width, joined.height], [4, 2]);
  const red = [...joined.data].filter((_, i) => i % 3 === 0);
  assert.deepEqual(red, [0, 2, 100, 102, 8, 10, 108, 110]);
  assert.deepEqual(sideBySide([frame(7)], 4), frame(7));
});

test("the terminal says which pictures it takes", () => {
  assert.equal(pictureProtocol({ TERM: "xterm-kitty" }), "kitty");
  assert.equal(pictureProtocol({ TERM: "xterm-ghostty", TERM_PROGRAM: "ghostty" }), "kitty");
  assert.equal(pictureProtocol({ TERM: "xterm-256color", TERM_PROGRAM: "iTerm.app" }), "iterm2");
  assert.equal(pictureProtocol({ TERM_PROGRAM: "WezTerm" }), "iterm2");
  for (const env of [{}, { TERM: "xterm-256color" }, { TERM: "dumb", TERM_PROGRAM: "tmux" }]) {
    assert.equal(pictureProtocol(env), null);
  }
});

/** What kitty puts together of its sequences. */
function ofKitty(text: string): { settings: string; bytes: Uint8Array } {
  const parts = [...text.matchAll(new RegExp(`${ESC}_G([^;]*);([\\w+/=]*)${ESC}\\\\`, "g"))];
  assert.equal(parts.map(([whole]) => whole).join(""), text);
  parts.forEach(([, settings, base64], i) => {
    assert.match(settings, new RegExp(`m=${i < parts.length - 1 ? 1 : 0}$`));
    assert.ok(base64.length <= 4096);
  });
  const joined = parts.map(([, , base64]) => base64).join("");
  return { settings: parts[0][1], bytes: new Uint8Array(Buffer.from(joined, "base64")) };
}

test("pictures arrive whole, by either protocol, and always at the same place", async () => {
  const data = Uint8Array.from(new Generator(1).randint(0, 256, [60 * 60 * 3]));
  const png = await encodePng({ width: 60, height: 60, data });
  assert.ok(png.length > 4096);
  const { settings, bytes } = ofKitty(pictureSequence(png, "kitty", 9));
  assert.match(settings, /a=T,f=100,.*r=9,C=1/);
  assert.deepEqual(bytes, new Uint8Array(png));
  const inline = pictureSequence(png, "iterm2", 9);
  assert.ok(inline.startsWith(`${ESC}]1337;File=inline=1;`) && inline.endsWith("\x07"));
  const [, size, base64] = /;size=(\d+);height=9;[^:]*:([^:]*).$/s.exec(inline) ?? [];
  assert.equal(Number(size), png.length);
  assert.deepEqual(new Uint8Array(Buffer.from(base64, "base64")), new Uint8Array(png));

  const written: string[] = [];
  const show = picturePlace("iterm2", 2, (text) => written.push(text));
  show(png);
  show(png);
  const [first, second] = written;
  assert.ok(first.startsWith("\r\x1b[K\n\n\x1b[2A\x1b7\x1b]1337;"));
  assert.ok(second.startsWith("\r\x1b[K\x1b[2A\x1b7"), "room is made once");
  for (const text of written) assert.ok(text.endsWith("\x07\x1b8\x1b[2B"));
});

test("--preview: a file by TAESD, and pictures in the terminal", async () => {
  const folder = await mkdtemp(join(tmpdir(), "framezero-preview-"));
  const taesd = join(folder, "taesd_decoder.safetensors");
  const tensors = [...weights].map(([name, data]) => ({
    name,
    dtype: "F16" as const,
    shape: shapes.get(name) as number[],
    data,
  }));
  await writeFile(taesd, encodeSafetensors(tensors));
  const preview = join(folder, "preview.png");
  const terminal = async (...args: string[]) => {
    let text = "";
    const code = await main(
      ["image", PROMPT, "--model", MODEL, "--dtype", "f32", "--steps", "2", ...args],
      {
        stdout: () => {},
        stderr: (part) => void (text += part),
        isTTY: true,
        columns: 80,
        pictures: "kitty",
        signal: new AbortController().signal,
        debug: true,
      },
    );
    assert.equal(code, 0, text);
    return text;
  };
  const text = await terminal("--preview", preview, "--taesd", taesd, "-o", join(folder, "a.png"));
  assert.ok((await stat(preview)).size > 1000);
  const pictures = [...text.matchAll(new RegExp(`${ESC}7(.*?)${ESC}8`, "gs"))];
  assert.equal(pictures.length, 2, "one a step");
  assert.deepEqual(ofKitty(pictures[0][1]).bytes.subarray(0, 8), PNG_SIGNATURE);
  const plain = await terminal("--preview", "-", "-o", join(folder, "b.png"));
  assert.ok(plain.includes(`${ESC}_Ga=T`));
  const quiet = ["--quiet", "--preview", preview, "-o", join(folder, "c.png")];
  assert.equal(await terminal(...quiet), "");
});

test("previews that nobody would see, or that TAESD cannot make, are refused", async () => {
  await refused([PROMPT, "--preview", "-"], 2, /terminals that show pictures/);
  await refused([PROMPT, "--taesd", "x.safetensors"], 2, /say where they go with --preview/);
  const args = [PROMPT, "--taesd", "x.safetensors", "--preview", join(tmpdir(), "p.png")];
  await refused(args, 2, /the built-in model has its own/);
});
