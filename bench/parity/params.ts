/**
 * Typed access to the `params` of a case, which may hold anything.
 *
 * @module
 */

import { InputError } from "../../mod.ts";

/** Settings of a case, as parsed from JSON. */
export type Params = Readonly<Record<string, unknown>>;

/** Whether a value is a JSON object. */
export function isRecord(value: unknown): value is Params {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => typeof item === "number");
}

function wrong(key: string, value: unknown, kind: string): InputError {
  return new InputError(
    `the case's parameter "${key}" must be ${kind}, got ${JSON.stringify(value)}`,
  );
}

/**
 * A number.
 *
 * @throws {InputError} if it is another type, or absent without a fallback.
 */
export function number(params: Params, key: string, fallback?: number): number {
  const value = params[key] ?? fallback;
  if (typeof value === "number") return value;
  throw wrong(key, value, "a number");
}

/**
 * A text.
 *
 * @throws {InputError} if it is another type, or absent without a fallback.
 */
export function text(params: Params, key: string, fallback?: string): string {
  const value = params[key] ?? fallback;
  if (typeof value === "string") return value;
  throw wrong(key, value, "a text");
}

/**
 * One of some texts.
 *
 * @throws {InputError} if it is another, or absent without a fallback.
 */
export function choice<const T extends string>(
  params: Params,
  key: string,
  choices: readonly T[],
  fallback?: NoInfer<T>,
): T {
  const value = text(params, key, fallback);
  const found = choices.find((item) => item === value);
  if (found !== undefined) return found;
  throw wrong(key, value, `one of ${choices.join(", ")}`);
}

/**
 * A flag.
 *
 * @throws {InputError} if it is another type, or absent without a fallback.
 */
export function flag(params: Params, key: string, fallback?: boolean): boolean {
  const value = params[key] ?? fallback;
  if (typeof value === "boolean") return value;
  throw wrong(key, value, "true or false");
}

/**
 * A list of numbers.
 *
 * @throws {InputError} if it is another type or absent.
 */
export function numbers(params: Params, key: string): readonly number[] {
  const value = params[key];
  if (isNumbers(value)) return value;
  throw wrong(key, value, "a list of numbers");
}

/**
 * A list of lists of numbers.
 *
 * @throws {InputError} if it is another type or absent.
 */
export function table(params: Params, key: string): readonly (readonly number[])[] {
  const value = params[key];
  if (Array.isArray(value) && value.every(isNumbers)) return value;
  throw wrong(key, value, "a list of lists of numbers");
}

/**
 * A list of texts.
 *
 * @throws {InputError} if it is another type or absent.
 */
export function texts(params: Params, key: string): readonly string[] {
  const value = params[key];
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
  throw wrong(key, value, "a list of texts");
}

/**
 * A number, or one for each of two axes.
 *
 * @throws {InputError} if it is neither.
 */
export function pair(
  params: Params,
  key: string,
  fallback: number,
): readonly [number, number] {
  const value = params[key] ?? fallback;
  if (typeof value === "number") return [value, value];
  if (isNumbers(value) && value.length === 2) return [value[0], value[1]];
  throw wrong(key, value, "a number or two");
}

/**
 * A JSON object; empty if absent.
 *
 * @throws {InputError} if it is another type.
 */
export function record(params: Params, key: string): Params {
  const value = params[key] ?? {};
  if (isRecord(value)) return value;
  throw wrong(key, value, "an object");
}
