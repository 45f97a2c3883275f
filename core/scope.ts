/**
 * Scopes: a stack that frees the tensors made inside it.
 *
 * @module
 */

import { GpuError } from "./errors.ts";
import type { Tensor } from "./tensor.ts";

/** The scopes that are open on one device, innermost last. */
export class ScopeStack {
  readonly #open: Set<Tensor>[] = [];

  /** Notes a new tensor in the innermost scope. */
  add(tensor: Tensor): void {
    this.#open.at(-1)?.add(tensor);
  }

  /** Forgets a tensor: it was disposed of, or shall outlive its scope. */
  remove(tensor: Tensor): void {
    for (let i = this.#open.length - 1; i >= 0; i--) {
      if (this.#open[i].delete(tensor)) return;
    }
  }

  /** Runs `body`; frees the tensors that it made, except those anywhere inside its result. */
  run<T>(body: () => T): T {
    const scope = this.open();
    try {
      const result = body();
      if (result instanceof Promise) {
        throw new GpuError(
          "scope: the body must not be asynchronous, because other work would run inside its " +
            "scope; await outside, or use keep() and dispose()",
        );
      }
      scope.keep(result);
      return result;
    } finally {
      scope[Symbol.dispose]();
    }
  }

  /** Opens a scope that ends with `using` or by hand. */
  open(): Scope {
    const stack = this.#open;
    const made = new Set<Tensor>();
    stack.push(made);
    return {
      keep(value: unknown): void {
        const outer = stack[stack.indexOf(made) - 1];
        for (const tensor of tensorsIn(value)) {
          if (made.delete(tensor)) outer?.add(tensor);
        }
      },
      [Symbol.dispose](): void {
        if (stack.at(-1) !== made) {
          throw new GpuError(
            "scope: scopes must end in the reverse order of their beginnings; " +
              "two asynchronous tasks on one device must not hold scopes across an await",
          );
        }
        stack.pop();
        for (const tensor of made) tensor.dispose();
      },
    };
  }
}

/** An open scope. */
export interface Scope extends Disposable {
  /** Moves the tensors in `value`, also inside arrays and plain objects, to the outer scope. */
  keep(value: unknown): void;
}

function* tensorsIn(value: unknown): Generator<Tensor> {
  if (typeof value !== "object" || value === null) return;
  if (isTensor(value)) {
    yield value;
  } else if (Array.isArray(value) || value instanceof Map || value instanceof Set) {
    for (const item of value.values()) yield* tensorsIn(item);
  } else if (Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) yield* tensorsIn(item);
  }
}

function isTensor(value: object): value is Tensor {
  return "storage" in value && "shape" in value;
}
