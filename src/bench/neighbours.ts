/**
 * A quiet VM beside others on the same host: what its frames wait for. Alone; beside another VM whose guest
 * sends and receives as fast as its data path lets it; and beside as many threads that only count, which
 * tells what the scheduler gives anybody on a machine so busy.
 */
import type { BusySetup } from "./busy_thread.ts";
import { ProtectedBridge } from "./path_ways.ts";
import { addDelays, type BenchContext, type ResultSet } from "./result.ts";
import { SEGMENT_BYTES } from "./segments.ts";

const RATE = 500;
const RUN_SECONDS = 2;
const RUN_SECONDS_QUICK = 0.5;
/** The threads of a busy VM: its guest and its data-path worker. */
const BUSY_THREADS = 2;

const CASE = `quiet VM, ${RATE} frames/s of ${SEGMENT_BYTES} B`;
const ALONE = "alone";
const BESIDE_THREADS = `beside ${BUSY_THREADS} busy threads`;
const BESIDE_VM = "beside a busy VM";

class BusyThread {
  readonly #buffer = new SharedArrayBuffer(16);
  readonly #worker = new Worker(new URL("./busy_thread.ts", import.meta.url).href);
  readonly #ended: Promise<void>;

  /** @param first frames that have gone through the taps already */
  constructor(taps?: BusySetup["taps"], first = 0) {
    new Float64Array(this.#buffer, 8, 1)[0] = first;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#ended = promise;
    promise.catch(() => undefined); // whoever waits for the end gets the error
    this.#worker.onmessage = ({ data }: MessageEvent<string | undefined>) =>
      data === undefined ? resolve() : reject(new Error(data));
    this.#worker.postMessage({ buffer: this.#buffer, taps } satisfies BusySetup);
  }

  /** Frames that have gone through until now. */
  get frames(): number {
    return new Float64Array(this.#buffer, 8, 1)[0];
  }

  async stop(): Promise<void> {
    Atomics.store(new Int32Array(this.#buffer), 0, 1);
    await this.#ended.finally(() => this.#worker.terminate());
  }
}

export async function benchNeighbours(context: BenchContext, results: ResultSet): Promise<void> {
  if (!context.wanted(CASE)) return;
  const seconds = context.quick ? RUN_SECONDS_QUICK : RUN_SECONDS;
  const quiet = await ProtectedBridge.create("quiet");
  try {
    const busy = await ProtectedBridge.create("busy");
    try {
      const measure = async (subject: string, threads: readonly BusyThread[]) => {
        context.progress(`${CASE}, ${subject}`);
        try {
          // They have begun by then.
          await Bun.sleep(100);
          const before = threads.reduce((sum, { frames }) => sum + frames, 0);
          const begun = performance.now();
          const { delaysNs, lost } = await quiet.run(RATE, seconds);
          const through = threads.reduce((sum, { frames }) => sum + frames, 0) - before;
          addDelays(results, { case: CASE, subject }, delaysNs);
          results.add({ case: CASE, subject, metric: "lost", unit: "frames" }, lost);
          if (subject !== BESIDE_VM) return;
          const rate = (through / (performance.now() - begun)) * 1000;
          results.add({ case: CASE, subject, metric: "the busy VM's", unit: "frames/s" }, rate);
        } finally {
          for (const thread of threads) await thread.stop();
        }
      };
      let first = 0;
      for (let run = 0; run < context.runs; run++) {
        await measure(ALONE, []);
        await measure(
          BESIDE_THREADS,
          Array.from({ length: BUSY_THREADS }, () => new BusyThread()),
        );
        const guest = new BusyThread(busy.tapFds, first);
        await measure(BESIDE_VM, [guest]);
        first = guest.frames;
      }
    } finally {
      await busy.close();
    }
  } finally {
    await quiet.close();
  }
}
