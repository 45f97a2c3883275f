/**
 * The options about clips that are read, and about ControlNets that see them.
 *
 * @module
 */

import { type Command, Option } from "commander";
import { mapsOfKind, type MapsRequest } from "./control_maps.ts";
import { collect, number, whole } from "./values.ts";

/** Adds what says which part of a clip is read, and at which size. */
export function addClipOptions(command: Command): Command {
  return command
    .option(
      "--start <s>",
      "second of the clip at which to begin (default: 0)",
      number({ least: 0 }),
    )
    .option("--end <s>", "second at which to end (default: its end)", number({ above: 0 }))
    .option(
      "--video-fps <x>",
      "frames to take of a second of it (default: all)",
      number({ above: 0, most: 240 }),
    )
    .option(
      "--resolution <px>",
      "its longer side, if no size is given (default: the model's, or 512)",
      whole(1),
    );
}

/** Adds what says how the maps of ControlNets are made. */
export function addMapsOptions(command: Command): Command {
  return addClipOptions(command)
    .addOption(
      new Option(
        "--control-source <what>",
        "whether the clips are ordinary videos or maps already (default: canny makes maps, other " +
          "kinds have them)",
      ).choices(["video", "maps"]),
    );
}

/** Adds the options about ControlNets. */
export function addControlOptions(command: Command): Command {
  return addMapsOptions(command)
    .option(
      "--control <kind:file>",
      "what a ControlNet sees, such as canny:dance.mp4: a video, a GIF, a folder of pictures, one " +
        "picture for all frames; pose: keypoints, too; can be repeated",
      (text: string, before: MapsRequest[] = []) => [...before, mapsOfKind(text)],
    )
    .option(
      "--controlnet <model>",
      "the ControlNet that sees it, as --model, one a --control (default: the usual one of its kind)",
      collect,
    )
    .option(
      "--control-scale <x>",
      "how strongly it acts; can be repeated (default: 1)",
      (text: string, before: number[] = []) => [...before, number()(text)],
    )
    .option(
      "--control-start <x>",
      "share of the steps before it acts (default: 0)",
      number({ least: 0, most: 1 }),
    )
    .option(
      "--control-end <x>",
      "share of the steps after which it ends (default: 1)",
      number({ least: 0, most: 1 }),
    )
    .addOption(
      new Option(
        "--control-short <rule>",
        "with fewer frames than the clip: hold the last, loop, or stop there (default: hold)",
      ).choices(["hold", "loop", "stop"]),
    )
    .option("--guess-mode", "let it act without a prompt, more weakly on details")
    .addOption(
      new Option(
        "--control-attention <where>",
        "where frames attend to the first one (default: unet+controlnet)",
      ).choices(["unet+controlnet", "unet"]),
    )
    .option(
      "--transfer-from <model>",
      "move it to --model from the model that it was trained with, which this one was tuned from",
    );
}
