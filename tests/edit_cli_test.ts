/** The command edit: videos and pictures that it changes, and what it refuses. */

import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { videoInstructPix2Pix } from "../video/instruct_pix2pix.ts";
import { readPicture } from "../video/picture.ts";
import { encodePng } from "../video/png.ts";
import { readSettings } from "../video/writer.ts";
import { refused, run } from "./cli_run.ts";
import { setVariables } from "./environment.ts";
import { framesOf } from "./start_image_setup.ts";
import { barFrame, editor, INSTRUCTION } from "./tiny_edit_model.ts";

const { sd, folder, root } = await editor();
const restore = setVariables({ HF_HUB_OFFLINE: "1" });
after(restore);

describe("the command edit", () => {
  it("changes a folder of pictures, and makes the same again", async () => {
    const frames = join(root, "frames");
    await mkdir(frames);
    for (const id of [9, 10]) {
      await writeFile(join(frames, `${id}.png`), await encodePng(barFrame(id - 9)));
    }
    const [made, again] = [join(root, "made"), join(root, "again")];
    const first = await run([
      ...["edit", INSTRUCTION, "--video", frames, "--model", folder, "--dtype", "f32"],
      ...["--resolution", "64", "--steps", "1", "--seed", "3", "--image-guidance", "1.5"],
      ...["-o", `${made}/`, "--json"],
    ]);
    assert.equal(first.code, 0, first.stderr);
    const { settings } = JSON.parse(first.stdout);
    assert.deepEqual(await readSettings(made), settings);
    const { video, resolution, imageGuidanceScale, fps } = settings;
    assert.deepEqual(
      { video, resolution, imageGuidanceScale, fps },
      { video: frames, resolution: 64, imageGuidanceScale: 1.5, fps: 25 },
    );
    assert.match(settings.videoSha256, /^[0-9a-f]{64}$/);
    const want = await framesOf(videoInstructPix2Pix(sd, INSTRUCTION, {
      ...{ steps: 1, seed: 3, video: [barFrame(0), barFrame(1)], imageGuidanceScale: 1.5 },
    }));
    const picture = (folder: string, id: number) => readPicture(join(folder, `frame_000${id}.png`));
    for (const id of [0, 1]) assert.deepEqual(await picture(made, id), want[id]);
    const second = await run(["edit", "--from", made, "-o", `${again}/`]);
    assert.equal(second.code, 0, second.stderr);
    for (const id of [0, 1]) assert.deepEqual(await picture(again, id), want[id]);
    await writeFile(join(frames, "10.png"), await encodePng(barFrame(5)));
    const other = ["edit", "--from", made, "-o", join(root, "c.gif")];
    await refused([...other, "--gpu", "auto"], 1, /settings were made with a clip of sha256/);
  });

  it("changes a picture into a picture", async () => {
    const [start, target] = [join(root, "start.png"), join(root, "changed.png")];
    await writeFile(start, await encodePng(barFrame(1, 96, 64)));
    const options = ["--resolution", "96", "--steps", "1", "--guidance", "1", "--model", folder];
    const made = await run(["edit", INSTRUCTION, "--video", start, ...options, "-o", target]);
    assert.equal(made.code, 0, made.stderr);
    assert.match(made.stderr, /1 frame of 128x64/);
    const { width, height } = await readPicture(target);
    assert.deepEqual([width, height], [128, 64]);
  });

  it("refuses what it cannot use", async () => {
    const target = ["-o", join(root, "x.gif")];
    const start = join(root, "bar.png");
    await writeFile(start, await encodePng(barFrame(0)));
    await mkdir(join(root, "empty"));
    await refused(["edit"], 2, /the instruction is missing; say what to change/);
    await refused(["edit", INSTRUCTION, ...target], 2, /no video to change; name it with --video/);
    await refused(["edit", INSTRUCTION, "--init", start], 2, /unknown option '--init'/);
    const from = (
      video: string,
      ...more: string[]
    ) => ["edit", INSTRUCTION, "--video", video, ...more, ...target];
    await refused(from(join(root, "none.png")), 1, /none\.png/);
    await refused(from(join(root, "empty")), 1, /a folder must hold pictures/);
    await refused(from(start, "--start", "2"), 1, /the start must lie within the clip/);
    await refused(from(start, "--image-guidance", "-1"), 2, /at least 0/);
  });
});
