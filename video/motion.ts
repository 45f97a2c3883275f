/**
 * What the camera does in a clip, in words: `"pan 12 0"`, `"zoom 1.02 ease; rotate 2"`,
 * `"0: pan 12 0; 12: pan 0 12 ease; 20: still"`.
 *
 * A sentence is a list of motions, separated by semicolons. A number with a colon before one is a
 * key frame: from there on the motions that follow are in force, instead of those before; without
 * one they begin at frame 0. Motions in force at the same time are added: the camera's place, its
 * turn and the logarithm of its zoom each are a sum, so their order does not matter.
 *
 * | motion           | meaning                                                             |
 * | ---------------- | ------------------------------------------------------------------- |
 * | `pan X Y`        | right and down, in 512ths of the width and of the height a frame    |
 * | `zoom F`         | nearer by that factor a frame                                       |
 * | `rotate D`       | the camera turns clockwise, in degrees a frame                      |
 * | `orbit R`        | one clockwise turn on a circle of R 512ths of the shorter side;     |
 * |                  | counterclockwise if R is negative                                   |
 * | `shake A [SEED]` | a smooth tremor, up to A 512ths of the shorter side from its middle |
 * | `still`          | nothing                                                             |
 *
 * Modifiers follow a motion: `ease` (begins and ends at the speed of its neighbours, at rest where
 * there are none), `ping-pong` (there and back), `once` (rests at the bounds of the motion) or
 * `loop` (turns back there; the default). How a path is followed is `motion_path.ts`.
 *
 * @module
 */

import { InputError } from "../core/errors.ts";

/** What a motion can be. */
export type MoveKind = "pan" | "zoom" | "rotate" | "orbit" | "shake";

/** One motion of the camera. */
export interface Move {
  /** Which one. */
  readonly kind: MoveKind;
  /** The numbers behind its name, in the units of the sentence. */
  readonly amounts: readonly number[];
  /** Whether it begins and ends at the speed of its neighbours in time. */
  readonly ease?: true;
  /** Whether it goes there in the first half of its time, and back in the second. */
  readonly pingPong?: true;
  /** Whether it rests at the bounds, instead of turning back there. */
  readonly once?: true;
}

/** Motions that are in force from a frame on. */
export interface KeyFrame {
  /** Frame number, 0 or more. */
  readonly frame: number;
  /** What happens at the same time; nothing, and the camera is still. */
  readonly moves: readonly Move[];
}

/** What the camera does in a clip: key frames in their order; before the first it is still. */
export type MotionPath = readonly KeyFrame[];

type Modifier = "ease" | "ping-pong" | "once" | "loop";

/** A number of a motion. */
interface Amount {
  readonly name: string;
  readonly least: number;
  readonly most: number;
  readonly whole?: true;
  readonly optional?: true;
}

interface Grammar {
  readonly amounts: readonly Amount[];
  readonly modifiers: readonly Modifier[];
}

const ALL: readonly Modifier[] = ["ease", "ping-pong", "once", "loop"];
const PER_FRAME = { least: -256, most: 256 };

/** An orbit's far side, twice its radius away, is within what is reached without turning back. */
const GRAMMAR: Readonly<Record<MoveKind, Grammar>> = {
  pan: { amounts: [{ name: "X", ...PER_FRAME }, { name: "Y", ...PER_FRAME }], modifiers: ALL },
  zoom: { amounts: [{ name: "F", least: 0.5, most: 2 }], modifiers: ALL },
  rotate: { amounts: [{ name: "D", least: -90, most: 90 }], modifiers: ALL },
  orbit: { amounts: [{ name: "R", least: -56, most: 56 }], modifiers: ["ease", "ping-pong"] },
  shake: {
    amounts: [
      { name: "A", least: 0, most: 32 },
      { name: "SEED", least: 0, most: 2 ** 32 - 1, whole: true, optional: true },
    ],
    modifiers: [],
  },
};

const KINDS = Object.keys(GRAMMAR) as readonly MoveKind[];
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const STILL = "still";

/** A word of a sentence, and where it stands. */
interface Word {
  readonly text: string;
  readonly at: number;
}

/**
 * Reads a sentence.
 *
 * @throws {InputError} quoting the sentence and the word that cannot be read, with what is known
 * there: unknown words, missing or superfluous numbers, numbers out of range, key frames out of
 * order.
 */
export function parseMotion(text: string): MotionPath {
  const path: { frame: number; moves: Move[] }[] = [];
  let start = 0;
  for (const part of text.split(";")) {
    const [, label, rest] = /^\s*(?:([^\s:]*)\s*:)?(.*)$/s.exec(part) ?? [];
    const at = start + part.length - rest.length;
    if (label !== undefined) {
      const frame = NUMBER.test(label) ? Number(label) : NaN;
      if (!Number.isSafeInteger(frame) || frame < 0) {
        const place = { text: label, at: start + part.indexOf(label) };
        throw unreadable(text, place, "is no key frame: a whole number of at least 0");
      }
      path.push({ frame, moves: [] });
    }
    if (path.length === 0) path.push({ frame: 0, moves: [] });
    const words = [...rest.matchAll(/\S+/g)].map(([word], i, all) => ({
      text: word.toLowerCase(),
      at: at + all[i].index,
    }));
    const move = parseMove(text, words, at);
    if (move) path[path.length - 1].moves.push(move);
    start += part.length + 1;
  }
  checkOrder(path, quote(text));
  return path;
}

function parseMove(text: string, [verb, ...words]: readonly Word[], at: number): Move | null {
  if (!verb) throw unreadable(text, { text: "", at }, `stands for no motion; ${known()}`);
  const kind = KINDS.find((one) => one === verb.text);
  if (!kind) {
    if (verb.text !== STILL) throw unreadable(text, verb, `is no motion; ${known()}`);
    if (words.length) throw unreadable(text, words[0], `follows "${STILL}", which stands alone`);
    return null;
  }
  const { modifiers } = GRAMMAR[kind];
  const behind = words.findIndex((word) => ALL.some((one) => one === word.text));
  const numbers = words.slice(0, behind < 0 ? words.length : behind);
  for (const word of numbers) {
    if (!NUMBER.test(word.text)) {
      throw unreadable(text, word, `is neither a number nor one of ${ALL.join(", ")}`);
    }
  }
  const amounts = numbers.map((word) => Number(word.text));
  const problem = wrongAmounts(kind, amounts);
  if (problem) throw unreadable(text, numbers[problem.index] ?? verb, problem.message);
  const flags = new Set<string>();
  for (const word of words.slice(numbers.length)) {
    if (!modifiers.some((one) => one === word.text)) {
      const rule = modifiers.length ? `only ${modifiers.join(", ")}` : "nothing";
      throw unreadable(text, word, `cannot follow ${usage(kind)}; ${rule} can`);
    }
    if (flags.has(word.text)) throw unreadable(text, word, "is said twice");
    flags.add(word.text);
    if (flags.has("once") && flags.has("loop")) {
      throw unreadable(text, word, "contradicts what stands before it; say once or loop");
    }
  }
  return {
    kind,
    amounts,
    ...(flags.has("ease") && { ease: true }),
    ...(flags.has("ping-pong") && { pingPong: true }),
    ...(flags.has("once") && { once: true }),
  };
}

/** What is wrong with the numbers of a motion, and with which of them. */
function wrongAmounts(
  kind: MoveKind,
  values: readonly number[],
): { index: number; message: string } | null {
  const { amounts } = GRAMMAR[kind];
  const least = amounts.filter(({ optional }) => !optional).length;
  if (values.length < least || values.length > amounts.length) {
    const index = values.length > amounts.length ? amounts.length : -1;
    return { index, message: `does not fit: it is ${usage(kind)}` };
  }
  const index = values.findIndex((value, i) => {
    const { least, most, whole } = amounts[i];
    return !(value >= least && value <= most) || (whole && !Number.isInteger(value));
  });
  if (index < 0) return null;
  const { name, least: low, most, whole } = amounts[index];
  const kindOf = whole ? "a whole number" : "a number";
  return {
    index,
    message: `is out of range: in ${usage(kind)}, ${name} is ${kindOf} from ${low} to ${most}`,
  };
}

function usage(kind: MoveKind): string {
  const names = GRAMMAR[kind].amounts.map(({ name, optional }) => optional ? `[${name}]` : name);
  return `"${[kind, ...names].join(" ")}"`;
}

const known = (): string => `known are ${[...KINDS.map(usage), `"${STILL}"`].join(", ")}`;

const quote = (text: string): string => `motion "${text}"`;

function unreadable(text: string, { text: word, at }: Word, why: string): InputError {
  return new InputError(`${quote(text)}: at character ${at + 1}, "${word}" ${why}`);
}

function checkOrder(path: MotionPath, name: string): void {
  path.forEach(({ frame }, i) => {
    if (i === 0 || frame > path[i - 1].frame) return;
    throw new InputError(
      `${name}: key frame ${frame} stands behind key frame ${path[i - 1].frame}; ` +
        "key frames must grow",
    );
  });
}

/**
 * Refuses a path that does not fit a clip.
 *
 * @param frames Number of frames: key frames lie in 0 … frames − 1.
 * @throws {InputError} key frames that are not whole, out of order or outside the clip, unknown
 * motions, numbers out of range.
 */
export function checkMotion(path: MotionPath, frames: number): void {
  const name = "motion";
  for (const { frame, moves } of path) {
    if (!Number.isSafeInteger(frame) || frame < 0 || frame >= frames) {
      throw new InputError(
        `${name}: key frame ${frame} lies outside the clip, whose frames are 0 to ${frames - 1}; ` +
          "choose one of these",
      );
    }
    for (const { kind, amounts } of moves) {
      if (!KINDS.includes(kind)) throw new InputError(`${name}: "${kind}" is none; ${known()}`);
      const problem = wrongAmounts(kind, amounts);
      if (problem) {
        const value = amounts[problem.index] ?? amounts.join(" ");
        throw new InputError(`${name}: "${value}" ${problem.message}`);
      }
    }
  }
  checkOrder(path, name);
}

/** The sentence of a path, from which {@link parseMotion} makes the same path. */
export function motionText(path: MotionPath): string {
  if (path.length === 0) return STILL;
  const [only] = path;
  return path.map(({ frame, moves }) => {
    const label = path.length === 1 && only.frame === 0 ? "" : `${frame}: `;
    return label + (moves.length ? moves.map(moveText).join("; ") : STILL);
  }).join("; ");
}

function moveText({ kind, amounts, ease, pingPong, once }: Move): string {
  const flags = [ease && "ease", pingPong && "ping-pong", once && "once"];
  return [kind, ...amounts, ...flags.filter(Boolean)].join(" ");
}
