/**
 * Skeletons of people, drawn as ControlNets for poses were trained on: OpenPose's 18 joints as
 * discs, its 17 limbs as ellipses over them, on black.
 *
 * Pixel by pixel this follows the drawing of the original code, which paints with OpenCV: discs of
 * radius 4, the polygon of an ellipse of half-width 4 whose corners are rounded to pixels, limbs
 * mixed in at 0.6. The 4 pixels do not grow with the picture, there as here.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";
import { roundToEven } from "../../core/rounding.ts";
import type { Frame } from "../frame.ts";
import type { Size } from "../picture.ts";
import type { Joint, Pose } from "./keypoints.ts";

/** Radius of a disc and half the width of a limb, in pixels. */
const THICKNESS = 4;

/** Canvases away from its own at which a joint is no place: limbs are drawn pixel by pixel. */
const FARTHEST = 8;

/** How much of a limb's colour replaces what is under it. */
const OPACITY = 0.6;

/** The joints at both ends of each limb, in the order of drawing. */
const LIMBS: readonly (readonly [number, number])[] = [
  ...[[1, 2], [1, 5], [2, 3], [3, 4], [5, 6], [6, 7]] as const, // arms
  ...[[1, 8], [8, 9], [9, 10], [1, 11], [11, 12], [12, 13]] as const, // legs
  ...[[1, 0], [0, 14], [14, 16], [0, 15], [15, 17]] as const, // head
];

/** The colours of the joints, and of the first 17 limbs: hues 20° apart, beginning with red. */
const PALETTE: readonly (readonly number[])[] = Array.from({ length: 18 }, (_, i) => {
  const hue = i / 3; // in sixths of the circle
  const ramp = (shift: number) => Math.abs((hue + shift) % 6 - 3) - 1;
  return [ramp(0), ramp(4), ramp(2)].map((x) => Math.round(255 * Math.min(1, Math.max(0, x))));
});

/** sin of whole degrees to 7 digits, so that what should be a half is one and rounds to even. */
const SINES: readonly number[] = Array.from(
  { length: 360 },
  (_, degrees) => Math.round(1e7 * Math.sin(degrees * Math.PI / 180)) / 1e7,
);
const sine = (degrees: number) => SINES[degrees % 360];
const cosine = (degrees: number) => SINES[(degrees + 90) % 360];

/**
 * Draws the people of a pose. A pose of another aspect covers the picture, as a start image does.
 *
 * @param size Of the picture.
 * @param canvas Of the picture in whose pixels the joints are measured; that of the file, where it
 * says one, unless told.
 * @throws {InputError} no canvas, joints that are no pixels of it, a size that is none.
 */
export function drawPose(pose: Pose, size: Size, canvas: Size | null = pose.canvas): Frame {
  const { width, height } = checkSize("a drawing", size);
  const place = placing(pose, size, canvas);
  const frame = { width, height, data: new Uint8Array(3 * width * height) };
  const people = pose.people.map((joints) => joints.map((joint) => joint && place(joint)));
  PALETTE.forEach((colour, k) => {
    for (const joints of people) {
      const joint = joints[k];
      if (joint) paintDisc(frame, joint, colour);
    }
  });
  LIMBS.forEach(([from, to], k) => {
    for (const joints of people) {
      const [a, b] = [joints[from], joints[to]];
      if (a && b) paintLimb(frame, a, b, PALETTE[k]);
    }
  });
  return frame;
}

function checkSize(what: string, size: Size): Size {
  const { width, height } = size;
  if ([width, height].every((extent) => Number.isInteger(extent) && extent > 0)) return size;
  throw new InputError(`${what} must be at least 1x1 pixels, got ${width}x${height}`);
}

/** From pixels of the canvas to pixels of a picture that it covers. */
function placing(pose: Pose, size: Size, canvas: Size | null): (joint: Joint) => Joint {
  const { width, height } = checkSize("the canvas of a pose", canvas ?? noCanvas());
  const seen = pose.people.flat().filter((joint) => joint !== null);
  const isFraction = (joint: Joint) => Math.max(Math.abs(joint[0]), Math.abs(joint[1])) <= 1;
  if (seen.length > 0 && Math.max(width, height) > 2 && seen.every(isFraction)) {
    throw new InputError(
      `joints must be measured in pixels of the ${width}x${height} canvas, these are fractions; ` +
        "write them with OpenPose's --keypoint_scale 0",
    );
  }
  const far = seen.find(([x, y]) => Math.max(Math.abs(x / width), Math.abs(y / height)) > FARTHEST);
  if (far) {
    throw new InputError(
      `joints must lie on the ${width}x${height} canvas or near it, one is at (${far}); leave it ` +
        "out (0, 0, 0), or give the size of the picture that they were found in",
    );
  }
  const scale = Math.max(size.width / width, size.height / height);
  const left = (size.width - scale * width) / 2;
  const top = (size.height - scale * height) / 2;
  return ([x, y]) => [scale * x + left, scale * y + top];
}

function noCanvas(): never {
  throw new InputError(
    "the file of a pose does not say how large the picture was that its joints were found in " +
      "(canvas_width, canvas_height); give the size of that video",
  );
}

function paintDisc(frame: Frame, [x, y]: Joint, colour: readonly number[]): void {
  const [column, row] = [Math.trunc(x), Math.trunc(y)];
  for (let down = -THICKNESS; down <= THICKNESS; down++) {
    const half = Math.floor(Math.sqrt(THICKNESS ** 2 - down ** 2));
    paintRow(frame, row + down, column - half, column + half, colour, 1);
  }
}

function paintLimb(frame: Frame, a: Joint, b: Joint, colour: readonly number[]): void {
  const spans = spansOf(limbOutline(a, b));
  for (const [row, [left, right]] of spans) paintRow(frame, row, left, right, colour, OPACITY);
}

/** The corners of the ellipse between two joints, a degree apart and rounded to pixels. */
function limbOutline([x0, y0]: Joint, [x1, y1]: Joint): Joint[] {
  const centre = [Math.trunc((x0 + x1) / 2), Math.trunc((y0 + y1) / 2)];
  const half = Math.trunc(Math.hypot(x0 - x1, y0 - y1) / 2);
  const slant = (Math.trunc(Math.atan2(y0 - y1, x0 - x1) * 180 / Math.PI) + 360) % 360;
  return SINES.map((_, degrees) => {
    const [u, v] = [half * cosine(degrees), THICKNESS * sine(degrees)];
    return [
      roundToEven(centre[0] + u * cosine(slant) - v * sine(slant)),
      roundToEven(centre[1] + u * sine(slant) + v * cosine(slant)),
    ];
  });
}

/** The pixels of a convex polygon: first and last column of each row, its outline included. */
function spansOf(corners: readonly Joint[]): Map<number, [number, number]> {
  const spans = new Map<number, [number, number]>();
  const include = (x: number, y: number) => {
    const span = spans.get(y);
    if (!span) spans.set(y, [x, x]);
    else [span[0], span[1]] = [Math.min(span[0], x), Math.max(span[1], x)];
  };
  corners.forEach((corner, k) => {
    const [[x0, y0], [x1, y1]] = [corner, corners[(k + 1) % corners.length]]
      .sort((a, b) => a[0] - b[0]);
    const [dx, dy] = [x1 - x0, y1 - y0];
    const steps = Math.max(dx, Math.abs(dy), 1);
    for (let i = 0; i <= steps; i++) {
      // Halves of the outline stay on the side of its left end, those of the filling do not.
      const y = y0 + Math.sign(dy) * Math.ceil(i * Math.abs(dy) / steps - 0.5);
      include(x0 + Math.ceil(i * dx / steps - 0.5), y);
      include(x0 + Math.floor(i * dx / steps + 0.5), y);
    }
  });
  return spans;
}

/** Mixes a colour into part of a row, as far as it lies inside the picture. */
function paintRow(
  { width, height, data }: Frame,
  row: number,
  left: number,
  right: number,
  colour: readonly number[],
  opacity: number,
): void {
  if (row < 0 || row >= height) return;
  for (let x = Math.max(left, 0); x <= Math.min(right, width - 1); x++) {
    const at = 3 * (row * width + x);
    colour.forEach((level, c) => {
      data[at + c] = Math.round((1 - opacity) * data[at + c] + opacity * level);
    });
  }
}

/**
 * The drawings of a clip's poses, one at a time; see {@link drawPose}.
 *
 * @throws {InputError} naming the frame.
 */
export function* poseFrames(
  poses: Iterable<Pose>,
  size: Size,
  canvas?: Size,
): Generator<Frame, void> {
  let index = 0;
  for (const pose of poses) {
    try {
      yield drawPose(pose, size, canvas);
    } catch (cause) {
      if (!(cause instanceof InputError)) throw cause;
      throw new InputError(`pose ${index}: ${cause.message}`, { cause });
    }
    index++;
  }
}
