/**
 * The denoiser of a clip: UNet and guidance (`guidance.ts`), with cross-frame attention, for any
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

import type { Device } from "../core/device.ts";
import { MemoryError, ShapeError } from "../core/errors.ts";
import type { Tensor } from "../core/tensor.ts";
import { Generator } from "../core/random.ts";
import { assign, narrow } from "../kernels/mod.ts";
import { disposeCache, type LookBack, splitRows } from "../models/attention.ts";
import { drawOrder, sourcesOf, type TokenMerging } from "../models/token_merging.ts";
import type { UNet2DConditionModel } from "../models/unet.ts";
import { ControlBranch, type ControlSettings } from "./control_branch.ts";
import { guidanceRows, type GuidanceScales } from "./guidance.ts";
import {
  type Depth,
  disposeGroup,
  forgetFrames,
  type Group,
  type GroupSettings,
  newPass,
  type Pass,
  recordGroup,
} from "./guided_group.ts";

/** Settings of a {@link GuidedUNet}. */
export interface GuidedUNetOptions extends GuidanceScales {
  /** Weight of the prompt for each frame, by its place in the clip, instead of one for all. */
  readonly guidanceAt?: (position: number) => number;
  /**
   * Text of each frame, by its place in the clip, instead of one for all: rows as in the hidden
   * states. Called inside a scope.
   */
  readonly textAt?: (position: number) => Tensor;
  /** Share in which {@link rescaleGuidance} is applied, 0 … 1. */
  readonly guidanceRescale?: number;
  /** Whether frames attend to other frames, or each to itself. */
  readonly crossFrame: boolean;
  /** To which others. Default: the first frame alone. */
  readonly lookBack?: Pick<LookBack, "distances" | "first">;
  /** Rows of the UNet computed at once; a frame has one a guidance row. Default: as many as fit. */
  readonly rows?: number;
  /** Share of the tokens merged around self-attention at full resolution. Default 0. */
  readonly merge?: number;
  /** Steps from one that computes everything to the next. Default 1. */
  readonly reuse?: number;
  /** ControlNets, and their maps. */
  readonly control?: ControlSettings;
  /** Tokens of the prompt whose share of the attention is wanted: places in its row of text. */
  readonly subject?: readonly number[];
  /** Frees memory that this device can do without for now; tells whether it did. */
  readonly relieve?: () => boolean;
}

/** Rows at once where nothing else limits them: enough to fill a GPU. */
const MOST_ROWS = 8;

/** Predicts the guided noise of all frames of a clip. */
export class GuidedUNet implements Disposable {
  readonly #unet: UNet2DConditionModel;
  readonly #cells: readonly [number, number];
  readonly #options: GuidedUNetOptions;
  readonly #settings: GroupSettings;
  readonly #control: ControlBranch | undefined;
  #passes: readonly Pass[];
  /** Frames of a group. */
  #frames: number;
  readonly #groups = new Map<string, Group>();
  /** Deep features of the last whole step, by the first frame of their group. */
  readonly #features = new Map<number, readonly Tensor[]>();
  readonly #merging: TokenMerging | undefined;
  /** 1 at the tokens of the subject. */
  readonly #chosen: Tensor | undefined;
  #subjectMap: Tensor | undefined;

  /**
   * @param hiddenStates The texts of the guidance rows, `[rows, tokens, width]`.
   * @param cells Height and width of the latents.
   * @throws {ShapeError} if there are more or fewer texts than {@link guidanceRows}.
   */
  constructor(
    unet: UNet2DConditionModel,
    hiddenStates: Tensor,
    cells: readonly [number, number],
    options: GuidedUNetOptions,
  ) {
    this.#unet = unet;
    this.#options = options;
    const guidance = guidanceRows(options);
    if (hiddenStates.shape[0] !== guidance.length) {
      throw new ShapeError(
        `guidance needs the texts of ${guidance.length} rows, got ${hiddenStates.shape[0]}`,
      );
    }
    const rows = options.rows ?? rowsThatBind(unet, cells);
    this.#frames = Math.max(1, Math.floor(rows / guidance.length));
    const arena = unet.device.arena();
    this.#passes = [newPass(guidance, unet.encodeText(hiddenStates))];
    this.#cells = cells;
    try {
      this.#control = options.control &&
        new ControlBranch(options.control, hiddenStates, cells, arena);
      if (options.merge) {
        const order = unet.device.empty([cells[0] * cells[1]], "i32").keep();
        this.#merging = { ratio: options.merge, order, sources: sourcesOf(cells) };
      }
      if (options.subject) {
        const chosen = new Float32Array(hiddenStates.shape[1]);
        for (const token of options.subject) chosen[token] = 1;
        this.#chosen = unet.device.tensor(chosen, [1, 1, chosen.length], unet.dtype).keep();
      }
      this.#settings = {
        ...{ unet, guidance, guidanceRescale: options.guidanceRescale ?? 0 },
        ...{ crossFrame: options.crossFrame, lookBack: options.lookBack },
        ...{ merge: this.#merging, reuses: (options.reuse ?? 1) > 1 },
        words: options.textAt && hiddenStates.shape.slice(1),
        scaled: options.guidanceAt !== undefined,
        ...{ chosen: this.#chosen, control: this.#control, arena },
      };
      if (rows < guidance.length) this.#separate();
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Device that it runs on. */
  get device(): Device {
    return this.#unet.device;
  }

  /**
   * How much every frame attends to the subject, `[frames, 1, h, w]`: of the last prediction that
   * computed everything, valid until the next.
   */
  get subjectMap(): Tensor | undefined {
    return this.#subjectMap;
  }

  /**
   * The guided noise of the frames, `ε = Σ wᵢ εᵢ` over the guidance rows.
   *
   * @param x Latents of all frames, `[frames, C, h, w]`, with what the model sees behind their
   * channels; frame 0 is the anchor.
   * @param step Number of the step in a run over the same frames, from 0 on: decides whether deep
   * features are used again.
   * @param afterGroup Awaited after each group: lets the caller breathe, and cancel.
   * @param place Place of the timestep in the whole schedule, from 0 on: decides which ControlNets
   * act.
   * @param frameOf Whose text and guidance a frame has, where these change over the clip: a place
   * in it. Default: its own.
   * @returns `[frames, C, h, w]` in f32, to be disposed of by the caller.
   */
  async predict(
    x: Tensor,
    timestep: number,
    step: number,
    afterGroup: () => Promise<void>,
    place: number = step,
    frameOf: (position: number) => number = (position) => position,
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
    if (this.#chosen && this.#subjectMap?.shape[0] !== frames) {
      this.#subjectMap?.dispose();
      this.#subjectMap = device.empty([frames, 1, ...this.#cells]).keep();
    }
    const map = this.#subjectMap;
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
          this.#address(group, Array.from({ length: count }, (_, i) => frameOf(first + i)));
          if (depth === "outer") group.deep.forEach((deep, i) => assign(deep, kept[i]));
          group.plan.run();
          if (depth === "whole") group.deep.forEach((deep, i) => assign(kept[i], deep));
          assign(output, group.plan.result, first * output.size / frames);
          if (map && group.tokenMap) assign(map, group.tokenMap, first * map.size / frames);
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

  /** Gives a group what its frames have of their own besides latents. */
  #address({ texts, scales }: Group, positions: readonly number[]): void {
    const { textAt, guidanceAt } = this.#options;
    if (scales && guidanceAt) this.device.write(scales, positions.map(guidanceAt));
    if (!textAt) return;
    positions.forEach((position, i) => {
      const rows = textAt(position);
      let row = 0;
      this.#passes.forEach((pass, p) => {
        for (let r = 0; r < pass.guidance.length; r++, row++) {
          const one = narrow(rows, 0, row, 1);
          assign(texts[p], one, (r * positions.length + i) * one.size);
        }
      });
    });
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
    const group = recordGroup(this.#settings, this.#passes, shape, { isAnchor, depth });
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
    const whole = this.#passes.length === 1 && this.#passes[0].guidance.length > 1;
    if (this.#options.rows !== undefined || (frames === 1 && !whole)) return false;
    this.#forget();
    if (frames === 1) this.#separate();
    this.#frames = Math.max(1, frames >> 1);
    return true;
  }

  /** From now on guidance rows are evaluated one after the other. */
  #separate(): void {
    const [{ guidance, text }] = this.#passes;
    this.#passes = splitRows(text, guidance.length)
      .map((row, i) => newPass([guidance[i]], row));
    disposeCache(text);
    this.#control?.separate(guidance.length);
  }

  #dropFeatures(): void {
    for (const tensor of [...this.#features.values()].flat()) tensor.dispose();
    this.#features.clear();
  }

  #forget(): void {
    for (const group of this.#groups.values()) disposeGroup(group);
    this.#groups.clear();
    this.#dropFeatures();
    this.#control?.forget();
    for (const pass of this.#passes) forgetFrames(pass);
  }

  /** Frees plans, texts and anchor. */
  dispose(): void {
    this.#forget();
    for (const { text } of this.#passes) disposeCache(text);
    this.#control?.dispose();
    this.#merging?.order.dispose();
    this.#chosen?.dispose();
    this.#subjectMap?.dispose();
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
