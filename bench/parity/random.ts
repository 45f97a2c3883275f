/**
 * Reference files of random numbers.
 *
 * @module
 */

import { Generator } from "../../mod.ts";
import { Unsupported, type Values } from "./case.ts";
import { number, numbers, texts } from "./params.ts";
import type { StoredCase } from "./stored_case.ts";

/** Names of the operations that {@link drawCase} knows. */
export const RANDOM_OPS: ReadonlySet<string> = new Set([
  "randn",
  "randn_float64",
  "rand",
  "randint",
  "randperm",
  "sequence",
  "cuda_philox_randn",
]);

/** Upper end of the `randint` draws inside sequences, which their names do not say. */
const SEQUENCE_HIGH = 50;

/** The draws of a case, by role. */
export function drawCase({ op, name, params: p, file }: StoredCase): Record<string, Values> {
  const cuda = op === "cuda_philox_randn";
  const generator = new Generator(number(p, "seed"), cuda ? "cuda" : "cpu");
  const shape = () => numbers(p, "shape");
  switch (op) {
    case "randn":
      return { y: { data: generator.randn(shape()), shape: shape() } };
    case "randn_float64":
      return { y__f64: { data: generator.randnF64(shape()), shape: shape() } };
    case "rand":
      return { y: { data: generator.rand(shape()), shape: shape() } };
    case "randint":
      return {
        y: { data: generator.randint(number(p, "low", 0), number(p, "high"), shape()) },
      };
    case "randperm":
      return { y: { data: generator.randperm(number(p, "n")) } };
    case "cuda_philox_randn":
      for (let call = 0; call < number(p, "call_index", 0); call++) generator.randn(shape());
      return { y: { data: generator.randn(shape()), shape: shape() } };
    case "sequence":
      return Object.fromEntries(
        texts(p, "order").map((step) => {
          const stored = file.tensors.get(`${name}/${step}`)?.shape ?? [];
          return [step, { data: drawStep(generator, step, stored), shape: stored }];
        }),
      );
  }
  throw new Unsupported(`random numbers by ${op}`);
}

/** A step of a sequence: `randn20`, `rand5`, `randint7`; latents have names of their own. */
function drawStep(generator: Generator, step: string, shape: readonly number[]) {
  if (step.startsWith("randint")) return generator.randint(0, SEQUENCE_HIGH, shape);
  if (/^rand\d/.test(step)) return generator.rand(shape);
  return generator.randn(shape);
}
