/**
 * Whether QEMU answers. A process that hangs (SIGSTOP, storage that blocks) keeps its socket open and says
 * nothing, so it has to be asked all the time: over the main loop, and out of band, which works while the
 * main loop waits for something.
 */

import type { VmConfig } from "../config/config.ts";
import { nodesOf } from "../config/disk.ts";
import type { Event } from "../failover/events.ts";
import type { QmpClient } from "../qmp/client.ts";

/**
 * A question stays open until it is answered or the connection closes; how long it has been open is what
 * counts.
 */
const NO_LIMIT_MS = 2 ** 31 - 1;

class Question {
  #askedMs: number | undefined;

  constructor(private readonly ask: () => Promise<unknown>) {}

  /** Asks again if the last question is answered; returns for how long there has been no answer, in ms. */
  silentMs(): number {
    if (this.#askedMs === undefined) {
      this.#askedMs = performance.now();
      const answered = () => {
        this.#askedMs = undefined;
      };
      this.ask().then(answered, answered);
      return 0;
    }
    return performance.now() - this.#askedMs;
  }
}

export class QemuWatch {
  readonly #main: Question;
  readonly #outOfBand: Question | undefined;
  readonly #timeoutMs: number;
  readonly #tell: (event: Event) => void;

  constructor(
    qmp: QmpClient,
    config: Pick<VmConfig, "qemu_timeout_ms" | "disk">,
    tell: (event: Event) => void,
  ) {
    this.#timeoutMs = config.qemu_timeout_ms;
    this.#tell = tell;
    this.#main = new Question(() => qmp.execute("query-status", undefined, { timeoutMs: NO_LIMIT_MS }));
    if (qmp.oob) {
      this.#outOfBand = new Question(() =>
        qmp.execute("query-yank", undefined, { oob: true, timeoutMs: NO_LIMIT_MS }),
      );
    }
    qmp.on("SHUTDOWN", (event) => {
      // A signal to QEMU is no wish that the VM be off: a host that is shut down sends it too.
      if (event.data.reason === "host-signal") return;
      tell({ type: "shutdown", reason: `the VM was shut down (${String(event.data.reason)})` });
    });
    qmp.on("BLOCK_IO_ERROR", (event) =>
      tell({
        type: "disk_error",
        disk: "own",
        reason:
          "QEMU reports an error of the disk " +
          `(${String(event.data["node-name"] ?? event.data.device)}: ${String(event.data.reason)})`,
      }),
    );
    const replicas = new Set(config.disk.map((disk) => nodesOf(disk).replication));
    qmp.on("QUORUM_REPORT_BAD", (event) => {
      const node = String(event.data["node-name"]);
      tell({
        type: "disk_error",
        disk: replicas.has(node) ? "replica" : "own",
        reason: `the quorum reports an error of ${node}: ${String(event.data.error ?? "its data differs")}`,
      });
    });
  }

  /**
   * One look. On a secondary only the out-of-band monitor counts: its main loop stands still whenever a
   * checkpoint is loaded (migration/colo.c holds the big lock), which the primary's own deadlines watch over.
   */
  look(role: "primary" | "secondary" | undefined): void {
    if (role === undefined) return;
    const outOfBandMs = this.#outOfBand?.silentMs() ?? 0;
    const mainMs = role === "primary" ? this.#main.silentMs() : 0;
    if (outOfBandMs > this.#timeoutMs) {
      const reason =
        `QEMU has not answered for ${Math.round(outOfBandMs)} ms, not even out of band: ` +
        "its process hangs";
      this.#tell({ type: "qemu_silent", reason });
    } else if (mainMs > this.#timeoutMs + SLACK_MS) {
      const reason = `QEMU's main loop has not answered for ${Math.round(mainMs)} ms`;
      this.#tell({ type: "qemu_slow", reason });
    }
  }
}

/** A process that hangs silences both; this much later the out-of-band question has told so. */
const SLACK_MS = 300;
