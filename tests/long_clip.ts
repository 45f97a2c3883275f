/**
 * Reads a clip and prints, as JSON, the frames that came and the resident set after the first 500 of
 * them and at most later. A program of its own: what other tests leave behind would blur the figures.
 */

import process from "node:process";
import { openVideo } from "../video/reader.ts";

const reader = await openVideo(process.argv[2]);
let count = 0, early = 0, most = 0;
for await (const { width, height, data } of reader.frames()) {
  if (data.length !== 3 * width * height) throw new Error(`frame ${count} is not whole`);
  count++;
  if (count % 100 > 0) continue;
  const { rss } = process.memoryUsage();
  if (count <= 500) early = Math.max(early, rss);
  most = Math.max(most, rss);
}
const { duration, frames } = reader.info;
await reader.close();
console.log(JSON.stringify({ duration, frames, count, early, most }));
process.exit(0);
