/**
 * The gallery: one clip a mode with the built-in model, and a page that shows them.
 *
 * ```sh
 * npm run gallery
 * deno run -A bench/gallery.ts --filter zoom --output out/gallery
 * ```
 *
 * @module
 */

import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { openDevice } from "../core/device.ts";
import { main as run } from "../video/cli.ts";
import { writeText } from "../video/output_file.ts";
import { type Command, command, path, pattern } from "./command.ts";
import { type Mode, MODES } from "./gallery/modes.ts";
import { type Card, galleryPage } from "./gallery/page.ts";
import { describeSetting, settingOf } from "./setting.ts";

const HELP = `usage: gallery [options]
  --output FOLDER  where to (default out/gallery)
  --filter RE      only modes whose names match
  --help           this text`;

/** Runs the command. Returns the exit code. */
export const main: Command = command({
  help: HELP,
  options: { output: path, filter: pattern },
}, async ({ output = "out/gallery", filter }) => {
  await mkdir(output, { recursive: true });
  const cards: Card[] = [];
  for (const mode of MODES) {
    const made = mode.proof || (filter && !filter.test(mode.name))
      ? { seconds: undefined }
      : await make(mode, output);
    if (!made) return 1;
    cards.push(await cardOf(mode, output, made.seconds));
  }
  const device = await openDevice();
  const setting = describeSetting(settingOf(device));
  await device.close();
  const page = join(output, "index.html");
  await writeText(page, galleryPage(cards, setting), true);
  console.log(page);
  return 0;
});

/** Makes the clip of a mode; `null` if that failed. */
async function make(
  { name, title, args }: Mode,
  output: string,
): Promise<{ seconds: number } | null> {
  const still = args[0] === "image";
  const begin = performance.now();
  let errors = "";
  const code = await run(
    [...resolved(args, output), "-o", fileOf(name, output, still)].concat([
      "--overwrite",
      "--quiet",
    ]),
    {
      stdout: () => {},
      stderr: (text) => errors += text,
      isTTY: false,
      columns: 80,
      signal: new AbortController().signal,
      debug: false,
    },
  );
  const seconds = (performance.now() - begin) / 1000;
  console.log(code === 0 ? `${title}: ${seconds.toFixed(1)} s` : `${title}: ${errors}`);
  return code === 0 ? { seconds } : null;
}

const fileOf = (name: string, output: string, still = false): string =>
  join(output, `${name}.${still ? "png" : "gif"}`);

/** Arguments in which `{name}` is the clip of another mode. */
function resolved(args: readonly string[], output: string): string[] {
  return args.map((arg) => arg.replace(/\{(.+)\}/, (_, name: string) => fileOf(name, output)));
}

async function cardOf(mode: Mode, output: string, seconds?: number): Promise<Card> {
  const { name, args, ...said } = mode;
  const files = (await readdir(output)).filter((file) => file.replace(/\.[^.]+$/, "") === name);
  const words = resolved(args, output).map((arg) => /[^\w./:=-]/.test(arg) ? `"${arg}"` : arg);
  return { ...said, files, seconds, command: `deno run -A mod.ts ${words.join(" ")}` };
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
