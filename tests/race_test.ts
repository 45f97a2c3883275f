/**
 * Waiting for what another promise may end.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { endedBy } from "../core/race.ts";

const never = () => new Promise<never>(() => {});
const failed = (text: string) => Promise.reject<never>(new Error(text));

describe("a promise that another may end", () => {
  it("settles as it does while the other is pending", async () => {
    const unless = endedBy(never());
    assert.equal(await unless(Promise.resolve(3)), 3);
    await assert.rejects(unless(failed("mine")), /^Error: mine$/);
  });

  it("rejects as the other does, whoever waits, then and later", async () => {
    let end = (_: Error): void => {};
    const unless = endedBy(new Promise<never>((_, reject) => end = reject));
    const [first, second] = [unless(never()), unless(never())];
    end(new Error("lost"));
    await assert.rejects(first, /^Error: lost$/);
    await assert.rejects(second, /^Error: lost$/);
    await assert.rejects(unless(never()), /^Error: lost$/);
  });

  it("is not blamed for an end that nobody waits for", async () => {
    const unless = endedBy(failed("lost"));
    await new Promise((resolve) => setTimeout(resolve));
    const late = failed("late");
    await assert.rejects(unless(late), /^Error: lost$/);
  });
});
