/**
 * Names that come from servers and command lines and become paths in the cache: only those that
 * cannot lead out of it are let through.
 *
 * @module
 */

import { InputError } from "../../core/errors.ts";

/** Whether each part between slashes is a plain file name on Linux, macOS and Windows. */
export function isSafePath(name: string): boolean {
  return name.length <= 1024 && name.split("/").every(isSafeSegment);
}

function isSafeSegment(segment: string): boolean {
  return segment.length > 0 && segment.length <= 255 &&
    // deno-lint-ignore no-control-regex
    !/[\\:*?"<>|\x00-\x1f\x7f]/.test(segment) &&
    !/[. ]$/.test(segment) && // also "." and ".."; Windows drops such an ending
    !/^(con|prn|aux|nul|com\d|lpt\d)(\.|$)/i.test(segment);
}

/** A foreign text as it may stand in a message: short, printable, in quotation marks. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}

/**
 * Refuses a file name of a repository that would escape the cache folder.
 *
 * @throws {InputError} if the name has empty or dotted parts, backslashes, drives or the like.
 */
export function checkFileName(id: string, name: string): void {
  if (isSafePath(name)) return;
  throw new InputError(
    `${id}: a file must have a relative path of plain names, ${quoted(name)} could be written ` +
      `outside of the cache; do not use this repository`,
  );
}

/**
 * Refuses what is no id of a repository.
 *
 * @throws {InputError} unless the text is `owner/name` in the Hub's letters.
 */
export function checkModelId(id: string): void {
  if (isModelId(id)) return;
  throw new InputError(
    `${quoted(id)}: a model of the Hub is named owner/name (letters, digits, "-", "_", "."), ` +
      `as in the address of its page`,
  );
}

/** Whether the text has the form `owner/name`; two hyphens separate the two in the cache. */
export function isModelId(id: string): boolean {
  return id.length <= 96 && !/--|\.\./.test(id) && isSafePath(id) &&
    /^[A-Za-z0-9_][\w.-]*\/[A-Za-z0-9_][\w.-]*$/.test(id);
}

/**
 * Refuses what is no revision.
 *
 * @throws {InputError} unless the text can be a branch, a tag or a commit.
 */
export function checkRevision(revision: string): void {
  if (isSafePath(revision) && !/\.\.|[\s~^]/.test(revision)) return;
  throw new InputError(
    `${quoted(revision)}: a revision is a branch, a tag or a commit, such as main; ` +
      `write owner/name@revision`,
  );
}
