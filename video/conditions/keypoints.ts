/**
 * Poses of people from the JSON files of OpenPose and its relatives: `{"people":
 * [{"pose_keypoints_2d": [x, y, confidence, …]}]}` for a frame, with 18 joints (COCO) or 25
 * (BODY_25) each, and perhaps the size of the picture as `canvas_width` and `canvas_height`.
 *
 * @module
 */

import { openByteSource, reasonOf } from "../../core/byte_source.ts";
import { InputError } from "../../core/errors.ts";
import { disk, isFolder } from "../output_file.ts";
import type { Size } from "../picture.ts";

/** Where a joint is, in pixels from the left and from the top. */
export type Joint = readonly [x: number, y: number];

/** The people of one frame. */
export interface Pose {
  /** Size of the picture that joints were found in; `null` where the file does not say. */
  readonly canvas: Size | null;
  /**
   * For each person 18 joints, `null` where not seen: nose, neck; right shoulder, elbow, wrist; the
   * left ones; right hip, knee, ankle; the left ones; right and left eye, right and left ear.
   */
  readonly people: readonly (readonly (Joint | null)[])[];
}

/** The poses of a clip. */
export interface PoseClip {
  /** A pose for each frame. */
  readonly poses: readonly Pose[];
  /** Remarks for the user. */
  readonly warnings: readonly string[];
}

/** The 18 joints among the 25 of BODY_25, which has a hip in the middle, and feet. */
const OF_BODY_25 = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18];

/** What is read besides bodies in other programs, and left out here. */
const LEFT_OUT = ["face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d"];

const EXPECTED = 'a keypoint file is JSON: {"people": [{"pose_keypoints_2d": [x, y, confidence, ' +
  "…]}]} for one frame, or a list of these";

/**
 * Reads the poses of a clip: a JSON file of one frame or of a list of frames, or a folder with a
 * JSON file for each frame, in the order of the numbers in their names.
 *
 * @throws {InputError} if it cannot be read, is no keypoint file (the message says what that is),
 * has another number of joints, or joints that are no numbers.
 */
export async function readPoses(source: string | URL | Blob | Uint8Array): Promise<PoseClip> {
  const files = await folderFiles(source) ?? [source];
  const clips: PoseClip[] = [];
  for (const file of files) {
    const opened = await openByteSource(file);
    try {
      const bytes = await opened.read(0, opened.size);
      clips.push(parsePoses(new TextDecoder().decode(bytes), opened.name));
    } finally {
      await opened.close();
    }
  }
  return {
    poses: clips.flatMap(({ poses }) => poses),
    warnings: [...new Set(clips.flatMap(({ warnings }) => warnings))],
  };
}

/** The paths of the JSON files in a folder, in order; `null` if the source is no folder. */
async function folderFiles(source: string | URL | Blob | Uint8Array): Promise<string[] | null> {
  if (typeof source !== "string" && !(source instanceof URL)) return null;
  const text = String(source);
  if (/^https?:/i.test(text)) return null;
  const folder = /^file:/i.test(text) ? (await import("node:url")).fileURLToPath(text) : text;
  if (!await isFolder(folder)) return null;
  const { fs, path } = await disk();
  const names = (await fs.readdir(folder)).filter((name) => /^[^.].*\.json$/i.test(name));
  if (names.length === 0) {
    throw new InputError(
      `${folder}: a folder of poses must hold .json files, this one has none; name the folder ` +
        "that OpenPose wrote to",
    );
  }
  const natural = new Intl.Collator("en", { numeric: true });
  return names.sort(natural.compare).map((name) => path.join(folder, name));
}

/**
 * The poses in the text of a keypoint file.
 *
 * @param name What messages call the file.
 * @throws {InputError} as {@link readPoses}.
 */
export function parsePoses(text: string, name: string): PoseClip {
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (cause) {
    throw new InputError(`${name}: ${EXPECTED}; this is no JSON (${reasonOf(cause)})`, { cause });
  }
  const frames = Array.isArray(content) ? content : [content];
  if (frames.length === 0) throw new InputError(`${name}: ${EXPECTED}; this list is empty`);
  const poses = frames.map((frame: unknown, i) =>
    parsePose(frame, frames.length > 1 ? `${name}, frame ${i}` : name)
  );
  const more = frames.some(({ people }: { people: Record<string, unknown>[] }) =>
    people.some((person) => LEFT_OUT.some((key) => hasNumbers(person[key])))
  );
  return {
    poses,
    warnings: more ? ["joints of hands and faces are not drawn; bodies are"] : [],
  };
}

function hasNumbers(list: unknown): boolean {
  return Array.isArray(list) && list.some((value) => value !== 0);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parsePose(frame: unknown, name: string): Pose {
  if (!isRecord(frame) || !Array.isArray(frame.people)) {
    throw new InputError(`${name}: ${EXPECTED}; "people" is missing, or no list`);
  }
  return {
    canvas: parseCanvas(frame, name),
    people: frame.people.map((person: unknown, i) => parsePerson(person, `${name}, person ${i}`)),
  };
}

function parseCanvas(frame: Record<string, unknown>, name: string): Size | null {
  const { canvas_width: width, canvas_height: height } = frame;
  if (width === undefined && height === undefined) return null;
  const isExtent = (value: unknown): value is number =>
    Number.isInteger(value) && Number(value) > 0;
  if (isExtent(width) && isExtent(height)) return { width, height };
  throw new InputError(
    `${name}: canvas_width and canvas_height must both be positive whole numbers, ` +
      `got ${JSON.stringify(width)} and ${JSON.stringify(height)}`,
  );
}

function parsePerson(person: unknown, name: string): (Joint | null)[] {
  const numbers = isRecord(person) ? person.pose_keypoints_2d : undefined;
  if (!Array.isArray(numbers)) {
    throw new InputError(`${name}: ${EXPECTED}; "pose_keypoints_2d" is missing, or no list`);
  }
  const wrong = numbers.findIndex((value) => !Number.isFinite(value));
  if (wrong >= 0) {
    throw new InputError(
      `${name}: joints must be finite numbers x, y and confidence; number ${wrong} is ` +
        `${JSON.stringify(numbers[wrong])} (a joint that is not seen has 0, 0, 0)`,
    );
  }
  if (numbers.length !== 3 * 18 && numbers.length !== 3 * 25) {
    throw new InputError(
      `${name}: there must be 3 numbers for each of 18 joints (COCO) or 25 (BODY_25), ` +
        `got ${numbers.length}; write poses with one of these models`,
    );
  }
  const places = numbers.length === 3 * 25 ? OF_BODY_25 : OF_BODY_25.keys();
  return Array.from(places, (k) => {
    const [x, y, confidence] = numbers.slice(3 * k, 3 * k + 3);
    return confidence > 0 ? [x, y] : null;
  });
}
