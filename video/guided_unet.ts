/**
 * The denoiser of a clip: UNet and classifier-free guidance, with cross-frame attention, for any
 * number of frames in constant memory.
 *
 * Each step goes over the frames in groups. The first frame comes first and leaves its keys and
 * values behind; the other frames attend to them (Text2Video-Zero, §3.3). What a group computes is
 * recorded once and replayed. Where the device has a memory budget, what can be spared is freed, then
 * groups shrink until they fit: to fewer frames, at last to one guidance row at a time.
 *
 * @module
 */

import type { Arena } from "../core/arena.ts";
import type { Device } from "../core/device.ts";
import { MemoryError } from "../core/errors.ts";
import type { Plan } from "../core/plan.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, assign, concat, div, linearCombination, mul, narrow, std } from "../kernels/mod.ts";
import { disposeCache, type FrameAttention, type KeyValueCache } from "../models/attention.ts";
import type { UNet2DConditionModel } from "../models/unet.ts";

/** Settings of a {@link GuidedUNet}. */
export interface GuidedUNetOptions {
  /** Weight of the prompt against the negative prompt; at 1 and below only the prompt is used. */
  readonly guidanceScale: number;
  /** Share in which {@link rescaleGuidance} is applied, 0 … 1. */
  readonly guidanceRescale: number;
  /** Whether frames attend to the first frame, or each to itself. */
  readonly crossFrame: boolean;
  /** Rows of the UNet computed at once; with guidance a frame has two. Default: as many as fit. */
  readonly rows?: number;
  /** Frees memory that this device can do without for now; tells whether it did. */
  readonly relieve?: () => boolean;
}

/** Guidance rows that are evaluated together, and what their attention layers look at. */
interface Pass {
  readonly rows: number;
  readonly text: KeyValueCache;
  readonly anchor: KeyValueCache;
}

/** Rows at once where nothing else limits them: enough to fill a GPU. */
const MOST_ROWS = 8;

/** Inputs and output of one recorded group. */
interface Group {
  readonly sample: Tensor;
  readonly timestep: Tensor;
  readonly plan: Plan<Tensor>;
}

/** Predicts the guided noise of all frames of a clip. */
export class GuidedUNet implements Disposable {
  readonly #unet: UNet2DConditionModel;
  readonly #options: GuidedUNetOptions;
  #passes: readonly Pass[];
  /** Frames of a group. */
  #frames: number;
  readonly #groups = new Map<string, Group>();
  readonly #arena: Arena;

  /**
   * @param hiddenStates Negative and positive prompt, `[2, tokens, width]`, or the prompt alone.
   * @param cells Height and width of the latents.
   */
  constructor(
    unet: UNet2DConditionModel,
    hiddenStates: Tensor,
    cells: readonly [number, number],
    options: GuidedUNetOptions,
  ) {
    this.#unet = unet;
    this.#options = options;
    const guidance = hiddenStates.shape[0];
    const rows = options.rows ?? rowsThatBind(unet, cells);
    this.#frames = Math.max(1, Math.floor(rows / guidance));
    this.#arena = unet.device.arena();
    this.#passes = [{ rows: guidance, text: unet.encodeText(hiddenStates), anchor: new Map() }];
    if (rows < guidance) this.#separate();
  }

  /** Device that it runs on. */
  get device(): Device {
    return this.#unet.device;
  }

  /** Whether guidance needs the negative prompt. */
  static needsNegative(guidanceScale: number): boolean {
    return guidanceScale > 1;
  }

  /**
   * The guided noise of the frames, `ε = ε_neg + s (ε_pos − ε_neg)`.
   *
   * @param x Latents of all frames, `[frames, C, h, w]`; frame 0 is the anchor.
   * @param afterGroup Awaited after each group: lets the caller breathe, and cancel.
   * @returns `[frames, C, h, w]` in f32, to be disposed of by the caller.
   */
  async predict(x: Tensor, timestep: number, afterGroup: () => Promise<void>): Promise<Tensor> {
    const { device } = this.#unet;
    const [frames, ...one] = x.shape;
    const output = device.empty([frames, ...this.#outputShape(one)]).keep();
    try {
      for (let first = 0; first < frames;) {
        // The anchor is a group of its own, so that its keys and values are known to the others.
        const isAnchor = this.#options.crossFrame && first === 0;
        const count = isAnchor ? 1 : Math.min(this.#frames, frames - first);
        const group = this.#group([count, ...one], isAnchor);
        if (!group) {
          first = 0;
          continue;
        }
        device.scope(() => {
          assign(group.sample, narrow(x, 0, first, count));
          device.write(group.timestep, [timestep]);
          group.plan.run();
          assign(output, group.plan.result, first * output.size / frames);
        });
        first += count;
        await afterGroup();
      }
      return output;
    } catch (error) {
      output.dispose();
      throw error;
    }
  }

  #outputShape([, h, w]: readonly number[]): number[] {
    return [this.#unet.config.outChannels, h, w];
  }

  /** The group of that shape, or `null` if it did not fit: more may fit now, or groups are smaller. */
  #group(shape: readonly number[], isAnchor: boolean): Group | null {
    const key = `${shape}${isAnchor ? " anchor" : ""}`;
    const known = this.#groups.get(key);
    if (known) return known;
    try {
      const group = this.#record(shape, isAnchor);
      this.#groups.set(key, group);
      return group;
    } catch (error) {
      if (!(error instanceof MemoryError)) throw error;
      if (!this.#options.relieve?.() && !this.#shrink(shape[0])) throw error;
      return null;
    }
  }

  /** Makes groups smaller than one of so many frames; false if there is nothing to make smaller. */
  #shrink(frames: number): boolean {
    const whole = this.#passes.length === 1 && this.#passes[0].rows > 1;
    if (this.#options.rows !== undefined || (frames === 1 && !whole)) return false;
    this.#forget();
    if (frames === 1) this.#separate();
    this.#frames = Math.max(1, frames >> 1);
    return true;
  }

  /** From now on guidance rows are evaluated one after the other. */
  #separate(): void {
    const [{ rows, text }] = this.#passes;
    const part = (tensor: Tensor, row: number) =>
      this.device.scope(() => narrow(tensor, 0, row, 1)).keep();
    this.#passes = Array.from({ length: rows }, (_, row) => ({
      rows: 1,
      text: new Map([...text].map(([path, { key, value }]) => [
        path,
        { key: part(key, row), value: part(value, row) },
      ])),
      anchor: new Map(),
    }));
    disposeCache(text);
  }

  #record(shape: readonly number[], isAnchor: boolean): Group {
    const { device } = this.#unet;
    const { guidanceScale, guidanceRescale = 0, crossFrame } = this.#options;
    const frames = shape[0];
    const sample = device.empty(shape).keep();
    const timestep = device.empty([1]).keep();
    try {
      const plan = device.record(() => {
        const noise = this.#passes.flatMap(({ rows, text, anchor }) => {
          if (isAnchor) disposeCache(anchor);
          const attention: FrameAttention = crossFrame
            ? { mode: "first", frames, anchor }
            : { mode: "self", frames: 1 };
          const input = rows > 1 ? concat(Array<Tensor>(rows).fill(sample), 0) : sample;
          const all = this.#unet.forward(input, timestep, text, { frames: attention });
          return Array.from({ length: rows }, (_, row) => narrow(all, 0, row * frames, frames));
        });
        if (noise.length === 1) return noise[0];
        const guided = linearCombination([1 - guidanceScale, guidanceScale], noise);
        return guidanceRescale > 0 ? rescaleGuidance(guided, noise[1], guidanceRescale) : guided;
      }, this.#arena);
      return { sample, timestep, plan };
    } catch (error) {
      sample.dispose();
      timestep.dispose();
      throw error;
    }
  }

  #forget(): void {
    for (const { sample, timestep, plan } of this.#groups.values()) {
      plan.dispose();
      sample.dispose();
      timestep.dispose();
    }
    this.#groups.clear();
    for (const { anchor } of this.#passes) disposeCache(anchor);
  }

  /** Frees plans, texts and anchor. */
  dispose(): void {
    this.#forget();
    for (const { text } of this.#passes) disposeCache(text);
  }

  /** Same as {@link GuidedUNet.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Rows whose widest activation, the 8·C channels of GEGLU, stays within one binding. */
function rowsThatBind(unet: UNet2DConditionModel, [h, w]: readonly [number, number]): number {
  const bytes = unet.dtype === "f16" ? 2 : 4;
  const perRow = 8 * unet.config.blockOutChannels[0] * h * w * bytes;
  const { maxStorageBufferBindingSize } = unet.device.gpu.limits;
  return Math.max(1, Math.min(MOST_ROWS, Math.floor(maxStorageBufferBindingSize / perRow)));
}

/**
 * Brings the standard deviation of every frame's guided noise towards that of the prompt alone:
 * `ε·(φ·std(ε_pos)/std(ε) + 1 − φ)` (arXiv:2305.08891, equations 15 and 16).
 *
 * @param guided `[frames, C, h, w]`.
 * @param positive Of the same shape.
 * @param share φ.
 */
export function rescaleGuidance(guided: Tensor, positive: Tensor, share: number): Tensor {
  const spread = (x: Tensor) => std(x, [1, 2, 3], { keepdim: true });
  const ratio = div(spread(positive), spread(guided));
  return mul(guided, add(mul(ratio, share), 1 - share));
}
