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

import type { Arena } from "../core/arena.ts";
import type { Device } from "../core/device.ts";
import { MemoryError, ShapeError } from "../core/errors.ts";
import type { Plan } from "../core/plan.ts";
import type { Tensor } from "../core/tensor.ts";
import { Generator } from "../core/random.ts";
import { add, assign, concat, linearCombination, mul, narrow, sub } from "../kernels/mod.ts";
import {
  disposeCache,
  type FrameAttention,
  type KeyValueCache,
  type LookBack,
  splitRows,
} from "../models/attention.ts";
import { drawOrder, sourcesOf, type TokenMerging } from "../models/token_merging.ts";
import type { UNet2DConditionModel } from "../models/unet.ts";
import { ControlBranch, type ControlSettings } from "./control_branch.ts";
import {
  type GuidanceRow,
  guidanceRows,
  type GuidanceScales,
  rescaleGuidance,
  withoutImage,
} from "./guidance.ts";

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

/** Guidance rows that are evaluated together, and what their attention layers look at. */
interface Pass {
  readonly guidance: readonly GuidanceRow[];
  readonly text: KeyValueCache;
  readonly seen: Readonly<Record<Depth, Seen>>;
}

/** Keys and values of frames that others attend to. */
interface Seen {
  readonly anchor: KeyValueCache;
  /** Those of the frames before the next group. */
  readonly before: KeyValueCache;
}

/** What a step computes: everything, or the outermost layers. */
type Depth = "whole" | "outer";

const nothingSeen = (): Pass["seen"] => ({
  whole: { anchor: new Map(), before: new Map() },
  outer: { anchor: new Map(), before: new Map() },
});

function forgetSeen({ anchor, before }: Seen): void {
  disposeCache(anchor);
  disposeCache(before);
}

/** Rows at once where nothing else limits them: enough to fill a GPU. */
const MOST_ROWS = 8;

/** Inputs and output of one recorded group. */
interface Group {
  readonly sample: Tensor;
  readonly timestep: Tensor;
  /** Text of the frames of each pass, where it changes over the clip. */
  readonly texts: readonly Tensor[];
  /** Guidance of the frames, `[frames, 1, 1, 1]`, where that changes. */
  readonly scales: Tensor | null;
  /** Deep features of each pass, made or used; none if they are never used again. */
  readonly deep: readonly Tensor[];
  /** Embedded maps of the ControlNets that act. */
  readonly maps: readonly Tensor[];
  /** How much the group's frames attend to the subject, `[frames, 1, h, w]`; none if unwanted. */
  readonly map: Tensor | undefined;
  readonly plan: Plan<Tensor>;
}

/** Predicts the guided noise of all frames of a clip. */
export class GuidedUNet implements Disposable {
  readonly #unet: UNet2DConditionModel;
  readonly #cells: readonly [number, number];
  /** Tokens and width of a text. */
  readonly #words: readonly number[];
  readonly #guidance: readonly GuidanceRow[];
  readonly #options: GuidedUNetOptions;
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
  readonly #arena: Arena;

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
    this.#guidance = guidance;
    this.#words = hiddenStates.shape.slice(1);
    const rows = options.rows ?? rowsThatBind(unet, cells);
    this.#frames = Math.max(1, Math.floor(rows / guidance.length));
    this.#arena = unet.device.arena();
    this.#passes = [{
      guidance,
      text: unet.encodeText(hiddenStates),
      seen: nothingSeen(),
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
    if (options.subject) {
      const chosen = new Float32Array(hiddenStates.shape[1]);
      for (const token of options.subject) chosen[token] = 1;
      this.#chosen = unet.device.tensor(chosen, [1, 1, chosen.length], unet.dtype).keep();
    }
    if (rows < guidance.length) this.#separate();
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
          this.#address(group, first, count);
          if (depth === "outer") group.deep.forEach((deep, i) => assign(deep, kept[i]));
          group.plan.run();
          if (depth === "whole") group.deep.forEach((deep, i) => assign(kept[i], deep));
          assign(output, group.plan.result, first * output.size / frames);
          if (map && group.map) assign(map, group.map, first * map.size / frames);
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
  #address({ texts, scales }: Group, first: number, count: number): void {
    const { textAt, guidanceAt } = this.#options;
    const positions = Array.from({ length: count }, (_, i) => first + i);
    if (scales && guidanceAt) this.device.write(scales, positions.map(guidanceAt));
    if (!textAt) return;
    positions.forEach((position, i) => {
      const rows = textAt(position);
      let row = 0;
      this.#passes.forEach((pass, p) => {
        for (let r = 0; r < pass.guidance.length; r++, row++) {
          const one = narrow(rows, 0, row, 1);
          assign(texts[p], one, (r * count + i) * one.size);
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
      .map((row, i) => ({ guidance: [guidance[i]], text: row, seen: nothingSeen() }));
    disposeCache(text);
    this.#control?.separate(guidance.length);
  }

  #record(shape: readonly number[], isAnchor: boolean, depth: Depth): Group {
    const { device, config, dtype } = this.#unet;
    const { guidanceRescale = 0, crossFrame, lookBack, reuse = 1 } = this.#options;
    const { guidanceAt, textAt } = this.#options;
    const [frames, , ...cells] = shape;
    const sample = device.empty(shape).keep();
    const timestep = device.empty([1]).keep();
    const deep: Tensor[] = [];
    const texts: Tensor[] = [];
    const maps: Tensor[] = [];
    const scales = guidanceAt ? device.empty([frames, 1, 1, 1]).keep() : null;
    const inputs = () => [
      sample,
      timestep,
      ...deep,
      ...texts,
      ...maps,
      ...scales ? [scales] : [],
      ...map ? [map] : [],
    ];
    const merge = this.#merging;
    const chosen = depth === "whole" ? this.#chosen : undefined;
    const map = chosen && device.empty([frames, 1, ...cells]).keep();
    try {
      maps.push(...this.#control?.inputs(frames, cells) ?? []);
      for (const { guidance } of textAt ? this.#passes : []) {
        texts.push(device.empty([guidance.length * frames, ...this.#words]).keep());
      }
      for (const { guidance } of reuse > 1 ? this.#passes : []) {
        const extents = [guidance.length * frames, config.blockOutChannels[0], ...cells];
        deep.push(device.empty(extents, dtype).keep());
      }
      const plan = device.record(() => {
        const noise = this.#passes.flatMap(({ guidance, text, seen }, i) => {
          const { anchor, before } = seen[depth];
          if (isAnchor) forgetSeen(seen[depth]);
          const attention: FrameAttention = crossFrame
            ? {
              mode: "first",
              frames,
              anchor,
              merge,
              lookBack: lookBack && { ...lookBack, before },
            }
            : { mode: "self", frames: 1, merge };
          const all = device.scope(() => {
            const shown = guidance.map(({ image }) =>
              image ? sample : withoutImage(sample, config.outChannels)
            );
            const input = shown.length > 1 ? concat(shown, 0) : shown[0];
            const outer = depth === "outer";
            return this.#unet.forward(input, timestep, texts[i] ?? text, {
              frames: attention,
              // The prompt's row is the last.
              tokens: chosen && map && i === this.#passes.length - 1 ? { chosen, map } : undefined,
              deep: deep.length ? { feature: deep[i], known: outer } : undefined,
              control: this.#control?.residuals({
                pass: i,
                sample,
                input,
                timestep,
                texts: texts[i],
                embedded: maps,
                isAnchor,
                outer,
              }),
            });
          });
          return guidance.map((_, row) => narrow(all, 0, row * frames, frames));
        });
        if (noise.length === 1) return noise[0];
        const positive = noise[noise.length - 1];
        const guided = scales
          ? add(noise[0], mul(sub(positive, noise[0]), scales))
          : linearCombination(this.#guidance.map(({ weight }) => weight), noise);
        return guidanceRescale > 0 ? rescaleGuidance(guided, positive, guidanceRescale) : guided;
      }, this.#arena);
      return { sample, timestep, texts, scales, deep, maps, map, plan };
    } catch (error) {
      for (const tensor of inputs()) tensor.dispose();
      throw error;
    }
  }

  #dropFeatures(): void {
    for (const tensor of [...this.#features.values()].flat()) tensor.dispose();
    this.#features.clear();
  }

  #forget(): void {
    for (const group of this.#groups.values()) {
      const { sample, timestep, texts, scales, deep, maps, map, plan } = group;
      plan.dispose();
      for (const tensor of [sample, timestep, ...texts, ...deep, ...maps]) tensor.dispose();
      scales?.dispose();
      map?.dispose();
    }
    this.#groups.clear();
    this.#dropFeatures();
    this.#control?.forget();
    for (const { seen } of this.#passes) {
      forgetSeen(seen.whole);
      forgetSeen(seen.outer);
    }
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
