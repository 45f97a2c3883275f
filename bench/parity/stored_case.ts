/**
 * Cases stored in a safetensors file: `__metadata__.cases` lists them, the tensor `T` of case `C`
 * is called `C/T`.
 *
 * @module
 */

import { dirname, join } from "node:path";
import { InputError, type SafetensorsFile, type Shape } from "../../mod.ts";
import { exists } from "../../models/checkpoint.ts";
import type { Wanted } from "./case.ts";
import type { Tolerance } from "./compare.ts";
import { isRecord, type Params, record, text, texts } from "./params.ts";

const INTEGERS = /^([IU]\d+|BOOL)$/;

/** A case as it is stored. */
export interface StoredCase {
  /** Name, unique in its file. */
  readonly name: string;
  /** What is computed. */
  readonly op: string;
  /** Settings of the operation. */
  readonly params: Params;
  /** Roles of the tensors that go in. */
  readonly inputs: readonly string[];
  /** Roles of the tensors that must come out. */
  readonly outputs: readonly string[];
  /** How far these may be off. */
  readonly tolerance: Tolerance;
  /** The file that holds it. */
  readonly file: SafetensorsFile;
  /** Where the file lies. */
  readonly path: string;
}

/**
 * The cases of an open file; `null` if it is not a reference file.
 *
 * @throws {InputError} if the list is damaged.
 */
export function storedCases(file: SafetensorsFile, path: string): StoredCase[] | null {
  const { cases } = file.metadata;
  if (cases === undefined) return null;
  const list: unknown = JSON.parse(cases);
  if (!Array.isArray(list) || !list.every(isRecord)) {
    throw new InputError(`${path}: __metadata__.cases must be a list of cases`);
  }
  return list.map((item) => ({
    name: text(item, "name"),
    op: text(item, "op"),
    params: record(item, "params"),
    inputs: texts(item, "inputs"),
    outputs: texts(item, "outputs"),
    tolerance: record(item, "tol"),
    file,
    path,
  }));
}

/** Numbers of a tensor of the file, by its full name; `null` if there is none. */
export async function readTensor(file: SafetensorsFile, name: string): Promise<Wanted | null> {
  const info = file.tensors.get(name);
  if (!info) return null;
  const { dtype, shape } = info;
  if (INTEGERS.test(dtype)) return { data: await file.readInts(name), shape, integer: true };
  const data = dtype === "F64"
    ? new Float64Array((await file.read(name)).buffer)
    : await file.readF32(name);
  return { data, shape, integer: false };
}

/** An input on the host. */
export interface Input {
  /** Elements, row-major; integers as `Int32Array`. */
  readonly data: Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer>;
  /** Extents, outermost first. */
  readonly shape: Shape;
}

/**
 * An input of a case.
 *
 * @throws {InputError} if the file does not hold it.
 */
export async function readInput(
  { file, name, path }: StoredCase,
  role: string,
): Promise<Input> {
  const found = await readTensor(file, `${name}/${role}`) ?? await readTensor(file, role);
  if (!found?.shape) {
    throw new InputError(`${path}: the case ${name} needs the tensor ${name}/${role}`);
  }
  const { data, shape, integer } = found;
  return { shape, data: integer ? Int32Array.from(data) : Float32Array.from(data) };
}

/**
 * The folder that a case names, relative to the root of the references, which is one of the folders
 * above the file.
 *
 * @throws {InputError} if no folder above has it.
 */
export async function folderOf({ path }: StoredCase, name: string): Promise<string> {
  for (let at = dirname(path);; at = dirname(at)) {
    const folder = join(at, name);
    for (const index of ["model_index.json", "config.json"]) {
      if (await exists(join(folder, index))) return folder;
    }
    if (at === dirname(at)) break;
  }
  throw new InputError(`${path}: the folder ${name} that it names is in none of those above it`);
}
