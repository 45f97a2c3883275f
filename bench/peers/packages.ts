/**
 * Imports from a folder of packages that is not the library's own.
 *
 * @module
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/** A loaded package. */
export interface LoadedPackage<T> {
  /** What it exports. */
  readonly exports: T;
  /** From its `package.json`. */
  readonly version: string;
}

/**
 * Imports a package from `folder/node_modules`.
 *
 * @param entry File of the package; by default the one that its `package.json` gives to `import`.
 */
export async function importPackage<T>(
  folder: string,
  name: string,
  entry?: string,
): Promise<LoadedPackage<T>> {
  const root = join(folder, "node_modules", name);
  const manifest = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as {
    version: string;
    main: string;
  };
  const file: string = pathToFileURL(join(root, entry ?? manifest.main)).href;
  const module = await import(file) as { default?: T } & T;
  // A CommonJS package may come as the default export alone.
  const exports = Object.keys(module).length === 1 && module.default ? module.default : module;
  return { exports, version: manifest.version };
}
