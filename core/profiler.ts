/**
 * Where GPU time goes: a timestamp pair around every dispatch and the copies for it, summed by
 * operation.
 *
 * @module
 */

/** What one kind of operation cost. */
export interface ProfileRow {
  /** Kernel name. */
  readonly name: string;
  /** Number of operations. */
  calls: number;
  /** Number of shader runs. */
  dispatches: number;
  /** GPU milliseconds, or `null` where the adapter has no timestamps. */
  milliseconds: number | null;
  /** Floating-point operations. */
  flops: number;
  /** Bytes that had to move at least. */
  bytes: number;
}

/** What the door tells about an operation. */
export interface OpCost {
  /** Kernel name. */
  readonly name: string;
  /** Floating-point operations. */
  readonly flops: () => number;
  /** Bytes that must move at least. */
  readonly bytes: () => number;
}

interface Batch {
  readonly querySet: GPUQuerySet;
  readonly rows: ProfileRow[];
  staging: GPUBuffer | null;
}

/** Collects timestamps while it is set on a queue. */
export class Profiler {
  readonly #gpu: GPUDevice;
  readonly #timestamps: boolean;
  readonly #rows = new Map<string, ProfileRow>();
  readonly #batches: Batch[] = [];
  readonly #size: number;
  #row: ProfileRow | null = null;
  /** Whether the time of the next dispatch has begun. */
  #begun = false;

  /** `size`: most dispatches in one submission. */
  constructor(gpu: GPUDevice, size: number) {
    this.#gpu = gpu;
    this.#size = size;
    this.#timestamps = gpu.features.has("timestamp-query");
  }

  /** Begins an operation: the dispatches that follow belong to it. */
  begin(op: OpCost): void {
    let row = this.#rows.get(op.name);
    if (!row) {
      const milliseconds = this.#timestamps ? 0 : null;
      row = { name: op.name, calls: 0, dispatches: 0, milliseconds, flops: 0, bytes: 0 };
      this.#rows.set(op.name, row);
    }
    row.calls++;
    row.flops += op.flops();
    row.bytes += op.bytes();
    this.#row = row;
  }

  /** Timestamps for the next dispatch, where the adapter has them. */
  next(): GPUComputePassTimestampWrites | undefined {
    if (!this.#row) return undefined;
    this.#row.dispatches++;
    if (!this.#timestamps) return undefined;
    const { querySet, rows } = this.#batch();
    const index = 2 * rows.length;
    rows.push(this.#row);
    const begin = this.#begun ? {} : { beginningOfPassWriteIndex: index };
    this.#begun = false;
    return { querySet, ...begin, endOfPassWriteIndex: index + 1 };
  }

  /** Encodes that the time of the next dispatch begins here, before a copy that it needs. */
  early(encoder: GPUCommandEncoder): void {
    if (!this.#row || !this.#timestamps || this.#begun) return;
    const { querySet, rows } = this.#batch();
    const timestampWrites = { querySet, beginningOfPassWriteIndex: 2 * rows.length };
    encoder.beginComputePass({ timestampWrites }).end();
    this.#begun = true;
  }

  /** The batch of the next dispatch. */
  #batch(): Batch {
    const last = this.#batches.at(-1);
    if (last && !last.staging && last.rows.length < this.#size) return last;
    const querySet = this.#gpu.createQuerySet({ type: "timestamp", count: 2 * this.#size });
    const batch: Batch = { querySet, rows: [], staging: null };
    this.#batches.push(batch);
    return batch;
  }

  /** Encodes the resolution of the timestamps of a submission. */
  resolve(encoder: GPUCommandEncoder): void {
    this.#begun = false;
    const batch = this.#batches.at(-1);
    if (!batch || batch.staging || !batch.rows.length) return;
    const count = 2 * batch.rows.length;
    const resolved = this.#gpu.createBuffer({
      size: count * 8,
      usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    });
    batch.staging = this.#gpu.createBuffer({
      size: count * 8,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
    encoder.resolveQuerySet(batch.querySet, 0, count, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, batch.staging, 0, count * 8);
  }

  /** Reads all timestamps and returns the rows, the costliest first. */
  async finish(): Promise<ProfileRow[]> {
    for (const { querySet, rows, staging } of this.#batches) {
      if (!staging) continue;
      await staging.mapAsync(GPUMapMode.READ);
      const stamps = new BigUint64Array(staging.getMappedRange());
      rows.forEach((row, i) => {
        row.milliseconds = (row.milliseconds ?? 0) +
          Number(stamps[2 * i + 1] - stamps[2 * i]) / 1e6;
      });
      staging.unmap();
      staging.destroy();
      querySet.destroy();
    }
    return [...this.#rows.values()]
      .sort((a, b) => (b.milliseconds ?? b.flops) - (a.milliseconds ?? a.flops));
  }
}
