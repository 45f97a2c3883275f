/**
 * Waiting for something that another promise may end.
 *
 * @module
 */

/**
 * Waits for promises, each until `end` rejects. `Promise.race` would do for a single one; with an
 * `end` that outlives many it holds every result until then, for nothing takes its reactions back.
 *
 * @param end What rejects, now or ever; it needs no other handler.
 * @returns A function that settles as its promise does, or rejects as `end` does, whichever is first.
 */
export function endedBy(end: Promise<never>): <T>(promise: Promise<T>) => Promise<T> {
  const waiting = new Set<(reason: unknown) => void>();
  let refuse = (): void => {};
  end.catch((reason) => {
    refuse = () => {
      for (const reject of waiting) reject(reason);
      waiting.clear();
    };
    refuse();
  });
  return <T>(promise: Promise<T>) =>
    new Promise<T>((resolve, reject) => {
      waiting.add(reject);
      promise.finally(() => waiting.delete(reject)).then(resolve, reject);
      refuse();
    });
}
