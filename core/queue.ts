/**
 * From dispatches to submissions: pipelines and bind groups are cached, dispatches are batched into
 * one compute pass, and a stretch of work can be recorded and replayed.
 *
 * @module
 */

import type { DeviceInfo } from "./device.ts";
import { GpuError } from "./errors.ts";
import { IMMEDIATE_BYTES, setImmediates } from "./immediates.ts";
import type { Dispatch } from "./kernel.ts";
import type { Profiler } from "./profiler.ts";
import { collectGarbage, runtime } from "./runtime.ts";
import { folded, packParams, shaderKey, shaderText, UNIFORM_BYTES } from "./shader.ts";
import type { Storage } from "./tensor.ts";

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
  readonly bindings: readonly GPUBufferBinding[];
  /** Where windows begin in their buffers: they share a bind group, as the uniforms do. */
  readonly offsets: readonly number[];
  readonly storages: readonly Storage[];
  readonly hasParams: boolean;
  readonly params: Dispatch["params"];
  readonly workgroups: readonly [number, number, number];
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
  readonly #immediates: boolean;
  readonly #fail: (error: GpuError) => void;
  readonly #pipelines = new Map<string, Pipeline>();
  readonly #layouts = new Map<string, Layout>();
  readonly #bindGroups = new Map<string, GPUBindGroup>();
  #dropped = 0;
  readonly #ids = new WeakMap<GPUBuffer, number>();
  #nextId = 0;
  readonly #uniforms: GPUBuffer;
  readonly #uniformBytes = new Uint8Array(BATCH * UNIFORM_BYTES);
  #encoder: GPUCommandEncoder | null = null;
  #pass: GPUComputePassEncoder | null = null;
  #pending = 0;
  #pendingBuffers = new Set<GPUBuffer>();
  #checks: Promise<void>[] = [];
  /** Where commands go while a plan is being recorded. */
  recording: Command[] | null = null;
  /** Measures each dispatch while set. */
  profiler: Profiler | null = null;
  /** Dispatches and submissions so far. */
  readonly counts = { dispatches: 0, submissions: 0 };

  /** `fail` takes errors that arrive asynchronously. */
  constructor(
    gpu: GPUDevice,
    { software, immediates }: Pick<DeviceInfo, "software" | "immediates">,
    fail: (error: GpuError) => void,
  ) {
    this.#gpu = gpu;
    this.#software = software;
    this.#immediates = immediates;
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
    const bindings: GPUBufferBinding[] = [];
    const offsets: number[] = [];
    const storages: Storage[] = [];
    const limit = this.#gpu.limits.maxStorageBufferBindingSize;
    for (const group of [dispatch.read, dispatch.write]) {
      for (const name in group) {
        const { tensor, range, uniform } = group[name];
        const { buffer } = tensor.storage;
        const offset = tensor.offset + (range?.offset ?? 0);
        if (uniform) {
          bindings.push({ buffer, offset: 0, size: range?.size });
          offsets.push(offset);
          storages.push(tensor.storage);
          continue;
        }
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
    return { pipeline, layout, bindings, offsets, storages, hasParams, params, workgroups };
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
    // Sizes of windows are named because wgpu, which otherwise compares them at each dispatch,
    // takes the size of an earlier window for that of the present one.
    const window = (minBindingSize: number) =>
      ({ type: "uniform", hasDynamicOffset: true, minBindingSize }) as const;
    const buffers: GPUBufferBindingLayout[] = [
      ...Object.values(read).map(({ uniform }) =>
        uniform ? window(16 * uniform) : { type: "read-only-storage" as const }
      ),
      ...Object.values(write).map(() => ({ type: "storage" as const })),
      ...(Object.keys(params).length > 0 ? [window(UNIFORM_BYTES)] : []),
    ];
    const key = buffers.map(({ type, minBindingSize }) => type + String(minBindingSize)).join();
    const found = this.#layouts.get(key);
    if (found) return found;
    const bind = this.#gpu.createBindGroupLayout({
      entries: buffers.map((buffer, binding) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer,
      })),
    });
    const pipeline = this.#gpu.createPipelineLayout({
      bindGroupLayouts: [bind],
      immediateSize: this.#immediates ? IMMEDIATE_BYTES : 0,
    });
    const made = { key, bind, pipeline };
    this.#layouts.set(key, made);
    return made;
  }

  /**
   * The bind group of a command, made once in each set of `known` ones: commands that differ in the
   * places of their windows and parameters only share it. A driver may take a page of memory for
   * each, and a large model has tens of thousands of windows.
   */
  bindGroup(command: Command, uniforms: GPUBuffer, known: Map<string, GPUBindGroup>): GPUBindGroup {
    const { layout, bindings, hasParams } = command;
    let key = hasParams ? `${layout.key}|${this.#id(uniforms)}` : layout.key;
    for (const { buffer, offset, size } of bindings) {
      key += `|${this.#id(buffer)},${offset},${size}`;
    }
    const found = known.get(key);
    if (found) return found;
    const entries: GPUBindGroupEntry[] = bindings.map((resource, binding) => ({
      binding,
      resource,
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

  #id(buffer: GPUBuffer): number {
    let id = this.#ids.get(buffer);
    if (id === undefined) this.#ids.set(buffer, id = ++this.#nextId);
    return id;
  }

  #encode(command: Command): void {
    const slot = this.#pending * UNIFORM_BYTES;
    if (command.hasParams) {
      packParams(command.params, new DataView(this.#uniformBytes.buffer, slot, UNIFORM_BYTES));
    }
    for (const { buffer } of command.bindings) this.#pendingBuffers.add(buffer);
    if (this.#bindGroups.size >= BIND_GROUPS) {
      this.#bindGroups.clear();
      this.dropped(BIND_GROUPS);
    }
    const bindGroup = this.bindGroup(command, this.#uniforms, this.#bindGroups);
    this.run(command, bindGroup, dynamicOffsets(command, slot));
  }

  /** Encodes a command whose uniforms are in place; `offsets` as {@link dynamicOffsets} says. */
  run(command: Command, bindGroup: GPUBindGroup, offsets: number[]): void {
    const pass = this.#openPass();
    pass.setPipeline(command.pipeline);
    pass.setBindGroup(0, bindGroup, offsets);
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
    if (this.#immediates) setImmediates(this.#pass);
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

  /** Marks a buffer as touched by work that is not submitted yet. */
  touch(buffer: GPUBuffer): void {
    this.#pendingBuffers.add(buffer);
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

/** Where the windows and the parameters of a command begin, in the order of its bindings. */
export function dynamicOffsets({ offsets, hasParams }: Command, slot: number): number[] {
  return hasParams ? [...offsets, slot] : [...offsets];
}
