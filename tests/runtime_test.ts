import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { brotliCompressSync } from "node:zlib";
import fc from "fast-check";
import { GpuError } from "../core/errors.ts";
import {
  describeRuntime,
  type FailedSearch,
  findGpu,
  type FoundGpu,
  noGpuMessage,
  runtime,
} from "../core/runtime.ts";
import {
  adviseDrivers,
  applyDriver,
  chooseDriver,
  describeFacts,
  gatherFacts,
  type NativeHost,
  readTar,
  type VulkanDriver,
  type VulkanFacts,
} from "../core/software_vulkan.ts";

const userDriverFiles = process.env.VK_DRIVER_FILES || process.env.VK_ICD_FILENAMES || undefined;

const llvmpipe: VulkanDriver = {
  manifest: "/usr/share/vulkan/icd.d/lvp_icd.json",
  library: "libvulkan_lvp.so",
  usable: true,
  software: true,
};
const radeon: VulkanDriver = {
  manifest: "/usr/share/vulkan/icd.d/radeon_icd.json",
  library: "libvulkan_radeon.so",
  usable: true,
  software: false,
};
const bare: VulkanFacts = {
  loader: false,
  searched: ["/etc/vulkan/icd.d"],
  drivers: [],
  swiftShader: "/packages/swiftshader.tar.br",
  distribution: "ubuntu debian",
};
const equipped: VulkanFacts = { ...bare, loader: true, drivers: [radeon, llvmpipe] };

/** A host that only notes what it is told. */
function recordingHost(libraries: readonly string[]): NativeHost & { log: string[] } {
  const log: string[] = [];
  return {
    log,
    openLibrary(path) {
      log.push(`open ${path}`);
      return libraries.includes(path) ? () => log.push(`close ${path}`) : undefined;
    },
    setVariable: (name, value) => log.push(`${name}=${value}`),
  };
}

/** A ustar archive with the given regular files. */
function tar(files: Record<string, string>): Uint8Array {
  const blocks: Uint8Array[] = [];
  for (const [path, text] of Object.entries(files)) {
    const body = Buffer.from(text);
    const header = Buffer.alloc(512);
    const slash = path.length > 99 ? path.lastIndexOf("/") : -1;
    header.write(path.slice(slash + 1), 0);
    if (slash >= 0) header.write(path.slice(0, slash), 345);
    header.write(body.length.toString(8).padStart(11, "0"), 124);
    header.write("0", 156);
    header.write("ustar\x0000", 257);
    blocks.push(header, body, Buffer.alloc((512 - body.length % 512) % 512));
  }
  return Buffer.concat([...blocks, Buffer.alloc(1024)]);
}

/** Doubles four numbers on the adapter. */
async function double({ adapter }: FoundGpu, values: number[]): Promise<number[]> {
  const device = await adapter.requestDevice();
  const code = `@group(0) @binding(0) var<storage, read_write> x: array<f32>;
    @compute @workgroup_size(4) fn main(@builtin(global_invocation_id) id: vec3u) {
      x[id.x] *= 2.0;
    }`;
  const pipeline = device.createComputePipeline({
    layout: "auto",
    compute: { module: device.createShaderModule({ code }) },
  });
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
  const buffer = device.createBuffer({ size: 16, usage: STORAGE | COPY_SRC | COPY_DST });
  const staging = device.createBuffer({ size: 16, usage: MAP_READ | COPY_DST });
  device.queue.writeBuffer(buffer, 0, new Float32Array(values));
  const layout = pipeline.getBindGroupLayout(0);
  const group = device.createBindGroup({ layout, entries: [{ binding: 0, resource: { buffer } }] });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, group);
  pass.dispatchWorkgroups(1);
  pass.end();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, 16);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const doubled = [...new Float32Array(staging.getMappedRange())];
  staging.unmap();
  device.destroy();
  return doubled;
}

test("a working system driver is left alone", () => {
  assert.deepEqual(chooseDriver(equipped, false), { use: "system" });
});

test("the software choice keeps only the drivers that compute on the CPU", () => {
  const choice = { use: "manifests", manifests: [llvmpipe.manifest] };
  assert.deepEqual(chooseDriver(equipped, true), choice);
});

test("SwiftShader steps in without a loader, a driver, or a driver's library", () => {
  const swiftshader = { use: "swiftshader", archive: bare.swiftShader };
  const lost = { ...equipped, drivers: [{ ...llvmpipe, usable: false }] };
  assert.deepEqual(chooseDriver(bare, false), swiftshader);
  assert.deepEqual(chooseDriver({ ...equipped, loader: false }, false), swiftshader);
  assert.deepEqual(chooseDriver(lost, false), swiftshader);
  assert.deepEqual(chooseDriver({ ...equipped, drivers: [radeon] }, true), swiftshader);
});

test("a choice never names a driver that cannot be used", () => {
  const driver = fc.record({
    manifest: fc.string(),
    library: fc.string(),
    usable: fc.boolean(),
    software: fc.boolean(),
  });
  const facts = fc.record({
    loader: fc.boolean(),
    searched: fc.constant([]),
    drivers: fc.array(driver, { maxLength: 4 }),
    swiftShader: fc.option(fc.string(), { nil: undefined }),
    distribution: fc.string(),
  });
  fc.assert(fc.property(facts, fc.boolean(), (facts, softwareOnly) => {
    const choice = chooseDriver(facts, softwareOnly);
    const working = facts.drivers.filter((driver) => facts.loader && driver.usable);
    if (choice.use === "system") assert.ok(!softwareOnly && working.length > 0);
    if (choice.use === "manifests") {
      const software = working.filter((driver) => driver.software);
      assert.deepEqual(choice.manifests, software.map((driver) => driver.manifest));
      assert.ok(softwareOnly && software.length > 0);
    }
    if (choice.use === "swiftshader") assert.equal(choice.archive, facts.swiftShader);
    if (choice.use === "nothing") assert.equal(facts.swiftShader, undefined);
  }));
});

test("a choice of manifests sets both variables, and the system's choice resets them", () => {
  const host = recordingHost([]);
  applyDriver({ use: "manifests", manifests: ["/a.json", "/b.json"] }, equipped, host);
  applyDriver({ use: "system" }, equipped, host);
  assert.deepEqual(host.log, [
    "VK_DRIVER_FILES=/a.json:/b.json",
    "VK_ICD_FILENAMES=/a.json:/b.json",
    `VK_DRIVER_FILES=${userDriverFiles}`,
    `VK_ICD_FILENAMES=${userDriverFiles}`,
  ]);
});

test("SwiftShader is unpacked once, and its loader opened only where there is none", () => {
  const room = mkdtempSync(join(tmpdir(), "framezero-test-"));
  const archive = join(room, "swiftshader.tar.br");
  const files = {
    "libEGL.so": "not needed",
    "libvulkan.so.1": `loader for ${room}`,
    "libvk_swiftshader.so": "driver",
    "vk_swiftshader_icd.json": "{}",
  };
  writeFileSync(archive, brotliCompressSync(tar(files)));
  const host = recordingHost([]);
  applyDriver({ use: "swiftshader", archive }, bare, host);
  applyDriver({ use: "swiftshader", archive }, equipped, host);
  const folder = dirname(host.log[0].replace("open ", ""));
  try {
    const manifest = join(folder, "vk_swiftshader_icd.json");
    const variables = [`VK_DRIVER_FILES=${manifest}`, `VK_ICD_FILENAMES=${manifest}`];
    const loader = join(folder, "libvulkan.so.1");
    assert.deepEqual(host.log, [`open ${loader}`, ...variables, ...variables]);
    assert.equal(readFileSync(loader, "utf8"), files["libvulkan.so.1"]);
    assert.equal(existsSync(join(folder, "libEGL.so")), false);

    rmSync(loader);
    applyDriver({ use: "swiftshader", archive }, bare, host);
    const repaired = host.log[5].replace("open ", "");
    assert.equal(readFileSync(repaired, "utf8"), files["libvulkan.so.1"]);
    rmSync(dirname(repaired), { recursive: true });
  } finally {
    rmSync(folder, { recursive: true, force: true });
    rmSync(room, { recursive: true });
  }
});

test("the machine's facts name existing manifests and close the loader again", () => {
  const host = recordingHost(["libvulkan.so.1"]);
  const facts = gatherFacts(host);
  assert.deepEqual(host.log, ["open libvulkan.so.1", "close libvulkan.so.1"]);
  assert.equal(facts.loader, true);
  assert.equal(gatherFacts(recordingHost([])).loader, false);
  assert.ok(facts.searched.length > 0);
  for (const driver of facts.drivers) assert.ok(existsSync(driver.manifest), driver.manifest);
});

test("a tar archive gives back its files, also with long paths", () => {
  const path = `${"folder/".repeat(16)}file.txt`;
  const files = { "a.txt": "alpha", "empty": "", [path]: "x".repeat(512), "b.txt": "beta" };
  const read = [...readTar(tar(files))].map(([name, bytes]) => [name, Buffer.from(bytes) + ""]);
  assert.deepEqual(Object.fromEntries(read), files);
});

test("a tar entry that reaches past the end is refused", () => {
  const broken = tar({ "a.txt": "alpha" });
  broken.set(Buffer.from("77777777777"), 124);
  assert.throws(() => readTar(broken), /"a\.txt" claims 8589934591 bytes at offset 512 of 2048/);
  broken.set(Buffer.from("?"), 124);
  assert.throws(() => readTar(broken), RangeError);
});

test("advice follows from what is missing", () => {
  const apt = "sudo apt-get install mesa-vulkan-drivers libvulkan1";
  assert.deepEqual(adviseDrivers(bare), [apt]);
  assert.match(adviseDrivers({ ...bare, distribution: "fedora" })[0], /^sudo dnf install/);
  assert.match(adviseDrivers({ ...bare, distribution: "nixos" })[0], /elsewhere/);
  const [first, second] = adviseDrivers({ ...equipped, swiftShader: undefined });
  assert.match(first, /^Mesa 24 or newer/);
  assert.match(second, /^npm install @sparticuz\/chromium/);
});

test("the message of a failed search says what was looked for and what helps", () => {
  const search: FailedSearch = {
    choice: "auto",
    description: "Bun 1.4.5 on linux x64",
    platform: "linux",
    hasNative: false,
    dawnProblem: "Cannot find package 'webgpu'",
    vulkan: { found: describeFacts(bare), advice: adviseDrivers(bare) },
  };
  assert.equal(
    noGpuMessage(search),
    `A WebGPU adapter is needed, and none was found for the choice "auto".
  Runtime: Bun 1.4.5 on linux x64
  navigator.gpu: not in this runtime
  Dawn (npm webgpu): Cannot find package 'webgpu'
  Vulkan loader libvulkan.so.1: not found
  Vulkan drivers: none in /etc/vulkan/icd.d
  SwiftShader (npm @sparticuz/chromium): /packages/swiftshader.tar.br
What helps:
  npm install webgpu
  sudo apt-get install mesa-vulkan-drivers libvulkan1`,
  );
  const drivers = [radeon, { ...llvmpipe, usable: false }];
  assert.match(describeFacts({ ...equipped, drivers }), /libvulkan_lvp\.so, which is missing\)/);
});

test("each platform gets its own help", () => {
  const search = { choice: "auto", description: "", hasNative: true } as const;
  assert.match(noGpuMessage({ ...search, platform: "web" }), /https or from localhost/);
  assert.doesNotMatch(noGpuMessage({ ...search, platform: "web" }), /Dawn|npm/);
  assert.match(noGpuMessage({ ...search, platform: "win32" }), /Direct3D 12/);
  assert.match(noGpuMessage({ ...search, platform: "darwin" }), /update macOS/);
  assert.match(noGpuMessage({ ...search, platform: "linux" }), /deno run -A/);
  const dawn = noGpuMessage({ ...search, choice: "dawn", platform: "linux" });
  assert.match(dawn, /npm webgpu\): no adapter/);
  assert.doesNotMatch(dawn, /navigator/);
});

test("the runtime knows its name", () => {
  assert.match(describeRuntime().toLowerCase(), new RegExp(`^${runtime} \\d+\\.\\d+\\.\\d+`));
});

for (const choice of ["auto", "dawn"] as const) {
  test(`the choice "${choice}" finds an adapter that computes`, async () => {
    const found = await findGpu(choice);
    const native = choice === "auto" && runtime === "deno";
    assert.equal(found.implementation, native ? "native" : "dawn");
    assert.notEqual(found.description, "");
    assert.deepEqual(await double(found, [1, 2, 3, -4]), [2, 4, 6, -8]);
  });
}

test('the choice "software" computes on the CPU (macOS has no such adapter)', async () => {
  if (process.platform === "darwin") return assert.rejects(findGpu("software"), GpuError);
  const found = await findGpu("software");
  assert.equal(found.software, true);
  assert.deepEqual(await double(found, [1, 2, 3, -4]), [2, 4, 6, -8]);
});

test('the choice "native" is refused where the runtime has no WebGPU', async () => {
  if (runtime === "deno") {
    assert.equal((await findGpu("native")).implementation, "native");
  } else {
    await assert.rejects(findGpu("native"), { name: "GpuError", message: /the choice "auto"/ });
  }
});

test("Dawn's objects of repeated searches share one kept instance", async () => {
  const [first, second] = [await findGpu("dawn"), await findGpu("dawn")];
  const experimental = await findGpu("dawn", { experimental: true });
  assert.equal(first.gpu, second.gpu);
  assert.notEqual(first.gpu, experimental.gpu);
});

test("a process without Vulkan drivers gets SwiftShader if it is installed", () => {
  const url = new URL("../core/runtime.ts", import.meta.url).href;
  const code = `const { findGpu } = await import("${url}");
    console.log(await findGpu().then((found) => found.description, (error) => error.message));`;
  const { stdout } = spawnSync(process.execPath, [runtime === "deno" ? "eval" : "-e", code], {
    env: { ...process.env, VK_DRIVER_FILES: "/nonexistent", VK_ICD_FILENAMES: "" },
    encoding: "utf8",
  });
  const installed = gatherFacts(recordingHost([])).swiftShader !== undefined;
  const onLinux = process.platform === "linux";
  assert.match(stdout, onLinux && installed ? /^SwiftShader/ : /\S/);
});
