/**
 * Flicker taken out of frames: how much of it, and what stays untouched.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Generator } from "../core/random.ts";
import { deflicker } from "../video/deflicker.ts";
import type { Frame } from "../video/frame.ts";
import type { Frames } from "../video/writer.ts";

const WIDTH = 48, HEIGHT = 32;

/** A disc that moves over a slope of colours, with a gain for every frame and colour. */
function scene(count: number, gain: (frame: number, channel: number) => number): Frame[] {
  return Array.from({ length: count }, (_, k) => {
    const data = new Uint8Array(3 * WIDTH * HEIGHT);
    for (let i = 0; i < data.length; i++) {
      const [channel, x, y] = [i % 3, Math.floor(i / 3) % WIDTH, Math.floor(i / 3 / WIDTH)];
      const inside = Math.hypot(x - 10 - k, y - 16) < 7;
      const value = inside ? [180, 60, 50][channel] : 60 + 2 * x + (channel - 1) * y;
      data[i] = Math.min(255, Math.round(value * gain(k, channel)));
    }
    return { width: WIDTH, height: HEIGHT, data };
  });
}

async function steady(frames: Frames): Promise<Frame[]> {
  const out: Frame[] = [];
  for await (const frame of deflicker(frames)) out.push(frame);
  return out;
}

const level = ({ data }: Frame, channel: number): number =>
  data.reduce((sum, value, i) => i % 3 === channel ? sum + value : sum, 0) * 3 / data.length;

/** Mean squared change of the brightness from frame to frame, beyond that of `clean`. */
function flicker(frames: readonly Frame[], clean: readonly Frame[]): number {
  let energy = 0;
  for (let k = 1; k < frames.length; k++) {
    for (const channel of [0, 1, 2]) {
      const change = (of: readonly Frame[]) => level(of[k], channel) - level(of[k - 1], channel);
      energy += (change(frames) - change(clean)) ** 2;
    }
  }
  return energy;
}

/** Mean squared distance of the brightness from that of `clean`, apart from a constant. */
function deviation(frames: readonly Frame[], clean: readonly Frame[]): number {
  return [0, 1, 2].reduce((energy, channel) => {
    const off = frames.map((frame, k) => level(frame, channel) - level(clean[k], channel));
    const mean = off.reduce((sum, value) => sum + value, 0) / off.length;
    return energy + off.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  }, 0);
}

const gains = new Generator(4).randn([90]).map((value) => 1 + 0.06 * value);

const KINDS: Readonly<Record<string, (frame: number, channel: number) => number>> = {
  "sinusoidal flicker": (k) => 1 + 0.1 * Math.sin(2 * Math.PI * k / 5),
  "random flicker": (k) => gains[k],
  "random flicker of the colours": (k, channel) => gains[3 * k + channel],
};

for (const [name, gain] of Object.entries(KINDS)) {
  test(`${name} loses four fifths of its energy and more`, async () => {
    const clean = scene(30, () => 1);
    const shaken = scene(30, gain);
    const out = await steady(shaken);
    assert.equal(out.length, 30);
    const left = flicker(out, clean) / flicker(shaken, clean);
    assert.ok(left < 0.05, `${left} of the changes are left`);
    const off = deviation(out, clean) / deviation(shaken, clean);
    assert.ok(off < 0.2, `${off} of the deviation is left`);
  });
}

test("a still clip comes out as it is, and a moving one nearly so", async () => {
  const [one] = scene(1, () => 1);
  for (const frame of await steady(Array.from({ length: 15 }, () => one))) {
    assert.deepEqual(frame, one);
  }
  const moving = scene(20, () => 1);
  (await steady(moving)).forEach(({ data }, k) =>
    data.forEach((value, i) => assert.ok(Math.abs(value - moving[k].data[i]) <= 3, `frame ${k}`))
  );
});

test("nothing ghosts: equal values of a frame stay equal, and their order is kept", async () => {
  const shaken = scene(12, KINDS["random flicker"]);
  (await steady(shaken)).forEach(({ data }, k) => {
    for (const channel of [0, 1, 2]) {
      const table = new Map<number, number>();
      data.forEach((value, i) => {
        if (i % 3 !== channel) return;
        const before = shaken[k].data[i];
        assert.equal(table.get(before) ?? value, value);
        table.set(before, value);
      });
      const sorted = [...table].sort(([a], [b]) => a - b).map(([, value]) => value);
      assert.deepEqual(sorted, sorted.toSorted((a, b) => a - b));
    }
  });
});

test("a cut stays a cut", async () => {
  const dark = scene(10, () => 0.4);
  const light = scene(10, () => 1).map(({ width, height, data }) => ({
    width,
    height,
    data: data.slice().reverse(),
  }));
  const out = await steady([...dark, ...light]);
  for (const [k, want] of [[9, dark[9]], [10, light[0]]] as const) {
    for (const channel of [0, 1, 2]) {
      const off = Math.abs(level(out[k], channel) - level(want, channel));
      assert.ok(off < 1.5, `frame ${k} is off by ${off}`);
    }
  }
});

test("flat frames have a level, too", async () => {
  const flat = (value: number): Frame => ({
    width: 4,
    height: 4,
    data: new Uint8Array(48).fill(value),
  });
  const out = await steady(Array.from({ length: 20 }, (_, k) => flat(k % 2 ? 90 : 110)));
  for (const { data } of out.slice(3, -3)) assert.ok(Math.abs(data[0] - 100) <= 2, `${data[0]}`);
});

test("frames stream, settings pass, and bad frames are refused", async () => {
  const frames = scene(40, KINDS["random flicker"]);
  let read = 0;
  async function* source(): AsyncGenerator<Frame, void> {
    const shared = { ...frames[0], data: new Uint8Array(frames[0].data.length) };
    for (const frame of frames) {
      read++;
      shared.data.set(frame.data); // one buffer for all
      yield await Promise.resolve(shared);
    }
  }
  const whole = await steady(frames);
  let made = 0;
  for await (const frame of deflicker(source())) {
    assert.ok(read - made <= 7, `${read} read, ${made} made`);
    assert.deepEqual(frame, whole[made++]);
  }
  assert.equal(made, 40);
  const clip = Object.assign(frames.slice(), { settings: { prompt: "a disc" } });
  assert.deepEqual(deflicker(clip).settings, { prompt: "a disc", deflicker: true });
  assert.equal("settings" in deflicker(frames), false);
  const small = { width: 1, height: 1, data: new Uint8Array(3) };
  await assert.rejects(steady([frames[0], small]), /all frames of a video must have one size/);
  assert.deepEqual(await steady([]), []);
});
