/**
 * The command line: `framezero <prompt>` and its relatives.
 *
 * @module
 */

import { Command, CommanderError, Option } from "commander";
import process from "node:process";
import { GPU_CHOICES } from "../core/runtime.ts";
import { info } from "./cli/describe.ts";
import { type ConditionFlags, writeCondition } from "./cli/condition.ts";
import { mapsOfKind, type MapsRequest } from "./cli/control_maps.ts";
import { addMapsOptions } from "./cli/control_options.ts";
import { addEditOptions } from "./cli/edit_options.ts";
import { generate } from "./cli/generate.ts";
import { type CommandIo, Interrupted } from "./cli/io.ts";
import {
  addImageOptions,
  addVideoOptions,
  EXPERIMENTAL,
  type GenerateFlags,
  MODEL,
  VARIANT,
} from "./cli/options.ts";
import { measureClip, type MeasureFlags } from "./cli/measure.ts";
import { inspect, listModels, pull } from "./cli/models.ts";
import { UsageError } from "./cli/request.ts";
import { collect, number, whole } from "./cli/values.ts";
import { pictureProtocol } from "./terminal_picture.ts";

/** Exit codes: everything done, something failed, the command line is wrong, interrupted. */
const DONE = 0, FAILED = 1, USAGE = 2, INTERRUPTED = 130;

/** Programs of their own with their own options; loaded only when they are called for. */
const PROGRAMS: ReadonlyMap<string, () => Promise<{ main: Main }>> = new Map([
  ["parity", () => import("../bench/parity.ts")],
  ["bench", () => import("../bench/kernels.ts")],
]);

type Main = (args: string[]) => Promise<number>;

/**
 * Runs one command line.
 *
 * @param args The arguments behind the program's name.
 * @returns The exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted.
 */
export async function main(args: string[], io: CommandIo): Promise<number> {
  try {
    const other = PROGRAMS.get(args[0]);
    if (other) return await Promise.race([(await other()).main(args.slice(1)), aborted(io.signal)]);
    await commands(io).parseAsync(args, { from: "user" });
    return DONE;
  } catch (error) {
    // The parser has printed its own errors.
    if (error instanceof CommanderError) return error.exitCode === 0 ? DONE : USAGE;
    const interrupted = io.signal.aborted;
    const shown = interrupted ? io.signal.reason : error;
    const trace = io.debug && shown instanceof Error ? shown.stack : undefined;
    io.stderr(`framezero: ${trace ?? (shown instanceof Error ? shown.message : String(shown))}\n`);
    return interrupted ? INTERRUPTED : error instanceof UsageError ? USAGE : FAILED;
  }
}

/** Rejects when `signal` aborts: ends what does not heed it. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}

function commands(io: CommandIo): Command {
  const program = new Command("framezero")
    .description("Text to video with Stable Diffusion 1.5 and no video training (Text2Video-Zero).")
    .exitOverride()
    .configureOutput({
      writeOut: io.stdout,
      writeErr: io.stderr,
      outputError: (text, write) => {
        const line = text.replace(/^error: /, "").trim().replaceAll("\n", " ").replace(/\.$/, "");
        const hint = /^too many arguments for '(video|image|edit)'/.test(line)
          ? "; put the prompt in quotes"
          : "";
        write(`framezero: ${line}${hint}\n`);
      },
    });
  const video = addVideoOptions(program.command("video", { isDefault: true }))
    .description("make a video (the default)")
    .argument("[prompt]", "what to show")
    .action((prompt: string | undefined, flags: GenerateFlags) => {
      // Such as `--gpu dawn info`: whoever types that does not want a video of "info".
      if (
        program.args[0] !== "video" && program.commands.some((other) => other.name() === prompt)
      ) {
        throw new UsageError(
          `"${prompt}" is a command and must come first; as a prompt: framezero video "${prompt}"`,
        );
      }
      return generate("video", prompt, flags, io);
    });
  addImageOptions(program.command("image"))
    .description("make one picture")
    .argument("[prompt]", "what to show")
    .action((prompt: string | undefined, flags: GenerateFlags) =>
      generate("image", prompt, flags, io)
    );
  addEditOptions(program.command("edit"))
    .description("change a video or a picture as an instruction says")
    .argument("[instruction]", "what to change")
    .action((instruction: string | undefined, flags: GenerateFlags) =>
      generate("edit", instruction, flags, io)
    );
  const models = program.command("models").description("list, fetch and inspect models");
  models.command("list")
    .description("the built-in model, those of Hugging Face's cache, and those in folders")
    .argument("[folders...]")
    .action((folders: string[]) => listModels(folders, io));
  models.command("pull").alias("download")
    .description("fetch a model into Hugging Face's cache, and print where it lies")
    .argument("<model>", "owner/name, owner/name@revision, or an address")
    .option("--variant <name>", VARIANT)
    .action((model: string, flags: { variant?: string }) => pull(model, flags, io));
  models.command("inspect")
    .description("what a model is and holds, by its headers: kind, sizes, what is missing")
    .argument("[model]", `${MODEL} (default: the built-in one)`)
    .option("--variant <name>", VARIANT)
    .action((model: string | undefined, flags: { variant?: string }) => inspect(model, flags, io));
  addMapsOptions(program.command("condition"))
    .description("what a ControlNet would be shown of a clip, as a file")
    .argument("<kind:file>", "such as canny:dance.mp4, or pose:keypoints/", mapsOfKind)
    .option("-o, --output <file>", "where to, as for video; can be repeated", collect)
    .option("--width <px>", "size of the maps (default: by --resolution)", whole(1))
    .option("--height <px>", "likewise", whole(1))
    .option("--fps <x>", "frames a second (default: the clip's)", number({ above: 0, most: 240 }))
    .option("--overwrite", "replace files that exist")
    .option("--quiet", "print nothing but errors")
    .addOption(new Option("--gpu <kind>").choices(GPU_CHOICES).default("auto"))
    .action((request: MapsRequest, flags: ConditionFlags) => writeCondition(request, flags, io));
  program.command("measure")
    .description("figures of a clip: motion, warp error, cuts, flicker, likeness of its frames")
    .argument("<clip>", "video, GIF, or folder of pictures")
    .option("--against <clip>", "compare two clips frame by frame instead: PSNR and SSIM")
    .option("--clip <model>", "CLIP score, with a folder or owner/name on Hugging Face")
    .option("--prompt <text>", "what --clip compares with (default: the prompt in its settings)")
    .option(
      "--side <px>",
      "scale frames to a square before motion is measured; papers take 720 (default: as they are)",
      whole(15, 4096),
    )
    .option("--plot <file>", "write an SVG of the figures over time")
    .option("--overwrite", "replace an SVG that exists")
    .option("--quiet", "print no progress")
    .option("--json", "print one JSON object")
    .addOption(new Option("--gpu <kind>").choices(GPU_CHOICES).default("auto"))
    .action((clip: string, flags: MeasureFlags) => measureClip(clip, flags, io));
  program.command("info").description("runtime, adapter, features, limits")
    .addOption(new Option("--gpu <kind>").choices(GPU_CHOICES).default("auto"))
    .option("--experimental", EXPERIMENTAL)
    .option("--json", "print one JSON object")
    .action((flags: Parameters<typeof info>[0]) => info(flags, io));
  program.command("parity").description("compare with reference files");
  program.command("bench").description("measure the kernels");
  return program.addHelpText("after", () => `\n${video.helpInformation()}`);
}

/** Runs the command line of this process, and ends it. The first Ctrl-C stops, a second one kills. */
export async function run(): Promise<void> {
  const interrupt = new AbortController();
  process.on("SIGINT", () => {
    if (interrupt.signal.aborted) process.exit(INTERRUPTED);
    interrupt.abort(new Interrupted());
  });
  const { stdout, stderr, env } = process;
  const code = await main(process.argv.slice(2), {
    stdout: (text) => stdout.write(text),
    stderr: (text) => stderr.write(text),
    isTTY: stderr.isTTY === true,
    columns: stderr.columns || 80,
    pictures: stderr.isTTY ? pictureProtocol(env) : null,
    signal: interrupt.signal,
    debug: Boolean(env.FRAMEZERO_DEBUG),
  });
  // Pipes may still hold a part of the output, and GPU libraries may keep the process alive.
  for (const stream of [stdout, stderr]) await new Promise((done) => stream.write("", done));
  process.exit(code);
}
