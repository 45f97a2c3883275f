/**
 * Where the Hub is, where its cache lies, and who asks: the environment variables of Hugging Face's
 * own tools, read the way those tools read them.
 *
 * @module
 */

import { fileSystem } from "../../core/byte_source.ts";
import { InputError } from "../../core/errors.ts";
import type { ProgressListener } from "./progress.ts";

/** How bytes are fetched; every field has a default that suits ordinary lines. */
export interface TransferTuning {
  /** Bytes asked for at a time. Default 32 MiB. */
  readonly blockBytes: number;
  /** Requests at the same time for one file. Default 4. */
  readonly connections: number;
  /** A connection that is silent for so many seconds counts as broken. Default 60. */
  readonly idleSeconds: number;
  /** The pause before the second attempt; it doubles with each further one. Default 0.5. */
  readonly retrySeconds: number;
}

/** What all downloads have in common. */
export interface HubOptions {
  /** Access token; `null` sends none. Default: `HF_TOKEN`, else what `hf auth login` has stored. */
  readonly token?: string | null;
  /** Address of the Hub. Default: `HF_ENDPOINT`, else `https://huggingface.co`. */
  readonly endpoint?: string;
  /** Folder of the cache. Default: `HF_HUB_CACHE`, else `hub` inside `HF_HOME`. */
  readonly cache?: string;
  /** Use only what the cache holds. Default: whether `HF_HUB_OFFLINE` is set. */
  readonly offline?: boolean;
  /** Called a few times a second while bytes arrive. */
  readonly onProgress?: ProgressListener;
  /** Called with a sentence when there is something to wait for, or to know. */
  readonly onMessage?: (text: string) => void;
  /** Stops the download; what has arrived is kept, and the next call continues there. */
  readonly signal?: AbortSignal;
  /** How bytes are fetched. */
  readonly tuning?: Partial<TransferTuning>;
}

/** {@link HubOptions} with the environment's values filled in. */
export interface HubSettings {
  /** Folder of the cache, without a slash at its end. */
  readonly cache: string;
  /** Address of the Hub, without a slash at its end. */
  readonly endpoint: string;
  /** Access token, if there is one. */
  readonly token: string | null;
  /** Whether the network must not be used. */
  readonly offline: boolean;
}

const DEFAULT_TUNING: TransferTuning = {
  blockBytes: 32 * 2 ** 20,
  connections: 4,
  idleSeconds: 60,
  retrySeconds: 0.5,
};

/**
 * The settings of transfers, with the defaults of what is left out.
 *
 * @throws {InputError} if a number is out of range.
 */
export function transferTuning(given: Partial<TransferTuning> = {}): TransferTuning {
  const tuning = { ...DEFAULT_TUNING, ...given };
  for (const key of ["blockBytes", "connections"] as const) {
    if (!Number.isSafeInteger(tuning[key]) || tuning[key] < 1) {
      throw new InputError(`tuning.${key} must be a positive integer, got ${tuning[key]}`);
    }
  }
  for (const key of ["idleSeconds", "retrySeconds"] as const) {
    if (!(tuning[key] > 0)) throw new InputError(`tuning.${key} must be > 0, got ${tuning[key]}`);
  }
  return tuning;
}

/**
 * Reads the environment.
 *
 * @throws {InputError} if the endpoint is no address, or the token cannot be one.
 */
export async function hubSettings(options: HubOptions): Promise<HubSettings> {
  await fileSystem(); // says so where there is none, before the imports below fail
  const { env } = (await import("node:process")).default;
  const { homedir } = await import("node:os");
  const folder = (path: string) => path.replace(/^~(?=[/\\]|$)/, () => homedir());
  const home = folder(
    env.HF_HOME || `${env.XDG_CACHE_HOME || `${homedir()}/.cache`}/huggingface`,
  );
  const cache = folder(options.cache || env.HF_HUB_CACHE || `${home}/hub`);
  const token = options.token === undefined
    ? env.HF_TOKEN || await readToken(folder(env.HF_TOKEN_PATH || `${home}/token`))
    : options.token;
  return {
    cache: cache.replace(/(?<=.)[/\\]+$/, ""),
    endpoint: checkEndpoint(options.endpoint || env.HF_ENDPOINT || "https://huggingface.co"),
    token: checkToken(token),
    offline: options.offline ?? /^(1|on|yes|true)$/i.test(env.HF_HUB_OFFLINE ?? ""),
  };
}

async function readToken(file: string): Promise<string | null> {
  const fs = await fileSystem();
  try {
    return await fs.readFile(file, "utf8");
  } catch {
    return null; // most people have none, and public models need none
  }
}

/** A refused header would be quoted by the runtime's own message, so it must never get that far. */
function checkToken(token: string | null): string | null {
  const trimmed = token?.trim() ?? "";
  if (/^[\x21-\x7e]*$/.test(trimmed)) return trimmed || null;
  throw new InputError(
    "an access token consists of ASCII letters, digits and signs without spaces, the one given " +
      "does not; copy it again from the settings page of your account into HF_TOKEN",
  );
}

function checkEndpoint(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url && /^https?:$/.test(url.protocol) && !url.username && !url.search) {
    return (url.origin + url.pathname).replace(/\/+$/, "");
  }
  throw new InputError(
    "HF_ENDPOINT must be an address like https://huggingface.co, without user name and query; " +
      "correct it, or unset it",
  );
}
