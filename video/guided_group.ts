/**
 * A group of frames of a clip: what the UNet computes of it in a step, recorded once and replayed.
 *
 * Guidance rows are evaluated together, or in passes one after the other where memory is short. The
 * first frame is a group of its own, which leaves its keys and values behind for the others.
 *
 * @module
 */

import type { Arena } from "../core/arena.ts";
import type { Plan } from "../core/plan.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, concat, linearCombination, mul, narrow, sub } from "../kernels/mod.ts";
import {
  disposeCache,
  type FrameAttention,
  type KeyValueCache,
  type LookBack,
} from "../models/attention.ts";
import type { TokenMerging } from "../models/token_merging.ts";
import type { UNet2DConditionModel } from "../models/unet.ts";
import type { ControlBranch } from "./control_branch.ts";
import { type GuidanceRow, rescaleGuidance, withoutImage } from "./guidance.ts";

/** What a step computes: everything, or the outermost layers. */
export type Depth = "whole" | "outer";

/** Keys and values of frames that others attend to. */
interface Seen {
  readonly anchor: KeyValueCache;
  /** Those of the frames before the next group. */
  readonly before: KeyValueCache;
}

/** Guidance rows that are evaluated together, and what their attention layers look at. */
export interface Pass {
  /** At least one. */
  readonly guidance: readonly GuidanceRow[];
  /** Keys and values of their texts. */
  readonly text: KeyValueCache;
  /** Keys and values that steps of either depth leave behind. */
  readonly seen: Readonly<Record<Depth, Seen>>;
}

/** A pass in which nothing has been computed. */
export function newPass(guidance: readonly GuidanceRow[], text: KeyValueCache): Pass {
  const nothing = (): Seen => ({ anchor: new Map(), before: new Map() });
  return { guidance, text, seen: { whole: nothing(), outer: nothing() } };
}

/** Frees the keys and values of frames. */
export function forgetFrames({ seen }: Pass, depths: readonly Depth[] = ["whole", "outer"]): void {
  for (const depth of depths) {
    disposeCache(seen[depth].anchor);
    disposeCache(seen[depth].before);
  }
}

/** What all groups of a clip have in common. */
export interface GroupSettings {
  readonly unet: UNet2DConditionModel;
  /** All guidance rows, in the order of the passes. */
  readonly guidance: readonly GuidanceRow[];
  /** Share in which guidance is rescaled, 0 … 1. */
  readonly guidanceRescale: number;
  /** Whether frames attend to other frames. */
  readonly crossFrame: boolean;
  /** To which others; absent for the first frame alone. */
  readonly lookBack?: Pick<LookBack, "distances" | "first">;
  /** How tokens are merged, if they are. */
  readonly merge?: TokenMerging;
  /** Whether deep features are used again. */
  readonly reuses: boolean;
  /** Tokens and width of a text, where each frame has its own. */
  readonly words?: readonly number[];
  /** Whether each frame has a guidance scale of its own. */
  readonly scaled: boolean;
  /** 1 at the tokens whose share of the attention is wanted, `[1, 1, tokens]`. */
  readonly chosen?: Tensor;
  /** ControlNets. */
  readonly control?: ControlBranch;
  /** Where intermediate results lie. */
  readonly arena: Arena;
}

/** A recorded group: its inputs, which are written before each run, and its outputs. */
export interface Group {
  /** Latents, `[frames, C, h, w]`, with what the model sees behind their channels. */
  readonly sample: Tensor;
  readonly timestep: Tensor;
  /** Text of the frames of each pass, where it changes over the clip. */
  readonly texts: readonly Tensor[];
  /** Guidance of the frames, `[frames, 1, 1, 1]`, where that changes. */
  readonly scales: Tensor | undefined;
  /** Deep features of each pass, made or used; none if they are never used again. */
  readonly deep: readonly Tensor[];
  /** Embedded maps of the ControlNets that act. */
  readonly maps: readonly Tensor[];
  /** How much the frames attend to the chosen tokens, `[frames, 1, h, w]`; none if unwanted. */
  readonly tokenMap: Tensor | undefined;
  /** The work; its result is the guided noise, `[frames, C, h, w]`. */
  readonly plan: Plan<Tensor>;
}

/**
 * Records what a group computes.
 *
 * @param shape Of its latents.
 * @param isAnchor Whether it is the first frame, whose keys and values the others use.
 */
export function recordGroup(
  settings: GroupSettings,
  passes: readonly Pass[],
  shape: readonly number[],
  { isAnchor, depth }: { readonly isAnchor: boolean; readonly depth: Depth },
): Group {
  const { unet, control, arena, words } = settings;
  const { device, config, dtype } = unet;
  const [frames, , ...cells] = shape;
  const made: Tensor[] = [];
  const input = (extents: readonly number[], type = dtype): Tensor => {
    const tensor = device.empty(extents, type).keep();
    made.push(tensor);
    return tensor;
  };
  try {
    const sample = input(shape, "f32");
    const timestep = input([1], "f32");
    const each = (extents: readonly number[], type = dtype) =>
      passes.map(({ guidance }) => input([guidance.length * frames, ...extents], type));
    const texts = words ? each(words, "f32") : [];
    const scales = settings.scaled ? input([frames, 1, 1, 1], "f32") : undefined;
    const deep = settings.reuses ? each([config.blockOutChannels[0], ...cells]) : [];
    const tokenMap = settings.chosen && depth === "whole"
      ? input([frames, 1, ...cells], "f32")
      : undefined;
    const maps = control?.inputs(frames, cells) ?? [];
    made.push(...maps);
    const inputs = { sample, timestep, texts, scales, deep, maps, tokenMap };
    const plan = device.record(() => {
      const noise = passes.flatMap((pass, i) => {
        if (isAnchor) forgetFrames(pass, [depth]);
        return predictRows(settings, pass, inputs, { i, last: passes.length - 1, isAnchor, depth });
      });
      return guidedNoise(settings, noise, scales);
    }, arena);
    return { ...inputs, plan };
  } catch (error) {
    for (const tensor of made) tensor.dispose();
    throw error;
  }
}

/** The noise of each guidance row of a pass, `[frames, C, h, w]` each. */
function predictRows(
  { unet, crossFrame, lookBack, merge, chosen, control }: GroupSettings,
  { guidance, text, seen }: Pass,
  { sample, timestep, texts, deep, maps, tokenMap }: Omit<Group, "plan">,
  { i, last, isAnchor, depth }: {
    readonly i: number;
    readonly last: number;
    readonly isAnchor: boolean;
    readonly depth: Depth;
  },
): Tensor[] {
  const frames = sample.shape[0];
  const outer = depth === "outer";
  const { anchor, before } = seen[depth];
  const attention: FrameAttention = crossFrame
    ? { mode: "first", frames, anchor, merge, lookBack: lookBack && { ...lookBack, before } }
    : { mode: "self", frames: 1, merge };
  const all = unet.device.scope(() => {
    // Rows that differ in their texts alone share what comes before these.
    const alike = guidance.every(({ image }) => image === guidance[0].image);
    const shown = (alike ? guidance.slice(0, 1) : guidance).map(({ image }) =>
      image ? sample : withoutImage(sample, unet.config.outChannels)
    );
    const copies = alike ? guidance.length : 1;
    const input = shown.length > 1 ? concat(shown, 0) : shown[0];
    const rows = { pass: i, sample, input, copies, timestep, texts: texts[i], embedded: maps };
    const residuals = control?.residuals({ ...rows, isAnchor, outer });
    return unet.forward(input, timestep, texts[i] ?? text, {
      frames: attention,
      copies,
      // The prompt's row is the last.
      tokens: chosen && tokenMap && i === last ? { chosen, map: tokenMap } : undefined,
      deep: deep.length ? { feature: deep[i], known: outer } : undefined,
      control: residuals,
    });
  });
  return guidance.map((_, row) => narrow(all, 0, row * frames, frames));
}

/** `ε = Σ wᵢ εᵢ` over the guidance rows, the prompt's last. */
function guidedNoise(
  { guidance, guidanceRescale }: GroupSettings,
  noise: readonly Tensor[],
  scales: Tensor | undefined,
): Tensor {
  if (noise.length === 1) return noise[0];
  const [negative] = noise;
  const positive = noise[noise.length - 1];
  const guided = scales
    ? add(negative, mul(sub(positive, negative), scales))
    : linearCombination(guidance.map(({ weight }) => weight), [...noise]);
  return guidanceRescale > 0 ? rescaleGuidance(guided, positive, guidanceRescale) : guided;
}

/** Frees a group. */
export function disposeGroup(group: Group): void {
  const { sample, timestep, texts, scales, deep, maps, tokenMap, plan } = group;
  plan.dispose();
  for (const tensor of [sample, timestep, ...texts, ...deep, ...maps]) tensor.dispose();
  scales?.dispose();
  tokenMap?.dispose();
}
