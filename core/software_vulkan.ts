/**
 * Vulkan without a GPU, on Linux: finds out whether this machine has a Vulkan loader and drivers
 * that work, and brings SwiftShader (a Vulkan driver that computes on the CPU) where it has none.
 * All of it must happen before the first adapter is requested, because the loader reads its
 * variables only once per Vulkan instance.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import process from "node:process";
import { brotliDecompressSync } from "node:zlib";

/** What only the JavaScript runtime can do: touch the process's own libraries and variables. */
export interface NativeHost {
  /** Opens a shared library; returns what closes it again, or undefined if it cannot be opened. */
  openLibrary(path: string): (() => void) | undefined;
  /** Sets (or, given undefined, removes) a variable so that native code sees it. */
  setVariable(name: string, value: string | undefined): void;
}

/** A Vulkan driver as its manifest (ICD json file) describes it. */
export interface VulkanDriver {
  /** Path of the manifest. */
  readonly manifest: string;
  /** The shared library that the manifest names. */
  readonly library: string;
  /** Whether that library exists. */
  readonly usable: boolean;
  /** Whether it computes on the CPU (llvmpipe, SwiftShader). */
  readonly software: boolean;
}

/** What the machine offers. */
export interface VulkanFacts {
  /** Whether `libvulkan.so.1` can be opened. */
  readonly loader: boolean;
  /** The files and folders in which manifests were looked for. */
  readonly searched: readonly string[];
  /** The drivers found there, in the loader's order. */
  readonly drivers: readonly VulkanDriver[];
  /** SwiftShader's archive inside npm `@sparticuz/chromium`; undefined if it is not installed. */
  readonly swiftShader: string | undefined;
  /** `ID` and `ID_LIKE` of the Linux distribution, such as `"ubuntu debian"`; may be empty. */
  readonly distribution: string;
}

/**
 * Which driver to use: the loader's own choice, only the listed manifests, SwiftShader, or nothing
 * because nothing is there.
 */
export type DriverChoice =
  | { readonly use: "system" }
  | { readonly use: "manifests"; readonly manifests: readonly string[] }
  | { readonly use: "swiftshader"; readonly archive: string }
  | { readonly use: "nothing" };

const LOADER = "libvulkan.so.1";
const SWIFTSHADER_MANIFEST = "vk_swiftshader_icd.json";
const SWIFTSHADER_FILES = [LOADER, SWIFTSHADER_MANIFEST, "libvk_swiftshader.so"];
const SOFTWARE_DRIVER = /lvp|lavapipe|llvmpipe|swiftshader/i;

/** The user's own settings, read before {@link applyDriver} changes them; empty counts as unset. */
const userDriverFiles = process.env.VK_DRIVER_FILES || process.env.VK_ICD_FILENAMES || undefined;

/**
 * Chooses a driver: what the system has if it can work, else SwiftShader.
 *
 * @param facts What {@link gatherFacts} found.
 * @param softwareOnly Choose a driver that computes on the CPU even if there is a GPU.
 */
export function chooseDriver(facts: VulkanFacts, softwareOnly: boolean): DriverChoice {
  const usable = facts.loader ? facts.drivers.filter((driver) => driver.usable) : [];
  const software = usable.filter((driver) => driver.software);
  if (!softwareOnly && usable.length > 0) return { use: "system" };
  if (software.length > 0) {
    return { use: "manifests", manifests: software.map((driver) => driver.manifest) };
  }
  return facts.swiftShader === undefined
    ? { use: "nothing" }
    : { use: "swiftshader", archive: facts.swiftShader };
}

/**
 * Puts a choice into effect for every Vulkan instance created afterwards.
 *
 * @throws {Error} If SwiftShader cannot be unpacked into the temporary folder.
 */
export function applyDriver(choice: DriverChoice, facts: VulkanFacts, host: NativeHost): void {
  let files = userDriverFiles;
  if (choice.use === "manifests") files = choice.manifests.join(":");
  if (choice.use === "swiftshader") {
    const folder = unpackSwiftShader(choice.archive);
    files = join(folder, SWIFTSHADER_MANIFEST);
    // Whoever asks for libvulkan.so.1 by name later gets the one already open under that name.
    if (!facts.loader) host.openLibrary(join(folder, LOADER));
  }
  // Loaders before 1.3.207 know only the second name; newer ones prefer the first.
  host.setVariable("VK_DRIVER_FILES", files);
  host.setVariable("VK_ICD_FILENAMES", files);
}

/** Looks at the machine: loader, driver manifests, SwiftShader's archive. Starts no driver. */
export function gatherFacts(host: NativeHost): VulkanFacts {
  const closeLoader = host.openLibrary(LOADER);
  closeLoader?.();
  const searched = userDriverFiles?.split(":") ?? manifestFolders();
  const drivers: VulkanDriver[] = [];
  for (const manifest of searched.flatMap(listManifests)) {
    const library = readManifest(manifest);
    if (library !== undefined) {
      const usable = libraryExists(library);
      drivers.push({ manifest, library, usable, software: SOFTWARE_DRIVER.test(library) });
    }
  }
  return {
    loader: closeLoader !== undefined,
    searched,
    drivers,
    swiftShader: findSwiftShader(),
    distribution: readDistribution(),
  };
}

/**
 * The regular files of an uncompressed POSIX (ustar) archive, by path.
 *
 * @throws {RangeError} If a header's size field is no octal number or reaches past the end.
 */
export function readTar(archive: Uint8Array): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  let header = 0;
  while (header + 512 <= archive.length && archive[header] !== 0) {
    const field = (offset: number, length: number) => {
      const start = header + offset;
      return Buffer.from(archive.subarray(start, start + length)).toString().split("\0", 1)[0];
    };
    const size = parseInt(field(124, 12), 8);
    const start = header + 512;
    if (!(size >= 0 && start + size <= archive.length)) {
      throw new RangeError(
        `A tar entry must lie inside its archive: "${field(0, 100)}" claims ${size} bytes ` +
          `at offset ${start} of ${archive.length}. Install the package that holds it again.`,
      );
    }
    const prefix = field(257, 6) === "ustar" ? field(345, 155) : "";
    const type = field(156, 1);
    if (type === "0" || type === "") {
      const name = field(0, 100);
      files.set(prefix === "" ? name : `${prefix}/${name}`, archive.subarray(start, start + size));
    }
    header = start + Math.ceil(size / 512) * 512;
  }
  return files;
}

/** What was looked for and found, one indented line each, for an error message. */
export function describeFacts(facts: VulkanFacts): string {
  const drivers = facts.drivers.map(({ manifest, library, usable }) =>
    `${manifest} (${library}${usable ? "" : ", which is missing"})`
  );
  const none = `none in ${facts.searched.join(", ")}`;
  return [
    `  Vulkan loader ${LOADER}: ${facts.loader ? "found" : "not found"}`,
    `  Vulkan drivers: ${drivers.join(", ") || none}`,
    `  SwiftShader (npm @sparticuz/chromium): ${facts.swiftShader ?? "not installed"}`,
  ].join("\n");
}

/** What can be done on this machine to get an adapter, one command or remark each. */
export function adviseDrivers(facts: VulkanFacts): string[] {
  const software = facts.drivers.some((driver) => driver.usable && driver.software);
  const advice: string[] = [];
  if (!facts.loader || !software) advice.push(installCommand(facts.distribution));
  else advice.push("Mesa 24 or newer, which Dawn needs (Debian 12 has it in bookworm-backports)");
  if (facts.swiftShader === undefined) {
    advice.push("npm install @sparticuz/chromium  (brings SwiftShader, for x64 processors)");
  }
  return advice;
}

/** The command that installs a Vulkan loader and Mesa's CPU driver on a distribution. */
function installCommand(distribution: string): string {
  const commands: [RegExp, string][] = [
    [/debian|ubuntu/, "sudo apt-get install mesa-vulkan-drivers libvulkan1"],
    [/fedora|rhel|centos/, "sudo dnf install mesa-vulkan-drivers vulkan-loader"],
    [/arch/, "sudo pacman -S vulkan-swrast vulkan-icd-loader"],
    [/alpine/, "sudo apk add mesa-vulkan-swrast vulkan-loader"],
  ];
  const known = commands.find(([name]) => name.test(distribution));
  return known?.[1] ?? `${commands[0][1]}  (Debian, Ubuntu; elsewhere Mesa's Vulkan drivers)`;
}

/** The folders in which the Vulkan loader looks for manifests, in its order. */
function manifestFolders(): string[] {
  const { HOME = "/", XDG_CONFIG_HOME, XDG_CONFIG_DIRS, XDG_DATA_HOME, XDG_DATA_DIRS } =
    process.env;
  const roots = [
    XDG_CONFIG_HOME || join(HOME, ".config"),
    ...(XDG_CONFIG_DIRS || "/etc/xdg").split(":"),
    "/usr/local/etc",
    "/etc",
    XDG_DATA_HOME || join(HOME, ".local/share"),
    ...(XDG_DATA_DIRS || "/usr/local/share:/usr/share").split(":"),
  ];
  const added = process.env.VK_ADD_DRIVER_FILES?.split(":") ?? [];
  return [...added, ...new Set(roots.map((root) => join(root, "vulkan/icd.d")))];
}

/** The manifests that a path of the search list stands for: itself, or a folder's json files. */
function listManifests(path: string): string[] {
  if (path.endsWith(".json")) return [path];
  try {
    return readdirSync(path).filter((name) => name.endsWith(".json")).sort()
      .map((name) => join(path, name));
  } catch {
    return [];
  }
}

/** The library that a manifest names, or undefined if the file is unreadable or no manifest. */
function readManifest(path: string): string | undefined {
  try {
    const manifest: { ICD?: { library_path?: unknown } } = JSON.parse(readFileSync(path, "utf8"));
    const library = manifest.ICD?.library_path;
    if (typeof library !== "string") return undefined;
    return library.includes("/") ? resolve(dirname(path), library) : library;
  } catch {
    return undefined;
  }
}

/**
 * Whether a driver's library exists: by path, or by name where the dynamic linker looks. The file
 * is not opened, because Mesa's drivers pull in LLVM and would cost every start of the program.
 */
function libraryExists(library: string): boolean {
  if (library.includes("/")) return existsSync(library);
  const folders = [...(process.env.LD_LIBRARY_PATH ?? "").split(":"), "/lib", "/usr/lib"];
  if (folders.some((folder) => folder !== "" && existsSync(join(folder, library)))) return true;
  const cache = "/etc/ld.so.cache";
  // Without a cache (musl, NixOS) the linker's paths are unknown: believe the manifest.
  return !existsSync(cache) || readFileSync(cache).includes(`${library}\0`);
}

/** SwiftShader's archive, if the npm package that ships it is installed for this processor. */
function findSwiftShader(): string | undefined {
  if (process.arch !== "x64") return undefined;
  const from = [import.meta.url, join(process.cwd(), "package.json")];
  for (const place of from) {
    try {
      const entry = createRequire(place).resolve("@sparticuz/chromium");
      const archive = resolve(dirname(entry), "../bin/swiftshader.tar.br");
      if (existsSync(archive)) return archive;
    } catch {
      continue;
    }
  }
  return undefined;
}

/**
 * Unpacks SwiftShader once per user and archive, and returns the folder. The folder is filled under
 * a temporary name and renamed, so that processes starting together never see half of it.
 */
function unpackSwiftShader(archive: string): string {
  const packed = readFileSync(archive);
  const hash = createHash("sha256").update(packed).digest("hex").slice(0, 12);
  const user = process.getuid?.();
  const folder = join(tmpdir(), `framezero-swiftshader-${user}-${hash}`);
  // Temporary folders are shared ground and get swept: others' files must not be loaded, and
  // files of ours may have gone.
  const isReady = () =>
    lstatSync(folder, { throwIfNoEntry: false })?.uid === user &&
    SWIFTSHADER_FILES.every((name) => existsSync(join(folder, name)));
  if (isReady()) return folder;
  const draft = mkdtempSync(`${folder}-`);
  for (const [path, bytes] of readTar(brotliDecompressSync(packed))) {
    const name = basename(path);
    if (SWIFTSHADER_FILES.includes(name)) writeFileSync(join(draft, name), bytes);
  }
  try {
    renameSync(draft, folder);
  } catch {
    if (!isReady()) return draft;
    rmSync(draft, { recursive: true });
  }
  return folder;
}

function readDistribution(): string {
  try {
    const lines = readFileSync("/etc/os-release", "utf8").split("\n");
    return lines.filter((line) => /^ID(_LIKE)?=/.test(line))
      .map((line) => line.replace(/^\w+=/, "").replaceAll('"', "")).join(" ");
  } catch {
    return "";
  }
}
