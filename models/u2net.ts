/**
 * U²-Net finds the salient object of a picture (Qin et al. 2020, arXiv:2005.09007): a U-shaped
 * network whose stages are U-shaped networks themselves (residual U-blocks, RSU). The published
 * checkpoints are the full one and the small one, U²-Net-p; they differ in widths, which are read
 * off the weights.
 *
 * @module
 */

import type { Device } from "../core/device.ts";
import { ShapeError, WeightError } from "../core/errors.ts";
import { openSafetensors } from "../core/safetensors.ts";
import { formatShape } from "../core/shape.ts";
import type { Tensor } from "../core/tensor.ts";
import {
  add,
  cast,
  concat,
  conv2d,
  div,
  interpolate,
  max,
  maximum,
  maxPool2d,
  min,
  relu,
  sigmoid,
  sub,
} from "../kernels/mod.ts";
import { foldBatchNorms } from "./batch_norm.ts";
import { merged } from "./checkpoint.ts";
import { conv, type Layer } from "./layers.ts";
import { loadModel, type ModelOptions, type Weights, type WeightSource } from "./weights.ts";

/** Side of the pictures that it was trained with, and is given here. */
const SIDE = 320;

/** Sides are halved five times, and five times within the first stage. */
const MULTIPLE = 32;

/** Mean and standard deviation of ImageNet's colours. */
const COLOURS = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

/** Keeps quotients finite where a picture is black, or nothing stands out. */
const TINY = 1e-6;

/** Stages on the way down; the way up has those with a `d` behind the name, without the last. */
const STAGES = 6;

/** A network of salient objects. */
export class U2Net {
  readonly #weights: Weights;
  readonly #forward: Layer;

  private constructor(weights: Weights, source: WeightSource) {
    this.#weights = weights;
    this.#forward = network(weights, source);
  }

  /**
   * Loads a network with the names of the published checkpoints.
   *
   * @throws {WeightError} if tensors are missing, superfluous or of another shape.
   */
  static load(source: WeightSource, options: ModelOptions): Promise<U2Net> {
    const folded = foldBatchNorms(source, "conv_s1", "bn_s1");
    return loadModel(folded, options, (weights) => new U2Net(weights, folded));
  }

  /** Loads it from a `.safetensors` file. */
  static async open(
    file: Parameters<typeof openSafetensors>[0],
    options: ModelOptions,
  ): Promise<U2Net> {
    const opened = await openSafetensors(file);
    const source = merged([opened], opened.name);
    try {
      return await U2Net.load(source, options);
    } finally {
      await source.close();
    }
  }

  /** Device that it lives on. */
  get device(): Device {
    return this.#weights.device;
  }

  /**
   * What stands out in pictures as the network has them: the fused map d₀.
   *
   * @param pictures `[B, 3, H, W]`, normalised; sides are multiples of 32.
   * @returns `[B, 1, H, W]` in f32, from 0 to 1.
   * @throws {ShapeError} if the shape is another.
   */
  forward(pictures: Tensor): Tensor {
    const { shape, device } = pictures;
    if (shape.length !== 4 || shape[1] !== 3 || shape[2] % MULTIPLE || shape[3] % MULTIPLE) {
      throw new ShapeError(
        `U²-Net: pictures must be [B, 3, H, W] with sides that are multiples of ${MULTIPLE}, got ` +
          formatShape(shape),
      );
    }
    return device.scope(() => cast(this.#forward(cast(pictures, this.#weights.dtype)), "f32"));
  }

  /**
   * The foreground of a picture, as the authors find it: brought to 320×320, the lightest value
   * made 1, colours normalised; of the result the least value becomes 0, the largest 1.
   *
   * @param picture `[1, 3, H, W]` from 0 to 1.
   * @returns `[1, 1, H, W]` from 0 to 1.
   */
  detect(picture: Tensor): Tensor {
    const [, , H, W] = picture.shape;
    const { device } = picture;
    return device.scope(() => {
      const bilinear = { mode: "bilinear", antialias: true } as const;
      const small = interpolate(picture, { ...bilinear, size: [SIDE, SIDE] });
      const light = div(small, maximum(max(small), TINY));
      const colour = (values: number[]) => device.tensor(values, [1, 3, 1, 1]);
      const map = this.forward(div(sub(light, colour(COLOURS.mean)), colour(COLOURS.std)));
      const risen = sub(map, min(map));
      const stretched = div(risen, maximum(max(risen), TINY));
      return interpolate(stretched, { ...bilinear, size: [H, W] });
    });
  }

  /** Frees the weights. */
  dispose(): void {
    this.#weights.dispose();
  }
}

/** Channels inside a stage, and of its output. */
interface Widths {
  readonly mid: number;
  readonly outputs: number;
}

function widthsOf({ name, tensors }: WeightSource, stage: string): Widths {
  const entry = tensors.get(`${stage}.rebnconv1.conv_s1.weight`);
  const shape = entry?.file.tensors.get(entry.key)?.shape;
  if (shape?.length === 4) return { mid: shape[0], outputs: shape[1] };
  throw new WeightError(
    `${name}: the tensor ${stage}.rebnconv1.conv_s1.weight of U²-Net is missing; give a ` +
      "checkpoint of U²-Net or U²-Net-p with its published names, converted to safetensors",
  );
}

/** `relu(norm(conv(x)))`, 3×3 and dilated; the norm is in the weights. */
function block(w: Weights, inputs: number, outputs: number, dilation: number): Layer {
  const at = w.at("conv_s1");
  const weight = at.packed("weight", [outputs, inputs, 3, 3]);
  const bias = at.tensor("bias", [outputs]);
  const settings = { kernel: [3, 3], outputs, padding: dilation, dilation } as const;
  return w.module((x) => relu(conv2d(x, weight, bias, settings)));
}

// Sides are multiples of 32, so that every extent that is halved is even.
const halve: Layer = (x) => maxPool2d(x, 2);

/** `x` at the size of another feature map. */
function enlarge(x: Tensor, like: Tensor): Tensor {
  const [, , H, W] = like.shape;
  if (x.shape[2] === H && x.shape[3] === W) return x;
  return interpolate(x, { size: [H, W], mode: "bilinear" });
}

/** Dilations on the way down of a residual U-block, and whether it halves the size there. */
interface Block {
  readonly dilations: readonly number[];
  readonly halves: boolean;
}

/** The blocks of the stages: RSU-7, -6, -5, -4, then two of RSU-4F, which keeps its size. */
const BLOCKS: readonly Block[] = [
  { dilations: [1, 1, 1, 1, 1, 1, 2], halves: true },
  { dilations: [1, 1, 1, 1, 1, 2], halves: true },
  { dilations: [1, 1, 1, 1, 2], halves: true },
  { dilations: [1, 1, 1, 2], halves: true },
  { dilations: [1, 2, 4, 8], halves: false },
  { dilations: [1, 2, 4, 8], halves: false },
];

/** A residual U-block: `U(f(x)) + f(x)` with a convolution f. */
function residualU(
  w: Weights,
  inputs: number,
  { mid, outputs }: Widths,
  { dilations, halves }: Block,
): Layer {
  const bottom = dilations.length - 1;
  const first = block(w.at("rebnconvin"), inputs, outputs, 1);
  const down = dilations.map((dilation, i) =>
    block(w.at(`rebnconv${i + 1}`), i ? mid : outputs, mid, dilation)
  );
  const up = dilations.slice(0, bottom).map((dilation, i) =>
    block(w.at(`rebnconv${i + 1}d`), 2 * mid, i ? mid : outputs, dilation)
  );
  return w.module((x) => {
    const residual = first(x);
    const skips: Tensor[] = [];
    let h = residual;
    down.forEach((layer, i) => {
      h = layer(halves && i > 0 && i < bottom ? halve(h) : h);
      skips.push(h);
    });
    for (let i = bottom - 1; i >= 0; i--) {
      h = x.device.scope(() => up[i](concat([enlarge(h, skips[i]), skips[i]], 1)));
    }
    return add(h, residual);
  });
}

function network(w: Weights, source: WeightSource): Layer {
  const widths = (stage: string) => widthsOf(source, stage);
  const names = Array.from({ length: STAGES }, (_, i) => `stage${i + 1}`);
  const outputs = names.map((name) => widths(name).outputs);
  const down = names.map((name, i) =>
    residualU(w.at(name), i ? outputs[i - 1] : 3, widths(name), BLOCKS[i])
  );
  const decoded = [...names.slice(0, -1).map((name) => widths(`${name}d`).outputs), outputs[5]];
  const up = names.slice(0, -1).map((name, i) =>
    residualU(w.at(`${name}d`), decoded[i + 1] + outputs[i], widths(`${name}d`), BLOCKS[i])
  );
  const sides = decoded.map((channels, i) => conv(w.at(`side${i + 1}`), channels, 1, 3));
  const fuse = conv(w.at("outconv"), STAGES, 1, 1);
  return (x) => {
    const skips: Tensor[] = [];
    down.forEach((stage, i) => skips.push(stage(i ? halve(skips[i - 1]) : x)));
    const features = [skips[STAGES - 1]];
    for (let i = STAGES - 2; i >= 0; i--) {
      const joined = () => concat([enlarge(features[0], skips[i]), skips[i]], 1);
      features.unshift(x.device.scope(() => up[i](joined())));
    }
    const maps = features.map((feature, i) => sides[i](feature));
    return sigmoid(fuse(concat(maps.map((map) => enlarge(map, maps[0])), 1)));
  };
}
