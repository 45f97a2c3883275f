/**
 * Where the camera is in each frame of a clip whose motion is a {@link MotionPath}.
 *
 * A pose is the camera's place (x, y), the logarithm of its zoom, and its turn, all relative to
 * frame 0. Every motion in force gives a pose as a function of time; poses are added, over motions
 * and over the key frames that have passed, so that the camera never jumps. The sum is bounded: far
 * away there is only mirrored border, so at {@link REACH} the camera turns back, gently, and
 * likewise at {@link MOST_ZOOM}. On a canvas (`canvas.ts`) the border is farther away, and so are
 * the bounds.
 *
 * `orbit`, `shake` and everything with `ping-pong` close: at the end of their time, one frame
 * behind the last of the clip, the camera is where it began.
 *
 * @module
 */

import { Generator } from "../core/random.ts";
import type { CanvasExtent } from "./canvas.ts";
import type { Affine } from "./motion_field.ts";
import type { MotionPath, Move } from "./motion.ts";

/** How far the camera goes over the border, in parts of the width and of the height. */
export const REACH = 1 / 4;

/** How near it comes, and, as a divisor, how far away it goes. */
export const MOST_ZOOM = 1.5;

/** Length on which pans, orbits and shakes are measured. */
const GRID = 512;

/** Place in parts of width and height, logarithm of the zoom, clockwise turn in radians. */
type Pose = readonly [x: number, y: number, zoom: number, turn: number];

const ORIGIN: Pose = [0, 0, 0, 0];

/** The part of the way to a bound that is gone at full speed before the camera turns. */
const STRAIGHT = 7 / 8;

/** How far the components of a pose go below 0, and above. */
interface Bounds {
  readonly below: Pose;
  readonly above: Pose;
}

/**
 * The bounds on a canvas: what is seen beyond its border is at most {@link REACH}, to the side or
 * all around. A full turn ends where it began.
 */
function boundsOn([columns, rows]: CanvasExtent): Bounds {
  const [x, y] = [REACH + (columns - 1) / 2, REACH + (rows - 1) / 2];
  const away = MOST_ZOOM + Math.min(columns, rows) - 1;
  return {
    below: [x, y, Math.log(away), Infinity],
    above: [x, y, Math.log(MOST_ZOOM), Infinity],
  };
}

/** The first frame and nothing around. */
const FRAME_ALONE: CanvasExtent = [1, 1];

/** What a path is followed in. */
interface Surroundings {
  /** Frames of the clip: how long its last motions are in force. */
  readonly frames: number;
  /** Width by height. */
  readonly aspect: number;
  readonly bounds: Bounds;
}

/** A key frame, and how long its motions are in force. */
interface Span {
  readonly from: number;
  readonly length: number;
  readonly moves: readonly Move[];
}

/**
 * Where frame `frameId` looks: the map from its own places to those of frame 0, both in parts of
 * the picture. Zoom and turn are about its middle and leave squares of pixels square.
 *
 * @param frameId May lie between whole numbers.
 * @param frames Number of frames of the clip: how long its last motions are in force.
 * @param aspect Width by height.
 * @param canvas Extent of the canvas around frame 0. Default: there is none.
 */
export function motionAt(
  path: MotionPath,
  frameId: number,
  frames: number,
  aspect: number,
  canvas: CanvasExtent = FRAME_ALONE,
): Affine {
  const bounds = boundsOn(canvas);
  const [x, y, zoom, turn] = bounded(poseAt(path, frameId, { frames, aspect, bounds }), bounds);
  const c = Math.cos(turn) / Math.exp(zoom);
  const s = Math.sin(turn) / Math.exp(zoom);
  const [across, down] = [-s / aspect, s * aspect];
  return [c, across, x + (1 - c - across) / 2, down, c, y + (1 - c - down) / 2];
}

/** A remark if the path would leave its bounds in a clip of so many frames. */
export function motionRemark(
  path: MotionPath,
  frames: number,
  aspect: number,
  canvas: CanvasExtent = FRAME_ALONE,
): string | undefined {
  const bounds = boundsOn(canvas);
  const alone = canvas.every((side) => side === 1);
  for (let k = 0; k < frames; k++) {
    const pose = poseAt(path, k, { frames, aspect, bounds });
    if (pose.every((value, i) => Math.abs(value) <= STRAIGHT * boundOf(value, i, bounds))) continue;
    const far = alone
      ? `away, or its zoom beyond ${MOST_ZOOM}`
      : `beyond the canvas, or nearer than ${MOST_ZOOM} times`;
    return `the motion would take the camera more than a quarter of the picture ${far}; from ` +
      `frame ${k} on it turns back (say "once", and it rests)`;
  }
}

/** The bound on the side of a value that is the `i`-th component of a pose. */
function boundOf(value: number, i: number, { below, above }: Bounds): number {
  return value < 0 ? below[i] : above[i];
}

function poseAt(path: MotionPath, frameId: number, around: Surroundings): Pose {
  const { frames } = around;
  const spans = path.map(({ frame, moves }, i): Span => ({
    from: frame,
    length: (path[i + 1]?.frame ?? frames) - frame,
    moves,
  }));
  const way = (span: Span, t: number) => sum(span.moves.map((m) => travel(m, t, span, around)));
  return sum(spans.flatMap((span, i) => {
    if (frameId <= span.from) return [];
    const since = frameId - span.from;
    const t = i + 1 < spans.length ? Math.min(since, span.length) : since;
    return [way(span, t), joint(span, t, spans[i - 1], spans[i + 1], way)];
  }));
}

/**
 * What an eased span adds so that its speed is that of its neighbours where they meet: the tangents
 * of a cubic Hermite curve, which leave its ends where they are.
 */
function joint(
  span: Span,
  t: number,
  before: Span | undefined,
  behind: Span | undefined,
  way: (span: Span, t: number) => Pose,
): Pose {
  const { length, moves } = span;
  const s = Math.min(1, t / length);
  if (!moves.some(({ ease }) => ease)) return ORIGIN;
  const speed = (other: Span | undefined, from: number, to: number): Pose => {
    if (!other || other.moves.some(({ ease }) => ease)) return ORIGIN;
    return scale(sum([way(other, to), scale(way(other, from), -1)]), 1 / (to - from));
  };
  const end = before?.length ?? 0;
  return sum([
    scale(speed(before, end - INSTANT, end), length * s * (1 - s) ** 2),
    scale(speed(behind, 0, INSTANT), length * s * s * (s - 1)),
  ]);
}

/** Time, in frames, over which a speed is measured. */
const INSTANT = 2 ** -12;

/** The pose that one motion has made `t` frames after it began. */
function travel(
  move: Move,
  t: number,
  { length }: Span,
  { aspect, bounds }: Surroundings,
): Pose {
  const { kind, amounts, ease, pingPong } = move;
  const s = t / length;
  const swing = 1 - Math.abs(2 * (s - Math.floor(s)) - 1);
  const part = pingPong ? swing : s;
  const eased = ease ? smooth(Math.min(1, part)) : part;
  const way = restrained(move, eased * (pingPong ? length / 2 : length), bounds);
  const [first, second] = amounts;
  // A circle of pixels: parts of the shorter side are fewer parts of the longer one.
  const [unitX, unitY] = [Math.min(1, 1 / aspect) / GRID, Math.min(1, aspect) / GRID];
  switch (kind) {
    case "pan":
      return [first * way / GRID, second * way / GRID, 0, 0];
    case "zoom":
      return [0, 0, Math.log(first) * way, 0];
    case "rotate":
      return [0, 0, 0, first * way * Math.PI / 180];
    case "orbit": {
      const angle = 2 * Math.PI * way / length;
      const rise = Math.abs(first) * (1 - Math.cos(angle));
      return [unitX * first * Math.sin(angle), unitY * rise, 0, 0];
    }
    case "shake": {
      const [x, y] = tremor(s, length, second ?? 0);
      return [unitX * first * x, unitY * first * y, 0, 0];
    }
  }
}

/** `3s² − 2s³`: from 0 to 1, at rest at both ends. */
const smooth = (s: number): number => s * s * (3 - 2 * s);

/** Cycles a frame of the sines of a tremor, and their shares. */
const TREMOR = [[1 / 9, 0.5], [1 / 5, 0.3], [2 / 5, 0.2]] as const;

/**
 * A tremor in x and y, each within −1 … 1 of its middle, that begins at 0 and closes after its
 * time: sines of seeded phase, of whole numbers of cycles.
 *
 * @param s Part of its time.
 */
function tremor(s: number, length: number, seed: number): readonly [number, number] {
  const phases = new Generator(seed).rand([2 * TREMOR.length]);
  const along = (axis: number) =>
    TREMOR.reduce((total, [rate, share], i) => {
      const cycles = Math.max(i + 1, Math.round(rate * length));
      const phase = 2 * Math.PI * phases[2 * i + axis];
      return total + share * (Math.sin(2 * Math.PI * cycles * s + phase) - Math.sin(phase));
    }, 0);
  return [along(0), along(1)];
}

/** The way of a motion, as far as it goes `once`: it slows down and rests before it is bounded. */
function restrained({ kind, amounts, once }: Move, way: number, bounds: Bounds): number {
  if (!once) return way;
  const bounded = (speed: number, i: number) => Math.abs(speed) / boundOf(speed, i, bounds);
  const speeds = kind === "zoom"
    ? [bounded(Math.log(amounts[0]), 2)]
    : kind === "rotate"
    ? [Math.abs(amounts[0]) / 360 * STRAIGHT]
    : amounts.map((amount, i) => bounded(amount / GRID, i));
  const limit = STRAIGHT / Math.max(...speeds);
  return limit < Infinity ? rounded(way, limit, limit / 4, 0) : way;
}

/**
 * A way that goes on as it is up to `corner − radius`, and from `corner + radius` on at `slope`
 * times its speed; a parabola between.
 */
function rounded(way: number, corner: number, radius: number, slope: 0 | -1): number {
  if (way <= corner - radius) return way;
  if (way >= corner + radius) return corner + slope * (way - corner);
  return way + (slope - 1) * (way - corner + radius) ** 2 / (4 * radius);
}

/** The pose brought within its bounds: a triangle wave with round corners, per component. */
function bounded(pose: Pose, bounds: Bounds): Pose {
  const [x, y, zoom, turn] = pose.map((value, i) => {
    if (Math.abs(value) <= STRAIGHT * boundOf(value, i, bounds)) return value;
    const [low, high] = [cornerAt(bounds.below[i]), cornerAt(bounds.above[i])];
    const span = low.corner + high.corner;
    const wave = value + low.corner - 2 * span * Math.floor((value + low.corner) / (2 * span));
    const rising = wave <= span;
    const distance = rising ? wave - low.corner : span + high.corner - wave;
    const { corner, radius } = distance < 0 ? low : high;
    return Math.sign(distance) * rounded(Math.abs(distance), corner, radius, -1);
  });
  return [x, y, zoom, turn];
}

/** The corner of the wave at a bound; the parabola takes half its radius off it. */
function cornerAt(bound: number): { readonly corner: number; readonly radius: number } {
  const radius = 2 * (1 - STRAIGHT) * bound;
  return { corner: bound + radius / 2, radius };
}

function sum(poses: readonly Pose[]): Pose {
  return poses.reduce<Pose>(
    ([x, y, zoom, turn], pose) => [x + pose[0], y + pose[1], zoom + pose[2], turn + pose[3]],
    ORIGIN,
  );
}

const scale = (
  [x, y, zoom, turn]: Pose,
  by: number,
): Pose => [x * by, y * by, zoom * by, turn * by];
