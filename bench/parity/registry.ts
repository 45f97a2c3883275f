/**
 * Which part of framezero runs a case that is stored in a safetensors file.
 *
 * @module
 */

import { openSafetensors, Tensor } from "../../mod.ts";
import { type Case, type CaseFile, type Family, type Outputs, Unsupported } from "./case.ts";
import { MODEL_OPS } from "./models.ts";
import { EDIT_OPS } from "./edits.ts";
import { COORDINATES, type Op, OPS } from "./ops.ts";
import { ORIGINAL_OPS } from "./original.ts";
import { PIPELINE_OPS } from "./pipelines.ts";
import { drawCase, RANDOM_OPS } from "./random.ts";
import { SCHEDULER_OPS } from "./schedulers.ts";
import { readInput, readTensor, type StoredCase, storedCases } from "./stored_case.ts";

/** Opens a safetensors file; `null` if it holds no cases. */
export async function openCases(path: string): Promise<CaseFile | null> {
  const file = await openSafetensors(path);
  try {
    const stored = storedCases(file, path);
    if (!stored) {
      await file.close();
      return null;
    }
    return { cases: stored.map(caseOf), close: () => file.close() };
  } catch (error) {
    await file.close();
    throw error;
  }
}

function caseOf(test: StoredCase): Case {
  const { family, run } = runnerOf(test);
  const { name, op, outputs, tolerance, file } = test;
  return {
    name,
    op,
    family,
    outputs,
    tolerance,
    want: (role) => readTensor(file, `${name}/${role}`),
    run,
  };
}

function runnerOf(test: StoredCase): { family: Family; run: Case["run"] } {
  const { op, outputs } = test;
  if (op.endsWith("_grad") || outputs.some((role) => role.startsWith("d_"))) {
    return { family: "host", run: () => Promise.reject(new Unsupported("gradients")) };
  }
  const primitive = OPS.get(op);
  if (primitive) {
    return {
      family: JUMPS.has(op) ? "host" : "op",
      run: (setting) => runOp(test, primitive, setting),
    };
  }
  if (RANDOM_OPS.has(op)) return { family: "host", run: async () => await drawCase(test) };
  const scheduler = SCHEDULER_OPS.get(op);
  if (scheduler) return { family: "host", run: ({ device }) => scheduler(test, device) };
  const model = MODEL_OPS.get(op);
  if (model) return { family: "model", run: (setting) => model(test, setting) };
  const pipeline = PIPELINE_OPS.get(op) ?? ORIGINAL_OPS.get(op) ?? EDIT_OPS.get(op);
  if (pipeline) return { family: "pipeline", run: (setting) => pipeline(test, setting) };
  return {
    family: "host",
    run: () => Promise.reject(new Unsupported(`the operation ${JSON.stringify(op)}`)),
  };
}

/** Operations whose result jumps where rounding moves an input over an edge: they stay in f32. */
const JUMPS: ReadonlySet<string> = new Set(["argmax", "floor", "greater", "round"]);

async function runOp(
  test: StoredCase,
  op: Op,
  { device, dtype }: Parameters<Case["run"]>[0],
): Promise<Outputs> {
  const inputs = await Promise.all(
    test.inputs.map(async (role) => ({ role, ...await readInput(test, role) })),
  );
  const half = dtype === "f16" && !JUMPS.has(test.op);
  return device.scope(() => {
    const tensors = inputs.map(({ role, data, shape }) => {
      const float = half && !COORDINATES.has(role) ? "f16" : "f32";
      const type = data instanceof Int32Array ? "i32" : float;
      return [role, device.tensor(data, shape, type)] as const;
    });
    const result = op(Object.fromEntries(tensors), test.params);
    return result instanceof Tensor ? { y: result } : result;
  });
}
