/**
 * The process of one contender: opens a library, prepares problems and runs them, as JSON lines on
 * standard input say. It does nothing, and so takes no time from others, unless it is asked.
 *
 * @module
 */

import { writeFile } from "node:fs/promises";
import process from "node:process";
import { createInterface } from "node:readline";
import { describeRuntime, findGpu } from "../../core/runtime.ts";
import type { Library, OpenLibrary, Place, Prepared } from "./library.ts";
import { type Failed, type Made, MARK, type Opened, type Reply, type Request } from "./protocol.ts";

/** A library that cannot be loaded must not keep others from it. */
const LIBRARIES: Readonly<Record<string, () => Promise<OpenLibrary>>> = {
  "framezero": async () => (await import("./framezero.ts")).openFramezero,
  "jax-js": async () => (await import("./jax.ts")).openJax,
  "tfjs": async () => (await import("./tfjs.ts")).openTfjs,
  "onnxruntime-web": async () => (await import("./onnxruntime.ts")).openOnnxruntimeWeb,
  "onnxruntime-node": async () => (await import("./onnxruntime.ts")).openOnnxruntimeNode,
  "onnxruntime-node CPU": async () => (await import("./onnxruntime.ts")).openOnnxruntimeCpu,
};

let library: Library | undefined;
let prepared: Prepared | undefined;

/** What devices complained of: a refused command takes no time and gives no exception. */
const complaints: string[] = [];

async function answer(request: Request): Promise<Reply> {
  if (request.ask === "open") return await open(request.library, request.place);
  if (request.ask === "prepare") return await prepare(request);
  const start = performance.now();
  await prepared?.run(request.calls);
  const milliseconds = performance.now() - start;
  checkComplaints();
  return { milliseconds };
}

function checkComplaints(): void {
  const [first] = complaints.splice(0);
  if (first) throw new Error(`WebGPU refused a command: ${first}`);
}

async function open(name: string, place: Place): Promise<Opened> {
  const adapter = name.endsWith("CPU") ? "CPU" : await offerGpu(place);
  const openLibrary = await LIBRARIES[name]();
  library = await openLibrary(place);
  const { version, setting } = library;
  return { version, setting, runtime: describeRuntime(), adapter };
}

/** Makes the adapter's WebGPU the runtime's own, where other libraries look for it. */
async function offerGpu({ gpu: choice }: Place): Promise<string> {
  const { gpu, description } = await findGpu(choice);
  listen(gpu);
  if (globalThis.navigator === undefined) {
    Object.defineProperty(globalThis, "navigator", {
      value: { userAgent: "", gpu },
    });
  } else if (navigator.gpu !== gpu) {
    Object.defineProperty(navigator, "gpu", { value: gpu });
  }
  return description;
}

function listen(gpu: GPU): void {
  const requestAdapter = gpu.requestAdapter.bind(gpu);
  gpu.requestAdapter = async (options) => {
    const adapter = await requestAdapter(options);
    const requestDevice = adapter?.requestDevice.bind(adapter);
    if (!adapter || !requestDevice) return adapter;
    adapter.requestDevice = async (descriptor) => {
      const device = await requestDevice(descriptor);
      device.addEventListener("uncapturederror", (event) => {
        const { error } = event as GPUUncapturedErrorEvent;
        complaints.push(error.message.split("\n", 1)[0]);
      });
      return device;
    };
    return adapter;
  };
}

async function prepare(
  { problem, plain, file }: Extract<Request, { ask: "prepare" }>,
): Promise<Made> {
  prepared?.dispose();
  prepared = undefined;
  if (!library) throw new Error("no library is open");
  prepared = await library.prepare(problem, plain);
  const result = await prepared.result();
  checkComplaints();
  await writeFile(file, result);
  const { note = "", hasPlain = false } = prepared;
  return { note, hasPlain };
}

// What libraries print must not be taken for an answer.
console.log = console.info = console.debug = console.error;

for await (const line of createInterface({ input: process.stdin })) {
  let reply: Reply | Failed;
  try {
    reply = await answer(JSON.parse(line) as Request);
  } catch (error) {
    // onnxruntime throws numbers.
    reply = { error: error instanceof Error ? error.message : String(error) };
  }
  process.stdout.write(`${MARK}${JSON.stringify(reply)}\n`);
}
process.exit();
