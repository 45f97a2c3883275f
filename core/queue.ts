/**
 * From dispatches to submissions: pipelines and bind groups are cached, dispatches are batched into
 * one compute pass, and a stretch of work can be recorded and replayed.
 *
 * @module
 */

import type { DeviceInfo } from "./adapter.ts";
import { GpuError } from "./errors.ts";
import type { Dispatch } from "./kernel.ts";
import type { Profiler } from "./profiler.ts";
import { collectGarbage, runtime } from "./runtime.ts";
import { folded, packParams, shaderKey, shaderText, UNIFORM_BYTES } from "./shader.ts";
import type { Storage, Tensor } from "./tensor.ts";
import { copyTexels, type Texels } from "./texels.ts";

/** Dispatches in one submission: enough to hide its cost, few enough to start the GPU early. */
export const BATCH = 128;

/** Bind groups kept for reuse. */
const BIND_GROUPS = 8192;

/**
 * Bind groups that may wait to be collected: the software driver maps a page for each, of which a
 * process has 65,530, and thousands show in the resident set. Bun, which collects everything at once,
 * is asked less often.
 */
const MOST_DROPPED = runtime === "bun" ? 8192 : 2048;

/** A dispatch that is ready to be encoded, all but its bind group. */
export interface Command {
  readonly pipeline: GPUComputePipeline;
  readonly layout: Layout;
  readonly bindings: readonly (GPUBufferBinding | GPUTexture)[];
  readonly storages: readonly Storage[];
  readonly hasParams: boolean;
  readonly params: Dispatch["params"];
  readonly workgroups: readonly [number, number, number];
}

/** A copy that is ready to be encoded. */
export interface TexelCopy {
  readonly texels: Texels;
  readonly storages: readonly [Storage];
  readonly offset: number;
  readonly bytes: number;
}

interface Layout {
  readonly key: string;
  readonly bind: GPUBindGroupLayout;
  readonly pipeline: GPUPipelineLayout;
}

interface Pipeline {
  readonly pipeline: GPUComputePipeline;
  readonly layout: Layout;
}

/** The command stream of one device. */
export class CommandQueue {
  readonly #gpu: GPUDevice;
  readonly #software: boolean;
  readonly #fail: (error: GpuError) => void;
  readonly #pipelines = new Map<string, Pipeline>();
  readonly #layouts = new Map<string, Layout>();
  readonly #bindGroups = new Map<string, GPUBindGroup>();
  #dropped = 0;
  readonly #ids = new WeakMap<GPUBuffer | GPUTexture, number>();
  readonly #views = new WeakMap<GPUTexture, GPUTextureView>();
  #nextId = 0;
  readonly #uniforms: GPUBuffer;
  readonly #uniformBytes = new Uint8Array(BATCH * UNIFORM_BYTES);
  #encoder: GPUCommandEncoder | null = null;
  #pass: GPUComputePassEncoder | null = null;
  #pending = 0;
  #pendingBuffers = new Set<GPUBuffer>();
  #checks: Promise<void>[] = [];
  /** Where commands go while a plan is being recorded. */
  recording: (Command | TexelCopy)[] | null = null;
  /** Measures each dispatch while set. */
  profiler: Profiler | null = null;
  /** Dispatches and submissions so far. */
  readonly counts = { dispatches: 0, submissions: 0 };

  /** `fail` takes errors that arrive asynchronously. */
  constructor(
    gpu: GPUDevice,
    software: DeviceInfo["software"],
    fail: (error: GpuError) => void,
  ) {
    this.#gpu = gpu;
    this.#software = software;
    this.#fail = fail;
    this.#uniforms = gpu.createBuffer({
      size: BATCH * UNIFORM_BYTES,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
    });
  }

  /** Number of compiled pipelines. */
  get pipelines(): number {
    return this.#pipelines.size;
  }

  /** Enqueues, or records, a dispatch. */
  dispatch(kernel: string, dispatch: Dispatch): void {
    const limit = this.#gpu.limits.maxComputeWorkgroupsPerDimension;
    if (dispatch.workgroups.some((n) => n > limit || n < 1)) {
      throw new GpuError(
        `${kernel}: a dispatch of ${dispatch.workgroups.join("×")} workgroups exceeds the ` +
          `adapter's limit of ${limit} per dimension; use smaller tensors`,
      );
    }
    const command = this.#command(kernel, folded(dispatch, this.#software));
    if (this.recording) this.recording.push(command);
    else this.#encode(command);
  }

  #command(kernel: string, dispatch: Dispatch): Command {
    const { pipeline, layout } = this.#pipeline(kernel, dispatch);
    const bindings: (GPUBufferBinding | GPUTexture)[] = [];
    const storages: Storage[] = [];
    const limit = this.#gpu.limits.maxStorageBufferBindingSize;
    for (const group of [dispatch.read, dispatch.write]) {
      for (const name in group) {
        const binding = group[name];
        if ("texture" in binding) {
          bindings.push(binding.texture);
          continue;
        }
        const { tensor, range } = binding;
        const { buffer } = tensor.storage;
        const offset = tensor.offset + (range?.offset ?? 0);
        // Whole 4-vectors, so that vec4 arrays reach the last elements.
        const whole = Math.ceil((range?.size ?? tensor.bytes) / 16) * 16;
        const size = Math.min(whole, buffer.size - offset);
        if (size > limit) {
          throw new GpuError(
            `${kernel}: ${name} of shape [${tensor.shape}] (${tensor.dtype}, ${size} bytes) is ` +
              `larger than the ${limit} bytes that this adapter binds: use a smaller size, ` +
              `fewer rows at once, or f16`,
          );
        }
        bindings.push({ buffer, offset, size });
        storages.push(tensor.storage);
      }
    }
    const hasParams = Object.keys(dispatch.params).length > 0;
    const { params, workgroups } = dispatch;
    return { pipeline, layout, bindings, storages, hasParams, params, workgroups };
  }

  #pipeline(kernel: string, dispatch: Dispatch): Pipeline {
    const key = shaderKey(kernel, dispatch);
    const found = this.#pipelines.get(key);
    if (found) return found;
    const layout = this.#layout(dispatch);
    const code = shaderText(dispatch);
    this.#gpu.pushErrorScope("validation");
    const pipeline = this.#gpu.createComputePipeline({
      label: key,
      layout: layout.pipeline,
      compute: { module: this.#gpu.createShaderModule({ label: key, code }), entryPoint: "main" },
    });
    this.watch(this.#gpu.popErrorScope(), `the shader of ${key} was refused`);
    const made = { pipeline, layout };
    this.#pipelines.set(key, made);
    return made;
  }

  #layout({ read, write, params }: Dispatch): Layout {
    const entries: Pick<GPUBindGroupLayoutEntry, "buffer" | "storageTexture">[] = [
      ...Object.values(read).map((binding) =>
        "texture" in binding
          ? { storageTexture: { access: "read-only", format: binding.format } as const }
          : { buffer: { type: "read-only-storage" } as const }
      ),
      ...Object.values(write).map(() => ({ buffer: { type: "storage" } as const })),
    ];
    if (Object.keys(params).length > 0) {
      const buffer = { type: "uniform", hasDynamicOffset: true, minBindingSize: UNIFORM_BYTES };
      entries.push({ buffer: buffer as GPUBufferBindingLayout });
    }
    const key = entries.map(({ buffer, storageTexture }) => buffer?.type ?? storageTexture?.format)
      .join();
    const found = this.#layouts.get(key);
    if (found) return found;
    const bind = this.#gpu.createBindGroupLayout({
      entries: entries.map((entry, binding) => ({
        ...entry,
        binding,
        visibility: GPUShaderStage.COMPUTE,
      })),
    });
    const pipeline = this.#gpu.createPipelineLayout({ bindGroupLayouts: [bind] });
    const made = { key, bind, pipeline };
    this.#layouts.set(key, made);
    return made;
  }

  /**
   * The bind group of a command, made once in each set of `known` ones: commands that differ in the
   * places of their parameters only share it. A driver may take a page of memory for each.
   */
  bindGroup(command: Command, uniforms: GPUBuffer, known: Map<string, GPUBindGroup>): GPUBindGroup {
    const { layout, bindings, hasParams } = command;
    let key = hasParams ? `${layout.key}|${this.#id(uniforms)}` : layout.key;
    for (const binding of bindings) {
      key += "format" in binding
        ? `|${this.#id(binding)}`
        : `|${this.#id(binding.buffer)},${binding.offset},${binding.size}`;
    }
    const found = known.get(key);
    if (found) return found;
    const entries: GPUBindGroupEntry[] = bindings.map((bound, binding) => ({
      binding,
      resource: "format" in bound ? this.#view(bound) : bound,
    }));
    if (hasParams) {
      const resource = { buffer: uniforms, offset: 0, size: UNIFORM_BYTES };
      entries.push({ binding: bindings.length, resource });
    }
    const made = this.#gpu.createBindGroup({ layout: layout.bind, entries });
    known.set(key, made);
    return made;
  }

  /** Takes note that so many bind groups are held by nobody any more; they cannot be destroyed. */
  dropped(count: number): void {
    this.#dropped += count;
    if (this.#dropped < MOST_DROPPED) return;
    this.#dropped = 0;
    collectGarbage();
  }

  #id(block: GPUBuffer | GPUTexture): number {
    let id = this.#ids.get(block);
    if (id === undefined) this.#ids.set(block, id = ++this.#nextId);
    return id;
  }

  #view(texture: GPUTexture): GPUTextureView {
    let view = this.#views.get(texture);
    if (!view) this.#views.set(texture, view = texture.createView());
    return view;
  }

  /** Enqueues, or records, the copy of a tensor into texels. */
  copyTexels({ storage, offset, bytes }: Tensor, texels: Texels): void {
    const copy: TexelCopy = { texels, storages: [storage], offset, bytes };
    if (this.recording) this.recording.push(copy);
    else this.runCopy(copy);
  }

  /** Encodes a copy. */
  runCopy({ texels, storages: [{ buffer }], offset, bytes }: TexelCopy): void {
    this.#closePass();
    this.#encoder ??= this.#gpu.createCommandEncoder();
    this.#pendingBuffers.add(buffer);
    this.profiler?.early(this.#encoder);
    copyTexels(this.#encoder, buffer, offset, bytes, texels);
  }

  #encode(command: Command): void {
    const slot = this.#pending * UNIFORM_BYTES;
    if (command.hasParams) {
      packParams(command.params, new DataView(this.#uniformBytes.buffer, slot, UNIFORM_BYTES));
    }
    this.touch(command);
    if (this.#bindGroups.size >= BIND_GROUPS) {
      this.#bindGroups.clear();
      this.dropped(BIND_GROUPS);
    }
    const bindGroup = this.bindGroup(command, this.#uniforms, this.#bindGroups);
    this.run(command, bindGroup, slot);
  }

  /** Encodes a command whose parameters lie at `slot` of the uniforms in its bind group. */
  run(command: Command, bindGroup: GPUBindGroup, slot: number): void {
    const pass = this.#openPass();
    pass.setPipeline(command.pipeline);
    pass.setBindGroup(0, bindGroup, command.hasParams ? [slot] : []);
    pass.dispatchWorkgroups(...command.workgroups);
    this.counts.dispatches++;
    if (this.profiler) this.#closePass();
    if (++this.#pending === BATCH) this.flush();
  }

  #openPass(): GPUComputePassEncoder {
    this.#encoder ??= this.#gpu.createCommandEncoder();
    if (this.#pass) return this.#pass;
    const timestampWrites = this.profiler?.next();
    this.#pass = this.#encoder.beginComputePass(timestampWrites ? { timestampWrites } : {});
    return this.#pass;
  }

  #closePass(): void {
    this.#pass?.end();
    this.#pass = null;
  }

  /** Whether work that is not submitted yet touches the buffer. */
  isPending(buffer: GPUBuffer): boolean {
    return this.#pendingBuffers.has(buffer);
  }

  /** Marks the buffers of a command as touched by work that is not submitted yet. */
  touch({ storages }: Pick<Command, "storages">): void {
    for (const { buffer } of storages) this.#pendingBuffers.add(buffer);
  }

  /** Encodes a copy between buffers after the work so far. */
  copy(from: GPUBuffer, offset: number, to: GPUBuffer, bytes: number): void {
    this.#closePass();
    this.#encoder ??= this.#gpu.createCommandEncoder();
    this.#encoder.copyBufferToBuffer(from, offset, to, 0, bytes);
  }

  /** Submits what has been encoded. Returns whether there was anything. */
  flush(): boolean {
    if (!this.#encoder) return false;
    this.#closePass();
    this.profiler?.resolve(this.#encoder);
    if (this.#pending) {
      this.#gpu.queue.writeBuffer(
        this.#uniforms,
        0,
        this.#uniformBytes,
        0,
        this.#pending * UNIFORM_BYTES,
      );
    }
    this.#gpu.queue.submit([this.#encoder.finish()]);
    this.counts.submissions++;
    this.#encoder = null;
    this.#pending = 0;
    this.#pendingBuffers.clear();
    return true;
  }

  /** Drops the bind groups kept for reuse, before buffers are destroyed. */
  forget(): void {
    this.#bindGroups.clear();
  }

  /** Turns an error scope's result into a failure of the device. */
  watch(scope: Promise<GPUError | null>, what: string): void {
    const check = scope.then(
      (error) => {
        if (error) this.#fail(new GpuError(`${what}: ${error.message}`));
      },
      () => {/* a lost device is reported by its own promise */},
    );
    this.#checks.push(check);
  }

  /** Waits until errors of pipelines made so far have arrived. */
  async settle(): Promise<void> {
    const checks = this.#checks;
    this.#checks = [];
    await Promise.all(checks);
  }
}
