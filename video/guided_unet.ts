/**
 * The denoiser of a clip: UNet and classifier-free guidance, with cross-frame attention, for any
 * number of frames in constant memory.
 *
 * Each step goes over the frames in groups. The first frame comes first and leaves its keys and
 * values behind; the other frames attend to them (Text2Video-Zero, §3.3). What a group computes is
 * recorded once and replayed. Where the device has a memory budget, what can be spared is freed, then
 * groups shrink until they fit: to fewer frames, at last to one guidance row at a time.
 *
 * Two options trade quality for time: alike tokens are merged around self-attention
 * (`models/token_merging.ts`), and between the steps that compute everything, others compute only
 * the outermost layers, with the deep features of the last whole step (DeepCache; the anchor's and
 * every guidance row's are its own). Whole and outer steps are plans of their own.
 *
 * ControlNets (`control_branch.ts`) are evaluated in the same plans, before the UNet. An outer step
 * takes in the residual of the outermost layer alone; the others are in the deep features. Where
 * another set of nets begins to act, a whole step is made, and plans are recorded anew.
 *
 * @module
 */

import type { Arena } from "../core/arena.ts";
import type { Device } from "../core/device.ts";
import { MemoryError } from "../core/errors.ts";
import type { Plan } from "../core/plan.ts";
import type { Tensor } from "../core/tensor.ts";
import { Generator } from "../core/random.ts";
import { add, assign, concat, div, linearCombination, mul, narrow, std } from "../kernels/mod.ts";
import {
  disposeCache,
  type FrameAttention,
  type KeyValueCache,
  splitRows,
} from "../models/attention.ts";
import { drawOrder, sourcesOf, type TokenMerging } from "../models/token_merging.ts";
import type { UNet2DConditionModel } from "../models/unet.ts";
import { ControlBranch, type ControlSettings } from "./control_branch.ts";

/** Settings of a {@link GuidedUNet}. */
export interface GuidedUNetOptions {
  /** Weight of the prompt against the negative prompt; at 1 and below only the prompt is used. */
  readonly guidanceScale: number;
  /** Share in which {@link rescaleGuidance} is applied, 0 … 1. */
  readonly guidanceRescale?: number;
  /** Whether frames attend to the first frame, or each to itself. */
  readonly crossFrame: boolean;
  /** Rows of the UNet computed at once; with guidance a frame has two. Default: as many as fit. */
  readonly rows?: number;
  /** Share of the tokens merged around self-attention at full resolution. Default 0. */
  readonly merge?: number;
  /** Steps from one that computes everything to the next. Default 1. */
  readonly reuse?: number;
  /** ControlNets, and their maps. */
  readonly control?: ControlSettings;
  /** Frees memory that this device can do without for now; tells whether it did. */
  readonly relieve?: () => boolean;
}

/** Guidance rows that are evaluated together, and what their attention layers look at. */
interface Pass {
  readonly rows: number;
  readonly text: KeyValueCache;
  readonly anchors: Readonly<Record<Depth, KeyValueCache>>;
}

/** What a step computes: everything, or the outermost layers. */
type Depth = "whole" | "outer";

const noAnchors = (): Pass["anchors"] => ({ whole: new Map(), outer: new Map() });

/** Rows at once where nothing else limits them: enough to fill a GPU. */
const MOST_ROWS = 8;

/** Inputs and output of one recorded group. */
interface Group {
  readonly sample: Tensor;
  readonly timestep: Tensor;
  /** Deep features of each pass, made or used; none if they are never used again. */
  readonly deep: readonly Tensor[];
  /** Embedded maps of the ControlNets that act. */
  readonly maps: readonly Tensor[];
  readonly plan: Plan<Tensor>;
}

/** Predicts the guided noise of all frames of a clip. */
export class GuidedUNet implements Disposable {
  readonly #unet: UNet2DConditionModel;
  readonly #cells: readonly [number, number];
  readonly #options: GuidedUNetOptions;
  readonly #control: ControlBranch | undefined;
  #passes: readonly Pass[];
  /** Frames of a group. */
  #frames: number;
  readonly #groups = new Map<string, Group>();
  /** Deep features of the last whole step, by the first frame of their group. */
  readonly #features = new Map<number, readonly Tensor[]>();
  readonly #merging: TokenMerging | undefined;
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
    this.#passes = [{
      rows: guidance,
      text: unet.encodeText(hiddenStates),
      anchors: noAnchors(),
    }];
    this.#cells = cells;
    try {
      this.#control = options.control &&
        new ControlBranch(options.control, hiddenStates, cells, this.#arena);
    } catch (error) {
      this.dispose();
      throw error;
    }
    if (options.merge) {
      const order = unet.device.empty([cells[0] * cells[1]], "i32").keep();
      this.#merging = { ratio: options.merge, order, sources: sourcesOf(cells) };
    }
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
   * @param step Number of the step in a run over the same frames, from 0 on: decides whether deep
   * features are used again.
   * @param afterGroup Awaited after each group: lets the caller breathe, and cancel.
   * @param place Place of the timestep in the whole schedule, from 0 on: decides which ControlNets
   * act.
   * @returns `[frames, C, h, w]` in f32, to be disposed of by the caller.
   */
  async predict(
    x: Tensor,
    timestep: number,
    step: number,
    afterGroup: () => Promise<void>,
    place: number = step,
  ): Promise<Tensor> {
    const { device } = this.#unet;
    const { crossFrame, reuse = 1 } = this.#options;
    const [frames, ...one] = x.shape;
    this.#drawDestinations(timestep);
    let depth: Depth = step % reuse === 0 ? "whole" : "outer";
    if (this.#control?.activate(place)) {
      this.#forget();
      depth = "whole";
    }
    const output = device.empty([frames, ...this.#outputShape(one)]).keep();
    try {
      for (let first = 0; first < frames;) {
        // The anchor is a group of its own, so that its keys and values are known to the others.
        const isAnchor = crossFrame && first === 0;
        const count = isAnchor ? 1 : Math.min(this.#frames, frames - first);
        if (first === 0 && depth === "whole") this.#dropFeatures();
        const fitting = this.#fit(count, () => {
          const group = this.#group([count, ...one], isAnchor, depth);
          this.#control?.fill(group.maps, first, count);
          return { group, kept: this.#featuresOf(first, group) };
        });
        if (!fitting) {
          first = 0;
          if (!this.#features.size) depth = "whole";
          continue;
        }
        const { group, kept } = fitting;
        device.scope(() => {
          assign(group.sample, narrow(x, 0, first, count));
          device.write(group.timestep, [timestep]);
          if (depth === "outer") group.deep.forEach((deep, i) => assign(deep, kept[i]));
          group.plan.run();
          if (depth === "whole") group.deep.forEach((deep, i) => assign(kept[i], deep));
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

  /** Other destinations in every step, the same for all frames and on every run. */
  #drawDestinations(timestep: number): void {
    if (!this.#merging) return;
    const random = new Generator(Math.round(timestep));
    this.device.write(this.#merging.order, drawOrder(this.#cells, random));
  }

  #outputShape([, h, w]: readonly number[]): number[] {
    return [this.#unet.config.outChannels, h, w];
  }

  /** What `make` makes, or `null` if it did not fit: more may fit now, or groups are smaller. */
  #fit<T>(frames: number, make: () => T): T | null {
    try {
      return make();
    } catch (error) {
      if (!(error instanceof MemoryError)) throw error;
      const relieved = this.#control?.relieve() || this.#options.relieve?.();
      if (!relieved && !this.#shrink(frames)) throw error;
      return null;
    }
  }

  /** The group of that shape. */
  #group(shape: readonly number[], isAnchor: boolean, depth: Depth): Group {
    const key = `${shape} ${isAnchor} ${depth}`;
    const known = this.#groups.get(key);
    if (known) return known;
    const group = this.#record(shape, isAnchor, depth);
    this.#groups.set(key, group);
    return group;
  }

  /** Where the deep features of the group that begins with that frame are kept. */
  #featuresOf(first: number, { deep }: Group): readonly Tensor[] {
    const known = this.#features.get(first);
    if (known) return known;
    const kept = deep.map(({ shape, dtype }) => this.device.empty(shape, dtype).keep());
    if (kept.length) this.#features.set(first, kept);
    return kept;
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
    this.#passes = splitRows(text, rows)
      .map((row) => ({ rows: 1, text: row, anchors: noAnchors() }));
    disposeCache(text);
    this.#control?.separate(rows);
  }

  #record(shape: readonly number[], isAnchor: boolean, depth: Depth): Group {
    const { device, config, dtype } = this.#unet;
    const { guidanceScale, guidanceRescale = 0, crossFrame, reuse = 1 } = this.#options;
    const [frames, , ...cells] = shape;
    const sample = device.empty(shape).keep();
    const timestep = device.empty([1]).keep();
    const deep: Tensor[] = [];
    const maps: Tensor[] = [];
    const merge = this.#merging;
    try {
      maps.push(...this.#control?.inputs(frames, cells) ?? []);
      for (const { rows } of reuse > 1 ? this.#passes : []) {
        const extents = [rows * frames, config.blockOutChannels[0], ...cells];
        deep.push(device.empty(extents, dtype).keep());
      }
      const plan = device.record(() => {
        const noise = this.#passes.flatMap(({ rows, text, anchors }, i) => {
          const anchor = anchors[depth];
          if (isAnchor) disposeCache(anchor);
          const attention: FrameAttention = crossFrame
            ? { mode: "first", frames, anchor, merge }
            : { mode: "self", frames: 1, merge };
          const all = device.scope(() => {
            const input = rows > 1 ? concat(Array<Tensor>(rows).fill(sample), 0) : sample;
            const outer = depth === "outer";
            return this.#unet.forward(input, timestep, text, {
              frames: attention,
              deep: deep.length ? { feature: deep[i], known: outer } : undefined,
              control: this.#control?.residuals({
                pass: i,
                sample,
                input,
                timestep,
                embedded: maps,
                isAnchor,
                outer,
              }),
            });
          });
          return Array.from({ length: rows }, (_, row) => narrow(all, 0, row * frames, frames));
        });
        if (noise.length === 1) return noise[0];
        const guided = linearCombination([1 - guidanceScale, guidanceScale], noise);
        return guidanceRescale > 0 ? rescaleGuidance(guided, noise[1], guidanceRescale) : guided;
      }, this.#arena);
      return { sample, timestep, deep, maps, plan };
    } catch (error) {
      for (const tensor of [sample, timestep, ...deep, ...maps]) tensor.dispose();
      throw error;
    }
  }

  #dropFeatures(): void {
    for (const tensor of [...this.#features.values()].flat()) tensor.dispose();
    this.#features.clear();
  }

  #forget(): void {
    for (const { sample, timestep, deep, maps, plan } of this.#groups.values()) {
      plan.dispose();
      for (const tensor of [sample, timestep, ...deep, ...maps]) tensor.dispose();
    }
    this.#groups.clear();
    this.#dropFeatures();
    this.#control?.forget();
    for (const { anchors } of this.#passes) {
      disposeCache(anchors.whole);
      disposeCache(anchors.outer);
    }
  }

  /** Frees plans, texts and anchor. */
  dispose(): void {
    this.#forget();
    for (const { text } of this.#passes) disposeCache(text);
    this.#control?.dispose();
    this.#merging?.order.dispose();
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
