/**
 * Where the time of an evaluation goes: the calls of kernels, summed by the kind of work.
 *
 * @module
 */

import type { ProfileRow } from "../../core/profiler.ts";
import type { Shape } from "../../core/shape.ts";

/** A call of a kernel, alone. */
export interface CallTime {
  /** Name of the kernel. */
  readonly kernel: string;
  /** Those of the inputs. */
  readonly shapes: readonly (Shape | null)[];
  /** Settings of the call. */
  readonly attributes: unknown;
  /** How often the evaluation makes this call. */
  readonly calls: number;
  /** Of one call. */
  readonly flops: number;
  /** Of one call, at least. */
  readonly bytes: number;
  /** Milliseconds of one call when nothing else runs, at best. */
  readonly best: number;
}

/** What one kind of work costs in an evaluation. */
export interface KindTime {
  /** What tables call it. */
  readonly kind: string;
  /** Calls of kernels. */
  readonly calls: number;
  /** Floating-point operations of all calls. */
  readonly flops: number;
  /** Bytes that all calls must move at least. */
  readonly bytes: number;
  /** GPU milliseconds within the evaluation; `null` without timestamps. */
  readonly milliseconds: number | null;
  /** Milliseconds of the same calls alone, at best. */
  readonly alone: number;
}

const ELEMENTWISE = "elementwise";
const LINEAR = "linear, conv 1×1";

const KINDS: Readonly<Record<string, string>> = {
  matmul: LINEAR,
  channel_linear: LINEAR,
  attention: "attention",
  group_norm: "norms",
  layer_norm: "norms",
  concat: "copies, resizing",
  strided_copy: "copies, resizing",
  interpolate: "copies, resizing",
};

/** The kind of work that a call is; convolutions are told apart by their window. */
export function kindOf(kernel: string, attributes: unknown): string {
  if (kernel !== "conv2d") return KINDS[kernel] ?? ELEMENTWISE;
  const { kernel: window } = attributes as { readonly kernel: readonly number[] };
  return window.every((extent) => extent === 1) ? LINEAR : `conv ${window.join("×")}`;
}

/**
 * Sums calls by kind, the costliest first.
 *
 * Time within the evaluation is measured for each kernel. Where calls of one kernel are of several
 * kinds, it is divided among them as their times alone are.
 *
 * @param profile What each kernel took within the evaluation.
 */
export function byKind(calls: readonly CallTime[], profile: readonly ProfileRow[]): KindTime[] {
  const inside = new Map(profile.map(({ name, milliseconds }) => [name, milliseconds]));
  const aloneOf = new Map<string, number>();
  for (const { kernel, calls: n, best } of calls) {
    aloneOf.set(kernel, (aloneOf.get(kernel) ?? 0) + n * best);
  }
  const sums = new Map<string, KindTime>();
  const add = (part: KindTime) => {
    const sum = sums.get(part.kind);
    sums.set(part.kind, sum ? plus(sum, part) : part);
  };
  for (const { kernel, attributes, calls: n, flops, bytes, best } of calls) {
    const whole = inside.get(kernel) ?? null;
    const alone = n * best;
    add({
      kind: kindOf(kernel, attributes),
      calls: n,
      flops: n * flops,
      bytes: n * bytes,
      milliseconds: whole === null ? null : whole * alone / (aloneOf.get(kernel) as number),
      alone,
    });
  }
  for (const { name, calls: n, flops, bytes, milliseconds } of profile) {
    // Copies of small tensors, which the walk along the layers leaves out.
    if (aloneOf.has(name)) continue;
    add({
      kind: KINDS[name] ?? ELEMENTWISE,
      calls: n,
      flops,
      bytes,
      milliseconds,
      alone: milliseconds ?? 0,
    });
  }
  return [...sums.values()].sort((a, b) => timeOf(b) - timeOf(a));
}

function plus(a: KindTime, b: KindTime): KindTime {
  return {
    kind: a.kind,
    calls: a.calls + b.calls,
    flops: a.flops + b.flops,
    bytes: a.bytes + b.bytes,
    milliseconds: a.milliseconds === null || b.milliseconds === null
      ? null
      : a.milliseconds + b.milliseconds,
    alone: a.alone + b.alone,
  };
}

/** Time within the evaluation where it is known, else alone. */
export function timeOf({ milliseconds, alone }: KindTime): number {
  return milliseconds ?? alone;
}
