/**
 * Videos and pictures under control: what must hold whatever the weights, and what is refused.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { openDevice } from "../core/device.ts";
import { InputError, WeightError } from "../core/errors.ts";
import { ControlNetModel } from "../models/controlnet.ts";
import { actsAt } from "../video/control_branch.ts";
import type { ControlOptions } from "../video/controlled_video.ts";
import type { Frame } from "../video/frame.ts";
import { textToImage } from "../video/text_to_image.ts";
import { textToVideo, type TextToVideoOptions } from "../video/text_to_video_zero.ts";
import { distance, latentsOf } from "./clips.ts";
import { CONTROLNET, stripes, WIDE_CONTROLNET } from "./control_files.ts";
import { controlled, MAPS, PROMPT, QUICK, SIZE } from "./controlled_setup.ts";

const { device, sd, model } = await controlled();

const control: ControlOptions = { model, frames: MAPS };

function video(
  controls: readonly Partial<ControlOptions>[],
  options: TextToVideoOptions = {},
): Promise<Float32Array> {
  const all = controls.map((one) => ({ ...control, ...one }));
  return latentsOf(textToVideo(sd, PROMPT, { ...QUICK, ...options, controls: all }));
}

function picture(
  controls: readonly Partial<ControlOptions>[],
  options: TextToVideoOptions = {},
): Promise<Float32Array> {
  const all = controls.map((one) => ({ ...control, frames: [MAPS[0]], ...one }));
  const { frames: _, ...quick } = QUICK;
  return latentsOf(textToImage(sd, PROMPT, { ...quick, ...options, controls: all }));
}

function frame(latents: Float32Array, k: number): Float32Array {
  const size = 4 * 12 * 12;
  return latents.slice(k * size, (k + 1) * size);
}

const plain = await video([{}]);

describe("the conditional mode", () => {
  it("begins all frames alike and leaves the difference to the maps", async () => {
    const same = await video([{ frames: [MAPS[1], MAPS[1]] }]);
    assert.ok(distance(frame(same, 1), frame(same, 0)) < 1e-4);
    assert.ok(distance(frame(plain, 1), frame(plain, 0)) > 1e-4);
    assert.ok(distance(same, plain) > 1e-4);
  });

  it("with one frame is a picture under control", async () => {
    const one = await video([{ frames: [MAPS[0]] }], { frames: 1 });
    assert.ok(distance(one, await picture([{}])) < 1e-5);
  });

  it("makes frames that depend neither on their number nor on their grouping", async () => {
    const frames = [...MAPS, stripes(2), stripes(3)];
    const four = await video([{ frames }], { frames: 4 });
    const grouped = await video([{ frames }], { frames: 4, rows: 1 });
    assert.ok(distance(grouped, four) < 1e-4);
    for (const k of [0, 1]) assert.ok(distance(frame(four, k), frame(plain, k)) < 1e-5);
    const chosen = { frames: undefined, frameIds: [0, 0, 3] };
    const some = await video([{ frames }], chosen);
    chosen.frameIds.forEach((id, k) => {
      assert.ok(distance(frame(some, k), frame(four, id)) < 1e-4, `the map of frame ${id}`);
    });
  });

  it("reads maps that come one by one, in one and the same buffer", async () => {
    const buffer: Frame = { ...SIZE, data: new Uint8Array(MAPS[0].data.length) };
    async function* drawn() {
      for (const { data } of MAPS) {
        await Promise.resolve();
        buffer.data.set(data);
        yield buffer;
      }
    }
    assert.deepEqual(await video([{ frames: drawn() }]), plain);
  });

  it("scales maps of the same aspect", async () => {
    const big = MAPS.map(({ data }): Frame => {
      const twice = new Uint8Array(4 * data.length);
      for (let i = 0; i < twice.length; i++) {
        const [x, y] = [Math.floor(i / 3) % 192 >> 1, Math.floor(i / 3 / 192) >> 1];
        twice[i] = data[3 * (96 * y + x) + i % 3];
      }
      return { width: 192, height: 192, data: twice };
    });
    assert.ok(distance(await video([{ frames: big }]), plain) < 0.01);
  });

  it("lets other frames look at the first one in the UNet alone, or nowhere", async () => {
    const unet = await video([{}], { controlAttention: "unet" });
    const none = await video([{}], { crossFrame: false });
    for (const other of [unet, none]) {
      assert.ok(distance(frame(other, 0), frame(plain, 0)) < 1e-4);
      assert.ok(distance(frame(other, 1), frame(plain, 1)) > 1e-6);
    }
    assert.ok(distance(frame(none, 1), frame(unet, 1)) > 1e-6);
  });

  it("says what it did in its settings", () => {
    const clip = textToVideo(sd, PROMPT, { ...QUICK, controls: [{ ...control, scale: 0.5 }] });
    const { controls, controlAttention, motion } = clip.settings;
    const said = { model: CONTROLNET, scale: 0.5, start: 0, end: 1, guessMode: false };
    assert.deepEqual(controls, [said]);
    assert.deepEqual([controlAttention, motion], ["unet+controlnet", false]);
    clip.dispose();
  });

  it("works with other schedulers, fresh noise, merging, and without guidance", async () => {
    const others: TextToVideoOptions[] = [
      { scheduler: "dpm++", steps: 3, guidanceScale: 1 },
      { eta: 1, merge: 0.5, steps: 2 },
    ];
    for (const options of others) {
      const latents = await video([{}], options);
      assert.ok(latents.every(Number.isFinite), JSON.stringify(options));
      assert.ok(distance(latents, plain) > 1e-5, JSON.stringify(options));
    }
  });
});

describe("controls", () => {
  it("of scale 0 are no controls, bit for bit", async () => {
    assert.deepEqual(await picture([{ scale: 0 }]), await picture([]));
    const moved = { motion: true, steps: 2, t0: 0, t1: 1 };
    const free = await video([], moved);
    assert.deepEqual(await video([{ scale: 0 }], moved), free);
    assert.notDeepEqual(await video([{}], moved), free);
  });

  it("are added: two halves are one", async () => {
    assert.ok(distance(await video([{ scale: 0.5 }, { scale: 0.5 }]), plain) < 1e-4);
    const two = await video([{}, { frames: [...MAPS].reverse(), guessMode: true }]);
    assert.ok(distance(two, plain) > 1e-3);
  });

  it("act from their start to their end", async () => {
    for (const steps of [4, 7]) {
      const acting = (start: number, end: number) =>
        Array.from({ length: steps }, (_, i) => +actsAt(i, steps, { start, end })).join("");
      assert.equal(acting(0, 1), "1".repeat(steps));
      assert.equal(acting(0, 0.5), steps === 4 ? "1100" : "1110000");
      assert.equal(acting(0.5, 1), steps === 4 ? "0011" : "0000111");
      assert.equal(acting(0.4, 0.45), "0".repeat(steps));
    }
    const seen = async (part: Partial<ControlOptions>, options: TextToVideoOptions = {}) => {
      const controls = [{ ...control, frames: MAPS.slice(0, options.frames ?? 1), ...part }];
      const one = { ...QUICK, steps: 2, frames: 1 };
      const clip = textToVideo(sd, PROMPT, { ...one, ...options, controls });
      const latents: Float32Array[] = [];
      for await (const step of clip.steps) latents.push(await step.latents.data());
      clip.dispose();
      return latents;
    };
    const [whole, early, late, none] = [
      await seen({}),
      await seen({ end: 0.5 }),
      await seen({ start: 0.5 }),
      await seen({ scale: 0 }),
    ];
    assert.deepEqual(early[0], whole[0]);
    assert.ok(distance(early[1], whole[1]) > 1e-3);
    assert.deepEqual(late[0], none[0]);
    assert.ok(distance(late[1], none[1]) > 1e-3);
    // The same with motion: places are those of the schedule, not of a run over a part of it.
    const moved = { motion: true, steps: 3, t0: 0, t1: 1, frames: 2 };
    const [all, first] = [await seen({}, moved), await seen({ end: 0.4 }, moved)];
    assert.deepEqual(first[0], all[0]);
    assert.ok(distance(first[1], all[1]) > 1e-4);
  });

  it("move with the whole of Algorithm 1 when asked", async () => {
    const options = { motion: true, steps: 3, t0: 0, t1: 1 };
    const phases: string[] = [];
    const clip = textToVideo(sd, PROMPT, { ...QUICK, ...options, controls: [control] });
    for await (const { phase } of clip.steps) phases.push(phase);
    const moved = await latentsOf(clip);
    assert.deepEqual(phases, ["anchor", "anchor", "frames", "frames"]);
    assert.ok(distance(await video([{}], { ...options, rows: 1 }), moved) < 1e-4);
    const image = stripes(7);
    assert.ok((await video([{}], { ...options, image })).every(Number.isFinite));
  });
});

describe("what cannot be is refused", () => {
  const when = (
    part: Partial<ControlOptions>,
    options: TextToVideoOptions = {},
  ) =>
    latentsOf(
      textToVideo(sd, PROMPT, { ...QUICK, ...options, controls: [{ ...control, ...part }] }),
    );

  it("maps that are too few, too many or of another aspect", async () => {
    const before = device.memory().live;
    const cases: [Partial<ControlOptions>, TextToVideoOptions, RegExp][] = [
      [{}, { frames: 3 }, /a map for each frame up to number 2, it has 2; ask for 2 frames/],
      [{}, { frames: 1 }, /a map for each of the 1 frames, it has more/],
      [{}, { frames: undefined, frameIds: [0, 5] }, /up to number 5, it has 2/],
      [{ frames: [] }, {}, /it has 0/],
      [{}, { width: 104 }, /aspect of the clip, 104x96: map 0 is 96x96; give width and height/],
      [{ frames: [MAPS[0], stripes(2, 96, 88)] }, {}, /map 1 is 96x88/],
      [{ frames: [{ ...MAPS[0], data: new Uint8Array(5) }] }, {}, /must hold 27648 bytes of RGB/],
    ];
    for (const [part, options, message] of cases) {
      await assert.rejects(
        when(part, options),
        (error) => error instanceof InputError && message.test(error.message),
      );
    }
    assert.equal(device.memory().live, before);
  });

  it("numbers out of range, and what only clips with motion have", () => {
    const noise = device.empty([1, 4, 12, 12]);
    const cases: [Partial<ControlOptions>, TextToVideoOptions, RegExp][] = [
      [{ scale: NaN }, {}, /scale of control 1 must be a number, got NaN/],
      [{ start: -0.1 }, {}, /start of control 1 must be a number of at least 0/],
      [{ end: 1.5 }, {}, /end of control 1 must be .* at most 1/],
      [{ start: 0.5, end: 0.5 }, {}, /control 1 must start before it ends, got start 0\.5/],
      [{}, { image: MAPS[0] }, /a start image is for clips with motion; .*\(motion: true\)/],
      [{}, { noise }, /noise is for clips with motion/],
    ];
    for (const [part, options, message] of cases) {
      assert.throws(
        () =>
          textToVideo(sd, PROMPT, { ...QUICK, ...options, controls: [{ ...control, ...part }] }),
        (error) => error instanceof InputError && message.test(error.message),
      );
    }
    noise.dispose();
  });

  it("nets on another device, and nets for other models", async () => {
    const other = await openDevice();
    const far = await ControlNetModel.load(CONTROLNET, { device: other });
    const wide = await ControlNetModel.load(WIDE_CONTROLNET, { device });
    const given = (net: ControlNetModel) => () =>
      textToImage(sd, PROMPT, { ...SIZE, controls: [{ model: net, frames: [MAPS[0]] }] });
    assert.throws(given(far), /loaded to the device of the model/);
    assert.throws(
      given(wide),
      (error) =>
        error instanceof WeightError &&
        /stages of widths 32,64,64,64, the UNet 16,32,32,32/.test(error.message),
    );
    far.dispose();
    wide.dispose();
    await other.close();
  });

  it("an abort stops the reading of maps", async () => {
    const controller = new AbortController();
    const before = device.memory().live;
    function* endless() {
      for (;;) {
        controller.abort();
        yield MAPS[0];
      }
    }
    await assert.rejects(
      when({ frames: endless() }, { signal: controller.signal }),
      { name: "AbortError" },
    );
    assert.equal(device.memory().live, before);
  });
});
