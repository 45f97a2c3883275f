/**
 * Makes `docs/conditions.png`: a picture and its edges, a drawing of a pose, and the depth of two frames
 * in which a ball comes nearer, on one scale.
 *
 * ```sh
 * deno run -A bench/conditions.ts
 * ```
 *
 * @module
 */

import {
  canny,
  conditionFrames,
  drawPose,
  type Frame,
  openDevice,
  parsePoses,
  readPicture,
  writeVideo,
} from "../mod.ts";

const SIZE = { width: 128, height: 128 };

/** x and y, in percent, of 18 joints: nose, neck, right arm, left arm, legs, eyes, ears. */
const JOINTS = [
  ...[50, 20, 50, 30, 42, 30, 30, 22, 22, 10, 58, 30, 71, 24, 80, 12, 45, 55],
  ...[32, 66, 22, 82, 55, 55, 67, 67, 80, 80, 47, 17, 53, 17, 44, 19, 56, 19],
];

function pose(): Frame {
  const numbers = JOINTS.flatMap((value, i) => i % 2 ? [value, 1] : [value]);
  const text = JSON.stringify({
    people: [{ pose_keypoints_2d: numbers }],
    canvas_width: 100,
    canvas_height: 100,
  });
  return drawPose(parsePoses(text, "the pose").poses[0], SIZE);
}

/** Ground that comes nearer towards the bottom, and a ball of some radius and level. */
function depth(radius: number, level: number): Frame {
  const data = new Uint8Array(3 * SIZE.width * SIZE.height);
  for (let i = 0; i < data.length / 3; i++) {
    const [x, y] = [i % SIZE.width, Math.floor(i / SIZE.width)];
    const ground = 70 + Math.max(0, y - 50) / 2;
    const inside = 1 - (Math.hypot(x - 64, y - 72) / radius) ** 2;
    data.fill(inside > 0 ? level + 8 * Math.sqrt(inside) : ground, 3 * i, 3 * i + 3);
  }
  return { ...SIZE, data };
}

const device = await openDevice();
const picture = await readPicture(new URL("../docs/start.png", import.meta.url));
const edges = await canny(device, picture);
const near = [depth(16, 100), depth(40, 150)];
const scaled = await Array.fromAsync(conditionFrames(device, "depth", near));
const cells = [picture, edges, pose(), ...scaled];
await writeVideo(cells, `sheet:${new URL("../docs/conditions.png", import.meta.url).pathname}`, {
  fps: 1,
  overwrite: true,
  sheet: { columns: cells.length },
});
await device.close();
