/**
 * Motion in words: what sentences mean, where the camera is in every frame, and what is refused.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { InputError } from "../core/errors.ts";
import {
  checkMotion,
  type KeyFrame,
  type MotionPath,
  motionText,
  type Move,
  type MoveKind,
  parseMotion,
} from "../video/motion.ts";
import type { Affine } from "../video/motion_field.ts";
import { MOST_ZOOM, motionAt, motionRemark, REACH } from "../video/motion_path.ts";
import { refused } from "./cli_run.ts";

const FRAMES = 24;

/** Where the middle of a frame looks, from the middle of the first one. */
function middle([a, b, c, d, e, f]: Affine): [number, number] {
  return [(a + b - 1) / 2 + c, (d + e - 1) / 2 + f];
}

function at(sentence: string, k: number, frames = FRAMES, aspect = 1): Affine {
  return motionAt(parseMotion(sentence), k, frames, aspect);
}

function place(sentence: string, k: number, frames = FRAMES, aspect = 1): [number, number] {
  return middle(at(sentence, k, frames, aspect));
}

function near(got: readonly number[], want: readonly number[], tolerance = 1e-12): void {
  assert.equal(got.length, want.length);
  got.forEach((value, i) => assert.ok(Math.abs(value - want[i]) <= tolerance, `${got} ≠ ${want}`));
}

const number = (min: number, max: number) =>
  fc.double({ min, max, noNaN: true }).map((value) => value + 0); // no −0

function move(kind: MoveKind, amounts: fc.Arbitrary<number[]>, flags: number): fc.Arbitrary<Move> {
  const flag = (wanted: boolean) => wanted ? fc.constantFrom(undefined, true as const) : undefined;
  const unsaid = fc.constant(undefined);
  return fc.tuple(
    amounts,
    flag(flags > 0) ?? unsaid,
    flag(flags > 0) ?? unsaid,
    flag(flags > 1) ?? unsaid,
  ).map(([amounts, ease, pingPong, once]) => ({
    kind,
    amounts,
    ...(ease && { ease }),
    ...(pingPong && { pingPong }),
    ...(once && { once }),
  }));
}

const MOVES = fc.oneof(
  move("pan", fc.tuple(number(-256, 256), number(-256, 256)), 2),
  move("zoom", fc.tuple(number(0.5, 2)), 2),
  move("rotate", fc.tuple(number(-90, 90)), 2),
  move("orbit", fc.tuple(number(-56, 56)), 1),
  move("shake", fc.oneof(fc.tuple(number(0, 32)), fc.tuple(number(0, 32), fc.nat())), 0),
);

const PATHS: fc.Arbitrary<MotionPath> = fc.uniqueArray(fc.nat(FRAMES - 1), {
  minLength: 1,
  maxLength: 4,
}).chain((frames) =>
  fc.tuple(
    ...frames.toSorted((a, b) => a - b).map((frame): fc.Arbitrary<KeyFrame> =>
      fc.array(MOVES, { maxLength: 3 }).map((moves) => ({ frame, moves }))
    ),
  )
);

describe("sentences", () => {
  it("come back from what they print", () => {
    fc.assert(fc.property(PATHS, (path) => {
      assert.deepEqual(parseMotion(motionText(path)), path);
      checkMotion(path, FRAMES);
    }));
  });

  it("may be written freely", () => {
    const want: MotionPath = [
      { frame: 0, moves: [{ kind: "pan", amounts: [12, 0] }, { kind: "zoom", amounts: [1.02] }] },
      { frame: 12, moves: [{ kind: "pan", amounts: [-0.5, 12], ease: true, pingPong: true }] },
      { frame: 20, moves: [] },
    ];
    const text = " Pan 12 0 loop;zoom +1.02 ;12 : PAN -.5 1.2e1 ping-pong ease; 20: still ";
    assert.deepEqual(parseMotion(text), want);
    assert.equal(
      motionText(want),
      "0: pan 12 0; zoom 1.02; 12: pan -0.5 12 ease ping-pong; 20: still",
    );
    assert.equal(motionText([]), "still");
    assert.equal(motionText(parseMotion("still; orbit 8")), "orbit 8");
  });

  const wrong: [string, RegExp][] = [
    ["", /motion "": at character 1, "" stands for no motion; known are "pan X Y", "zoom F"/],
    ["pan 1 0;", /at character 9, "" stands for no motion/],
    ["spin 3", /motion "spin 3": at character 1, "spin" is no motion; known are .*"still"/],
    ["pan 12 left", /motion "pan 12 left": at character 8, "left" is neither a number nor one of/],
    ["pan 12", /at character 1, "pan" does not fit: it is "pan X Y"/],
    ["pan 1 2 3", /at character 9, "3" does not fit/],
    ["zoom 1.02; pan 1 0 fast", /at character 20, "fast" is neither/],
    ["pan 300 0", /"300" is out of range: in "pan X Y", X is a number from -256 to 256/],
    ["zoom 0", /"0" is out of range: .* from 0\.5 to 2/],
    ["zoom 1e999", /out of range/],
    ["rotate 91", /from -90 to 90/],
    ["orbit 57", /from -56 to 56/],
    ["shake -1", /from 0 to 32/],
    ["shake 3 1.5", /"1\.5" .* SEED is a whole number/],
    ["orbit 8 once", /"once" cannot follow "orbit R"; only ease, ping-pong can/],
    ["shake 8 ease", /"ease" cannot follow "shake A \[SEED\]"; nothing can/],
    ["pan 1 0 once loop", /"loop" contradicts/],
    ["pan 1 0 ease ease", /"ease" is said twice/],
    ["pan 1 0 ease 3", /"3" cannot follow/],
    ["still 3", /"3" follows "still"/],
    ["12: pan 1 0; 8: still", /key frame 8 stands behind key frame 12/],
    ["8: pan 1 0; 8: still", /key frames must grow/],
    ["-3: pan 1 0", /at character 1, "-3" is no key frame: a whole number/],
    ["pan 1 0; 1.5: still", /at character 10, "1\.5" is no key frame/],
    ["x: pan 1 0", /"x" is no key frame/],
    [": pan 1 0", /"" is no key frame/],
    ["0: ; 3: still", /at character 3, "" stands for no motion/],
  ];
  for (const [sentence, message] of wrong) {
    it(`refuse "${sentence}"`, () => {
      assert.throws(
        () => parseMotion(sentence),
        (error: unknown) => error instanceof InputError && message.test(error.message),
      );
    });
  }

  it("are refused by the command line before anything is opened", async () => {
    await refused(["a heart", "--motion", "pan 12 left"], 2, /at character 8, "left" is neither/);
  });

  it("whatever they hold, are read or refused by name", () => {
    const words = fc.constantFrom(
      "pan",
      "1",
      "-2",
      "zoom",
      ";",
      ":",
      "3:",
      "ease",
      "still",
      "é",
      "",
    );
    fc.assert(fc.property(fc.array(words).map((list) => list.join(" ")), (text) => {
      try {
        parseMotion(text);
      } catch (error) {
        assert.ok(error instanceof InputError && error.message.includes(`motion "${text}"`));
        return;
      }
      assert.doesNotThrow(() => parseMotion(motionText(parseMotion(text))));
    }));
  });
});

describe("paths", () => {
  it("have the units of the sentence", () => {
    near(place("pan 12 -3", 4), [48 / 512, -12 / 512]);
    near(
      at("zoom 1.02", 3),
      [1.02 ** -3, 0, (1 - 1.02 ** -3) / 2].concat(
        [0, 1.02 ** -3, (1 - 1.02 ** -3) / 2],
      ),
    );
    const [c, s] = [Math.cos(Math.PI / 18), Math.sin(Math.PI / 18)];
    near(at("rotate 2", 5), [c, -s, (1 - c + s) / 2, s, c, (1 - s - c) / 2]);
    near(at("pan 1 1; rotate 3; orbit 9; zoom 2; shake 4", 0), [1, 0, 0, 0, 1, 0]);
  });

  it("measure pans by each side, and leave squares square", () => {
    near(place("pan 12 12", 2, FRAMES, 16 / 9), [24 / 512, 24 / 512]);
    for (const aspect of [16 / 9, 0.5]) {
      const [a, b, , d, e] = at("rotate 7; zoom 1.1", 3, FRAMES, aspect);
      // In units of the height, as pixels have them.
      near([a, b * aspect, d / aspect, e], [e, -d / aspect, -b * aspect, a]);
      const [x, y] = place("orbit 20", FRAMES / 2, FRAMES, aspect);
      const [left] = place("orbit 20", FRAMES / 4, FRAMES, aspect);
      near([x, y, left * aspect / y], [0, 40 / 512 * Math.min(1, aspect), 0.5]);
    }
  });

  it("stay within their bounds, without a jump", () => {
    fc.assert(fc.property(PATHS, (path) => {
      for (let k = 0; k <= FRAMES; k += 0.5) {
        const affine = motionAt(path, k, FRAMES, 1.5);
        const [x, y] = middle(affine);
        assert.ok(Math.max(Math.abs(x), Math.abs(y)) <= REACH + 1e-9, `${x}, ${y} at ${k}`);
        const zoom = 1 / Math.sqrt(affine[0] * affine[4] - affine[1] * affine[3]);
        assert.ok(Math.abs(Math.log(zoom)) <= Math.log(MOST_ZOOM) + 1e-9, `zoom ${zoom} at ${k}`);
      }
    }));
    for (let k = 0; k < 200; k += 0.25) {
      const [x] = place("pan 12 0", k, 200);
      const [next] = place("pan 12 0", k + 0.25, 200);
      assert.ok(Math.abs(next - x) <= 3 / 512 + 1e-12, `${next - x} at ${k}`);
    }
  });

  it("turn back at the bounds, or rest there once", () => {
    near(place("pan 12 0", 9), [108 / 512, 0]); // on the straight part
    const peak = Math.max(...Array.from({ length: 40 }, (_, k) => place("pan 12 0", k, 40)[0]));
    assert.ok(peak > 0.99 * REACH && peak <= REACH, `${peak}`);
    assert.ok(place("pan 12 0", 35, 40)[0] < 0);
    near(place("pan 12 0 once", 39, 40), [112 / 512, 0]);
    near(place("pan 12 0 once", 30, 40), [112 / 512, 0]);
    near(place("pan 0 0 once", 39, 40), [0, 0]);
    near(at("rotate 30 once", 23), [1, 0, 0, 0, 1, 0]);
    assert.match(motionRemark(parseMotion("pan 12 0"), 20, 1) ?? "", /from frame 10 on it turns/);
    assert.equal(motionRemark(parseMotion("pan 12 0 once; rotate 50"), 20, 1), undefined);
    assert.equal(motionRemark(parseMotion("orbit 56; zoom 1.001"), 20, 2), undefined);
  });

  it("close", () => {
    const sentences = [
      "orbit 24",
      "orbit -24 ease",
      "pan 12 5 ping-pong",
      "pan 12 5 ping-pong ease; zoom 1.03 ping-pong; rotate 3 ping-pong ease",
      "pan 100 0 ping-pong",
      "shake 6; orbit 8",
      "0: orbit 24; 6: shake 8 3; 10: pan 0 9 ping-pong ease",
    ];
    for (const sentence of sentences) {
      for (const frames of [12, 13]) near(at(sentence, frames, frames), [1, 0, 0, 0, 1, 0]);
      assert.notDeepEqual(at(sentence, 5), at(sentence, 0), sentence);
    }
    // A circle: all its places are equally far from its middle.
    for (let k = 0; k < 12; k++) {
      const [x, y] = place("orbit 24", k, 12);
      near([Math.hypot(x, y - 24 / 512)], [24 / 512]);
    }
  });

  it("tremble by their seed, smoothly, within their amount", () => {
    assert.deepEqual(at("shake 6", 5), at("shake 6 0", 5));
    assert.notDeepEqual(at("shake 6", 5), at("shake 6 1", 5));
    for (let k = 0; k < FRAMES; k += 0.125) {
      const [x, y] = place("shake 6 7", k);
      assert.ok(Math.max(Math.abs(x), Math.abs(y)) <= 12 / 512);
      const [nextX] = place("shake 6 7", k + 0.125);
      assert.ok(Math.abs(nextX - x) < 2 / 512, `${nextX - x} at ${k}`);
    }
  });

  it("go on from where they are at key frames, with ease at the same speed", () => {
    const slow = "0: pan 6 0; 12: pan 0 6 ease; 20: still";
    near(place(slow, 12), [72 / 512, 0]);
    near(place(slow, 20), [72 / 512, 48 / 512]);
    near(place(slow, 23), [72 / 512, 48 / 512]);
    const speed = (text: string, k: number) => {
      const [[x0, y0], [x1, y1]] = [place(text, k - 1e-4), place(text, k + 1e-4)];
      return [(x1 - x0) / 2e-4, (y1 - y0) / 2e-4];
    };
    near(speed(slow, 12), [6 / 512, 0], 1e-4);
    near(speed(slow, 20 - 1e-3), [0, 0], 1e-4);
    const hard = slow.replace(" ease", "");
    near(speed(hard, 12.01), [0, 6 / 512], 1e-4);
    near(speed("pan 9 0 ease", 1e-4), [0, 0], 1e-4);
    near(place("pan 4 0 ease", 24), [96 / 512, 0]);
    near(place("4: pan 8 0", 4), [0, 0]);
    near(place("4: pan 8 0", 6), [16 / 512, 0]);
  });

  it("are refused where they do not fit the clip", () => {
    const refuse = (path: MotionPath, frames: number, message: RegExp) =>
      assert.throws(
        () => checkMotion(path, frames),
        (error: unknown) => error instanceof InputError && message.test(error.message),
      );
    refuse(parseMotion("pan 1 0; 8: still"), 8, /key frame 8 lies outside .* 0 to 7/);
    refuse([{ frame: 0.5, moves: [] }], 8, /key frame 0\.5/);
    refuse([{ frame: 3, moves: [] }, { frame: 1, moves: [] }], 8, /must grow/);
    refuse([{ frame: 0, moves: [{ kind: "pan", amounts: [NaN, 0] }] }], 8, /"NaN" is out of range/);
    refuse([{ frame: 0, moves: [{ kind: "zoom", amounts: [] }] }], 8, /does not fit/);
  });
});
