/**
 * The denoiser of a clip: UNet and classifier-free guidance, with cross-frame attention, for any
 * number of frames in constant memory.
 *
 * Each step goes over the frames in groups. The first frame comes first and leaves its keys and
 * values behind; the other frames attend to them (Text2Video-Zero, §3.3). What a group computes is
 * recorded once and replayed.
 *
 * @module
 */

import type { Arena } from "../core/arena.ts";
import type { Device } from "../core/device.ts";
import type { Plan } from "../core/plan.ts";
import type { Tensor } from "../core/tensor.ts";
import { assign, concat, linearCombination, narrow } from "../kernels/mod.ts";
import { disposeCache, type FrameAttention, type KeyValueCache } from "../models/attention.ts";
import type { UNet2DConditionModel } from "../models/unet.ts";

/** Settings of a {@link GuidedUNet}. */
export interface GuidedUNetOptions {
  /** Weight of the prompt against the negative prompt; at 1 and below only the prompt is used. */
  readonly guidanceScale: number;
  /** Whether frames attend to the first frame, or each to itself. */
  readonly crossFrame: boolean;
  /** Frames computed at once. */
  readonly group: number;
}

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
  readonly #text: KeyValueCache;
  readonly #anchor: KeyValueCache = new Map();
  readonly #groups = new Map<string, Group>();
  readonly #arena: Arena;

  /** `hiddenStates` `[rows, tokens, width]`: negative and positive prompt, or the prompt alone. */
  constructor(unet: UNet2DConditionModel, hiddenStates: Tensor, options: GuidedUNetOptions) {
    this.#unet = unet;
    this.#options = options;
    this.#text = unet.encodeText(hiddenStates);
    this.#arena = unet.device.arena();
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
      const { crossFrame, group } = this.#options;
      for (let first = 0; first < frames;) {
        // The anchor is a group of its own, so that its keys and values are known to the others.
        const count = crossFrame && first === 0 ? 1 : Math.min(group, frames - first);
        device.scope(() => {
          const part = this.#run(narrow(x, 0, first, count), timestep, first === 0 && crossFrame);
          assign(output, part, first * output.size / frames);
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

  #run(x: Tensor, timestep: number, isAnchor: boolean): Tensor {
    const key = `${x.shape}${isAnchor ? " anchor" : ""}`;
    let group = this.#groups.get(key);
    if (!group) this.#groups.set(key, group = this.#record(x.shape, isAnchor));
    assign(group.sample, x);
    group.timestep.device.write(group.timestep, [timestep]);
    group.plan.run();
    return group.plan.result;
  }

  #record(shape: readonly number[], isAnchor: boolean): Group {
    const { device } = this.#unet;
    const { guidanceScale, crossFrame } = this.#options;
    const sample = device.empty(shape).keep();
    const timestep = device.empty([1]).keep();
    const frames = shape[0];
    const attention: FrameAttention = crossFrame
      ? { mode: "first", frames, anchor: this.#anchor }
      : { mode: "self", frames: 1 };
    if (isAnchor) disposeCache(this.#anchor);
    const plan = device.record(() => {
      const unet = (x: Tensor) =>
        this.#unet.forward(x, timestep, this.#text, { frames: attention });
      if (!GuidedUNet.needsNegative(guidanceScale)) return unet(sample);
      const both = unet(concat([sample, sample], 0));
      const negative = narrow(both, 0, 0, frames);
      const positive = narrow(both, 0, frames, frames);
      return linearCombination([1 - guidanceScale, guidanceScale], [negative, positive]);
    }, this.#arena);
    return { sample, timestep, plan };
  }

  /** Frees plans, texts and anchor. */
  dispose(): void {
    for (const { sample, timestep, plan } of this.#groups.values()) {
      plan.dispose();
      sample.dispose();
      timestep.dispose();
    }
    this.#groups.clear();
    disposeCache(this.#anchor);
    disposeCache(this.#text);
  }

  /** Same as {@link GuidedUNet.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
