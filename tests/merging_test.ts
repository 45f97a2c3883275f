/** Token merging: which tokens are matched, what becomes of them, and clips made with it. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import fc from "fast-check";
import { openDevice } from "../core/device.ts";
import { InputError, ShapeError } from "../core/errors.ts";
import { Generator } from "../core/random.ts";
import { mergeSlots, scatterMean } from "../kernels/mod.ts";
import { StableDiffusion } from "../models/stable_diffusion.ts";
import { drawOrder, matchTokens, sourcesOf } from "../models/token_merging.ts";
import { textToImage } from "../video/text_to_image.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { distance, latentsOf } from "./clips.ts";

const device = await openDevice();
const sd = await StableDiffusion.load(undefined, { device });
after(async () => {
  sd.dispose();
  await device.close();
});

const PROMPT = "a red heart in a green meadow";
const SMALL = { width: 64, height: 64 } as const;
const QUICK = { steps: 4, t0: 1, t1: 2, frames: 3, seed: 5, ...SMALL } as const;

function video(options: TextToVideoOptions): Promise<Float32Array> {
  return latentsOf(textToVideo(sd, PROMPT, { ...QUICK, ...options }));
}

test("each whole cell of 2×2 tokens has one destination, all other tokens are sources", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 9 }),
      fc.integer({ min: 1, max: 9 }),
      fc.nat(),
      (h, w, seed) => {
        const sources = sourcesOf([h, w]);
        const order = drawOrder([h, w], new Generator(seed));
        assert.deepEqual([...order].sort((a, b) => a - b), [...Array(h * w).keys()]);
        const cells = [...order.subarray(sources)].map((token) =>
          `${Math.floor(token / w) >> 1} ${(token % w) >> 1}`
        );
        assert.equal(new Set(cells).size, (h >> 1) * (w >> 1));
        assert.equal(cells.length, new Set(cells).size);
      },
    ),
    { seed: 3, numRuns: 100 },
  );
});

/** Merged and kept sources, one row, tokens as columns; in float64. */
function expected(
  x: Float32Array,
  channels: number,
  order: Int32Array,
  sources: number,
  r: number,
) {
  const N = order.length;
  const column = (n: number) => Array.from({ length: channels }, (_, c) => x[c * N + n]);
  const cosine = (a: number, b: number) => {
    const [u, v] = [column(a), column(b)];
    return u.reduce((sum, value, c) => sum + value * v[c], 0) / Math.hypot(...u) / Math.hypot(...v);
  };
  const destinations = [...order.subarray(sources)];
  const matches = [...order.subarray(0, sources)].map((source) => {
    const scores = destinations.map((destination) => cosine(source, destination));
    const score = Math.max(...scores);
    return { source, score, destination: destinations[scores.indexOf(score)] };
  }).sort((a, b) => b.score - a.score);
  const groups = [
    ...matches.slice(r).map(({ source }) => [source]),
    ...destinations.map((destination) => [
      destination,
      ...matches.slice(0, r).filter((match) => match.destination === destination)
        .map(({ source }) => source),
    ]),
  ];
  return groups;
}

test("the most similar sources are averaged into their destinations, and copied back", async () => {
  const [rows, C, h, w] = [2, 5, 7, 8];
  const [N, ratio] = [h * w, 0.4];
  const random = new Generator(11);
  const order = drawOrder([h, w], random);
  const sources = sourcesOf([h, w]);
  const [x, tokens] = [random.randn([rows, C, N]), random.randn([rows, C, N])];
  const scope = device.scope();
  const merging = { ratio, order: device.tensor(order), sources };
  const matched = matchTokens(device.tensor(x, [rows, C, N]), merging);
  assert.ok(matched);
  const merged = matched.merge(device.tensor(tokens, [rows, C, N]));
  assert.deepEqual(merged.shape, [rows, C, N - 20], "⌊56 · 0.4⌋ = 22, of which 20 are merged");
  const [got, back] = [await merged.data(), await matched.unmerge(merged).data()];
  scope[Symbol.dispose]();
  for (let row = 0; row < rows; row++) {
    const part = (values: Float32Array, width: number) =>
      values.subarray(row * C * width, (row + 1) * C * width);
    const groups = expected(part(x, N), C, order, sources, 20);
    for (let c = 0; c < C; c++) {
      groups.forEach((group, slot) => {
        const of = (n: number) => part(tokens, N)[c * N + n];
        const mean = group.reduce((sum, n) => sum + of(n), 0) / group.length;
        assert.ok(Math.abs(part(got, N - 20)[c * (N - 20) + slot] - mean) < 1e-5, `slot ${slot}`);
        for (const n of group) {
          assert.equal(part(back, N)[c * N + n], part(got, N - 20)[c * (N - 20) + slot]);
        }
      });
    }
  }
});

test("nothing is merged without merging, at another resolution, or if too little is asked for", () => {
  const scope = device.scope();
  const merging = { order: device.tensor(drawOrder([4, 4], new Generator(0))), sources: 12 };
  const x = device.empty([1, 3, 16]);
  assert.equal(matchTokens(x), null);
  assert.equal(matchTokens(device.empty([1, 3, 64]), { ...merging, ratio: 0.5 }), null);
  assert.equal(matchTokens(x, { ...merging, ratio: 0.2 }), null);
  const all = matchTokens(x, { ...merging, ratio: 0.9 })?.merge(x);
  assert.deepEqual(all?.shape, [1, 3, 4], "sources can be merged, destinations cannot");
  scope[Symbol.dispose]();
});

test("clips: a little merging changes a little, more changes more, none changes nothing", async () => {
  const before = device.memory().live;
  // Of the size that the model was made for: how much is lost depends on it.
  const of = (options: TextToVideoOptions) => video({ ...options, width: 128, height: 128 });
  const plain = await of({});
  assert.deepEqual(await of({ merge: 0 }), plain);
  const [little, much] = [await of({ merge: 0.1 }), await of({ merge: 0.7 })];
  const [near, far] = [distance(little, plain), distance(much, plain)];
  assert.ok(near > 1e-5 && near < far && far < 0.5, `${near} and ${far}`);
  assert.equal(device.memory().live, before);
});

test("frames are the same however they are grouped, and on every run", async () => {
  const together = await video({ merge: 0.3 });
  assert.deepEqual(await video({ merge: 0.3 }), together);
  const apart = distance(await video({ merge: 0.3, rows: 1 }), together);
  assert.ok(apart < 1e-4, `relative difference ${apart}`);
});

test("frames look at the merged tokens of the anchor: equal frames stay equal", async () => {
  const shape = [1, 4, 16, 16];
  const random = new Generator(2);
  const scope = device.scope();
  const one = random.randn(shape);
  const order = device.tensor(drawOrder([16, 16], random));
  const x = device.tensor([...one, ...one], [2, ...shape.slice(1)]);
  const { hiddenStates } = sd.encodePrompt([PROMPT]);
  const merge = { ratio: 0.3, order, sources: 192 };
  const predict = (latents: typeof x, frames: number) =>
    sd.unet.forward(latents, 501, hiddenStates, { frames: { mode: "first", frames, merge } });
  const [pair, single] = [predict(x, 2), predict(device.tensor(one, shape), 1)];
  const [both, alone] = [await pair.data(), await single.data()];
  scope[Symbol.dispose]();
  assert.ok(distance(both.subarray(0, alone.length), alone) < 1e-5);
  assert.ok(distance(both.subarray(alone.length), alone) < 1e-5);
});

test("pictures merge too, say so in their settings, and refuse other shares", async () => {
  const clip = textToImage(sd, PROMPT, { steps: 2, merge: 0.25, ...SMALL });
  assert.equal(clip.settings.merge, 0.25);
  const latents = await latentsOf(clip);
  assert.ok(latents.every(Number.isFinite));
  for (const merge of [-0.1, 1.1, NaN]) {
    assert.throws(
      () => textToImage(sd, PROMPT, { merge }),
      (error) => error instanceof InputError && /merge must be a number/.test(error.message),
    );
  }
});

test("kernels refuse shapes that do not belong together", () => {
  const scope = device.scope();
  const [score, place] = [device.empty([1, 3]), device.empty([1, 3], "i32")];
  const order = device.empty([4], "i32");
  const x = device.empty([1, 2, 4]);
  for (
    const call of [
      () => mergeSlots(score, place, place, 1),
      () => mergeSlots(score, score, order, 1),
      () => mergeSlots(score, place, device.empty([3], "i32"), 1),
      () => mergeSlots(score, place, order, 4),
      () => scatterMean(x, place, 3),
      () => scatterMean(x, device.empty([1, 4]), 3),
    ]
  ) assert.throws(call, ShapeError);
  scope[Symbol.dispose]();
});
