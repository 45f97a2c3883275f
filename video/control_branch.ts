/**
 * The ControlNets of a clip beside its UNet: maps, texts, anchor frames, and which of them act in
 * which step.
 *
 * A net evaluates the same rows as the UNet, in the same recorded plan, with keys and values of its
 * own for cross-frame attention. In guess mode it sees the rows of the prompt alone. What it makes
 * of a map does not depend on the step: it is kept for as many frames as {@link KEPT_BYTES} take,
 * and made anew from the map for the others.
 *
 * @module
 */

import type { Arena } from "../core/arena.ts";
import type { Device } from "../core/device.ts";
import type { Plan } from "../core/plan.ts";
import type { Tensor } from "../core/tensor.ts";
import { add, assign, mul, narrow } from "../kernels/mod.ts";
import { disposeCache, type KeyValueCache, SELF, splitRows } from "../models/attention.ts";
import { type ControlResiduals, sumResiduals } from "../models/control_residuals.ts";
import type { ControlNetModel } from "../models/controlnet.ts";
import type { Frame } from "./frame.ts";
import { fitPicture, type Size } from "./picture.ts";

/** Bytes of embedded maps that all nets of a clip keep at most. */
export const KEPT_BYTES: number = 2 ** 28;

/** A ControlNet in a clip. */
export interface FrameControl {
  readonly model: ControlNetModel;
  /** A map for every frame of the clip, of its aspect; equal ones may be the same object. */
  readonly maps: readonly Frame[];
  /** What its residuals are multiplied by. */
  readonly scale: number;
  /** Share of the steps before it begins. */
  readonly start: number;
  /** Share of the steps after which it has ended. */
  readonly end: number;
  /** Whether it sees the rows of the prompt alone, and its finer residuals are weaker. */
  readonly guessMode: boolean;
}

/** The ControlNets of a clip. */
export interface ControlSettings {
  readonly nets: readonly FrameControl[];
  /** Timesteps of the whole schedule. */
  readonly steps: number;
  /** Whether frames inside the nets attend to the first one, or each to itself; to no others. */
  readonly crossFrame: boolean;
  /** Whether the last residual also goes into the UNet's middle, as in the original code. */
  readonly intoMiddle: boolean;
}

/** What a net needs for rows that are evaluated together. */
interface NetPass {
  readonly text: KeyValueCache;
  readonly anchor: KeyValueCache;
}

/** The recorded embedding of a map. */
interface Embedding {
  readonly map: Tensor;
  readonly plan: Plan<Tensor>;
}

interface Net extends FrameControl {
  /** One for each pass of the UNet; `null` where the net sees none of its rows. */
  passes: readonly (NetPass | null)[];
  embedding: Embedding | null;
  /** Embedded maps. */
  readonly kept: Map<Frame, Tensor>;
}

/** The rows of a group of frames in one pass. */
export interface ControlRows {
  /** Number of the pass. */
  readonly pass: number;
  /** Latents of the frames, `[frames, C, h, w]`. */
  readonly sample: Tensor;
  /** The same for every guidance row of the pass, `[rows · frames, C, h, w]`, or for one of them. */
  readonly input: Tensor;
  /** Guidance rows that see the same of these. */
  readonly copies: number;
  readonly timestep: Tensor;
  /** Their texts, `[rows · frames, tokens, width]`, where frames have texts of their own. */
  readonly texts?: Tensor;
  /** Embedded maps of the frames, one tensor for each net that acts. */
  readonly embedded: readonly Tensor[];
  /** Whether this is the anchor frame, whose keys and values the others use. */
  readonly isAnchor: boolean;
  /** Whether only the outermost layers are computed. */
  readonly outer: boolean;
}

/** Whether a net acts in the step that begins at that place, as diffusers has it. */
export function actsAt(
  place: number,
  steps: number,
  { start, end }: Pick<FrameControl, "start" | "end">,
): boolean {
  return place / steps >= start && (place + 1) / steps <= end;
}

/** The ControlNets beside a UNet. */
export class ControlBranch {
  readonly #nets: readonly Net[];
  readonly #settings: ControlSettings;
  readonly #arena: Arena;
  readonly #size: Size;
  #active: readonly Net[] = [];
  /** Bytes of embedded maps that may still be kept. */
  #room = KEPT_BYTES;

  /**
   * @param hiddenStates Those of the UNet's guidance rows, the prompt last, `[rows, tokens, width]`.
   * @param cells Height and width of the latents.
   * @param arena That of the UNet's plans.
   */
  constructor(
    settings: ControlSettings,
    hiddenStates: Tensor,
    [h, w]: readonly [number, number],
    arena: Arena,
  ) {
    this.#settings = settings;
    this.#arena = arena;
    const [{ model: { factor } }] = settings.nets;
    this.#size = { width: w * factor, height: h * factor };
    const nets: Net[] = [];
    this.#nets = nets;
    const rows = hiddenStates.shape[0];
    try {
      // A net of scale 0 changes nothing.
      for (const control of settings.nets.filter(({ scale }) => scale !== 0)) {
        const { model, guessMode } = control;
        const text = model.device.scope(() =>
          model.encodeText(guessMode ? narrow(hiddenStates, 0, rows - 1, 1) : hiddenStates)
        );
        const passes = [{ text, anchor: new Map() }];
        nets.push({ ...control, passes, embedding: null, kept: new Map() });
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Takes up the nets that act in a step; true if they are others than before. */
  activate(place: number): boolean {
    const { steps } = this.#settings;
    const before = this.#active;
    this.#active = this.#nets.filter((net) => actsAt(place, steps, net));
    return before.length !== this.#active.length ||
      before.some((net, i) => net !== this.#active[i]);
  }

  /** From now on each of `rows` guidance rows is a pass of its own. */
  separate(rows: number): void {
    const alone = (text: KeyValueCache): NetPass => ({ text, anchor: new Map() });
    for (const net of this.#nets) {
      const [whole] = net.passes as readonly NetPass[];
      disposeCache(whole.anchor);
      if (net.guessMode) {
        net.passes = Array.from({ length: rows }, (_, i) => i === rows - 1 ? whole : null);
      } else {
        net.passes = splitRows(whole.text, rows).map(alone);
        disposeCache(whole.text);
      }
    }
  }

  /** Inputs of a recorded group: embedded maps of so many frames, for each net that acts. */
  inputs(frames: number, [h, w]: readonly number[]): Tensor[] {
    return this.#active.map(({ model: { device, config, dtype } }) =>
      device.empty([frames, config.blockOutChannels[0], h, w], dtype).keep()
    );
  }

  /** Writes the maps of `count` frames, from the `first` on, into such inputs. */
  fill(inputs: readonly Tensor[], first: number, count: number): void {
    this.#active.forEach((net, i) => {
      const size = inputs[i].size / count;
      for (let k = 0; k < count; k++) {
        net.model.device.scope(() => {
          assign(inputs[i], this.#embed(net, net.maps[first + k]), k * size);
        });
      }
    });
  }

  #embed(net: Net, map: Frame): Tensor {
    const { model: { device }, kept } = net;
    const known = kept.get(map);
    if (known) return known;
    const { map: input, plan } = net.embedding ??= this.#recordEmbedding(net);
    assign(input, mapTensor(device, map, this.#size));
    plan.run();
    const { result } = plan;
    if (result.bytes > this.#room) return result;
    const copy = device.empty(result.shape, result.dtype).keep();
    assign(copy, result);
    this.#room -= copy.bytes;
    kept.set(map, copy);
    return copy;
  }

  #recordEmbedding({ model }: Net): Embedding {
    const { device, config: { conditioningChannels: channels } } = model;
    const { width, height } = this.#size;
    const map = device.empty([1, channels, height, width]).keep();
    try {
      return { map, plan: device.record(() => model.embed(map), this.#arena) };
    } catch (error) {
      map.dispose();
      throw error;
    }
  }

  /** What the nets that act add to the UNet for some rows; `null` if nothing. */
  residuals(rows: ControlRows): ControlResiduals | null {
    const { pass, sample, input, copies, timestep, texts, embedded, isAnchor, outer } = rows;
    const count = sample.shape[0];
    const parts = this.#active.flatMap(({ model, passes, scale, guessMode }, i) => {
      const own = passes[pass];
      if (!own) return [];
      const latents = guessMode ? sample : input;
      const options = { scale, guessMode, copies: guessMode ? 1 : copies };
      if (outer) return [model.outermost(latents, embedded[i], options)];
      const { text, anchor } = own;
      if (isAnchor) disposeCache(anchor);
      const frames = this.#settings.crossFrame
        ? { mode: "first", frames: count, anchor } as const
        : SELF;
      // The prompt's rows are the last ones.
      const seen = texts && guessMode ? narrow(texts, 0, texts.shape[0] - count, count) : texts;
      return [model.forward(latents, timestep, seen ?? text, embedded[i], { frames, ...options })];
    });
    const sum = sumResiduals(parts);
    return sum && { ...sum, intoMiddle: this.#settings.intoMiddle };
  }

  /** Forgets embedded maps, and keeps none any more; tells whether there were any. */
  relieve(): boolean {
    this.#room = 0;
    return this.#drop();
  }

  #drop(): boolean {
    const all = this.#nets.flatMap(({ kept }) => [...kept.values()]);
    for (const tensor of all) tensor.dispose();
    for (const { kept } of this.#nets) kept.clear();
    return all.length > 0;
  }

  /** Forgets the anchor frame and what was recorded. */
  forget(): void {
    for (const net of this.#nets) {
      for (const pass of net.passes) if (pass) disposeCache(pass.anchor);
      net.embedding?.plan.dispose();
      net.embedding?.map.dispose();
      net.embedding = null;
    }
  }

  /** Frees texts, anchors and embedded maps; the models stay. */
  dispose(): void {
    this.forget();
    this.#drop();
    for (const { passes } of this.#nets) {
      for (const pass of passes) if (pass) disposeCache(pass.text);
    }
  }
}

/** A map as ControlNets have it, `[1, 3, height, width]` in [0, 1]. */
function mapTensor(device: Device, map: Frame, size: Size): Tensor {
  return device.scope(() => add(mul(fitPicture(device, map, size), 0.5), 0.5));
}
