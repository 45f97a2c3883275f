/**
 * Asking servers politely: redirects that never carry the token away, waiting when they ask for it,
 * trying again when a line breaks, and sentences for everything they refuse.
 *
 * @module
 */

import { reasonOf } from "../../core/byte_source.ts";
import { InputError, WeightError } from "../../core/errors.ts";
import {
  type HubOptions,
  type HubSettings,
  type TransferTuning,
  transferTuning,
} from "./environment.ts";

/** Who asks, and how patiently. */
export interface Client {
  /** Address of the Hub; the only origin that the token is sent to. */
  readonly endpoint: string;
  /** Access token, if there is one. */
  readonly token: string | null;
  /** Ends everything. */
  readonly signal: AbortSignal;
  /** How bytes are fetched. */
  readonly tuning: TransferTuning;
  /** Says a sentence to the user. */
  readonly notify: (text: string) => void;
}

/** What is asked for, as messages call it. */
export interface Subject {
  /** `owner/name`, or an address without its query. */
  readonly name: string;
  /** The page that a person can visit; undefined for what is no repository of the Hub. */
  readonly page?: string;
}

/** An answer, and what the Hub's redirects to its storage said on the way. */
export interface Reply {
  /** The last answer, its body unread. */
  readonly response: Response;
  /** `X-Linked-Etag`: sha256 of a large file, with quotes. */
  readonly linkedEtag: string | null;
  /** `X-Linked-Size`: its length in bytes. */
  readonly linkedSize: string | null;
}

/** Something that may well succeed when it is tried again. */
export class Transient extends Error {
  /** Seconds that the server asked to wait. */
  readonly retryAfter: number | undefined;

  /** What went wrong, without a full stop, and the seconds that the server asked to wait. */
  constructor(message: string, retryAfter?: number) {
    super(message);
    this.retryAfter = retryAfter;
  }
}

/** No answer after several attempts: where a copy in the cache may help. */
export class Unreachable extends InputError {}

const ATTEMPTS = 6;
const MAX_REDIRECTS = 10;
/** A server that wants to be left alone longer than so many seconds is not waited for. */
const MAX_WAIT = 300;
const MAX_JSON = 32 * 2 ** 20;

/** A client with the caller's settings. */
export function makeClient(settings: HubSettings, options: HubOptions): Client {
  return {
    endpoint: settings.endpoint,
    token: settings.token,
    signal: options.signal ?? new AbortController().signal,
    tuning: transferTuning(options.tuning),
    notify: options.onMessage ?? (() => {}),
  };
}

/** A client for one short answer, which must be complete before a connection counts as silent. */
export function withTimeout(client: Client): Client {
  const limit = AbortSignal.timeout(client.tuning.idleSeconds * 1000);
  return { ...client, signal: AbortSignal.any([client.signal, limit]) };
}

/** An address without what may be secret in it: user, password, query. */
export function publicUrl(url: string | URL): string {
  const { protocol, host, pathname } = new URL(url);
  return `${protocol}//${host}${pathname}`;
}

/**
 * One request, with its redirects followed by hand: the token goes to the Hub's own origin only.
 *
 * @returns an answer of status 2xx, or 416.
 * @throws {Transient} if it is worth trying again.
 * @throws {InputError} if the server refuses.
 */
export async function request(
  client: Client,
  subject: Subject,
  url: string,
  headers: Record<string, string> = {},
): Promise<Reply> {
  const { origin } = new URL(client.endpoint);
  let linkedEtag: string | null = null;
  let linkedSize: string | null = null;
  let here = new URL(url);
  for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
    const authorized = client.token !== null && here.origin === origin;
    const response = await fetch(here, {
      headers: {
        ...headers,
        "Accept-Encoding": "identity",
        ...(authorized && { Authorization: `Bearer ${client.token}` }),
      },
      redirect: "manual",
      signal: client.signal,
    }).catch((error: unknown) => {
      throw unreachable(here, error);
    });
    linkedEtag ??= response.headers.get("X-Linked-Etag");
    linkedSize ??= response.headers.get("X-Linked-Size");
    const { status } = response;
    if (response.ok || status === 416) return { response, linkedEtag, linkedSize };
    await response.body?.cancel();
    const location = response.headers.get("Location");
    if (status < 300 || status >= 400 || location === null) {
      throw refusal(response, client, subject, authorized);
    }
    here = follow(here, location);
  }
  throw new InputError(
    `${subject.name}: the server redirects more than ${MAX_REDIRECTS} times; check the address`,
  );
}

/** The text of a network error, without addresses: some runtimes quote them, queries and all. */
function unreachable(url: URL, error: unknown): Transient {
  const inner = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const reason = reasonOf(inner).replaceAll(/\S+:\/\/\S+/g, "…");
  return new Transient(`${url.host} cannot be reached (${reason})`);
}

function follow(from: URL, location: string): URL {
  const next = URL.canParse(location, from.href) ? new URL(location, from) : undefined;
  const safe = next?.protocol === "https:" ||
    (next?.protocol === "http:" && from.protocol === "http:");
  if (next && safe) return next;
  throw new InputError(
    `${publicUrl(from)}: redirects must lead to https addresses, this one leads to ` +
      `${next ? `${next.protocol}//${next.host}` : "none"}; check the address, or the proxy`,
  );
}

function refusal(
  response: Response,
  { token }: Client,
  { name, page }: Subject,
  authorized: boolean,
): Error {
  const { status, headers } = response;
  if (status === 408 || status === 429 || status >= 500) {
    const what = status === 429 ? "limits the rate of requests" : `answers ${status}`;
    return new Transient(`${name}: the server ${what}`, retryAfter(headers));
  }
  const code = headers.get("X-Error-Code");
  if (code === "GatedRepo") {
    return new InputError(
      `${name}: this model is gated, its authors want you to agree to their terms; ` +
        `visit ${page}, ` + (authorized
          ? "agree with the account that your token belongs to, and check that the token may " +
            "read gated repositories"
          : "log in and agree, then put a token of that account (page: settings/tokens) into " +
            "HF_TOKEN"),
    );
  }
  if (code === "RevisionNotFound" || code === "EntryNotFound") {
    const what = code === "EntryNotFound" ? "file" : "branch, tag or commit";
    return new InputError(`${name}: there is no such ${what}; visit ${page} to see which exist`);
  }
  if (page && (status === 401 || status === 403 || status === 404)) {
    return new InputError(
      `${name}: there is no such model, or it is private (status ${status}); visit ${page} to ` +
        (authorized
          ? "check the spelling, and that your token is valid and may read it"
          : "check the spelling; for a private model put a token into HF_TOKEN"),
    );
  }
  const login = status === 401 || status === 403
    ? `; it wants a login${token ? ", and your token is for the Hub only" : ""}: download the ` +
      "file with a browser and give its path"
    : "; check the address";
  return new InputError(`${name}: the server answers ${status} ${response.statusText}${login}`);
}

/** Seconds to wait: RFC 9110 §10.2.3 (seconds or a date), or the Hub's `RateLimit: …;t=45`. */
function retryAfter(headers: Headers): number | undefined {
  const text = headers.get("Retry-After");
  const seconds = text === null
    ? Number(/;\s*t=(\d+)/.exec(headers.get("RateLimit") ?? "")?.[1] ?? NaN)
    : /^\s*\d+\s*$/.test(text)
    ? Number(text)
    : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : undefined;
}

/**
 * Tries until it succeeds: with growing pauses, with the pause that the server asks for, and
 * without counting attempts that got something done.
 *
 * @param progressed Whether anything was achieved since it was asked last.
 * @throws {Unreachable} after six attempts in vain.
 */
export async function persist<T>(
  { signal, tuning, notify }: Client,
  attempt: () => Promise<T>,
  progressed: () => boolean = () => false,
): Promise<T> {
  for (let failures = 0;;) {
    signal.throwIfAborted();
    try {
      return await attempt();
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof Transient)) throw error;
      const { message, retryAfter } = error;
      failures = progressed() ? 0 : failures + 1;
      if (failures >= ATTEMPTS) {
        throw new Unreachable(
          `${message}, ${ATTEMPTS} times; check the network, and run this again: ` +
            "what has arrived is kept",
        );
      }
      if (retryAfter !== undefined && retryAfter > MAX_WAIT) {
        throw new InputError(
          `${message} and wants to be asked again in ${Math.ceil(retryAfter / 60)} minutes; run ` +
            "this again then: what has arrived is kept (a token in HF_TOKEN raises limits)",
        );
      }
      const pause = failures === 0 ? 0 : tuning.retrySeconds * 2 ** (failures - 1);
      const seconds = retryAfter ?? pause;
      if (seconds >= 1) notify(`${message}; trying again in ${Math.ceil(seconds)} s`);
      await sleep(seconds * 1000, signal);
    }
  }
}

/** Waits; throws the signal's reason as soon as it fires. */
export function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
  });
}

/**
 * Gets a JSON document of modest size.
 *
 * @throws {Unreachable} if there is no answer.
 * @throws {WeightError} if it is too long or no JSON.
 */
export async function requestJson(
  client: Client,
  subject: Subject,
  url: string,
): Promise<unknown> {
  const text = await persist(client, async () => {
    const { response } = await request(withTimeout(client), subject, url);
    const decoder = new TextDecoder();
    let text = "";
    try {
      for await (const chunk of response.body ?? []) {
        text += decoder.decode(chunk, { stream: true });
        if (text.length > MAX_JSON) break;
      }
    } catch (error) {
      throw unreachable(new URL(url), error);
    }
    return text;
  });
  try {
    if (text.length <= MAX_JSON) return JSON.parse(text);
  } catch {
    // Said below: what a JSON parser quotes of a web page helps nobody.
  }
  throw new WeightError(
    `${subject.name}: the server must describe the model in JSON, it sent something else; check ` +
      "HF_ENDPOINT, and whether a proxy or a login page stands in between",
  );
}
