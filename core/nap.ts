/**
 * Waiting for a GPU that is a thread of this process.
 *
 * @module
 */

/** Longest nap, in milliseconds: what a wait may take too long. */
const NAP = 2;

/**
 * Waits for a promise of Dawn. Dawn asks the GPU again and again while a promise is pending, which
 * keeps a core busy that a software adapter computes on; so the thread sleeps between two questions.
 * It asks in every turn of the event loop, so the next nap begins in the next turn: a timer would leave
 * it a millisecond of asking.
 */
export async function napUntil<T>(promise: Promise<T>): Promise<T> {
  const cell = new Int32Array(new SharedArrayBuffer(4));
  let pending = true;
  let nap = 0.05;
  const sleep = () => {
    if (!pending) return;
    Atomics.wait(cell, 0, 0, nap);
    nap = Math.min(NAP, 1.2 * nap);
    setImmediate(sleep);
  };
  setImmediate(sleep);
  try {
    return await promise;
  } finally {
    pending = false;
  }
}
