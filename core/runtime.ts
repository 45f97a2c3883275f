/**
 * The JavaScript runtime and its way to a GPU: the only file that knows whether it runs in Deno,
 * Bun, Node or a browser.
 *
 * @module
 */

import { GpuError } from "./errors.ts";
import type { DriverChoice, NativeHost } from "./software_vulkan.ts";

/** The JavaScript runtimes that are told apart. */
export type Runtime = "deno" | "bun" | "node" | "browser";

/** What may be asked for. */
export const GPU_CHOICES = ["auto", "native", "dawn", "software"] as const;

/**
 * Which WebGPU to use: `native` is the runtime's own `navigator.gpu` (Deno, browsers), `dawn` is
 * npm `webgpu` (Bun, Node, also Deno), `auto` takes the first of the two that has an adapter,
 * `software` computes on the CPU even if there is a GPU.
 */
export type GpuChoice = (typeof GPU_CHOICES)[number];

/** Settings of {@link findGpu}. */
export interface GpuOptions {
  /** Let Dawn offer features that are no standard yet, such as subgroup matrices. Default false. */
  readonly experimental?: boolean;
}

/** An adapter and where it came from. */
export interface FoundGpu {
  /** The WebGPU entry point that the adapter belongs to. */
  readonly gpu: GPU;
  /** The adapter; no device has been requested from it yet. */
  readonly adapter: GPUAdapter;
  /** The runtime's own WebGPU, or Dawn from npm `webgpu`. */
  readonly implementation: "native" | "dawn";
  /** Whether the adapter computes on the CPU (llvmpipe, SwiftShader, WARP). */
  readonly software: boolean;
  /** The adapter's name for people, such as `"llvmpipe (LLVM 15.0.6, 256 bits)"`. */
  readonly description: string;
}

/** What the probe for Vulkan drivers says to people. */
export interface VulkanReport {
  /** What was looked for and found, one indented line each. */
  readonly found: string;
  /** What can be done, one command or remark each. */
  readonly advice: readonly string[];
}

/** What a search without result knows; {@link noGpuMessage} turns it into help. */
export interface FailedSearch {
  /** What was asked for. */
  readonly choice: GpuChoice;
  /** The runtime in words, as {@link describeRuntime} gives it. */
  readonly description: string;
  /** The operating system in Node's words (`linux`, `darwin`, `win32`), or `web`. */
  readonly platform: string;
  /** Whether the runtime has a `navigator.gpu`. */
  readonly hasNative: boolean;
  /** Why npm `webgpu` could not be loaded; undefined if it was loaded. */
  readonly dawnProblem?: string;
  /** The Vulkan probe's findings and what can be done about them (Linux). */
  readonly vulkan?: VulkanReport;
}

/** The globals of the four runtimes, as far as they are used here. */
interface Globals {
  readonly Deno?: {
    readonly version: { readonly deno: string };
    readonly permissions: { querySync(query: { name: string }): { readonly state: string } };
    dlopen(path: string, symbols: Record<string, never>): { close(): void };
  };
  readonly process?: {
    readonly versions: Record<string, string | undefined>;
    readonly platform: string;
    readonly arch: string;
    readonly env: Record<string, string | undefined>;
    dlopen(module: { exports: unknown }, path: string, flags: number): void;
    getBuiltinModule?(id: "node:v8"): { setFlagsFromString(flags: string): void };
    getBuiltinModule?(id: "node:vm"): { runInNewContext(code: "gc"): () => void };
  };
  readonly navigator?: { readonly gpu?: GPU; readonly userAgent?: string };
  readonly Bun?: { gc(force: boolean): void };
  readonly gc?: () => void;
}

/** The part of `bun:ffi` that is used here. */
interface BunFfi {
  dlopen(
    path: string,
    symbols: Record<string, { args: string[]; returns: string }>,
  ): { symbols: Record<string, (...args: (Uint8Array | number)[]) => unknown>; close(): void };
}

/** The Vulkan drivers of a Linux machine, ready to be chosen from. */
interface VulkanProbe {
  readonly report: VulkanReport;
  /** Puts a driver into effect for the adapters requested afterwards, and says which. */
  choose(softwareOnly: boolean): DriverChoice["use"];
  /** Puts SwiftShader into effect; false if it is not installed. */
  useSwiftShader(): boolean;
}

const globals = globalThis as unknown as Globals;

/** The runtime that executes this module. */
export const runtime: Runtime = globals.Deno !== undefined
  ? "deno"
  : globals.process?.versions.bun !== undefined
  ? "bun"
  : globals.process?.versions.node !== undefined
  ? "node"
  : "browser";

/** The runtime, its version and its machine, such as `"Deno 2.9.6 on linux x64"`. */
export function describeRuntime(): string {
  const { Deno, process, navigator } = globals;
  const machine = `on ${process?.platform} ${process?.arch}`;
  if (runtime === "deno") return `Deno ${Deno?.version.deno} ${machine}`;
  if (runtime === "bun") return `Bun ${process?.versions.bun} ${machine}`;
  if (runtime === "node") return `Node ${process?.versions.node} ${machine}`;
  return navigator?.userAgent ?? "a browser";
}

/** Collects all garbage; undefined until it is asked for, null where that cannot be had. */
let collector: (() => void) | null | undefined;

/**
 * Collects garbage, outside browsers. The runtimes do not know of the memory behind WebGPU's objects
 * and let tens of thousands of them wait.
 */
export function collectGarbage(): void {
  if (collector === undefined) collector = findCollector();
  collector?.();
}

function findCollector(): (() => void) | null {
  const { Bun, gc, process } = globals;
  if (Bun) return () => Bun.gc(true);
  if (gc) return gc;
  if (!process?.getBuiltinModule) return null;
  // V8 gives its own to contexts that are made under this flag.
  process.getBuiltinModule("node:v8").setFlagsFromString("--expose-gc");
  return process.getBuiltinModule("node:vm").runInNewContext("gc");
}

/**
 * Finds a WebGPU adapter. On Linux it first makes sure that a Vulkan driver is there, and brings
 * SwiftShader where none works.
 *
 * @param choice Which implementation, or which kind of adapter.
 * @throws {GpuError} If no adapter fits; the message says what was looked for and what helps.
 */
export async function findGpu(
  choice: GpuChoice = "auto",
  options: GpuOptions = {},
): Promise<FoundGpu> {
  const softwareOnly = choice === "software";
  const native = choice === "dawn" ? undefined : globals.navigator?.gpu;
  const canDawn = choice !== "native" && runtime !== "browser";
  const vulkan = await probeVulkan();
  const driver = vulkan?.choose(softwareOnly);
  // Dawn on Linux has no fallback adapter to force: there the choice of drivers takes its place.
  const request: GPURequestAdapterOptions = softwareOnly && vulkan === undefined
    ? { forceFallbackAdapter: true }
    : { powerPreference: "high-performance" };
  let dawnProblem: string | undefined;

  const ask = async (
    gpu: GPU,
    implementation: FoundGpu["implementation"],
  ): Promise<FoundGpu | undefined> => {
    const adapter = await gpu.requestAdapter(request);
    if (adapter === null) return undefined;
    const software = isSoftware(adapter.info);
    if (softwareOnly && !software) return undefined;
    return { gpu, adapter, implementation, software, description: describeAdapter(adapter.info) };
  };
  const askDawn = async (): Promise<FoundGpu | undefined> => {
    try {
      return await ask(await openDawn(options.experimental ?? false), "dawn");
    } catch (error) {
      dawnProblem = messageOf(error).split("\n", 1)[0];
      return undefined;
    }
  };

  let found = native && await ask(native, "native");
  if (canDawn) found ??= await askDawn();
  // Drivers that exist may yet give no adapter: their device is absent, or too old for Dawn.
  if (canDawn && !found && driver !== "swiftshader" && vulkan?.useSwiftShader()) {
    found = await askDawn();
  }
  if (found) return found;
  throw new GpuError(noGpuMessage({
    choice,
    description: describeRuntime(),
    platform: runtime === "browser" ? "web" : globals.process?.platform ?? "unknown",
    hasNative: globals.navigator?.gpu !== undefined,
    dawnProblem,
    vulkan: vulkan?.report,
  }));
}

/** The help for a search without result: what is needed, what was found, what to do. */
export function noGpuMessage(search: FailedSearch): string {
  const { choice, description, platform, hasNative, dawnProblem, vulkan } = search;
  const lines = [
    `A WebGPU adapter is needed, and none was found for the choice "${choice}".`,
    `  Runtime: ${description}`,
  ];
  if (choice !== "dawn") {
    lines.push(`  navigator.gpu: ${hasNative ? "no adapter" : "not in this runtime"}`);
  }
  if (choice === "native" && !hasNative) {
    return [...lines, 'What helps: the choice "auto", which also looks for Dawn'].join("\n");
  }
  const help = platformHelp(search);
  if (platform !== "web" && choice !== "native") {
    lines.push(`  Dawn (npm webgpu): ${dawnProblem ?? "no adapter"}`);
    if (dawnProblem !== undefined) help.unshift("npm install webgpu");
  }
  if (vulkan) lines.push(vulkan.found);
  return [...lines, "What helps:", ...help.map((line) => `  ${line}`)].join("\n");
}

function platformHelp({ choice, platform, vulkan }: FailedSearch): string[] {
  if (platform === "web") {
    return [
      "a page served over https or from localhost, in a browser with WebGPU (Chrome or Edge 113,",
      "Safari 26, Firefox 141 or newer); Chrome on Linux: --enable-unsafe-webgpu " +
      "--enable-features=Vulkan",
    ];
  }
  if (platform === "darwin") {
    return [choice === "software" ? 'the choice "auto": macOS has no CPU adapter' : "update macOS"];
  }
  if (platform === "win32") return ["update the graphics driver (Direct3D 12 is needed)"];
  if (vulkan) return [...vulkan.advice];
  return ["deno run -A, so that Vulkan drivers can be looked for (read, write, env, sys, ffi)"];
}

/**
 * Dawn's WebGPU. Its objects die with the GPU object, even while in use, so that one is kept for
 * the life of the process; one for each set of drivers, because it looks for adapters only once.
 */
async function openDawn(experimental: boolean): Promise<GPU> {
  const { create, globals: constants } = await import("webgpu");
  for (const [name, value] of Object.entries(constants)) {
    if (name in globalThis) continue;
    // Like a runtime's own: hidden from enumeration, and other libraries may assign it again.
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }
  const keeper = globalThis as unknown as Record<symbol, Map<string, GPU> | undefined>;
  const kept = keeper[Symbol.for("framezero.dawn")] ??= new Map();
  const enabled = ["vulkan_enable_f16_on_nvidia", ...(experimental ? ["allow_unsafe_apis"] : [])];
  const key = `${enabled} ${globals.process?.env.VK_DRIVER_FILES}`;
  let gpu = kept.get(key);
  if (gpu === undefined) {
    gpu = create([
      `enable-dawn-features=${enabled}`,
      // Timestamps are otherwise rounded to 65.5 µs, longer than most kernels run.
      "disable-dawn-features=timestamp_quantization",
    ]);
    kept.set(key, gpu);
  }
  return gpu;
}

/** Looks for Vulkan drivers; undefined where there is no Vulkan or no permission to look. */
async function probeVulkan(): Promise<VulkanProbe | undefined> {
  if (runtime === "browser" || globals.process?.platform !== "linux") return undefined;
  // To ask would interrupt people who need no probe because their GPU simply works.
  const permissions = ["read", "write", "env", "sys", "ffi"];
  const query = globals.Deno?.permissions;
  if (query && permissions.some((name) => query.querySync({ name }).state !== "granted")) {
    return undefined;
  }
  const { adviseDrivers, applyDriver, chooseDriver, describeFacts, gatherFacts } = await import(
    "./software_vulkan.ts"
  );
  const host = await nativeHost();
  const facts = gatherFacts(host);
  const apply = (choice: DriverChoice) => {
    try {
      applyDriver(choice, facts, host);
    } catch (cause) {
      throw new GpuError(
        `SwiftShader must be unpacked into the temporary folder: ${messageOf(cause)}. ` +
          `Make room there, point TMPDIR elsewhere, or: ${adviseDrivers(facts)[0]}`,
        { cause },
      );
    }
  };
  return {
    report: { found: describeFacts(facts), advice: adviseDrivers(facts) },
    choose(softwareOnly) {
      const choice = chooseDriver(facts, softwareOnly);
      apply(choice);
      return choice.use;
    },
    useSwiftShader() {
      if (facts.swiftShader === undefined) return false;
      apply({ use: "swiftshader", archive: facts.swiftShader });
      return true;
    },
  };
}

/** Opens libraries and sets variables in the process itself, by each runtime's own means. */
async function nativeHost(): Promise<NativeHost> {
  const { Deno, process } = globals;
  const setVariable = (name: string, value: string | undefined) => {
    if (value === undefined) delete process?.env[name];
    else if (process) process.env[name] = value;
  };
  if (Deno) {
    const open = (path: string) => Deno.dlopen(path, {});
    return { openLibrary: (path) => openQuietly(open, path), setVariable };
  }
  if (runtime === "node") {
    return { openLibrary: nodeOpenLibrary, setVariable };
  }
  const specifier: string = "bun:ffi";
  const ffi: BunFfi = await import(specifier);
  const libc = ffi.dlopen("libc.so.6", {
    setenv: { args: ["ptr", "ptr", "i32"], returns: "i32" },
    unsetenv: { args: ["ptr"], returns: "i32" },
  }).symbols;
  const cString = (text: string) => new TextEncoder().encode(`${text}\0`);
  const entry = { vkGetInstanceProcAddr: { args: [], returns: "ptr" } };
  return {
    openLibrary: (path) => openQuietly((name) => ffi.dlopen(name, entry), path),
    // Bun's process.env is its own copy: native code would not see a change of it.
    setVariable(name, value) {
      setVariable(name, value);
      if (value === undefined) libc.unsetenv(cString(name));
      else libc.setenv(cString(name), cString(value), 1);
    },
  };
}

function openQuietly(
  open: (path: string) => { close(): void },
  path: string,
): (() => void) | undefined {
  try {
    const library = open(path);
    return () => library.close();
  } catch {
    return undefined;
  }
}

/**
 * Node opens libraries only as add-ons: it opens the file, finds no add-on inside, closes it and
 * throws. RTLD_NODELETE makes the open file outlive that.
 */
function nodeOpenLibrary(path: string): (() => void) | undefined {
  const RTLD_LAZY = 1, RTLD_NODELETE = 0x1000;
  try {
    globals.process?.dlopen({ exports: {} }, path, RTLD_LAZY | RTLD_NODELETE);
  } catch (error) {
    if (!/self-register/.test(messageOf(error))) return undefined;
  }
  return () => {};
}

function isSoftware(info: GPUAdapterInfo): boolean {
  const names = `${info.vendor} ${info.architecture} ${info.device} ${info.description}`;
  return info.isFallbackAdapter ||
    /llvmpipe|lavapipe|softpipe|swiftshader|basic render|\bwarp\b/i.test(names);
}

function describeAdapter({ description, vendor, architecture, device }: GPUAdapterInfo): string {
  const names = [vendor, architecture, device].filter((name) => name !== "");
  return description || names.join(" ") || "an adapter without a name";
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
