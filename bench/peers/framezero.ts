/**
 * framezero as a contender: its public operations as its models call them, on channel-major tensors
 * with weights in panels.
 *
 * @module
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Device, openDevice } from "../../core/device.ts";
import type { Tensor } from "../../core/tensor.ts";
import { attention, channelLinear, conv2d, groupNorm, packPanels } from "../../kernels/mod.ts";
import { settingOf } from "../setting.ts";
import type { Library, Place, Prepared } from "./library.ts";
import { EPS, permuted, type Problem, valuesOf } from "./problems.ts";

/** Opens a device. */
export async function openFramezero({ root, gpu }: Place): Promise<Library> {
  const device = await openDevice({ gpu });
  const manifest = await readFile(join(root, "package.json"), "utf8");
  const { version } = JSON.parse(manifest) as { version: string };
  return {
    version,
    setting: settingOf(device),
    prepare: (problem) => prepare(device, problem),
  };
}

async function prepare(device: Device, problem: Problem): Promise<Prepared> {
  const scope = device.scope();
  const call = callOf(device, problem);
  await device.sync();
  return {
    async result() {
      const output = call();
      const data = await output.data() as Float32Array;
      output.dispose();
      return data;
    },
    async run(calls) {
      for (let i = 0; i < calls; i++) call().dispose();
      await device.sync();
    },
    dispose: () => scope[Symbol.dispose](),
  };
}

function callOf(device: Device, problem: Problem): () => Tensor {
  const values = valuesOf(problem);
  switch (problem.op) {
    case "matmul": {
      const { tokens, inputs, outputs } = problem;
      const x = device.tensor(values[0], [1, inputs, tokens]);
      const w = device.tensor(permuted(values[1], [inputs, outputs], [1, 0]), [outputs, inputs]);
      const panels = packPanels(w);
      return () => channelLinear(x, panels, null, { outputs });
    }
    case "conv2d": {
      const { channels: C, side } = problem;
      const x = device.tensor(values[0], [1, C, side, side]);
      const panels = packPanels(device.tensor(values[1], [C, C, 3, 3]));
      return () => conv2d(x, panels, null, { kernel: [3, 3], outputs: C, padding: 1 });
    }
    case "attention": {
      const shape = [1, problem.heads * problem.width, problem.tokens];
      const [q, k, v] = values.map((data) => device.tensor(data, shape));
      return () => attention(q, k, v, { heads: problem.heads });
    }
    case "group_norm": {
      const { groups, channels, side } = problem;
      const x = device.tensor(values[0], [1, channels, side, side]);
      const [w, b] = values.slice(1).map((data) => device.tensor(data));
      return () => groupNorm(x, groups, w, b, { eps: EPS });
    }
  }
}
