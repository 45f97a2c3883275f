/**
 * Plans: work that was recorded once and can be run again without passing through the operations.
 *
 * Every denoising step enqueues the same dispatches on the same buffers; a plan keeps them with
 * their bind groups and uniforms. What changes between runs travels in the recorded inputs: write
 * to them (`device.write`, `assign`) before each run.
 *
 * @module
 */

import type { Command, CommandQueue, TexelCopy } from "./queue.ts";
import { packParams, UNIFORM_BYTES } from "./shader.ts";
import { releaseStorage, type Storage, type Tensor } from "./tensor.ts";

/** A recorded stretch of work. */
export class Plan<Result> implements Disposable {
  /** What the recorded function returned; its tensors are filled anew by each run. */
  readonly result: Result;
  readonly #queue: CommandQueue;
  readonly #steps: (TexelCopy | { command: Command; bindGroup: GPUBindGroup; slot: number })[];
  readonly #uniforms: GPUBuffer;
  readonly #storages: Set<Storage>;
  readonly #made: Tensor[];
  readonly #free: () => void;

  /** Made by `device.record`. `made` are the tensors that the plan owns, `free` their buffers. */
  constructor(
    gpu: GPUDevice,
    queue: CommandQueue,
    commands: readonly (Command | TexelCopy)[],
    result: Result,
    made: Tensor[],
    free: () => void,
  ) {
    this.result = result;
    this.#queue = queue;
    this.#made = made;
    this.#free = free;
    const bytes = new Uint8Array(Math.max(1, commands.length) * UNIFORM_BYTES);
    commands.forEach((command, i) => {
      if ("texels" in command) return;
      packParams(command.params, new DataView(bytes.buffer, i * UNIFORM_BYTES, UNIFORM_BYTES));
    });
    this.#uniforms = gpu.createBuffer({
      size: bytes.length,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
    });
    gpu.queue.writeBuffer(this.#uniforms, 0, bytes);
    const bindGroups = new Map<string, GPUBindGroup>();
    this.#steps = commands.map((command, i) =>
      "texels" in command ? command : {
        command,
        bindGroup: queue.bindGroup(command, this.#uniforms, bindGroups),
        slot: i * UNIFORM_BYTES,
      }
    );
    // Storages without a holder are intermediate: their buffers stay in the arena.
    const used = commands.flatMap((command) => command.storages);
    this.#storages = new Set(used.filter((storage) => storage.references > 0));
    for (const storage of this.#storages) storage.references++;
  }

  /** Number of shader runs. */
  get dispatches(): number {
    return this.#steps.filter((step) => "command" in step).length;
  }

  /** Enqueues the recorded work once more. */
  run(): void {
    for (const step of this.#steps) {
      if ("texels" in step) {
        this.#queue.runCopy(step);
        continue;
      }
      this.#queue.touch(step.command);
      this.#queue.run(step.command, step.bindGroup, step.slot);
    }
  }

  /** Frees everything that the plan owns, its result included. */
  dispose(): void {
    this.#queue.flush();
    for (const tensor of this.#made) tensor.dispose();
    for (const storage of this.#storages) releaseStorage(storage);
    this.#storages.clear();
    const bindGroups = new Set(
      this.#steps.flatMap((step) => "bindGroup" in step ? [step.bindGroup] : []),
    ).size;
    this.#steps.length = 0;
    this.#uniforms.destroy();
    this.#free();
    this.#queue.dropped(bindGroups);
  }

  /** Same as {@link Plan.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
