/**
 * The agent's metrics as a scrape shows them: the whole text against a golden file (COLO_UPDATE_GOLDEN=1
 * writes it), every metric and label value against docs/metrics.md, and one reading of a VM for all metrics
 * of a scrape.
 */
import { beforeEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { CHECKPOINT_CAUSES } from "../../src/agent/checkpoint.ts";
import { AgentMetrics } from "../../src/agent/metrics/agent_metrics.ts";
import type { VmReading } from "../../src/agent/metrics/reading.ts";
import { DataPathStats, SharedBlock, STAT_INDEX, STAT_NAMES } from "../../src/datapath/shared.ts";
import { COUNTER_NAMES } from "../../src/ffi/layout.ts";
import { goldenText } from "../golden.ts";
import { samples, total } from "../metrics_text.ts";

const DOCUMENT = join(import.meta.dir, "../../docs/metrics.md");

/** A VM with one interface and two workers, where each number is another one. */
class Vm {
  readonly workers = [new SharedBlock(), new SharedBlock()];
  readonly counters: Record<string, number> = {};
  reads = 0;

  constructor() {
    this.workers.forEach((worker, at) => {
      STAT_NAMES.forEach((_, index) => {
        worker.stats[index] = (index + 1) * 10 ** (3 * at);
      });
    });
    COUNTER_NAMES.forEach((name, index) => {
      this.counters[name] = 100 + index;
    });
  }

  /** A frame is held, compared and released, between two looks at the VM. */
  passFrame(): void {
    this.counters.held = (this.counters.held ?? 0) + 1;
    (this.workers[0] as SharedBlock).stats[STAT_INDEX.released_compared]! += 1;
  }

  reading(): VmReading {
    this.reads++;
    this.passFrame();
    return {
      phase: "protected",
      epoch: 7,
      heartbeatAgeMs: 12,
      resync: undefined,
      overlayBytes: 4096,
      nics: [{ tap: "tap0", shared: new DataPathStats(this.workers), counters: { ...this.counters } }],
    };
  }
}

let vm: Vm;
let metrics: AgentMetrics;

beforeEach(() => {
  vm = new Vm();
  metrics = new AgentMetrics("1.2.3");
  const events = metrics.vm("vm1", () => vm.reading());
  const report = { epoch: 7, drainMs: 1, releasedFrames: 2, replayedFrames: 3 };
  events.checkpointCompleted({ ...report, cause: "periodic", pauseMs: 4, totalMs: 9, inputDrained: true });
  events.checkpointCompleted({ ...report, cause: "missing", pauseMs: 40, totalMs: 900, inputDrained: false });
  events.diverged("payload");
  events.failedOver("secondary", 0.3);
});

test("the text of a scrape", async () => {
  const text = (await metrics.text()).replace(/(resident_memory_bytes) \d+/, "$1 SIZE");
  expect(text).toBe(await goldenText("metrics.txt", text));
});

describe("one scrape is of one moment", () => {
  test("each VM is read once", async () => {
    await metrics.text();
    expect(vm.reads).toBe(1);
    await Promise.all([metrics.text(), metrics.text()]);
    expect(vm.reads).toBe(3);
  });

  test("frames that pass meanwhile do not break held = released + waiting", async () => {
    // An idle worker to begin with: what was held has been released or waits.
    const reasons = ["compared", "checkpoint", "passthrough", "alone", "late", "bypass"] as const;
    const stat = (name: keyof typeof STAT_INDEX) => new DataPathStats(vm.workers).stat(name);
    const released = reasons.reduce((sum, reason) => sum + stat(`released_${reason}`), 0);
    vm.counters.held = released + stat("held_frames");

    const texts = Array.from({ length: 3 }, () => metrics.text());
    for (const text of await Promise.all(texts)) {
      const neverHeld =
        total(text, "colo_frames_released_total", 'reason="direct"') +
        total(text, "colo_frames_released_total", 'reason="solo"');
      expect(total(text, "colo_frames_held_total")).toBe(
        total(text, "colo_frames_released_total") - neverHeld + total(text, "colo_frames_held"),
      );
    }
  });
});

describe("counters are there before the first event", () => {
  test.each([...CHECKPOINT_CAUSES])("checkpoints by %s", async (cause) => {
    const fresh = new AgentMetrics("1.2.3");
    fresh.vm("vm1", () => vm.reading());
    const key = `colo_checkpoints_total{vm="vm1",cause="${cause}"}`;
    expect(samples(await fresh.text()).get(key)).toBe(0);
  });
});

describe("docs/metrics.md", () => {
  test("lists every metric, and no other", async () => {
    const documented = new Set(
      (await Bun.file(DOCUMENT).text())
        .match(/^\| `colo_[^|]*/gm)
        ?.join()
        .match(/colo_\w+/g),
    );
    const written = new Set((await metrics.text()).match(/(?<=^# TYPE )\w+/gm));
    expect([...documented].sort()).toEqual([...written].sort());
  });

  test("explains every cause and every reason", async () => {
    const document = await Bun.file(DOCUMENT).text();
    const text = await metrics.text();
    const values = [...text.matchAll(/(?:cause|reason|role|survivor)="(\w+)"/g)].map(([, value]) => value);
    const missing = [...new Set(values)].filter((value) => !document.includes(`\`${value}\``));
    expect(missing).toEqual([]);
  });
});
